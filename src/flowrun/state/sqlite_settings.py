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


def check_settings(
    synchronous: str, journal_mode: str, busy_timeout_s: float, cache_ttl_s: float | None
) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: Says which, and what it may be.
    """
    msg = ""
    if synchronous not in ("FULL", "NORMAL"):
        msg = f"synchronous must be one of FULL, NORMAL, not {synchronous!r}"
    elif journal_mode not in ("WAL", "DELETE"):
        msg = f"journal_mode must be one of WAL, DELETE, not {journal_mode!r}"
    elif not 0 <= busy_timeout_s <= _LONGEST_WAIT_S:
        msg = f"busy_timeout_s must be 0 to {_LONGEST_WAIT_S:,} seconds, not {busy_timeout_s!r}"
    elif cache_ttl_s is not None and not cache_ttl_s >= 0:
        msg = f"cache_ttl_s must be 0 or more, or None, not {cache_ttl_s!r}"
    if msg:
        raise ValueError(msg)


def checked_path(db_path: str | os.PathLike[str], *, readonly: bool) -> tuple[Path, Path]:
    """Return the path as given and where it leads, if a store can be there.

    Raises:
        StoreFileError: It cannot; the message says why.
    """
    text = os.fspath(db_path)
    if text == IN_MEMORY and not readonly:
        return Path(text), Path(text)
    try:
        problem = _problem_of(text, readonly=readonly)
    except OSError as error:  # pragma: no cover - a name that is too long, before Python 3.14
        problem = str(error)
    if problem:
        msg = f"{text!r} cannot be used as a state store: {problem}"
        raise StoreFileError(msg)
    return Path(text), Path(os.path.realpath(text))  # Path.resolve() may raise for a loop of links


def _problem_of(text: str, *, readonly: bool) -> str:
    if not text or "\0" in text:
        return "give the path of a file"
    if text == IN_MEMORY or text.startswith("file:"):
        return "give the path of a file; to keep nothing use InMemoryStateStore()"
    path = Path(text)
    if path.is_dir():
        return "it is a directory; give the path of a file"
    if not path.parent.is_dir():
        return f"its folder {str(path.parent)!r} does not exist; make it first"
    if readonly and not path.is_file():
        return "there is no such file"
    others = ("-wal", "-shm", "-journal", "-owners")  # of SQLite and flowrun
    beside = [Path(os.path.realpath(path) + suffix) for suffix in others]
    links = [other.name for other in beside if other.is_symlink()]
    return f"{links[0]!r} beside it is a link; remove it" if links else ""
