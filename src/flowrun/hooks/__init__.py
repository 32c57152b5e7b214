"""The events of a run, the hooks that handle them, and the dispatcher that delivers them."""

from flowrun.hooks.dispatcher import HookChannel, HookDispatcher
from flowrun.hooks.events import (
    EVENT_METHODS,
    DagEndEvent,
    DagStartEvent,
    Event,
    TaskFailureEvent,
    TaskOmitEvent,
    TaskProgressEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
)
from flowrun.hooks.hook import RunHook, checked_hooks, fn_hook

__all__ = [
    "EVENT_METHODS",
    "DagEndEvent",
    "DagStartEvent",
    "Event",
    "HookChannel",
    "HookDispatcher",
    "RunHook",
    "TaskFailureEvent",
    "TaskOmitEvent",
    "TaskProgressEvent",
    "TaskRetryEvent",
    "TaskSkipEvent",
    "TaskStartEvent",
    "TaskSuccessEvent",
    "checked_hooks",
    "fn_hook",
]
