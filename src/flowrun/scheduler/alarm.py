"""The one timer of a run on its event loop."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowrun.config import Clock, Timer


class Alarm:
    """Call a function when a time has come; only the last time that was set counts.

    Args:
        clock: Sets the timers.
        loop: The event loop.
        ring: The function.

    Attributes:
        due: When it rings next, on the monotonic clock.
    """

    def __init__(
        self, clock: Clock, loop: asyncio.AbstractEventLoop, ring: Callable[[], object]
    ) -> None:
        self._clock = clock
        self._loop = loop
        self._ring = ring
        self._timer: Timer | None = None
        self.due = inf

    def set(self, due: float, now: float) -> None:
        """Ring at a time."""
        self.call_after(due - now, self._rings)
        self.due = due

    def call_after(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call another function after so many seconds."""
        self.drop()
        self._timer = self._clock.call_later(self._loop, max(0.0, delay_s), function)

    def drop(self) -> None:
        """Do not ring any more."""
        timer, self._timer, self.due = self._timer, None, inf
        if timer is not None:
            timer.cancel()

    def _rings(self) -> None:
        self._timer, self.due = None, inf
        self._ring()
