"""Records -> rows of the SQLite store, each with a checksum over all of its columns (D7)."""

from __future__ import annotations

import json
import struct
import zlib
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.state.records import NoResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrun.state.records import AttemptRecord, RunRecord, TaskRecord

Row: TypeAlias = tuple[object, ...]

RUN_COLUMNS = (
    "run_id, dag_name, created_at, finished_at, status, error, metadata, resumed_from, targets,"
    " owner, task_counts, started_by"
)
TASK_COLUMNS = (
    "name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, abandoned,"
    " earlier_attempts, result_state"
)
ATTEMPT_COLUMNS = "number, ready_at, started_at, finished_at, error, reason, abandoned"

_crc32 = zlib.crc32
_packed = struct.Struct("<qqqqddd").pack
_NAN = float("nan")
_NULL = "\1"
_NO_EARLIER = "[]"


def checksum(row: Row) -> int:
    """Return the CRC-32 of a row's values."""
    return _crc32(repr(row).encode("utf-8", "surrogatepass"))


def run_checksum(row: Row) -> int:
    """Return the CRC-32 of a run's values.

    Without ``started_by``, the last of them, where it is NULL: then the checksum of a row that
    was written before schema 4 is still right.
    """
    return checksum(row if row[-1] is not None else row[:-1])


def task_checksum(run: int, place: int, row: Row) -> int:
    """Return the CRC-32 of a task's values, and of where they stand.

    Raises:
        TypeError: A value is of a type that flowrun does not write.
        ValueError: A value is out of its range.
        struct.error: As for ``TypeError``.
    """
    earlier = row[10]
    if type(earlier) is not int:
        msg = f"earlier_attempts is {earlier!r}"
        raise TypeError(msg)
    # Before schema 4 the earlier attempts stood here as JSON. The text of an empty list stays,
    # so that the checksums of most rows are still right.
    return task_checksum_with(run, place, row, str(earlier) if earlier else _NO_EARLIER)


def task_checksum_with(run: int, place: int, row: Row, earlier: str) -> int:
    """Return the checksum of a task's row with this text in the place of its earlier attempts.

    Raises:
        TypeError: A value is of a type that flowrun does not write.
        struct.error: The same.
    """
    values: Any = row
    name, deps, status, attempt, ready_at, started_at, finished_at = values[:7]
    error, reason, abandoned, _, result_state = values[7:]
    # Numbers as they are in memory: to write floats as text would take longer than all the rest.
    # NaN stands for NULL, as SQLite makes NULL of NaN.
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
    return _crc(numbers, [name, deps, status, error, reason, earlier, result_state])


def attempt_checksum(run: int, place: int, row: Row) -> int:
    """Return the CRC-32 of an attempt's values, and of where they stand.

    Raises:
        TypeError: A value is of a type that flowrun does not write.
        struct.error: The same.
    """
    values: Any = row
    number, ready_at, started_at, finished_at, error, reason, abandoned = values
    times = [_NAN if moment is None else moment for moment in (ready_at, started_at, finished_at)]
    numbers = _packed(run, place, number, abandoned, *times)
    return _crc(numbers, [_NULL if text is None else text for text in (error, reason)])


def _crc(numbers: bytes, texts: list[str]) -> int:
    return _crc32("\0".join(texts).encode("utf-8", "surrogatepass"), _crc32(numbers))


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
        json.dumps(summary.metadata),
        run.resumed_from,
        None if run.targets is None else json.dumps(run.targets),
        owner,
        json.dumps(summary.task_counts),
        run.started_by,
    )


def task_row(run: int, place: int, task: TaskRecord, deps: str) -> Row:
    """Return where a task's row stands, its values in the order of ``TASK_COLUMNS``, a checksum.

    Args:
        run: Where its row stands: the run's number.
        place: The task's place in the run.
        task: The task.
        deps: Its dependencies as JSON.
    """
    name, _, status, attempt, ready_at, started_at, finished_at = task[:7]
    error, reason, abandoned, result, earlier = task[7:]
    state = result if type(result) is NoResult else NoResult.STORED
    row = (
        name,
        deps,
        str(status),
        attempt,
        _real(ready_at),
        _real(started_at),
        _real(finished_at),
        error,
        None if reason is None else str(reason),
        int(abandoned),
        len(earlier),
        _RESULT_STATES[state],
    )
    return run, place, *row, task_checksum(run, place, row)


_RESULT_STATES = {state: state.value for state in NoResult}


def attempt_row(attempt: AttemptRecord) -> Row:
    """Return an attempt's values, in the order of ``ATTEMPT_COLUMNS``."""
    return (
        attempt.number,
        _real(attempt.ready_at),
        _real(attempt.started_at),
        _real(attempt.finished_at),
        attempt.error,
        None if attempt.reason is None else str(attempt.reason),
        int(attempt.abandoned),
    )


def plan_of(tasks: Mapping[str, TaskRecord]) -> tuple[str, list[str]]:
    """Return the tasks and their dependencies as JSON: all together, and those of each.

    The text is what ``json.dumps`` would write, in a third of the time.
    """
    names = map(encode_basestring_ascii, tasks)
    deps = [
        f"[{', '.join(map(encode_basestring_ascii, task.deps))}]" if task.deps else "[]"
        for task in tasks.values()
    ]
    pairs = [f"[{name}, {each}]" for name, each in zip(names, deps, strict=True)]
    return f"[{', '.join(pairs)}]", deps


def _real(value: float | None) -> float | None:
    """Return what a REAL column gives back: the checksum is made of that."""
    return None if value is None else float(value)
