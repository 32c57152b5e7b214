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
from functools import partial
from typing import TYPE_CHECKING, Any

from flowrun.errors import (
    FlowrunError,
    RunCancelledError,
)
from flowrun.failure import described
from flowrun.scheduler.aborting import clear_error, ended_as_it_stands, reason_of
from flowrun.scheduler.alarm import Alarm
from flowrun.scheduler.attempts import Attempts
from flowrun.scheduler.awaiter import Awaiter
from flowrun.scheduler.branches import kept_choices
from flowrun.scheduler.expander import Expander
from flowrun.scheduler.first_error import FirstError
from flowrun.scheduler.inbox import Inbox
from flowrun.scheduler.messages import (
    Expand,
    Failed,
    Finish,
    GiveUp,
    LookUp,
    Report,
    Save,
    Saved,
    SlotsGranted,
    Start,
    Stop,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Subject,
)
from flowrun.scheduler.notifier import Notifier
from flowrun.scheduler.options import cached_tasks
from flowrun.scheduler.recorder import Recorder
from flowrun.scheduler.run_settings import SAVE_STARTS_AFTER_S, RunSettings
from flowrun.scheduler.run_state import RunState
from flowrun.state import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowrun.context import RunContext
    from flowrun.graph import Graph
    from flowrun.hooks import Event as RunEvent
    from flowrun.scheduler.attempt import RunningAttempt
    from flowrun.scheduler.expander import Inherited
    from flowrun.scheduler.limits import Amounts, RunLimits
    from flowrun.scheduler.messages import Event, Instruction, Started, Succeeded
    from flowrun.scheduler.options import RunOptions
    from flowrun.scheduler.services import Services
    from flowrun.scheduler.stand_ins import StandIn
    from flowrun.state import RunRecord, TaskRecord

_SLICE_S = 0.01
"""The loop gets a turn after so long, however much there is to do."""


class Run:
    """One run on one event loop.

    Args:
        services: What the engine's runs share.
        graph: The graph.
        record: The run, before it is created in the store.
        context: What the caller gave for tasks that ask for a ``RunContext``.
        limits: Where its slots come from.
        inherited: What it gets from the run that it resumes.
        options: The options of the run.
        listener: Called on the loop with each event, in addition to the hooks.
        stand_ins: Values that stand for the results of tasks.

    Attributes:
        awaiter: The task that awaits it.
        ended: Its record, once it has ended.
        errors: Keeps the error of the task that failed first, if it was asked for.
    """

    def __init__(  # noqa: PLR0913 - wired in one place, of an engine's parts
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        limits: RunLimits,
        inherited: Inherited,
        options: RunOptions,
        listener: Callable[[RunEvent], object] | None = None,
        *,
        stand_ins: Mapping[int, StandIn] | None = None,
    ) -> None:
        self.graph = graph
        self.record = record
        self._services = services
        self._limits = limits.shared
        self._monotonic = services.config.clock.monotonic
        self._journal = services.journal
        self._loop = asyncio.get_running_loop()
        self.awaiter = Awaiter()
        variables = contextvars.copy_context()
        self._alarm = Alarm(services.config.clock, self._loop, self._turn)
        self._inbox = Inbox(self._loop, self._read_inbox)
        self._channel = services.hooks.channel(variables, partial(self._inbox.put, _nothing))
        self._notifier = notifier = Notifier(record, self._channel, services.log, listener)
        self.errors = FirstError() if options.get("raise_on_failure") else None
        self._begun_at = self._monotonic()
        about = (services, graph, record)
        self._state = RunState(
            graph,
            record,
            inherited.values,
            limits.needs_of(graph.specs),
            partial(self._limits.exchange, self),
            self._limits.pause,
            _settings(*about, inherited, self._notifier, self._begun_at, options, stand_ins or {}),
            partial(self._limits.waited, self) if self._limits.named else None,
        )
        reports = (self._attempt_began, self._attempt_ended)
        self._attempts = Attempts(
            *about, context, variables, self._state, self._inbox, *reports, self.errors, notifier
        )
        answers = (self._saved, self._end_saved)
        self._recorder = Recorder(services, record, self._state, self._inbox, *answers, self.errors)
        self._expander = Expander(*about, self._inbox, inherited.items)
        self._carry_out = self._carriers()
        self._events: list[Event] = []
        self._instructions: deque[Instruction] = deque()
        self._is_turning = self._is_turn_due = False
        self._may_exist = False
        self._has_begun = False
        self._is_broken = False
        self._is_end_saved = False
        self.ended: RunRecord | None = None

    # -- from outside ----------------------------------------------------------------------------

    async def create(self, create: Callable[[], None]) -> None:
        """Have the store create the run; a cancellation meanwhile ends it once it exists.

        Raises:
            StoreError: The store could not.
        """
        self._may_exist = True
        self.awaiter.begin()
        try:
            if self._journal.store.blocking:
                created = self._journal.call_from_loop(create)
                await self.awaiter.wait_for(created, self._awaiter_cancelled)
            else:
                create()
        except Exception:
            self._may_exist = False
            raise

    async def execute(self, timeout_s: float | None) -> None:
        """Run to the end, whatever happens; raise what has ended it from outside its tasks."""
        self._has_begun = True
        self._guarded(partial(self._begin, timeout_s))
        self._turn()
        await self.awaiter.wait(self._awaiter_cancelled, self._services.config.cancel_grace_s)

    def running(self) -> list[TaskRecord]:
        """Return the records of what runs now, from any thread (they are values)."""
        return self._attempts.noted(self._state.table.running())

    def tasks(self) -> Mapping[str, TaskRecord]:
        """Return the records of all tasks, from any thread."""
        return self._state.records() if self.ended is None else self.ended.tasks

    def request_cancel(self, cause: str) -> None:
        """Cancel the run, from any thread."""
        self._inbox.put(partial(self._cancel, cause))

    def grant(self, slots: Amounts, ask_again_at: float) -> bool:
        """Take slots that the run has asked for; see :class:`SlotHolder`."""
        return self._inbox.put(SlotsGranted(slots, ask_again_at))

    def end_lost(self, error: BaseException | None = None, *, at_exit: bool = False) -> None:
        """End a run that is no longer awaited; called by one thread only.

        Args:
            error: What :meth:`create` or :meth:`execute` has raised; ``None``: its loop was closed.
            at_exit: Whether nothing can be waited for, as the interpreter may be ending. Then the
                next process that opens the file ends the run.
        """
        if self._may_exist and not self.awaiter.is_released:
            self._abort(error or FlowrunError("its event loop was closed"), saves=not at_exit)
            self._complete()

    def _begin(self, timeout_s: float | None) -> None:
        self._notifier.run_started(self.graph.names)
        self._instructions.extend(self._state.begin(self._monotonic(), timeout_s))

    def _awaiter_cancelled(self, error: asyncio.CancelledError) -> None:
        """The awaiting task was cancelled; what it got is raised at the end."""
        self.awaiter.note(error)
        cause = "the task that awaited the run was cancelled"
        self._events.append(StopRequested(Reason.RUN_CANCELLED, cause, interrupts=True))
        if self._has_begun:
            self._turn()

    def _cancel(self, cause: str) -> None:
        # Between the last record and the end of the run nothing is left to cancel.
        if not self._state.is_finished and self._state.stopping is None:  # pragma: no branch
            self.awaiter.note(RunCancelledError(self.record.run_id, cause))
            self._events.append(StopRequested(Reason.RUN_CANCELLED, cause))

    # -- turns -----------------------------------------------------------------------------------

    def _read_inbox(self) -> None:
        self._guarded(self._take_messages)
        if self._has_begun:  # pragma: no branch - a cancel may come while the run is created
            self._turn()

    def _take_messages(self) -> None:
        for message in self._inbox.take():
            if callable(message):
                message()
            else:
                self._events.append(message)  # type: ignore[arg-type]

    def _attempt_began(self, event: Started) -> None:
        self._events.append(event)

    def _attempt_ended(self, attempt: RunningAttempt, event: Succeeded | Failed) -> None:
        """Take the outcome of an attempt, on the loop."""
        if attempt.crash is not None:
            self._broke(attempt.crash)
        if self._attempts.remove(attempt):
            if type(event) is Failed and event.failure.interrupts:
                self.awaiter.error = KeyboardInterrupt()  # it goes further once the run has ended
        else:  # it was given up
            attempt.ended_late()
        self._events.append(event)
        if not self._attempts.running:
            self._turn()
        else:  # others may end in the same turn of the loop
            self._turn_later()

    def _turn_later(self) -> None:
        if not (self._is_turning or self._is_turn_due or self.ended):
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Apply what has happened, and carry out what follows from it."""
        if self._is_turning or self.ended:
            return
        goes_on = False
        try:
            self._is_turning = True
            self._is_turn_due = False
            goes_on = self._advance()
        except BaseException as error:  # noqa: BLE001 - it ends the run, and never hangs it (R4)
            self._abort(error)
        finally:
            self._is_turning = False
        if goes_on:
            self._turn_later()

    def _advance(self) -> bool:
        """Return whether there is more to do, after the loop had its turn."""
        slice_end = self._monotonic() + _SLICE_S
        deadlines = self._state.deadlines
        while True:
            while self._instructions:
                instruction = self._instructions.popleft()
                self._carry_out[type(instruction)](instruction)
                if type(instruction) is Start and self._monotonic() > slice_end:
                    return True
            now = self._monotonic()
            if deadlines.earliest <= now:
                self._take_messages()  # among them, when sync code has begun
            if not self._events and deadlines.earliest > now:
                break
            if now > slice_end:
                return True
            events, self._events = self._events, []
            self._instructions.extend(self._state.apply(events, now))
        if deadlines.earliest < self._alarm.due and not self.ended:
            self._alarm.set(deadlines.earliest, now)
        return False

    def _guarded(self, step: Callable[[], object]) -> None:
        """Take one step; an error in it ends the run (R4)."""
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - see above
            self._abort(error)

    # -- carrying out ------------------------------------------------------------------------------

    def _carriers(self) -> dict[type, Callable[[Any], object]]:
        return {
            LookUp: self._pass_on,
            Start: self._start,
            Expand: self._expander.expand,
            Stop: self._pass_on,
            GiveUp: self._pass_on,
            Save: self._recorder.save,
            Finish: self._finish,
            Report: self._report,
        }

    def _start(self, start: Start) -> None:
        if self._is_broken:  # since the start was decided
            withdrawn = StopAnswered(start.unit, start.attempt, StopAnswer.WITHDRAWN, None)
            self._events.append(withdrawn)
        else:
            self._attempts.start(start)

    def _pass_on(self, instruction: LookUp | Stop | GiveUp) -> None:
        self._events += self._attempts.carry_out(instruction)

    def _report(self, report: Report) -> None:
        if self.errors is not None and report.subject is Subject.FAILURE:
            self.errors.failed(report.record)
        try:
            self._notifier.report(report)
        except BaseException as error:  # noqa: BLE001 - a log may raise; the others still get it
            self._broke(error)

    def _saved(self, saved: Saved, broken: BaseException | None) -> None:
        self._events.append(saved)
        if broken is not None:
            self._broke(broken)

    def _finish(self, finish: Finish) -> None:
        self.ended = finish.record
        self._limits.leave(self, self._state.now)
        self._alarm.drop()
        self._attempts.end_look_ups()
        self._recorder.finish(finish)

    def _end_saved(self, error: BaseException | None) -> None:
        run = self.ended
        assert run is not None  # noqa: S101 - _finish has set it
        self._is_end_saved = error is None
        if error is not None and self.awaiter.error is None:
            self.awaiter.error = error
        self._notifier.run_ended(run, self._monotonic() - self._begun_at)
        self._await_hooks()

    def _await_hooks(self) -> None:
        """Every hook is called before the run is over; one that is stuck is left behind."""
        if self._channel.notify_when_idle(partial(self._inbox.put, self._complete)):
            self._complete()
            return
        self._services.hooks.give_up_stuck()
        wait_s = min(max(self._services.config.hook_timeout_s, 0.01), 1.0)
        self._alarm.call_after(wait_s, partial(self._guarded, self._await_hooks))

    def _complete(self) -> None:
        self._alarm.drop()
        self.awaiter.release()

    # -- errors of the store, and inside flowrun (R4) ----------------------------------------------

    def _broke(self, error: BaseException) -> None:
        """Something beside the run's state has failed, such as the store: end the run by that."""
        self._is_broken = True
        request = StopRequested(reason_of(error), self._note_error(error), broken=True)
        self._events.append(request)
        self._turn_later()

    def _note_error(self, error: BaseException) -> str:
        """Have the run raise an error at its end; return the error's line."""
        clear = clear_error(error, self.record)
        self.awaiter.note(clear)
        text, line = described(clear, self._services.redact)
        with contextlib.suppress(BaseException):  # the log itself may be what has failed
            self._notifier.run_broke(line, text)
        return line

    def _abort(self, error: BaseException, *, saves: bool = True) -> None:
        """End the run where its records stand: a step has failed, so its state may be wrong.

        Args:
            error: What a step has raised.
            saves: Whether the store may be waited for.
        """
        if self.awaiter.is_released:
            # Of a late end, or a Ctrl-C on which asyncio has lost the wake-up of the awaiter.
            raise error
        cause = self._note_error(error)
        self.awaiter.left = self._attempts.leave(cause)
        self._limits.leave(self, self._state.now)
        changed: list[TaskRecord] = []
        if self.ended is None:
            reason = reason_of(error)
            with contextlib.suppress(BaseException):
                self._state.now = self._monotonic()
            self.ended, changed = ended_as_it_stands(self._state, self.record, reason, cause)
        if not self._is_end_saved:
            self._journal.keep_unsaved(self.ended)
            with contextlib.suppress(BaseException):
                if saves:  # pragma: no branch - not when the interpreter ends
                    self._journal.save_unsaved()
        with contextlib.suppress(BaseException):
            if self._has_begun:  # pragma: no branch - a Ctrl-C may come while it is created
                duration_s = self._state.now - self._begun_at
                self._notifier.run_aborted(changed, self.ended, duration_s)
            self._await_hooks()
            return
        self._complete()


def _settings(  # noqa: PLR0913 - what a run is told
    services: Services,
    graph: Graph,
    record: RunRecord,
    inherited: Inherited,
    notifier: Notifier,
    begun_at: float,
    options: RunOptions,
    stand_ins: Mapping[int, StandIn],
) -> RunSettings:
    config, blocks = services.config, services.journal.store.blocking
    return RunSettings(
        # The clock may have been set back since the run was created.
        offset=max(config.clock.time(), record.created_at) - begun_at,
        cancel_grace_s=config.cancel_grace_s,
        thread_grace_s=config.thread_grace_s,
        is_saved_at_once=not blocks,
        reports_starts=notifier.reports_starts,
        reports_successes=notifier.reports_successes,
        # A report of a live run asks the run itself for what runs now.
        save_starts_after_s=SAVE_STARTS_AFTER_S if blocks else None,
        fails_fast=options.get("fail_fast", False),
        kept_choices=kept_choices(graph, inherited.values),
        named=frozenset(graph.index[name] for name in record.named),
        stand_ins=stand_ins,
        cached=cached_tasks(graph, options, services.journal.store, services.log),
        most_encoding=config.max_parallel,
    )


def _nothing() -> None:
    """Wake the loop and do no more."""
