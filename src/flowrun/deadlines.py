"""The deadlines of one run: a heap, and one timer for the earliest of them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowrun.clock import Clock, Timer


class Closable(Protocol):
    """What can have a deadline: once it is closed, the deadline means nothing."""

    closed: bool


C = TypeVar("C", bound=Closable)

_COMPACT_ABOVE = 64


class Deadlines(Generic[C]):
    """Call back for every item whose deadline is reached before it is closed.

    Most attempts end long before their deadline. A timer of the event loop for each would
    cost more than the rest of a short attempt; an entry in a heap that is forgotten by a flag
    costs next to nothing.

    Args:
        loop: Where the timer runs.
        clock: The time.
        due: Called with an item; returns when to look at it again, or ``None``.
    """

    __slots__ = ("_armed_for", "_clock", "_due", "_heap", "_live", "_loop", "_sequence", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        due: Callable[[C], float | None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._due = due
        self._heap: list[tuple[float, int, C]] = []
        self._sequence = 0
        self._live = 0
        self._timer: Timer | None = None
        self._armed_for = 0.0

    def add(self, due: float, item: C) -> None:
        """Watch an item until ``due``, on the monotonic clock."""
        self._sequence += 1
        self._live += 1
        heapq.heappush(self._heap, (due, self._sequence, item))
        if self._timer is None or due < self._armed_for:
            self._arm()

    def forget(self) -> None:
        """Count off one item that was added and has been closed."""
        self._live -= 1
        heap = self._heap
        if len(heap) > _COMPACT_ABOVE and len(heap) > 2 * self._live:
            self._heap = [entry for entry in heap if not entry[2].closed]
            heapq.heapify(self._heap)

    def close(self) -> None:
        """Watch nothing any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = self._heap[0][0]
        wait_s = max(0.0, self._armed_for - self._clock.monotonic())
        self._timer = self._clock.call_later(self._loop, wait_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._heap and (self._heap[0][2].closed or self._heap[0][0] <= now):
            _, _, item = heapq.heappop(self._heap)
            if not item.closed:
                again = self._due(item)
                if again is not None:
                    self._sequence += 1
                    heapq.heappush(self._heap, (again, self._sequence, item))
        # A callback may have added an item, and armed the timer for it, before another one asked
        # to be looked at earlier.
        if self._heap and (self._timer is None or self._heap[0][0] < self._armed_for):
            self._arm()
