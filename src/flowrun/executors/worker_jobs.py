"""The calls that wait for a worker thread, and their futures."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.executors.worker_threads import WorkerThreads

T = TypeVar("T")


class Job:
    """A call on its way through a pool: the little that is needed where no future is.

    Args:
        pool: The pool.
        call: What a thread calls; whatever it raises goes to the log.
        withdrawn: Called instead, if the pool is shut down before.

    Attributes:
        ended: Whether the call has ended.
    """

    __slots__ = ("_calls", "_pool", "ended")

    def __init__(
        self,
        pool: WorkerThreads,
        call: Callable[[], object],
        withdrawn: Callable[[], object],
    ) -> None:
        self._pool = pool
        # A list, because popping is atomic: the worker that starts the call and the thread
        # that cancels it agree without a lock on which of them it belongs to.
        self._calls = [(call, withdrawn)]
        self.ended = False

    def take(self) -> tuple[Callable[[], object], Callable[[], object]] | None:
        """Return ``call`` and ``withdrawn`` to the first caller, ``None`` to all others."""
        try:
            return self._calls.pop()
        except IndexError:
            return None

    @property
    def is_taken(self) -> bool:
        """Whether a worker or a cancellation has taken it."""
        return not self._calls

    def cancel(self) -> bool:
        """Withdraw the call if no thread has started it; return whether it will not run."""
        if self.take() is None:
            return False
        self._pool.note_cancelled()
        return True

    def abandon(self) -> bool:
        """Give up the thread that runs the call; return whether there was one to give up.

        It counts no longer, so that another may be started in its place.
        """
        return self._pool.abandon(self)


class WorkerFuture(Future[T]):
    """The future of a call in a worker thread; it can be abandoned while it runs."""

    job: Job

    def cancel(self) -> bool:
        """Withdraw the call if no thread has started it; return whether it will not run."""
        if not super().cancel():
            return False
        if self.job.cancel():
            # The call is released at once and its future notified, without a worker.
            self.set_running_or_notify_cancel()
        return True

    def abandon(self) -> bool:
        """Give up the thread that runs the call; return whether there was one to give up.

        The future still completes when the call ends; what that result is worth is the
        caller's to say.
        """
        return not self.done() and self.job.abandon()

    def withdraw(self) -> None:
        """The pool has taken the call out, and will not run it."""
        super().cancel()
        self.set_running_or_notify_cancel()
