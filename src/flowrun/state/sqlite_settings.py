"""What a store on a SQLite file can be asked for, and what may be its path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from flowrun.errors import StoreFileError

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]
JournalMode: TypeAlias = Literal["WAL", "DELETE"]

IN_MEMORY = ":memory:"
"""The path of a store without a file, which SQLite calls so, too."""

_LONGEST_WAIT_S = 2_000_000  # SQLite counts milliseconds in a C int
_JOURNAL_MODES = ("WAL", "DELETE")


def check_settings(
    synchronous: str, journal_mode: str, busy_timeout_s: float, cache_ttl_s: float | None
) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: Says which, and what it may be.
    """
    if synchronous not in ("FULL", "NORMAL"):
        msg = f"synchronous must be one of FULL, NORMAL, not {synchronous!r}"
        raise ValueError(msg)
    if journal_mode not in _JOURNAL_MODES:
        msg = f"journal_mode must be one of {', '.join(_JOURNAL_MODES)}, not {journal_mode!r}"
        raise ValueError(msg)
    if not 0 <= busy_timeout_s <= _LONGEST_WAIT_S:
        msg = f"busy_timeout_s must be 0 to {_LONGEST_WAIT_S:,} seconds, not {busy_timeout_s!r}"
        raise ValueError(msg)
    if cache_ttl_s is not None and not cache_ttl_s >= 0:
        msg = f"cache_ttl_s must be 0 or more, or None, not {cache_ttl_s!r}"
        raise ValueError(msg)


def checked_path(db_path: str | os.PathLike[str], *, readonly: bool) -> tuple[Path, Path]:
    """Return the path as given and where it leads, if a store can be there.

    Raises:
        StoreFileError: It cannot; the message says why.
    """
    text = os.fspath(db_path)
    path = Path(text)

    def refusal(problem: str) -> StoreFileError:
        return StoreFileError(f"{text!r} cannot be used as a state store: {problem}")

    if not text or "\0" in text:
        problem = "give the path of a file"
        raise refusal(problem)
    if text == IN_MEMORY and not readonly:
        return path, path
    if text == IN_MEMORY or text.startswith("file:"):
        problem = "give the path of a file; to keep nothing use InMemoryStateStore()"
        raise refusal(problem)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long, a loop of links
        raise refusal(str(error)) from error
    if is_folder:
        problem = "it is a directory; give the path of a file"
        raise refusal(problem)
    if not path.parent.is_dir():
        problem = f"its folder {str(path.parent)!r} does not exist; make it first"
        raise refusal(problem)
    if readonly and not path.is_file():
        problem = "there is no such file"
        raise refusal(problem)
    real_path = Path(os.path.realpath(path))  # Path.resolve() may raise for a loop of links
    links = [name for name in _sidecars(real_path) if real_path.with_name(name).is_symlink()]
    if links:
        problem = f"{links[0]!r} beside it is a link; remove it"
        raise refusal(problem)
    return path, real_path


def _sidecars(path: Path) -> list[str]:
    """Return the names of the files that SQLite and flowrun keep beside a database."""
    return [path.name + suffix for suffix in ("-wal", "-shm", "-journal", "-owners")]
