"""What an event means for a unit, in each of its phases: the transition table of attempts.

Each rule is a function that is given the run's state, the unit and the event. ``run_state.py``
has the picture of the phases, and the rules about the run as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.errors import listed
from flowrun.failure import bounded
from flowrun.scheduler.deadlines import Wait
from flowrun.scheduler.messages import (
    CodeEnded,
    Failed,
    Failure,
    GiveUp,
    LookedUp,
    LookUp,
    Report,
    Started,
    StopAnswer,
    StopAnswered,
    Subject,
    Succeeded,
)
from flowrun.scheduler.units import DROPPED, Phase
from flowrun.state import NoResult, Reason, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.messages import Refusal
    from flowrun.scheduler.run_state import RunState
    from flowrun.scheduler.stand_ins import StandIn
    from flowrun.scheduler.units import Unit
    from flowrun.state import Cached, TaskRecord

_UNKNOWN = Failure("its time was up", "its time was up")


# -- values that stand for results ----------------------------------------------------------------


def stand_in(run: RunState, unit: Unit, given: StandIn, cached: Cached | None = None) -> None:
    """A value stands for the result of a unit, which has succeeded without an attempt."""
    unit.value, stored, unit.follows = given
    unit.ready_at = run.epoch
    run.table.commit(unit, Phase.SAVING, unit.record.stand_in(run.epoch, stored, cached))


def look_up(run: RunState, unit: Unit) -> None:
    """Ask the cache for the result of a unit that could start now."""
    unit.phase = Phase.LOOKING_UP
    run.out.append(LookUp(unit.number, run.settings.cached[unit.task]))


def _looked_up(run: RunState, unit: Unit, event: LookedUp) -> None:
    if event.note:
        run.out.append(Report(Subject.NOTE, unit.record, event.note))
    if event.found is not None:
        stand_in(run, unit, event.found, event.cached)
        return
    unit.record = unit.record._replace(cache=event.cached)
    make_ready(run, unit)


# -- the code has begun, or has ended ---------------------------------------------------------


def begin_saved(run: RunState, units: list[Unit]) -> list[Unit]:
    """The store has answered to the starts of teardowns; return those whose code may begin."""
    starts: list[Unit] = []
    for unit in units:
        if not unit.is_start_saved or run.is_ending(unit):
            _withdraw(run, unit)
            continue
        unit.phase = Phase.RUNNING
        timeout_s = run.graph.specs[unit.task].timeout_s
        if timeout_s is not None:
            run.deadlines.add_timeout(run.now, timeout_s, unit.number, unit.record.attempt)
        starts.append(unit)
    units.clear()
    return starts


def _withdraw(run: RunState, unit: Unit) -> None:
    """The code of an attempt has not begun: skip the unit with all that has not started (R2)."""
    run.end_attempt(unit)
    unit.record = unit.record.withdraw()
    unit.phase = Phase.WAITING


def _started(run: RunState, unit: Unit, event: Started) -> None:
    del run
    unit.started_at = event.at


def _code_ended(run: RunState, unit: Unit, event: CodeEnded) -> None:
    del event
    run.requests.free_early(unit, run.table.needs[unit.task])


def _succeeded(run: RunState, unit: Unit, event: Succeeded) -> None:
    run.end_attempt(unit)
    _note(unit, event)
    keeps = run.graph.specs[unit.task].retain_result
    stored = event.stored if keeps else NoResult.RELEASED
    unit.value = event.value
    unit.follows = event.follows
    began_at = None if event.started_at is None else event.started_at + run.offset
    ended = unit.record.succeed(event.ended_at + run.offset, stored, began_at, run.epoch)
    run.table.commit(unit, Phase.SAVING, ended)


def _failed(run: RunState, unit: Unit, event: Failed) -> None:
    run.end_attempt(unit)
    _note(unit, event)
    unit.record = _begun(run, unit, event.started_at)
    failure = event.failure
    if failure.omits:
        run.omit(unit, Reason.SKIP_TASK, failure.text)
        return
    _count_interrupt(run, event)
    fail(run, unit, failure, Reason.RUN_CANCELLED if failure.interrupts else Reason.ERROR)


def _expired(run: RunState, unit: Unit, event: Succeeded | Failed) -> None:
    """The attempt has ended after its time was up."""
    timeout = unit.timeout
    if timeout is None:  # but before it was told so
        TRANSITIONS[Phase.RUNNING, type(event)](run, unit, event)
        return
    run.end_attempt(unit)
    _note(unit, event)
    unit.record = _begun(run, unit, event.started_at)
    text = timeout.text
    if type(event) is Failed:  # where the code was when its time was up
        text = f"{event.failure.text}\n\n{text}"
    _count_interrupt(run, event)
    fail(run, unit, timeout, Reason.TIMEOUT, bounded(text))


def _stopped(run: RunState, unit: Unit, event: Succeeded | Failed) -> None:
    """The attempt has ended after it was told that the run stops."""
    run.end_attempt(unit)
    _note(unit, event)
    unit.record = _begun(run, unit, event.started_at)
    _count_interrupt(run, event)
    text = run.why_it_stops
    fail(run, unit, Failure(text, text), run.stopping or Reason.RUN_CANCELLED)


def _count_interrupt(run: RunState, event: Succeeded | Failed) -> None:
    """A Ctrl-C that has come out of a task's code stops the run; the second one, teardowns too."""
    if type(event) is Failed and event.failure.interrupts:
        run.stop(Reason.RUN_CANCELLED, "KeyboardInterrupt", interrupts=True)


def _note(unit: Unit, event: Succeeded | Failed | StopAnswered) -> None:
    """Keep what is known of the inside of a unit's attempt."""
    if event.notes is not None:
        unit.record = unit.record._replace(notes=event.notes)


def _begun(run: RunState, unit: Unit, started_at: float | None) -> TaskRecord:
    """Return a unit's record with the time at which its code began (A1)."""
    if started_at is None:
        return unit.record
    return unit.record.begun(started_at + run.offset)


# -- the attempt was told to stop ----------------------------------------------------------------


def _stop_answered(run: RunState, unit: Unit, event: StopAnswered) -> None:
    _note(unit, event)
    answer = event.answer
    if answer is StopAnswer.WITHDRAWN:
        _withdraw(run, unit)
    else:
        is_willing = answer is StopAnswer.WILLING
        _wait(run, unit, run.settings.cancel_grace_s if is_willing else run.settings.thread_grace_s)


def _expiry_answered(run: RunState, unit: Unit, event: StopAnswered) -> None:
    _note(unit, event)
    answer = event.answer
    if answer is StopAnswer.ENDED and not unit.is_overdue:
        unit.is_overdue = True  # in time; its result may take as long again to encode
        unit.phase = Phase.RUNNING
        due = run.now + timeout_s_of(run, unit)
        run.deadlines.add(due, Wait.TIMEOUT, unit.number, unit.record.attempt)
        return
    unit.timeout = timeout = event.timeout or _UNKNOWN
    if answer is StopAnswer.WITHDRAWN:
        run.end_attempt(unit)
        fail(run, unit, timeout, Reason.TIMEOUT)
    elif answer is StopAnswer.WILLING:  # it gets time to clean up, a bounded one
        _wait(run, unit, run.settings.cancel_grace_s)
    else:
        give_up(run, unit)


def give_up(run: RunState, unit: Unit) -> None:
    """Go on without an attempt that does not end."""
    run.out.append(GiveUp(unit.number))
    run.end_attempt(unit)
    unit.record = _begun(run, unit, unit.started_at)
    run.out.append(Report(Subject.ABANDONED, unit.record))
    what = "Its code could not be stopped; it was abandoned and may still run."
    if unit.phase is Phase.EXPIRING:
        failure = unit.timeout or _UNKNOWN
        text, reason = f"{failure.text} {what}", Reason.TIMEOUT
    else:
        text, reason = f"{run.why_it_stops}. {what}", run.stopping or Reason.RUN_CANCELLED
        failure = Failure(text, text)
    fail(run, unit, failure, reason, bounded(text), abandoned=True)


def _ended_late(run: RunState, unit: Unit, event: Succeeded | Failed) -> None:
    """The attempt has ended after it was given up; what came of it does not count (A3)."""
    del event
    _retry(run, unit)


# -- failures and retries --------------------------------------------------------------------------


def fail(  # noqa: PLR0913 - what is known of one failure
    run: RunState,
    unit: Unit,
    failure: Failure,
    reason: Reason,
    text: str | None = None,
    *,
    abandoned: bool = False,
) -> None:
    """An attempt has failed: retry it, or fail the task for good.

    Args:
        run: The run's state.
        unit: The unit.
        failure: What is known of the error.
        reason: Why it failed.
        text: The error's text, if it is not the failure's.
        abandoned: Whether the code may still run.
    """
    if failure.note:
        run.out.append(Report(Subject.NOTE, unit.record, failure.note))
    if failure.pauses:
        unknown = run.pause(failure.pauses, run.now + failure.delay_s)
        if unknown:
            text = f"RetryAfter asked to pause {listed(unknown)}, which is no limit of the engine"
            run.out.append(Report(Subject.NOTE, unit.record, text))
    record = unit.record.fail(
        run.epoch, failure.text if text is None else text, reason, abandoned=abandoned
    )
    unit.line = failure.line
    unit.timeout = None
    if run.is_ending(unit) or not failure.retryable:
        run.table.commit(unit, Phase.FAILING, record)
        return
    unit.record = record
    unit.delay_s = failure.delay_s
    if abandoned:
        # A2: two attempts of one task never run at once.
        unit.phase = Phase.LINGERING
        run.table.changed.append(record)
        _wait(run, unit, timeout_s_of(run, unit))
    else:
        _retry(run, unit)


def _retry(run: RunState, unit: Unit) -> None:
    most = run.graph.specs[unit.task].retries + 1
    run.out.append(Report(Subject.RETRY, unit.record, unit.line, None, unit.delay_s, most))
    unit.record = unit.record.retry()
    run.table.changed.append(unit.record)
    if unit.delay_s:
        unit.phase = Phase.DELAYED
        due = run.now + unit.delay_s
        run.deadlines.add(due, Wait.DELAY, unit.number, unit.record.attempt)
    else:
        make_ready(run, unit)


def make_ready(run: RunState, unit: Unit) -> None:
    """Start a unit when there is a slot."""
    run.table.make_ready(unit, run.epoch)
    run.requests.note_ready(unit, run.table.needs[unit.task], run.now)


def refuse(run: RunState, unit: Unit, refusal: Refusal) -> None:
    """The store did not keep a success."""
    if unit.pending is not None and unit.pending.started_at is not None:
        unit.record = unit.record.begun(unit.pending.started_at)
    if unit.record.status is TaskStatus.PENDING:  # a value stood for its result
        unit.record = unit.record.start(run.epoch, unit.ready_at)
    unit.pending = None
    unit.value = DROPPED
    if refusal.of_result:
        run.table.committing -= 1
        fail(run, unit, Failure(refusal.text, refusal.line), Reason.ERROR)
        return
    # The driver reports the store as broken beside this, which ends the run.
    unit.line = f"its result could not be saved: {refusal.line}"
    unit.pending = unit.record.fail(run.epoch, unit.line, Reason.RUN_BROKEN)
    run.settle(unit)


def fail_lingering(run: RunState, unit: Unit, line: str, remark: str = "") -> None:
    """Fail a unit for good whose abandoned attempt was to end before a retry."""
    unit.line = line
    record = unit.record
    if remark:
        record = record.amend(f"{record.error}\n{remark}")
    run.table.commit(unit, Phase.FAILING, record)


# -- deadlines ---------------------------------------------------------------------------------


def _wait(run: RunState, unit: Unit, duration_s: float) -> None:
    run.deadlines.add(run.now + duration_s, Wait.PATIENCE, unit.number, unit.record.attempt)


def timeout_s_of(run: RunState, unit: Unit) -> float:
    """Return how long an attempt of a unit may take; 0 if there is no limit."""
    return run.graph.specs[unit.task].timeout_s or 0.0


# -- the tables ----------------------------------------------------------------------------------

Transition: TypeAlias = "Callable[[RunState, Unit, Any], None]"

TRANSITIONS: dict[tuple[Phase, type], Transition] = {
    (Phase.LOOKING_UP, LookedUp): _looked_up,
    (Phase.RUNNING, Started): _started,
    (Phase.RUNNING, CodeEnded): _code_ended,
    (Phase.RUNNING, Succeeded): _succeeded,
    (Phase.RUNNING, Failed): _failed,
    (Phase.EXPIRING, Started): _started,
    (Phase.EXPIRING, CodeEnded): _code_ended,
    (Phase.EXPIRING, Succeeded): _expired,
    (Phase.EXPIRING, Failed): _expired,
    (Phase.EXPIRING, StopAnswered): _expiry_answered,
    (Phase.STOPPING, Started): _started,
    (Phase.STOPPING, CodeEnded): _code_ended,
    (Phase.STOPPING, Succeeded): _stopped,
    (Phase.STOPPING, Failed): _stopped,
    (Phase.STOPPING, StopAnswered): _stop_answered,
    (Phase.LINGERING, Succeeded): _ended_late,
    (Phase.LINGERING, Failed): _ended_late,
}
"""Which event is possible in which phase, and what it leads to."""
