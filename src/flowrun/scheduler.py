"""One run: launch what is ready, settle what ended, retry, skip, stop.

A count of unmet parents per task and a heap of ready ones; each task is touched when it
becomes ready and when it settles, each edge once. Everything here happens on one event loop's
thread; other threads speak to it through the inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass, field
from functools import partial
from sys import getrefcount
from typing import TYPE_CHECKING, Any, cast
from weakref import getweakrefcount

from flowrun.attempt import Halfway, Invocation, first_step
from flowrun.context import Attempt
from flowrun.deadlines import Deadlines
from flowrun.errors import (
    ExecutorError,
    FlowrunError,
    ResultNotStorableError,
    RunCancelledError,
    TaskTimeoutError,
)
from flowrun.failure import bounded, error_line, error_text, redacted
from flowrun.following import Following
from flowrun.inbox import Inbox
from flowrun.inputs import NO_ARGUMENTS, UNCHANGING, Inputs, frozen
from flowrun.journal import Receipt
from flowrun.ledger import Ledger
from flowrun.slots import Lane
from flowrun.state.protocol import Change
from flowrun.state.records import Reason
from flowrun.teller import Teller
from flowrun.workers import WorkerThreads

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from flowrun.clock import Timer
    from flowrun.config import SchedulerConfig
    from flowrun.context import RunContext
    from flowrun.graph import Graph
    from flowrun.hooks import HookDispatcher
    from flowrun.journal import Journal
    from flowrun.slots import Slots
    from flowrun.state.records import RunRecord, TaskRecord


@dataclass(frozen=True)
class Services:
    """What all runs of one engine share.

    Attributes:
        pools: Executors by name, the engine's own or handed-in one under ``None``; each with
            its kind (see :meth:`Invocation.start_sync`).
        abandoned: Attempts that were given up and whose code still runs.
    """

    config: SchedulerConfig
    journal: Journal
    hooks: HookDispatcher
    pools: Mapping[str | None, tuple[Executor, str]]
    log: logging.Logger
    redact: Callable[[str], str] | None
    abandoned: set[Invocation] = field(default_factory=set[Invocation])


_SLICE_S = 0.01


class Run:
    """The life of one run on one event loop."""

    def __init__(
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        slots: Slots,
    ) -> None:
        pool = services.pools[None][0]
        self.graph = graph
        self.record = record
        self._services = services
        self._config = services.config
        self._clock = services.config.clock
        self._monotonic = self._clock.monotonic
        self._journal = services.journal
        self._base = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(self._loop, self._handle, self._after_round)
        self._channel = services.hooks.channel(self._base, self._wake)
        self._tell = Teller(record, self._channel, services.log)
        self._live = services.journal.live
        self._ledger = Ledger(graph, record, live=self._live)
        self._tasks = self._ledger.tasks
        self._inputs = Inputs(graph, record, self._tasks, context, live=self._live)
        self._quiet = self._live and not self._tell.tells_start  # nobody is told of a start
        self._lane = Lane(slots, self._granted)
        self._line = slots.queue  # who waits for a slot
        self._held = 0  # slots that its own tasks have left
        self._granted_slots = 0  # slots that it stood in line for; they are used, not passed on
        # Somebody may have set the clock back since the run was created.
        self._offset = max(self._clock.time(), record.created_at) - self._clock.monotonic()
        self._created = self._clock.monotonic()
        self._deadlines: Deadlines[Invocation] = Deadlines(self._loop, self._clock, self._due)
        self._pending = 0  # submitted to the journal, not yet acknowledged
        self._active: set[Invocation] = set()
        self._timers: dict[int, Timer] = {}  # a retry's wait, or the wait for its predecessor
        self._lingering: dict[int, Invocation] = {}
        self._pumping = False
        self._calling = False  # a carrier was made and has not begun
        self._alone = self._loop.get_task_factory() is not None
        self._following = Following(
            graph,
            self._ledger,
            self._inputs,
            self._lane,
            pool if isinstance(pool, WorkerThreads) else None,
            self._loop,
            prepare=self._prepare,
            now=self._now,
            live=self._live,
        )
        self._staged = self._following.staged
        self._instant = 0.0  # the latest reading of the clock
        self._slice_end = 0.0
        self._begun = False
        self._ended = False
        self._stopping: Reason | None = None
        self._cause = ""
        self._raise: BaseException | None = None
        self._timer: Timer | None = None  # the run's deadline; later the wait for its hooks
        self._done: asyncio.Future[None] = self._loop.create_future()

    # From outside.

    async def create(self, create: Callable[[], None]) -> None:
        """Have the store create the run; a cancellation meanwhile ends it once it exists.

        Raises:
            StoreError: The store could not.
        """
        created = asyncio.wrap_future(self._journal.call(create))
        await self._outlast(created)
        created.result()

    async def execute(self, timeout_s: float | None) -> None:
        """Run to the end, whatever happens; the record has been created.

        Raises:
            asyncio.CancelledError: The awaiting task was cancelled; the run has ended.
            RunCancelledError: It was cancelled from elsewhere.
            StoreError: The store failed.
            FlowrunError: Something inside flowrun failed.
        """
        if timeout_s is not None:
            cause = f"the run took longer than timeout_s={timeout_s:g}"
            self._timer = self._later(timeout_s, partial(self.stop, Reason.RUN_TIMED_OUT, cause))
        self._guarded(self._begin)
        await self._outlast(self._done)
        if self._raise is not None:
            error, self._raise = self._raise, None
            raise error

    def request_cancel(self, cause: str) -> None:
        """Cancel the run, from any thread."""
        self._inbox.put(partial(self._cancel, cause))

    async def _outlast(self, future: asyncio.Future[Any]) -> None:
        """Wait for a future; a cancellation ends the run, not the wait."""
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError as error:
                self._cancelled(error)
            except Exception:  # noqa: BLE001 - the caller asks the future itself
                return

    def _cancelled(self, error: asyncio.CancelledError) -> None:
        """Note that the awaiting task was cancelled; what it got is raised at the end."""
        if self._raise is None or isinstance(self._raise, RunCancelledError):
            self._raise = error
        self.stop(Reason.RUN_CANCELLED, "the task that awaited the run was cancelled")

    def _cancel(self, cause: str) -> None:
        if not self._ended and self._stopping is None:
            self._raise = RunCancelledError(self.record.run_id, cause)
            self.stop(Reason.RUN_CANCELLED, cause)

    # The way of a message.

    def _guarded(self, step: Callable[[], object]) -> None:
        """Take one step; an error in flowrun itself ends the run, it never hangs it (R4)."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - by design: see above
            self._break(error)

    def _later(self, delay_s: float, step: Callable[[], object]) -> Timer:
        return self._clock.call_later(self._loop, delay_s, partial(self._guarded, step))

    def _handle(self, message: object) -> None:
        if isinstance(message, Invocation):
            self._guarded(partial(self._ended_elsewhere, message))
            self._following.heard(message)
        elif isinstance(message, Receipt):
            self._guarded(partial(self._acknowledged, message))
        else:
            self._guarded(cast("Callable[[], object]", message))

    def _after_round(self) -> None:
        self._guarded(self._pump)

    def _granted(self) -> None:
        if not self._inbox.put(self._take_grant):
            self._lane.give_back()

    def _take_grant(self) -> None:
        if self._ended:
            self._lane.give_back()
        else:
            self._granted_slots += 1

    def _wake(self) -> None:
        self._inbox.put(_nothing)

    def _acknowledged(self, receipt: Receipt) -> None:
        self._pending -= 1
        receipt.then(receipt.error)
        self._progress()

    def _now(self) -> float:
        """Return epoch seconds that never go back within a run."""
        return self._monotonic() + self._offset

    # Begin and launch.

    def _begin(self) -> None:
        self._begun = True
        self._tell.run_started(self.graph.names)
        self._ledger.begin(self._now())
        if self._stopping is None:
            self._pump()
        self._progress()

    def _pump(self) -> None:
        """Launch what is ready while there are slots; a carrier has to run async tasks."""
        if self._pumping or self._ended or not self._begun:
            return
        self._pumping = True
        self._slice_end = 0.0
        try:
            waits_for_a_carrier = self._next(carry=False) is not None
        finally:
            self._pumping = False
        if waits_for_a_carrier and not self._calling:
            self._calling = True
            carrier = self._loop.create_task(self._carry())
            carrier.add_done_callback(self._carrier_gone)

    def _give_slots_back(self) -> None:
        unused = self._held + self._granted_slots
        self._held = self._granted_slots = 0
        for _ in range(unused):
            self._lane.give_back()

    def _next(self, *, carry: bool) -> int | None:
        """Launch what is ready, up to the first async task.

        Args:
            carry: Whether the caller carries async tasks; if not they are left alone.

        Returns:
            That task, with a slot for it if the caller carries it; or ``None`` if there is none
            to launch, no slot for it, or the loop is to have a turn.
        """
        ready, staged = self._ledger.ready, self._staged
        ordered, late, asyncs = ready.ordered, ready.late, self.graph.is_async
        if staged and ready and ready.first() < self._following.last_staged:
            self._following.unstage()
        while ordered or late or staged:
            if self._instant > self._slice_end and self._slice_is_over():
                return None
            if not carry and not staged and asyncs[number := ready.first()]:
                return number  # a carrier need not stand in line for a slot
            if self._held > 0 and not self._line:
                self._held -= 1  # in the place of the one that has just ended
            elif not self._slot():
                self._following.stage()
                return None
            if not staged and asyncs[ready.first()]:
                return ready.pop()
            self._launch_elsewhere()
        self._give_slots_back()
        return None

    def _slot(self) -> bool:
        """Take a slot, one of its own first; without one it now stands in line."""
        if self._granted_slots:
            self._granted_slots -= 1
            return True
        while self._held > 0:
            self._held -= 1
            if not self._line or self._lane.renew():
                return True
        return self._lane.take()

    def _slice_is_over(self) -> bool:
        """Return whether the loop must have a turn now, and see to it that it goes on after.

        Tasks that end at once are run without a turn of the loop in between; now and then it
        must have one, for timers, cancellations and everybody else.
        """
        if not self._slice_end:
            self._slice_end = self._now() + _SLICE_S
            return False
        self._wake()
        return True

    def _launch_elsewhere(self) -> None:
        """Launch the next sync task, in the slot that was taken for it."""
        try:
            invocation = self._following.take()
            if invocation is None:
                ready = self._ledger.ready
                if not ready or self.graph.is_async[ready.first()]:
                    self._held += 1  # threads were faster
                    return
                number = ready.pop()
                self._launch(number)
                invocation = self._prepare(number, self._tasks[number].attempt)
            else:
                self._launch(invocation.number)
        except BaseException:
            self._held += 1
            raise
        self._hand_over(invocation)

    def _step_here(self, number: int) -> Invocation | None:
        """Launch an async task, in the asyncio task that called; settle it if it ends well."""
        spec, task = self.graph.specs[number], self._tasks[number]
        instant = self._monotonic()
        now = instant + self._offset
        task.start(now, now if task.ready_at is None else task.ready_at)
        if not self._quiet:
            self._tell_launch(task)
        inputs = self._inputs
        arguments = inputs.arguments(number)
        if inputs.may_change and task.attempt == 1:
            changeable = inputs.changeable(number)
            if changeable:
                inputs.keep(number, frozen(changeable))
                instant = self._monotonic()
                task.started_at = instant + self._offset
        record, timeout_s = self.record, spec.timeout_s
        deadline = None if timeout_s is None else instant + timeout_s
        attempt = Attempt(record.run_id, record.dag_name, spec.name, task.attempt, deadline)
        context = self._base.copy()
        value = context.run(first_step, spec.function, arguments, attempt)
        if type(value) is Halfway:
            invocation = Invocation(number, spec, attempt, NO_ARGUMENTS, context, self._clock)
            invocation.go_on_from(value, instant)
            return invocation
        attempt.ended = True
        self._instant = now = self._monotonic() + self._offset
        if self._live:
            task.succeed(now, value)
            self._succeeded(number, task)
        else:
            self._save_success(number, now, value)
        return None

    def _prepare(self, number: int, attempt: int) -> Invocation:
        """Bind a sync task's attempt to what it is given."""
        record, spec = self.record, self.graph.specs[number]
        invocation = Invocation(
            number,
            spec,
            Attempt(record.run_id, record.dag_name, spec.name, attempt),
            self._inputs.arguments(number),
            self._base.copy(),
            self._clock,
        )
        # What can be changed is kept as it is, for a retry or a resume (S4).
        if self._inputs.may_change and attempt == 1:
            changeable = self._inputs.changeable(number)
            if changeable:
                invocation.inputs = changeable
        return invocation

    def _launch(self, number: int) -> None:
        task = self._tasks[number]
        self._instant = now = self._monotonic() + self._offset
        task.start(now, now if task.ready_at is None else task.ready_at)
        self._tell_launch(task)

    def _tell_launch(self, task: TaskRecord) -> None:
        if not self._live:
            self._post(task)
        if self._tell.tells_start:
            self._tell.started(task)

    def _hand_over(self, invocation: Invocation) -> None:
        """Hand a sync task to its executor."""
        spec = invocation.spec
        pool, kind = self._services.pools[spec.executor]
        try:
            if kind == "own":
                invocation.start_in_thread(
                    pool, self._inbox, self._ended_late, self._following.next_of
                )
            else:
                invocation.start_sync(pool, kind, self._inbox, self._ended_late)
        except Exception as error:  # noqa: BLE001 - a pool may refuse in any way
            invocation.error = _refused(error, spec.executor)
            self._ended_attempt(invocation)
            return
        self._watch(invocation)

    def _followed(self, ended: Invocation, invocation: Invocation) -> None:
        """A thread has gone on from one attempt to another."""
        self._ledger.claim(invocation.number)
        self._guarded(partial(self._watch, invocation))
        self._guarded(partial(self._ended_attempt, ended))
        self._held -= 1
        self._tell_launch(self._tasks[invocation.number])
        if self._stopping is not None and not invocation.stopped:
            self._stop_attempt(invocation)

    def _watch(self, invocation: Invocation) -> None:
        self._active.add(invocation)
        timeout_s = invocation.spec.timeout_s
        if timeout_s is not None:
            self._deadlines.add(self._monotonic() + timeout_s, invocation)

    async def _carry(self) -> None:
        """Run ready async tasks one after another, inside one asyncio task.

        One asyncio task for each of them would cost more than all the rest. None may feel what
        ran before it: each has a context of its own, and as soon as anybody but the event loop
        knows the asyncio task, to cancel it later perhaps, it carries no other. Nor does it
        where the user has set a task factory, which is to see them all.
        """
        if self._alone:  # it may be one that makes tasks which begin at once
            await asyncio.sleep(0)
        self._calling = False
        carrier = asyncio.current_task()
        assert carrier is not None  # noqa: S101 - this is one
        references, weak_references = getrefcount(carrier), getweakrefcount(carrier)
        used = False
        while (
            not (used and self._alone)
            and not carrier.cancelling()
            and getrefcount(carrier) == references
            and getweakrefcount(carrier) == weak_references
        ):
            used = True
            number = invocation = None
            try:
                number = self._next(carry=True)
                if number is None:
                    return
                invocation = self._step_here(number)
                if invocation is None:
                    number = None
                    self._held += 1
                    if not self._ledger.open or self._stopping is not None:
                        self._progress()
                    continue
                if invocation.suspended:
                    invocation.task = carrier
                    self._suspended(invocation)
                    await invocation.rest()
                    self._slice_end = 0.0
                    if invocation.closed:
                        self._ended_late(invocation)
                        return
                self._ended_attempt(invocation)
            except Exception as error:  # noqa: BLE001 - by design: see _guarded
                if number is not None and not (invocation and invocation.closed):
                    self._held += 1
                self._break(error)

    def _suspended(self, invocation: Invocation) -> None:
        """An async task has not ended at once: see what else can be launched meanwhile."""
        try:
            self._watch(invocation)
            if self._ledger.ready and (self._held or self._granted_slots or self._lane.may_take):
                self._pump()
        except Exception as error:  # noqa: BLE001 - by design: see _guarded
            self._break(error)

    def _carrier_gone(self, carrier: asyncio.Task[None]) -> None:
        if carrier.cancelled():  # by somebody else, and perhaps before it began
            self._calling = False
        self._guarded(self._pump)

    # An attempt has ended.

    def _ended_here(self, invocation: Invocation) -> None:
        """The asyncio task of an attempt is done; called by the loop."""
        self._guarded(partial(self._ended_attempt, invocation))
        self._guarded(self._pump)

    def _ended_elsewhere(self, invocation: Invocation) -> None:
        """An executor's future is done."""
        if invocation.closed:
            self._ended_late(invocation)
            return
        if invocation.ok and hasattr(type(invocation.value), "__await__"):
            if invocation.stopped:
                invocation.ok = False
            else:
                invocation.start_awaiting(self._loop, self._ended_here)
                return
        if invocation.following is not None:
            self._followed(invocation, invocation.following)
        else:
            self._ended_attempt(invocation)

    def _ended_late(self, invocation: Invocation) -> None:
        """An abandoned attempt has ended after all; called from any thread."""
        self._services.abandoned.discard(invocation)
        invocation.discard(unused=True)
        self._tell.ended_late(invocation.spec.name, invocation.attempt.attempt)
        self._inbox.put(partial(self._predecessor_ended, invocation))

    def _ended_attempt(self, invocation: Invocation) -> None:
        """Judge what an attempt's end means, and settle its task."""
        self._close(invocation)
        number = invocation.number
        now = self._monotonic() + self._offset
        if invocation.recorded or (
            invocation.ok and self._stopping is None and not invocation.timed_out
        ):
            # The way that nearly all attempts go.
            self._succeed(number, now, invocation)
        else:
            self._ended_badly(invocation, number, now)
        invocation.discard(unused=not invocation.ok)
        if self._stopping is not None or not self._ledger.open:
            self._progress()

    def _ended_badly(self, invocation: Invocation, number: int, now: float) -> None:
        error = invocation.error
        if isinstance(error, KeyboardInterrupt):
            self._interrupted(number, now, error)
        elif invocation.timed_out:
            self._timed_out(invocation, now)
        elif self._stopping is not None:
            self._fail_stopped(number, now, abandoned=False)
        else:
            text = self._redacted(invocation.failure_text)
            self._failed(number, now, error or _UNKNOWN, text, Reason.ERROR)

    def _close(self, invocation: Invocation) -> None:
        """Take an attempt off the books; its slot is free for the next one."""
        self._held += 1
        invocation.closed = True
        invocation.attempt.ended = True
        if invocation in self._active:
            self._active.remove(invocation)
            if invocation.spec.timeout_s is not None:
                self._deadlines.forget()
        if invocation.preserved is not None:
            self._inputs.keep(invocation.number, invocation.preserved)
        # Show when the code started, not when it was handed to a pool (A1).
        if invocation.duration_s is not None:
            task, now = self._tasks[invocation.number], self._now()
            task.started_at = max(task.started_at or now, now - invocation.duration_s)
        elif invocation.started is not None:
            self._tasks[invocation.number].started_at = invocation.started + self._offset

    def _interrupted(self, number: int, now: float, error: KeyboardInterrupt) -> None:
        """Ctrl-C landed in a task: end the run as if it had been cancelled, then go further."""
        self._tasks[number].fail(now, self._redacted(error_text(error)), Reason.RUN_CANCELLED)
        self._fail_for_good(number, error_line(error))
        self._raise = error.with_traceback(None)
        self.stop(Reason.RUN_CANCELLED, "KeyboardInterrupt")

    # Success.

    def _succeed(self, number: int, now: float, invocation: Invocation) -> None:
        task, value = self._tasks[number], invocation.value
        if self._live:
            if not invocation.recorded:
                task.succeed(now, value)
            self._succeeded(number, task)
        else:
            self._save_success(number, now, value)

    def _save_success(self, number: int, now: float, value: object) -> None:
        """Make a success durable; only then it counts."""
        snapshot = self._tasks[number].copy()
        snapshot.succeed(now, value)
        if not self.graph.specs[number].retain_result:
            snapshot.release()
        self._pending += 1
        self._journal.submit(
            [Change(self.record, snapshot)],
            self._inbox,
            partial(self._success_saved, number, now, value),
        )

    def _success_saved(
        self, number: int, now: float, value: object, error: Exception | None
    ) -> None:
        task = self._tasks[number]
        if error is None:
            task.succeed(now, value)
            self._succeeded(number, task)
        elif isinstance(error, ResultNotStorableError):
            self._failed(number, now, error, self._redacted(error_text(error)), Reason.ERROR)
        else:
            text = f"its result could not be saved: {error_line(error)}"
            task.fail(now, text, Reason.RUN_BROKEN)
            self._failed_for_good(number, text)
            self._break(error)

    def _succeeded(self, number: int, task: TaskRecord) -> None:
        """A success is acknowledged: tell, let inputs go, let children come (S1)."""
        if self._tell.tells_success:
            self._tell.succeeded(task)
        if type(task.result) not in UNCHANGING:
            self._inputs.may_change = True
        if self._inputs.may_change:
            self._inputs.forget(number)
        self._ledger.settle(number)
        if self._stopping is None:
            self._ledger.open_children(number, task.finished_at or 0.0)

    def _settle(self, number: int) -> None:
        self._inputs.forget(number)
        self._ledger.settle(number)

    # Failure and retry.

    def _failed(  # noqa: PLR0913 - the facts of one failure
        self,
        number: int,
        now: float,
        error: BaseException,
        text: str,
        reason: Reason,
        abandoned: Invocation | None = None,
    ) -> None:
        """An attempt has failed: retry, or fail the task for good."""
        task = self._tasks[number]
        spec = self.graph.specs[number]
        task.fail(now, text, reason, abandoned=abandoned is not None)
        line = self._redacted(error_line(error))
        if self._stopping is not None or not spec.retry.allows(error, task.attempt):
            self._fail_for_good(number, line)
        elif abandoned is None:
            self._retry(number, line)
        else:
            # A2: no second attempt beside the first. Wait for it, as long again as its timeout.
            if not self._live:
                self._post(task)
            self._lingering[number] = abandoned
            self._timers[number] = self._later(
                spec.timeout_s or 0.0, partial(self._lingered, number, line)
            )

    def _predecessor_ended(self, invocation: Invocation) -> None:
        number = invocation.number
        if self._lingering.get(number) is invocation:
            del self._lingering[number]
            self._timers.pop(number).cancel()
            self._retry(number, (self._tasks[number].error or "").rpartition("\n")[2])

    def _lingered(self, number: int, line: str) -> None:
        del self._lingering[number]
        del self._timers[number]
        task = self._tasks[number]
        task.amend(
            f"{task.error}\nNot retried: the timed-out attempt was still running after another"
            f" {self.graph.specs[number].timeout_s:g} s, and two attempts of one task never run"
            " at once. Let the task check current_attempt().cancelled, or run it on a"
            " ProcessPerAttemptExecutor."
        )
        self._fail_for_good(number, line)
        self._progress()
        self._pump()

    def _retry(self, number: int, line: str) -> None:
        task = self._tasks[number]
        error = task.error or ""
        delay_s = self.graph.specs[number].retry.delay_before(task.attempt, self._config.chance())
        task.retry()
        self._tell.retrying(task, self._now(), error, line, delay_s)
        if not self._live:
            self._post(task)
        if delay_s:
            self._timers[number] = self._later(delay_s, partial(self._waited, number))
        else:
            self._ledger.make_ready(number, self._now())

    def _waited(self, number: int) -> None:
        del self._timers[number]
        self._ledger.make_ready(number, self._now())
        self._pump()

    def _fail_for_good(self, number: int, line: str) -> None:
        self._commit([number], partial(self._failed_for_good, number, line))

    def _failed_for_good(self, number: int, line: str) -> None:
        self._tell.failed(self._tasks[number], line)
        self._inputs.leave_for_resume(number)
        self._settle(number)
        if self._stopping is None:
            name = self._tasks[number].name
            self._skip(
                self._ledger.descendants_to_skip(number),
                Reason.UPSTREAM_FAILED,
                f"the task {name!r} upstream of it failed",
            )

    def _skip(self, numbers: list[int], reason: Reason, why: str) -> None:
        """Skip tasks that the ledger has claimed for it."""
        if not numbers:
            return
        now = self._now()
        for number in numbers:
            self._tasks[number].skip(now, reason, f"{reason}: {why}")
        self._commit(numbers, partial(self._skipped, numbers))

    def _skipped(self, numbers: list[int]) -> None:
        for number in numbers:
            self._settle(number)
            self._tell.skipped(self._tasks[number])

    # Time is up.

    def _due(self, invocation: Invocation) -> float | None:
        """A deadline was reached; return when to look again, or ``None``."""
        timeout_s = invocation.spec.timeout_s or 0.0
        if invocation.started is None:
            # Still waiting for a thread: its clock has not started (A1).
            return self._clock.monotonic() + timeout_s
        if self._clock.monotonic() < invocation.started + timeout_s:
            return invocation.started + timeout_s
        self._guarded(partial(self._expire, invocation))
        return None

    def _expire(self, invocation: Invocation) -> None:
        if invocation.stopped or invocation.has_ended:
            return
        invocation.timed_out = True
        if invocation.stop(f"it timed out after {invocation.spec.timeout_s:g} s"):
            # It will end: give it the time to clean up, a bounded one.
            self._later(self._config.cancel_grace_s, partial(self._give_up, invocation))
        else:
            self._give_up(invocation)

    def _give_up(self, invocation: Invocation) -> None:
        """Go on without an attempt that does not end."""
        if invocation.closed or not invocation.claim_end():
            return
        task = self._tasks[invocation.number]
        self._services.abandoned.add(invocation)
        invocation.abandon()
        self._close(invocation)
        now = self._now()
        self._tell.abandoned(task)
        if invocation.timed_out:
            self._timed_out(invocation, now, abandoned=invocation)
        else:
            self._fail_stopped(invocation.number, now, abandoned=True)
        self._progress()
        self._pump()

    def _timed_out(
        self, invocation: Invocation, now: float, abandoned: Invocation | None = None
    ) -> None:
        spec = invocation.spec
        message = (
            f"task {spec.name!r} of DAG {self.record.dag_name!r} timed out: attempt"
            f" {invocation.attempt.attempt} took longer than timeout_s={spec.timeout_s:g}."
            " Give the task more time with timeout_s=..., or no limit with timeout_s=None."
        )
        if abandoned is not None:
            message += " Its code could not be stopped; it was abandoned and may still run."
        error = TaskTimeoutError(message)
        text = f"TaskTimeoutError: {message}"
        if invocation.error is not None and abandoned is None:
            # Where the code was when its time was up.
            text = f"{self._redacted(invocation.failure_text)}\n\n{text}"
        self._failed(invocation.number, now, error, bounded(text), Reason.TIMEOUT, abandoned)

    # Stopping.

    def stop(self, reason: Reason, cause: str) -> None:
        """End the run from outside its tasks: cancelled, out of time, or broken."""
        if self._ended or self._stopping is not None:
            return
        self._stopping = reason
        self._cause = cause
        self._following.stop()
        self._ledger.ready.clear()
        for number, timer in self._timers.items():
            timer.cancel()
            if number in self._lingering:
                del self._lingering[number]
                self._fail_for_good(number, f"not retried: {cause}")
        self._timers.clear()
        for invocation in sorted(self._active, key=_by_number):
            if not invocation.stopped:
                self._stop_attempt(invocation)
        self._progress()

    def _stop_attempt(self, invocation: Invocation) -> None:
        willing = invocation.stop(f"{self._stopping}: {self._cause}")
        config = self._config
        grace_s = config.cancel_grace_s if willing else config.thread_grace_s
        self._later(grace_s, partial(self._give_up, invocation))

    def _fail_stopped(self, number: int, now: float, *, abandoned: bool) -> None:
        reason = self._stopping or Reason.RUN_CANCELLED
        text = f"{reason}: {self._cause}"
        if abandoned:
            text += ". Its code could not be stopped; it was abandoned and may still run."
        self._tasks[number].fail(now, text, reason, abandoned=abandoned)
        self._fail_for_good(number, text)

    def _progress(self) -> None:
        """See whether the run, or its stopping, has come to its end."""
        if self._ended or self._pending or self._active or not self._begun:
            return
        if self._stopping is not None:
            self._finish_stop(self._stopping)
        elif not self._ledger.open:
            self._finish()

    def _finish_stop(self, reason: Reason) -> None:
        """Everything that ran has ended: skip what never started, then finish."""
        for number in self._ledger.halfway():
            self._fail_stopped(number, self._now(), abandoned=False)
        self._skip(self._ledger.never_started(), reason, self._cause)
        if not self._pending and not self._ended:
            self._finish()

    def _break(self, error: Exception) -> None:
        """The store or flowrun itself has failed: end the run with that error (R4)."""
        if self._ended:
            self._complete(error)
            return
        clear = error if isinstance(error, FlowrunError) else self._internal_error(error)
        self._tell.run_broke(clear)
        if self._raise is None or isinstance(self._raise, RunCancelledError):
            self._raise = clear
        try:
            self.stop(Reason.RUN_BROKEN, error_line(clear))
            self._progress()
        except Exception as second:  # noqa: BLE001 - the last resort before a hang
            self._ended = True
            self._complete(second)

    def _internal_error(self, error: Exception) -> FlowrunError:
        clear = FlowrunError(
            f"run {self.record.run_id!r} of DAG {self.record.dag_name!r} ended because of an"
            f" error inside flowrun: {error_line(error)}"
        )
        clear.__cause__ = error
        return clear

    # The end.

    def _finish(self) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._deadlines.close()
        self._lane.leave()
        self._give_slots_back()
        record = self.record
        error = None if self._stopping is None else f"{self._stopping}: {self._cause}"
        record.finish(self._now(), error)
        end = [Change(record, None)]
        if self._stopping is Reason.RUN_BROKEN:
            # What the store refused before may go now, so that the end it shows is whole.
            end = [*(Change(record, task.copy()) for task in self._tasks), *end]
        if self._live:
            self._journal.store.save(end)
            self._end_saved(None)
        else:
            self._pending += 1
            self._journal.submit(end, self._inbox, self._end_saved)

    def _end_saved(self, error: Exception | None) -> None:
        if error is not None:
            self._journal.owe(self.record)
            if self._raise is None:
                self._raise = error
        self._tell.run_ended(self._clock.monotonic() - self._created)
        self._await_hooks()

    def _await_hooks(self) -> None:
        """Every hook is called before the run is over; one that is stuck is left behind."""
        if self._channel.notify_when_idle(partial(self._inbox.put, self._complete)):
            self._complete()
            return
        self._channel.give_up_if_stuck()
        wait_s = min(max(self._config.hook_timeout_s, 0.01), 1.0)
        self._timer = self._later(wait_s, self._await_hooks)

    def _complete(self, error: Exception | None = None) -> None:
        if error is not None and self._raise is None:
            self._raise = error
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(asyncio.InvalidStateError):  # it may be told so twice
            self._done.set_result(None)

    # Saving.

    def _commit(self, numbers: list[int], then: Callable[[], object]) -> None:
        """Make these tasks' records durable, then go on."""
        if self._live:
            then()
            return
        changes = [Change(self.record, self._tasks[number].copy()) for number in numbers]
        self._pending += 1
        self._journal.submit(changes, self._inbox, partial(self._committed, then))

    def _committed(self, then: Callable[[], object], error: Exception | None) -> None:
        if error is not None:
            self._break(error)
        then()

    def _post(self, task: TaskRecord) -> None:
        """Save a record without waiting for it; only a failure is reported."""
        change = [Change(self.record, task.copy())]
        self._journal.submit(change, self._inbox, self._post_failed, silent=True)

    def _post_failed(self, error: Exception | None) -> None:
        self._pending += 1  # its receipt was counted off, but it had never been counted
        self._break(error or _UNKNOWN)

    def _redacted(self, text: str) -> str:
        return redacted(text, self._services.redact)


def _nothing() -> None:
    """Wake the loop and do no more."""


def _by_number(invocation: Invocation) -> int:
    return invocation.number


_UNKNOWN = FlowrunError("the attempt ended without a result and without an error")


def _refused(error: Exception, executor: str | None) -> Exception:
    if isinstance(error, FlowrunError):
        return error
    name = f"executor {executor!r}" if executor else "the executor"
    clear = ExecutorError(f"{name} did not take the task: {error_line(error)}")
    clear.__cause__ = error
    return clear
