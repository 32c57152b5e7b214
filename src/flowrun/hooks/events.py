"""What happens in a run, as hooks see it: small immutable events."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias


class DagStartEvent(NamedTuple):
    """A run has begun. ``timestamp`` is epoch seconds, here and in every event."""

    run_id: str
    dag_name: str
    timestamp: float
    task_names: tuple[str, ...]
    resumed_from: str | None


class DagEndEvent(NamedTuple):
    """A run has ended; ``error`` says what ended it from outside its tasks, if anything."""

    run_id: str
    dag_name: str
    timestamp: float
    status: str
    duration_s: float
    error: str | None


class TaskStartEvent(NamedTuple):
    """An attempt begins."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float
    attempt: int


class TaskSuccessEvent(NamedTuple):
    """A task has succeeded, and the store has acknowledged it."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float
    attempt: int
    duration_s: float


class TaskFailureEvent(NamedTuple):
    """A task has failed for good.

    ``error`` is the text that the report keeps, with the traceback; ``message`` its own line.
    """

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float
    attempt: int
    duration_s: float
    error: str
    message: str
    reason: str


class TaskRetryEvent(NamedTuple):
    """Attempt number ``attempt`` has failed; another one follows after ``delay_s``."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float
    attempt: int
    delay_s: float
    error: str
    message: str


class TaskSkipEvent(NamedTuple):
    """A task will not run; ``error`` says why in words."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float
    reason: str
    error: str


Event: TypeAlias = (
    DagStartEvent
    | DagEndEvent
    | TaskStartEvent
    | TaskSuccessEvent
    | TaskFailureEvent
    | TaskRetryEvent
    | TaskSkipEvent
)

EVENT_METHODS: dict[type[Any], str] = {
    DagStartEvent: "on_dag_start",
    DagEndEvent: "on_dag_end",
    TaskStartEvent: "on_task_start",
    TaskSuccessEvent: "on_task_success",
    TaskFailureEvent: "on_task_failure",
    TaskRetryEvent: "on_task_retry",
    TaskSkipEvent: "on_task_skip",
}
