"""The SQLite store: runs in one file, durable, shared by processes, readable while written."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    ResultNotStorableError,
    RunAliveError,
    RunLostError,
    StoreBusyError,
    StoreFileError,
    UnknownRunError,
)
from flowrun.state.ownership import Ownership
from flowrun.state.records import NoResult, Reason, TaskStatus
from flowrun.state.rows import (
    RUN_COLUMNS,
    TASK_COLUMNS,
    checksum,
    run_of_row,
    run_row,
    task_row,
)
from flowrun.state.serializers import JsonSerializer
from flowrun.state.sqlite_file import SqliteFile, check_settings
from flowrun.state.sqlite_read import (
    PEEK_RESULT,
    PEEK_RESULTS,
    read_results,
    read_run,
    read_run_row,
    read_runs,
    read_tasks,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Sequence

    from flowrun.state.protocol import Change, RunQuery
    from flowrun.state.records import RunRecord, RunSummary
    from flowrun.state.rows import Row
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite_file import JournalMode, Synchronous

T = TypeVar("T")

_LOG = logging.getLogger("flowrun.state")
_CACHED_RUNS = 64
_DEAD = "OWNER_DIED: the process that worked on this run has died"


class _Owned(NamedTuple):
    """A run that this store has created.

    Attributes:
        seq: Its number in the file.
        places: Its tasks' places among its rows.
        deps: What its tasks' rows say of their dependencies, by place.
    """

    seq: int
    places: dict[str, int]
    deps: list[str]


class SqliteStateStore:
    """Keep runs in a SQLite file, across processes and restarts.

    One connection writes, others read; readers never wait for the writer. Every run belongs to
    the store that created it, for as long as that store is open and its process lives.

    Args:
        db_path: The file; made, readable by its owner only, if there is none.
        serializer: How results become bytes; JSON by default.
        cache_ttl_s: Keep finished runs that were loaded in memory for so many seconds; a run
            that is alive is never cached. ``None``: no cache.
        recover: End at once what dead processes have left behind.
        synchronous: ``"FULL"``: an acknowledged success survives power loss. ``"NORMAL"``: it
            survives ``kill -9`` and a crash of the program, not one of the machine.
        journal_mode: ``"WAL"``, or ``"DELETE"`` (a rollback journal) for a file system that
            cannot share memory between processes; readers then wait for the writer.
        busy_timeout_s: How long to wait for another process's lock.

    Raises:
        StoreFileError: The file is foreign, newer, damaged or cannot be used; it was left as
            it was.
        ValueError: A setting means nothing.
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
        check_settings(synchronous, journal_mode, busy_timeout_s)
        if cache_ttl_s is not None and not cache_ttl_s >= 0:
            msg = f"cache_ttl_s must be 0 or more, or None, not {cache_ttl_s!r}"
            raise ValueError(msg)
        self._file = SqliteFile(
            db_path,
            synchronous=synchronous,
            journal_mode=journal_mode,
            busy_timeout_s=busy_timeout_s,
            readonly=_readonly,
        )
        self.path = self._file.path
        self.serializer: ResultSerializer = serializer or JsonSerializer()
        self._lock = threading.RLock()
        self._readers: list[sqlite3.Connection] = []
        self._owned: dict[str, _Owned] = {}
        self._dead: set[int] = set()
        self._cache_ttl_s = cache_ttl_s
        self._cache: OrderedDict[str, tuple[float, RunRecord]] = OrderedDict()
        self._closed = False
        self._readonly = _readonly
        self._ownership = None if _readonly else Ownership(self.path)
        with ExitStack() as undo:
            if self._ownership is not None:
                undo.callback(self._ownership.close)
            with self._file.translated():
                self._writer = self._file.connect(readonly=_readonly)
            undo.callback(self._writer.close)
            if recover and not _readonly:
                self._recover()
            undo.pop_all()

    @classmethod
    def open_readonly(cls, db_path: str | os.PathLike[str]) -> SqliteStateStore:
        """Open a file to look at it, while another process may write to it.

        Nothing is created or changed. Whether a run is alive cannot be told without a claim
        of one's own, so a run that has not finished counts as alive.

        Raises:
            StoreFileError: There is no such file, or it is none of flowrun's.
        """
        return cls(db_path, _readonly=True)

    # Writing.

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run; see :meth:`StateStoreProtocol.create_run`."""
        with self._transaction() as (db, owner):
            if run.resumed_from is not None:
                self._check_ancestor(db, run, run.resumed_from)
            row = run_row(run, owner)
            seq = db.execute(_INSERT_RUN, (*row, checksum(row))).lastrowid
            assert seq is not None  # noqa: S101 - an INSERT has a row id
            rows = [task_row(task) for task in run.tasks.values()]
            db.executemany(
                _INSERT_TASK,
                [(seq, place, *row, checksum(row)) for place, row in enumerate(rows)],
            )
            places = {name: place for place, name in enumerate(run.tasks)}
            kept = [
                (seq, places[name], run.resumed_from, name)
                for name, task in run.tasks.items()
                if task.result is NoResult.STORED
            ]
            db.executemany(_CARRY_RESULT, kept)
        self._owned[run.run_id] = _Owned(seq, places, [str(row[1]) for row in rows])

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none; see :meth:`StateStoreProtocol.save`."""
        last = {
            (change.run.run_id, None if change.task is None else change.task.name): change
            for change in changes
        }
        tasks: list[Row] = []
        results: list[Row] = []
        dropped: list[Row] = []
        ends: list[RunRecord] = []
        for run, task in last.values():
            owned = self._owned.get(run.run_id)
            if owned is None:
                raise RunLostError(run.run_id)
            if task is None:
                ends.append(run)
                continue
            place = owned.places[task.name]
            row = task_row(task, owned.deps[place])
            tasks.append((*row, checksum(row), owned.seq, place))
            if not isinstance(task.result, NoResult):
                data = self._dumped(run.run_id, task.name, task.result)
                results.append((owned.seq, place, self.serializer.name, data, zlib.crc32(data)))
            elif task.result is not NoResult.STORED and task.status is TaskStatus.SUCCESS:
                dropped.append((owned.seq, place))
        with self._transaction() as (db, owner):
            for run_id in {change.run.run_id for change in changes}:
                self._check_owner(db, run_id, owner)
            db.executemany(_UPDATE_TASK, tasks)
            db.executemany(_INSERT_RESULT, results)
            db.executemany(_DELETE_RESULT, dropped)
            for run in ends:
                self._write_end(db, self._owned[run.run_id].seq, run)
        for run in ends:
            del self._owned[run.run_id]

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs and give their space back to the file system.

        What somebody else is just reading is given back later, when nobody does.
        """
        with self._transaction() as (db, _):
            deleted = db.execute(_PRUNE, {"before": created_before, "keep": keep_last}).rowcount
        with self._lock, self._file.translated():
            self._cache.clear()
            # It gives a row without columns per page, of which execute() takes the first only.
            self._writer.executescript("PRAGMA incremental_vacuum")
            # While this waited for a reader it would hold the lock that all writers need.
            with (
                suppress(StoreBusyError),
                self._file.translated(),
                closing(self._file.connect(readonly=False, waits=False)) as hasty,
            ):
                hasty.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return int(deleted)

    def close(self) -> None:
        """Close the file; runs that have not finished are nobody's from now on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for connection in (*self._readers, self._writer):
                connection.close()
            self._readers.clear()
            if self._ownership is not None:
                self._ownership.close()

    # Reading.

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a run as last saved; see :meth:`StateStoreProtocol.load_run`."""
        cached = self._cached(run_id) if results else None
        if cached is not None:
            return cached

        def read(dead: set[int]) -> RunRecord:
            with self._reading() as db:
                serializer = self.serializer if results else None
                return read_run(db, run_id, serializer, partial(self._is_alive, dead))

        run = self._until_certain(read)
        if results and run.finished_at is not None:
            self._keep_in_cache(run)
        return run

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks; see :meth:`StateStoreProtocol.load_results`."""
        with self._reading() as db:
            seq, _ = read_run_row(db, run_id)
            return read_results(db, seq, run_id, self.serializer, set(task_names))

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return the runs that match, newest first, without their tasks."""

        def read(dead: set[int]) -> list[RunSummary]:
            with self._reading() as db:
                return read_runs(db, query, partial(self._is_alive, dead))

        return self._until_certain(read)

    def stored_result(self, run_id: str, task_name: str, most: int = 200) -> tuple[str, int, bytes]:
        """Return a kept result undecoded: its serializer's name, its size, its first bytes.

        Raises:
            UnknownRunError: There is no such run, or no kept result of that task.
        """
        with self._reading() as db:
            row = db.execute(PEEK_RESULT, (most, run_id, task_name)).fetchone()
        if row is None:
            problem = f"{run_id}/{task_name}"
            raise UnknownRunError(problem)
        return str(row[0]), int(row[1]), bytes(row[2])

    def stored_results(self, run_id: str, most: int = 200) -> dict[str, tuple[str, int, bytes]]:
        """Return every kept result of a run undecoded, by task; see :meth:`stored_result`."""
        with self._reading() as db:
            rows = db.execute(PEEK_RESULTS, (most, run_id)).fetchall()
        return {str(name): (str(row[0]), int(row[1]), bytes(row[2])) for name, *row in rows}

    # Inside.

    def _dumped(self, run_id: str, task_name: str, value: object) -> bytes:
        try:
            return self.serializer.dumps(value)
        except ResultNotStorableError as error:
            problem = (
                f"the result of task {task_name!r} in run {run_id!r} cannot be kept by the"
                f" {self.serializer.name!r} serializer: {error.problem}. Return something it can"
                " keep, use another serializer, or declare the task with retain_result=False"
            )
            raise ResultNotStorableError(problem, run_id, task_name) from error

    def _check_ancestor(self, db: sqlite3.Connection, run: RunRecord, ancestor: str) -> None:
        """Let one heir at a time in, and end an ancestor that died (S5, D3)."""
        rows = db.execute(_FAMILY, (ancestor, ancestor)).fetchall()
        for run_id, finished_at, owner in rows:
            if finished_at is None and self._owner_lives(owner):
                raise RunAliveError(ancestor, f"run {run_id!r} is still being worked on")
            if run.sole_heir and run_id != ancestor:
                raise AlreadyResumedError(ancestor, f"run {run_id!r} has resumed it meanwhile")
        for run_id, finished_at, _ in rows:
            if finished_at is None:
                self._end_dead(db, run_id)

    def _check_owner(self, db: sqlite3.Connection, run_id: str, owner: int) -> None:
        row = db.execute(_OWNER_OF, (run_id,)).fetchone()
        if row is None or row[0] is not None or row[1] != owner:
            self._owned.pop(run_id, None)
            raise RunLostError(run_id)

    def _recover(self) -> None:
        with self._transaction() as (db, _):
            for run_id, owner in db.execute(_UNFINISHED).fetchall():
                if self._owner_lives(owner):
                    continue
                try:
                    self._end_dead(db, run_id)
                except DamagedRecordError as error:
                    # One damaged run must not keep the others, and new ones, from their store.
                    _LOG.warning("a run that was left behind cannot be ended: %s", error)

    def _end_dead(self, db: sqlite3.Connection, run_id: str) -> None:
        """End what a dead process has left behind, as its own end would have been."""
        seq, row = read_run_row(db, run_id)
        tasks = read_tasks(db, seq, row)
        run = run_of_row(row, {task.name: task for task in tasks}, alive=False)
        # Its clock may have been ahead of this one: nothing ends before it began.
        told = [(task.ready_at, task.started_at, task.finished_at) for task in tasks]
        now = max(time.time(), run.created_at, *[moment or 0.0 for each in told for moment in each])
        for place, task in enumerate(tasks):
            if task.status is TaskStatus.RUNNING:
                task.fail(now, _DEAD, Reason.OWNER_DIED)
            elif task.status is TaskStatus.PENDING:
                task.skip(now, Reason.OWNER_DIED, _DEAD)
            else:
                continue
            values = task_row(task)
            db.execute(_UPDATE_TASK, (*values, checksum(values), seq, place))
        run.finish(now, _DEAD)
        self._write_end(db, seq, run)

    def _write_end(self, db: sqlite3.Connection, seq: int, run: RunRecord) -> None:
        row = run_row(run, None)
        db.execute(_END_RUN, (row[3], row[4], row[5], row[10], checksum(row), seq))

    def _until_certain(self, read: Callable[[set[int]], T]) -> T:
        """Read again if an owner is found dead: it may have ended its run since (D3).

        An owner who is known to be dead before the reading begins can change nothing any more.
        """
        while True:
            dead: set[int] = set()
            found = read(dead)
            if not dead:
                return found
            self._dead.update(dead)

    def _is_alive(self, dead: set[int], row: Sequence[object]) -> bool:
        """Return whether a run is alive, and note an owner who was not known to be dead."""
        owner = row[9] if isinstance(row[9], int) else None
        if row[3] is not None or owner in self._dead:
            return False
        alive = self._owner_lives(owner)
        if not alive and owner is not None:
            dead.add(owner)
        return alive

    def _owner_lives(self, owner: int | None) -> bool:
        return self._ownership is None or self._ownership.is_alive(owner)

    def _cached(self, run_id: str) -> RunRecord | None:
        with self._lock:
            entry = self._cache.get(run_id)
            if entry is None:
                return None
            if time.monotonic() >= entry[0]:
                del self._cache[run_id]
                return None
            return _copied(entry[1])

    def _keep_in_cache(self, run: RunRecord) -> None:
        if self._cache_ttl_s is None:
            return
        with self._lock:
            self._cache[run.run_id] = (time.monotonic() + self._cache_ttl_s, _copied(run))
            self._cache.move_to_end(run.run_id)
            while len(self._cache) > _CACHED_RUNS:
                self._cache.popitem(last=False)

    @contextmanager
    def _transaction(self) -> Generator[tuple[sqlite3.Connection, int], None, None]:
        """Own begin, commit and rollback of every write."""
        ownership = self._ownership
        if ownership is None:
            msg = f"{str(self.path)!r} was opened to read only; open a SqliteStateStore to write"
            raise StoreFileError(msg)
        ownership.check_process()
        with self._lock, self._file.translated():
            self._require_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer, ownership.owner
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend a reader's connection, with one view of the file for all that is read."""
        if self._ownership is not None:
            self._ownership.check_process()
        with self._file.translated():
            with self._lock:
                self._require_open()
                connection = self._readers.pop() if self._readers else None
            if connection is None:
                connection = self._file.connect(readonly=True)
            try:
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

    def _require_open(self) -> None:
        if self._closed:
            msg = f"the store on {str(self.path)!r} is closed; open a new one"
            raise StoreFileError(msg)


def _copied(run: RunRecord) -> RunRecord:
    """Return a run that its reader may keep; results are shared."""
    tasks = {name: task.copy() for name, task in run.tasks.items()}
    return run_of_row(run_row(run, None), tasks, alive=False)


_INSERT_RUN = f"INSERT INTO runs ({RUN_COLUMNS}, checksum) VALUES ({', '.join('?' * 12)})"  # noqa: S608 - constants
_END_RUN = (
    "UPDATE runs SET finished_at = ?, status = ?, error = ?, task_counts = ?, owner = NULL,"
    " checksum = ? WHERE seq = ?"
)
_FAMILY = (
    "SELECT run_id, finished_at, owner FROM runs WHERE run_id = ? UNION ALL"
    " SELECT run_id, finished_at, owner FROM runs WHERE resumed_from = ?"
)
_OWNER_OF = "SELECT finished_at, owner FROM runs WHERE run_id = ?"
_UNFINISHED = "SELECT run_id, owner FROM runs WHERE finished_at IS NULL"
_INSERT_TASK = (
    f"INSERT INTO tasks (run, place, {TASK_COLUMNS}, checksum) VALUES ({', '.join('?' * 15)})"  # noqa: S608 - constants
)
_UPDATE_TASK = (
    "UPDATE tasks SET name = ?, deps = ?, status = ?, attempt = ?, ready_at = ?, started_at = ?,"
    " finished_at = ?, error = ?, reason = ?, abandoned = ?, earlier = ?, result_state = ?,"
    " checksum = ? WHERE run = ? AND place = ?"
)
_INSERT_RESULT = (
    "INSERT OR REPLACE INTO results (run, place, serializer, data, checksum) VALUES (?, ?, ?, ?, ?)"
)
_DELETE_RESULT = "DELETE FROM results WHERE run = ? AND place = ?"
_CARRY_RESULT = (
    "INSERT INTO results (run, place, serializer, data, checksum)"
    " SELECT ?, ?, results.serializer, results.data, results.checksum FROM runs"
    " JOIN tasks ON tasks.run = runs.seq JOIN results ON results.run = runs.seq"
    " AND results.place = tasks.place WHERE runs.run_id = ? AND tasks.name = ?"
)
_PRUNE = (
    "DELETE FROM runs WHERE finished_at IS NOT NULL"
    " AND (:before IS NULL OR created_at < :before)"
    " AND (:keep IS NULL OR seq NOT IN (SELECT seq FROM (SELECT seq, row_number() OVER"
    " (PARTITION BY dag_name ORDER BY seq DESC) AS age FROM runs"
    " WHERE finished_at IS NOT NULL) WHERE age <= :keep))"
)
