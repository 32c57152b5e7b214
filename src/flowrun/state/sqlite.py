"""The SQLite store: runs in one file, durable, shared by processes, readable while written."""

from __future__ import annotations

import heapq
import logging
import operator
import sqlite3
import threading
import time
import zlib
from collections import Counter, OrderedDict
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    ResultNotReadableError,
    RunAliveError,
    RunLostError,
    StoreFileError,
    UnknownRunError,
    duplicate_run,
)
from flowrun.state import statements as sql
from flowrun.state.batch import SHORT, Batch, Owned, put, put_plain
from flowrun.state.locks import is_held
from flowrun.state.ownership import Ownership
from flowrun.state.pickle_serializer import PickleSerializer
from flowrun.state.records import NoResult, Reason, TaskStatus
from flowrun.state.rows import (
    check_row,
    check_task_row,
    checksum,
    counts_of_row,
    plain_row,
    plan_of,
    run_of_row,
    run_row,
    summary_of_row,
    task_checksum,
    task_of_row,
    task_row,
    tasks_of_plan,
)
from flowrun.state.serializers import JsonSerializer, checked_serializer, is_small
from flowrun.state.sqlite_file import FOLDED_PAGES, SqliteFile, check_settings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Generator, Sequence

    from flowrun.state.protocol import Change, QuickStore, RunQuery, Successes
    from flowrun.state.records import RunRecord, RunSummary, TaskRecord
    from flowrun.state.rows import Row
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite_file import JournalMode, Synchronous

T = TypeVar("T")

_CACHED_RUNS = 64
_DEAD = "OWNER_DIED: the process that worked on this run has died"
_PRUNING_S = 0.05
_ROWS_OF_A_PAGE = 16
_ROOM_IN_A_ROW = 1000
_VACUUMED_PAGES = 1000
_MOST_RUNS = 2**62

_QUICK_SERIALIZERS = (JsonSerializer, PickleSerializer)

_Stored: TypeAlias = tuple[str, int, bytes]

_log = logging.getLogger("flowrun.state")
_seq_of = operator.itemgetter(0)
_status_of = operator.attrgetter("status")


class _Cached(NamedTuple):
    """A finished run, as long as it is remembered.

    Attributes:
        until: How long, by the monotonic clock.
        run: Its record, without results.
        stored: Those as they are stored, by task: serializer, checksum, data.
    """

    until: float
    run: RunRecord
    stored: dict[str, _Stored]


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
        ForkedStoreError: A parent process had the file open when this one was forked.
        StoreFileError: The file is foreign, newer, damaged or cannot be used; it was left as
            it was.
        TypeError: The serializer is none.
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
        serializer = checked_serializer(JsonSerializer() if serializer is None else serializer)
        self._file = SqliteFile(
            db_path,
            synchronous=synchronous,
            journal_mode=journal_mode,
            busy_timeout_s=busy_timeout_s,
            readonly=_readonly,
        )
        self.path = self._file.path
        self.serializer: ResultSerializer = serializer
        # Held while the writer waits for another process: who reads must not need it.
        self._writing = threading.RLock()
        self._lock = threading.RLock()
        self._readers: list[sqlite3.Connection] = []
        self._owned: dict[str, Owned] = {}
        self._dead: set[int] = set()
        self._cache_ttl_s = cache_ttl_s
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._closed = False
        self._readonly = _readonly
        self._waitless: sqlite3.Connection | None = None
        self._unfolded = 0
        self._most_unfolded = FOLDED_PAGES[synchronous] // 2
        self._ownership: Ownership | None = None
        with ExitStack() as undo:
            undo.callback(self._file.close)
            if not _readonly:
                self._ownership = Ownership(self._file.real_path)
                undo.callback(self._ownership.close)
            with self._file.translated():
                self._writer = self._file.connect(readonly=_readonly)
            undo.callback(self._writer.close)
            limit = self._writer.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
            self._longest_result = limit - _ROOM_IN_A_ROW
            if journal_mode == "WAL" and not _readonly:
                with self._file.translated():
                    self._waitless = self._file.connect(readonly=False, waits=False)
                undo.callback(self._waitless.close)
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
            try:
                seq = db.execute(sql.INSERT_RUN, (*row, checksum(row))).lastrowid
            except sqlite3.IntegrityError as error:
                raise duplicate_run(run.run_id) from error
            assert seq is not None  # noqa: S101 - an INSERT has a row id
            plan, deps = plan_of(run.tasks)
            db.execute(sql.INSERT_PLAN, (seq, plan, checksum((plan,))))
            owned = Owned(seq, {name: place for place, name in enumerate(run.tasks)}, deps)
            self._carry_over(db, owned, run)
        self._owned[run.run_id] = owned

    def _carry_over(self, db: sqlite3.Connection, owned: Owned, run: RunRecord) -> None:
        """Write the tasks that something has happened to; their results come from the ancestor."""
        told = [task for task in run.tasks.values() if task.status is not TaskStatus.PENDING]
        if not told:
            return
        ancestor = run.resumed_from
        kept = [task for task in told if task.result is NoResult.STORED]
        others = [task for task in told if task.result is not NoResult.STORED]
        put(db, [(*owned.row_of(task), None, None, None) for task in others])
        of_ancestor = [(*owned.row_of(task), ancestor, task.name) for task in kept]
        carried = db.executemany(sql.CARRY_TASK, of_ancestor).rowcount
        if kept and carried != len(kept):
            problem = "results of it that the new run would keep are missing"
            raise DamagedRecordError(str(ancestor), None, problem)
        places = owned.places
        long = [(owned.seq, places[task.name], ancestor, task.name) for task in kept]
        db.executemany(sql.CARRY_RESULT, long)

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none; see :meth:`StateStoreProtocol.save`."""
        self.save_all(changes, ())

    @property
    def quick(self) -> QuickStore | None:
        """What it can do besides; nothing where somebody else is to see whatever is saved.

        That is a subclass, or whoever has put something in the place of its method.
        """
        own = getattr(self.save, "__func__", None) is SqliteStateStore.save
        return self if own else None

    def save_all(self, changes: Sequence[Change], successes: Sequence[Successes]) -> None:
        """Keep all of both, or none; see :class:`~flowrun.state.protocol.QuickStore`."""
        batch = Batch(self.serializer, self._longest_result)
        batch.add(changes, self._owned)
        for each in successes:
            batch.add_successes(each, self._owned)
        with self._transaction() as (db, owner):
            runs = [change.run for change in changes] + [each.run for each in successes]
            for run_id in {run.run_id for run in runs}:
                self._check_owner(db, run_id, owner)
            batch.write(db)
            for run in batch.ends:
                self._write_end(db, self._owned[run.run_id].seq, run)
        for run in batch.ends:
            del self._owned[run.run_id]

    def save_in_thread(self, successes: Successes) -> bool:
        """Save a few successes, waiting if need be; see ``QuickStore``."""
        rows = self._plain_rows(successes)
        if rows is None:
            return False
        with self._writing:
            self._require_open()
            self._unfolded = 0
            return self._put_if_owned(self._writer, rows, len(successes.ended))

    def save_on_loop(self, successes: Successes) -> bool:
        """Save a few successes without waiting for anybody; see ``QuickStore``.

        By a connection of its own, which waits for no lock and never folds the log back into
        the database, which would wait for the disk. The other one does that when it has written:
        so now and then it must have its turn.
        """
        db = self._waitless
        if db is None or self._unfolded >= self._most_unfolded:
            return False
        if type(self.serializer) not in _QUICK_SERIALIZERS:  # somebody else's may take long
            return False
        rows, writing = self._plain_rows(successes), self._writing
        if rows is None or is_held(writing):
            return False
        try:
            if not writing.acquire(blocking=False):
                return False
            self._require_open()
            self._unfolded += 1 + len(successes.ended) // _ROWS_OF_A_PAGE
            return self._put_if_owned(db, rows, len(successes.ended))
        except sqlite3.Error:
            return False
        finally:
            if is_held(writing):
                writing.release()

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs and give their space back to the file system.

        In many short transactions, with pauses, so that nobody waits long to write. A damaged
        run is left as it is: its row does not say for sure when it was, or of which DAG.
        """
        seqs = self._prunable(keep_last, created_before)
        deleted = 0
        while seqs:
            with self._transaction() as (db, _):
                until = time.monotonic() + _PRUNING_S
                while seqs and time.monotonic() < until:
                    deleted += db.execute(sql.PRUNE_RUN, (seqs.pop(),)).rowcount
            time.sleep(_PRUNING_S if seqs else 0)
        with self._lock:
            self._cache.clear()
        self._give_back()
        return deleted

    def close(self) -> None:
        """Close the file; runs that have not finished are nobody's from now on."""
        if self._file.is_inherited:
            return  # to close a connection of the parent's would harm the file, too
        with self._writing, self._lock:
            if self._closed:
                return
            self._closed = True
            waitless, self._waitless = self._waitless, None
            if waitless is not None:
                waitless.close()
            for connection in (*self._readers, self._writer):
                connection.close()
            self._readers.clear()
            if self._ownership is not None:
                self._ownership.close()
            self._file.close()

    # Reading.

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a run as last saved; see :meth:`StateStoreProtocol.load_run`."""
        cached = self._cached(run_id) if results else None
        if cached is None:
            keeps = results and self._cache_ttl_s is not None
            run, stored = self._until_certain(partial(self._read_run, run_id, results, keeps))
            if keeps and run.finished_at is not None:
                self._keep_in_cache(run, stored)
            return run
        run = _copied(cached.run)
        for name, data in cached.stored.items():
            # Anew for each reader, who may change what it is given (D1).
            run.tasks[name].result = self._loaded(run_id, name, *data)
        return run

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks; see :meth:`StateStoreProtocol.load_results`."""
        with self._reading() as db:
            found = self._run_row(db, run_id)
            if found is None:
                raise UnknownRunError(run_id)
            wanted = set(task_names)
            places = [
                (name, place)
                for place, name in db.execute(sql.SELECT_PLACES, (found[0],))
                if name in wanted
            ]
            kept: dict[str, object] = {}
            for name, place in places:
                stored = db.execute(sql.SELECT_RESULT, (found[0], place)).fetchone()
                if stored is not None:
                    kept[name] = self._loaded(run_id, name, *stored)
            return kept

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return the runs that match, newest first, without their tasks.

        Raises:
            DamagedRecordError: A row of one of them is damaged; its ``others`` are the list
                without those.
        """
        return self._until_certain(partial(self._read_runs, query))

    def stored_result(self, run_id: str, task_name: str, most: int = 200) -> tuple[str, int, bytes]:
        """Return a kept result undecoded: its serializer's name, its size, its first bytes.

        Raises:
            UnknownRunError: There is no such run, or no kept result of that task.
        """
        with self._reading() as db:
            row = db.execute(sql.PEEK_RESULT, (most, most, run_id, task_name)).fetchone()
        if row is None:
            problem = f"{run_id}/{task_name}"
            raise UnknownRunError(problem)
        return str(row[0]), int(row[1]), bytes(row[2])

    def stored_results(self, run_id: str, most: int = 200) -> dict[str, tuple[str, int, bytes]]:
        """Return every kept result of a run undecoded, by task; see :meth:`stored_result`."""
        with self._reading() as db:
            rows = db.execute(sql.PEEK_RESULTS, (most, most, run_id)).fetchall()
        return {str(name): (str(row[0]), int(row[1]), bytes(row[2])) for name, *row in rows}

    # Inside.

    def _plain_rows(self, successes: Successes) -> list[object] | None:
        """Return what :func:`put_plain` writes of successes, if all have short results."""
        self._file.check_process()
        run, tasks, ended = successes
        owned = self._owned.get(run.run_id)
        if owned is None:
            return None
        seq, _, deps = owned
        dumps, serializer = self.serializer.dumps, self.serializer.name
        rows: list[object] = []
        for place, now, value in ended:
            if not is_small(value):
                return None
            data = dumps(value)
            if len(data) > SHORT:
                return None
            rows += plain_row(seq, place, tasks[place], deps[place], now, serializer, data)
        return rows

    def _put_if_owned(self, db: sqlite3.Connection, rows: list[object], number: int) -> bool:
        """Write so many rows of a run in one transaction, if it still is one's own."""
        assert self._ownership is not None  # noqa: S101 - the run was created here
        if number == 1:  # one statement by itself is a transaction
            values = (*rows, rows[0], self._ownership.owner)
            return db.execute(sql.PUT_PLAIN_IF_OWNED, values).rowcount > 0
        try:
            db.execute("BEGIN IMMEDIATE")
            if db.execute(sql.IS_OWNED, (rows[0], self._ownership.owner)).fetchone() is None:
                db.execute("ROLLBACK")
                return False
            put_plain(db, rows)
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                db.execute("ROLLBACK")
            raise
        return True

    def _read_run(
        self,
        run_id: str,
        results: bool,  # noqa: FBT001 - bound by place
        keeps: bool,  # noqa: FBT001
        dead: set[int],
    ) -> tuple[RunRecord, dict[str, _Stored]]:
        """Return a run and, if they are to be kept, its results as they are stored."""
        stored: dict[str, _Stored] = {}
        with self._reading() as db:
            found = self._run_row(db, run_id)
            if found is None:
                raise UnknownRunError(run_id)
            seq, row = found
            tasks = self._tasks(db, seq, row)
            if row[3] is not None and counts_of_row(row) != Counter(
                map(_status_of, tasks.values())
            ):
                problem = "the rows of its tasks are older, or newer, than its end"
                raise DamagedRecordError(run_id, None, problem)
            if results:
                for name, *data in db.execute(sql.SELECT_RESULTS, (seq,)):
                    tasks[name].result = self._loaded(run_id, name, *data)
                    if keeps:
                        stored[name] = tuple(data)
                for task in tasks.values():
                    if task.result is NoResult.STORED:
                        raise DamagedRecordError(run_id, task.name, "its result is missing")
        return run_of_row(row, tasks, alive=self._is_alive(row, dead)), stored

    def _read_runs(self, query: RunQuery, dead: set[int]) -> list[RunSummary]:
        found: list[RunSummary] = []
        damaged: DamagedRecordError | None = None
        with self._reading() as db:
            values = {
                "dag": query.dag_name,
                "ancestor": query.resumed_from,
                "status": None if query.status is None else str(query.status),
                "seq": self._seq_before(db, query.before),
                "time": query.before if isinstance(query.before, int | float) else None,
            }
            cursors = [db.execute(text, values) for text in sql.list_runs(query)]
            for _, counts, *row, stored in heapq.merge(*cursors, key=_seq_of, reverse=True):
                try:
                    summary = self._summary(tuple(row), stored, counts, dead)
                except DamagedRecordError as error:
                    damaged = damaged or error
                    continue
                if query.status is None or summary.status == query.status:
                    found.append(summary)
                if len(found) == query.limit:
                    break
        if damaged is not None:
            damaged.others = tuple(found)
            raise damaged
        return found

    def _check_ancestor(self, db: sqlite3.Connection, run: RunRecord, ancestor: str) -> None:
        """Let one heir at a time in, and end an ancestor that died (S5, D3)."""
        rows = db.execute(sql.FAMILY, (ancestor,)).fetchall()
        if not rows:  # it was pruned meanwhile
            raise UnknownRunError(ancestor)
        for run_id, finished_at, owner in rows:
            if finished_at is None and self._owner_lives(owner):
                raise RunAliveError(ancestor, f"run {run_id!r} is still being worked on")
            if run.sole_heir and run_id != ancestor:
                raise AlreadyResumedError(ancestor, f"run {run_id!r} has resumed it meanwhile")
        for run_id, finished_at, _ in rows:
            if finished_at is None:
                self._end_dead(db, run_id)

    def _check_owner(self, db: sqlite3.Connection, run_id: str, owner: int) -> None:
        row = db.execute(sql.OWNER_OF, (run_id,)).fetchone()
        if row is None or row[0] is not None or row[1] != owner:
            self._owned.pop(run_id, None)
            raise RunLostError(run_id)

    def _recover(self) -> None:
        with self._transaction() as (db, _):
            for run_id, owner in db.execute(sql.UNFINISHED).fetchall():
                if not self._owner_lives(owner):
                    try:
                        self._end_dead(db, run_id)
                    except DamagedRecordError as error:
                        # It must not keep the other runs from being recovered and read.
                        _log.warning("not recovered: %s", error, extra={"run_id": run_id})

    def _end_dead(self, db: sqlite3.Connection, run_id: str) -> None:
        """End what a dead process has left behind, as its own end would have been."""
        found = self._run_row(db, run_id)
        if found is None:  # pragma: no cover - it was read in the same transaction
            return
        seq, row = found
        tasks = self._tasks(db, seq, row)
        run = run_of_row(row, tasks, alive=False)
        # Its clock may have been ahead of this one: nothing ends before it began.
        told = [(task.ready_at, task.started_at, task.finished_at) for task in tasks.values()]
        now = max(time.time(), run.created_at, *[moment or 0.0 for each in told for moment in each])
        ended: list[Row] = []
        for place, task in enumerate(tasks.values()):
            if task.status is TaskStatus.RUNNING:
                task.fail(now, _DEAD, Reason.OWNER_DIED)
            elif task.status is TaskStatus.PENDING:
                task.skip(now, Reason.OWNER_DIED, _DEAD)
            else:
                continue
            values = task_row(task)
            stored = task_checksum(seq, place, values)
            ended.append((seq, place, *values, stored, None, None, None))
        put(db, ended)
        run.finish(now, _DEAD)
        self._write_end(db, seq, run)

    def _write_end(self, db: sqlite3.Connection, seq: int, run: RunRecord) -> None:
        row = run_row(run, None)
        db.execute(sql.END_RUN, (row[3], row[4], row[5], row[10], checksum(row), seq))

    def _prunable(self, keep_last: int | None, created_before: float | None) -> list[int]:
        """Return the numbers of the runs to delete, the oldest last."""
        text = sql.PRUNABLE_BY_AGE if keep_last is None else sql.PRUNABLE_BY_NUMBER
        if keep_last is not None:
            keep_last = min(keep_last, _MOST_RUNS)  # SQLite's integers have an end
        seqs: list[int] = []
        with self._reading() as db:
            for seq, *row, stored in db.execute(
                text, {"before": created_before, "keep": keep_last}
            ):
                try:
                    check_row(tuple(row), stored, str(row[0]), None)
                except DamagedRecordError as error:
                    _log.warning("not deleted: %s", error, extra={"run_id": row[0]})
                else:
                    seqs.append(seq)
        return sorted(seqs, reverse=True)

    def _give_back(self) -> None:
        """Shrink the file by its free pages, a few at a time."""
        free = self._free_pages()
        while free:
            with self._writing, self._file.translated():
                self._require_open()
                # The module's execute() would stop after the first page: it takes no second
                # step of a statement without columns.
                self._writer.executescript(f"PRAGMA incremental_vacuum({_VACUUMED_PAGES})")
            before, free = free, self._free_pages()
            if free >= before:
                break
            time.sleep(_PRUNING_S if free else 0)
        with self._writing, self._file.translated():
            self._require_open()
            # Writers stand still while it waits for readers, so it does not: what it cannot
            # give back now goes with the next one.
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._writer.execute(self._file.busy_timeout)

    def _free_pages(self) -> int:
        with self._reading() as db:
            return int(db.execute("PRAGMA freelist_count").fetchone()[0])

    def _run_row(self, db: sqlite3.Connection, run_id: str) -> tuple[int, Row] | None:
        found = _found(db, sql.SELECT_RUN, run_id)
        if found is None:
            return None
        seq, *row, stored = found
        check_row(tuple(row), stored, run_id, None)
        return int(seq), tuple(row)

    def _tasks(self, db: sqlite3.Connection, seq: int, run: Row) -> dict[str, TaskRecord]:
        """Return all tasks of a run whose row was checked, in their order."""
        run_id = str(run[0])
        found: dict[int, TaskRecord] = {}
        for place, *row, stored in db.execute(sql.SELECT_TASKS, (seq,)):
            check_task_row(tuple(row), stored, seq, place, run_id)
            found[place] = task_of_row(tuple(row), run_id)
        number = sum(counts_of_row(run).values())
        if run[3] is None and len(found) < number:
            # Nothing has happened yet to those that have no row.
            plan = db.execute(sql.SELECT_PLAN, (seq,)).fetchone()
            planned = [] if plan is None else tasks_of_plan(plan[0], plan[1], run_id)
            names = [found[place].name for place in found if place < len(planned)]
            if names == [planned[place].name for place in found if place < len(planned)]:
                found = {**dict(enumerate(planned)), **found}
        if [*found] != [*range(number)]:
            raise DamagedRecordError(run_id, None, "rows of its tasks are missing")
        return {task.name: task for task in found.values()}

    def _summary(self, row: Row, stored: object, counts: str | None, dead: set[int]) -> RunSummary:
        check_row(row, stored, str(row[0]), None)
        # A run's own row is written when it ends; until then its tasks tell.
        return summary_of_row(
            row,
            _counts(counts_of_row(row), counts),
            alive=self._is_alive(row, dead),
        )

    def _loaded(self, run_id: str, name: str, serializer: str, stored: int, data: bytes) -> object:
        """Return the value of a stored result."""
        if serializer != self.serializer.name:
            msg = (
                f"the result of task {name!r} in run {run_id!r} was written by the"
                f" {serializer!r} serializer, and this store has {self.serializer.name!r};"
                " open the file with the serializer that wrote it"
            )
            raise ResultNotReadableError(msg)
        if zlib.crc32(data) != stored:
            problem = "its result does not match its checksum; the file was damaged"
            raise DamagedRecordError(run_id, name, problem)
        try:
            return self.serializer.loads(data)
        except Exception as error:
            told = error if isinstance(error, ResultNotReadableError) else repr(error)
            msg = f"the result of task {name!r} in run {run_id!r} cannot be read: {told}"
            raise ResultNotReadableError(msg) from error

    def _seq_before(self, db: sqlite3.Connection, before: str | float | None) -> int | None:
        if not isinstance(before, str):
            return None
        # Only where it stands: the runs before a damaged one can be listed.
        found = _found(db, sql.SEQ_OF, before)
        if found is None:
            raise UnknownRunError(before)
        return int(found[0])

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

    def _is_alive(self, row: Sequence[object], dead: set[int]) -> bool:
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

    def _cached(self, run_id: str) -> _Cached | None:
        with self._lock:
            entry = self._cache.get(run_id)
            if entry is None:
                return None
            if time.monotonic() >= entry.until:
                del self._cache[run_id]
                return None
            return entry

    def _keep_in_cache(self, run: RunRecord, stored: dict[str, _Stored]) -> None:
        twin = _copied(run)
        for name in stored:
            twin.tasks[name].result = NoResult.STORED
        until = time.monotonic() + (self._cache_ttl_s or 0.0)
        with self._lock:
            self._cache[run.run_id] = _Cached(until, twin, stored)
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
        self._file.check_process()
        with self._writing, self._file.translated():
            self._require_open()
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer, ownership.owner
                self._writer.execute("COMMIT")
                self._unfolded = 0
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite may have ended it by itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection, None, None]:
        """Lend a reader's connection, with one view of the file for all that is read."""
        self._file.check_process()
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


def _found(db: sqlite3.Connection, statement: str, run_id: str) -> tuple[Any, ...] | None:
    """Return the row of a run's id, if there is one: none has an id that cannot be encoded."""
    try:
        row: tuple[Any, ...] | None = db.execute(statement, (run_id,)).fetchone()
    except UnicodeEncodeError:
        return None
    return row


def _copied(run: RunRecord) -> RunRecord:
    """Return a run that its reader may keep."""
    tasks = {name: task.copy() for name, task in run.tasks.items()}
    return run_of_row(run_row(run, None), tasks, alive=False)


def _counts(counts: dict[str, int], changed: str | None) -> dict[str, int]:
    """Return the number of tasks by status.

    Args:
        counts: What the run's own row says.
        changed: What the rows of its tasks say, as ``statements`` has joined them:
            ``"SUCCESS=2,FAILED=1"``; there is none of a task that nothing has happened to.
    """
    if changed is None:
        return counts
    pairs = [pair.split("=") for pair in changed.split(",")]
    found = {status: int(number) for status, number in pairs}
    untouched = sum(counts.values()) - sum(found.values())
    if untouched > 0:
        found["PENDING"] = found.get("PENDING", 0) + untouched
    return found
