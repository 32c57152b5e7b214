"""When a run has something to do next: attempts that time out, delays and waits that end.

Pure: time comes in as an argument, one next deadline goes out.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable


class Wait(IntEnum):
    """What a deadline is for.

    ``TIMEOUT``: an attempt's time is up. ``PATIENCE``: an attempt that was told to stop, or that
    a retry waits for, has had its time to end. ``DELAY``: a retry's delay is over. ``RUN``: the
    run's own time is up.
    """

    TIMEOUT = 0
    PATIENCE = 1
    DELAY = 2
    RUN = 3


Deadline: TypeAlias = tuple[float, Wait, int, int]
"""When, what for, and of which unit's which attempt; both are 0 for what is about the run."""


class Deadlines:
    """The deadlines of one run.

    Most deadlines have one of few durations, such as the default timeout. They become due in
    the order in which they were added, so each duration has a queue, and what ended before its
    time costs no more than leaving the queue. Everything else goes to a heap.

    Args:
        is_current: Returns whether a deadline still matters.

    Attributes:
        earliest: Nothing is due before.
    """

    __slots__ = ("_heap", "_is_current", "_queues", "earliest")

    def __init__(self, is_current: Callable[[Deadline], bool]) -> None:
        self._is_current = is_current
        self._queues: dict[tuple[Wait, float], deque[Deadline]] = {}
        self._heap: list[Deadline] = []
        self.earliest = inf

    def add(self, now: float, duration_s: float, wait: Wait, unit: int, attempt: int) -> None:
        """Add a deadline of a usual duration; ``now`` never goes back."""
        queue = self._queues.get((wait, duration_s))
        if queue is None:
            queue = self._queues[wait, duration_s] = deque()
        due = now + duration_s
        queue.append((due, wait, unit, attempt))
        self.earliest = min(self.earliest, due)

    def add_at(self, due: float, wait: Wait, unit: int = 0, attempt: int = 0) -> None:
        """Add a deadline at any time."""
        heappush(self._heap, (due, wait, unit, attempt))
        self.earliest = min(self.earliest, due)

    def next(self) -> float | None:
        """Return when the first one that still matters is due; ``None`` if there is none."""
        first: float | None = None
        for queue in self._queues.values():
            while queue and not self._is_current(queue[0]):
                queue.popleft()
            if queue and (first is None or queue[0][0] < first):
                first = queue[0][0]
        heap = self._heap
        while heap and not self._is_current(heap[0]):
            heappop(heap)
        if heap and (first is None or heap[0][0] < first):
            first = heap[0][0]
        self.earliest = inf if first is None else first
        return first

    def pop_due(self, now: float) -> list[Deadline]:
        """Remove and return what is due and still matters, the earliest first."""
        due: list[Deadline] = []
        for queue in self._queues.values():
            while queue and queue[0][0] <= now:
                due.append(queue.popleft())
        heap = self._heap
        while heap and heap[0][0] <= now:
            due.append(heappop(heap))
        self.next()
        return sorted(filter(self._is_current, due)) if due else due
