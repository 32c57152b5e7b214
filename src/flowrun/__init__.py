"""flowrun: an async DAG orchestrator to embed, made of the standard library alone.

Declare tasks and what they depend on, await a run, read its report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from flowrun.registry import TaskRegistry, TaskSpec, TaskTemplate, task, task_template
from flowrun.report import AttemptReport, RunReport, TaskReport
from flowrun.resume import PlannedTask, ResumePlan
from flowrun.state.memory import InMemoryStateStore, StateStore
from flowrun.state.protocol import Change, RunQuery, StateStoreProtocol
from flowrun.state.records import RunRecord, RunStatus, RunSummary, TaskRecord, TaskStatus

if TYPE_CHECKING:
    from flowrun.processes import ProcessPerAttemptExecutor
    from flowrun.progress import ProgressHook
    from flowrun.state.serializers import JsonSerializer, PickleSerializer, ResultSerializer
    from flowrun.state.sqlite import SqliteStateStore

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

# What needs sqlite3, json, pickle or multiprocessing is loaded when it is first asked for:
# most programs use one of them or none, and importing flowrun should cost nothing.
_LAZY = {
    "JsonSerializer": "flowrun.state.serializers",
    "PickleSerializer": "flowrun.state.serializers",
    "ProcessPerAttemptExecutor": "flowrun.processes",
    "ProgressHook": "flowrun.progress",
    "ResultSerializer": "flowrun.state.serializers",
    "SqliteStateStore": "flowrun.state.sqlite",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - stands for each lazy export
    """Load an export that is not loaded yet."""
    module = _LAZY.get(name)
    if module is None:
        msg = f"module 'flowrun' has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib  # noqa: PLC0415 - only here

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the lazy exports too."""
    return sorted({*globals(), *__all__})
