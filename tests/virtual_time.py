"""Virtual time for a real engine: hours of waiting take milliseconds.

:class:`VirtualClock` goes in by ``SchedulerConfig(clock=...)``. Its timers fire only while
nothing real is in flight:

- no attempt whose code works, instead of waiting for virtual time,
- no write to the store, and no call of a hook from :meth:`VirtualClock.hook`,
- and the event loop has nothing to do but to wait.

It knows of attempts from the log that the engine writes on the event loop: an attempt is in
flight from its line "launched" to the line of its outcome, which follows the commit. While its
code is in :meth:`VirtualClock.sleep` or :meth:`VirtualClock.wait_for` it waits for virtual time.

Example:
    clock = VirtualClock()
    engine = make_engine(logger=clock.logger(), config=SchedulerConfig(clock=clock))
    run_id = await clock.run(engine, engine.run_once("d"))
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from flowrun import Engine, RunHook, current_attempt, fn_hook
from flowrun.config import Clock
from flowrun.scheduler.notifier import TASK_FAILED

from .conftest import WAIT_S

T = TypeVar("T")
Key = tuple[str, str]

EPOCH = 1_600_000_000.0
_IDLE_TURNS = 20  # of the loop without a look at the clock
_KEEP_ALL = 1_000_000


class VirtualTimer:
    """A timer of a :class:`VirtualClock`."""

    def __init__(self, due: float, callback: Callable[[], object]) -> None:
        self.due = due
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        """Make sure that the callback is not called any more."""
        self.is_cancelled = True


class VirtualClock(Clock):
    """A clock that moves only when everything waits for it.

    Attributes:
        now: Seconds since it was made.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._readings = 0
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._open: set[Key] = set()  # attempts that were launched and have no outcome
        self._asleep: set[Key] = set()  # attempts whose code waits for virtual time
        self._hook_calls: dict[str, int] = {}  # events that were sent and not handled, by handler
        self._gates: set[threading.Event] = set()  # of threads that are asleep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    # -- what the engine uses --------------------------------------------------------------------

    def time(self) -> float:  # type: ignore[override]
        """Return epoch seconds."""
        return EPOCH + self.now

    def monotonic(self) -> float:  # type: ignore[override]
        """Return seconds on a clock that never goes back."""
        self._readings += 1
        return self.now

    def call_later(
        self, loop: asyncio.AbstractEventLoop, delay_s: float, callback: Callable[[], object]
    ) -> VirtualTimer:
        """Call back on the loop once so many virtual seconds have gone by."""
        assert loop is self._loop, "the clock runs on another loop: use clock.run()"
        return self._add_timer(delay_s, callback)

    def logger(self) -> logging.Logger:
        """Return a logger for the engine; the clock learns from it of attempts."""
        logger = logging.Logger(f"virtual-{id(self)}", logging.DEBUG)
        handler = logging.Handler()
        handler.emit = self._logged  # type: ignore[method-assign]
        logger.addHandler(handler)
        return logger

    # -- what code of a test uses ----------------------------------------------------------------

    def sleep(self, duration_s: float) -> None:
        """Let virtual time pass in the thread of a sync task, or until the run is over."""
        key = _current()
        gate = threading.Event()
        with self._lock:
            self._asleep.add(key)
            self._gates.add(gate)
        self._add_timer(duration_s, lambda: self._wake(key, gate.set))
        assert gate.wait(WAIT_S), "virtual time stands still"
        with self._lock:
            self._gates.discard(gate)

    async def wait_for(self, duration_s: float) -> None:
        """Let virtual time pass in an async task."""
        key = _current()
        over = asyncio.get_running_loop().create_future()
        self._asleep.add(key)
        timer = self._add_timer(duration_s, lambda: self._wake(key, lambda: _settle(over)))
        try:
            await over
        finally:
            timer.cancel()
            self._asleep.discard(key)

    def hook(self, **handlers: Callable[[Any], object]) -> RunHook:
        """Return a hook for the engine whose calls hold the time; arguments as of ``fn_hook``."""

        def holding(name: str, handler: Callable[[Any], object]) -> Callable[[Any], None]:
            def handle(event: Any) -> None:
                try:
                    handler(event)
                finally:
                    with self._lock:
                        self._hook_calls[name] -= 1
                    self._notice()

            return handle

        self._hook_calls.update(dict.fromkeys(handlers, 0))
        return fn_hook(**{name: holding(name, each) for name, each in handlers.items()})

    # -- the passing of time ---------------------------------------------------------------------

    async def run(self, engine: Engine, awaitable: Coroutine[Any, Any, T]) -> T:
        """Await something of an engine while virtual time passes."""
        self._loop = asyncio.get_running_loop()
        main = asyncio.ensure_future(awaitable)
        main.add_done_callback(lambda _: self._changed.set())
        try:
            async with asyncio.timeout(WAIT_S):
                while not main.done():
                    await self._until_idle(engine, main)
                    if not main.done():
                        self._advance()
        finally:
            main.cancel()
            self._loop = None
            with self._lock:
                gates = [*self._gates]
            for gate in gates:  # of abandoned attempts
                gate.set()
        return await main

    async def _until_idle(self, engine: Engine, main: asyncio.Future[Any]) -> None:
        """Return once everything waits for virtual time, or all is over."""
        while not main.done():
            self._changed.clear()
            before = self._readings
            for _ in range(_IDLE_TURNS):
                await asyncio.sleep(0)
            if main.done() or self._readings != before:
                continue
            if self._is_busy() or not self._has_timer():
                await self._changed.wait()
                continue
            # What was submitted to the journal is written, and its answers are on their way,
            # when a later call of the journal has been answered.
            engine.prune_runs(keep_last=_KEEP_ALL)
            for _ in range(_IDLE_TURNS):
                await asyncio.sleep(0)
            if self._readings == before and not self._is_busy():
                return

    def _is_busy(self) -> bool:
        with self._lock:
            return bool(self._open - self._asleep) or any(self._hook_calls.values())

    def _has_timer(self) -> bool:
        with self._lock:
            while self._timers and self._timers[0][2].is_cancelled:
                heapq.heappop(self._timers)
            return bool(self._timers)

    def _advance(self) -> None:
        """Go to the next timer, and fire it."""
        if not self._has_timer():
            return
        with self._lock:
            due, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, due)
        timer.callback()

    def _add_timer(self, delay_s: float, callback: Callable[[], object]) -> VirtualTimer:
        timer = VirtualTimer(self.now + delay_s, callback)
        with self._lock:
            heapq.heappush(self._timers, (timer.due, next(self._numbers), timer))
        self._notice()
        return timer

    def _wake(self, key: Key, wake: Callable[[], object]) -> None:
        """Have code go on: from here on it works."""
        with self._lock:
            self._asleep.discard(key)
        wake()

    def _notice(self) -> None:
        """Have the clock look again, from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(self._changed.set)

    def _logged(self, line: logging.LogRecord) -> None:
        """Learn of the beginning and the end of an attempt, and of events for hooks."""
        self._readings += 1
        kind = _kind(line)
        key = (getattr(line, "run_id", ""), getattr(line, "task", ""))
        with self._lock:
            if kind == "on_task_start":
                self._open.add(key)
            elif kind.startswith("on_task"):
                self._open.discard(key)
            if kind in self._hook_calls:
                self._hook_calls[kind] += 1
        self._notice()


_KINDS = {
    "run %s of DAG %r started": "on_dag_start",
    "run %s of DAG %r finished": "on_dag_end",
    "task %r attempt %d launched": "on_task_start",
    "task %r succeeded": "on_task_success",
    "task %r skipped": "on_task_skip",
    "task %r attempt %d failed and will be retried": "on_task_retry",
}


def _kind(line: logging.LogRecord) -> str:
    """Return the hook handler for what a line of the log tells; empty if there is none."""
    if line.msg == TASK_FAILED:
        return "on_task_failure"
    return next((kind for start, kind in _KINDS.items() if str(line.msg).startswith(start)), "")


def _current() -> Key:
    attempt = current_attempt()
    return attempt.run_id, attempt.task_name


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
