"""Runs that tasks and hooks start: what they work in, and when they end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from flowrun.scheduler.limits import SharedLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from flowrun.context import Attempt
    from flowrun.executors import WorkerThreads


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
        self._nested: dict[Attempt, tuple[SharedLimits, int]] = {}

    def enter(self, caller: Attempt | None, stack: ExitStack) -> SharedLimits:
        """Return where the slots of a run that begins come from.

        A run started inside a task works in that task's slot (R3), and a worker thread that
        waits for it does not count as one meanwhile: otherwise nesting could deadlock. Neither
        does the thread of a hook that waits for a run.

        Args:
            caller: The attempt that starts it, one of the same engine.
            stack: Left when the run has ended.
        """
        if self._hook_threads.runs_caller:
            self._hook_threads.lend()
            stack.callback(self._hook_threads.give_back)
        if caller is None:
            return self._limits
        with self._lock:
            limits, count = self._nested.get(caller) or (SharedLimits(1), 0)
            self._nested[caller] = (limits, count + 1)
        if not count and self._workers is not None:
            self._workers.lend()
        stack.callback(self._leave, caller)
        return limits

    def _leave(self, caller: Attempt) -> None:
        with self._lock:
            limits, count = self._nested[caller]
            if count > 1:
                self._nested[caller] = (limits, count - 1)
                return
            del self._nested[caller]
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
