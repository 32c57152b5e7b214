"""The event loop of one command, and the signals that cancel its run.

``asyncio.run`` is not used: it waits without bound for tasks that ignore their cancellation and
for busy threads. The command ends when its run has ended.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import FrameType
    from typing import Any, TypeAlias

    Handler: TypeAlias = Callable[[int, FrameType | None], Any] | int | None

INTERRUPTED = 130
"""The exit code of a program that SIGINT has ended, as a shell has it."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_WIND_DOWN_S = 1.0
_JOIN_THREADS_S = 5.0

# Loops with tasks that ignore their cancellation: such a task must not be collected, since it
# may ignore that, too.
_KEPT: list[asyncio.AbstractEventLoop] = []


class RunLoop:
    """Await one run; the first SIGINT or SIGTERM cancels it, the second one ends the process.

    A signal that comes after the run has ended is ignored, up to the end of the command; a
    second one then ends the process with :attr:`exit_code`.

    Attributes:
        exit_code: The exit code of the command as far as it is known.
        left: Whether tasks remain on the loop that have ignored their cancellation.
        used: Whether the loop has been entered.
    """

    def __init__(self) -> None:
        self.exit_code = INTERRUPTED
        self.left = False
        self.used = False
        self._cancelled = False
        self._ignored = False
        self._running: asyncio.Future[str] | None = None

    def __enter__(self) -> Self:
        """Take over the signals."""
        self.used = True
        self._loop = asyncio.new_event_loop()
        self._before = {number: signal.getsignal(number) for number in _NUMBERS}
        for number in _NUMBERS:
            # The loop's own handlers do not run while a task blocks the loop. But only with them
            # does a signal wake a loop that is about to sleep.
            with suppress(NotImplementedError):  # on Windows a signal wakes it without
                self._loop.add_signal_handler(number, lambda: None)
            signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        """Keep the signals, until :meth:`release` or the end of the process."""

    def release(self) -> None:
        """Give the signals back, for a caller that goes on after the command."""
        if self.used:
            self._close(self._before)

    def end(self) -> None:
        """Ignore all further signals, as the process ends."""
        self._close(dict.fromkeys(_NUMBERS, signal.SIG_IGN))

    def _close(self, handlers: Mapping[signal.Signals, Handler]) -> None:
        """Close the loop, unless tasks remain on it, and hand the signals over.

        An open loop prints an error if the interpreter collects the loop's sockets before it.
        """
        with _held_signals():  # asyncio restores the default handlers, which end the process
            for number, handler in handlers.items():
                with suppress(NotImplementedError):
                    self._loop.remove_signal_handler(number)
                signal.signal(number, handler or signal.SIG_DFL)
        if self.left:
            _KEPT.append(self._loop)
        else:
            self._loop.close()

    def run(
        self,
        engine: AbstractAsyncContextManager[object],
        work: Callable[[], Awaitable[str]],
    ) -> str:
        """Await a run and return its result.

        Args:
            engine: Closed when the run has ended.
            work: Starts the run.

        Raises:
            KeyboardInterrupt: A signal has cancelled the run, and it has ended.
        """
        try:
            result = self._loop.run_until_complete(self._await_run(engine, work))
        finally:
            self._wind_down()
        if result is None:
            raise KeyboardInterrupt
        return result

    async def _await_run(
        self,
        engine: AbstractAsyncContextManager[object],
        work: Callable[[], Awaitable[str]],
    ) -> str | None:
        self._running = running = asyncio.ensure_future(work())
        if self._cancelled:  # before there was a run to cancel
            running.cancel()
        try:
            async with engine:
                return await running
        except asyncio.CancelledError:
            if self._cancelled:
                return None
            raise

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        if self._cancelled:
            _exit_at_once(INTERRUPTED, b"interrupted\n")
        if self._running is not None and self._running.done():
            if self._ignored:
                _exit_at_once(self.exit_code, b"")
            self._ignored = True
            return
        self._cancelled = True
        if self._running is not None:
            self._loop.call_soon_threadsafe(self._running.cancel)
        # Python refuses it in the middle of another print, or if the stream is closed.
        with suppress(RuntimeError, OSError, ValueError):
            print("interrupted: cancelling; once more to exit at once", file=sys.stderr)

    def _wind_down(self) -> None:
        """Cancel what user code has left on the loop, and give it a moment to end."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        rest: list[Coroutine[object, object, object]] = [
            self._loop.shutdown_asyncgens(),
            self._loop.shutdown_default_executor(),
        ]
        for step in rest:
            left.add(self._loop.create_task(step))
        self._loop.run_until_complete(asyncio.wait(left, timeout=_WIND_DOWN_S))
        self.left = any(not task.done() for task in left)


@contextmanager
def _held_signals() -> Generator[None]:
    """Have signals wait until their new handlers are set."""
    if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
        yield  # its loop sets no handlers, so there are none to restore
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_process(code: int, loop: RunLoop) -> None:
    """Prepare the end of the process, so that it comes soon and with this exit code.

    Args:
        code: The exit code.
        loop: The command's loop.
    """
    if not loop.used:
        return
    loop.end()
    if loop.left:
        # The interpreter would destroy these tasks, and one that ignores that, too, would never
        # let it end.
        logging.shutdown()
        _exit_at_once(code, b"")
    main = threading.main_thread()
    if any(thread is not main and not thread.daemon for thread in threading.enumerate()):
        # The interpreter waits for threads, and an abandoned call may run in one for hours. It
        # calls what atexit knows after that wait, the function that was registered last first.
        joined = threading.Event()
        atexit.register(joined.set)
        watch = threading.Thread(target=_exit_unless, args=(joined, code), daemon=True)
        watch.start()


def _exit_unless(
    joined: threading.Event, code: int
) -> None:  # pragma: no cover - it ends the process, and coverage with it
    if not joined.wait(_JOIN_THREADS_S):
        _exit_at_once(code, b"")


def _exit_at_once(code: int, text: bytes) -> None:
    with suppress(OSError):
        os.write(2, text)
    os._exit(code)
