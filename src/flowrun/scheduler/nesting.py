"""Runs that tasks and hooks start: what they work in, and when they end."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from flowrun.scheduler.limits import RunLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from flowrun.context import Attempt
    from flowrun.executors import WorkerThreads
    from flowrun.scheduler.limits import SharedLimits


class Nesting:
    """The runs of an engine that were started inside its tasks and hooks.

    Args:
        limits: The engine's.
        workers: Its own threads for tasks, if it has any.
        hook_threads: Its threads for hooks.
    """

    def __init__(
        self, limits: SharedLimits, workers: WorkerThreads | None, hook_threads: WorkerThreads
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._hook_threads = hook_threads
        self._lock = threading.Lock()
        self._nested: dict[Attempt, tuple[RunLimits, int]] = {}
        self._numbers = itertools.count(1)

    def enter(
        self, caller: Attempt | None, uses: Iterable[tuple[str, int]], stack: ExitStack
    ) -> RunLimits:
        """Return the limits of a run that begins.

        A run started inside a task works in that task's slot, and with the limits that the task
        holds, one unit at a time (R3). A worker thread that
        waits for it does not count as one meanwhile: otherwise nesting could deadlock. Neither
        does the thread of a hook that waits for a run.

        Args:
            caller: The attempt that starts it, one of the same engine.
            uses: The limits that the attempt holds.
            stack: Left when the run has ended.
        """
        if self._hook_threads.runs_caller:
            self._hook_threads.lend()
            stack.callback(self._hook_threads.give_back)
        if caller is None:
            return RunLimits(self._limits)
        with self._lock:
            limits, count = self._nested.get(caller) or (self._own_slot(uses), 0)
            self._nested[caller] = (limits, count + 1)
        if not count and self._workers is not None:
            self._workers.lend()
        stack.callback(self._leave, caller)
        return limits

    def _own_slot(self, uses: Iterable[tuple[str, int]]) -> RunLimits:
        slot = f"slot of task {next(self._numbers)}"
        self._limits.add_slot(slot)
        return RunLimits(self._limits, slot, dict(uses))

    def _leave(self, caller: Attempt) -> None:
        with self._lock:
            limits, count = self._nested[caller]
            if count > 1:
                self._nested[caller] = (limits, count - 1)
                return
            del self._nested[caller]
        self._limits.remove_slot(limits.slot)
        if self._workers is not None:
            self._workers.give_back()


def end_with(caller: Attempt, cancel: Callable[[str], object], stack: ExitStack) -> None:
    """Have a run cancelled with the task that has started it.

    Not for an async task on the same loop: there asyncio does that, unless the task shields it.

    Args:
        caller: The attempt that has started it.
        cancel: Cancels it, and is told why.
        stack: Left when the run has ended.
    """

    def end(_: str) -> None:
        cancel(f"the task {caller.task_name!r} that started it was told to stop")

    stack.callback(caller.listen_no_more, end)
    caller.listen(end)
