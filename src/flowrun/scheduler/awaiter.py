"""The task that awaits a run, and what it gets in the end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from flowrun.errors import RunCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable


class Awaiter:
    """The task that awaits one run, on the run's event loop.

    Attributes:
        error: What it gets raised at the end.
        left: What still runs on the loop of a run that was aborted; it ends first (R1).
        is_released: Whether the run is over.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        self.error: BaseException | None = None
        self.left: list[asyncio.Task[None]] = []
        self.is_released = False

    def begin(self) -> None:
        """The task that calls awaits the run from now on."""
        self._task = asyncio.current_task()

    def note(self, error: BaseException) -> None:
        """Have an error raised at the end; the first one counts, but for a plain cancellation."""
        if self.error is None or isinstance(self.error, RunCancelledError):
            self.error = error

    async def wait_for(
        self,
        future: asyncio.Future[None],
        cancelled: Callable[[asyncio.CancelledError], object],
    ) -> None:
        """Wait for a future, also when cancelled; raise what it raises."""
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as cancellation:
                cancelled(cancellation)
        future.result()

    async def wait(
        self, cancelled: Callable[[asyncio.CancelledError], object], grace_s: float
    ) -> None:
        """Wait until the run is over, also when cancelled; raise what was noted.

        Args:
            cancelled: Called when the waiting task is cancelled.
            grace_s: How long what is left on the loop is waited for.
        """
        while not self.is_released:  # without shield(), which takes the loop one more turn
            try:
                await self._done
            except asyncio.CancelledError as cancellation:
                self._done = self._loop.create_future()  # the old one was cancelled with it
                cancelled(cancellation)
        if self.left:
            await asyncio.wait(self.left, timeout=grace_s)
        error, self.error = self.error, None
        if error is not None:
            raise error

    def release(self) -> None:
        """The run is over."""
        self.is_released = True
        # The loop may be closed, and asyncio's handler of SIGINT cancels between any two lines.
        with contextlib.suppress(asyncio.InvalidStateError, RuntimeError):
            if not self._done.done():
                self._done.set_result(None)

    def close(self) -> None:
        """Close the coroutine of the task, whose loop was closed.

        Otherwise it would be collected at some time, in the middle of any code, perhaps with the
        engine's locks taken, which it needs to leave.
        """
        task, self._task = self._task, None
        if task is not None and not task.done():  # pragma: no branch - or it is gone
            coroutine: Any = task.get_coro()
            with contextlib.suppress(BaseException):  # user code may await the run
                coroutine.close()
