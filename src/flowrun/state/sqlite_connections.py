"""The connections of one SQLite store: one that writes, and as many that read as are needed."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from flowrun.errors import StoreFileError

if TYPE_CHECKING:
    from collections.abc import Generator

    from flowrun.state.sqlite_file import SqliteFile


class SqliteConnections:
    """Lend connections to threads: the writer's to one at a time, a reader's to each.

    Readers never wait for the writer, except in memory, where all use one connection.

    Args:
        file: What the connections lead to.

    Attributes:
        longest_result: How many bytes of a result SQLite keeps in a row.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        # Held while the writer waits for another process, so readers must not need it.
        self._writing = threading.RLock()
        self._lock = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        with file.translated():
            self._writer = file.connect(readonly=file.readonly)
        limit = self._writer.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
        self.longest_result = limit - 1000  # room for the row's other values

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """Own begin, commit and rollback of every write.

        Raises:
            StoreFileError: The store is closed or only reads, or the file is gone: then nothing
                was written.
        """
        with self.maintenance() as writer:
            try:
                writer.execute("BEGIN IMMEDIATE")
                yield writer
                self._file.check_present()
                writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                    writer.execute("ROLLBACK")
                raise

    @contextmanager
    def maintenance(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend the writer's connection outside of a transaction."""
        if self._file.readonly:
            msg = f"{str(self._file.path)!r} was opened to read only; open a SqliteStateStore"
            raise StoreFileError(msg)
        self._file.check_process()
        with self._writing, self._file.translated():
            self._require_open()
            yield self._writer

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend a connection with one view of the database for all that is read."""
        if self._file.in_memory:
            with self.maintenance() as writer:
                yield writer
            return
        self._file.check_process()
        with self._file.translated():
            connection = self._reader()
            try:
                self._file.check_present()
                connection.execute("BEGIN")
                yield connection
            finally:
                with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                    connection.execute("ROLLBACK")
                with self._lock:
                    if self._closed:
                        connection.close()
                    else:
                        self._readers.append(connection)

    def close(self) -> bool:
        """Close them all; those that are lent are closed when they are given back.

        Returns:
            Whether they were open.
        """
        with self._writing, self._lock:
            if self._closed:
                return False
            self._closed = True
            for connection in (*self._readers, self._writer):
                connection.close()
            self._readers.clear()
        return True

    def _reader(self) -> sqlite3.Connection:
        with self._lock:
            self._require_open()
            if self._readers:
                return self._readers.pop()
        return self._file.connect(readonly=True)

    def _require_open(self) -> None:
        if self._closed:
            msg = f"the store on {str(self._file.path)!r} is closed; open a new one"
            raise StoreFileError(msg)
