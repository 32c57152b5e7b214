"""When a run has something to do next: attempts that time out, delays and waits that end.

Pure: time comes in as an argument, one next deadline goes out.
"""

from __future__ import annotations

import itertools
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
    run's own time is up. ``STARTS``: the starts of attempts that still run are saved. ``LIMITS``:
    what the run waits for may be free.
    """

    TIMEOUT = 0
    PATIENCE = 1
    DELAY = 2
    RUN = 3
    STARTS = 4
    LIMITS = 5


Deadline: TypeAlias = tuple[float, Wait, int, int]
"""When, what for, and of which unit's which attempt; both are 0 for what is about the run."""


class Deadlines:
    """The deadlines of one run.

    Most deadlines have one of few durations, such as the default timeout, and become due in the
    order in which they were added: each duration has a queue. Other deadlines go to a heap.

    Args:
        is_current: Returns whether a deadline still matters.

    Attributes:
        earliest: Nothing is due before; what mattered at this time may have lapsed since.
    """

    __slots__ = ("_heap", "_is_current", "_queues", "earliest")

    def __init__(self, is_current: Callable[[Deadline], bool]) -> None:
        self._is_current = is_current
        self._queues: dict[float, deque[Deadline]] = {}
        self._heap: list[Deadline] = []
        self.earliest = inf

    def add_timeout(self, now: float, timeout_s: float, unit: int, attempt: int) -> None:
        """Add the deadline of an attempt; ``now`` never goes back."""
        queue = self._queues.get(timeout_s)
        if queue is None:
            queue = self._queues[timeout_s] = deque()
        while queue and not self._is_current(queue[0]):
            queue.popleft()
        due = now + timeout_s
        queue.append((due, Wait.TIMEOUT, unit, attempt))
        self.earliest = min(self.earliest, due)

    def add(self, due: float, wait: Wait, unit: int = 0, attempt: int = 0) -> None:
        """Add a deadline at any time."""
        heappush(self._heap, (due, wait, unit, attempt))
        self.earliest = min(self.earliest, due)

    def pop_due(self, now: float) -> list[Deadline]:
        """Remove and return what is due and still matters, the earliest first."""
        due: list[Deadline] = []
        for queue in self._queues.values():
            while queue and queue[0][0] <= now:
                due.append(queue.popleft())
        while self._heap and self._heap[0][0] <= now:
            due.append(heappop(self._heap))
        self.next()
        return sorted(filter(self._is_current, due))

    def next(self) -> float | None:
        """Return when the first one that still matters is due; ``None`` if there is none."""
        heads: list[float] = []
        for queue in self._queues.values():
            while queue and not self._is_current(queue[0]):
                queue.popleft()
            heads += [each[0] for each in itertools.islice(queue, 1)]
        while self._heap and not self._is_current(self._heap[0]):
            heappop(self._heap)
        heads += [each[0] for each in self._heap[:1]]
        self.earliest = min(heads, default=inf)
        return min(heads, default=None)
