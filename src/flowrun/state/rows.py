"""Records <-> rows of the SQLite store, each row with a checksum (D7)."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.errors import DamagedRecordError
from flowrun.state.records import (
    AttemptRecord,
    NoResult,
    Reason,
    RunRecord,
    RunSummary,
    TaskRecord,
    TaskStatus,
    run_status,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Row: TypeAlias = tuple[object, ...]

RUN_COLUMNS = (
    "run_id, dag_name, created_at, finished_at, status, error, metadata, resumed_from, targets,"
    " owner, task_counts"
)
TASK_COLUMNS = (
    "name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, abandoned,"
    " earlier, result_state"
)


def checksum(row: Row) -> int:
    """Return the CRC-32 of a row's values."""
    return zlib.crc32(repr(row).encode("utf-8", "surrogatepass"))


_crc32 = zlib.crc32
_packed = struct.Struct("<qqqqddd").pack
_NAN = float("nan")
_NULL = "\1"


def task_checksum(run: int, place: int, row: Row) -> int:
    """Return the CRC-32 of a task's values, and of where they stand.

    Of the numbers as they are in memory: to write floats down takes longer than all the rest.
    NaN stands for NULL, since SQLite makes NULL of NaN.

    Raises:
        TypeError: A value is of a type that flowrun does not write.
        struct.error: The same.
    """
    values: Any = row
    name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, *rest = values
    abandoned, earlier, result_state = rest
    numbers = _packed(
        run,
        place,
        attempt,
        abandoned,
        _NAN if ready_at is None else ready_at,
        _NAN if started_at is None else started_at,
        _NAN if finished_at is None else finished_at,
    )
    error = _NULL if error is None else error
    reason = _NULL if reason is None else reason
    texts = "\0".join([name, deps, status, error, reason, earlier, result_state])  # noqa: FLY002 - it refuses what is no text
    return zlib.crc32(texts.encode("utf-8", "surrogatepass"), zlib.crc32(numbers))


_SUCCEEDED = f"\0{TaskStatus.SUCCESS}\0{_NULL}\0{_NULL}\0[]\0{NoResult.STORED.value}".encode()


def plain_row(  # noqa: PLR0913 - a row is made of its values
    run: int,
    place: int,
    task: TaskRecord,
    deps: str,
    finished_at: float,
    serializer: str,
    data: bytes,
) -> Row:
    """Return what is to be written of a task that has succeeded at its first attempt.

    Args:
        run: Where its row stands.
        place: The same.
        task: The task, still RUNNING.
        deps: Its dependencies as JSON.
        finished_at: When it ended.
        serializer: What has made the next one.
        data: What it returned.
    """
    name, ready_at, started_at = task.name, task.ready_at or 0.0, task.started_at or 0.0
    numbers = _packed(run, place, 1, 0, ready_at, started_at, finished_at)
    texts = f"{name}\0{deps}".encode("utf-8", "surrogatepass")
    stored = _crc32(numbers + texts + _SUCCEEDED)
    times = (ready_at, started_at, finished_at)
    return run, place, name, deps, *times, stored, serializer, data, _crc32(data)


def run_row(run: RunRecord, owner: int | None) -> Row:
    """Return a run's values, in the order of ``RUN_COLUMNS``."""
    summary = run.summary()
    return (
        run.run_id,
        run.dag_name,
        float(run.created_at),
        _real(run.finished_at),
        str(summary.status),
        run.error,
        json.dumps(run.metadata),
        run.resumed_from,
        None if run.targets is None else json.dumps(run.targets),
        owner,
        json.dumps(summary.task_counts),
    )


def task_row(task: TaskRecord, deps: str | None = None) -> Row:
    """Return a task's values, in the order of ``TASK_COLUMNS``.

    Args:
        task: The task.
        deps: The second of these values, if it is known.
    """
    result = task.result
    return (
        task.name,
        json.dumps(task.deps) if deps is None else deps,
        task.status.value,
        task.attempt,
        _real(task.ready_at),
        _real(task.started_at),
        _real(task.finished_at),
        task.error,
        None if task.reason is None else task.reason.value,
        int(task.abandoned),
        json.dumps(task.earlier) if task.earlier else "[]",
        (result if type(result) is NoResult else NoResult.STORED).value,
    )


_BETWEEN = '", "'


def plan_of(tasks: Mapping[str, TaskRecord]) -> tuple[str, list[str]]:
    """Return the tasks and their dependencies as JSON: all together, and those of each."""
    deps = [f'["{_BETWEEN.join(task.deps)}"]' if task.deps else "[]" for task in tasks.values()]
    plan = ", ".join([f'["{name}", {each}]' for name, each in zip(tasks, deps, strict=True)])
    # Most names need no escaping. Who would tell a quote in one from those around it counts.
    quotes = 2 * (len(tasks) + sum([len(task.deps) for task in tasks.values()]))
    if plan.isascii() and plan.isprintable() and "\\" not in plan and plan.count('"') == quotes:
        return f"[{plan}]", deps
    deps = [json.dumps(task.deps) for task in tasks.values()]
    plan = json.dumps([(name, task.deps) for name, task in tasks.items()])
    return plan, deps


def tasks_of_plan(plan: str, stored: object, run_id: str) -> list[TaskRecord]:
    """Return the tasks of a run as they were before anything happened to them.

    Raises:
        DamagedRecordError: It does not match its checksum, or cannot have been written.
    """
    _compare(checksum((plan,)), stored, run_id, None)
    try:
        return [TaskRecord(str(name), tuple(deps)) for name, deps in json.loads(plan)]
    except _NONSENSE as error:
        raise _senseless(run_id, None, error) from None


def check_task_row(row: Row, stored: object, run: int, place: int, run_id: str) -> None:
    """Compare a task's row with the checksum that was stored with it.

    Raises:
        DamagedRecordError: They differ.
    """
    try:
        found = task_checksum(run, place, row)
    except (TypeError, struct.error):
        found = None
    if found != stored:
        # Before schema 3 it was made as that of a run still is.
        _compare(checksum(row), stored, run_id, str(row[0]))


def check_row(row: Row, stored: object, run_id: str, task_name: str | None) -> None:
    """Compare a row with the checksum that was stored with it.

    Raises:
        DamagedRecordError: They differ.
    """
    _compare(checksum(row), stored, run_id, task_name)


def _compare(found: int, stored: object, run_id: str, task_name: str | None) -> None:
    if found != stored:
        problem = (
            "it does not match its checksum; the file was damaged after it was written. The"
            " other records can still be read; restore this one from a backup"
        )
        raise DamagedRecordError(run_id, task_name, problem)


_NONSENSE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _senseless(run_id: str, task_name: str | None, error: Exception) -> DamagedRecordError:
    """Tell of a row whose checksum is right, but which flowrun cannot have written."""
    problem = (
        f"its values make no sense ({type(error).__name__}); some other program, or a newer"
        " flowrun, has changed it. Restore it from a backup"
    )
    return DamagedRecordError(run_id, task_name, problem)


def counts_of_row(row: Row) -> dict[str, int]:
    """Return the number of tasks by status that a checked run's row holds."""
    try:
        counts = json.loads(str(row[10]))
        return {TaskStatus(name).value: int(number) for name, number in counts.items()}
    except _NONSENSE as error:
        raise _senseless(str(row[0]), None, error) from None


def run_of_row(row: Row, tasks: dict[str, TaskRecord], *, alive: bool) -> RunRecord:
    """Return the run that a checked row holds."""
    try:
        return _run_of_row(row, tasks, alive=alive)
    except _NONSENSE as error:
        raise _senseless(str(row[0]), None, error) from None


def _run_of_row(row: Row, tasks: dict[str, TaskRecord], *, alive: bool) -> RunRecord:
    run_id, dag_name, created_at, finished_at, _, error, metadata, resumed_from, targets, *_ = row
    run = RunRecord(
        str(run_id),
        str(dag_name),
        float(str(created_at)),
        tasks,
        metadata=json.loads(str(metadata)),
        resumed_from=None if resumed_from is None else str(resumed_from),
        targets=None if targets is None else tuple(json.loads(str(targets))),
    )
    run.finished_at = None if finished_at is None else float(str(finished_at))
    run.error = None if error is None else str(error)
    run.alive = alive
    return run


def summary_of_row(row: Row, counts: dict[str, int], *, alive: bool) -> RunSummary:
    """Return the line that a list of runs shows of a checked row."""
    run = run_of_row(row, {}, alive=alive)
    status = run_status(counts)
    return RunSummary(
        run.run_id,
        run.dag_name,
        status,
        run.created_at,
        run.finished_at,
        run.error,
        run.metadata,
        run.resumed_from,
        run.targets,
        alive,
        counts,
    )


def task_of_row(row: Row, run_id: str) -> TaskRecord:
    """Return the task that a checked row holds, its result not yet read."""
    try:
        return _task_of_row(row)
    except _NONSENSE as error:
        raise _senseless(run_id, str(row[0]), error) from None


def _task_of_row(row: Row) -> TaskRecord:
    name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, *rest = row
    abandoned, earlier, result_state = rest
    task = TaskRecord(str(name), tuple(json.loads(str(deps))))
    task.status = TaskStatus(str(status))
    task.attempt = int(str(attempt))
    task.ready_at = _number(ready_at)
    task.started_at = _number(started_at)
    task.finished_at = _number(finished_at)
    task.error = None if error is None else str(error)
    task.reason = None if reason is None else Reason(str(reason))
    task.abandoned = bool(abandoned)
    task.earlier = tuple(_attempt(fields) for fields in json.loads(str(earlier)))
    task.result = NoResult(str(result_state))
    return task


def _attempt(fields: list[Any]) -> AttemptRecord:
    *times, reason, abandoned = fields
    number, ready_at, started_at, finished_at, error = times
    return AttemptRecord(
        number,
        ready_at,
        started_at,
        finished_at,
        error,
        None if reason is None else Reason(reason),
        abandoned,
    )


def _real(value: float | None) -> float | None:
    """Return what a REAL column gives back: the checksum is made of that."""
    return None if value is None else float(value)


def _number(value: object) -> float | None:
    return value if value is None or isinstance(value, float) else float(str(value))
