"""The time as a run sees it; a test may put its own clock in this one's place."""

from __future__ import annotations

from time import monotonic as _monotonic
from time import time as _epoch
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """Make sure that the callback is not called any more."""
        ...


class Clock:
    """Read the system's clocks and set timers on an event loop."""

    # Read several times per task: the builtins themselves, without a Python call around them.
    time = staticmethod(_epoch)
    """Return epoch seconds, UTC."""

    monotonic = staticmethod(_monotonic)
    """Return seconds on a clock that never goes back."""

    def call_later(
        self, loop: asyncio.AbstractEventLoop, delay_s: float, callback: Callable[[], object]
    ) -> Timer:
        """Call back on the loop after so many seconds."""
        return loop.call_later(delay_s, callback)
