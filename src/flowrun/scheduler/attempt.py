"""Call one task once, on the event loop or on an executor, and know how it ended."""

from __future__ import annotations

import asyncio
import types
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from flowrun.context import CURRENT
from flowrun.errors import ExecutorError, RemoteTaskError
from flowrun.failure import error_line, error_text
from flowrun.scheduler.inputs import NO_ARGUMENTS, NOTHING, frozen

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping

    from flowrun.config import Clock, Timer
    from flowrun.context import Attempt
    from flowrun.executors import Job
    from flowrun.executors.remote_call import RemoteCall
    from flowrun.graph import Arguments
    from flowrun.registry import TaskSpec
    from flowrun.scheduler.inbox import Inbox
    from flowrun.state.records import Preserved

_Code: TypeAlias = "Coroutine[Any, Any, object]"


class Invocation:
    """One attempt from the scheduler's side.

    It ends exactly once for the scheduler: when the code has ended, or when it is abandoned.
    ``error`` and ``value`` are what the code left; what it means is the scheduler's to judge.

    Attributes:
        number: The task's number in its graph.
        spec: The task.
        attempt: What the task itself sees.
        arguments: What it is called with.
        inputs: What the first call might change, by dependency; empty if there is nothing.
        preserved: The same, to be had anew for a retry or a resume (S4).
        task: The asyncio task, for code on the event loop.
        job: What its thread does, if that is one of flowrun's own.
        future: The executor's future, for code elsewhere.
        started: When the code started, on the monotonic clock; ``None`` before.
        duration_s: How long it ran, as a remote worker has measured it.
        ok: Whether it returned.
        value: What it returned.
        error: What it raised.
        text: The error's text, if it came from afar.
        timed_out: Whether its time was up before it ended.
        stopped: Whether it was told to stop.
        withdrawn: Whether it was taken back before its code began.
        closed: The scheduler has its outcome; what comes later is late.
        abandoned: It was given up while its code still ran.
        unheard: Whether its thread has ended it before the loop heard of it.
        keeps_slot: Whether its slot is not free when it has ended, because its thread, or
            another one, goes on in it.
        patience: When it will be given up, once it was told to stop and has not ended.
        withdraw: Takes it back from flowrun's own threads, if none has begun it; returns whether
            that was so.
    """

    # Defaults of the class, not assignments: most attempts never touch most of them.
    inputs: Mapping[str, object] = NOTHING
    preserved: Preserved | None = None
    task: asyncio.Task[None] | None = None
    job: Job | None = None
    future: Future[Any] | None = None
    started: float | None = None
    duration_s: float | None = None
    ok = False
    value: object = None
    error: BaseException | None = None
    text: str | None = None
    timed_out = False
    stopped = False
    withdrawn = False
    closed = False
    abandoned = False
    unheard = False
    keeps_slot = False
    patience: Timer | None = None
    withdraw: Callable[[Invocation], bool] | None = None
    _coroutine: _Code
    _awaited: Any = None

    def __init__(  # noqa: PLR0913 - made in one place, once per attempt
        self,
        number: int,
        spec: TaskSpec,
        attempt: Attempt,
        arguments: Arguments,
        context: contextvars.Context,
        clock: Clock,
    ) -> None:
        self.number = number
        self.spec = spec
        self.attempt = attempt
        self.arguments = arguments
        self._context = context
        self._clock = clock
        # Popped by whoever ends it: its thread, or the loop that gives it up. Popping is atomic.
        self._claim = [None]

    def go_on(self, coroutine: Any, awaited: object) -> None:  # noqa: ANN401 - a coroutine
        """Take over code that its first step has left suspended."""
        self._coroutine = coroutine
        self._awaited = awaited

    @types.coroutine
    def rest(self) -> Generator[Any, Any, None]:
        """Run suspended code to its end, step by step, each in its own context."""
        run, coroutine, awaited = self._context.run, self._coroutine, self._awaited
        advance = send = coroutine.send
        while True:
            try:
                given = yield awaited
            except GeneratorExit:  # the loop was closed before the code had ended
                run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001 - cancelled: the code's to deal with
                # Not from in here: what the code raises later would seem to be caused by it.
                advance, given = coroutine.throw, error
            try:
                awaited = run(advance, given)
            except StopIteration as end:
                self.value = end.value
                self.ok = True
                return
            except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
                self.error = error
                return
            finally:
                del given  # an error's traceback holds this frame
            advance = send

    def start_awaiting(
        self,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[Invocation], object],
        late: Callable[[Invocation], object],
    ) -> None:
        """Await, on the event loop, the awaitable that a sync callable has returned (I3).

        Args:
            loop: The running loop.
            done: Called on it when the awaitable is done.
            late: Called instead if it was abandoned before.
        """
        self.ok = False
        self._claim = [None]  # its thread has ended, but it has not
        self._done, self._late = done, late
        # In this way also where a task factory takes no context.
        self.task = self._context.run(loop.create_task, _await_value(self))
        self.task.add_done_callback(self._task_done)

    def start_sync(
        self, pool: Executor, kind: str, inbox: Inbox, late: Callable[[Invocation], object]
    ) -> None:
        """Hand the code to an executor; the inbox is told when it has ended.

        Args:
            pool: The executor.
            kind: ``"process"`` for a pool of processes on this machine, ``"other"`` for any
                other executor.
            inbox: Where this invocation is put when it has ended.
            late: Called, in any thread, if it ends after it was abandoned.

        Raises:
            NotPicklableError: For another process, but it cannot be sent there.
            RuntimeError: The pool is broken or shut down.
        """
        self._done = inbox.put
        self._late = late
        from flowrun.executors.remote_call import PackedCall  # noqa: PLC0415 - for other executors only

        # Nobody tells when a foreign pool starts it: its clock starts at submission.
        self._start_clock()
        call = PackedCall(self.remote_call()) if kind == "process" else _ForeignCall(self)
        self.future = future = pool.submit(call)
        future.add_done_callback(self._future_done)

    def remote_call(self) -> RemoteCall:
        """Return the call in the form in which it can leave this process."""
        from flowrun.executors.remote_call import Facts, RemoteCall  # noqa: PLC0415 - see start_sync

        seen = self.attempt
        facts = Facts(seen.run_id, seen.dag_name, seen.task_name, seen.attempt, self.spec.timeout_s)
        args, kwargs = self.arguments
        return RemoteCall(self.spec.function, args, kwargs, facts)

    def run_in(self) -> None:
        """Run the code in this thread, inside the task's own context."""
        self._context.run(self._call)

    def stop(self, cause: str) -> bool:
        """Tell the code to stop; return whether it will, so that it is worth waiting for.

        Code on the event loop gets ``CancelledError``. A queued call is withdrawn; a process
        that can be killed is. A thread can only be told.
        """
        self.stopped = True
        self.attempt.tell(cause)
        if self.task is not None:
            try:
                self.task.cancel()
            except Exception:  # noqa: BLE001 - of a future of somebody else's that it awaits
                return False
            return True
        if self.withdraw is not None:
            self.withdrawn = self.withdraw(self)
            return self.withdrawn
        if self.future is None:
            return False
        try:
            cancelled = self.future.cancel()
        except Exception:  # noqa: BLE001 - one of somebody else's kind; it is not stopped, then
            return False
        # Of the standard library's futures only those of calls that have not begun can be; one of
        # another kind may have had its call killed.
        self.withdrawn = cancelled and type(self.future) is Future
        return cancelled

    def due_at(self, now: float) -> float | None:
        """Return when its time is up, on the monotonic clock; ``None`` if that does not matter."""
        timeout_s = self.spec.timeout_s
        if timeout_s is None or self.stopped or self.closed:
            return None
        # One that waits for a thread has all its time before it (A1).
        return timeout_s + (now if self.started is None else self.started)

    @property
    def waits_in_pool(self) -> bool:
        """Whether a foreign pool has it and has not begun it, as far as that says."""
        try:
            return self.future is not None and not self.future.running()
        except Exception:  # noqa: BLE001 - see stop()
            return False

    @property
    def has_ended(self) -> bool:
        """Whether its thread has ended it, though the loop has not heard of it yet."""
        return not self._claim

    def claim_end(self) -> bool:
        """Settle, between threads, who ends it; ``False`` if the other one was first."""
        try:
            self._claim.pop()
        except IndexError:
            return False
        return True

    def abandon(self) -> None:
        """Go on without it: its thread no longer counts, its end is reported as late."""
        self.closed = True
        self.abandoned = True
        if self.job is not None:
            self.job.abandon()

    def discard(self, *, unused: bool) -> None:
        """Let go of what the code left, and of the reference cycles that tracebacks make.

        Args:
            unused: Nobody has taken the value; a coroutine in it is closed unawaited.
        """
        value, self.value = self.value, None
        self.error = None
        self.task = None  # an asyncio task that carries many must be known to none that ended
        self.inputs = NOTHING
        self.arguments = NO_ARGUMENTS  # the future's callbacks hold this object, and it the future
        if unused and type(value) is types.CoroutineType:
            value.close()

    def _start_clock(self) -> None:
        self.started = started = self._clock.monotonic()
        timeout_s = self.spec.timeout_s
        if timeout_s is not None:
            self.attempt.deadline = started + timeout_s

    def _call(self) -> None:
        CURRENT.set(self.attempt)
        if self.started is None:  # its clock starts with its code (A1)
            self._start_clock()
        if self.inputs:
            self.preserved = frozen(self.inputs)
        args, keywords = self.arguments
        try:
            self.value = self.spec.function(*args, **keywords)
            self.ok = True
        except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
            self.error = error

    def _task_done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and self.error is None:
            # Cancelled before its first step: the body has never run.
            self.error = asyncio.CancelledError()
        if self.closed:
            self._late(self)
        else:
            self._done(self)

    def _future_done(self, future: Future[Any]) -> None:
        if not self.abandoned:
            self._collect(future)
        if self.closed:
            self._late(self)
        else:
            self._done(self)

    def _collect(self, future: Future[Any]) -> None:
        """Read what came back; here, in the thread that brought it, and not on the loop."""
        from flowrun.executors.remote_call import Reply, unpacked  # noqa: PLC0415 - see start_sync

        try:
            reply = future.result()
        except BrokenExecutor as error:
            name = pool_name(self.spec.executor)
            self.error = ExecutorError(f"{name} is broken: {error_line(error)}")
        except CancelledError as error:
            self.error = error
            if not self.stopped:
                name = pool_name(self.spec.executor)
                self.error = ExecutorError(
                    f"{name} has withdrawn the call before it began; it was shut down, or somebody"
                    " has cancelled its futures"
                )
        except BaseException as error:  # noqa: BLE001 - whatever a pool may raise
            self.error = error
        else:
            if isinstance(reply, bytes):
                reply = unpacked(reply)
            if isinstance(reply, Reply):
                self.value, self.text = reply.value, reply.text
                self.duration_s = reply.duration_s
                self.error = reply.error
                self.ok = reply.text is None

    @property
    def failure_text(self) -> str:
        """The error's text with its traceback."""
        if self.text is not None:
            return self.text
        return error_text(self.error or RemoteTaskError("unknown", "no reply"))


def pool_name(executor: str | None) -> str:
    """Return what an executor is called in an error."""
    return f"executor {executor!r}" if executor else "the executor"


def made_coroutine(function: Callable[..., Any], args: Any, keywords: Any) -> _Code:  # noqa: ANN401 - as it is
    """Call what is async in whatever way, and return a coroutine of it."""
    made: Any = function(*args, **keywords)
    return cast("_Code", made) if type(made) is types.CoroutineType else _awaiting(made)


class _ForeignCall:
    """A call for an executor that flowrun does not know.

    In this process it runs as any call; one that is pickled leaves as a ``RemoteCall``.
    """

    __slots__ = ("_invocation",)

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation

    def __call__(self) -> None:
        self._invocation.run_in()

    def __reduce__(self) -> tuple[object, ...]:
        return self._invocation.remote_call().__reduce__()


async def _awaiting(awaitable: Awaitable[object]) -> object:
    return await awaitable


async def _await_value(invocation: Invocation) -> None:
    CURRENT.set(invocation.attempt)
    awaitable: Any = invocation.value
    try:
        invocation.value = await awaitable
        invocation.ok = True
    except BaseException as error:  # noqa: BLE001 - everything is the task's failure (A5)
        invocation.error = error
