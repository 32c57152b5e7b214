"""One run: settle what ended, retry, skip, stop; the launcher launches what is ready.

A count of unmet parents per task and a queue of ready ones; each task is touched when it
becomes ready and when it settles, each edge once. Everything here happens on one event loop's
thread; other threads speak to it through the inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flowrun.errors import (
    FlowrunError,
    ResultNotStorableError,
    RunCancelledError,
    TaskTimeoutError,
)
from flowrun.failure import bounded, error_line, error_text, redacted
from flowrun.registry import is_awaitable
from flowrun.scheduler.attempt import Invocation
from flowrun.scheduler.inbox import Inbox
from flowrun.scheduler.inputs import UNCHANGING, Inputs
from flowrun.scheduler.launcher import Launcher
from flowrun.scheduler.ledger import Ledger
from flowrun.scheduler.teller import Teller
from flowrun.state import NoResult, Reason, RunStatus, TaskStatus
from flowrun.state.entries import Receipt
from flowrun.state.protocol import Change, Successes
from flowrun.state.starts import Starts

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from flowrun.config import SchedulerConfig, Timer
    from flowrun.context import RunContext
    from flowrun.graph import Graph
    from flowrun.hooks import HookDispatcher
    from flowrun.scheduler.slots import Slots
    from flowrun.state import RunRecord, TaskRecord
    from flowrun.state.entries import Acknowledgement
    from flowrun.state.journal import Journal
    from flowrun.state.protocol import Success


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
        self._tells_success = self._tell.tells_success
        self._live = services.journal.live
        self._blocking = services.journal.store.blocking
        self._ledger = Ledger(graph, record, live=self._live)
        self._tasks = self._ledger.tasks
        # Somebody may have set the clock back since the run was created.
        self._offset = max(self._clock.time(), record.created_at) - self._clock.monotonic()
        self._created = self._clock.monotonic()
        self._inputs = Inputs(graph, record, self._tasks, context, live=self._live)
        self._launcher = Launcher(
            graph,
            record,
            self._ledger,
            self._inputs,
            slots,
            services.pools,
            clock=self._clock,
            offset=self._offset,
            inbox=self._inbox,
            base=self._base,
            settler=self,
            quiet=self._live and not self._tell.tells_start,
            quiet_success=not self._tells_success,
            live=self._live,
            writer=None if self._live else self,
        )
        self._pending = 0  # ended or submitted to the journal, not yet acknowledged
        self._unsaved: list[Success] = []
        self._starts = Starts(record, self._inbox, self._post_failed)
        self._active = self._launcher.active
        self._timers: dict[int, Timer] = {}  # a retry's wait, or the wait for its predecessor
        self._lingering: dict[int, Invocation] = {}
        self._begun = False
        self._ended = False
        self._stopping: Reason | None = None
        self._cause = ""
        self._raise: BaseException | None = None
        self._timer: Timer | None = None  # the run's deadline; later the wait for its hooks
        self._is_complete = False
        self._is_broken = False  # the store may have refused something of it
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
        self._begun = True  # from here on it ends like any other, whatever happens
        self._guarded(self._begin)
        while not self._is_complete:  # without shield(): it takes the loop one more turn
            try:
                await self._done
            except asyncio.CancelledError as cancelled:
                self._done = self._loop.create_future()  # the old one was cancelled with it
                self._cancelled(cancelled)
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
        cause = "the task that awaited the run was cancelled"
        self._guarded(partial(self.stop, Reason.RUN_CANCELLED, cause))

    def _cancel(self, cause: str) -> None:
        if not self._ended and self._stopping is None:
            self._raise = RunCancelledError(self.record.run_id, cause)
            self.stop(Reason.RUN_CANCELLED, cause)

    # The way of a message.

    def _guarded(self, step: Callable[[], object]) -> None:
        """Take one step; an error in flowrun itself ends the run, it never hangs it (R4)."""
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - by design: see above
            self.broke(error)

    def _later(self, delay_s: float, step: Callable[[], object]) -> Timer:
        return self._clock.call_later(self._loop, delay_s, partial(self._guarded, step))

    def _handle(self, message: object) -> None:
        if isinstance(message, Invocation):
            try:
                self._ended_elsewhere(message)
            except BaseException as error:  # noqa: BLE001 - see _guarded
                self.broke(error)
            self._launcher.heard(message)
        elif isinstance(message, Receipt):
            self._pending -= len(message.thens) - 1
            try:
                self._acknowledged(message)
            except BaseException as error:  # noqa: BLE001 - see _guarded
                self.broke(error)
            finally:
                self._pending -= 1  # the last one, once all that it has led to is counted
            self._guarded(self.progressed)
        else:
            self._guarded(cast("Callable[[], object]", message))

    def _after_round(self) -> None:
        if self._unsaved:
            self._guarded(self._save_successes)
        self._guarded(self._launcher.pump)
        if self._stopping is not None or not self._ledger.open:  # threads may have ended the last
            self._guarded(self.progressed)

    def _wake(self) -> None:
        self._inbox.put(_nothing)

    def _acknowledged(self, receipt: Receipt) -> None:
        error = receipt.error
        for then in receipt.thens:
            try:
                then(error)
            except BaseException as internal:  # noqa: BLE001 - see _guarded
                self.broke(internal)

    def _now(self) -> float:
        """Return epoch seconds that never go back within a run."""
        return self._monotonic() + self._offset

    # Begin.

    def _begin(self) -> None:
        self._tell.run_started(self.graph.names)
        self._ledger.begin(self._now())
        if self._stopping is None:
            self._launcher.begin()
            self._launcher.pump()
        self.progressed()

    def launched(self, task: TaskRecord) -> None:
        """An attempt begins, or is handed to an executor."""
        if not self._live:
            if self._is_noted(task):
                self._journal.note_start(task, self._starts)
            else:
                self._post(task)
        if self._tell.tells_start:
            self._tell.started(task)

    def started(self, task: TaskRecord) -> None:
        """An attempt begins in a worker thread, which calls this; the ledger's lock is held."""
        if not self._live:
            if self._is_noted(task):
                self._journal.note_start(task, self._starts)
            else:
                self._inbox.put_unhurried(partial(self._post, task))
        if self._tell.tells_start:
            self._tell.started(task)

    def may_save(self, number: int) -> bool:
        """Return whether threads may save a task's success, which they do soon if they may."""
        task = self._tasks[number]
        if not self._is_noted(task):
            return False
        self._journal.drop_start(task)
        return True

    def save(self, ended: Sequence[Success]) -> bool:
        """Save successes in the thread that calls, if that can be done at once."""
        if not self._ledger.retains_all:
            specs, released = self.graph.specs, NoResult.RELEASED
            ended = [
                (number, now, value if specs[number].retain_result else released)
                for number, now, value in ended
            ]
        return self._journal.save_in_thread(Successes(self.record, self._tasks, ended))

    def take_over(self, ended: Sequence[Success]) -> None:
        """Save and settle successes that threads have left to the loop."""
        if self._ledger.retains_all:
            self._pending += len(ended)
            self._unsaved += ended
        else:
            for success in ended:
                self.ended_well(*success)
        self._save_successes()

    def _is_noted(self, task: TaskRecord) -> bool:
        """Whether a thread may write of this attempt: nothing has been written before of its task.

        Otherwise what waits in the journal could come after it.
        """
        return self._blocking and task.attempt == 1

    # An attempt has ended.

    def _ended_here(self, invocation: Invocation) -> None:
        """The asyncio task of an attempt is done; called by the loop."""
        self._guarded(partial(self.ended, invocation))
        self._guarded(self._launcher.pump)

    def _ended_elsewhere(self, invocation: Invocation) -> None:
        """An executor's future is done."""
        if invocation.closed:
            self.ended_late(invocation)
            return
        if invocation.ok and is_awaitable(invocation.value):
            if invocation.stopped:
                invocation.ok = False
            else:
                invocation.start_awaiting(self._loop, self._ended_here, self.ended_late)
                self._launcher.look_again(invocation)
                return
        self.ended(invocation)

    def ended_late(self, invocation: Invocation) -> None:
        """An abandoned attempt has ended after all; called from any thread."""
        self._services.abandoned.discard(invocation)
        invocation.discard(unused=True)
        self._tell.ended_late(invocation.spec.name, invocation.attempt.attempt)
        self._inbox.put(partial(self._predecessor_ended, invocation))

    def ended(self, invocation: Invocation) -> None:
        """Judge what an attempt's end means, and settle its task."""
        self._close(invocation)
        number = invocation.number
        now = self._monotonic() + self._offset
        if invocation.ok and self._stopping is None and not invocation.timed_out:
            self.ended_well(number, now, invocation.value)
        else:
            self._ended_badly(invocation, number, now)
        invocation.discard(unused=not invocation.ok)
        if self._stopping is not None or not self._ledger.open:
            self.progressed()

    def _ended_badly(self, invocation: Invocation, number: int, now: float) -> None:
        error = invocation.error
        if isinstance(error, KeyboardInterrupt):
            self._interrupted(number, now, error)
        elif invocation.timed_out:
            self._timed_out(invocation, now)
        elif self._stopping is not None and invocation.withdrawn:
            self._tasks[number].withdraw()  # it is skipped with all that have not started (R2)
        elif self._stopping is not None:
            self._fail_stopped(number, now, abandoned=False)
        else:
            text = self._redacted(invocation.failure_text)
            self._failed(number, now, error or _UNKNOWN, text, Reason.ERROR)

    def _close(self, invocation: Invocation) -> None:
        """Take an attempt off the books."""
        self._launcher.take_back(invocation)
        if invocation.patience is not None:  # it would keep the run alive until then
            invocation.patience.cancel()
            invocation.patience = None
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
        self._raise = error.with_traceback(None)
        self._pending += 1  # the run is not over before this is told
        try:
            self.stop(Reason.RUN_CANCELLED, "KeyboardInterrupt")
        finally:
            self._pending -= 1
            self._fail_for_good(number, self._redacted(error_line(error)))

    # Success.

    def ended_well(self, number: int, now: float, value: object) -> None:
        """A task has returned: make its success durable; only then it counts."""
        if self._live:
            with self._ledger.lock:
                self.succeed(number, now, value)
            return
        task = self._tasks[number]
        if not (self._is_noted(task) and self.graph.specs[number].retain_result):
            change = [Change(self.record, self._succeeded_snapshot(task, number, now, value))]
            self._submit(change, partial(self._success_saved, number, now, value))
            return
        self._journal.drop_start(task)
        unsaved, ready = self._unsaved, self._ledger.ready
        unsaved.append((number, now, value))
        self._pending += 1
        if not (ready.ordered or ready.late or self._active) or len(unsaved) >= _MOST_UNSAVED:
            self._save_successes()
        elif len(unsaved) == 1:
            self._loop.call_soon(self._guarded, self._save_unsaved)

    def _save_unsaved(self) -> None:
        """Save what has ended since the loop's last turn."""
        self._save_successes()
        self._launcher.pump()
        if self._stopping is not None or not self._ledger.open:
            self.progressed()

    def _save_successes(self) -> None:
        """Save them here, if nothing of the run goes on meanwhile and it takes no time."""
        ended: list[Success] = []
        saved = False
        try:
            ended, self._unsaved = self._unsaved, []
            if ended and not self._active:
                saved = self._journal.save_on_loop(Successes(self.record, self._tasks, ended))
        finally:
            if ended and not saved:  # or it is not known, as Ctrl-C came: once more does no harm
                successes = Successes(self.record, self._tasks, ended)
                self._journal.submit_successes(successes, self._inbox, self._successes_saved)
        if saved:
            self._pending -= len(ended)
            self._settle_successes(ended, None)

    def _successes_saved(self, ended: Sequence[Success], error: Exception | None) -> None:
        self._pending -= len(ended) - 1  # one of them was counted off with the receipt
        self._settle_successes(ended, error)

    def _settle_successes(self, ended: Sequence[Success], error: Exception | None) -> None:
        if error is None:
            with self._ledger.lock:
                broken = self.settle(ended)
            if broken is not None:
                self.broke(broken)
            return
        for number, now, value in ended:
            try:
                self._success_saved(number, now, value, error)
            except BaseException as internal:  # noqa: BLE001 - see _guarded
                self.broke(internal)

    def settle(self, ended: Sequence[Success]) -> BaseException | None:
        """Settle successes that are saved, in whatever thread; the ledger's lock is held.

        Returns:
            What went wrong with one of them, if anything did; the others are settled.
        """
        broken: BaseException | None = None
        for number, now, value in ended:
            try:
                self.succeed(number, now, value)
            except BaseException as error:  # noqa: BLE001 - for the caller, to end the run with
                broken = error
        return broken

    def _succeeded_snapshot(
        self, task: TaskRecord, number: int, now: float, value: object
    ) -> TaskRecord:
        snapshot = self._snapshot(task)
        snapshot.succeed(now, value)
        if not self.graph.specs[number].retain_result:
            snapshot.release()
        return snapshot

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
            text = self._redacted(f"its result could not be saved: {error_line(error)}")
            task.fail(now, text, Reason.RUN_BROKEN)
            self._failed_for_good(number, text)
            self.broke(error)

    def succeed(self, number: int, now: float, value: object) -> None:
        """Record a success that is durable, in whatever thread; the ledger's lock is held."""
        task = self._tasks[number]
        task.succeed(now, value)
        if self._tells_success or self._inputs.may_change or id(type(value)) not in UNCHANGING:
            self._acknowledge(number, task)
        else:
            self._ledger.succeeded(number, now, self._stopping is None)

    def _succeeded(self, number: int, task: TaskRecord) -> None:
        """A success is recorded: acknowledge it."""
        with self._ledger.lock:
            self._acknowledge(number, task)

    def _acknowledge(self, number: int, task: TaskRecord) -> None:
        """Tell of a success, let inputs go, let children come (S1); the lock is held."""
        if self._tells_success:
            self._tell.succeeded(task)
        inputs = self._inputs
        if id(type(task.result)) not in UNCHANGING:
            inputs.may_change = True
        if inputs.may_change:
            inputs.forget(number)
        self._ledger.succeeded(number, task.finished_at or 0.0, self._stopping is None)

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
        if self._stopping is not None or not spec.retry.allows(
            error, task.attempt, partial(self._tell.noted, task)
        ):
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
        task, spec = self._tasks[number], self.graph.specs[number]
        remedy = (
            "Let the task go on with the CancelledError that it gets."
            if self.graph.is_async[number]
            else "Let the task check current_attempt().cancelled, or run it on a"
            " ProcessPerAttemptExecutor."
        )
        task.amend(
            f"{task.error}\nNot retried: the timed-out attempt was still running after another"
            f" {spec.timeout_s:g} s, and two attempts of one task never run at once. {remedy}"
        )
        self._fail_for_good(number, line)
        self.progressed()
        self._launcher.pump()

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
        self._launcher.pump()

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

    def due(self, invocation: Invocation) -> None:
        """A deadline was reached."""
        self._guarded(partial(self._expire, invocation))

    def _expire(self, invocation: Invocation) -> None:
        if invocation.stopped or invocation.has_ended:
            return
        invocation.timed_out = True
        willing = True
        try:
            willing = invocation.stop(f"it timed out after {invocation.spec.timeout_s:g} s")
        finally:
            if willing:  # give it the time to clean up, a bounded one
                self._give_up_later(invocation, self._config.cancel_grace_s)
        if not willing:
            self._give_up(invocation)

    def _give_up_later(self, invocation: Invocation, delay_s: float) -> None:
        invocation.patience = self._later(delay_s, partial(self._give_up, invocation))

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
        self.progressed()
        self._launcher.pump()

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
        broken: BaseException | None = None
        for step in self._steps_to_stop():
            try:
                step()
            except BaseException as error:  # noqa: BLE001 - the others have to be stopped as well
                broken = broken or error
        if broken is None:
            self.progressed()
        else:
            self.broke(broken)

    def _steps_to_stop(self) -> Iterator[Callable[[], object]]:
        """Return what is to be done one after the other, whatever becomes of each."""
        yield self._launcher.stop
        for timer in self._timers.values():
            yield timer.cancel
        self._timers.clear()
        for number in [*self._lingering]:
            del self._lingering[number]
            yield partial(self._fail_for_good, number, f"not retried: {self._cause}")
        for invocation in sorted(self._active, key=_order_of_stopping):
            if not invocation.stopped:
                yield partial(self._stop_attempt, invocation)
        yield self._inbox.look_again  # Ctrl-C may have kept it from that

    def _stop_attempt(self, invocation: Invocation) -> None:
        willing = False
        try:
            willing = invocation.stop(f"{self._stopping}: {self._cause}")
        finally:
            config = self._config
            grace_s = config.cancel_grace_s if willing else config.thread_grace_s
            self._give_up_later(invocation, grace_s)

    def _fail_stopped(self, number: int, now: float, *, abandoned: bool) -> None:
        reason = self._stopping or Reason.RUN_CANCELLED
        text = f"{reason}: {self._cause}"
        if abandoned:
            text += ". Its code could not be stopped; it was abandoned and may still run."
        self._tasks[number].fail(now, text, reason, abandoned=abandoned)
        self._fail_for_good(number, text)

    def progressed(self) -> None:
        """See whether the run, or its stopping, has come to its end."""
        if self._ended or self._pending > 0 or self._active or not self._begun:
            return
        if self._launcher.unsettled:
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

    def broke(self, error: BaseException, *, elsewhere: bool = False) -> None:
        """The store or flowrun itself has failed: end the run with that error (R4).

        Args:
            error: How.
            elsewhere: Whether in another thread than the event loop's.
        """
        self._is_broken = True
        clear, reason = error, Reason.RUN_BROKEN
        if isinstance(error, KeyboardInterrupt) and not elsewhere:
            reason = Reason.RUN_CANCELLED  # Ctrl-C, while flowrun's own code ran
        elif not isinstance(error, FlowrunError):
            clear = self._internal_error(error)
        if self._ended:
            self._complete(clear)
            return
        if self._raise is None or isinstance(self._raise, RunCancelledError):
            self._raise = clear
        try:
            line, text = self._redacted(error_line(clear)), self._redacted(error_text(clear))
            with contextlib.suppress(BaseException):  # to tell of it may be what has gone wrong
                self._tell.run_broke(line, text)
            self.stop(reason, line)
            self.progressed()
        except BaseException as second:  # noqa: BLE001 - the last resort before a hang
            self._end_untold(second)

    def _end_untold(self, error: BaseException) -> None:
        """End the run where even its end cannot be told: its record and its slots, at least."""
        self._ended = True
        reason, now = Reason.RUN_BROKEN, self.record.created_at
        with contextlib.suppress(Exception):
            now = self._now()
        for task in self._tasks:
            if task.status is TaskStatus.RUNNING:
                task.fail(now, f"{reason}: {self._cause}", reason)
            elif task.status is TaskStatus.PENDING:
                task.skip(now, reason, f"{reason}: {self._cause}")
        with contextlib.suppress(Exception):
            self._launcher.leave()
        if self.record.finished_at is None:
            self.record.finish(now, f"{reason}: {self._cause}")
            if self._live:
                self._journal.store.save([Change(self.record, None)])
            else:
                self._journal.owe(self.record)
        self._complete(error)

    def _internal_error(self, error: BaseException) -> FlowrunError:
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
        self._launcher.leave()
        record, error = self.record, None
        # What came too late to stop anything has not ended the run.
        if self._stopping is not None and (
            self._is_broken or record.status is not RunStatus.SUCCESS
        ):
            error = f"{self._stopping}: {self._cause}"
        record.finish(self._now(), error)
        end = [Change(record, None)]
        if self._is_broken:  # perhaps while it was being stopped for another reason
            # What the store refused before may go now, so that the end it shows is whole.
            end = [*(Change(record, self._snapshot(task)) for task in self._tasks), *end]
        if self._live:
            self._journal.store.save(end)
            self._end_saved(None)
        else:
            self._submit(end, self._end_saved)

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
        self._services.hooks.give_up_stuck()
        wait_s = min(max(self._config.hook_timeout_s, 0.01), 1.0)
        self._timer = self._later(wait_s, self._await_hooks)

    def _complete(self, error: BaseException | None = None) -> None:
        if error is not None and self._raise is None:
            self._raise = error
        if self._timer is not None:
            self._timer.cancel()
        self._is_complete = True
        if not self._done.done():  # it may be told so twice, or be cancelled at this moment
            self._done.set_result(None)

    # Saving.

    def _commit(self, numbers: list[int], then: Callable[[], object]) -> None:
        """Make these tasks' records durable, then go on."""
        if self._live:
            then()
            return
        changes = [Change(self.record, self._snapshot(self._tasks[number])) for number in numbers]
        self._submit(changes, partial(self._committed, then))

    def _submit(self, changes: Sequence[Change], then: Acknowledgement) -> None:
        """Have the journal save changes; the run is not over before they are acknowledged."""
        self._pending += 1
        try:
            self._journal.submit(changes, self._inbox, then)
        except BaseException:
            self._pending -= 1
            raise

    def _committed(self, then: Callable[[], object], error: Exception | None) -> None:
        if error is not None:
            self.broke(error)
        then()

    def _post(self, task: TaskRecord) -> None:
        """Save a record without waiting for it; only a failure is reported."""
        change = [Change(self.record, self._snapshot(task))]
        self._journal.submit(change, self._inbox, self._post_failed, silent=True)

    def _snapshot(self, task: TaskRecord) -> TaskRecord:
        """Return a task as it is now, for the store."""
        self._journal.drop_start(task)
        return task.copy()

    def _post_failed(self, error: Exception | None) -> None:
        self._pending += 1  # its receipt was counted off, but it had never been counted
        self.broke(error or _UNKNOWN)

    def _redacted(self, text: str) -> str:
        return redacted(text, self._services.redact)


def _nothing() -> None:
    """Wake the loop and do no more."""


def _order_of_stopping(invocation: Invocation) -> tuple[bool, int]:
    """First what waits in a pool: it would begin as soon as something else there has ended."""
    return not invocation.waits_in_pool, invocation.number


_MOST_UNSAVED = 128

_UNKNOWN = FlowrunError("the attempt ended without a result and without an error")
