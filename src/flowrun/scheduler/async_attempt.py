"""An attempt whose code runs on the event loop: one ``asyncio.Task``."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from flowrun.context import CURRENT
from flowrun.scheduler.attempt import RunningAttempt
from flowrun.scheduler.messages import StopAnswer
from flowrun.scheduler.results import close_unawaited, is_to_be_awaited

if TYPE_CHECKING:
    from flowrun.scheduler.messages import Failed, Succeeded

_STARTS_EAGERLY = sys.version_info >= (3, 12)


class AsyncAttempt(RunningAttempt):
    """Await an async task, or what a sync one has returned.

    The coroutine catches whatever the code raises, so that nothing gets into the event loop.
    """

    __slots__ = ("_awaited",)

    def start(self, awaited: object = None) -> None:
        """Run the code.

        Args:
            awaited: What a sync callable has returned, and is to be awaited here; ``None`` to
                call the task's function.
        """
        self._awaited = awaited
        loop = self.services.loop
        # A task factory may take no context, so it is called inside the right one.
        if _STARTS_EAGERLY and loop.get_task_factory() is None:  # pragma: no cover - from 3.12 on
            make_task: Any = asyncio.Task  # its stub for the oldest Python lacks eager_start
            self.task = make_task(self._run(), loop=loop, context=self.context, eager_start=True)
        else:
            self.task = self.context.run(loop.create_task, self._run())
            self.task.add_done_callback(self._done)

    @property
    def can_go_on(self) -> bool:
        """Whether code that was given up can ever run again."""
        return not self.services.loop.is_closed()

    def stop(self, cause: str) -> StopAnswer:
        """Cancel the code; see :meth:`RunningAttempt.stop`."""
        self.seen.tell(cause)
        if self.has_ended:
            return StopAnswer.ENDED
        try:
            assert self.task is not None  # noqa: S101 - it was started
            self.task.cancel()
        except Exception:  # noqa: BLE001 - of a future of the user's that the code awaits
            return StopAnswer.UNWILLING
        return StopAnswer.WILLING

    def give_up(self) -> bool:
        """Leave the task alone; see :meth:`RunningAttempt.give_up`."""
        self.services.abandoned.add(self)
        if self.has_ended and self.task is not None:  # what hangs is encoding its result
            self.task.cancel()
        return True

    async def _run(self) -> None:
        CURRENT.set(self.seen)
        try:
            value: Any = self._awaited
            self._awaited = None
            if value is None:
                args, kwargs = self.call_arguments()
                self.services.began(self.start_clock())
                value = await self.spec.function(*args, **kwargs)
            while is_to_be_awaited(value):
                value = await value
            self.ended_at = self.services.monotonic()
        except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
            self.has_ended = True
            if isinstance(error, GeneratorExit) and not self.can_go_on:
                # Its loop was closed, and it is being collected, perhaps in the middle of
                # another thread's work. No run waits for its outcome.
                self.services.abandoned.discard(self)
                return
            self._report(self.failed(error))
            return
        self.has_ended = True
        if self.encode_later(value):
            await self._encode_elsewhere(value)
        else:
            self._report(self.outcome(value))

    async def _encode_elsewhere(self, value: object) -> None:
        """Encode a large result in a thread, so that the loop goes on."""
        encoded = None
        try:
            encoded = self.services.encoders.submit(self.outcome, value)
            event = await asyncio.wrap_future(encoded)
        except asyncio.CancelledError as error:
            # A serializer that hangs costs no thread, and does not hold up close() (A3).
            getattr(encoded, "abandon", bool)()
            event = self.failed(error)
        except BaseException as error:  # noqa: BLE001 # pragma: no cover - flowrun's own
            event = self.crashed(error)
        self._report(event)

    def _report(self, event: Succeeded | Failed) -> None:
        self.seen.ended = True
        self.services.report(self, event)

    def _done(self, _: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never runs its coroutine.
        if not self.has_ended:
            close_unawaited(self._awaited)
            self._report(self.failed(asyncio.CancelledError()))
