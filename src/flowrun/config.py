"""How an engine schedules: limits, waiting times, and the clock and ids that a test replaces."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic as _monotonic
from time import time as _epoch
from typing import TYPE_CHECKING, Protocol, cast

from flowrun.policy import check_int, check_seconds

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
class Rate:
    """So many units may start in any span of ``per_s`` seconds.

    Args:
        count: 1 or more.
        per_s: Seconds, above 0.

    Raises:
        TypeError: A value is not a number.
        ValueError: It is out of its range.
    """

    count: int
    per_s: float = 1.0

    def __post_init__(self) -> None:
        """Check both values."""
        check_int("the count of a Rate", self.count, least=1)
        check_seconds("per_s of a Rate", self.per_s)


@dataclass(frozen=True)
class Limit:
    """What bounds the tasks that use a resource, over all runs of an engine.

    Args:
        count: How much of it is used at once; ``None`` for no bound.
        rate: How often its use may begin; ``None`` for no bound.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: ``count`` is below 1, or neither is given.

    Example:
        >>> Limit(3, rate=Rate(10, per_s=1.0)).count
        3
    """

    count: int | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        """Check both values."""
        if self.count is not None:
            check_int("the count of a Limit", self.count, least=1)
        if self.rate is not None and not isinstance(self.rate, Rate):
            msg = f"rate of a Limit must be a Rate, not {self.rate!r:.80}"
            raise TypeError(msg)
        if self.count is None and self.rate is None:
            msg = "a Limit needs a count, a rate or both: Limit(3), Limit(rate=Rate(10))"
            raise ValueError(msg)


def checked_limits(limits: object) -> dict[str, Limit]:
    """Return an engine's named limits; an ``int`` stands for the count of a ``Limit``."""
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        msg = f'limits= takes a dict such as {{"api": 3}}, not {limits!r:.80}'
        raise TypeError(msg)
    found: dict[str, Limit] = {}
    for name, limit in cast("Mapping[object, object]", limits).items():
        if not isinstance(name, str) or not name.strip():
            msg = f"the name of a limit must be a str that is not empty, not {name!r:.80}"
            raise TypeError(msg)
        if not isinstance(limit, Limit | int) or isinstance(limit, bool):
            msg = f"limit {name!r} must be an int or a Limit, not {limit!r:.80}"
            raise TypeError(msg)
        try:
            found[name] = limit if isinstance(limit, Limit) else Limit(limit)
        except ValueError as error:
            msg = f"limit {name!r}: {error}"
            raise ValueError(msg) from None
    return found


@dataclass(frozen=True)
class SchedulerConfig:
    """How an engine schedules; durations in seconds.

    Args:
        max_parallel: Tasks that run at the same time, over all runs of the engine; 1 or more.
        cancel_grace_s: How long a run waits for a cancelled async task.
        thread_grace_s: How long a cancelled run waits for its sync tasks.
        hook_timeout_s: How long one call of a hook may take before the engine abandons it.
        keep_logs: Keep what the standard logging emits in an attempt together with the attempt.
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
    keep_logs: bool = False
    clock: Clock = field(default_factory=Clock)
    new_run_id: Callable[[], str] = _new_run_id
    chance: Callable[[], float] = _chance

    def __post_init__(self) -> None:
        """Check the limits."""
        check_int("max_parallel", self.max_parallel, least=1)
        for name in ("cancel_grace_s", "thread_grace_s", "hook_timeout_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be 0 or more, not {getattr(self, name)!r}"
                raise ValueError(msg)
