"""An attempt whose code runs on the event loop: one ``asyncio.Task``."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from flowrun.context import CURRENT
from flowrun.scheduler.attempt import RunningAttempt, close_unawaited, is_to_be_awaited
from flowrun.scheduler.messages import FLOWRUN_FAILED, Failed, Failure, StopAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.messages import Succeeded

_STARTS_EAGERLY = sys.version_info >= (3, 12)


class AsyncAttempt(RunningAttempt):
    """Await an async task, or what a sync one has returned.

    The coroutine catches whatever the code raises, so that nothing gets into the event loop.
    """

    __slots__ = ("_awaited", "_has_reported", "_is_abandoned", "_is_encoding", "_task")

    _task: asyncio.Task[None]

    def start(self, awaited: object = None) -> None:
        """Run the code.

        Args:
            awaited: What a sync callable has returned, and is to be awaited here; ``None`` to
                call the task's function.
        """
        self._awaited = awaited
        self._has_reported = self._is_abandoned = self._is_encoding = False
        loop = self.services.loop
        # A task factory may take no context, so it is called inside the right one.
        if _STARTS_EAGERLY and loop.get_task_factory() is None:  # pragma: no cover - from 3.12 on
            make_task: Any = asyncio.Task  # its stub for the oldest Python lacks eager_start
            self._task = make_task(self._run(), loop=loop, context=self.context, eager_start=True)
        else:
            self._task = self.context.run(loop.create_task, self._run())
            self._task.add_done_callback(self._done)

    @property
    def can_go_on(self) -> bool:
        """Whether code that was given up can ever run again."""
        return not self.services.loop.is_closed()

    def is_lost(self) -> bool:  # pragma: no cover - see Run._fail_lost()
        """Return whether a ``KeyboardInterrupt`` has ended it on its way to its report."""
        if self._task.done():
            self._has_reported = True
            return True
        return False

    def stop(self, cause: str) -> StopAnswer:
        """Cancel the code; see :meth:`RunningAttempt.stop`."""
        self.seen.tell(cause)
        if self.has_ended and not self._is_encoding:
            self._is_encoding = True
            return StopAnswer.ENDED
        try:
            self._task.cancel()
        except Exception:  # noqa: BLE001 - of a future of the user's that the code awaits
            return StopAnswer.UNWILLING
        return StopAnswer.WILLING

    def give_up(self) -> bool:
        """Leave the task alone; its end will be reported as late."""
        if self._has_reported:  # pragma: no cover - its outcome is among the events
            return False
        self._is_abandoned = True
        self.services.abandoned.add(self)
        if self.has_ended:  # what hangs is not the task's code, but encoding its result
            self._task.cancel()
        return True

    async def _run(self) -> None:
        clock = self.services.config.clock
        CURRENT.set(self.seen)
        try:
            value: Any = self._awaited
            self._awaited = None
            if value is None:
                args, kwargs = self.call_arguments()
                self.start_clock()
                value = await self.spec.function(*args, **kwargs)
            while is_to_be_awaited(value):
                value = await value
        except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
            self.has_ended = True
            if isinstance(error, GeneratorExit) and not self.can_go_on:
                # Its loop was closed, and it is being collected, perhaps in the middle of
                # another thread's work. Nobody waits for an outcome.
                self.services.abandoned.discard(self)
                return
            self._report_of(self.failed, error)
            return
        self.has_ended = True
        is_small = self.services.is_small
        if is_small is None or is_small(value):
            self._report_of(self.outcome, value)
        else:
            await self._encode_elsewhere(value, clock.monotonic())

    def _report_of(
        self, outcome: Callable[[Any, float], Succeeded | Failed], ended_with: object
    ) -> None:
        """Report what has come of the code; nothing that fails here gets into the loop (R4)."""
        try:
            event = outcome(ended_with, self.services.config.clock.monotonic())
        except BaseException as error:  # noqa: BLE001 - flowrun's own
            self.services.broke(error)
            event = self._failed_untold()
        self._report(event)

    async def _encode_elsewhere(self, value: object, ended_at: float) -> None:
        """Encode a large result in a thread, so that the loop goes on."""
        encoded = None
        try:
            encoded = self.services.encoders.submit(self.outcome, value, ended_at)
            event = await asyncio.wrap_future(encoded)
        except asyncio.CancelledError as error:
            # A serializer that hangs costs no thread, and does not hold up close() (A3).
            getattr(encoded, "abandon", bool)()
            self._report_of(self.failed, error)
            return
        except BaseException as error:  # noqa: BLE001 # pragma: no cover - flowrun's own
            self.services.broke(error)
            event = self._failed_untold()
        self._report(event)

    def _failed_untold(self) -> Failed:
        """Return a failure without asking anything of the user's, which may be what has failed."""
        failure = Failure(FLOWRUN_FAILED, FLOWRUN_FAILED)
        return Failed(self.unit, self.seen.attempt, None, self.started_at or 0.0, failure)

    def _report(self, event: Succeeded | Failed) -> None:
        if self._has_reported:  # pragma: no cover - see is_lost()
            return
        self._has_reported = True
        self.seen.ended = True
        if self._is_abandoned:
            self.ended_late()
        else:
            self.services.report(event)

    def _done(self, _: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never runs its coroutine.
        if not self._has_reported:
            close_unawaited(self._awaited)
            self._report_of(self.failed, asyncio.CancelledError())
