"""How a run is ended from outside its tasks, and how its teardowns still run then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.scheduler.attempt_rules import fail_lingering
from flowrun.scheduler.mapping import conclude
from flowrun.scheduler.messages import Stop
from flowrun.scheduler.units import IDLE, Phase

if TYPE_CHECKING:
    from flowrun.scheduler.run_state import RunState
    from flowrun.state import Reason

_ENDS_TEARDOWNS = 2


class Stopping:
    """What is known of a stop, and whether it ends the run's teardowns, too.

    Attributes:
        cause: Why the run is ended, in words.
        is_broken: Whether the store or flowrun has failed.
        interrupts: How often the code that awaits the run was cancelled.
        has_skipped: Whether what had not started was skipped.
    """

    __slots__ = ("cause", "has_skipped", "interrupts", "is_broken")

    def __init__(self) -> None:
        self.cause = ""
        self.is_broken = False
        self.interrupts = 0
        self.has_skipped = False

    @property
    def spares_teardowns(self) -> bool:
        """Whether teardowns run all the same."""
        return not self.is_broken and self.interrupts < _ENDS_TEARDOWNS


def stop(run: RunState, reason: Reason, cause: str, *, interrupts: bool, broken: bool) -> None:
    """End the run from outside its tasks; what comes later can only end its teardowns, too."""
    stopping = run.stopped
    spared = stopping.spares_teardowns
    stopping.is_broken = stopping.is_broken or broken
    stopping.interrupts += interrupts
    if run.is_finished:
        return
    if run.stopping is None:
        if not (run.table.open or stopping.is_broken):
            return  # all tasks have ended by themselves, in this wake-up
        run.stopping, stopping.cause = reason, cause
    elif spared == stopping.spares_teardowns:
        return
    else:
        stopping.has_skipped = False
    _end_units(run, cause)


def _end_units(run: RunState, cause: str) -> None:
    """Have no unit that the stop ends start, and tell those that run to stop."""
    ends = run.is_ending
    cleared = run.table.clear_ready(spares_teardowns=run.stopped.spares_teardowns)
    run.requests.give_up(cleared, run.table.needs, run.now)
    told: list[int] = []
    for unit in run.table.active.values():
        # One that is EXPIRING has been told already; one that is STARTING will not start.
        if unit.phase is Phase.RUNNING and ends(unit):
            unit.phase = Phase.STOPPING
            told.append(unit.number)
    if told:
        run.out.append(Stop(sorted(told), run.why_it_stops))
    for unit in run.table.units:
        if unit.phase is Phase.LINGERING and ends(unit):
            fail_lingering(run, unit, f"not retried: {cause}")
        elif unit.phase in (Phase.DELAYED, Phase.LOOKING_UP) and ends(unit):
            unit.phase = Phase.WAITING  # what it waits for makes it READY no more


def skip_rest(run: RunState, reason: Reason) -> None:
    """Skip what has not started, once all that ran before the stop has ended."""
    stopping, table = run.stopped, run.table
    if stopping.has_skipped or table.committing or any(map(run.is_ending, table.active.values())):
        return
    stopping.has_skipped = True
    rest = [unit for unit in table.units if unit.phase in IDLE and run.is_ending(unit)]
    run.skip(rest, reason, stopping.cause)
    for each in table.maps.values():
        conclude(run, each)
