"""The SQLite file: who may open it, its connections, its errors in our words."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from flowrun.errors import (
    ForkedStoreError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFullError,
)
from flowrun.state.schema import APPLICATION_ID, STEPS, complete, upgrade

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from flowrun.state.schema import Step

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]
JournalMode: TypeAlias = Literal["WAL", "DELETE"]

FOLDED_PAGES = {"FULL": 1000, "NORMAL": 4000}
"""When the log is folded back into the database, by ``synchronous``.

To fold it takes its time, mostly a fixed one. But the longer it is, the more often a commit has
to wait until the file has grown, which takes twice as long as to overwrite what was folded.
"""
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables

_LONGEST_WAIT_S = 2_000_000  # SQLite counts milliseconds in a C int
_PAUSE_S = 0.005
_SIDECARS = ("-wal", "-shm", "-journal", "-owners")


_OPEN: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_INHERITED: set[str] = set()


def _remember_parent() -> None:
    """Take note, in a forked child, of the files that its parent had open.

    SQLite remembers in the process's memory which locks it holds on a file, and the child has
    that memory but not the locks: what it wrote, even by a connection of its own, could be lost
    (howtocorrupt.html, section 2.6).
    """
    _INHERITED.update(str(file.real_path) for file in _OPEN)


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_remember_parent)


class SqliteFile:
    """One database file, checked before anything is written to it.

    Args:
        db_path: Where it is; made, readable by its owner only, if there is none.
        synchronous: ``"FULL"`` survives power loss, ``"NORMAL"`` the death of the process.
        journal_mode: ``"WAL"``, or ``"DELETE"`` for file systems that cannot share memory.
        busy_timeout_s: How long to wait for somebody else's lock.
        readonly: Never create or change anything; an older file is read as it is.
        steps: What makes the schema; the file's version is the number of those it has had.

    Attributes:
        path: The path as it was given, for messages.
        busy_timeout: The pragma that sets a connection's wait for a lock to what was asked for.
        real_path: Where the file really is, whatever the current folder becomes; SQLite's own
            files and the lock file are beside it.

    Raises:
        ForkedStoreError: A parent process had it open when this one was forked.
        StoreFileError: The file is foreign, newer, damaged, or cannot be used; it was left as
            it was.
    """

    def __init__(  # noqa: PLR0913 - the store's settings
        self,
        db_path: str | os.PathLike[str],
        *,
        synchronous: Synchronous,
        journal_mode: JournalMode,
        busy_timeout_s: float,
        readonly: bool,
        steps: Sequence[Step] = STEPS,
    ) -> None:
        self.path, self.real_path = _checked_path(db_path, readonly=readonly)
        self._steps = steps
        self._synchronous = synchronous
        self._journal_mode = journal_mode
        self._busy_timeout_s = busy_timeout_s
        self.busy_timeout = f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}"
        self._readonly = readonly
        self._process = os.getpid()
        self._version = len(steps)
        if str(self.real_path) in _INHERITED:
            raise self._forked()
        _OPEN.add(self)
        try:
            with self.translated():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Say that all connections have been closed."""
        _OPEN.discard(self)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child of the process that opened the file."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Refuse to work in a forked child.

        Raises:
            ForkedStoreError: This is not the process that opened the file.
        """
        if self.is_inherited:
            raise self._forked()

    def connect(self, *, readonly: bool, waits: bool = True) -> sqlite3.Connection:
        """Open a connection: the only place where one is opened, and every pragma set.

        Args:
            readonly: Whether it must not write.
            waits: Whether it may wait, for a lock or to fold the log back into the database.
        """
        mode = "ro" if readonly else "rw"
        connection = sqlite3.connect(
            f"{self.real_path.as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_timeout_s if waits else 0,
            cached_statements=64,
        )
        # A damaged byte must not keep a row from being compared with its checksum.
        connection.text_factory = _decoded
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            if not readonly:
                for pragma in _SYNCHRONOUS[self._synchronous, self._journal_mode]:
                    connection.execute(pragma)
                pages = FOLDED_PAGES[self._synchronous] if waits else 0
                connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            complete(connection, self._version)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def translated(self) -> Generator[None, None, None]:
        """Say SQLite's errors in the store's own classes."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._in_our_words(error) from error
        except UnicodeDecodeError as error:
            # Raised by the module itself, for text (or a message) with damaged bytes in it.
            problem = f"it is damaged ({error})"
            raise self._refusal(problem) from error

    def _prepare(self) -> None:
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:  # pragma: no cover - older than Python's
            msg = f"SQLite {sqlite3.sqlite_version} is too old; 3.37 is the oldest that will do"
            raise StoreFileError(msg)
        if not self._readonly:
            self._create_file()
        with closing(self.connect(readonly=self._readonly)) as connection:
            # In one transaction: somebody else may be making the file at this moment.
            connection.execute("BEGIN")
            version = self._checked_version(connection)
            connection.execute("COMMIT")
            if self._readonly:
                if version == 0:
                    problem = "it holds no runs yet"
                    raise self._refusal(problem)
                self._version = version
                return
            if version < len(self._steps):
                self._upgrade(connection)
            mode = self._set_journal_mode(connection)
            if mode != self._journal_mode.lower():  # pragma: no cover - needs such a file system
                problem = (
                    f"its file system cannot keep the journal mode {self._journal_mode!r} (it is"
                    f" {mode!r}); open it with journal_mode='DELETE'"
                )
                raise self._refusal(problem)

    def _create_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            os.close(os.open(self.path, flags, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise self._refusal(str(error)) from error

    def _checked_version(self, connection: sqlite3.Connection) -> int:
        """Return the schema's version, 0 for an empty file; reads only."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        objects = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        if not objects and application == 0 and version == 0:
            return 0
        if application != APPLICATION_ID:
            problem = "it is a database of some other program"
            raise self._refusal(problem)
        if version > len(self._steps):
            problem = (
                f"a newer flowrun wrote it (schema {version}, this one knows {len(self._steps)});"
                " use that one"
            )
            raise self._refusal(problem)
        if version < 1:
            problem = f"it is damaged (there is no schema {version})"
            raise self._refusal(problem)
        strange = [name for kind, name in objects if kind in ("trigger", "view")]
        if strange:
            problem = f"it has triggers or views that flowrun did not make: {strange}"
            raise self._refusal(problem)
        return int(version)

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        """Take a file from its version to ours, in one transaction (D5)."""
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heard by an empty file only
        connection.execute("BEGIN IMMEDIATE")
        # Somebody else may have been quicker. Where a step fails, closing the connection
        # rolls all of them back.
        upgrade(connection, self._checked_version(connection), self._steps)
        connection.execute("COMMIT")

    def _set_journal_mode(self, connection: sqlite3.Connection) -> str:
        """Change the mode, waiting for others as for any lock; SQLite does not wait here."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                (mode,) = connection.execute(_JOURNAL_MODE[self._journal_mode]).fetchone()
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return str(mode)

    def _in_our_words(self, error: sqlite3.Error) -> StoreError:
        code = _code_of(error)
        where = f"{str(self.path)!r}"
        if _is_busy(error):
            return StoreBusyError(
                f"{where} was locked by somebody else for more than {self._busy_timeout_s:g} s;"
                " find out who holds it, or raise busy_timeout_s"
            )
        # A limit on the size of files is another error: an I/O error.
        if code == sqlite3.SQLITE_FULL:
            return StoreFullError(f"{where}: no space left to write to ({error}); make room")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._refusal(f"it is damaged, or no SQLite database ({error})")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return self._refusal(f"it, or its folder, cannot be written to ({error})")
        return StoreError(f"{where}: {error}")

    def _forked(self) -> ForkedStoreError:
        return ForkedStoreError(
            f"the store on {str(self.path)!r} was open in a parent process and cannot be used in a"
            " forked child, where SQLite has lost its locks; start the process by 'spawn' or"
            " 'forkserver', or fork before the store is opened"
        )

    def _refusal(self, problem: str) -> StoreFileError:
        return StoreFileError(f"{str(self.path)!r} cannot be used as a state store: {problem}")


def _code_of(error: sqlite3.Error) -> int:
    """Return the primary code; 0 for what the module itself has raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_busy(error: sqlite3.Error) -> bool:
    return _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


# On macOS an ordinary sync leaves the data in the drive's cache; elsewhere "fullfsync" is nothing.
_CAREFUL = ("PRAGMA fullfsync = ON", "PRAGMA checkpoint_fullfsync = ON")
_SYNCHRONOUS = {
    ("FULL", "WAL"): ("PRAGMA synchronous = FULL", *_CAREFUL),
    # With FULL alone power loss may bring a deleted rollback journal back, and so undo a commit.
    ("FULL", "DELETE"): ("PRAGMA synchronous = EXTRA", *_CAREFUL),
    ("NORMAL", "WAL"): ("PRAGMA synchronous = NORMAL", "PRAGMA checkpoint_fullfsync = ON"),
    ("NORMAL", "DELETE"): ("PRAGMA synchronous = NORMAL",),
}
_JOURNAL_MODE = {
    "WAL": "PRAGMA journal_mode = WAL",
    "DELETE": "PRAGMA journal_mode = DELETE",
}


def check_settings(synchronous: str, journal_mode: str, busy_timeout_s: float) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: Says which, and what it may be.
    """
    if synchronous not in ("FULL", "NORMAL"):
        msg = f"synchronous must be one of FULL, NORMAL, not {synchronous!r}"
        raise ValueError(msg)
    if journal_mode not in _JOURNAL_MODE:
        msg = f"journal_mode must be one of {', '.join(_JOURNAL_MODE)}, not {journal_mode!r}"
        raise ValueError(msg)
    if not 0 <= busy_timeout_s <= _LONGEST_WAIT_S:
        msg = f"busy_timeout_s must be 0 to {_LONGEST_WAIT_S:,} seconds, not {busy_timeout_s!r}"
        raise ValueError(msg)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _checked_path(db_path: str | os.PathLike[str], *, readonly: bool) -> tuple[Path, Path]:
    """Return the path as given and where it leads, if a store can be there."""
    text = os.fspath(db_path)
    path = Path(text)

    def refusal(problem: str) -> StoreFileError:
        return StoreFileError(f"{text!r} cannot be used as a state store: {problem}")

    if not text or "\0" in text:
        problem = "give the path of a file"
        raise refusal(problem)
    if text == ":memory:" or text.startswith("file:"):
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
    for sidecar in _SIDECARS:
        if real_path.with_name(real_path.name + sidecar).is_symlink():
            problem = f"{real_path.name + sidecar!r} beside it is a link; remove it"
            raise refusal(problem)
    return path, real_path
