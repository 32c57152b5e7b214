"""``RunHook`` and ``fn_hook``: the handlers that a user writes for the events of a run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flowrun.errors import close_match
from flowrun.hooks.events import EVENT_METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrun.hooks.events import (
        DagEndEvent,
        DagStartEvent,
        TaskFailureEvent,
        TaskOmitEvent,
        TaskProgressEvent,
        TaskRetryEvent,
        TaskSkipEvent,
        TaskStartEvent,
        TaskSuccessEvent,
    )


class RunHook:
    """Handle the events of a run: derive from this class and override the methods you need.

    The engine calls hooks on a separate thread, one event at a time, in the order of the run. A
    slow hook delays neither tasks nor timers. An exception in a hook is logged. A run ends only
    when all its events are delivered. The engine abandons a call that takes longer than
    ``hook_timeout_s``; that hook then gets no more events of the run.

    Example:
        >>> class Alerts(RunHook):
        ...     def on_task_failure(self, event: TaskFailureEvent) -> None:
        ...         print(f"{event.task_name}: {event.message}")
    """

    def on_dag_start(self, event: DagStartEvent) -> None:
        """Handle the start of a run."""

    def on_dag_end(self, event: DagEndEvent) -> None:
        """Handle the end of a run."""

    def on_task_start(self, event: TaskStartEvent) -> None:
        """Handle the start of an attempt."""

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """Handle a task's success."""

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        """Handle a task's final failure."""

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """Handle a failed attempt that another one follows."""

    def on_task_skip(self, event: TaskSkipEvent) -> None:
        """Handle a task that will not run because of a failure or the end of its run."""

    def on_task_omit(self, event: TaskOmitEvent) -> None:
        """Handle a task that has nothing to do in this run."""

    def on_task_progress(self, event: TaskProgressEvent) -> None:
        """Handle what a running task says of its progress."""


def fn_hook(**handlers: Callable[[Any], object] | None) -> RunHook:
    """Make a hook from functions.

    Args:
        **handlers: A function for each event that you want to handle: ``on_dag_start``,
            ``on_dag_end``, ``on_task_start``, ``on_task_success``, ``on_task_failure``,
            ``on_task_retry``, ``on_task_skip``, ``on_task_omit``, ``on_task_progress``. ``None``
            leaves an event out.

    Raises:
        TypeError: A name is not an event, or a handler cannot be called.

    Example:
        >>> hook = fn_hook(on_dag_end=lambda event: print(event.status))
    """
    known = EVENT_METHODS.values()
    given: dict[str, Callable[[Any], object]] = {}
    for name, handler in handlers.items():
        if name not in known:
            msg = f"unknown event {name!r}; known: {', '.join(known)}.{close_match(name, known)}"
            raise TypeError(msg)
        if handler is None:
            continue
        if not callable(handler):
            msg = f"the handler for {name!r} must be callable, not {type(handler).__name__}"
            raise TypeError(msg)
        given[name] = handler
    return _FunctionHook(given)


class _FunctionHook(RunHook):
    def __init__(self, handlers: dict[str, Callable[[Any], object]]) -> None:
        vars(self).update(handlers)


def checked_hooks(hooks: Sequence[RunHook]) -> tuple[RunHook, ...]:
    """Check hooks and return them."""
    if not isinstance(hooks, Iterable):
        msg = f"hooks= takes a list of RunHook objects, not {hooks!r}; write hooks=[...]"
        raise TypeError(msg)
    hooks = tuple(hooks)
    for hook in hooks:
        handlers = [getattr(hook, name, None) for name in EVENT_METHODS.values()]
        if any(map(inspect.iscoroutinefunction, handlers)):
            msg = (
                f"a handler of hook {hook!r} is an async function; the engine calls hooks on a"
                " separate thread and awaits nothing there: make it a plain function"
            )
            raise TypeError(msg)
        if isinstance(hook, type) or not any(map(callable, handlers)):
            msg = (
                f"hooks= takes RunHook objects, not {hook!r}; derive from RunHook, or use"
                " fn_hook(on_task_failure=...)"
            )
            raise TypeError(msg)
    return hooks
