"""Deliver a run's events to the hooks, in order, off the event loop."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun.errors import ExecutorError
from flowrun.failure import error_line, error_text, redacted
from flowrun.hooks.events import EVENT_METHODS
from flowrun.hooks.hook import RunHook, checked_hooks

if TYPE_CHECKING:
    import contextvars
    import logging
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor, Future

    from flowrun.hooks.events import Event


class Listener(NamedTuple):
    """A hook and its handler for one kind of event."""

    hook: object
    handler: Callable[[Any], object]


class HookDispatcher:
    """Deliver the events of all runs of one engine; each run has its own channel.

    Args:
        hooks: The hooks, in the order of their calls.
        executor: Runs the calls.
        timeout_s: Seconds after which a call is abandoned.
        log: Receives the errors of hooks.
        redact: Applied to the text of an error before it is logged.
    """

    def __init__(
        self,
        hooks: Sequence[RunHook],
        executor: Executor,
        timeout_s: float,
        log: logging.Logger,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self._redact = redact
        self.hooks: tuple[RunHook, ...] = ()
        self.executor = executor
        self.timeout_s = timeout_s
        self.log = log
        self._lock = threading.Lock()
        self._channels: weakref.WeakSet[HookChannel] = weakref.WeakSet()
        self.listeners: dict[type[Any], tuple[Listener, ...]] = dict.fromkeys(EVENT_METHODS, ())
        self.add(hooks)

    def add(self, hooks: Sequence[RunHook]) -> None:
        """Add hooks for the runs that start from now on."""
        hooks = checked_hooks(hooks)
        self.hooks += hooks
        for event, method in EVENT_METHODS.items():
            self.listeners[event] += _overridden(hooks, method)

    def log_failure(self, handler: object, event: Event, error: BaseException) -> None:
        """Log an exception of a hook."""
        from flowrun.escape import for_terminal  # noqa: PLC0415 - for errors only

        name, about = type(event).__name__, {"run_id": event.run_id, "dag": event.dag_name}
        text = for_terminal(redacted(error_text(error), self._redact), multiline=True)
        self.log.error("hook %r failed on %s\n%s", handler, name, text, extra=about)

    def give_up_stuck(self) -> None:
        """Abandon calls that take too long, in all runs; other runs may need their threads."""
        with self._lock:
            channels = [*self._channels]
        for channel in channels:
            channel.give_up_if_stuck()

    def watch(self, channel: HookChannel) -> None:
        """Let :meth:`give_up_stuck` check a channel as long as the channel exists."""
        with self._lock:
            self._channels.add(channel)

    def channel(self, context: contextvars.Context, wake: Callable[[], object]) -> HookChannel:
        """Open the channel of one run.

        Args:
            context: The context variables for hooks: those of the run's caller.
            wake: Called on the delivering thread after a batch of calls, so that the run's loop
                reacts at once to what a hook did, such as setting an ``asyncio.Event``.
        """
        return HookChannel(self, context, wake)


def _overridden(hooks: Sequence[RunHook], method: str) -> tuple[Listener, ...]:
    default = getattr(RunHook, method)
    found: list[Listener] = []
    for hook in hooks:
        handler = getattr(hook, method, None)
        if handler is not None and getattr(handler, "__func__", None) is not default:
            found.append(Listener(hook, handler))
    return tuple(found)


class HookChannel:
    """Deliver the events of one run in order, on at most one thread at a time."""

    def __init__(
        self,
        dispatcher: HookDispatcher,
        context: contextvars.Context,
        wake: Callable[[], object],
    ) -> None:
        self._dispatcher = dispatcher
        self._context = context
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[tuple[Listener, Event]] = deque()
        self._stuck: set[int] = set()  # ids: a hook need not be hashable
        # The number of the delivering thread. An abandoned thread finds that it has changed.
        self._turn = 0
        self._delivering = False
        self._call: tuple[Listener, Event, float] | None = None
        self._thread: Future[None] | None = None
        self._when_idle: Callable[[], object] | None = None

    def wants(self, kind: type[Any]) -> bool:
        """Return whether any hook handles this kind of event."""
        return bool(self._dispatcher.listeners[kind])

    @property
    def is_busy(self) -> bool:
        """Whether events are still to be delivered."""
        return self._delivering

    def emit(self, event: Event) -> None:
        """Queue an event that :meth:`wants` accepts; never blocks."""
        listeners = self._dispatcher.listeners[type(event)]
        with self._lock:
            self._queue.extend((listener, event) for listener in listeners)
            if not self._delivering:
                self._start()
        self.give_up_if_stuck()

    def notify_when_idle(self, callback: Callable[[], object]) -> bool:
        """Return whether all events are delivered; if not, call ``callback`` when they are."""
        with self._lock:
            if not self._delivering:
                return True
            self._when_idle = callback
            return False

    def give_up_if_stuck(self) -> None:
        """Abandon a call that takes too long, and deliver the rest without its hook."""
        with self._lock:
            call = self._call
            if call is None or time.monotonic() - call[2] < self._dispatcher.timeout_s:
                return
            listener, event, _ = call
            self._stuck.add(id(listener.hook))
            abandon = getattr(self._thread, "abandon", None)
            if abandon is not None:
                abandon()
            self._start()
        self._dispatcher.log.error(
            "hook %r still runs %s after %g s; it was abandoned and gets no more events of this"
            " run",
            listener.handler,
            type(event).__name__,
            self._dispatcher.timeout_s,
            extra={"run_id": event.run_id, "dag": event.dag_name},
        )

    def _start(self) -> None:
        """Hand the queue to a thread; the lock is held."""
        # If the executor refuses, no thread delivers, and the run must not wait for one (R4).
        self._delivering = False
        self._call = None
        if not self._turn:
            self._dispatcher.watch(self)
        self._turn += 1
        try:
            self._thread = self._dispatcher.executor.submit(
                self._context.copy().run, self._deliver, self._turn
            )
        except RuntimeError as error:
            msg = f"no thread could be started to call the hooks with: {error_line(error)}"
            raise ExecutorError(msg) from error
        self._delivering = True

    def _deliver(self, turn: int) -> None:
        while True:
            with self._lock:
                if turn != self._turn:
                    return
                if not self._queue:
                    self._delivering = False
                    self._call = None
                    callback, self._when_idle = self._when_idle, None
                    break
                listener, event = self._queue.popleft()
                if id(listener.hook) in self._stuck:
                    continue
                self._call = (listener, event, time.monotonic())
            self._call_hook(listener.handler, event)
        self._wake()
        if callback is not None:
            callback()

    def _call_hook(self, handler: Callable[[Any], object], event: Event) -> None:
        try:
            handler(event)
        except BaseException as error:  # noqa: BLE001 - an exception of a hook never ends the run (R4)
            self._dispatcher.log_failure(handler, event, error)
