"""The events of a run: small immutable tuples that hooks receive.

``timestamp`` is epoch seconds in every event. All fields but the ids have defaults, so that a
test can make an event with few arguments: ``TaskSuccessEvent("run", "dag", "task")``.

The items of a mapped task have events of their own: ``item`` is the item's number then, and else
``None``. A mapped task starts with ``attempt`` 0, as it has no attempt of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias


class DagStartEvent(NamedTuple):
    """A run has started."""

    run_id: str
    dag_name: str
    timestamp: float = 0.0
    task_names: tuple[str, ...] = ()
    resumed_from: str | None = None


class DagEndEvent(NamedTuple):
    """A run has ended.

    ``error`` is ``None``, unless something other than its tasks ended the run, such as a
    cancellation.
    """

    run_id: str
    dag_name: str
    timestamp: float = 0.0
    status: str = "SUCCESS"
    duration_s: float = 0.0
    error: str | None = None


class TaskStartEvent(NamedTuple):
    """An attempt has started."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    attempt: int = 1
    item: int | None = None


class TaskSuccessEvent(NamedTuple):
    """A task has succeeded, and the store has acknowledged it."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    attempt: int = 1
    duration_s: float = 0.0
    result: Any = None
    item: int | None = None


class TaskFailureEvent(NamedTuple):
    """A task has failed for good: no attempt follows.

    ``error`` is the text in the report, with the traceback; ``message`` is its main line.
    """

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    attempt: int = 1
    duration_s: float = 0.0
    error: str = ""
    message: str = ""
    reason: str = ""
    item: int | None = None


class TaskRetryEvent(NamedTuple):
    """Attempt number ``attempt`` has failed; ``next_attempt`` starts after ``delay_s``.

    ``max_attempts`` counts the first attempt and all retries.
    """

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    attempt: int = 1
    delay_s: float = 0.0
    error: str = ""
    message: str = ""
    next_attempt: int = 2
    max_attempts: int = 2
    item: int | None = None


class TaskSkipEvent(NamedTuple):
    """A task will not run; ``error`` gives the cause in words."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    reason: str = ""
    error: str = ""
    item: int | None = None


class TaskOmitEvent(NamedTuple):
    """A task has nothing to do in this run; ``error`` says why in words."""

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    reason: str = ""
    error: str = ""
    item: int | None = None


class TaskProgressEvent(NamedTuple):
    """An attempt has said how far it has come; at most ten events a second for each attempt.

    ``total`` is ``None`` if the attempt does not know it, and ``unit`` is what it counts.
    """

    run_id: str
    dag_name: str
    task_name: str
    timestamp: float = 0.0
    attempt: int = 1
    done: float = 0
    total: float | None = None
    unit: str = ""
    item: int | None = None


Event: TypeAlias = (
    DagStartEvent
    | DagEndEvent
    | TaskStartEvent
    | TaskSuccessEvent
    | TaskFailureEvent
    | TaskRetryEvent
    | TaskSkipEvent
    | TaskOmitEvent
    | TaskProgressEvent
)

EVENT_METHODS: dict[type[Any], str] = {
    DagStartEvent: "on_dag_start",
    DagEndEvent: "on_dag_end",
    TaskStartEvent: "on_task_start",
    TaskSuccessEvent: "on_task_success",
    TaskFailureEvent: "on_task_failure",
    TaskRetryEvent: "on_task_retry",
    TaskSkipEvent: "on_task_skip",
    TaskOmitEvent: "on_task_omit",
    TaskProgressEvent: "on_task_progress",
}
