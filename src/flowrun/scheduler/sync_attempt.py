"""Attempts whose code runs elsewhere: in a worker thread, or on an executor of the user's.

One lock of each attempt settles whether its code begins: the thread takes it before, or the loop
takes it so that the code never does. Everything else about it is decided on the loop.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from concurrent.futures import BrokenExecutor, CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flowrun.context import CURRENT
from flowrun.errors import ExecutorError, FlowrunError, RemoteTaskError
from flowrun.executors import Job
from flowrun.failure import error_line
from flowrun.scheduler.attempt import NO_ARGUMENTS, RunningAttempt
from flowrun.scheduler.messages import StopAnswer
from flowrun.scheduler.results import is_to_be_awaited

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from flowrun.executors import ProcessPerAttemptExecutor, WorkerThreads
    from flowrun.executors.remote_call import RemoteCall


class SyncAttempt(RunningAttempt):
    """What worker threads and foreign executors have in common: code that runs in a thread."""

    __slots__ = ("_begin",)

    _begin: threading.Lock

    def work(self) -> None:
        """Run the code in this thread, and send its outcome."""
        try:
            if not self._begin.acquire(blocking=False):  # it was given up before it began
                self.deliver(self.failed(CancelledError()))
                return
            value, error = self.context.run(self._call)
            self.has_ended = True
            self.arguments = NO_ARGUMENTS
            self.send(value, error)
            del value, error  # a traceback holds this frame
        except BaseException as wrong:  # noqa: BLE001 - flowrun's own, as the code's are caught
            self.deliver(self.crashed(wrong))

    def send(self, value: object, error: BaseException | None, text: str | None = None) -> None:
        """Send what has come of the code, in the thread where that is known."""
        if error is not None:
            self.deliver(self.failed(error, text))
        elif is_to_be_awaited(value):
            self.services.post(partial(self.services.await_on_loop, self, value))
        else:
            self.encode_later(value)
            self.deliver(self.outcome(value))

    def give_up(self) -> bool:
        """Go on without the code; see :meth:`RunningAttempt.give_up`."""
        self.seen.ended = True
        if self._begin.acquire(blocking=False):
            return False
        self.services.abandoned.add(self)
        self.abandon_thread()
        return True

    @abstractmethod
    def start(self, pool: Executor, kind: str) -> None:
        """Have the pool run the code.

        Args:
            pool: The pool.
            kind: ``"thread"`` for threads, ``"process"`` for processes on this machine,
                ``"fresh process"`` for flowrun's own, ``"other"`` for any other executor.

        Raises:
            RuntimeError: The pool is broken or shut down.
        """
        ...

    def abandon_thread(self) -> None:
        """Have another thread take the place of the one that runs the code."""

    @abstractmethod
    def withdraw(self) -> bool:
        """Keep the code from beginning; return whether it never will."""
        ...

    def stop(self, cause: str) -> StopAnswer:
        """Withdraw the call, or tell its thread; see :meth:`RunningAttempt.stop`."""
        has_ended = self.has_ended
        # Told before it is withdrawn: a call that begins a moment later sees it.
        self.seen.tell(cause)
        if self.withdraw():
            self.seen.ended = True
            return StopAnswer.WITHDRAWN
        return StopAnswer.ENDED if has_ended else StopAnswer.UNWILLING

    def _call(self) -> tuple[object, BaseException | None]:
        CURRENT.set(self.seen)
        try:
            args, kwargs = self.call_arguments()
            self._code_begins()
            value = self.spec.function(*args, **kwargs)
            self.ended_at = self.services.monotonic()
        except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
            return None, error
        return value, None

    def _code_begins(self) -> None:
        self.services.post_quietly(self.start_clock())


class ThreadAttempt(SyncAttempt):
    """A call in one of the engine's own worker threads, which can be abandoned."""

    __slots__ = ("_job",)

    def start(self, pool: Executor, kind: str) -> None:
        """Queue the call; see :meth:`SyncAttempt.start`."""
        del kind
        self._begin = threading.Lock()
        threads = cast("WorkerThreads", pool)
        self._job = Job(threads, self.work, self._shut_down)
        threads.enqueue(self._job)

    def withdraw(self) -> bool:
        """Take the call out of the queue; see :meth:`SyncAttempt.withdraw`."""
        return self._job.cancel()

    def abandon_thread(self) -> None:
        """Count the thread no more, so that the pool may start another one (A3)."""
        self._job.abandon()

    def _shut_down(self) -> None:
        error = ExecutorError("the worker threads were shut down before the call began")
        self.deliver(self.failed(error))


class PoolAttempt(SyncAttempt):
    """A call on an executor that flowrun did not make."""

    __slots__ = ("_future", "_has_begun_there", "_is_withdrawing", "_kind", "_ran_here")

    def start(self, pool: Executor, kind: str) -> None:
        """Submit the call; see :meth:`SyncAttempt.start`.

        Raises:
            NotPicklableError: For another process, but it cannot be sent there.
            RuntimeError: The pool is broken or shut down.
        """
        from flowrun.executors.remote_call import PackedCall  # noqa: PLC0415 - for pools only

        self._begin = threading.Lock()
        self._kind = kind
        self._ran_here = self._is_withdrawing = self._has_begun_there = False
        self._future: Future[Any]
        if kind == "fresh process":
            own = cast("ProcessPerAttemptExecutor", pool)
            made = own.submit_task(PackedCall(self.remote_call()), self._begin_there)
            made.on_progress = self.seen.take_progress  # its process has yet to be started
            self._future = made
        else:
            if kind != "thread":  # the others do not show when they begin a call (A1)
                self._code_begins()
            packs = kind == "process"
            self._future = pool.submit(PackedCall(self.remote_call()) if packs else PoolCall(self))
        self._future.add_done_callback(self._future_done)

    def _begin_there(self) -> bool:
        """Return whether the code may begin in its process, which is ready for it."""
        self._has_begun_there = self._begin.acquire(blocking=False)
        if self._has_begun_there:
            self._code_begins()
        return self._has_begun_there

    def remote_call(self) -> RemoteCall:
        """Return the call in the form in which it can leave this process."""
        from flowrun.executors.remote_call import Facts, RemoteCall  # noqa: PLC0415 - see start()

        seen = self.seen
        facts = Facts(
            seen.run_id,
            seen.dag_name,
            seen.task_name,
            seen.attempt,
            self.spec.timeout_s,
            seen.upstream,
            seen.first_run_id,
            seen.item,
            seen.item_key,
            seen.logs is not None,
        )
        args, kwargs = self.arguments
        return RemoteCall(self.spec.function, args, kwargs, facts)

    def run_here(self) -> None:
        """Run the call in a thread of this process: the executor is one of threads."""
        self._ran_here = True
        self.work()

    @property
    def waits_in_pool(self) -> bool:
        """Whether the pool has not begun it, as far as that says."""
        try:
            return not self._future.running()
        except Exception:  # noqa: BLE001 - a third-party executor
            return False

    def withdraw(self) -> bool:
        """Cancel the future; see :meth:`SyncAttempt.withdraw`."""
        if not self._begin.acquire(blocking=False):
            return False  # it has begun, or its process has ended before it could
        self._is_withdrawing = True
        try:
            cancelled = self._future.cancel()
        except Exception:  # noqa: BLE001 - see waits_in_pool
            cancelled = False
        if self._kind == "fresh process":
            return True  # the answer is no from now on, and its process is being killed
        self._is_withdrawing = False
        # The standard library's futures can be cancelled only before their call begins; one of
        # another kind may have had its call killed, which takes a moment.
        if cancelled and type(self._future) is Future:
            return True
        self._begin.release()
        return False

    def stop(self, cause: str) -> StopAnswer:
        """Withdraw the call, or kill it; see :meth:`RunningAttempt.stop`."""
        answer = super().stop(cause)
        if answer is StopAnswer.UNWILLING and self._is_cancelled():
            return StopAnswer.WILLING
        return answer

    def give_up(self) -> bool:
        """Go on without the code; see :meth:`RunningAttempt.give_up`."""
        if super().give_up():
            return True
        # It never begins in this process; where else it may run, only two kinds show.
        if self._kind in ("thread", "fresh process"):
            return False
        self.services.abandoned.add(self)
        return True

    def _is_cancelled(self) -> bool:
        try:
            return type(self._future) is not Future and self._future.cancel()
        except Exception:  # noqa: BLE001 - see waits_in_pool
            return False

    def _future_done(self, future: Future[Any]) -> None:
        """Take the outcome of a call that ran in another process; in any thread."""
        if self._ran_here or self._is_withdrawn(future):
            return
        try:
            self.has_ended = True
            self.ended_at = ended_at = self.services.monotonic()
            value, error, text, duration_s = self._collected(future)
            if duration_s is not None:
                self.started_at = max(self.started_at or ended_at, ended_at - duration_s)
            self.send(value, error, text)
        except BaseException as wrong:  # noqa: BLE001 - flowrun's own
            self.deliver(self.crashed(wrong))

    def _is_withdrawn(self, future: Future[Any]) -> bool:
        if self._kind == "fresh process":
            return not self._has_begun_there and not self._begin.acquire(blocking=False)
        return self._is_withdrawing and type(future) is Future and future.cancelled()

    def _collected(
        self, future: Future[Any]
    ) -> tuple[object, BaseException | None, str | None, float | None]:
        """Return value, error, error's text and duration of a call, as far as there are such."""
        from flowrun.executors.remote_call import Reply, unpacked  # noqa: PLC0415 - see start()

        try:
            reply = future.result()
        except BrokenExecutor as error:
            clear = ExecutorError(f"{pool_name(self.spec.executor)} is broken: {error_line(error)}")
            return None, clear, None, None
        except CancelledError as error:
            clear = ExecutorError(
                f"{pool_name(self.spec.executor)} has withdrawn the call before it began; it was"
                " shut down, or its futures were cancelled"
            )
            return None, error if self.seen.cancelled else clear, None, None
        except BaseException as error:  # noqa: BLE001 - whatever a pool may raise
            return None, error, None, None
        if isinstance(reply, bytes):
            reply = unpacked(reply)
        if not isinstance(reply, Reply):
            reply = Reply(None, _no_reply(), "no reply", 0.0)
        if reply.notes is not None:
            self.seen.last_progress = reply.notes.progress or self.seen.last_progress
            if self.seen.logs is not None:
                self.seen.logs.take_over(reply.notes)
        failure = None if reply.text is None else reply.error or _no_reply()
        return reply.value, failure, reply.text, reply.duration_s


def _no_reply() -> FlowrunError:
    return RemoteTaskError("unknown", "no reply")


class PoolCall:
    """A call for an executor that flowrun does not know.

    In this process it runs as any call. An executor that pickles it sends a ``RemoteCall``.
    """

    __slots__ = ("_attempt",)

    def __init__(self, attempt: PoolAttempt) -> None:
        self._attempt = attempt

    def __call__(self) -> None:
        """Run in a thread of this process."""
        self._attempt.run_here()

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as a call without its attempt."""
        return self._attempt.remote_call().__reduce__()


def pool_name(executor: str | None) -> str:
    """Return what an executor is called in an error."""
    return f"executor {executor!r}" if executor else "the executor"
