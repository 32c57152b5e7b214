"""The state of one run, and every rule by which it changes.

Events go in, instructions come out: :meth:`RunState.apply` books all events of one wake-up,
then decides once. Nothing here waits, reads a clock, takes a lock, or calls a user's code, and
no result is looked into. The driver in ``run.py`` carries the instructions out and turns what
happens into events.

A unit is a task of the run. Its number is its place in the order of starts, so a heap of
numbers is the queue of ready units. This is its way through its phases; ``RunState.TRANSITIONS``
is the whole table::

    WAITING -> READY -> RUNNING -> SAVING -> DONE
                ^          |-> EXPIRING (its time is up) -|
                |          |-> STOPPING (the run stops) --|-> FAILING -> DONE
                |                                         |
                |-- DELAYED (before a retry) <------------|
                |-- LINGERING (an abandoned attempt has to end first) <-|

    WAITING, READY, DELAYED -> SKIPPING -> DONE

SAVING, FAILING and SKIPPING wait for the store: an outcome is committed, then shown (D8).
Children become ready, and slots become free, by these rules:

- A slot is held from the start instruction until the code has ended or was given up.
- A child is ready when all its parents are DONE with SUCCESS.
- A final failure skips all descendants, once it is committed (UPSTREAM_FAILED).
- A run that is stopped tells running attempts to stop. When all have ended, it skips the rest.
- A value is dropped when every consumer is DONE, its retries included (I2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flowrun.failure import bounded
from flowrun.scheduler.deadlines import Deadlines, Wait
from flowrun.scheduler.messages import (
    EndedLate,
    Failed,
    Failure,
    Finish,
    GivenUp,
    GiveUp,
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
    Started,
    Stop,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Succeeded,
)
from flowrun.scheduler.units import ACTIVE, DROPPED, IDLE, Phase, UnitTable, require
from flowrun.state import NoResult, Reason, RunStatus, TaskStatus, TransitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowrun.graph import Graph
    from flowrun.scheduler.deadlines import Deadline
    from flowrun.scheduler.messages import Event, Instruction, Refusal, UnitEvent
    from flowrun.scheduler.units import Unit
    from flowrun.state import RunRecord, TaskRecord

SAVE_STARTS_AFTER_S = 0.01
"""The store is given the start of an attempt that runs for longer; most end before."""


def _never() -> bool:
    return False


class RunState:
    """The state machine of one run.

    Args:
        graph: The graph.
        record: The run as it was created; tasks that are already SUCCESS were carried over.
        values: Results of carried-over tasks, by name, that tasks of this run are given.
        offset: What makes epoch seconds of the monotonic clock's.
        cancel_grace_s: How long an attempt that will end is waited for.
        thread_grace_s: How long a thread that was only told to stop is waited for.
        reports_starts: Whether anyone wants to know of starts.
        reports_successes: Whether anyone wants to know of successes.
        save_starts_after_s: After how long starts are saved, if their attempts still run;
            ``None``: never.
        keeps_slots: Returns whether freed slots may be used again at once, as no other run
            waits for one.
        validates: Check all invariants after every call.

    Attributes:
        units: All units, by number.
        released: Slots that were freed since the driver last looked; it resets this.
        active: Units whose attempt runs, by number.
    """

    def __init__(  # noqa: PLR0913 - settings of one machine, given in one place
        self,
        graph: Graph,
        record: RunRecord,
        values: dict[str, object],
        *,
        offset: float,
        cancel_grace_s: float,
        thread_grace_s: float,
        reports_starts: bool = True,
        reports_successes: bool = True,
        save_starts_after_s: float | None = SAVE_STARTS_AFTER_S,
        keeps_slots: Callable[[], bool] = _never,
        validates: bool = False,
    ) -> None:
        self._graph = graph
        self._record = record
        self._offset = offset
        self._cancel_grace_s = cancel_grace_s
        self._thread_grace_s = thread_grace_s
        self._reports_starts = reports_starts
        self._reports_successes = reports_successes
        self._save_starts_after_s = save_starts_after_s
        self._keeps_slots = keeps_slots
        self._validates = validates
        self._now = 0.0
        self._slots = 0
        self.released = 0
        self._stopping: Reason | None = None
        self._cause = ""
        self._is_broken = False
        self.is_finished = False
        self._run_timeout_s = 0.0
        self._save_starts_at: float | None = None
        self._deadlines = Deadlines(self._is_current)
        self._out: list[Instruction] = []
        self._table = UnitTable(graph, record, values)
        self.units = self._table.units
        self.active = self._table.active

    # -- what the driver asks ----------------------------------------------------------------

    @property
    def wanted(self) -> int:
        """Number of slots that the run could use now, beyond those it holds."""
        return 0 if self._stopping is not None else len(self._table.ready)

    @property
    def is_stopping(self) -> bool:
        """Whether the run is ended from outside its tasks."""
        return self._stopping is not None

    def next_deadline(self) -> float | None:
        """Return when :meth:`apply` has to be called again at the latest."""
        due, starts = self._deadlines.next(), self._save_starts_at
        if starts is None or (due is not None and due <= starts):
            return due
        if any(not unit.is_start_saved for unit in self.active.values()):
            return starts
        self._save_starts_at = None
        return due

    def set_timeout(self, now: float, timeout_s: float) -> None:
        """Limit the whole run."""
        self._run_timeout_s = timeout_s
        self._deadlines.add_at(now + timeout_s, Wait.RUN)

    def value(self, number: int) -> object:
        """Return a unit's value, which a consumer needs."""
        return self.units[number].value

    def records(self) -> dict[str, TaskRecord]:
        """Return the records of all tasks."""
        return self._table.records()

    def begin(self, now: float) -> list[Instruction]:
        """Make ready what waits for nothing; return the first instructions."""
        self._table.begin(now + self._offset)
        return self.apply((), now)

    def apply(self, events: Iterable[Event], now: float) -> list[Instruction]:
        """Book all events, then decide; return the instructions in their order.

        Args:
            events: What has happened, the oldest first.
            now: The monotonic clock's reading; never below an earlier one.

        Raises:
            TransitionError: An event is impossible in its unit's phase: a bug in the driver.
        """
        self._now = now
        for event in events:
            booked = self.EVENTS.get(type(event), RunState._book_of_unit)
            booked(self, event)
        if self._deadlines.earliest <= now:
            for deadline in self._deadlines.pop_due(now):
                # The one before may have stopped the run.
                if self._is_current(deadline):  # pragma: no branch
                    self.DUE[deadline[1]](self, deadline[2])
        if self._save_starts_at is not None and self._save_starts_at <= now:
            self._save_starts()
        self._decide()
        if self._validates:
            self.check()
        out, self._out = self._out, []
        return out

    # -- events --------------------------------------------------------------------------------

    def _granted(self, event: SlotsGranted) -> None:
        self._slots += event.count

    def _stop_requested(self, event: StopRequested) -> None:
        self._stop(event.reason, event.cause, broken=event.broken)

    def _book_of_unit(self, event: UnitEvent) -> None:
        unit = self.units[event.unit]
        kind = type(event)
        if isinstance(event, EndedLate):
            self._ended_late(unit, event)
            return
        if event.attempt != unit.record.attempt:
            return  # of an attempt that is over for the run
        transition = self.TRANSITIONS.get((unit.phase, kind))
        if transition is None and unit.phase not in ACTIVE and kind in _LATE:
            return  # the attempt's outcome was first
        if transition is None:
            msg = (
                f"run {self._record.run_id!r}: {event!r} is impossible for task"
                f" {unit.record.name!r}, attempt {unit.record.attempt}, in phase {unit.phase.name}"
            )
            raise TransitionError(msg)
        transition(self, unit, event)

    def _started(self, unit: Unit, event: Started) -> None:
        unit.started_at = event.at

    def _succeeded(self, unit: Unit, event: Succeeded) -> None:
        self._end_attempt(unit)
        unit.record = record = self._begun(unit, event.started_at)
        stored = event.stored
        if not self._graph.specs[unit.number].retain_result:
            stored = NoResult.RELEASED
        unit.value = event.value
        ended = record.succeed(event.ended_at + self._offset, stored)
        self._table.commit(unit, Phase.SAVING, ended)

    def _failed(self, unit: Unit, event: Failed) -> None:
        self._end_attempt(unit)
        unit.record = self._begun(unit, event.started_at)
        failure = event.failure
        if failure.interrupts:
            self._stop(Reason.RUN_CANCELLED, "KeyboardInterrupt")
            self._fail(unit, failure, failure.text, Reason.RUN_CANCELLED)
        else:
            self._fail(unit, failure, failure.text, Reason.ERROR)

    def _expired(self, unit: Unit, event: Succeeded | Failed) -> None:
        """The attempt has ended after its time was up."""
        timeout = unit.timeout
        if timeout is None:  # but before it was told so
            if isinstance(event, Succeeded):
                self._succeeded(unit, event)
            else:
                self._failed(unit, event)
            return
        self._end_attempt(unit)
        unit.record = self._begun(unit, event.started_at)
        text = timeout.text
        if type(event) is Failed:  # where the code was when its time was up
            text = f"{event.failure.text}\n\n{text}"
            if event.failure.interrupts:
                self._stop(Reason.RUN_CANCELLED, "KeyboardInterrupt")
        self._fail(unit, timeout, bounded(text), Reason.TIMEOUT)

    def _stopped(self, unit: Unit, event: Succeeded | Failed) -> None:
        """The attempt has ended after it was told that the run stops."""
        self._end_attempt(unit)
        unit.record = self._begun(unit, event.started_at)
        text = f"{self._stopping}: {self._cause}"
        self._fail(unit, Failure(text, text), text, self._stopping or Reason.RUN_CANCELLED)

    def _stop_answered(self, unit: Unit, event: StopAnswered) -> None:
        answer = event.answer
        if answer is StopAnswer.WITHDRAWN:
            self._end_attempt(unit)
            unit.record = unit.record.withdraw()
            unit.phase = Phase.WAITING  # it is skipped with all that has not started (R2)
        else:
            willing = answer is StopAnswer.WILLING
            self._wait(unit, self._cancel_grace_s if willing else self._thread_grace_s)

    def _expiry_answered(self, unit: Unit, event: StopAnswered) -> None:
        answer = event.answer
        if answer is StopAnswer.ENDED:  # in time; its result may take as long again to encode
            unit.phase = Phase.RUNNING
            timeout_s = self._graph.specs[unit.number].timeout_s or 0.0
            self._deadlines.add_at(
                self._now + timeout_s, Wait.TIMEOUT, unit.number, unit.record.attempt
            )
            return
        unit.timeout = event.timeout
        if answer is StopAnswer.WITHDRAWN:
            self._end_attempt(unit)
            timeout = event.timeout or _UNTOLD
            self._fail(unit, timeout, timeout.text, Reason.TIMEOUT)
        elif answer is StopAnswer.WILLING:  # it gets time to clean up, a bounded one
            self._wait(unit, self._cancel_grace_s)
        else:
            self._out.append(GiveUp(unit.number))

    def _given_up(self, unit: Unit, event: GivenUp) -> None:
        if not event.ok:  # its outcome is on its way, unless encoding it takes too long
            self._wait(unit, self._graph.specs[unit.number].timeout_s or self._cancel_grace_s)
            return
        self._end_attempt(unit)
        unit.record = self._begun(unit, unit.started_at)
        self._out.append(ReportAbandoned(unit.record))
        why = ". " if unit.phase is Phase.STOPPING else " "
        what = f"{why}Its code could not be stopped; it was abandoned and may still run."
        if unit.phase is Phase.EXPIRING:
            timeout = unit.timeout or _UNTOLD
            text = bounded(timeout.text + what)
            self._fail(unit, timeout, text, Reason.TIMEOUT, abandoned=True)
        else:
            text = f"{self._stopping}: {self._cause}{what}"
            reason = self._stopping or Reason.RUN_CANCELLED
            self._fail(unit, Failure(text, text), text, reason, abandoned=True)

    def _ended_late(self, unit: Unit, event: EndedLate) -> None:
        if unit.phase is Phase.LINGERING and event.attempt == unit.record.attempt:
            self._retry(unit)

    def _saved(self, event: Saved) -> None:
        for number in event.units:
            unit = self.units[number]
            self._table.committing -= 1
            refusal = None if event.refusals is None else event.refusals.get(number)
            if refusal is not None and unit.phase is Phase.SAVING:
                self._refused(unit, refusal)
            elif unit.phase is Phase.SAVING:
                self._settle_success(unit)
            else:
                self._table.settle(unit)
                self._report_end(unit)

    def _refused(self, unit: Unit, refusal: Refusal) -> None:
        """The store did not keep a success."""
        unit.pending = None
        unit.value = DROPPED
        if refusal.of_result:
            self._fail(unit, Failure(refusal.text, refusal.line), refusal.text, Reason.ERROR)
            return
        # The driver reports the store as broken beside this, which ends the run.
        text = f"its result could not be saved: {refusal.line}"
        unit.line = text
        unit.pending = unit.record.fail(self._epoch(), text, Reason.RUN_BROKEN)
        self._table.settle(unit)
        self._report_end(unit)

    # -- how a unit ends -------------------------------------------------------------------------

    def _end_attempt(self, unit: Unit) -> None:
        """The code of a unit's attempt has ended, or goes on without the run: its slot is free."""
        del self.active[unit.number]
        self.released += 1

    def _begun(self, unit: Unit, started_at: float | None) -> TaskRecord:
        """Return a unit's record with the time at which its code began (A1)."""
        if started_at is None:
            return unit.record
        return unit.record._replace(started_at=started_at + self._offset)

    def _settle_success(self, unit: Unit) -> None:
        value = unit.value
        self._table.settle(unit)
        if self._reports_successes:
            self._out.append(ReportSuccess(unit.record, value))
        if self._stopping is None:
            self._table.release_children(unit, self._epoch())

    def _report_end(self, unit: Unit) -> None:
        """Report a final failure, which skips what depends on it, or a skip."""
        record = unit.record
        if record.status is TaskStatus.SKIPPED:
            self._out.append(ReportSkip(record))
            return
        self._out.append(ReportFailure(record, unit.line))
        if self._stopping is None:
            why = f"the task {record.name!r} upstream of it failed"
            self._skip(self._table.waiting_descendants(unit), Reason.UPSTREAM_FAILED, why)

    def _skip(self, units: Sequence[Unit], reason: Reason, why: str) -> None:
        text = f"{reason}: {why}"
        now = self._epoch()
        for unit in units:
            self._table.commit(unit, Phase.SKIPPING, unit.record.skip(now, reason, text))

    # -- failures and retries --------------------------------------------------------------------

    def _fail(
        self,
        unit: Unit,
        failure: Failure,
        text: str,
        reason: Reason,
        *,
        abandoned: bool = False,
    ) -> None:
        """An attempt has failed: retry it, or fail the task for good."""
        if failure.note:
            self._out.append(ReportNote(unit.record, failure.note))
        record = unit.record.fail(self._epoch(), text, reason, abandoned=abandoned)
        unit.line = failure.line
        unit.timeout = None
        if self._stopping is not None or not failure.retryable:
            self._table.commit(unit, Phase.FAILING, record)
            return
        unit.record = record
        unit.delay_s = failure.delay_s
        if abandoned:
            # A2: two attempts of one task never run at once.
            unit.phase = Phase.LINGERING
            self._table.changed.append(record)
            self._wait(unit, self._graph.specs[unit.number].timeout_s or 0.0)
        else:
            self._retry(unit)

    def _retry(self, unit: Unit) -> None:
        most = self._graph.specs[unit.number].retries + 1
        self._out.append(ReportRetry(unit.record, unit.line, unit.delay_s, most))
        unit.record = unit.record.retry()
        self._table.changed.append(unit.record)
        if unit.delay_s:
            unit.phase = Phase.DELAYED
            self._deadlines.add_at(
                self._now + unit.delay_s, Wait.DELAY, unit.number, unit.record.attempt
            )
        else:
            self._table.make_ready(unit, self._epoch())

    def _fail_lingering(self, unit: Unit, line: str, remark: str) -> None:
        """Fail a unit for good whose abandoned attempt was to end before a retry."""
        unit.line = line
        record = unit.record
        if remark:
            record = record.amend(f"{record.error}\n{remark}")
        self._table.commit(unit, Phase.FAILING, record)

    # -- deadlines -------------------------------------------------------------------------------

    def _is_current(self, deadline: Deadline) -> bool:
        _, wait, number, attempt = deadline
        if wait is Wait.RUN:
            return self._stopping is None and not self.is_finished
        unit = self.units[number]
        return unit.phase in _PHASES_OF[wait] and unit.record.attempt == attempt

    def _wait(self, unit: Unit, duration_s: float) -> None:
        number, attempt = unit.number, unit.record.attempt
        self._deadlines.add_at(self._now + duration_s, Wait.PATIENCE, number, attempt)

    def _time_up(self, number: int) -> None:
        unit = self.units[number]
        timeout_s = self._graph.specs[unit.number].timeout_s or 0.0
        # The deadline of a sync attempt was set when it was handed over; its clock starts with
        # its code (A1), and as long as it waits for a thread it has all its time before it.
        due = timeout_s + (self._now if unit.started_at is None else unit.started_at)
        if due > self._now:
            self._deadlines.add_at(due, Wait.TIMEOUT, number, unit.record.attempt)
            return
        unit.phase = Phase.EXPIRING
        self._out.append(Stop((unit.number,), ""))

    def _out_of_patience(self, number: int) -> None:
        unit = self.units[number]
        if unit.phase is not Phase.LINGERING:
            self._out.append(GiveUp(unit.number))
            return
        timeout_s = self._graph.specs[unit.number].timeout_s or 0.0
        remedy = (
            "Let the task go on with the CancelledError that it gets."
            if self._graph.is_async[unit.number]
            else "Let the task check current_attempt().cancelled, or run it on a"
            " ProcessPerAttemptExecutor."
        )
        remark = (
            "Not retried: the timed-out attempt was still running after another"
            f" {timeout_s:g} s, and two attempts of one task never run at once. {remedy}"
        )
        self._fail_lingering(unit, unit.line, remark)

    def _delay_over(self, number: int) -> None:
        self._table.make_ready(self.units[number], self._epoch())

    def _save_starts(self) -> None:
        """Save the starts of attempts that run on; most end before."""
        self._save_starts_at = None
        for unit in self.active.values():
            if not unit.is_start_saved:
                unit.is_start_saved = True
                self._table.changed.append(unit.record)

    def _run_time_up(self, _: int) -> None:
        cause = f"the run took longer than timeout_s={self._run_timeout_s:g}"
        self._stop(Reason.RUN_TIMED_OUT, cause)

    # -- stopping --------------------------------------------------------------------------------

    def _stop(self, reason: Reason, cause: str, *, broken: bool = False) -> None:
        """End the run from outside its tasks; the first reason counts."""
        self._is_broken = self._is_broken or broken
        if self.is_finished or self._stopping is not None:
            return
        if not (self._table.open or broken):
            return  # all tasks have ended by themselves, in this wake-up
        self._stopping = reason
        self._cause = cause
        self._table.clear_ready()
        told: list[int] = []
        for unit in self.active.values():
            if unit.phase is Phase.RUNNING:  # one that is EXPIRING has been told already
                unit.phase = Phase.STOPPING
                told.append(unit.number)
        if told:
            self._out.append(Stop(sorted(told), f"{reason}: {cause}"))
        for unit in self.units:
            if unit.phase is Phase.LINGERING:
                self._fail_lingering(unit, f"not retried: {cause}", "")
            elif unit.phase is Phase.DELAYED:
                unit.phase = Phase.WAITING  # the end of its delay makes it READY no more

    # -- deciding --------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Start what is ready, end the run if all has ended, and save what has changed."""
        table = self._table
        starts: list[Unit] = []
        if self._stopping is not None:
            self._skip_rest(self._stopping)
        elif table.ready:
            starts = self._take_ready()
        if self._slots:  # granted, and of no use any more
            self.released += self._slots
            self._slots = 0
        if table.changed:
            self._out.append(Save(*table.take_changes()))
        for unit in starts:
            if self._reports_starts:
                self._out.append(ReportStart(unit.record))
            self._out.append(Start(unit.number, unit.record.attempt))
        if not table.open and not self.is_finished:
            self._finish()

    def _skip_rest(self, reason: Reason) -> None:
        """Skip what has not started, once all that ran before the stop has ended."""
        table = self._table
        if not self.active and not table.committing and table.open:
            rest = [unit for unit in self.units if unit.phase in IDLE]
            self._skip(rest, reason, self._cause)

    def _take_ready(self) -> list[Unit]:
        """Turn ready units into running ones, as many as there are slots."""
        starts: list[Unit] = []
        # What waits for the store may have a child that comes first (R6).
        if self.released and not self._table.outcomes and self._keeps_slots():
            self._slots += self.released
            self.released = 0
        if not self._slots:
            return starts
        now = self._epoch()
        table, specs = self._table, self._graph.specs
        while table.ready and self._slots:
            unit = table.pop_ready()
            self._slots -= 1
            unit.phase = Phase.RUNNING
            unit.timeout = None
            unit.record = record = unit.record.start(now, unit.ready_at)
            unit.started_at = self._now if self._graph.is_async[unit.number] else None
            timeout_s = specs[unit.number].timeout_s
            if timeout_s is not None:
                self._deadlines.add(self._now, timeout_s, Wait.TIMEOUT, unit.number, record.attempt)
            unit.is_start_saved = False
            starts.append(unit)
        if self._save_starts_at is None and self._save_starts_after_s is not None:
            self._save_starts_at = self._now + self._save_starts_after_s
        return starts

    def _finish(self) -> None:
        self.is_finished = True
        ended = self._record.finish(self._epoch(), None, self.records())
        # What came too late to stop anything has not ended the run.
        if self._stopping is not None and (
            self._is_broken or ended.status is not RunStatus.SUCCESS
        ):
            ended = ended._replace(error=f"{self._stopping}: {self._cause}")
        # What the store refused before may be kept now, so that the end it shows is whole.
        records = list(ended.tasks.values()) if self._is_broken else []
        self._out.append(Finish(ended, records))

    def _epoch(self) -> float:
        return self._now + self._offset

    # -- invariants ------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what must hold between two calls.

        Raises:
            AssertionError: It does not; the message names the unit.
        """
        table = self._table
        table.check()
        ready = sorted(unit.number for unit in self.units if unit.phase is Phase.READY)
        require(ready == sorted(table.ready), f"READY are {ready}, queued {sorted(table.ready)}")
        require(self.is_finished != bool(table.open), "the run ends when all its units have")
        require(not (self.is_finished and self.active), "nothing runs after the end")

    # Which event is possible in which phase, and what it leads to. What may come after the
    # outcome of its attempt is dropped before; everything else is a bug in the driver.
    TRANSITIONS: ClassVar[dict[tuple[Phase, type], Callable[[RunState, Unit, Any], None]]] = {
        (Phase.RUNNING, Started): _started,
        (Phase.RUNNING, Succeeded): _succeeded,
        (Phase.RUNNING, Failed): _failed,
        (Phase.EXPIRING, Started): _started,
        (Phase.EXPIRING, Succeeded): _expired,
        (Phase.EXPIRING, Failed): _expired,
        (Phase.EXPIRING, StopAnswered): _expiry_answered,
        (Phase.EXPIRING, GivenUp): _given_up,
        (Phase.STOPPING, Started): _started,
        (Phase.STOPPING, Succeeded): _stopped,
        (Phase.STOPPING, Failed): _stopped,
        (Phase.STOPPING, StopAnswered): _stop_answered,
        (Phase.STOPPING, GivenUp): _given_up,
    }
    # What an event about the run as a whole leads to.
    EVENTS: ClassVar[dict[type, Callable[[RunState, Any], None]]] = {
        Saved: _saved,
        SlotsGranted: _granted,
        StopRequested: _stop_requested,
    }
    # What a deadline leads to.
    DUE: ClassVar[dict[Wait, Callable[[RunState, int], None]]] = {
        Wait.TIMEOUT: _time_up,
        Wait.PATIENCE: _out_of_patience,
        Wait.DELAY: _delay_over,
        Wait.RUN: _run_time_up,
    }


_UNTOLD = Failure("its time was up", "its time was up")
_LATE = frozenset((Started, StopAnswered, GivenUp))
"""Events that may come after the outcome of their attempt, and then mean nothing."""

_PHASES_OF = {
    Wait.TIMEOUT: frozenset((Phase.RUNNING,)),
    Wait.PATIENCE: frozenset((Phase.EXPIRING, Phase.STOPPING, Phase.LINGERING)),
    Wait.DELAY: frozenset((Phase.DELAYED,)),
}
