"""What one run asks the engine's limits for, and what it gives back. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flowrun.scheduler.limits import Amounts, Needs
    from flowrun.scheduler.messages import SlotsGranted
    from flowrun.scheduler.units import Unit, UnitTable
    from flowrun.state.records import LimitWaits


class SlotRequests:
    """The side of one run in the exchange with the limits.

    Args:
        exchange: See :class:`flowrun.scheduler.run_state.RunState`.
        waited: Returns how long units of one kind have waited for each named limit until a time;
            ``None`` if there are no named limits.
        most_encoding: For how many attempts a slot is free while their results are encoded.
    """

    def __init__(
        self,
        exchange: Callable[[Amounts, Amounts, float], tuple[Amounts, float]],
        waited: Callable[[Needs, float], Mapping[str, float]] | None = None,
        most_encoding: int = 0,
    ) -> None:
        self._exchange = exchange
        self._waited = waited
        self._may_encode = most_encoding
        self._granted: Amounts = {}
        self._freed: Amounts = {}
        self._wanted: Amounts = {}
        self._asks_again = False

    def free(self, unit: Unit, needs: Needs) -> None:
        """Note that an attempt is over: its code has ended, or goes on without the run."""
        if unit.holds_slot:
            self._freed[needs] = self._freed.get(needs, 0) + 1
        else:
            self._may_encode += 1

    def free_early(self, unit: Unit, needs: Needs) -> None:
        """Note that the code of a unit has ended, and its result is being encoded."""
        if self._may_encode:
            self.free(unit, needs)
            unit.holds_slot = False
            self._may_encode -= 1

    def note_ready(self, unit: Unit, needs: Needs, now: float) -> None:
        """Note since when a unit waits for its slot and its limits."""
        if self._waited is not None and len(needs) > 1:
            unit.waits_before = self._waited(needs, now)

    def limit_waits(self, unit: Unit, needs: Needs, now: float) -> LimitWaits:
        """Return how long a unit has waited for named limits since it became ready."""
        if self._waited is None or len(needs) == 1:
            return ()
        before, waits = unit.waits_before, self._waited(needs, now)
        found = [(name, wait_s - before.get(name, 0.0)) for name, wait_s in waits.items()]
        return tuple([each for each in found if each[1] > 0])

    def give_up(self, units: Iterable[Unit], needs: Sequence[Needs], now: float) -> None:
        """Note how long units have waited that will not start, as their run ends."""
        for unit in units:
            waits = self.limit_waits(unit, needs[unit.task], now)
            unit.record = unit.record.waited(unit.ready_at, waits)

    def book(self, event: SlotsGranted) -> None:
        """Note what was granted since the limits were asked."""
        for needs, count in event.slots.items():
            self._granted[needs] = self._granted.get(needs, 0) + count
            self._asks_again = True

    def ask_again(self) -> None:
        """Ask the limits although nothing has changed here: a time has come."""
        self._asks_again = True

    def take(self, table: UnitTable, now: float) -> tuple[Amounts, float]:
        """Give back what is free; return what can be used now, and when to ask again."""
        used: Amounts = {}
        if not (table.is_ready_changed or self._freed or self._granted or self._asks_again):
            return used, inf
        table.is_ready_changed = False
        wanted = table.wanted()
        freed, self._freed = self._freed, {}
        for needs, count in self._granted.items():
            used[needs] = min(count, wanted.get(needs, 0))
            wanted[needs] = wanted.get(needs, 0) - used[needs]
            if count > used[needs]:
                freed[needs] = freed.get(needs, 0) + count - used[needs]
        if self._granted:
            self._granted = {}
            wanted = {needs: count for needs, count in wanted.items() if count}
        if not (freed or self._asks_again) and wanted == self._wanted:
            return used, inf
        self._asks_again = False
        taken, again_at = self._exchange(freed, wanted, now)
        for needs, count in taken.items():
            used[needs] = used.get(needs, 0) + count
            wanted[needs] -= count
        self._wanted = {needs: count for needs, count in wanted.items() if count}
        return used, again_at
