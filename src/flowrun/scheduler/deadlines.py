"""The deadlines of one run's attempts: one timer, for the earliest of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from flowrun.config import Clock, Timer


class Timed(Protocol):
    """What may have a deadline."""

    @property
    def number(self) -> int:
        """The second thing to go by, where deadlines are the same."""
        ...

    def due_at(self, now: float) -> float | None:
        """Return its deadline, as far as it is known now; ``None`` if it has none any more."""
        ...


T = TypeVar("T", bound=Timed)

_FEW = 1000
_PATIENCE_S = 1e-6


class Deadlines(Generic[T]):
    """Call back for every item whose deadline is reached while it is among the items.

    Most attempts end long before their deadline. So nothing is noted for any of them: only when
    the timer goes off is it looked which of those that are active are due, and which will be
    next. Attempts that have ended meanwhile cost nothing.

    Args:
        loop: Where the timer runs.
        clock: The time.
        items: Those to look at: no more than run at the same time.
        due: Called with each item that is due, in the order of their deadlines.

    Attributes:
        armed_for: What the timer is set for; infinity while it is not. Read in any thread.
    """

    __slots__ = ("_clock", "_closed", "_due", "_items", "_loop", "_timer", "armed_for")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        items: Collection[T],
        due: Callable[[T], object],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._items = items
        self._due = due
        self._timer: Timer | None = None
        self._closed = False
        self.armed_for = math.inf

    def expect(self, due: float) -> None:
        """See to it that the items are looked at by then, on the monotonic clock."""
        if due < self.armed_for and not self._closed:
            self._arm(due)

    def close(self) -> None:
        """Watch nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.armed_for = due
        wait_s = max(0.0, due - self._clock.monotonic())
        if len(self._items) > _FEW:
            # So that looking at so many takes no more than a tenth of the time.
            wait_s = max(wait_s, len(self._items) * _PATIENCE_S)
        self._timer = self._clock.call_later(self._loop, wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        self.armed_for = math.inf
        now = self._clock.monotonic()
        over: list[tuple[float, int, T]] = []
        earliest = math.inf
        for item in list(self._items):
            due = item.due_at(now)
            if due is None:
                continue
            if due <= now:
                over.append((due, item.number, item))
            else:
                earliest = min(earliest, due)
        over.sort(key=_by_deadline)
        for _, _, item in over:
            if (
                not self._closed and item.due_at(now) is not None
            ):  # an earlier one may have ended it
                self._due(item)
        if earliest < math.inf:
            self.expect(earliest)


def _by_deadline(entry: tuple[float, int, object]) -> tuple[float, int]:
    return entry[:2]
