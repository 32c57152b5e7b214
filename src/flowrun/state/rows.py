"""Records to rows of the SQLite store and back; each row has a checksum over its columns (D7).

A row that does not match its checksum, or makes no sense, is an error that names run and task.
"""

from __future__ import annotations

import json
import struct
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, cast

from flowrun.context import AttemptNotes, LogLine, Progress
from flowrun.errors import DamagedRecordError
from flowrun.state.checksums import (
    NO_EARLIER,
    TASK_EARLIER,
    TASK_MAPPING,
    TASK_TIMES,
    Row,
    attempt_checksum,
    checksum,
    run_checksum,
    task_checksum,
    task_checksum_with,
)
from flowrun.state.protocol import CacheEntry
from flowrun.state.records import AttemptRecord, Cached, NoResult, Reason, TaskRecord, TaskStatus
from flowrun.state.run_records import RunRecord, run_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flowrun.state.records import LimitWaits
    from flowrun.state.run_records import RunSummary

RUN_COLUMNS = (
    "run_id, dag_name, created_at, finished_at, status, error, metadata, resumed_from, targets,"
    " owner, task_counts, started_by, params, overridden, made_by"
)
TASK_COLUMNS = (
    "name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, abandoned,"
    " earlier_attempts, result_state, item, item_key, items, granted_at, limit_waits, encoded_at,"
    " why_run"
)
ATTEMPT_COLUMNS = (
    "number, ready_at, started_at, finished_at, error, reason, abandoned, granted_at, limit_waits"
)
CACHED_COLUMNS = "run, place, key, source, finished_at"

_FINISHED_AT, _COUNTS, _STARTED_BY = 3, 10, 11  # of a run's row
_STATE = 11  # of a task's row

_RUN_END = RUN_COLUMNS.count(",") + 2  # in a row of several tables, each with its checksum
_TASK_END = _RUN_END + TASK_COLUMNS.count(",") + 2

_NONSENSE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    struct.error,
)  # what a row raises whose checksum is right, but which flowrun cannot have written
_RESULT_STATES = {state: state.value for state in NoResult}


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
        json.dumps(dict(run.params)) if run.params else None,
        json.dumps(dict(run.overridden)) if run.overridden else None,
        _made_by(run),
    )


def _made_by(run: RunRecord) -> str | None:
    """Return, as JSON, how many tasks could run at once, and the versions."""
    if run.max_parallel is None and not run.versions:
        return None
    return json.dumps([run.max_parallel, dict(run.versions)])


def task_row(run: int, place: int, task: TaskRecord, deps: str) -> Row:
    """Return where a task's row stands, its values in the order of ``TASK_COLUMNS``, a checksum."""
    name, _, status, attempt, ready_at, started_at, finished_at = task[:7]
    error, reason, abandoned, result, earlier, *mapping = task[7:15]
    granted_at, waits, encoded_at, why = task[16:20]
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
        _RESULT_STATES[result if type(result) is NoResult else NoResult.STORED],
        *mapping,
        _real(granted_at),
        json.dumps(waits) if waits else None,
        _real(encoded_at),
        why,
    )
    return run, place, *row, task_checksum(run, place, row)


def attempt_row(run: int, place: int, attempt: AttemptRecord) -> Row:
    """Return where an attempt's row stands, its ``ATTEMPT_COLUMNS``, and a checksum."""
    number, ready_at, started_at, finished_at, error, reason, abandoned, granted_at = attempt[:8]
    waits = attempt.limit_waits
    times = (_real(ready_at), _real(started_at), _real(finished_at))
    row = (
        *(number, *times, error, None if reason is None else str(reason), int(abandoned)),
        _real(granted_at),
        json.dumps(waits) if waits else None,
    )
    return run, place, *row, attempt_checksum(run, place, row)


def cached_row(run: int, place: int, cache: Cached, finished_at: float | None) -> Row:
    """Return where a task's row in the cache stands, its ``CACHED_COLUMNS``, and a checksum."""
    row = (run, place, *cache, _real(finished_at))
    return *row, checksum(row)


def cached_of_row(row: Row, stored: object, run_id: str, task_name: str) -> Cached:
    """Return what a task has to do with the cache; the row begins with where it stands."""
    if checksum(row) != stored:
        raise _damaged(run_id, task_name)
    return Cached(*row[2:4])


def entry_of_row(row: Row) -> CacheEntry:
    """Return the entry that the rows of a run, of a task and of the cache make together."""
    run, task, cached = row[:_RUN_END], row[_RUN_END:_TASK_END], row[_TASK_END:]
    check_run_row(run[:-1], run[-1])
    run_id, dag_name = run[:2]
    check_task_row(task[:-1], task[-1], cached[0], cached[1], run_id)
    cached_of_row(cached[:-1], cached[-1], run_id, task[0])
    return CacheEntry(run_id, dag_name, task[0], cached[-2])


def notes_row(run: int, place: int, number: int, notes: AttemptNotes) -> Row:
    """Return where the row of an attempt's notes stands, the notes as JSON, and a checksum."""
    row = (run, place, number, json.dumps(notes))
    return *row, checksum(row)


def with_notes(
    task: TaskRecord, rows: Mapping[Any, Row], run: int, place: int, run_id: str
) -> TaskRecord:
    """Return a task with the notes of its attempts, whose rows are given by number."""
    found: dict[int, AttemptNotes] = {}
    for number, (text, stored) in rows.items():
        if checksum((run, place, number, text)) != stored:
            raise _damaged(run_id, task.name)
        try:
            if not 0 < number <= task.attempt:
                msg = f"there is no attempt {number}"
                raise ValueError(msg)
            progress, logs, logs_cut = json.loads(text)
            lines = tuple([LogLine(*line) for line in logs])
            found[number] = AttemptNotes(progress and Progress(*progress), lines, int(logs_cut))
        except _NONSENSE as problem:
            raise _senseless(run_id, task.name, problem) from None
    earlier = tuple([each._replace(notes=found.get(each.number)) for each in task.earlier])
    return task._replace(notes=found.get(task.attempt), earlier=earlier)


def plan_of(tasks: Mapping[str, TaskRecord]) -> tuple[str, list[str]]:
    """Return the tasks and their dependencies as JSON: all together, and those of each.

    The text is what ``json.dumps`` would write, in a third of the time.
    """
    names = map(encode_basestring_ascii, tasks)
    deps = [
        _deps_of_teardown(task)
        if task.teardown_of
        else f"[{', '.join(map(encode_basestring_ascii, task.deps))}]"
        if task.deps
        else "[]"
        for task in tasks.values()
    ]
    pairs = [f"[{name}, {each}]" for name, each in zip(names, deps, strict=True)]
    return f"[{', '.join(pairs)}]", deps


def _deps_of_teardown(task: TaskRecord) -> str:
    return json.dumps({"deps": task.deps, "teardown_of": task.teardown_of})


def _deps_of(found: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:  # noqa: ANN401 - JSON
    """Return the dependencies of a task, and those that it tears down."""
    if isinstance(found, dict):
        both = cast("dict[str, list[str]]", found)
        return tuple(both["deps"]), tuple(both["teardown_of"])
    return tuple(found), ()


def _real(value: float | None) -> float | None:
    """Return what a REAL column gives back: the checksum is made of that."""
    return None if value is None else float(value)


def text_of(value: object) -> str:
    """Return the text of a value that should be one, however it is damaged."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def check_run_row(row: Row, stored: object) -> None:
    """Raise an error if a run's row does not match the checksum that was stored with it."""
    if run_checksum(row) != stored:
        raise _damaged(text_of(row[0]), None)


def check_task_row(row: Row, stored: object, run: int, place: int, run_id: str) -> None:
    """Raise an error if a task's row does not match the checksum that was stored with it."""
    # Before schema 3 a checksum was made of the values' text, whatever their place.
    if not _matches(task_checksum, run, place, row, stored) and (
        type(row[TASK_EARLIER]) is not int
        or row[TASK_EARLIER]
        or checksum((*row[:TASK_EARLIER], NO_EARLIER, row[_STATE])) != stored
    ):
        raise _damaged(run_id, text_of(row[0]))


def _matches(
    checksum_of: Callable[[int, int, Row], int], run: int, place: int, row: Row, stored: object
) -> bool:
    try:
        return checksum_of(run, place, row) == stored
    except _NONSENSE:
        return False


def _damaged(run_id: str, task_name: str | None) -> DamagedRecordError:
    """Return the error of a row that does not match its checksum."""
    problem = (
        "it does not match its checksum; the file was damaged after it was written. The"
        " other records can still be read; restore this one from a backup"
    )
    return DamagedRecordError(run_id, task_name, problem)


def _senseless(run_id: object, task_name: str | None, error: Exception) -> DamagedRecordError:
    """Return the error of a row whose checksum is right and whose values are not."""
    problem = (
        f"its values make no sense ({type(error).__name__}); another program, or a newer"
        " flowrun, has changed it. Restore it from a backup"
    )
    return DamagedRecordError(text_of(run_id), task_name, problem)


def tasks_of_plan(row: Row, run_id: str) -> list[TaskRecord]:
    """Return the tasks of a run as they were before anything happened to them."""
    plan, stored = row
    if checksum((plan,)) != stored:
        raise _damaged(run_id, None)
    try:
        planned = [(str(name), *_deps_of(deps)) for name, deps in json.loads(str(plan))]
    except _NONSENSE as error:
        raise _senseless(run_id, None, error) from None
    return [TaskRecord(name, deps, teardown_of=setups) for name, deps, setups in planned]


def counts_of_row(row: Row, changed: str | None = None) -> dict[str, int]:
    """Return the number of tasks by status of a checked run.

    Args:
        row: The run's row; it is written when the run is created, and when it ends.
        changed: For a run that has not ended, what the rows of its tasks say:
            ``"SUCCESS=2,FAILED=1"``. A task to which nothing has happened has no row.
    """
    try:
        counts = {TaskStatus(name).value: int(n) for name, n in json.loads(row[_COUNTS]).items()}
    except _NONSENSE as error:
        raise _senseless(row[0], None, error) from None
    if changed is None:
        return counts
    try:
        pairs = [pair.split("=") for pair in changed.split(",")]
        found = {TaskStatus(status).value: int(number) for status, number in pairs}
    except ValueError:
        raise _damaged(row[0], None) from None
    untouched = sum(counts.values()) - sum(found.values())
    if untouched > 0:
        pending = TaskStatus.PENDING.value
        found[pending] = found.get(pending, 0) + untouched
    return found


_TEXT = (str, type(None))
_RUN_TYPES: tuple[type | tuple[type, ...], ...] = (
    *(str, str, float, (float, type(None)), str, _TEXT),
    *(str, _TEXT, _TEXT, (int, type(None)), str, _TEXT, _TEXT, _TEXT, _TEXT),
)


def run_of_row(row: Row, tasks: Mapping[str, TaskRecord], *, alive: bool) -> RunRecord:
    """Return the run that a checked row holds."""
    run_id, dag_name, created_at, finished_at, _, error, metadata, ancestor, targets = row[:9]
    started_by, params, overridden, made_by = row[_STARTED_BY:]
    try:
        if not all(map(isinstance, row, _RUN_TYPES)):
            msg = "a value is of another type"
            raise TypeError(msg)
        max_parallel, versions = json.loads(made_by or "[null, {}]")
        return RunRecord(
            run_id,
            dag_name,
            created_at,
            tasks,
            metadata=dict(json.loads(metadata)),
            resumed_from=ancestor,
            targets=None if targets is None else tuple(json.loads(targets)),
            started_by=started_by,
            params=dict(json.loads(params or "{}")),
            overridden=dict(json.loads(overridden or "{}")),
            max_parallel=max_parallel,
            versions=dict(versions),
            finished_at=finished_at,
            error=error,
            alive=alive,
        )
    except _NONSENSE as problem:
        raise _senseless(run_id, None, problem) from None


def summary_of_row(row: Row, changed: str | None, *, alive: bool) -> RunSummary:
    """Return the line that a list of runs shows of a checked row; see :func:`counts_of_row`."""
    counts = counts_of_row(row, changed)
    summary = run_of_row(row, {}, alive=alive).summary()
    return summary._replace(status=run_status(counts), task_counts=counts)


def task_of_rows(  # noqa: PLR0913 - what the checksums are made of
    row: Row, stored: object, attempts: list[Row], run: int, place: int, run_id: str
) -> TaskRecord:
    """Return the task that a row holds, its result not yet read.

    Args:
        row: The task's values.
        stored: The checksum that was stored with them.
        attempts: The rows of its earlier attempts, each with its checksum.
        run: Where the task's row stands, as ``place``.
        place: Where in the run.
        run_id: The run, for the message.
    """
    check_task_row(row, stored, run, place, run_id)
    task_name = text_of(row[0])
    name, deps, status, attempt, ready_at, started_at, finished_at = row[:7]
    error, reason, abandoned, number, state, item, key, items = row[7:TASK_TIMES]
    granted_at, limit_waits, encoded_at, why_run = row[TASK_TIMES:]
    for *values, told in attempts:
        if not _matches(attempt_checksum, run, place, tuple(values), told):
            raise _damaged(run_id, task_name)
    if len(attempts) != number:
        problem = f"it had {number} attempts before its last one, and {len(attempts)} are there"
        raise DamagedRecordError(run_id, task_name, problem)
    try:
        deps, setups = _deps_of(json.loads(deps))
        task = TaskRecord(
            name,
            deps,
            TaskStatus(status),
            attempt,
            ready_at,
            started_at,
            finished_at,
            error,
            _reason(reason),
            bool(abandoned),
            NoResult(state),
            tuple([_attempt(values) for *values, _ in attempts]) if attempts else (),
            item,
            key,
            items,
            None,
            granted_at,
            _waits(limit_waits),
            encoded_at,
            why_run,
        )
    except _NONSENSE as problem:
        raise _senseless(run_id, task_name, problem) from None
    return task._replace(teardown_of=setups) if setups else task


def _attempt(values: Iterable[Any]) -> AttemptRecord:
    number, ready_at, started_at, finished_at, error, reason, abandoned, *more = values
    granted_at, limit_waits = more or (None, None)
    times = (ready_at, started_at, finished_at)
    waits = _waits(limit_waits)
    return AttemptRecord(number, *times, error, _reason(reason), bool(abandoned), granted_at, waits)


def _waits(limit_waits: str | None) -> LimitWaits:
    if limit_waits is None:
        return ()
    return tuple([(str(name), float(wait_s)) for name, wait_s in json.loads(limit_waits)])


def _reason(value: str | None) -> Reason | None:
    return None if value is None else Reason(value)


def renewed(row: Row, stored: object, run: int, place: int) -> tuple[Row, object, list[Row]]:
    """Return a task's row of schema 1 to 3, which has its earlier attempts as JSON, as of schema 4.

    Used when a file is migrated, and when one is read that may not be migrated.

    Returns:
        The task's values and their checksum, and the rows of its earlier attempts, each with a
        checksum. A damaged row stays one: it does not match its checksum afterwards either.
    """
    earlier = row[TASK_EARLIER]
    if earlier == NO_EARLIER:
        return (*row[:TASK_EARLIER], 0, *row[_STATE:]), stored, []
    try:
        if stored in (task_checksum_with(run, place, row, earlier), checksum(row[:TASK_MAPPING])):
            found = [attempt_row(run, place, _attempt(each)) for each in json.loads(earlier)]
            attempts = list({number: (number, *rest) for _, _, number, *rest in found}.values())
            new = (*row[:TASK_EARLIER], len(attempts), *row[_STATE:])
            return new, task_checksum(run, place, new), attempts
    except _NONSENSE:
        pass
    return (*row[:TASK_EARLIER], -1, *row[_STATE:]), stored, []
