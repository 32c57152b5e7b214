"""``max_parallel``: slots that the runs of an engine share fairly (R3).

``Limits`` decides, and is pure. ``SharedLimits`` puts the engine's lock around it and sends
grants to the runs' inboxes.
"""

from __future__ import annotations

import threading
from typing import Generic, Protocol, TypeVar

H = TypeVar("H")


class Limits(Generic[H]):
    """A number of slots, and who holds or waits for how many of them.

    The holder that has waited longest gets the next free slot. If it wants more it goes to the
    end of the line.

    Args:
        capacity: Number of slots.

    Attributes:
        free: Slots that nobody holds.
        held: Slots by holder.
        waiting: Slots that are wanted, by holder, the longest waiting first.
    """

    __slots__ = ("capacity", "free", "held", "waiting")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free: int = capacity
        self.held: dict[H, int] = {}
        self.waiting: dict[H, int] = {}

    def exchange(self, holder: H, released: int, wanted: int) -> dict[H, int]:
        """Take slots back from a holder and note how many it wants now.

        Returns:
            The slots that are granted by this, by holder.

        Raises:
            ValueError: It releases more than it holds.
        """
        if released:
            left = self.held.get(holder, 0) - released
            if left < 0:
                msg = f"{holder!r} releases {released} slot(s), more than it holds"
                raise ValueError(msg)
            self.held[holder] = left
            self.free += released
        if wanted:
            self.waiting[holder] = wanted  # a holder that already waits keeps its place
        elif self.waiting:
            self.waiting.pop(holder, None)
        return self._grant() if self.free and self.waiting else {}

    def leave(self, holder: H) -> dict[H, int]:
        """Take everything back from a holder, grants that are on their way included."""
        self.waiting.pop(holder, None)
        # No call between the next lines, so that a KeyboardInterrupt cannot come between them.
        count = self.held.get(holder, 0)
        self.free += count
        self.held[holder] = 0
        del self.held[holder]
        return self._grant()

    def _grant(self) -> dict[H, int]:
        granted: dict[H, int] = {}
        while self.free and self.waiting:
            holder = next(iter(self.waiting))
            wanted = self.waiting.pop(holder)
            if self.waiting:
                count = 1
                if wanted > 1:
                    self.waiting[holder] = wanted - 1
            else:
                count = min(wanted, self.free)
                if wanted > count:
                    self.waiting[holder] = wanted - count
            granted[holder] = granted.get(holder, 0) + count
            held = self.held.get(holder, 0) + count
            self.held[holder] = held
            self.free -= count
        return granted


class SlotHolder(Protocol):
    """A run, as the limits know it."""

    def grant(self, count: int) -> bool:
        """Take granted slots, from any thread; return ``False`` if nobody will use them."""
        ...


class SharedLimits:
    """The limits of an engine; safe to use from several event loops in several threads.

    Args:
        capacity: Number of slots.
    """

    __slots__ = ("_limits", "_lock")

    def __init__(self, capacity: int) -> None:
        self._limits: Limits[SlotHolder] = Limits(capacity)
        self._lock = threading.Lock()

    def exchange(self, holder: SlotHolder, released: int, wanted: int) -> int:
        """Give slots back and ask for others; return how many are granted at once.

        Those that are granted later come through ``holder.grant``.
        """
        with self._lock:
            granted = self._limits.exchange(holder, released, wanted)
        own = granted.pop(holder, 0)
        if granted:
            self._send(granted)
        return own

    def leave(self, holder: SlotHolder) -> None:
        """Give everything back: the holder's run is over. Calling it twice is fine."""
        with self._lock:
            granted = self._limits.leave(holder)
        self._send(granted)

    def _send(self, granted: dict[SlotHolder, int]) -> None:
        for holder, count in granted.items():
            if not holder.grant(count):
                self.leave(holder)
