"""What the SQLite store reads: runs with their tasks, results, lists; each row checked (D7)."""

from __future__ import annotations

import heapq
import operator
import zlib
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from flowrun.errors import DamagedRecordError, ResultNotReadableError, UnknownRunError
from flowrun.state import statements as sql
from flowrun.state.encoding import decode, is_readable
from flowrun.state.protocol import CachedResult
from flowrun.state.records import EncodedResult, NoResult, items_by_task
from flowrun.state.rows import (
    cached_of_row,
    check_run_row,
    counts_of_row,
    entry_of_row,
    renewed,
    run_of_row,
    summary_of_row,
    task_of_rows,
    tasks_of_plan,
    text_of,
    with_notes,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Mapping

    from flowrun.state.checksums import Row
    from flowrun.state.ownership import Ownership
    from flowrun.state.protocol import CacheEntry, RunQuery
    from flowrun.state.records import TaskRecord
    from flowrun.state.run_records import RunRecord, RunSummary
    from flowrun.state.serializers import ResultSerializer
    from flowrun.state.sqlite_connections import SqliteConnections

T = TypeVar("T")
StoredResult: TypeAlias = tuple[Any, ...]
"""A result as it is stored: the serializer's name, the checksum, the data."""
StoredResults: TypeAlias = "Mapping[tuple[str, int | None], StoredResult]"
"""Results by task, and by item."""

_FINISHED_AT, _OWNER = 3, 9
_seq_of = operator.itemgetter(0)


def find_run(db: sqlite3.Connection, run_id: str) -> tuple[int, object, RunRecord]:
    """Return a run's number, its owner and its record, without results and as if it were dead."""
    seq, row = _run_row(db, run_id)
    tasks, items = _tasks(db, seq, row)
    run = run_of_row(row, tasks, alive=False)._replace(items=items)
    counts = Counter(task.status for task in tasks.values())
    if run.finished_at is not None and counts_of_row(row) != counts:
        problem = "the rows of its tasks are older, or newer, than its end"
        raise DamagedRecordError(run_id, None, problem)
    return seq, row[_OWNER], run


def _row_of_id(db: sqlite3.Connection, run_id: str) -> Row:
    """Return a run's number, its values and their checksum, unchecked."""
    row: Row | None = None
    with suppress(UnicodeEncodeError):  # no run has an id that cannot be encoded
        row = db.execute(sql.SELECT_RUN, (run_id,)).fetchone()
    if row is None:
        raise UnknownRunError(run_id)
    return row


def _run_row(db: sqlite3.Connection, run_id: str) -> tuple[int, Row]:
    seq, *row, stored = _row_of_id(db, run_id)
    check_run_row(tuple(row), stored)
    return seq, tuple(row)


def _found_tasks(
    db: sqlite3.Connection, seq: int, run_id: str, wanted: Collection[str] | None = None
) -> dict[int, TaskRecord]:
    """Return the tasks that have rows, by place; only the wanted ones if they are given."""
    attempts: dict[object, list[Row]] = {}
    for place, *values in db.execute(sql.SELECT_ATTEMPTS, (seq,)):
        attempts.setdefault(place, []).append(tuple(values))
    notes: dict[object, dict[object, Row]] = {}
    for place, number, *values in db.execute(sql.SELECT_NOTES, (seq,)):
        notes.setdefault(place, {})[number] = tuple(values)
    found: dict[int, TaskRecord] = {}
    for place, *values, stored in db.execute(sql.SELECT_TASKS, (seq,)):
        row, earlier, noted = tuple(values), attempts.pop(place, []), notes.pop(place, None)
        if wanted is not None and row[0] not in wanted:
            continue
        if type(row[10]) is str:  # in a file of before schema 4
            row, stored, earlier = renewed(row, stored, seq, place)  # noqa: PLW2901
        found[place] = task = task_of_rows(row, stored, earlier, seq, place, run_id)
        if noted is not None:
            found[place] = with_notes(task, noted, seq, place, run_id)
    if wanted is None:
        _add_cached(db, seq, run_id, found)
    if attempts or notes:
        raise _stray(run_id, "attempts")
    return found


def _add_cached(
    db: sqlite3.Connection, seq: int, run_id: str, found: dict[int, TaskRecord]
) -> None:
    """Add what tasks have to do with the cache."""
    for *row, stored in db.execute(sql.SELECT_CACHED, (seq,)):
        task = found.get(row[1])
        if task is None:
            raise _stray(run_id, "rows of the cache")
        cache = cached_of_row(tuple(row), stored, run_id, task.name)
        found[row[1]] = task._replace(cache=cache)


def _stray(run_id: str, what: str) -> DamagedRecordError:
    problem = f"it has {what} that are not of any of its tasks; the file was damaged"
    return DamagedRecordError(run_id, None, problem)


def _tasks(
    db: sqlite3.Connection, seq: int, run: Row
) -> tuple[dict[str, TaskRecord], dict[str, list[TaskRecord]]]:
    """Return all tasks of a run whose row was checked, and the items of mapped ones, in order."""
    run_id = str(run[0])
    every = _found_tasks(db, seq, run_id)
    found = {place: task for place, task in every.items() if task.item is None}
    number = sum(counts_of_row(run).values())
    if run[_FINISHED_AT] is None and len(found) < number:
        # Nothing has happened yet to those that have no row.
        plan = db.execute(sql.SELECT_PLAN, (seq,)).fetchone()
        planned = dict(enumerate([] if plan is None else tasks_of_plan(plan, run_id)))
        if all(place in planned and planned[place].name == found[place].name for place in found):
            found = {**planned, **found}
    if [*found] != [*range(number)]:
        raise DamagedRecordError(run_id, None, "rows of its tasks are missing")
    return {task.name: task for task in found.values()}, items_by_task(every.values())


class SqliteReader:
    """Read one database.

    Args:
        connections: Those of the store.
        serializer: What makes values of results.
        ownership: The view of the owners' locks; ``None``: a run that has not ended counts as
            alive.
    """

    def __init__(
        self,
        connections: SqliteConnections,
        serializer: ResultSerializer,
        ownership: Ownership | None,
    ) -> None:
        self._connections = connections
        self._serializer = serializer
        self._ownership = ownership
        self._dead: set[object] = set()

    def run(self, run_id: str, *, results: bool) -> tuple[RunRecord, StoredResults]:
        """Return a run without its results, and those as they are stored if they are wanted."""

        def read(db: sqlite3.Connection) -> tuple[RunRecord, StoredResults]:
            seq, owner, run = find_run(db, run_id)
            if run.finished_at is None:
                run = run._replace(alive=self._is_alive(owner))
            rows = db.execute(sql.SELECT_RESULTS, (seq,)) if results else ()
            return run, {(name, item): tuple(kept) for name, item, *kept in rows}

        return self._certain(read)

    def with_results(self, run: RunRecord, stored: StoredResults) -> RunRecord:
        """Return the run with the values of its stored results, made anew."""

        def loaded(task: TaskRecord) -> TaskRecord:
            if task.result is not NoResult.STORED:
                return task
            kept = stored.get((task.name, task.item))
            return task._replace(result=self._loaded(run.run_id, task.label, kept))

        tasks = {name: loaded(task) for name, task in run.tasks.items()}
        items = {name: [*map(loaded, items)] for name, items in run.items.items()}
        return run._replace(tasks=tasks, items=items)

    def results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks."""
        wanted = set(task_names)
        kept: dict[str, object] = {}
        of_items: dict[str, list[tuple[int, object]]] = {}
        with self._connections.reading() as db:
            seq, row = _run_row(db, run_id)
            tasks = _found_tasks(db, seq, run_id, wanted)
            kept.update((task.name, []) for task in tasks.values() if task.items is not None)
            if {task.name for task in tasks.values() if task.item is None} != wanted:
                # Is there no row because nothing has happened yet, or is it damaged?
                _tasks(db, seq, row)
            for place, task in tasks.items():
                if task.result is NoResult.STORED:
                    stored = db.execute(sql.SELECT_RESULT, (seq, place)).fetchone()
                    value = self._loaded(run_id, task.label, stored)
                    if task.item is None:
                        kept[task.name] = value
                    else:
                        of_items.setdefault(task.name, []).append((task.item, value))
        for name, pairs in of_items.items():
            kept[name] = [value for _, value in sorted(pairs, key=_seq_of)]
        return kept

    def cached(self, key: str, since: float) -> CachedResult | None:
        """Return the result of a key."""
        with self._connections.reading() as db:
            row = db.execute(sql.FIND_CACHED, (key, since)).fetchone()
            if row is None:
                return None
            run_id, _, name, _ = entry_of_row(row)
            stored = db.execute(sql.SELECT_RESULT, row[-6:-4]).fetchone()
        value = self._loaded(run_id, name, stored)
        return CachedResult(run_id, value, EncodedResult(stored[0], stored[2]))

    def entries(self, dag_name: str | None, task_name: str | None) -> list[CacheEntry]:
        """Return the entries of the cache, newest first."""
        wanted = {"dag": dag_name, "task": task_name}
        with self._connections.reading() as db:
            return list(map(entry_of_row, db.execute(sql.LIST_CACHED, wanted)))

    def runs(self, query: RunQuery, *, from_view: bool) -> list[RunSummary]:
        """Return the runs that match, newest first; see :func:`statements.list_runs`."""
        texts = sql.list_runs(query, from_view=from_view)
        before = query.before

        def read(db: sqlite3.Connection) -> tuple[list[RunSummary], DamagedRecordError | None]:
            found: list[RunSummary] = []
            damaged: DamagedRecordError | None = None
            values = {
                "dag": query.dag_name,
                "ancestor": query.resumed_from,
                "status": None if query.status is None else str(query.status),
                # Only where it stands: the runs before a damaged one can be listed.
                "seq": _row_of_id(db, before)[0] if isinstance(before, str) else None,
                "time": before,
            }
            cursors = [db.execute(text, values) for text in texts]
            for _, counts, *row, stored in heapq.merge(*cursors, key=_seq_of, reverse=True):
                try:
                    summary = self._summary(tuple(row), stored, counts)
                except DamagedRecordError as error:
                    damaged = damaged or error
                    continue
                if query.status is None or summary.status == query.status:
                    found.append(summary)
                if len(found) == query.limit:
                    break
            return found, damaged

        found, damaged = self._certain(read)
        if damaged is not None:
            damaged.others = tuple(found)
            raise damaged
        return found

    def owner_lives(self, owner: object) -> bool:
        """Return whether a living process owns what this owner owns."""
        return self._ownership is None or self._ownership.is_alive(owner)

    def peek(
        self, run_id: str, task_name: str | None, most: int
    ) -> dict[str, tuple[str, int, bytes]]:
        """Return kept results undecoded, by task: the serializer's name, the size, the head.

        Args:
            run_id: The run.
            task_name: Only the result of this task.
            most: How many bytes of each.
        """
        values = {"run_id": run_id, "name": task_name, "most": most, "items": False}
        found: dict[str, tuple[str, int, bytes]] = {}
        with self._connections.reading() as db:
            for name, serializer, size, head in db.execute(sql.PEEK_RESULTS, values):
                if not isinstance(serializer, str) or not isinstance(head, bytes):
                    problem = "its result is of another type than flowrun writes"
                    raise DamagedRecordError(run_id, text_of(name), problem)
                found[text_of(name)] = serializer, size, head
        return found

    def written_by_others(self, run_id: str) -> set[str]:
        """Return the tasks of a run whose results this store's serializer cannot read."""
        with self._connections.reading() as db:
            values = {"run_id": run_id, "name": None, "most": 0, "items": True}
            rows = db.execute(sql.PEEK_RESULTS, values)
            return {
                text_of(name)
                for name, by, *_ in rows
                if isinstance(by, str) and not is_readable(self._serializer, by)
            }

    def _certain(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """Read again if an owner is found dead: it may have ended its run since (D3).

        An owner that is known to be dead before the reading begins can change nothing any more.
        """
        while True:
            known = len(self._dead)
            with self._connections.reading() as db:
                found = read(db)
            if len(self._dead) == known:
                return found

    def _is_alive(self, owner: object) -> bool:
        if owner in self._dead:
            return False
        alive = self.owner_lives(owner)
        if not alive and owner is not None:
            self._dead.add(owner)
        return alive

    def _summary(self, row: Row, stored: object, counts: str | None) -> RunSummary:
        check_run_row(row, stored)
        alive = row[_FINISHED_AT] is None and self._is_alive(row[_OWNER])
        return summary_of_row(row, counts, alive=alive)

    def _loaded(self, run_id: str, name: str, stored: StoredResult | None) -> object:
        """Return the value of a stored result."""
        if stored is None:
            raise DamagedRecordError(run_id, name, "its result is missing")
        serializer, checksum, data = stored
        is_sound = isinstance(serializer, str) and isinstance(data, bytes)
        if not is_sound or zlib.crc32(data) != checksum:
            problem = "its result does not match its checksum; the file was damaged"
            raise DamagedRecordError(run_id, name, problem)
        try:
            return decode(self._serializer, serializer, data)
        except Exception as error:
            why = error if isinstance(error, ResultNotReadableError) else repr(error)
            msg = f"the result of task {name!r} in run {run_id!r} cannot be read: {why}"
            raise ResultNotReadableError(msg) from error
