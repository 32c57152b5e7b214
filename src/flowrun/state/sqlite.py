"""The SQLite store: runs in one file, durable, shared by processes, readable while written."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    RunAliveError,
    RunLostError,
    StoreFileError,
    UnknownRunError,
    overlap,
)
from flowrun.state import statements as sql
from flowrun.state.encoding import encode
from flowrun.state.json_serializer import JsonSerializer
from flowrun.state.ownership import Ownership
from flowrun.state.protocol import ALL_RUNS
from flowrun.state.serializers import checked_serializer
from flowrun.state.sqlite_connections import SqliteConnections
from flowrun.state.sqlite_file import SqliteFile
from flowrun.state.sqlite_pruning import give_back, prune
from flowrun.state.sqlite_reading import SqliteReader
from flowrun.state.sqlite_settings import check_settings
from flowrun.state.sqlite_writing import Batch, Owned, end_dead, insert_run, write_end

if TYPE_CHECKING:
    import os
    import sqlite3
    from collections.abc import Collection, Sequence

    from flowrun.state.protocol import CachedResult, CacheEntry, Change, RunQuery
    from flowrun.state.records import EncodedResult
    from flowrun.state.run_records import RunRecord, RunSummary
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite_reading import StoredResults
    from flowrun.state.sqlite_settings import JournalMode, Synchronous

_CACHED_RUNS = 64

_log = logging.getLogger("flowrun.state")


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
        # Finished runs, with their results as they are stored, and when the entry expires.
        self._cache: dict[str, tuple[RunRecord, StoredResults, float]] = {}
        with ExitStack() as undo:
            undo.callback(self._file.close)
            self._ownership = _claim(self._file, readonly=_readonly)
            if self._ownership is not None:
                undo.callback(self._ownership.close)
            self._connections = SqliteConnections(self._file)
            undo.callback(self._connections.close)
            self._reader = SqliteReader(self._connections, self.serializer, self._ownership)
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
            if run.sole_of_dag:
                for run_id, owner in db.execute(sql.UNFINISHED_OF_DAG, (run.dag_name,)).fetchall():
                    if self._reader.owner_lives(owner):
                        raise overlap(run.dag_name, run_id)
            owned = insert_run(db, run, self._owner)
        self._owned[run.run_id] = owned

    def encode_result(self, value: object, *, run_id: str, task_name: str) -> EncodedResult:
        """Return the bytes of a result; see :meth:`ByteStoreProtocol.encode_result`."""
        longest = self._connections.longest_result
        return encode(self.serializer, value, longest=longest, run_id=run_id, task_name=task_name)

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none; see :meth:`StateStoreProtocol.save`."""
        batch = Batch(changes, self._owned, self.encode_result)
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
        give_back(self._connections)
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
        if not results:
            return self._reader.run(run_id, results=False)[0]
        with self._lock:
            cached = self._cache.get(run_id)
        if cached is not None and time.monotonic() < cached[-1]:
            run, stored, _ = cached
        else:
            run, stored = self._reader.run(run_id, results=True)
            if run.finished_at is not None and self._cache_ttl_s is not None:
                self._keep_in_cache(run, stored, time.monotonic() + self._cache_ttl_s)
        # Results are made anew for each reader, who may change what it is given (D1).
        return self._reader.with_results(run, stored)

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks; see :meth:`StateStoreProtocol.load_results`."""
        return self._reader.results(run_id, task_names)

    def list_runs(self, query: RunQuery = ALL_RUNS) -> list[RunSummary]:
        """Return the runs that match, newest first, without their tasks.

        Raises:
            DamagedRecordError: A row of one of them is damaged; its ``others`` are the rest.
        """
        return self._reader.runs(query, from_view=self._file.is_older)

    def stored_result(self, run_id: str, task_name: str, most: int = 200) -> tuple[str, int, bytes]:
        """Return a kept result undecoded: its serializer's name, its size, its first bytes.

        Raises:
            UnknownRunError: There is no such run, or no kept result of that task.
        """
        found = self._reader.peek(run_id, task_name, most)
        if task_name not in found:
            problem = f"{run_id}/{task_name}"
            raise UnknownRunError(problem)
        return found[task_name]

    def stored_results(self, run_id: str, most: int = 200) -> dict[str, tuple[str, int, bytes]]:
        """Return every kept result of a run undecoded, by task; see :meth:`stored_result`."""
        return self._reader.peek(run_id, None, most)

    def unreadable_results(self, run_id: str) -> set[str]:
        """Return the tasks of a run whose results a serializer made that is not the store's."""
        return self._reader.written_by_others(run_id)

    def find_cached(self, key: str, since: float) -> CachedResult | None:
        """Return the result of a key; see :meth:`CacheStoreProtocol.find_cached`."""
        return self._reader.cached(key, since)

    def list_cached(
        self, dag_name: str | None = None, task_name: str | None = None
    ) -> list[CacheEntry]:
        """Return the entries of the cache between runs, newest first.

        Raises:
            DamagedRecordError: An entry does not match its checksum.
        """
        return self._reader.entries(dag_name, task_name)

    def clear_cached(self, dag_name: str | None = None, task_name: str | None = None) -> int:
        """Forget entries of the cache between runs, and return how many."""
        with self._connections.transaction() as db:
            return db.execute(sql.CLEAR_CACHED, {"dag": dag_name, "task": task_name}).rowcount

    @property
    def _owner(self) -> int:
        """The number under which this store owns runs."""
        return 0 if self._ownership is None else self._ownership.owner

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
            for task in run.owed_teardowns():
                _log.warning(
                    "task %r of run %r tears down %s and has not succeeded; resume the run to run"
                    " it",
                    task.name,
                    run.run_id,
                    ", ".join(map(repr, task.teardown_of)),
                    extra={"run_id": run.run_id, "dag": run.dag_name, "task": task.name},
                )

    def _keep_in_cache(self, run: RunRecord, stored: StoredResults, until: float) -> None:
        with self._lock:
            self._cache.pop(run.run_id, None)
            self._cache[run.run_id] = run, stored, until
            while len(self._cache) > _CACHED_RUNS:
                del self._cache[next(iter(self._cache))]  # the oldest


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
