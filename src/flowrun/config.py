"""How an engine schedules: limits, waiting times, and the clock and ids that a test replaces."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import monotonic as _monotonic
from time import time as _epoch
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Timer(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """Prevent the call of the callback."""
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


def _new_run_id() -> str:
    return os.urandom(16).hex()


def _chance() -> float:
    import random  # noqa: PLC0415 - few retries have a jitter

    return random.random()  # noqa: S311 - no secret


@dataclass(frozen=True)
class SchedulerConfig:
    """How an engine schedules; durations in seconds.

    Args:
        max_parallel: Tasks that run at the same time, over all runs of the engine; 1 or more.
        cancel_grace_s: How long a run waits for a cancelled async task.
        thread_grace_s: How long a cancelled run waits for its sync tasks.
        hook_timeout_s: How long one call of a hook may take before the engine abandons it.
        clock: Where the time comes from.
        new_run_id: Makes the id of a run.
        chance: Gives random numbers from 0 to 1, for the jitter of retries.

    Raises:
        TypeError: ``max_parallel`` is not an ``int``.
        ValueError: ``max_parallel`` is below 1, or a duration is negative.

    Example:
        >>> SchedulerConfig(cancel_grace_s=1.0).max_parallel
        4
    """

    max_parallel: int = 4
    cancel_grace_s: float = 10.0
    thread_grace_s: float = 0.25
    hook_timeout_s: float = 10.0
    clock: Clock = field(default_factory=Clock)
    new_run_id: Callable[[], str] = _new_run_id
    chance: Callable[[], float] = _chance

    def __post_init__(self) -> None:
        """Check the limits."""
        number: object = self.max_parallel
        if not isinstance(number, int) or isinstance(number, bool):
            msg = f"max_parallel must be an int, not {number!r}"
            raise TypeError(msg)
        if number < 1:
            msg = f"max_parallel must be 1 or more, not {number}"
            raise ValueError(msg)
        for name in ("cancel_grace_s", "thread_grace_s", "hook_timeout_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be 0 or more, not {getattr(self, name)!r}"
                raise ValueError(msg)
