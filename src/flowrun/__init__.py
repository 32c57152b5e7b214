"""flowrun: an async DAG orchestrator to embed, made of the standard library alone.

Declare tasks and what they depend on, await a run, read its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports as _lazy_exports

if TYPE_CHECKING:
    from flowrun.config import Limit, Rate, SchedulerConfig
    from flowrun.context import Attempt, RunContext, current_attempt
    from flowrun.dag_scope import DagScope
    from flowrun.engine import Engine, build_default_engine
    from flowrun.errors import (
        FlowrunError,
        NonRetryableError,
        RetryAfter,
        RunCancelledError,
        RunFailedError,
        SkipTask,
    )
    from flowrun.executors import ProcessPerAttemptExecutor
    from flowrun.hooks import (
        DagEndEvent,
        DagStartEvent,
        RunHook,
        TaskFailureEvent,
        TaskOmitEvent,
        TaskProgressEvent,
        TaskRetryEvent,
        TaskSkipEvent,
        TaskStartEvent,
        TaskSuccessEvent,
        fn_hook,
    )
    from flowrun.policy import RetryPolicy
    from flowrun.registry import (
        Cache,
        Param,
        TaskRegistry,
        TaskSpec,
        TaskTemplate,
        TriggerRule,
        task,
        task_template,
    )
    from flowrun.render import Explanation, ProgressHook, TimePart
    from flowrun.report import AttemptReport, RunReport, TaskReport
    from flowrun.scheduler import PlannedTask, ResumePlan, RunHandle, RunOptions
    from flowrun.state import (
        Change,
        InMemoryStateStore,
        JsonSerializer,
        PickleSerializer,
        ResultSerializer,
        RunQuery,
        RunRecord,
        RunStatus,
        RunSummary,
        SqliteStateStore,
        StateStore,
        StateStoreProtocol,
        TaskRecord,
        TaskStatus,
    )

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "AttemptReport",
    "Cache",
    "Change",
    "DagEndEvent",
    "DagScope",
    "DagStartEvent",
    "Engine",
    "Explanation",
    "FlowrunError",
    "InMemoryStateStore",
    "JsonSerializer",
    "Limit",
    "NonRetryableError",
    "Param",
    "PickleSerializer",
    "PlannedTask",
    "ProcessPerAttemptExecutor",
    "ProgressHook",
    "Rate",
    "ResultSerializer",
    "ResumePlan",
    "RetryAfter",
    "RetryPolicy",
    "RunCancelledError",
    "RunContext",
    "RunFailedError",
    "RunHandle",
    "RunHook",
    "RunOptions",
    "RunQuery",
    "RunRecord",
    "RunReport",
    "RunStatus",
    "RunSummary",
    "SchedulerConfig",
    "SkipTask",
    "SqliteStateStore",
    "StateStore",
    "StateStoreProtocol",
    "TaskFailureEvent",
    "TaskOmitEvent",
    "TaskProgressEvent",
    "TaskRecord",
    "TaskRegistry",
    "TaskReport",
    "TaskRetryEvent",
    "TaskSkipEvent",
    "TaskSpec",
    "TaskStartEvent",
    "TaskStatus",
    "TaskSuccessEvent",
    "TaskTemplate",
    "TimePart",
    "TriggerRule",
    "build_default_engine",
    "current_attempt",
    "fn_hook",
    "task",
    "task_template",
]

# Everything is loaded when it is first asked for: a program that only looks at a file of runs
# needs no scheduler, and one that only declares tasks no SQLite, and importing costs nothing.
_HOMES = {
    "flowrun.config": ("Limit", "Rate", "SchedulerConfig"),
    "flowrun.context": ("Attempt", "RunContext", "current_attempt"),
    "flowrun.dag_scope": ("DagScope",),
    "flowrun.engine": ("Engine", "build_default_engine"),
    "flowrun.errors": (
        "FlowrunError",
        "NonRetryableError",
        "RetryAfter",
        "RunCancelledError",
        "RunFailedError",
        "SkipTask",
    ),
    "flowrun.executors": ("ProcessPerAttemptExecutor",),
    "flowrun.hooks": (
        "DagEndEvent",
        "DagStartEvent",
        "RunHook",
        "TaskFailureEvent",
        "TaskRetryEvent",
        "TaskOmitEvent",
        "TaskProgressEvent",
        "TaskSkipEvent",
        "TaskStartEvent",
        "TaskSuccessEvent",
        "fn_hook",
    ),
    "flowrun.policy": ("RetryPolicy",),
    "flowrun.registry": (
        "Cache",
        "Param",
        "TaskRegistry",
        "TaskSpec",
        "TaskTemplate",
        "TriggerRule",
        "task",
        "task_template",
    ),
    "flowrun.render": ("Explanation", "ProgressHook", "TimePart"),
    "flowrun.report": ("AttemptReport", "RunReport", "TaskReport"),
    "flowrun.scheduler": ("PlannedTask", "ResumePlan", "RunHandle", "RunOptions"),
    "flowrun.state": (
        "Change",
        "InMemoryStateStore",
        "JsonSerializer",
        "PickleSerializer",
        "ResultSerializer",
        "RunQuery",
        "RunRecord",
        "RunStatus",
        "RunSummary",
        "SqliteStateStore",
        "StateStore",
        "StateStoreProtocol",
        "TaskRecord",
        "TaskStatus",
    ),
}

__getattr__ = _lazy_exports(__name__, _HOMES)


def __dir__() -> list[str]:
    """List the exports that are not loaded yet, too."""
    return sorted({*globals(), *__all__})
