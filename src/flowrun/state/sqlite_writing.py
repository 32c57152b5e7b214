"""What one transaction of the SQLite store writes: rows of tasks, attempts, results and ends."""

from __future__ import annotations

import time
import zlib
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun.errors import DamagedRecordError, RunLostError, duplicate_run
from flowrun.state import statements as sql
from flowrun.state.checksums import checksum, run_checksum
from flowrun.state.records import CarriedResult, EncodedResult, NoResult, Reason, TaskStatus
from flowrun.state.rows import attempt_row, cached_row, notes_row, plan_of, run_row, task_row
from flowrun.state.sqlite_reading import find_run

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowrun.state.checksums import Row
    from flowrun.state.protocol import Change
    from flowrun.state.records import TaskRecord
    from flowrun.state.run_records import RunRecord

SHORT = 500
"""Results of up to so many bytes are kept in their tasks' rows, which then fit in one page."""

_NOTHING: Row = (None, None, None)
_DEAD = "OWNER_DIED: the process that worked on this run has died"


class Owned(NamedTuple):
    """A run that this store has created.

    Attributes:
        seq: Its number in the file.
        places: Its tasks' places among its rows.
        deps: The dependencies of its tasks as JSON, by place.
        attempts: How many earlier attempts of each task have rows, by place.
        items: The places of items, by task and number; they come after those of the tasks.
    """

    seq: int
    places: dict[str, int]
    deps: list[str]
    attempts: dict[int, int]
    items: dict[tuple[str, int], int]

    def place_of(self, task: TaskRecord) -> int:
        """Return the place of a task, or of an item, which gets the next one."""
        if task.item is None:
            return self.places[task.name]
        next_place = len(self.places) + len(self.items)
        return self.items.setdefault((task.name, task.item), next_place)

    def row_of(self, task: TaskRecord) -> Row:
        """Return where a task's row stands, its values and their checksum."""
        return task_row(self.seq, self.place_of(task), task, self.deps[self.places[task.name]])

    def new_attempts(self, task: TaskRecord) -> Iterable[Row]:
        """Return rows of the earlier attempts that have none yet."""
        place = self.place_of(task)
        for attempt in task.earlier[self.attempts.get(place, 0) :]:
            yield attempt_row(self.seq, place, attempt)

    def new_notes(self, task: TaskRecord) -> Iterable[Row]:
        """Return rows of the notes of these attempts and of the last one."""
        place = self.place_of(task)
        for attempt in task.earlier[self.attempts.get(place, 0) :]:
            if attempt.notes is not None:
                yield notes_row(self.seq, place, attempt.number, attempt.notes)
        if task.notes is not None:
            yield notes_row(self.seq, place, task.attempt, task.notes)

    def note_attempts(self, tasks: Iterable[TaskRecord]) -> None:
        """Note that these attempts have rows now."""
        self.attempts.update((self.place_of(task), len(task.earlier)) for task in tasks)


class Batch:
    """Changes, made ready to be written; of a record that is given twice the last one counts.

    Args:
        changes: The changes.
        runs: The runs that this store has created.
        encode: The store's ``encode_result``.

    Attributes:
        runs: The ids of the runs that it changes.
        ends: Runs that end with it.

    Raises:
        ResultNotStorableError: The serializer refuses a result.
        RunLostError: A run is not one of these.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        runs: Mapping[str, Owned],
        encode: Callable[..., EncodedResult],
    ) -> None:
        self._encode = encode
        self._whole: list[Row] = []
        self._updated: list[Row] = []
        self._others: dict[str, list[Row]] = {}
        self._retried: list[tuple[Owned, TaskRecord]] = []
        self.runs: set[str] = set()
        self.ends: list[RunRecord] = []
        self._carried: list[tuple[Any, ...]] = []
        last = {
            (run.run_id, task and task.name, task and task.item): (run, task)
            for run, task in changes
        }
        for run, task in last.values():
            owned = runs.get(run.run_id)
            if owned is None:
                raise RunLostError(run.run_id)
            self.runs.add(run.run_id)
            if task is None:
                self.ends.append(run)
            else:
                self._add_task(run.run_id, task, owned)

    def write(self, db: sqlite3.Connection) -> None:
        """Write the rows, in the caller's transaction.

        Raises:
            DamagedRecordError: A task whose result is to stay as it is has no row.
        """
        _put_tasks(db, self._whole)
        for seq, place, *row in self._updated:
            if not db.execute(sql.UPDATE_TASK, (*row, seq, place)).rowcount:
                (run_id,) = db.execute(sql.RUN_OF, (seq,)).fetchone()
                problem = "its row is missing; the file was damaged"
                raise DamagedRecordError(run_id, row[0], problem)
        for text, rows in self._others.items():
            db.executemany(text, rows)
        _carry(db, self._carried)

    def committed(self) -> None:
        """Note what has rows now."""
        for owned, task in self._retried:
            owned.note_attempts([task])

    def _add_task(self, run_id: str, task: TaskRecord, owned: Owned) -> None:
        row = owned.row_of(task)
        if task.earlier:
            self._others.setdefault(sql.PUT_ATTEMPT, []).extend(owned.new_attempts(task))
            self._retried.append((owned, task))
        if task.cache is not None and task.status is TaskStatus.SUCCESS:
            cached = cached_row(row[0], row[1], task.cache, task.finished_at)
            self._others.setdefault(sql.PUT_CACHED, []).append(cached)
        if task.earlier or task.notes is not None:
            self._others.setdefault(sql.PUT_NOTES, []).extend(owned.new_notes(task))
        result: Any = task.result
        if result is NoResult.STORED:
            self._updated.append(row)
            return
        if type(result) is CarriedResult:
            self._carried.append((*row, result.run_id, task.name, result.item))
            return
        kept = _NOTHING
        if type(result) is not NoResult:
            if type(result) is not EncodedResult:
                result = self._encode(result, run_id=run_id, task_name=task.name)
            kept = (*result, zlib.crc32(result.data))
            if len(result.data) > SHORT:
                self._others.setdefault(sql.PUT_RESULT, []).append(row[:2] + kept)
                kept = _NOTHING
        elif task.status is TaskStatus.SUCCESS:
            self._others.setdefault(sql.DELETE_RESULT, []).append(row[:2])
        self._whole.append(row + kept)


def insert_run(db: sqlite3.Connection, run: RunRecord, owner: int) -> Owned:
    """Write a new run, in the caller's transaction; its ancestor was checked.

    Raises:
        DamagedRecordError: A result that the run would take along is missing.
        StoreError: There is a run of that id.
    """
    row = run_row(run, owner)
    found = db.execute(sql.INSERT_RUN, (*row, run_checksum(row))).fetchall()
    if not found:
        raise duplicate_run(run.run_id)
    seq = found[0][0]
    plan, deps = plan_of(run.tasks)
    db.execute(sql.INSERT_PLAN, (seq, plan, checksum((plan,))))
    owned = Owned(seq, {name: place for place, name in enumerate(run.tasks)}, deps, {}, {})
    _carry_over(db, owned, run)
    return owned


def _carry_over(db: sqlite3.Connection, owned: Owned, run: RunRecord) -> None:
    """Write the tasks that are not pending; kept results are copied from the ancestor."""
    begun = [task for task in run.records if task.status is not TaskStatus.PENDING]
    ancestor = run.resumed_from
    kept = [task for task in begun if task.result is NoResult.STORED]
    others = [task for task in begun if task.result is not NoResult.STORED]
    _put_tasks(db, [owned.row_of(task) + _NOTHING for task in others])
    _carry(db, [(*owned.row_of(task), ancestor, task.name, task.item) for task in kept])
    db.executemany(sql.PUT_ATTEMPT, chain.from_iterable(owned.new_attempts(task) for task in begun))
    db.executemany(sql.PUT_NOTES, chain.from_iterable(owned.new_notes(task) for task in begun))
    owned.note_attempts(begun)
    for task in begun:
        if task.cache is not None:
            place = owned.row_of(task)[1]
            db.execute(sql.PUT_CACHED, cached_row(owned.seq, place, task.cache, task.finished_at))


def _carry(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Write rows of tasks whose results are copied: the last three values say from where."""
    if not rows:
        return
    if db.executemany(sql.CARRY_TASK, rows).rowcount != len(rows):
        problem = "results of it that the new run would keep are missing"
        raise DamagedRecordError(str(rows[0][-3]), None, problem)
    db.executemany(sql.CARRY_RESULT, [(*row[:2], *row[-3:]) for row in rows])


def end_dead(db: sqlite3.Connection, run_id: str) -> RunRecord:
    """End a run that a dead process has left behind, as the process would have ended it (D3).

    Returns:
        The run as it has ended.

    Raises:
        DamagedRecordError: It cannot be read, and is left as it is.
        UnknownRunError: As for ``DamagedRecordError``: its id is damaged.
    """
    seq, _, run = find_run(db, run_id)
    tasks = dict(run.tasks)
    times = [moment or 0.0 for task in run.records for moment in task[4:7]]
    now = max(time.time(), run.created_at, *times)  # its clock may have been ahead of this one
    ended: list[Row] = []
    places = {name: place for place, name in enumerate(tasks)}
    of_items = {
        (name, item): place for name, item, place in db.execute(sql.PLACES_OF_ITEMS, (seq,))
    }
    owned = Owned(seq, places, plan_of(tasks)[1], {}, of_items)
    for task in run.records:
        if task.status is TaskStatus.RUNNING:
            changed = task.fail(now, _DEAD, Reason.OWNER_DIED)
        elif task.status is TaskStatus.PENDING:
            changed = task.skip(now, Reason.OWNER_DIED, _DEAD)
        else:
            continue
        ended.append(owned.row_of(changed) + _NOTHING)
        if changed.item is None:
            tasks[changed.name] = changed
    _put_tasks(db, ended)
    run = run.finish(now, _DEAD, tasks)
    write_end(db, seq, run)
    return run


def write_end(db: sqlite3.Connection, seq: int, run: RunRecord) -> None:
    """Write the end of a run; it has no owner afterwards."""
    row = run_row(run, None)
    db.execute(sql.END_RUN, (row[3], row[4], row[5], row[10], run_checksum(row), seq))


def _put_tasks(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Write whole rows of tasks, most of them many at a time."""
    begin = 0
    for number, text in sql.PUT_TASKS.items():
        while begin + number <= len(rows):
            db.execute(text, tuple(chain.from_iterable(rows[begin : begin + number])))
            begin += number
