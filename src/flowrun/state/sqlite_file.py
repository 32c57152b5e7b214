"""The SQLite file: who may open it, its connections, its errors in our words."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NoReturn

from flowrun.errors import (
    ForkedStoreError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFullError,
)
from flowrun.state.schema import APPLICATION_ID, STEPS, complete, upgrade
from flowrun.state.sqlite_settings import IN_MEMORY, checked_path

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from flowrun.state.schema import Step
    from flowrun.state.sqlite_settings import JournalMode, Synchronous

_MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables
_PAUSE_S = 0.005
# On macOS an ordinary sync leaves the data in the drive's cache; elsewhere "fullfsync" is nothing.
_CAREFUL = ("PRAGMA fullfsync = ON", "PRAGMA checkpoint_fullfsync = ON")
_SYNCHRONOUS = {
    ("FULL", "WAL"): ("PRAGMA synchronous = FULL", *_CAREFUL),
    # With FULL alone power loss may bring a deleted rollback journal back, and so undo a commit.
    ("FULL", "DELETE"): ("PRAGMA synchronous = EXTRA", *_CAREFUL),
    # A checkpoint takes a mostly fixed time. But the longer the log is, the more often a commit
    # waits until the file has grown, which takes twice as long as to overwrite what was copied.
    ("NORMAL", "WAL"): (
        *("PRAGMA synchronous = NORMAL", "PRAGMA checkpoint_fullfsync = ON"),
        "PRAGMA wal_autocheckpoint = 4000",
    ),
    ("NORMAL", "DELETE"): ("PRAGMA synchronous = NORMAL",),
}
_JOURNAL_MODE = {"WAL": "PRAGMA journal_mode = WAL", "DELETE": "PRAGMA journal_mode = DELETE"}

_OPEN: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_INHERITED: set[str] = set()


def _remember_parent() -> None:
    """Take note, in a forked child, of the files that its parent had open.

    SQLite remembers in the process's memory which locks it holds on a file, and the child has
    that memory but not the locks: what it wrote, even by a connection of its own, could be lost
    (howtocorrupt.html, section 2.6).
    """
    _INHERITED.update(str(file.real_path) for file in _OPEN if not file.in_memory)


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_remember_parent)


class SqliteFile:
    """One database file, checked before anything is written to it.

    Args: as of ``SqliteStateStore``, and
        readonly: Never create or change anything; an older file is read as it is.
        steps: What makes the schema; the file's version is the number of those it has had.

    Attributes:
        path: The path as it was given, for messages.
        in_memory: Whether there is no file; each connection has a database of its own.
        is_older: Whether the file, which is only read, is of an older schema.
        readonly: Whether nothing may be changed.
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
        self.path, self.real_path = checked_path(db_path, readonly=readonly)
        self.in_memory = str(self.path) == IN_MEMORY
        self._steps = steps
        self._synchronous = synchronous
        self._journal_mode = journal_mode
        self._busy_timeout_s = busy_timeout_s
        self.readonly = readonly
        self.is_older = False
        self._process = os.getpid()
        self._version = len(steps)
        self._identity: tuple[int, int] | None = None
        if self.in_memory:
            return
        if str(self.real_path) in _INHERITED:
            self._refuse_fork()
        _OPEN.add(self)
        try:
            with self.translated():
                self._prepare()
            self.is_older = self._version < len(steps)
            self._identity = self._found()
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
        """Refuse to work in a forked child."""
        if self.is_inherited:
            self._refuse_fork()

    def check_present(self) -> None:
        """Refuse to go on without the file that was opened.

        What is written to a deleted file is lost when the last process has closed it.

        Raises:
            StoreFileError: The path leads to another file, or to none.
        """
        if self._identity is not None and self._found() != self._identity:
            self.refuse(
                "the file is gone: it was deleted, moved or replaced while this store had it open;"
                " put it back where it was, or open a new store"
            )

    def refuse(self, problem: str, cause: Exception | None = None) -> NoReturn:
        """Raise the error of a file that cannot be used."""
        msg = f"{str(self.path)!r} cannot be used as a state store: {problem}"
        raise StoreFileError(msg) from cause

    def connect(self, *, readonly: bool) -> sqlite3.Connection:
        """Open a connection: the only place where one is opened, and every pragma set.

        Args:
            readonly: Whether it must not write.
        """
        mode = "ro" if readonly else "rw"
        where = "file::memory:" if self.in_memory else f"{self.real_path.as_uri()}?mode={mode}"
        connection = sqlite3.connect(
            where,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_timeout_s,
            cached_statements=64,
        )
        # A damaged byte must not keep a row from being compared with its checksum.
        connection.text_factory = _decoded
        try:
            for name in ("cell_size_check", "foreign_keys", "secure_delete"):
                connection.execute(f"PRAGMA {name} = ON")
            connection.execute("PRAGMA trusted_schema = OFF")
            if not readonly:
                for pragma in _SYNCHRONOUS[self._synchronous, self._journal_mode]:
                    connection.execute(pragma)
            complete(connection, self._version)
            if self.in_memory:
                self._upgrade(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def translated(self) -> Generator[None, None, None]:
        """Translate SQLite's errors into the store's own classes."""
        try:
            yield
        except sqlite3.Error as error:
            self.check_present()
            raise self._in_our_words(error) from error
        except UnicodeDecodeError as error:
            # Raised by the module itself, for text (or a message) with damaged bytes in it.
            self.refuse(f"it is damaged ({error})", error)

    def _prepare(self) -> None:
        if sqlite3.sqlite_version_info < _MINIMUM_SQLITE:  # pragma: no cover - older than Python's
            self.refuse(f"SQLite {sqlite3.sqlite_version} is too old; it takes 3.37")
        if not self.readonly:
            self._create_file()
        with closing(self.connect(readonly=self.readonly)) as connection:
            # In one transaction: another process may be creating the file.
            connection.execute("BEGIN")
            version = self._checked_version(connection)
            connection.execute("COMMIT")
            if self.readonly:
                if version == 0:
                    self.refuse("it holds no runs yet")
                self._version = version
                return
            if version < len(self._steps):
                self._upgrade(connection)
            mode = self._set_journal_mode(connection)
            if mode != self._journal_mode.lower():  # pragma: no cover - needs such a file system
                self.refuse(
                    f"its file system cannot keep the journal mode {self._journal_mode!r} (it is"
                    f" {mode!r}); open it with journal_mode='DELETE'"
                )

    def _create_file(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            os.close(os.open(self.path, flags, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            self.refuse(str(error), error)

    def _checked_version(self, connection: sqlite3.Connection) -> int:
        """Return the schema's version, 0 for an empty file; reads only."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        objects = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        if not objects and application == 0 and version == 0:
            return 0
        if application != APPLICATION_ID:
            self.refuse("it is a database of some other program")
        known = len(self._steps)
        if version > known:
            self.refuse(
                f"a newer flowrun wrote it (schema {version}, this one knows {known}); use that one"
            )
        if version < 1:
            self.refuse(f"it is damaged (there is no schema {version})")
        strange = [name for kind, name in objects if kind in ("trigger", "view")]
        if strange:
            self.refuse(f"it has triggers or views that flowrun did not make: {strange}")
        return int(version)

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        """Take a file from its version to ours, in one transaction (D5)."""
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in an empty file only
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have migrated the file meanwhile. If a step fails, closing the
        # connection rolls all of them back.
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

    def _found(self) -> tuple[int, int] | None:
        """Return what identifies the file to which the path leads now."""
        try:
            status = os.stat(self.real_path)  # noqa: PTH116 - a Path's method takes twice as long
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _in_our_words(self, error: sqlite3.Error) -> StoreError:
        code = _code_of(error)
        where = f"{str(self.path)!r}"
        if _is_busy(error):
            return StoreBusyError(
                f"{where} was locked by another connection for more than"
                f" {self._busy_timeout_s:g} s; find the process that holds the lock, or raise"
                " busy_timeout_s"
            )
        # A limit on the size of files is another error: an I/O error.
        if code == sqlite3.SQLITE_FULL:
            return StoreFullError(f"{where}: no space left to write to ({error}); make room")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self.refuse(f"it is damaged, or no SQLite database ({error})", error)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            self.refuse(f"it, or its folder, cannot be written to ({error})", error)
        return StoreError(f"{where}: {error}")

    def _refuse_fork(self) -> NoReturn:
        msg = (
            f"the store on {str(self.path)!r} was open in a parent process and cannot be used in a"
            " forked child, where SQLite has lost its locks; start the process by 'spawn' or"
            " 'forkserver', or fork before the store is opened"
        )
        raise ForkedStoreError(msg)


def _code_of(error: sqlite3.Error) -> int:
    """Return the primary code; 0 for what the module itself has raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_busy(error: sqlite3.Error) -> bool:
    return _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
