"""The run report, made from a run's record: plain typed dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, TypedDict

from flowrun.failure import type_and_message
from flowrun.state import NoResult, Reason, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    progress: ProgressReport | None
    logs: list[LogLineReport]
    logs_cut: int


class ItemReport(TypedDict):
    """One item of a mapped task; its keys are those of a task."""

    item: int
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
    progress: ProgressReport | None


class TaskReport(TypedDict):
    """One task of a run.

    ``result`` is ``None`` unless ``result_state`` is ``"kept"``: ``"absent"`` means that
    there is none yet, ``"released"`` that it was released (``retain_result=False``), and
    ``"stored"`` that it is in the store and was not loaded.

    ``error_type`` names the class of the exception in ``error`` as its traceback does, and
    ``error_message`` is the first line of its message. Of a task that failed without an exception,
    was skipped or omitted, ``error_type`` is ``None``, and ``error_message`` says why.

    ``overridden`` says by what the task was overridden in this run: ``"value"`` or ``"function"``.

    ``progress`` is that of the last attempt, also while it runs.

    A mapped task has ``items``, one report for each item in their order, and ``item_counts``, their
    number by status; of other tasks both are ``None``. It has no attempt of its own: ``attempt`` is
    the highest of its items, and ``result`` the list of their results.
    """

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
    deps: list[str]
    attempts: list[AttemptReport]
    overridden: str | None
    progress: ProgressReport | None
    items: list[ItemReport] | None
    item_counts: dict[str, int] | None


class RunReport(TypedDict):
    """One run; ``tasks`` is in topological order.

    ``started_by`` is the id of the run whose task or hook started this one.
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


def build_report(run: RunRecord) -> RunReport:
    """Return the report of a run; later changes of the run do not change it."""
    return {
        "run_id": run.run_id,
        "dag_name": run.dag_name,
        "created_at": run.created_at,
        "finished_at": run.finished_at,
        "status": run.status.value,
        "tasks": {
            name: _task_report(task, run.overridden.get(name), run.items.get(name, ()))
            for name, task in run.tasks.items()
        },
        "error": run.error,
        "metadata": dict(run.metadata),
        "resumed_from": run.resumed_from,
        "targets": None if run.targets is None else list(run.targets),
        "started_by": run.started_by,
        "params": dict(run.params),
        "alive": run.alive,
    }


def _task_report(
    task: TaskRecord, overridden: str | None, items: Sequence[TaskRecord]
) -> TaskReport:
    is_mapped = task.items is not None
    counts = Counter(item.status.value for item in items)
    missing = (task.items or 0) - len(items)
    if missing > 0:  # nothing has happened to them
        counts["PENDING" if task.finished_at is None else "SKIPPED"] += missing
    result, state = _list_of(items) if task.result is NoResult.ITEMS else _result_of(task)
    error_type, message = _error_of(task)
    return {
        "status": task.status.value,
        "attempt": task.attempt,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "error": task.error,
        "error_type": error_type,
        "error_message": message,
        "result": result,
        "result_state": state,
        "reason": None if task.reason is None else task.reason.value,
        "ready_at": task.ready_at,
        "abandoned": task.abandoned,
        "deps": list(task.deps),
        "attempts": [_attempt_report(attempt) for attempt in task.attempts],
        "overridden": overridden,
        "items": [_item_report(item) for item in items] if is_mapped else None,
        "item_counts": dict(counts) if is_mapped else None,
        "progress": progress_report(task.notes),
    }


def progress_report(notes: AttemptNotes | None) -> ProgressReport | None:
    """Return what an attempt has said last of its progress."""
    if notes is None or notes.progress is None:
        return None
    done, total, unit = notes.progress
    return {"done": done, "total": total, "unit": unit}


def _item_report(task: TaskRecord) -> ItemReport:
    result, state = _result_of(task)
    error_type, message = _error_of(task)
    return {
        "item": task.item or 0,
        "status": task.status.value,
        "attempt": task.attempt,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "error": task.error,
        "error_type": error_type,
        "error_message": message,
        "result": result,
        "result_state": state,
        "reason": None if task.reason is None else task.reason.value,
        "ready_at": task.ready_at,
        "abandoned": task.abandoned,
        "attempts": [_attempt_report(attempt) for attempt in task.attempts],
        "progress": progress_report(task.notes),
    }


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
        "progress": progress_report(notes),
        "logs": [
            {"time": at, "level": level, "logger": logger, "text": text}
            for at, level, logger, text in lines
        ],
        "logs_cut": 0 if notes is None else notes.logs_cut,
    }
