"""Hooks that are made from functions, and events that a test makes itself."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

import pytest

from flowrun import RunHook, fn_hook
from flowrun.errors import ExecutorError
from flowrun.executors import WorkerThreads
from flowrun.hooks import (
    EVENT_METHODS,
    DagEndEvent,
    DagStartEvent,
    HookDispatcher,
    TaskFailureEvent,
    TaskRetryEvent,
    TaskSkipEvent,
    TaskStartEvent,
    TaskSuccessEvent,
    checked_hooks,
)


@pytest.mark.parametrize("kind", EVENT_METHODS)
def test_event_can_be_made_of_its_ids_alone(kind: Any) -> None:
    ids = ("run", "dag", "task") if "task_name" in kind._fields else ("run", "dag")
    event = kind(*ids)
    assert tuple(event[: len(ids)]) == ids
    assert event.timestamp == 0.0
    assert set(kind._field_defaults) == set(kind._fields[len(ids) :])


def test_fields_keep_their_places() -> None:
    assert DagStartEvent._fields[2:] == ("timestamp", "task_names", "resumed_from")
    assert DagEndEvent._fields[2:] == ("timestamp", "status", "duration_s", "error")
    assert TaskStartEvent._fields[3:] == ("timestamp", "attempt", "item")
    assert TaskSuccessEvent._fields[3:] == ("timestamp", "attempt", "duration_s", "result", "item")
    assert TaskSkipEvent._fields[3:] == ("timestamp", "reason", "error", "item")
    failed = ("timestamp", "attempt", "duration_s", "error", "message", "reason", "item")
    assert TaskFailureEvent._fields[3:] == failed
    assert TaskRetryEvent._fields[3:] == (
        *("timestamp", "attempt", "delay_s", "error", "message"),
        *("next_attempt", "max_attempts", "item"),
    )


def test_handler_can_be_tested_with_an_event_made_by_hand() -> None:
    seen: list[object] = []
    hook = fn_hook(
        on_task_success=lambda event: seen.append(event.result),
        on_task_retry=lambda event: seen.append((event.next_attempt, event.max_attempts)),
    )
    hook.on_task_success(TaskSuccessEvent("run", "dag", "task", result=42))
    hook.on_task_retry(TaskRetryEvent("run", "dag", "task", next_attempt=3, max_attempts=5))
    assert seen == [42, (3, 5)]


def test_handlers_that_are_none_are_left_out() -> None:
    hook = fn_hook(on_dag_end=None, on_task_skip=print)
    assert vars(hook) == {"on_task_skip": print}
    assert checked_hooks([hook, fn_hook(on_dag_end=None)])[0] is hook
    hook.on_dag_end(DagEndEvent("run", "dag"))


def test_handlers_that_cannot_be_right_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown event 'on_task_succes'.*'on_task_success'"):
        fn_hook(on_task_succes=None)
    with pytest.raises(TypeError, match="the handler for 'on_dag_end' must be callable, not int"):
        fn_hook(on_dag_end=7)  # type: ignore[arg-type]


def test_hooks_that_cannot_be_right_are_refused() -> None:
    async def handler(event: object) -> None: ...

    with pytest.raises(TypeError, match="an async function; .* make it a plain function"):
        checked_hooks([fn_hook(on_dag_end=handler)])
    for wrong in (RunHook, object(), print):
        with pytest.raises(TypeError, match="hooks= takes RunHook objects"):
            checked_hooks([wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"hooks= takes a list .*write hooks=\[\.\.\.\]"):
        checked_hooks(7)  # type: ignore[arg-type]


def test_events_without_a_thread_for_them_are_a_clear_error() -> None:  # R4
    pool = WorkerThreads(1)
    pool.shutdown()
    hook = fn_hook(on_dag_end=lambda event: None)
    dispatcher = HookDispatcher([hook], pool, 1.0, logging.getLogger("flowrun.hooks"))
    channel = dispatcher.channel(contextvars.copy_context(), lambda: None)
    with pytest.raises(ExecutorError, match="no thread could be started to call the hooks with"):
        channel.emit(DagEndEvent("run", "dag"))
    assert channel.notify_when_idle(lambda: None)  # nobody waits for it
