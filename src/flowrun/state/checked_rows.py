"""Rows of the SQLite store -> records; a damaged row is an error that names run and task (D7)."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

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
from flowrun.state.rows import attempt_checksum, checksum, run_checksum, task_checksum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowrun.state.rows import Row

NONSENSE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What a row raises whose checksum is right, but which flowrun cannot have written."""


def check_run_row(row: Row, stored: object) -> None:
    """Compare a run's row with the checksum that was stored with it.

    Raises:
        DamagedRecordError: They differ.
    """
    if run_checksum(row) != stored:
        raise damaged(text_of(row[0]), None)


def check_task_row(row: Row, stored: object, run: int, place: int, run_id: str) -> None:
    """Compare a task's row with the checksum that was stored with it.

    Raises:
        DamagedRecordError: They differ.
    """
    try:
        matches = task_checksum(run, place, row) == stored
    except NONSENSE:
        matches = False
    # Before schema 3 a checksum was made of the values' text, whatever their place.
    if not matches and (
        type(row[10]) is not int or row[10] or checksum((*row[:10], "[]", row[11])) != stored
    ):
        raise damaged(run_id, text_of(row[0]))


def text_of(value: object) -> str:
    """Return the text of a value that should be one, however it is damaged."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def damaged(run_id: str, task_name: str | None) -> DamagedRecordError:
    """Return the error of a row that does not match its checksum."""
    problem = (
        "it does not match its checksum; the file was damaged after it was written. The"
        " other records can still be read; restore this one from a backup"
    )
    return DamagedRecordError(run_id, task_name, problem)


def _senseless(run_id: str, task_name: str | None, error: Exception) -> DamagedRecordError:
    """Return the error of a row whose checksum is right and whose values are not."""
    problem = (
        f"its values make no sense ({type(error).__name__}); another program, or a newer"
        " flowrun, has changed it. Restore it from a backup"
    )
    return DamagedRecordError(run_id, task_name, problem)


def tasks_of_plan(plan: object, stored: object, run_id: str) -> list[TaskRecord]:
    """Return the tasks of a run as they were before anything happened to them.

    Raises:
        DamagedRecordError: The plan does not match its checksum, or makes no sense.
    """
    if checksum((plan,)) != stored:
        raise damaged(run_id, None)
    try:
        return [TaskRecord(str(name), tuple(deps)) for name, deps in json.loads(str(plan))]
    except NONSENSE as error:
        raise _senseless(run_id, None, error) from None


def counts_of_row(row: Row) -> dict[str, int]:
    """Return the number of tasks by status that a checked run's row holds."""
    try:
        counts = json.loads(str(row[10]))
        return {TaskStatus(name).value: int(number) for name, number in counts.items()}
    except NONSENSE as error:
        raise _senseless(str(row[0]), None, error) from None


def counts_of_tasks(counts: dict[str, int], changed: str | None, run_id: str) -> dict[str, int]:
    """Return the number of tasks by status of a run that has not ended.

    Args:
        counts: What the run's own row says, which was written when the run was created.
        changed: What the rows of its tasks say: ``"SUCCESS=2,FAILED=1"``. A task to which
            nothing has happened has no row.
        run_id: The run, for the message.

    Raises:
        DamagedRecordError: A task's row has a status that there is not.
    """
    if changed is None:
        return counts
    try:
        pairs = [pair.split("=") for pair in changed.split(",")]
        found = {TaskStatus(status).value: int(number) for status, number in pairs}
    except ValueError:
        raise damaged(run_id, None) from None
    untouched = sum(counts.values()) - sum(found.values())
    if untouched > 0:
        pending = TaskStatus.PENDING.value
        found[pending] = found.get(pending, 0) + untouched
    return found


_TEXT_OR_NULL = (str, type(None))
_RUN_TYPES: tuple[type | tuple[type, ...], ...] = (
    str,
    str,
    float,
    (float, type(None)),
    str,
    _TEXT_OR_NULL,
    str,
    _TEXT_OR_NULL,
    _TEXT_OR_NULL,
    (int, type(None)),
    str,
    _TEXT_OR_NULL,
)


def run_of_row(row: Row, tasks: Mapping[str, TaskRecord], *, alive: bool) -> RunRecord:
    """Return the run that a checked row holds."""
    values: Any = row
    run_id, dag_name, created_at, finished_at, _, error, metadata, ancestor, targets, *rest = values
    try:
        if not all(isinstance(value, kind) for value, kind in zip(row, _RUN_TYPES, strict=True)):
            msg = "a value is of another type"
            raise TypeError(msg)
        return RunRecord(
            run_id,
            dag_name,
            created_at,
            tasks,
            metadata=dict(json.loads(metadata)),
            resumed_from=ancestor,
            targets=None if targets is None else tuple(json.loads(targets)),
            started_by=rest[-1],
            finished_at=finished_at,
            error=error,
            alive=alive,
        )
    except NONSENSE as problem:
        raise _senseless(text_of(run_id), None, problem) from None


def summary_of_row(row: Row, counts: dict[str, int], *, alive: bool) -> RunSummary:
    """Return the line that a list of runs shows of a checked row."""
    summary = run_of_row(row, {}, alive=alive).summary()
    return summary._replace(status=run_status(counts), task_counts=counts)


def task_of_row(row: Row, earlier: tuple[AttemptRecord, ...], run_id: str) -> TaskRecord:
    """Return the task that a checked row holds, its result not yet read."""
    values: Any = row
    name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, *rest = values
    abandoned, _, result_state = rest
    try:
        return TaskRecord(
            name,
            tuple(json.loads(deps)),
            TaskStatus(status),
            attempt,
            ready_at,
            started_at,
            finished_at,
            error,
            None if reason is None else Reason(reason),
            bool(abandoned),
            NoResult(result_state),
            earlier,
        )
    except NONSENSE as problem:
        raise _senseless(run_id, text_of(name), problem) from None


def attempts_of_rows(
    rows: Iterable[tuple[Row, object]], run: int, place: int, task: Row, run_id: str
) -> tuple[AttemptRecord, ...]:
    """Return the attempts of a task before its last one.

    Args:
        rows: Their rows, each with the checksum that was stored with it.
        run: Where the task's row stands.
        place: The same.
        task: The task's checked row, which says how many attempts there are.
        run_id: The run, for the message.

    Raises:
        DamagedRecordError: A row does not match its checksum, makes no sense, or is missing.
    """
    name = text_of(task[0])
    found: list[AttemptRecord] = []
    for row, stored in rows:
        try:
            matches = attempt_checksum(run, place, row) == stored
        except NONSENSE:
            matches = False
        if not matches:
            raise damaged(run_id, name)
        found.append(_attempt_of_row(row, run_id, name))
    if len(found) != task[10]:
        problem = f"it had {task[10]} attempts before its last one, and {len(found)} are there"
        raise DamagedRecordError(run_id, name, problem)
    return tuple(found)


def _attempt_of_row(row: Row, run_id: str, task_name: str) -> AttemptRecord:
    values: Any = row
    number, ready_at, started_at, finished_at, error, reason, abandoned = values
    try:
        return AttemptRecord(
            number,
            ready_at,
            started_at,
            finished_at,
            error,
            None if reason is None else Reason(reason),
            bool(abandoned),
        )
    except ValueError as problem:
        raise _senseless(run_id, task_name, problem) from None
