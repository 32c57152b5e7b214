"""What the SQLite store reads: runs with their tasks, results, lists; each row checked (D7)."""

from __future__ import annotations

import heapq
import operator
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from flowrun.errors import DamagedRecordError, ResultNotReadableError, UnknownRunError
from flowrun.state import statements as sql
from flowrun.state.checked_rows import (
    attempts_of_rows,
    check_run_row,
    check_task_row,
    counts_of_row,
    counts_of_tasks,
    run_of_row,
    summary_of_row,
    task_of_row,
    tasks_of_plan,
    text_of,
)
from flowrun.state.encoding import decode, is_readable
from flowrun.state.legacy_rows import renewed
from flowrun.state.records import NoResult

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator, Mapping

    from flowrun.state.ownership import Ownership
    from flowrun.state.protocol import RunQuery
    from flowrun.state.records import RunRecord, RunSummary, TaskRecord
    from flowrun.state.rows import Row
    from flowrun.state.serializers import ResultSerializer

T = TypeVar("T")
StoredResult: TypeAlias = tuple[object, object, object]
"""A result as it is stored: the serializer's name, the checksum, the data."""

_FINISHED_AT, _OWNER = 3, 9
_seq_of = operator.itemgetter(0)
_status_of = operator.attrgetter("status")


class _TaskRow(NamedTuple):
    """A task's row as schema 4 keeps it, and those of its earlier attempts; all unchecked."""

    place: int
    row: Row
    stored: object
    attempts: list[tuple[Row, object]]


def find_run(
    db: sqlite3.Connection, run_id: str, *, has_attempt_rows: bool = True
) -> tuple[int, object, RunRecord]:
    """Return a run's number, its owner and its record, without results and as if it were dead.

    Args:
        db: Where to look.
        run_id: The run.
        has_attempt_rows: Whether the file is of a schema since which attempts have rows.

    Raises:
        DamagedRecordError: A row of it is damaged or missing.
        UnknownRunError: There is no such run.
    """
    seq, row = _run_row(db, run_id)
    tasks = _tasks(db, seq, row, has_attempt_rows=has_attempt_rows)
    run = run_of_row(row, tasks, alive=False)
    if run.finished_at is not None and counts_of_row(row) != Counter(
        map(_status_of, tasks.values())
    ):
        problem = "the rows of its tasks are older, or newer, than its end"
        raise DamagedRecordError(run_id, None, problem)
    return seq, row[_OWNER], run


def row_of_id(db: sqlite3.Connection, statement: str, run_id: str) -> tuple[Any, ...] | None:
    """Return the row that a statement finds for a run id; no id that cannot be encoded has one."""
    try:
        row: tuple[Any, ...] | None = db.execute(statement, (run_id,)).fetchone()
    except UnicodeEncodeError:
        return None
    return row


def _run_row(db: sqlite3.Connection, run_id: str) -> tuple[int, Row]:
    found = row_of_id(db, sql.SELECT_RUN, run_id)
    if found is None:
        raise UnknownRunError(run_id)
    seq, *row, stored = found
    check_run_row(tuple(row), stored)
    return int(seq), tuple(row)


def _task_rows(
    db: sqlite3.Connection, seq: int, run_id: str, *, has_attempt_rows: bool
) -> Iterator[_TaskRow]:
    """Read the rows of a run's tasks, unchecked, in their order."""
    attempts: dict[object, list[tuple[Row, object]]] = {}
    for place, *row, stored in db.execute(sql.SELECT_ATTEMPTS, (seq,)):
        attempts.setdefault(place, []).append((tuple(row), stored))
    for place, *row, stored in db.execute(sql.SELECT_TASKS, (seq,)):
        if has_attempt_rows:
            yield _TaskRow(place, tuple(row), stored, attempts.pop(place, []))
        else:
            yield _TaskRow(place, *renewed(tuple(row), stored, seq, place))
    if attempts:
        problem = "it has attempts that are not of any of its tasks; the file was damaged"
        raise DamagedRecordError(run_id, None, problem)


def _checked_task(found: _TaskRow, seq: int, run_id: str) -> TaskRecord:
    place, row, stored, attempts = found
    check_task_row(row, stored, seq, place, run_id)
    return task_of_row(row, attempts_of_rows(attempts, seq, place, row, run_id), run_id)


def _tasks(
    db: sqlite3.Connection, seq: int, run: Row, *, has_attempt_rows: bool
) -> dict[str, TaskRecord]:
    """Return all tasks of a run whose row was checked, in their order."""
    run_id = str(run[0])
    rows = _task_rows(db, seq, run_id, has_attempt_rows=has_attempt_rows)
    found = {each.place: _checked_task(each, seq, run_id) for each in rows}
    number = sum(counts_of_row(run).values())
    if run[_FINISHED_AT] is None and len(found) < number:
        # Nothing has happened yet to those that have no row.
        plan = db.execute(sql.SELECT_PLAN, (seq,)).fetchone()
        planned = [] if plan is None else tasks_of_plan(plan[0], plan[1], run_id)
        names = [found[place].name for place in found if place < len(planned)]
        if names == [planned[place].name for place in found if place < len(planned)]:
            found = {**dict(enumerate(planned)), **found}
    if [*found] != [*range(number)]:
        raise DamagedRecordError(run_id, None, "rows of its tasks are missing")
    return {task.name: task for task in found.values()}


class SqliteReader:
    """Read one database; a connection comes with each call.

    Args:
        serializer: What makes values of results.
        ownership: The view of the owners' locks; ``None``: a run that has not ended counts as
            alive.
        has_attempt_rows: Whether the file is of a schema since which attempts have rows.
    """

    def __init__(
        self, serializer: ResultSerializer, ownership: Ownership | None, *, has_attempt_rows: bool
    ) -> None:
        self._serializer = serializer
        self._ownership = ownership
        self._has_attempt_rows = has_attempt_rows
        self._dead: set[object] = set()

    def run(
        self, db: sqlite3.Connection, run_id: str, dead: set[object], *, results: bool
    ) -> tuple[RunRecord, dict[str, StoredResult]]:
        """Return a run, and its results as they are stored if they were asked for."""
        seq, owner, run = find_run(db, run_id, has_attempt_rows=self._has_attempt_rows)
        if run.finished_at is None:
            run = run._replace(alive=self._is_alive(owner, dead))
        if not results:
            return run, {}
        found = {name: tuple(kept) for name, *kept in db.execute(sql.SELECT_RESULTS, (seq,))}
        return self.with_results(run, found), found

    def with_results(self, run: RunRecord, stored: Mapping[str, StoredResult]) -> RunRecord:
        """Return the run with the values of its stored results, made anew."""
        tasks = dict(run.tasks)
        for name, task in run.tasks.items():
            if task.result is not NoResult.STORED:
                continue
            value = self._loaded(run.run_id, name, stored.get(name))
            tasks[name] = task._replace(result=value)
        return run._replace(tasks=tasks)

    def results(
        self, db: sqlite3.Connection, run_id: str, task_names: Collection[str]
    ) -> dict[str, object]:
        """Return the kept results of these tasks."""
        seq, row = _run_row(db, run_id)
        wanted = set(task_names)
        tasks: dict[str, tuple[int, TaskRecord]] = {}
        for found in _task_rows(db, seq, run_id, has_attempt_rows=self._has_attempt_rows):
            if found.row[0] in wanted:
                task = _checked_task(found, seq, run_id)
                tasks[task.name] = found.place, task
        if tasks.keys() != wanted:
            # Is there no row because nothing has happened yet, or is it damaged?
            _tasks(db, seq, row, has_attempt_rows=self._has_attempt_rows)
        kept: dict[str, object] = {}
        for name, (place, task) in tasks.items():
            if task.result is NoResult.STORED:
                stored = db.execute(sql.SELECT_RESULT, (seq, place)).fetchone()
                kept[name] = self._loaded(run_id, name, stored)
        return kept

    def runs(self, db: sqlite3.Connection, query: RunQuery, dead: set[object]) -> list[RunSummary]:
        """Return the runs that match, newest first.

        Raises:
            DamagedRecordError: A row of one of them is damaged; its ``others`` are the list
                without those.
        """
        found: list[RunSummary] = []
        damaged: DamagedRecordError | None = None
        values = {
            "dag": query.dag_name,
            "ancestor": query.resumed_from,
            "status": None if query.status is None else str(query.status),
            "seq": _seq_before(db, query.before),
            "time": query.before if isinstance(query.before, int | float) else None,
        }
        texts = sql.list_runs(query, from_view=not self._has_attempt_rows)
        cursors = [db.execute(text, values) for text in texts]
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

    def until_certain(self, read: Callable[[set[object]], T]) -> T:
        """Read again if an owner is found dead: it may have ended its run since (D3).

        An owner that is known to be dead before the reading begins can change nothing any more.
        """
        while True:
            dead: set[object] = set()
            found = read(dead)
            if not dead:
                return found
            self._dead.update(dead)

    def owner_lives(self, owner: object) -> bool:
        """Return whether a living process owns what this owner owns."""
        return self._ownership is None or self._ownership.is_alive(owner)

    def _is_alive(self, owner: object, dead: set[object]) -> bool:
        """Return whether a run is alive, and note an owner who was not known to be dead."""
        if owner in self._dead:
            return False
        alive = self.owner_lives(owner)
        if not alive and owner is not None:
            dead.add(owner)
        return alive

    def _summary(
        self, row: Row, stored: object, counts: str | None, dead: set[object]
    ) -> RunSummary:
        check_run_row(row, stored)
        # A run's own row is written when it ends; until then the rows of its tasks count.
        alive = row[_FINISHED_AT] is None and self._is_alive(row[_OWNER], dead)
        found = counts_of_tasks(counts_of_row(row), counts, str(row[0]))
        return summary_of_row(row, found, alive=alive)

    def _loaded(self, run_id: str, name: str, stored: StoredResult | None) -> object:
        """Return the value of a stored result."""
        if stored is None:
            raise DamagedRecordError(run_id, name, "its result is missing")
        serializer, checksum, data = stored
        if (
            not isinstance(serializer, str)
            or not isinstance(data, bytes)
            or zlib.crc32(data) != checksum
        ):
            problem = "its result does not match its checksum; the file was damaged"
            raise DamagedRecordError(run_id, name, problem)
        try:
            return decode(self._serializer, serializer, data)
        except Exception as error:
            why = error if isinstance(error, ResultNotReadableError) else repr(error)
            msg = f"the result of task {name!r} in run {run_id!r} cannot be read: {why}"
            raise ResultNotReadableError(msg) from error


def peek(
    db: sqlite3.Connection, run_id: str, task_name: str, most: int
) -> tuple[str, int, bytes] | None:
    """Return a kept result undecoded: its serializer's name, its size, its first bytes."""
    row = db.execute(sql.PEEK_RESULT, (most, most, run_id, task_name)).fetchone()
    return None if row is None else _peeked(run_id, task_name, row)


def peek_all(db: sqlite3.Connection, run_id: str, most: int) -> dict[str, tuple[str, int, bytes]]:
    """Return every kept result of a run undecoded, by task; see :func:`peek`."""
    rows = db.execute(sql.PEEK_RESULTS, (most, most, run_id)).fetchall()
    return {text_of(name): _peeked(run_id, text_of(name), row) for name, *row in rows}


def written_by_others(
    db: sqlite3.Connection, run_id: str, serializer: ResultSerializer
) -> set[str]:
    """Return the tasks of a run whose results this serializer cannot read."""
    rows = db.execute(sql.PEEK_RESULTS, (0, 0, run_id)).fetchall()
    return {
        text_of(name)
        for name, by, *_ in rows
        if isinstance(by, str) and not is_readable(serializer, by)
    }


def _peeked(run_id: str, name: str, row: Any) -> tuple[str, int, bytes]:  # noqa: ANN401 - a row
    serializer, size, head = row
    if not isinstance(serializer, str) or not isinstance(head, bytes):
        problem = "its result is of another type than flowrun writes; the file was damaged"
        raise DamagedRecordError(run_id, name, problem)
    return serializer, size, head


def _seq_before(db: sqlite3.Connection, before: str | float | None) -> int | None:
    if not isinstance(before, str):
        return None
    # Only where it stands: the runs before a damaged one can be listed.
    found = row_of_id(db, sql.SEQ_OF, before)
    if found is None:
        raise UnknownRunError(before)
    return int(found[0])
