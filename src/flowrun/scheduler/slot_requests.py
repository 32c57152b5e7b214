"""What one run asks the engine's limits for, and what it gives back. Pure."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.limits import Amounts, Needs
    from flowrun.scheduler.messages import SlotsGranted
    from flowrun.scheduler.units import UnitTable


class SlotRequests:
    """The side of one run in the exchange with the limits.

    Args:
        exchange: See :class:`flowrun.scheduler.run_state.RunState`.
    """

    def __init__(
        self, exchange: Callable[[Amounts, Amounts, float], tuple[Amounts, float]]
    ) -> None:
        self._exchange = exchange
        self._granted: Amounts = {}
        self._freed: Amounts = {}
        self._wanted: Amounts = {}
        self._asks_again = False

    def free(self, needs: Needs) -> None:
        """Note that the code of a unit has ended, or goes on without the run."""
        self._freed[needs] = self._freed.get(needs, 0) + 1

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
