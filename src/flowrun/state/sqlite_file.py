"""The SQLite file: who may open it, its schema, its connections, its errors in our words."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from flowrun.errors import (
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFullError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

Synchronous: TypeAlias = Literal["FULL", "NORMAL"]
JournalMode: TypeAlias = Literal["WAL", "DELETE"]

APPLICATION_ID = 0x666C6F77  # "flow"
SCHEMA_VERSION = 1
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables

SCHEMA = """
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    dag_name TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL,
    status TEXT NOT NULL,
    error TEXT,
    metadata TEXT NOT NULL,
    resumed_from TEXT,
    targets TEXT,
    owner INTEGER,
    task_counts TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_by_dag ON runs (dag_name, seq);
CREATE INDEX runs_by_ancestor ON runs (resumed_from, seq) WHERE resumed_from IS NOT NULL;
CREATE INDEX runs_by_time ON runs (created_at);
CREATE INDEX runs_by_status ON runs (status, seq);
CREATE INDEX runs_unfinished ON runs (seq) WHERE finished_at IS NULL;
CREATE TABLE tasks (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    deps TEXT NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    ready_at REAL,
    started_at REAL,
    finished_at REAL,
    error TEXT,
    reason TEXT,
    abandoned INTEGER NOT NULL,
    earlier TEXT NOT NULL,
    result_state TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE results (
    run INTEGER NOT NULL REFERENCES runs (seq) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    serializer TEXT NOT NULL,
    data BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (run, place)
) STRICT;
"""

MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}
"""What makes a file of one schema version a file of the next, by the older one."""

_PAUSE_S = 0.005
_SIDECARS = ("-wal", "-shm", "-journal", "-owners")


class SqliteFile:
    """One database file, checked before anything is written to it.

    Args:
        db_path: Where it is; made, readable by its owner only, if there is none.
        synchronous: ``"FULL"`` survives power loss, ``"NORMAL"`` the death of the process.
        journal_mode: ``"WAL"``, or ``"DELETE"`` for file systems that cannot share memory.
        busy_timeout_s: How long to wait for somebody else's lock.
        readonly: Never create or change anything.

    Raises:
        StoreFileError: The file is foreign, newer, damaged, or cannot be used; it was left as
            it was.
    """

    def __init__(
        self,
        db_path: str | os.PathLike[str],
        *,
        synchronous: Synchronous,
        journal_mode: JournalMode,
        busy_timeout_s: float,
        readonly: bool,
    ) -> None:
        self.path = _checked_path(db_path, readonly=readonly)
        self._synchronous = synchronous
        self._journal_mode = journal_mode
        self._busy_timeout_s = busy_timeout_s
        self._readonly = readonly
        with self.translated():
            self._prepare()

    def connect(self, *, readonly: bool, waits: bool = True) -> sqlite3.Connection:
        """Open a connection: the only place where one is opened, and every pragma set.

        Args:
            readonly: It never creates or changes anything.
            waits: It waits for somebody else's lock, in place of giving up at once.
        """
        mode = "ro" if readonly else "rw"
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_timeout_s if waits else 0.0,
            cached_statements=64,
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            if not readonly:
                connection.execute(_SYNCHRONOUS[self._synchronous])
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
                if version < SCHEMA_VERSION:
                    problem = (
                        f"an older flowrun wrote it (schema {version}); a SqliteStateStore that"
                        " opens it to write makes it a newer one"
                    )
                    raise self._refusal(problem)
                return
            if version == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            if version < SCHEMA_VERSION:
                self._bring_up_to_date(connection)
            self._set_journal_mode(connection)

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
        if version > SCHEMA_VERSION:
            problem = (
                f"a newer flowrun wrote it (schema {version}, this one knows {SCHEMA_VERSION});"
                " use that one"
            )
            raise self._refusal(problem)
        strange = [name for kind, name in objects if kind in ("trigger", "view")]
        if strange:
            problem = f"it has triggers or views that flowrun did not make: {strange}"
            raise self._refusal(problem)
        return int(version)

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        """Make the schema, or migrate an older one, in one transaction (D5)."""
        connection.execute("BEGIN IMMEDIATE")
        # Somebody else may have been quicker.
        version = self._checked_version(connection)
        if version == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        else:
            for older in range(version, SCHEMA_VERSION):
                MIGRATIONS[older](connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")  # closed without it, the connection takes all of it back

    def _set_journal_mode(self, connection: sqlite3.Connection) -> None:
        """Change the mode, waiting for others as for any lock; SQLite does not wait here."""
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute(_JOURNAL_MODE[self._journal_mode])
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE_S)
            else:
                return

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

    def _refusal(self, problem: str) -> StoreFileError:
        return StoreFileError(f"{str(self.path)!r} cannot be used as a state store: {problem}")


def _code_of(error: sqlite3.Error) -> int:
    """Return the primary code; 0 for what the module itself has raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _is_busy(error: sqlite3.Error) -> bool:
    return _code_of(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


_SYNCHRONOUS = {
    "FULL": "PRAGMA synchronous = FULL",
    "NORMAL": "PRAGMA synchronous = NORMAL",
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
    if synchronous not in _SYNCHRONOUS:
        msg = f"synchronous must be one of {', '.join(_SYNCHRONOUS)}, not {synchronous!r}"
        raise ValueError(msg)
    if journal_mode not in _JOURNAL_MODE:
        msg = f"journal_mode must be one of {', '.join(_JOURNAL_MODE)}, not {journal_mode!r}"
        raise ValueError(msg)
    if not busy_timeout_s >= 0:
        msg = f"busy_timeout_s must be 0 or more, not {busy_timeout_s!r}"
        raise ValueError(msg)


def _checked_path(db_path: str | os.PathLike[str], *, readonly: bool) -> Path:
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
    for sidecar in _SIDECARS:
        if path.with_name(path.name + sidecar).is_symlink():
            problem = f"{path.name + sidecar!r} beside it is a link; remove it"
            raise refusal(problem)
    return path
