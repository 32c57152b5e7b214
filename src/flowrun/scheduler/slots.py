"""``max_parallel``: one number of slots for all runs of an engine, shared fairly (R3)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Slots:
    """A number of slots; safe to use from several event loops in several threads."""

    __slots__ = ("capacity", "free", "lock", "queue")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self.lock = threading.Lock()
        self.queue: deque[Lane] = deque()


class Lane:
    """One run's way to the slots.

    Args:
        slots: What it shares with other lanes.
        grant: Called, from any thread, when a slot that was asked for has been given.

    Attributes:
        line: Those who wait for a slot, itself perhaps among them.
    """

    __slots__ = ("_grant", "_has", "_left", "_queued", "_slots", "line")

    def __init__(self, slots: Slots, grant: Callable[[], object]) -> None:
        self._slots = slots
        self.line = slots.queue
        self._grant = grant
        self._queued = False
        self._has = 0
        self._left = False

    @property
    def may_take(self) -> bool:
        """Whether it is worth asking for one more: it has not got all, nor asked already."""
        return not self._queued and self._has < self._slots.capacity

    def take(self) -> bool:
        """Take a free slot, or stand in line for one and return ``False``.

        A lane that has all of them does not stand in line: it would wait for itself.
        """
        slots = self._slots
        with slots.lock:
            if slots.free and not slots.queue:
                slots.free -= 1
                self._has += 1
                return True
            if not self._queued and self._has < slots.capacity:
                self._queued = True
                slots.queue.append(self)
            return False

    def give_back(self) -> None:
        """Give one slot to whoever has waited longest."""
        slots = self._slots
        with slots.lock:
            lane = None if self._left else self._passed_on()
        if lane is not None:
            lane._grant()  # noqa: SLF001 - of the same class

    def _passed_on(self) -> Lane | None:
        """Give one slot away; return who has it now, and is to be told. The lock is held."""
        slots = self._slots
        self._has -= 1
        if not slots.queue:
            slots.free += 1
            return None
        lane = slots.queue.popleft()
        lane._queued = False  # noqa: SLF001 - of the same class
        lane._has += 1  # noqa: SLF001
        return lane

    @property
    def others_wait(self) -> bool:
        """Whether another lane stands in line.

        Looks at the queue without its lock: at worst a newcomer waits for one task more.
        """
        queue = self._slots.queue
        return bool(queue) and not (self._queued and len(queue) == 1)

    def renew(self) -> bool:
        """Keep a slot for the lane's next task, unless another lane waits: then line up again."""
        if not self.others_wait:
            return True
        self.give_back()
        return self.take()

    def leave(self) -> None:
        """Stand in line no more, and give every slot back: nothing uses one any more.

        Also those on their way: one that was granted a moment ago, or that somebody has taken and
        lost when Ctrl-C came.
        """
        slots = self._slots
        with slots.lock:
            if self._queued:
                self._queued = False
                slots.queue.remove(self)
            self._left = True
            told = [self._passed_on() for _ in range(self._has)]
        for lane in told:
            if lane is not None:
                lane._grant()  # noqa: SLF001
