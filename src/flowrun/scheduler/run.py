"""The driver of one run: carries out what ``RunState`` decides, on asyncio.

It owns what the state must not know: the event loop, the inbox, attempts, the store's journal,
hooks and log. Everything here happens on the thread of the run's event loop, but for what says
that it may be called from any thread. No rule of a run is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flowrun.context import Attempt
from flowrun.errors import (
    ExecutorError,
    FlowrunError,
    ResultNotStorableError,
    RunCancelledError,
    TaskTimeoutError,
)
from flowrun.executors import WorkerThreads
from flowrun.failure import described, error_line
from flowrun.registry import UPSTREAM
from flowrun.scheduler.async_attempt import AsyncAttempt
from flowrun.scheduler.attempt import (
    NO_ARGUMENTS,
    AttemptServices,
    RunningAttempt,
    close_unawaited,
    internal_error,
)
from flowrun.scheduler.inbox import Inbox, wait_for_answer
from flowrun.scheduler.messages import (
    FLOWRUN_FAILED,
    Failed,
    Failure,
    Finish,
    GivenUp,
    GiveUp,
    Refusal,
    ReportAbandoned,
    ReportFailure,
    ReportNote,
    ReportRetry,
    ReportSkip,
    ReportStart,
    ReportSuccess,
    Save,
    Saved,
    SlotsGranted,
    Start,
    Stop,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Succeeded,
)
from flowrun.scheduler.notifier import Notifier
from flowrun.scheduler.run_state import RunState
from flowrun.scheduler.sync_attempt import AwaitOnLoop, PoolAttempt, ThreadAttempt, pool_name
from flowrun.state import Change, Reason, TaskStatus

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from flowrun.config import SchedulerConfig, Timer
    from flowrun.context import RunContext
    from flowrun.graph import Arguments, Graph
    from flowrun.hooks import HookDispatcher
    from flowrun.scheduler.limits import SharedLimits
    from flowrun.scheduler.messages import Event, Instruction
    from flowrun.state import RunRecord, TaskRecord
    from flowrun.state.journal import Errors, Journal

_FEW_INTERRUPTS = 3
_SLICE_S = 0.01
"""The loop gets a turn after so long, however much there is to do."""


@dataclass(frozen=True)
class Services:
    """What all runs of one engine share.

    Attributes:
        pools: Executors by name, the engine's own or handed-in one under ``None``; each with
            its kind (see :meth:`PoolAttempt.start`).
        encoders: Where large results of async tasks are encoded.
        abandoned: Attempts that were given up and whose code still runs.
    """

    config: SchedulerConfig
    journal: Journal
    hooks: HookDispatcher
    pools: Mapping[str | None, tuple[Executor, str]]
    encoders: Executor
    log: logging.Logger
    redact: Callable[[str], str] | None
    abandoned: set[RunningAttempt] = field(default_factory=set[RunningAttempt])


class Run:
    """One run on one event loop.

    Args:
        services: What the engine's runs share.
        graph: The graph.
        record: The run, before it is created in the store.
        context: What the caller gave for tasks that ask for a ``RunContext``.
        limits: Where its slots come from.
        values: Results of tasks that a resume keeps, by name, as far as others need them.
    """

    def __init__(  # noqa: PLR0913 - wired in one place, of an engine's parts
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        limits: SharedLimits,
        values: Mapping[str, object],
    ) -> None:
        self.graph = graph
        self.record = record
        self._services = services
        self._context = context
        self._limits = limits
        self._clock = services.config.clock
        self._monotonic = self._clock.monotonic
        self._blocks = services.journal.store.blocking
        self._loop = asyncio.get_running_loop()
        self._base = contextvars.copy_context()
        self._inbox = Inbox(self._loop, self._read_inbox)
        self._channel = services.hooks.channel(self._base, self._wake)
        self._notifier = Notifier(record, self._channel, services.log)
        self._attempts: dict[int, RunningAttempt] = {}
        self._begun_at = self._monotonic()
        self._state = RunState(
            graph,
            record,
            dict(values),
            # The clock may have been set back since the run was created.
            offset=max(self._clock.time(), record.created_at) - self._begun_at,
            cancel_grace_s=services.config.cancel_grace_s,
            thread_grace_s=services.config.thread_grace_s,
            reports_starts=self._notifier.reports_starts,
            reports_successes=self._notifier.reports_successes,
            keeps_slots=self._is_alone,
        )
        self._attempt_services = self._make_attempt_services()
        self._events: list[Event] = []
        self._instructions: deque[Instruction] = deque()
        self._is_turning = False
        self._is_turn_due = False
        self._timer: Timer | None = None
        self._timer_due = float("inf")
        self._wanted = 0
        self._has_begun = False
        self._may_exist = False
        self._is_lost = False
        self._is_awaiter_lost = False
        self._is_end_answered = False
        self._is_over = False
        self._raise: BaseException | None = None
        self._ended: RunRecord | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._awaiter = asyncio.current_task()  # see close_awaiter()

    def _make_attempt_services(self) -> AttemptServices:
        services, store = self._services, self._services.journal.store
        encode: Any = getattr(store, "encode_result", None)
        is_small: Callable[[object], bool] | None = None
        if encode is not None:
            from flowrun.state import serializers  # noqa: PLC0415 - for stores of bytes

            is_small = serializers.is_small
        return AttemptServices(
            loop=self._loop,
            config=services.config,
            context=self._context,
            post=self._inbox.put,
            post_quietly=self._inbox.put_quietly,
            report=self._attempt_ended,
            encode=None if encode is None else partial(_encoded, encode, self.record.run_id),
            is_small=is_small,
            encoders=services.encoders,
            redact=services.redact,
            abandoned=services.abandoned,
            log=services.log,
            broke=self._broke,
        )

    # -- from outside ----------------------------------------------------------------------------

    async def create(self, create: Callable[[], None]) -> None:
        """Have the store create the run; a cancellation meanwhile ends it once it exists.

        Raises:
            StoreError: The store could not.
        """
        self._may_exist = True
        journal = self._services.journal
        try:
            if not journal.store.blocking:
                create()
                return
            created = journal.call(create)
            while not created.is_done:
                try:
                    await wait_for_answer(created)
                except asyncio.CancelledError as error:
                    self._awaiter_cancelled(error)
            created.result()
        except Exception:
            self._may_exist = False
            raise

    async def execute(self, timeout_s: float | None) -> None:
        """Run to the end, whatever happens; the record has been created.

        Raises:
            asyncio.CancelledError: The awaiting task was cancelled; the run has ended.
            RunCancelledError: It was cancelled from elsewhere.
            StoreError: The store failed.
            FlowrunError: Something inside flowrun failed.
        """
        self._has_begun = True
        if not self._is_over:  # pragma: no branch - a Ctrl-C while it was created may have ended it
            self._guarded(partial(self._begin, timeout_s))
        while not self._is_over:  # without shield(), which takes the loop one more turn
            try:
                await self._done
            except asyncio.CancelledError as error:
                self._done = self._loop.create_future()  # the old one was cancelled with it
                self._awaiter_cancelled(error)
        if self._raise is not None:
            reason, self._raise = self._raise, None
            raise reason

    def running(self) -> dict[str, TaskRecord]:
        """Return the records of the tasks that run now, from any thread (they are values)."""
        return {unit.record.name: unit.record for unit in self._state.active.copy().values()}

    def request_cancel(self, cause: str) -> None:
        """Cancel the run, from any thread."""
        self._inbox.put(partial(self._cancel, cause))

    def grant(self, count: int) -> bool:
        """Take slots that the run has asked for; see :class:`SlotHolder`."""
        return self._inbox.put(SlotsGranted(count))

    def end_lost(self, error: BaseException | None = None, *, at_exit: bool = False) -> None:
        """End a run that nobody awaits any more; called by one thread only.

        Its loop was closed under it, or a bare ``KeyboardInterrupt`` has come out of
        :meth:`create` or :meth:`execute`.

        Args:
            error: What has ended it, if it was not its loop.
            at_exit: Whether the interpreter may be ending, so that nothing can be waited for: the
                engine's next call saves the end, or the next process to open the file ends the run.
        """
        if self._may_exist and not self._is_over:
            cause = "its event loop was closed" if error is None else error_line(error)
            self._end_untold(error or FlowrunError(cause), cause, at_exit=at_exit)

    def close_awaiter(self) -> None:
        """Close the coroutine that awaits the run on a loop that was closed.

        Otherwise it would be collected at some time, in the middle of any code, perhaps with the
        engine's locks taken, which it needs to leave.
        """
        awaiter, self._awaiter = self._awaiter, None
        if awaiter is not None and not awaiter.done():  # pragma: no branch - or it is gone
            coroutine: Any = awaiter.get_coro()
            with contextlib.suppress(BaseException):  # it may be anybody's
                coroutine.close()

    def _begin(self, timeout_s: float | None) -> None:
        now = self._monotonic()
        self._notifier.run_started(self.graph.names)
        if timeout_s is not None:
            self._state.set_timeout(now, timeout_s)
        self._instructions.extend(self._state.begin(now))
        self._turn()

    def _awaiter_cancelled(self, error: asyncio.CancelledError) -> None:
        """The awaiting task was cancelled; what it got is raised at the end."""
        if self._raise is None or isinstance(self._raise, RunCancelledError):
            self._raise = error
        cause = "the task that awaited the run was cancelled"
        self._events.append(StopRequested(Reason.RUN_CANCELLED, cause))
        if self._has_begun:
            # A bare KeyboardInterrupt may have stopped the callback that was to take them.
            self._guarded(self._take_messages)
            self._fail_lost(list(self._state.active))
            self._turn()

    def _cancel(self, cause: str) -> None:
        # Between the last record and the end of the run nothing is left to cancel.
        if not self._state.is_finished and not self._state.is_stopping:  # pragma: no branch
            if self._raise is None:
                self._raise = RunCancelledError(self.record.run_id, cause)
            self._events.append(StopRequested(Reason.RUN_CANCELLED, cause))

    # -- turns -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have the loop look; from any thread."""
        self._inbox.put(_nothing)

    def _read_inbox(self) -> None:
        self._guarded(self._take_messages)
        if self._has_begun:  # pragma: no branch - a cancel may come while the run is created
            self._turn()

    def _take_messages(self) -> None:
        for message in self._inbox.take():
            if type(message) is AwaitOnLoop:
                self._guarded(partial(self._await_on_loop, message))
            elif callable(message):
                self._guarded(message)
            else:
                self._events.append(cast("Event", message))
                if type(message) is Succeeded or type(message) is Failed:
                    self._note_end(message)

    def _note_end(self, event: Succeeded | Failed) -> None:
        """Forget an attempt whose outcome is among the events."""
        self._attempts.pop(event.unit, None)
        if type(event) is Failed and event.failure.interrupts:
            self._raise = KeyboardInterrupt()  # Ctrl-C goes further once the run has ended

    def _attempt_ended(self, event: Succeeded | Failed) -> None:
        """An attempt on the loop has ended; others may end in the same turn of the loop."""
        self._events.append(event)
        self._note_end(event)
        if not self._attempts:
            self._turn()
        elif not (self._is_turning or self._is_turn_due):
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Apply what has happened, and carry out what follows from it."""
        if self._is_turning or self._is_over:
            return
        self._is_turning = True
        self._is_turn_due = False
        try:
            if self._is_lost:  # pragma: no cover - a Ctrl-C came while the run was being ended
                self._end_untold(KeyboardInterrupt(), "KeyboardInterrupt")
            else:
                self._advance()
        except BaseException as error:  # noqa: BLE001 - it ends the run, and never hangs it (R4)
            self._crashed(error)
        finally:
            self._is_turning = False

    def _advance(self) -> None:
        slice_end = self._monotonic() + _SLICE_S
        while True:
            while self._instructions:
                instruction = self._instructions.popleft()
                try:
                    self._CARRY_OUT[type(instruction)](self, instruction)
                except BaseException as error:  # noqa: BLE001 - the others are carried out as well
                    self._failed_to(instruction, error)
                if type(instruction) is Start and self._monotonic() > slice_end:
                    self._go_on_later()
                    return
            now = self._monotonic()
            if not self._events and not self._exchange_slots():
                due = self._state.next_deadline()
                if due is None or due > now:
                    break
            if now > slice_end:
                self._go_on_later()
                return
            events, self._events = self._events, []
            self._instructions.extend(self._state.apply(events, now))
        self._set_timer(due, now)

    def _is_alone(self) -> bool:
        """Return whether no other run waits for a slot."""
        return not self._limits.others_wait(self)

    def _go_on_later(self) -> None:
        self._is_turn_due = True
        self._loop.call_soon(self._turn)

    def _exchange_slots(self) -> bool:
        """Give freed slots back and ask for others; return whether some were granted at once."""
        state = self._state
        released, wanted = state.released, state.wanted
        if state.is_finished or (not released and wanted == self._wanted):
            return False
        state.released = 0
        granted = self._limits.exchange(self, released, wanted)
        self._wanted = wanted - granted
        if not granted:
            return False
        self._events.append(SlotsGranted(granted))
        return True

    def _set_timer(self, due: float | None, now: float) -> None:
        """Wake up at the next deadline; a timer that fires earlier sets the next one."""
        if due is None or now < self._timer_due <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        delay_s = max(0.0, due - now)
        self._timer = self._clock.call_later(self._loop, delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_due = float("inf")
        self._guarded(self._take_messages)  # among them, when sync code has begun
        self._turn()
        if not self._is_over:
            self._guarded(lambda: self._set_timer(self._state.next_deadline(), self._monotonic()))

    # -- starting ----------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        number, spec = start.unit, self.graph.specs[start.unit]
        record = self.record
        seen = Attempt(
            record.run_id, record.dag_name, spec.name, start.attempt, monotonic=self._monotonic
        )
        arguments, context = self._arguments(number), self._base.copy()
        services = self._attempt_services
        if self.graph.is_async[number]:
            on_loop = AsyncAttempt(number, spec, seen, arguments, context, services)
            self._attempts[number] = on_loop
            on_loop.start()
            return
        pool, kind = self._services.pools[spec.executor]
        is_own = spec.executor is None and isinstance(pool, WorkerThreads)
        made = ThreadAttempt if is_own else PoolAttempt
        attempt = made(number, spec, seen, arguments, context, services)
        self._attempts[number] = attempt
        try:
            attempt.start(pool, kind)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - an executor may refuse in any way
            self._refused(attempt, error)

    def _refused(self, attempt: RunningAttempt, error: BaseException) -> None:
        """An executor did not take the task: the attempt has failed."""
        del self._attempts[attempt.unit]
        if not isinstance(error, FlowrunError):
            clear = ExecutorError(
                f"{pool_name(attempt.spec.executor)} did not take the task: {error_line(error)}"
            )
            clear.__cause__ = error
            error = clear
        attempt.started_at = None
        self._events.append(attempt.failed(error, self._monotonic()))

    def _arguments(self, number: int) -> Arguments:
        """Return what a task is called with; its parents have values."""
        graph, state = self.graph, self._state
        plan = graph.plans[number]
        if not plan.gives_any:
            return NO_ARGUMENTS
        parents, names = graph.parents[number], graph.dependency_names[number]
        values = [state.value(parent) for parent in parents]
        if plan.only_upstream:
            return (), {UPSTREAM: dict(zip(names, values, strict=True))}
        return plan.arguments(names, values, self._context)

    def _await_on_loop(self, message: AwaitOnLoop) -> None:
        """Await, on the loop, what a sync callable has returned (I3)."""
        old = message.attempt
        if (
            self._is_over or self._attempts.get(old.unit) is not old
        ):  # pragma: no cover - it was given up while the message was on its way
            close_unawaited(message.value)
            return
        if old.seen.cancelled:  # it was told to stop meanwhile
            close_unawaited(message.value)
            ended = old.failed(asyncio.CancelledError(), self._monotonic())
            self._events.append(ended)
            self._note_end(ended)
            return
        attempt = AsyncAttempt(
            old.unit, old.spec, old.seen, NO_ARGUMENTS, old.context.copy(), old.services
        )
        attempt.started_at = old.started_at
        self._attempts[old.unit] = attempt
        attempt.start(message.value)

    # -- stopping ----------------------------------------------------------------------------------

    def _stop(self, stop: Stop) -> None:
        self._fail_lost(stop.units)
        attempts = [self._attempts[unit] for unit in stop.units if unit in self._attempts]
        # First what waits in a pool: it would begin as soon as something else there has ended.
        attempts.sort(key=_order_of_stopping)
        for attempt in attempts:
            answer, timeout = StopAnswer.UNWILLING, None
            try:
                answer = attempt.stop(
                    stop.cause or f"it timed out after {attempt.spec.timeout_s:g} s"
                )
                if not stop.cause and answer is not StopAnswer.ENDED:
                    timeout = self._timeout_failure(attempt)
            except BaseException as error:  # noqa: BLE001 - the others are stopped as well
                self._broke(error)
            self._events.append(StopAnswered(attempt.unit, attempt.seen.attempt, answer, timeout))
            if answer is StopAnswer.WITHDRAWN:
                del self._attempts[attempt.unit]

    def _fail_lost(self, units: Sequence[int]) -> None:
        """Fail the attempts whose outcome a bare ``KeyboardInterrupt`` has lost on its way here."""
        for unit in units:
            attempt = self._attempts.get(unit)
            if unit not in self._state.active:
                continue  # its outcome was applied together with what stops it
            if (attempt is None or attempt.is_lost()) and not self._has_outcome(unit):
                number = self._state.units[unit].record.attempt
                self._events.append(Failed(unit, number, None, self._monotonic(), _BROKEN))
                self._attempts.pop(unit, None)

    def _has_outcome(self, unit: int) -> bool:
        """Return whether the outcome of a unit's attempt is among the events."""
        return any(
            isinstance(event, Succeeded | Failed) and event.unit == unit for event in self._events
        )

    def _timeout_failure(self, attempt: RunningAttempt) -> Failure:
        error = self._timeout_error(attempt)
        return attempt.failure(error, f"TaskTimeoutError: {error}")

    def _timeout_error(self, attempt: RunningAttempt) -> TaskTimeoutError:
        spec = attempt.spec
        return TaskTimeoutError(
            f"task {spec.name!r} of DAG {self.record.dag_name!r} timed out: attempt"
            f" {attempt.seen.attempt} took longer than timeout_s={spec.timeout_s:g}. Give the task"
            " more time with timeout_s=..., or no limit with timeout_s=None."
        )

    def _give_up(self, instruction: GiveUp) -> None:
        self._fail_lost((instruction.unit,))
        attempt = self._attempts.get(instruction.unit)
        if attempt is None:  # pragma: no cover - its outcome is among the events
            return
        ok = attempt.give_up()
        if ok:
            del self._attempts[attempt.unit]
        self._events.append(GivenUp(attempt.unit, attempt.seen.attempt, ok))

    # -- saving ------------------------------------------------------------------------------------

    def _save(self, save: Save) -> None:
        run = self.record
        changes = [Change(run, record) for record in save.records]
        self._services.journal.submit(changes, partial(self._store_answered, save))

    def _store_answered(self, save: Save, errors: Errors) -> None:
        """Take the store's answer: in the journal's thread, or at once if it does not block."""
        if self._blocks:
            self._inbox.put(
                Saved(save.units) if errors is None else partial(self._saved, save, errors)
            )
        elif errors is None:
            self._events.append(Saved(save.units))
        else:
            self._saved(save, errors)

    def _saved(self, save: Save, errors: list[Exception | None]) -> None:
        """Book what the store did not keep."""
        numbers = {self.graph.names[unit]: unit for unit in save.units}
        refusals: dict[int, Refusal] = {}
        broken: Exception | None = None
        pairs = zip(save.records, errors, strict=True)
        for record, error in [(record, error) for record, error in pairs if error is not None]:
            unit = numbers.get(record.name, -1)  # a record that is no outcome belongs to no unit
            of_result = unit >= 0 and isinstance(error, ResultNotStorableError)
            refusals[unit] = Refusal(*described(error, self._services.redact), of_result)
            if not of_result:
                broken = broken or error
        self._events.append(Saved(save.units, refusals))
        if broken is not None:
            self._broke(broken)

    # -- the end -----------------------------------------------------------------------------------

    def _finish(self, finish: Finish) -> None:
        self._ended = run = finish.record
        self._limits.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changes = [*(Change(run, record) for record in finish.records), Change(run, None)]
        reply = self._end_answered
        if self._blocks:
            reply = partial(self._post_end_answered, run)
        self._services.journal.submit(changes, reply)

    def _post_end_answered(self, run: RunRecord, errors: Errors) -> None:
        is_lost = not self._inbox.put(partial(self._end_answered, errors))
        if is_lost and errors is not None:  # pragma: no cover - its loop is closed
            self._services.journal.keep_unsaved(run)

    def _end_answered(self, errors: Errors) -> None:
        run = self._ended
        assert run is not None  # noqa: S101 - _finish has set it
        self._is_end_answered = errors is None
        if errors is not None:
            self._services.journal.keep_unsaved(run)
            self._raise = self._raise or next(filter(None, errors))
        self._notifier.run_ended(run, self._monotonic() - self._begun_at)
        self._await_hooks()

    def _await_hooks(self) -> None:
        """Every hook is called before the run is over; one that is stuck is left behind."""
        if self._channel.notify_when_idle(partial(self._inbox.put, self._complete)):
            self._complete()
            return
        self._services.hooks.give_up_stuck()
        wait_s = min(max(self._services.config.hook_timeout_s, 0.01), 1.0)
        step = partial(self._guarded, self._await_hooks)
        self._timer = self._clock.call_later(self._loop, wait_s, step)

    def _complete(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_over = True
        self._release_awaiter()

    def _release_awaiter(
        self,
    ) -> None:
        # It may be called twice, on a closed loop, or be cancelled at this moment: asyncio's
        # handler of SIGINT does that between any two lines.
        try:
            if not self._done.done():
                self._done.set_result(None)
        except (asyncio.InvalidStateError, RuntimeError):
            pass
        except KeyboardInterrupt:
            # asyncio has dropped the wake-up, so the loop has to stop for this one.
            self._is_awaiter_lost = True
            raise

    # -- errors inside flowrun (R4) ----------------------------------------------------------------

    def _guarded(self, step: Callable[[], object]) -> None:
        """Take one step; an error in it ends the run."""
        try:
            step()
        except KeyboardInterrupt as error:  # pragma: no cover - see _crashed()
            self._crashed(error)
        except BaseException as error:  # noqa: BLE001 - see above
            self._broke(error)

    def _failed_to(self, instruction: Instruction, error: BaseException) -> None:
        """An instruction was not carried out: see that nothing waits for it, and end the run."""
        if isinstance(error, KeyboardInterrupt) and isinstance(
            instruction, Start | GiveUp | Save | Finish
        ):
            raise error  # nobody knows how far it came
        self._broke(error)
        if isinstance(instruction, Start):
            attempt = self._attempts.get(instruction.unit)
            if attempt is None or _is_given_up(attempt, error_line(error)):
                self._attempts.pop(instruction.unit, None)
                self._fail_lost((instruction.unit,))
        elif isinstance(instruction, Stop | GiveUp):
            self._answer_in_place_of(instruction)
        elif isinstance(instruction, Save):
            refusal = Refusal(_BROKEN.text, error_line(error), of_result=False)
            self._events.append(Saved(instruction.units, dict.fromkeys(instruction.units, refusal)))
        elif isinstance(instruction, Finish):
            self._end_untold(error, error_line(error))

    def _answer_in_place_of(self, instruction: Stop | GiveUp) -> None:
        """Say of each attempt that has not answered that it does not stop."""
        answered = {each.unit for each in self._events if isinstance(each, StopAnswered)}
        is_stop = isinstance(instruction, Stop)
        for unit in instruction.units if isinstance(instruction, Stop) else (instruction.unit,):
            if unit not in answered and not self._has_outcome(unit):
                number = self._state.units[unit].record.attempt
                self._events.append(
                    StopAnswered(unit, number, StopAnswer.UNWILLING, None)
                    if is_stop
                    else GivenUp(unit, number, ok=False)  # it is given up again, later
                )

    def _broke(self, error: BaseException) -> None:
        """The store or flowrun itself has failed: end the run with that error."""
        clear, reason = error, Reason.RUN_BROKEN
        if isinstance(error, KeyboardInterrupt):
            reason = Reason.RUN_CANCELLED  # Ctrl-C, while flowrun's own code ran
        elif not isinstance(error, FlowrunError):
            record = self.record
            clear = internal_error(error, record.run_id, record.dag_name, error_line(error))
        if self._raise is None or isinstance(self._raise, RunCancelledError):
            self._raise = clear
        text, line = described(clear, self._services.redact)
        with contextlib.suppress(BaseException):  # the log itself may be what has failed
            self._notifier.run_broke(line, text)
        if self._ended is not None:
            self._complete()
            return
        self._events.append(StopRequested(reason, line, broken=True))
        if not self._is_turning and not self._is_turn_due and self._has_begun:
            self._go_on_later()

    def _crashed(self, error: BaseException) -> None:
        """A step did not come to its end, so that nobody knows where the state stands."""
        self._is_lost = True
        with contextlib.suppress(BaseException):
            self._broke(error)
        self._end_untold(error, error_line(error))
        if self._is_awaiter_lost:
            raise error

    def _end_untold(self, error: BaseException, cause: str, *, at_exit: bool = False) -> None:
        """End the run where its state cannot: its attempts, its record and its slots, at least."""
        self._leave_attempts(cause)
        changed: list[TaskRecord] = []
        if self._ended is None:
            self._ended, changed = self._ended_as_it_stands(error, cause)
        if not self._is_end_answered:
            journal = self._services.journal
            journal.keep_unsaved(self._ended)
            if not at_exit:
                with contextlib.suppress(BaseException):
                    journal.save_unsaved()
                with contextlib.suppress(BaseException):
                    self._report_as_it_stands(changed, self._ended)
        if self._raise is None:
            self._raise = error
        self._is_over = True
        self._release_awaiter()

    def _leave_attempts(self, cause: str) -> None:
        """Stop all attempts without waiting for them, and give the slots back."""
        for attempt in list(self._attempts.values()):
            with contextlib.suppress(BaseException):
                attempt.stop(cause)
            with contextlib.suppress(BaseException):
                attempt.give_up()
        self._attempts.clear()
        for _ in range(_FEW_INTERRUPTS):
            with contextlib.suppress(BaseException):
                self._limits.leave(self)
                break

    def _ended_as_it_stands(
        self, error: BaseException, cause: str
    ) -> tuple[RunRecord, list[TaskRecord]]:
        """Return the record of the run as ended, and those of the tasks that end by this."""
        now = self.record.created_at
        with contextlib.suppress(BaseException):
            now = max(now, self._clock.time())
        is_interrupt = isinstance(error, KeyboardInterrupt)
        reason = Reason.RUN_CANCELLED if is_interrupt else Reason.RUN_BROKEN
        text = f"{reason}: {cause}"
        tasks = self._state.records()
        changed: list[TaskRecord] = []
        for name, task in tasks.items():
            if task.status is TaskStatus.RUNNING:
                tasks[name] = task.fail(now, text, reason)
            elif task.status is TaskStatus.PENDING:
                tasks[name] = task.skip(now, reason, text)
            else:
                continue
            changed.append(tasks[name])
        return self.record.finish(now, text, tasks), changed

    def _report_as_it_stands(self, changed: Sequence[TaskRecord], ended: RunRecord) -> None:
        """Send the last events of a run whose state could not end it."""
        if not self._has_begun:
            return
        for task in changed:
            if task.status is TaskStatus.FAILED:
                self._notifier.failed(task, task.error or "")
            else:
                self._notifier.skipped(task)
        self._notifier.run_ended(ended, self._monotonic() - self._begun_at)

    # -- reporting -------------------------------------------------------------------------------

    def _report_start(self, report: ReportStart) -> None:
        self._notifier.started(report.record)

    def _report_success(self, report: ReportSuccess) -> None:
        self._notifier.succeeded(report.record, report.value)

    def _report_retry(self, report: ReportRetry) -> None:
        self._notifier.retrying(report.record, report.line, report.delay_s, report.max_attempts)

    def _report_failure(self, report: ReportFailure) -> None:
        self._notifier.failed(report.record, report.line)

    def _report_skip(self, report: ReportSkip) -> None:
        self._notifier.skipped(report.record)

    def _report_abandoned(self, report: ReportAbandoned) -> None:
        self._notifier.abandoned(report.record)

    def _report_note(self, report: ReportNote) -> None:
        self._notifier.noted(report.record, report.text)

    _CARRY_OUT: ClassVar[dict[type, Callable[[Run, Any], None]]] = {
        Start: _start,
        Stop: _stop,
        GiveUp: _give_up,
        Save: _save,
        Finish: _finish,
        ReportStart: _report_start,
        ReportSuccess: _report_success,
        ReportRetry: _report_retry,
        ReportFailure: _report_failure,
        ReportSkip: _report_skip,
        ReportAbandoned: _report_abandoned,
        ReportNote: _report_note,
    }


def _is_given_up(attempt: RunningAttempt, cause: str) -> bool:
    """Stop an attempt that was not started in order; return ``False`` if its outcome came first."""
    with contextlib.suppress(BaseException):
        attempt.stop(cause)
    try:
        return attempt.give_up()
    except BaseException:  # noqa: BLE001 - it did not come as far as having something to give up
        return True


def _nothing() -> None:
    """Wake the loop and do no more."""


def _encoded(encode: Callable[..., object], run_id: str, value: object, task_name: str) -> object:
    return encode(value, run_id=run_id, task_name=task_name)


def _order_of_stopping(attempt: RunningAttempt) -> tuple[bool, int]:
    return not attempt.waits_in_pool, attempt.unit


_BROKEN = Failure(FLOWRUN_FAILED, FLOWRUN_FAILED)
