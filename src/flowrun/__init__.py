"""flowrun: an async DAG orchestrator to embed, made of the standard library alone.

Declare tasks and what they depend on, await a run, read its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowrun.config import SchedulerConfig
    from flowrun.context import Attempt, RunContext, current_attempt
    from flowrun.engine import DagScope, Engine, build_default_engine
    from flowrun.errors import (
        FlowrunError,
        NonRetryableError,
        RunCancelledError,
    )
    from flowrun.hooks import (
        DagEndEvent,
        DagStartEvent,
        RunHook,
        TaskFailureEvent,
        TaskRetryEvent,
        TaskSkipEvent,
        TaskStartEvent,
        TaskSuccessEvent,
        fn_hook,
    )
    from flowrun.policy import RetryPolicy
    from flowrun.processes import ProcessPerAttemptExecutor
    from flowrun.progress import ProgressHook
    from flowrun.registry import TaskRegistry, TaskTemplate, task, task_template
    from flowrun.report import AttemptReport, RunReport, TaskReport
    from flowrun.resume import PlannedTask, ResumePlan
    from flowrun.state.memory import InMemoryStateStore, StateStore
    from flowrun.state.pickle_serializer import PickleSerializer
    from flowrun.state.protocol import Change, RunQuery, StateStoreProtocol
    from flowrun.state.records import RunRecord, RunStatus, RunSummary, TaskRecord, TaskStatus
    from flowrun.state.serializers import JsonSerializer, ResultSerializer
    from flowrun.state.sqlite import SqliteStateStore
    from flowrun.task_spec import TaskSpec

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "AttemptReport",
    "Change",
    "DagEndEvent",
    "DagScope",
    "DagStartEvent",
    "Engine",
    "FlowrunError",
    "InMemoryStateStore",
    "JsonSerializer",
    "NonRetryableError",
    "PickleSerializer",
    "PlannedTask",
    "ProcessPerAttemptExecutor",
    "ProgressHook",
    "ResultSerializer",
    "ResumePlan",
    "RetryPolicy",
    "RunCancelledError",
    "RunContext",
    "RunHook",
    "RunQuery",
    "RunRecord",
    "RunReport",
    "RunStatus",
    "RunSummary",
    "SchedulerConfig",
    "SqliteStateStore",
    "StateStore",
    "StateStoreProtocol",
    "TaskFailureEvent",
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
    "build_default_engine",
    "current_attempt",
    "fn_hook",
    "task",
    "task_template",
]

# Everything is loaded when it is first asked for: a program that only looks at a file of runs
# needs no scheduler, and one that only declares tasks no SQLite, and importing costs nothing.
_HOMES = {
    "flowrun.config": ("SchedulerConfig",),
    "flowrun.context": (
        "Attempt",
        "RunContext",
        "current_attempt",
    ),
    "flowrun.engine": (
        "DagScope",
        "Engine",
        "build_default_engine",
    ),
    "flowrun.errors": (
        "FlowrunError",
        "NonRetryableError",
        "RunCancelledError",
    ),
    "flowrun.hooks": (
        "DagEndEvent",
        "DagStartEvent",
        "RunHook",
        "TaskFailureEvent",
        "TaskRetryEvent",
        "TaskSkipEvent",
        "TaskStartEvent",
        "TaskSuccessEvent",
        "fn_hook",
    ),
    "flowrun.policy": ("RetryPolicy",),
    "flowrun.processes": ("ProcessPerAttemptExecutor",),
    "flowrun.progress": ("ProgressHook",),
    "flowrun.registry": (
        "TaskRegistry",
        "TaskTemplate",
        "task",
        "task_template",
    ),
    "flowrun.report": (
        "AttemptReport",
        "RunReport",
        "TaskReport",
    ),
    "flowrun.resume": (
        "PlannedTask",
        "ResumePlan",
    ),
    "flowrun.state.memory": (
        "InMemoryStateStore",
        "StateStore",
    ),
    "flowrun.state.protocol": (
        "Change",
        "RunQuery",
        "StateStoreProtocol",
    ),
    "flowrun.state.records": (
        "RunRecord",
        "RunStatus",
        "RunSummary",
        "TaskRecord",
        "TaskStatus",
    ),
    "flowrun.state.pickle_serializer": ("PickleSerializer",),
    "flowrun.state.serializers": (
        "JsonSerializer",
        "ResultSerializer",
    ),
    "flowrun.state.sqlite": ("SqliteStateStore",),
    "flowrun.task_spec": ("TaskSpec",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - stands for each export
    """Load an export that is not loaded yet."""
    module = _HOME_OF.get(name)
    if module is None:
        msg = f"module 'flowrun' has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib  # noqa: PLC0415 - only here

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the exports that are not loaded yet, too."""
    return sorted({*globals(), *__all__})
