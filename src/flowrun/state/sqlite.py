"""The SQLite store: runs in one file, durable, shared by processes, readable while written."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    RunAliveError,
    RunLostError,
    StoreFileError,
    UnknownRunError,
)
from flowrun.state import statements as sql
from flowrun.state.encoding import encode
from flowrun.state.json_serializer import JsonSerializer
from flowrun.state.ownership import Ownership
from flowrun.state.protocol import ALL_RUNS
from flowrun.state.records import NoResult
from flowrun.state.serializers import checked_serializer
from flowrun.state.sqlite_connections import SqliteConnections
from flowrun.state.sqlite_file import SqliteFile
from flowrun.state.sqlite_pruning import give_back, prune
from flowrun.state.sqlite_reading import SqliteReader, peek, peek_all, written_by_others
from flowrun.state.sqlite_settings import check_settings
from flowrun.state.sqlite_writing import Batch, Owned, end_dead, insert_run, write_end

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Collection, Sequence

    from flowrun.state.protocol import Change, RunQuery
    from flowrun.state.records import EncodedResult, RunRecord, RunSummary, TaskRecord
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite_reading import StoredResult
    from flowrun.state.sqlite_settings import JournalMode, Synchronous

_CACHED_RUNS = 64

_log = logging.getLogger("flowrun.state")


class _Cached(NamedTuple):
    """A finished run in the cache.

    Attributes:
        until: When the entry expires, by the monotonic clock.
        run: Its record, without results.
        stored: Those as they are stored, by task.
    """

    until: float
    run: RunRecord
    stored: dict[str, StoredResult]


class SqliteStateStore:
    """Keep runs in a SQLite file, across processes and restarts.

    One connection writes, others read; readers never wait for the writer. Every run belongs to
    the store that created it, for as long as that store is open and its process lives.

    Args:
        db_path: The file. If there is none, it is created, readable by its owner only.
            ``":memory:"``: a database without a file, private to this store, for tests.
        serializer: How results become bytes; JSON by default.
        cache_ttl_s: For how many seconds finished runs stay in memory once they were loaded; a
            run that is alive is never cached. ``None``: no cache.
        recover: End the runs that dead processes have left behind, with a warning for each.
        synchronous: ``"FULL"``: an acknowledged success survives power loss. ``"NORMAL"``: it
            survives ``kill -9`` and a crash of the program, not one of the machine.
        journal_mode: ``"WAL"``, or ``"DELETE"`` (a rollback journal) for a file system that
            cannot share memory between processes; readers then wait for the writer.
        busy_timeout_s: How long to wait for another process's lock.

    Attributes:
        path: The file.
        serializer: What makes bytes of results.
        recovered: The runs that ``recover=True`` has ended, as they have ended.

    Raises:
        ForkedStoreError: A parent process had the file open when this one was forked.
        StoreFileError: The file is foreign, newer, damaged or cannot be used; it was left as
            it was.
        TypeError: The serializer lacks a method or a name.
        ValueError: A setting is out of its range.

    Example:
        >>> store = SqliteStateStore(":memory:")
        >>> store.list_runs()
        []
        >>> store.close()
    """

    blocking = True

    def __init__(  # noqa: PLR0913 - the contract's parameters and their extensions
        self,
        db_path: str | os.PathLike[str],
        serializer: ResultSerializer | None = None,
        cache_ttl_s: float | None = None,
        recover: bool = False,  # noqa: FBT001, FBT002 - the contract's signature
        *,
        synchronous: Synchronous = "FULL",
        journal_mode: JournalMode = "WAL",
        busy_timeout_s: float = 30.0,
        _readonly: bool = False,
    ) -> None:
        check_settings(synchronous, journal_mode, busy_timeout_s, cache_ttl_s)
        self.serializer = checked_serializer(JsonSerializer() if serializer is None else serializer)
        self._file = SqliteFile(
            db_path,
            synchronous=synchronous,
            journal_mode=journal_mode,
            busy_timeout_s=busy_timeout_s,
            readonly=_readonly,
        )
        self.path = self._file.path
        self.recovered: list[RunRecord] = []
        self._lock = threading.Lock()
        self._owned: dict[str, Owned] = {}
        self._cache_ttl_s = cache_ttl_s
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        with ExitStack() as undo:
            undo.callback(self._file.close)
            self._ownership = _claim(self._file, readonly=_readonly)
            if self._ownership is not None:
                undo.callback(self._ownership.close)
            self._connections = SqliteConnections(self._file, readonly=_readonly)
            undo.callback(self._connections.close)
            self._reader = SqliteReader(
                self.serializer,
                self._ownership,
                has_attempt_rows=self._file.has_attempt_rows,
            )
            if recover and not _readonly:
                self._recover()
            undo.pop_all()

    @classmethod
    def open_readonly(cls, db_path: str | os.PathLike[str]) -> SqliteStateStore:
        """Open a file to look at it, while another process may write to it.

        Nothing is created or changed. If the lock file beside the database cannot be read, a run
        that has not finished counts as alive.

        Raises:
            StoreFileError: There is no such file, or flowrun did not write it.
        """
        return cls(db_path, _readonly=True)

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run; see :meth:`StateStoreProtocol.create_run`."""
        with self._connections.transaction() as db:
            if run.resumed_from is not None:
                self._check_ancestor(db, run, run.resumed_from)
            owned = insert_run(db, run, self._owner)
        self._owned[run.run_id] = owned

    def encode_result(self, value: object, *, run_id: str, task_name: str) -> EncodedResult:
        """Return the bytes of a result; see :meth:`ByteStoreProtocol.encode_result`."""
        longest = self._connections.longest_result
        return encode(self.serializer, value, longest=longest, run_id=run_id, task_name=task_name)

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none; see :meth:`StateStoreProtocol.save`."""
        batch = Batch(changes, self._owned, self._encoded)
        with self._connections.transaction() as db:
            for run_id in batch.runs:
                self._check_owner(db, run_id)
            batch.write(db)
            for run in batch.ends:
                write_end(db, self._owned[run.run_id].seq, run)
        batch.committed()
        for run in batch.ends:
            del self._owned[run.run_id]

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs and give their space back to the file system.

        The store deletes in short transactions with pauses, so that other writers do not wait
        long. It skips a damaged run, whose time and DAG cannot be trusted.
        """
        deleted = prune(self._connections, keep_last=keep_last, created_before=created_before)
        with self._lock:
            self._cache.clear()
        give_back(self._connections, self._file.busy_timeout)
        return deleted

    def close(self) -> None:
        """Close the file; runs that have not finished count as dead from now on."""
        if self._file.is_inherited:
            return  # closing a connection of the parent would harm the file, too
        if self._connections.close():
            if self._ownership is not None:
                self._ownership.close()
            self._file.close()

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a run as last saved; see :meth:`StateStoreProtocol.load_run`."""
        self._file.check_process()
        cached = self._cached(run_id) if results else None
        if cached is not None:
            # Results are made anew for each reader, who may change what it is given (D1).
            return self._reader.with_results(cached.run, cached.stored)

        def read(dead: set[object]) -> tuple[RunRecord, dict[str, StoredResult]]:
            with self._connections.reading() as db:
                return self._reader.run(db, run_id, dead, results=results)

        run, stored = self._reader.until_certain(read)
        if results and run.finished_at is not None and self._cache_ttl_s is not None:
            self._keep_in_cache(run, stored, time.monotonic() + self._cache_ttl_s)
        return run

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks; see :meth:`StateStoreProtocol.load_results`."""
        with self._connections.reading() as db:
            return self._reader.results(db, run_id, task_names)

    def list_runs(self, query: RunQuery = ALL_RUNS) -> list[RunSummary]:
        """Return the runs that match, newest first, without their tasks.

        Raises:
            DamagedRecordError: A row of one of them is damaged; its ``others`` are the list
                without those.
        """

        def read(dead: set[object]) -> list[RunSummary]:
            with self._connections.reading() as db:
                return self._reader.runs(db, query, dead)

        return self._reader.until_certain(read)

    def stored_result(self, run_id: str, task_name: str, most: int = 200) -> tuple[str, int, bytes]:
        """Return a kept result undecoded: its serializer's name, its size, its first bytes.

        Raises:
            UnknownRunError: There is no such run, or no kept result of that task.
        """
        with self._connections.reading() as db:
            found = peek(db, run_id, task_name, most)
        if found is None:
            problem = f"{run_id}/{task_name}"
            raise UnknownRunError(problem)
        return found

    def stored_results(self, run_id: str, most: int = 200) -> dict[str, tuple[str, int, bytes]]:
        """Return every kept result of a run undecoded, by task; see :meth:`stored_result`."""
        with self._connections.reading() as db:
            return peek_all(db, run_id, most)

    def unreadable_results(self, run_id: str) -> set[str]:
        """Return the tasks of a run whose results a serializer made that is not the store's."""
        with self._connections.reading() as db:
            return written_by_others(db, run_id, self.serializer)

    @property
    def _owner(self) -> int:
        """The number under which this store owns runs."""
        return 0 if self._ownership is None else self._ownership.owner

    def _encoded(self, run_id: str, task: TaskRecord) -> EncodedResult:
        return self.encode_result(task.result, run_id=run_id, task_name=task.name)

    def _check_ancestor(self, db: sqlite3.Connection, run: RunRecord, ancestor: str) -> None:
        """Refuse a second heir at the same time; end an ancestor whose process died (S5, D3)."""
        rows = db.execute(sql.FAMILY, (ancestor,)).fetchall()
        if not rows:  # it was pruned meanwhile
            raise UnknownRunError(ancestor)
        for run_id, finished_at, owner in rows:
            if finished_at is None and self._reader.owner_lives(owner):
                raise RunAliveError(ancestor, f"run {run_id!r} is still being worked on")
            if run.sole_heir and run_id != ancestor:
                raise AlreadyResumedError(ancestor, f"run {run_id!r} has resumed it meanwhile")
        for run_id, finished_at, _ in rows:
            if finished_at is None:
                end_dead(db, run_id)

    def _check_owner(self, db: sqlite3.Connection, run_id: str) -> None:
        if db.execute(sql.OWNER_OF, (run_id,)).fetchone() != (None, self._owner):
            self._owned.pop(run_id, None)
            raise RunLostError(run_id)

    def _recover(self) -> None:
        """End the runs that dead processes have left behind, with a warning for each (D3)."""
        with self._connections.transaction() as db:
            for run_id, owner in db.execute(sql.UNFINISHED).fetchall():
                if not self._reader.owner_lives(owner):
                    try:
                        self.recovered.append(end_dead(db, run_id))
                    except (DamagedRecordError, UnknownRunError) as error:
                        # The other runs must still be recovered and readable.
                        _log.warning("not recovered: %s", error, extra={"run_id": run_id})
        for run in self.recovered:
            _log.warning(
                "run %r of DAG %r was ended: the process that worked on it has died",
                run.run_id,
                run.dag_name,
                extra={"run_id": run.run_id, "dag": run.dag_name},
            )

    def _cached(self, run_id: str) -> _Cached | None:
        with self._lock:
            entry = self._cache.get(run_id)
            if entry is None:
                return None
            if time.monotonic() >= entry.until:
                del self._cache[run_id]
                return None
            return entry

    def _keep_in_cache(self, run: RunRecord, stored: dict[str, StoredResult], until: float) -> None:
        tasks = {
            name: task._replace(result=NoResult.STORED) if name in stored else task
            for name, task in run.tasks.items()
        }
        with self._lock:
            self._cache[run.run_id] = _Cached(until, run._replace(tasks=tasks), stored)
            self._cache.move_to_end(run.run_id)
            while len(self._cache) > _CACHED_RUNS:
                self._cache.popitem(last=False)


def _claim(file: SqliteFile, *, readonly: bool) -> Ownership | None:
    """Return a store's claim to its runs; ``None`` where no other process could see one."""
    if file.in_memory:
        return None
    try:
        return Ownership(file.real_path, claims=not readonly)
    except StoreFileError:
        if readonly:
            return None
        raise
