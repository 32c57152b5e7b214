"""What one transaction writes of the tasks of runs: rows, and results in them or beside them."""

from __future__ import annotations

import zlib
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from flowrun.errors import DamagedRecordError, ResultNotStorableError, RunLostError
from flowrun.failure import error_line
from flowrun.state import statements as sql
from flowrun.state.protocol import succeeded
from flowrun.state.records import NoResult, TaskStatus
from flowrun.state.rows import plain_row, task_checksum, task_row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from flowrun.state.protocol import Change, Successes
    from flowrun.state.records import RunRecord, TaskRecord
    from flowrun.state.rows import Row
    from flowrun.state.serializers import ResultSerializer

SHORT = 500
"""Results of so many bytes stand in their tasks' rows, which SQLite then keeps in one page."""

_NOTHING: Row = (None, None, None)


class Owned(NamedTuple):
    """A run that this store has created.

    Attributes:
        seq: Its number in the file.
        places: Its tasks' places among its rows.
        deps: What its tasks' rows say of their dependencies, by place.
    """

    seq: int
    places: dict[str, int]
    deps: list[str]

    def row_of(self, task: TaskRecord) -> Row:
        """Return where a task's row stands, its values and their checksum."""
        place = self.places[task.name]
        row = task_row(task, self.deps[place])
        return self.seq, place, *row, task_checksum(self.seq, place, row)


class Batch:
    """Changes, made ready to be written.

    Args:
        serializer: What makes bytes of results.
        longest: How many bytes of one can be kept.

    Attributes:
        ends: Runs that end with it.
    """

    __slots__ = (
        "_dropped",
        "_long",
        "_longest",
        "_plain",
        "_serializer",
        "_updated",
        "_whole",
        "ends",
    )

    def __init__(self, serializer: ResultSerializer, longest: int) -> None:
        self._serializer = serializer
        self._longest = longest
        self._whole: list[Row] = []
        self._plain: list[list[object]] = []
        self._updated: list[Row] = []
        self._long: list[Row] = []
        self._dropped: list[Row] = []
        self.ends: list[RunRecord] = []

    def add(self, changes: Sequence[Change], runs: Mapping[str, Owned]) -> None:
        """Make rows of changes; of a record that was given twice the last one counts.

        Raises:
            ResultNotStorableError: The serializer refuses a result.
            RunLostError: A run is none of these.
        """
        last = {
            (change.run.run_id, None if change.task is None else change.task.name): change
            for change in changes
        }
        for run, task in last.values():
            owned = runs.get(run.run_id)
            if owned is None:
                raise RunLostError(run.run_id)
            if task is None:
                self.ends.append(run)
            else:
                self._add_task(run.run_id, task, owned)

    def add_successes(self, successes: Successes, runs: Mapping[str, Owned]) -> None:
        """Make rows of successes.

        Raises:
            ResultNotStorableError: The serializer refuses a result.
            RunLostError: The run is none of these.
        """
        run, tasks, ended = successes
        owned = runs.get(run.run_id)
        if owned is None:
            raise RunLostError(run.run_id)
        plain: list[object] = []
        serializer = self._serializer.name
        for number, now, value in ended:
            if type(value) is NoResult:
                self._add_task(run.run_id, succeeded(tasks[number], now, value), owned)
                continue
            data = self._dumped(run.run_id, tasks[number].name, value)
            if len(data) > SHORT:
                self._add_kept(owned.row_of(succeeded(tasks[number], now, value)), data)
            else:
                deps = owned.deps[number]
                plain += plain_row(owned.seq, number, tasks[number], deps, now, serializer, data)
        self._plain.append(plain)

    def write(self, db: sqlite3.Connection) -> None:
        """Write them, in the caller's transaction.

        Raises:
            DamagedRecordError: A task's result was to stay as it is, but it has no row.
        """
        put(db, self._whole)
        for plain in self._plain:
            put_plain(db, plain)
        for seq, place, *row in self._updated:
            if not db.execute(sql.UPDATE_TASK, (*row, seq, place)).rowcount:
                (run_id,) = db.execute(sql.RUN_OF, (seq,)).fetchone()
                raise DamagedRecordError(
                    run_id, str(row[0]), "its row is missing; the file was damaged"
                )
        if self._long:
            db.executemany(sql.INSERT_RESULT, self._long)
        if self._dropped:
            db.executemany(sql.DELETE_RESULT, self._dropped)

    def _add_task(self, run_id: str, task: TaskRecord, owned: Owned) -> None:
        row = owned.row_of(task)
        result = task.result
        if result is NoResult.STORED:
            self._updated.append(row)
        elif type(result) is NoResult:
            self._whole.append(row + _NOTHING)
            if task.status is TaskStatus.SUCCESS:
                self._dropped.append(row[:2])
        else:
            self._add_kept(row, self._dumped(run_id, task.name, result))

    def _add_kept(self, row: Row, data: bytes) -> None:
        kept: Row = (self._serializer.name, data, zlib.crc32(data))
        if len(data) > SHORT:
            self._long.append(row[:2] + kept)
            kept = _NOTHING
        self._whole.append(row + kept)

    def _dumped(self, run_id: str, task_name: str, value: object) -> bytes:
        """Return the bytes of a result.

        Raises:
            ResultNotStorableError: There are none, whatever the reason, or too many: it must be
                known whose result it is, as other runs have theirs beside it (R5).
        """
        cause: BaseException | None = None
        try:
            data = self._serializer.dumps(value)
            if type(data) is not bytes:
                data = bytes(memoryview(data))
        except KeyboardInterrupt:
            raise  # it is not about this value
        except ResultNotStorableError as error:
            cause, problem = error, error.problem
        except BaseException as error:  # noqa: BLE001 - a value's own code may raise anything
            cause, problem = error, error_line(error)
        else:
            if len(data) <= self._longest:
                return data
            problem = (
                f"it comes to {len(data):,} bytes, and SQLite keeps at most"
                f" {self._longest:,} in a row"
            )
        clear = (
            f"the result of task {task_name!r} in run {run_id!r} cannot be kept by the"
            f" {self._serializer.name!r} serializer: {problem.rstrip('.')}. Return something it can"
            " keep, use another serializer, or declare the task with retain_result=False"
        )
        raise ResultNotStorableError(clear, run_id, task_name) from cause


def put(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Write whole rows of tasks, most of them many at a time."""
    begin = 0
    for number, text in sql.PUT_TASKS.items():
        while begin + number <= len(rows):
            db.execute(text, tuple(chain.from_iterable(rows[begin : begin + number])))
            begin += number


def put_plain(db: sqlite3.Connection, rows: Sequence[object]) -> None:
    """Write such rows, most of them many at a time.

    Args:
        db: Where to, in the caller's transaction.
        rows: The rows' values, one row after the other.
    """
    begin, number = 0, len(rows) // sql.PLAIN_VALUES
    for many, text in sql.PUT_PLAIN.items():
        while number >= many:
            end = begin + many * sql.PLAIN_VALUES
            db.execute(text, rows[begin:end])
            begin, number = end, number - many
