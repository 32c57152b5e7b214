"""The run report, made from a run's record: plain typed dictionaries."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Literal, TypedDict

from flowrun.failure import type_and_message
from flowrun.state import NoResult, Reason, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrun.context import AttemptNotes
    from flowrun.state import AttemptRecord, RunRecord, TaskRecord

TaskStatusName = Literal["PENDING", "RUNNING", "SUCCESS", "FAILED", "SKIPPED", "OMITTED"]
ResultState = Literal["absent", "kept", "released", "stored"]
RunStatusName = Literal["SUCCESS", "FAILED", "RUNNING"]


class ProgressReport(TypedDict):
    """What an attempt has said last by ``progress()``."""

    done: float
    total: float | None
    unit: str


class LogLineReport(TypedDict):
    """What one call of the standard logging has emitted; ``time`` is epoch seconds."""

    time: float
    level: str
    logger: str
    text: str


class AttemptReport(TypedDict):
    """One attempt that has ended; times are epoch seconds.

    ``slot_wait_s`` is how long it was ready and had no slot, and ``limit_waits`` how long it waited
    for limits, by name. What is left until ``started_at`` it waited for a thread or for its turn on
    the event loop. ``slot_wait_s`` is ``None`` where a release before schema 7 has kept the run.
    ``logs`` is empty unless the engine keeps logs. ``logs_cut`` older lines were left out.
    """

    attempt: int
    status: Literal["SUCCESS", "FAILED", "OMITTED"]
    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    error: str | None
    reason: str | None
    abandoned: bool
    slot_wait_s: float | None
    limit_waits: dict[str, float]
    progress: ProgressReport | None
    logs: list[LogLineReport]
    logs_cut: int


class _UnitReport(TypedDict):
    """What a task and an item have in common; :class:`TaskReport` says what it means."""

    status: TaskStatusName
    attempt: int
    started_at: float | None
    finished_at: float | None
    error: str | None
    error_type: str | None
    error_message: str | None
    result: object
    result_state: ResultState
    reason: str | None
    ready_at: float | None
    abandoned: bool
    attempts: list[AttemptReport]
    cached_from: str | None
    kept: bool
    progress: ProgressReport | None


class ItemReport(_UnitReport):
    """One item of a mapped task; its keys are those of a task."""

    item: int


class TaskReport(_UnitReport):
    """One task of a run.

    ``result`` is ``None`` unless ``result_state`` is ``"kept"``: ``"absent"`` means that
    there is none yet, ``"released"`` that it was released (``retain_result=False``), and
    ``"stored"`` that it is in the store and was not loaded.

    ``error_type`` names the class of the exception in ``error`` as its traceback does, and
    ``error_message`` is the first line of its message. Of a task that failed without an exception,
    was skipped or omitted, ``error_type`` is ``None``, and ``error_message`` says why.

    ``overridden`` says by what the task was overridden in this run: ``"value"`` or ``"function"``.
    ``cached_from`` is the id of the run from which its result was taken by the cache.

    ``slot_wait_s`` and ``limit_waits`` are those of the last attempt. At ``encoded_at`` the result
    was ready to be saved. ``saving_s`` is the time from the task's end to its children becoming
    ready, in which its result is encoded and saved; of a task without children it is ``None``.
    ``why_run`` says why a resume ran the task; ``kept``, whether the resume took it over as it was.

    ``progress`` is that of the last attempt, also while it runs.

    A mapped task has ``items``, one report for each item in their order, and ``item_counts``, their
    number by status; of other tasks both are ``None``. It has no attempt of its own: ``attempt`` is
    the highest of its items, and ``result`` the list of their results.

    ``teardown_of`` names those of ``deps`` that the task tears down.
    """

    deps: list[str]
    overridden: str | None
    items: list[ItemReport] | None
    item_counts: dict[str, int] | None
    slot_wait_s: float | None
    limit_waits: dict[str, float]
    encoded_at: float | None
    saving_s: float | None
    why_run: str | None
    teardown_of: list[str]


class RunReport(TypedDict):
    """One run; ``tasks`` is in topological order.

    ``started_by`` is the id of the run whose task or hook started this one. ``max_parallel`` is how
    many of its tasks could run at once, and ``versions`` are those of flowrun and Python.
    """

    run_id: str
    dag_name: str
    created_at: float
    finished_at: float | None
    status: RunStatusName
    tasks: dict[str, TaskReport]
    error: str | None
    metadata: dict[str, object]
    resumed_from: str | None
    targets: list[str] | None
    started_by: str | None
    params: dict[str, object]
    alive: bool
    max_parallel: int | None
    versions: dict[str, str]


def build_report(run: RunRecord) -> RunReport:
    """Return the report of a run; later changes of the run do not change it."""
    is_kept = _kept_in(run)
    saving_s = _saving_s(run, is_kept)
    return {
        "run_id": run.run_id,
        "dag_name": run.dag_name,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "status": run.status.value,
        "tasks": {
            name: _task_report(run, task, saving_s.get(name), is_kept)
            for name, task in run.tasks.items()
        },
        "error": run.error,
        "metadata": dict(run.metadata),
        "resumed_from": run.resumed_from,
        "targets": None if run.targets is None else list(run.targets),
        "started_by": run.started_by,
        "params": dict(run.params),
        "alive": run.alive,
        "max_parallel": run.max_parallel,
        "versions": dict(run.versions),
    }


def _kept_in(run: RunRecord) -> Callable[[TaskRecord], bool]:
    """Return what says of a task or an item whether a resume has taken it over as it was."""
    if run.resumed_from is None:
        return lambda task: False  # noqa: ARG005
    if any(task.why_run for task in run.tasks.values()):
        return lambda task: task.why_run is None and task.status in _DONE

    def is_older(task: TaskRecord) -> bool:
        # A release before schema 7 has kept the run, or it had nothing to run.
        return task.status in _DONE and (task.finished_at or 0.0) < run.created_at

    return is_older


def _saving_s(run: RunRecord, is_kept: Callable[[TaskRecord], bool]) -> dict[str, float]:
    """Return how long the result of each task that has children was saved.

    A child is ready when the last of what it depends on is saved. Of the others it is only known
    how long their results were encoded.
    """
    found: dict[str, float] = {}
    ready: dict[str, float] = {}
    for task in run.tasks.values():
        parents = [run.tasks[name] for name in task.deps if name in run.tasks]
        for parent in parents:
            if parent.finished_at is not None and parent.status is TaskStatus.SUCCESS:
                encoded_at = parent.encoded_at or parent.finished_at
                found[parent.name] = encoded_at - parent.finished_at
        first = task.attempts[0] if task.attempts else task
        last = max(parents, key=lambda each: each.encoded_at or each.finished_at or 0, default=None)
        if last is None or first.ready_at is None or last.finished_at is None:
            continue
        if not is_kept(last):
            ready[last.name] = min(first.ready_at - last.finished_at, ready.get(last.name, inf))
    return {name: max(wait_s, ready.get(name, 0.0), 0.0) for name, wait_s in found.items()}


def _task_report(
    run: RunRecord, task: TaskRecord, saving_s: float | None, is_kept: Callable[[TaskRecord], bool]
) -> TaskReport:
    items = run.items.get(task.name, ())
    is_mapped = task.items is not None
    counts = Counter(item.status.value for item in items)
    missing = (task.items or 0) - len(items)
    if missing > 0:  # nothing has happened to them
        counts["PENDING" if task.finished_at is None else "SKIPPED"] += missing
    result = _list_of(items) if task.result is NoResult.ITEMS else _result_of(task)
    return {
        **_unit_report(task, result, is_kept),
        "deps": list(task.deps),
        "overridden": run.overridden.get(task.name),
        "items": [_item_report(item, is_kept) for item in items] if is_mapped else None,
        "item_counts": dict(counts) if is_mapped else None,
        **_waits(task),
        "encoded_at": task.encoded_at,
        "saving_s": saving_s,
        "why_run": task.why_run,
        "teardown_of": list(task.teardown_of),
    }


def _item_report(item: TaskRecord, is_kept: Callable[[TaskRecord], bool]) -> ItemReport:
    return {"item": item.item or 0, **_unit_report(item, _result_of(item), is_kept)}


def _unit_report(
    task: TaskRecord, result: tuple[object, ResultState], is_kept: Callable[[TaskRecord], bool]
) -> _UnitReport:
    error_type, message = _error_of(task)
    return {
        "status": task.status.value,
        "attempt": task.attempt,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "error": task.error,
        "error_type": error_type,
        "error_message": message,
        "result": result[0],
        "result_state": result[1],
        "reason": None if task.reason is None else task.reason.value,
        "ready_at": task.ready_at,
        "abandoned": task.abandoned,
        "attempts": [_attempt_report(attempt) for attempt in task.attempts],
        "cached_from": None if task.cache is None else task.cache.run_id,
        "kept": is_kept(task),
        "progress": progress_report(task.notes),
    }


class _Waits(TypedDict):
    slot_wait_s: float | None
    limit_waits: dict[str, float]


def _waits(attempt: TaskRecord | AttemptRecord) -> _Waits:
    """Return how long an attempt waited for its slot, and for each named limit."""
    limit_waits = dict(attempt.limit_waits)
    if attempt.granted_at is None or attempt.ready_at is None:
        return {"slot_wait_s": None, "limit_waits": limit_waits}
    wait_s = attempt.granted_at - attempt.ready_at - sum(limit_waits.values())
    return {"slot_wait_s": max(wait_s, 0.0), "limit_waits": limit_waits}


def progress_report(notes: AttemptNotes | None) -> ProgressReport | None:
    """Return what an attempt has said last of its progress."""
    if notes is None or notes.progress is None:
        return None
    done, total, unit = notes.progress
    return {"done": done, "total": total, "unit": unit}


def _error_of(task: TaskRecord) -> tuple[str | None, str | None]:
    """Return the type and the message of what has ended a task."""
    return (None, None) if task.error is None else type_and_message(task.error, task.reason)


def _result_of(task: TaskRecord) -> tuple[object, ResultState]:
    result = task.result
    return (None, _RESULT_STATES[result]) if type(result) is NoResult else (result, "kept")


def _list_of(items: Sequence[TaskRecord]) -> tuple[object, ResultState]:
    """Return the list of the results of the items that have succeeded, if all are there."""
    found = [_result_of(item) for item in items if item.status is TaskStatus.SUCCESS]
    for _, state in found:
        if state != "kept":
            return None, state
    return [result for result, _ in found], "kept"


_DONE = frozenset((TaskStatus.SUCCESS, TaskStatus.OMITTED))
_RESULT_STATES: dict[NoResult, ResultState] = {
    NoResult.ABSENT: "absent",
    NoResult.RELEASED: "released",
    NoResult.STORED: "stored",
}


_ATTEMPT_STATUSES: dict[Reason | None, Literal["SUCCESS", "OMITTED"]] = {
    None: "SUCCESS",
    Reason.SKIP_TASK: "OMITTED",
}


def _attempt_report(attempt: AttemptRecord) -> AttemptReport:
    notes = attempt.notes
    lines = () if notes is None else notes.logs
    return {
        "attempt": attempt.number,
        "status": _ATTEMPT_STATUSES.get(attempt.reason, "FAILED"),
        "ready_at": attempt.ready_at,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "error": attempt.error,
        "reason": None if attempt.reason is None else attempt.reason.value,
        "abandoned": attempt.abandoned,
        **_waits(attempt),
        "progress": progress_report(notes),
        "logs": [
            {"time": at, "level": level, "logger": logger, "text": text}
            for at, level, logger, text in lines
        ],
        "logs_cut": 0 if notes is None else notes.logs_cut,
    }
