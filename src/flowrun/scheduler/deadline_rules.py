"""What follows when a deadline of a run is due; ``attempt_rules.py`` sets those of attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.scheduler.attempt_rules import fail_lingering, give_up, make_ready, timeout_s_of
from flowrun.scheduler.deadlines import Wait
from flowrun.scheduler.messages import Stop
from flowrun.scheduler.units import Phase
from flowrun.state import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.run_state import RunState
    from flowrun.scheduler.units import Unit


def _time_up(run: RunState, unit: Unit) -> None:
    # The deadline was set when the attempt was handed over; its clock starts with its code (A1),
    # and as long as it waits for a thread, or for its turn on the loop, all its time is before it.
    began_at = run.now if unit.started_at is None else unit.started_at
    due = began_at + timeout_s_of(run, unit)
    if due > run.now and not unit.is_overdue:
        run.deadlines.add(due, Wait.TIMEOUT, unit.number, unit.record.attempt)
        return
    unit.phase = Phase.EXPIRING
    run.out.append(Stop((unit.number,), ""))


def _out_of_patience(run: RunState, unit: Unit) -> None:
    if unit.phase is not Phase.LINGERING:
        give_up(run, unit)
        return
    remedy = (
        "Let the task go on with the CancelledError that it gets."
        if run.graph.is_async[unit.task]
        else "Let the task check current_attempt().cancelled, or run it on a"
        " ProcessPerAttemptExecutor."
    )
    remark = (
        "Not retried: the timed-out attempt was still running after another"
        f" {timeout_s_of(run, unit):g} s, and two attempts of one task never run at once. {remedy}"
    )
    fail_lingering(run, unit, unit.line, remark)


def _delay_over(run: RunState, unit: Unit) -> None:
    make_ready(run, unit)


def meet_deadlines(run: RunState) -> None:
    """Do what is due."""
    for deadline in run.deadlines.pop_due(run.now):
        if not run.is_current(deadline):
            continue  # the one before has stopped the run
        wait = deadline[1]
        if wait in DUE:
            DUE[wait][1](run, run.table.units[deadline[2]])
        elif wait is Wait.STARTS:
            _save_starts(run)
        elif wait is Wait.LIMITS:
            run.requests.ask_again()
        else:
            cause = f"the run took longer than timeout_s={run.run_timeout_s:g}"
            run.stop(Reason.RUN_TIMED_OUT, cause)


def _save_starts(run: RunState) -> None:
    run.saves_starts = False
    for unit in run.table.active.values():
        if not (unit.is_start_saved or unit.is_teardown):
            unit.is_start_saved = True
            run.table.changed.append(unit.record)


DUE: dict[Wait, tuple[frozenset[Phase], Callable[[RunState, Unit], None]]] = {
    Wait.TIMEOUT: (frozenset((Phase.RUNNING,)), _time_up),
    Wait.PATIENCE: (
        frozenset((Phase.EXPIRING, Phase.STOPPING, Phase.LINGERING)),
        _out_of_patience,
    ),
    Wait.DELAY: (frozenset((Phase.DELAYED,)), _delay_over),
}
"""In which phases a unit's deadline still matters, and what it leads to."""
