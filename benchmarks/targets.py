"""What is compared with the floors, and how much flowrun may take of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.jobs import FLOWRUN, Job
from benchmarks.shapes import SHAPES, WIDE

_SMALLEST, _LARGEST = 1_000, 20_000


@dataclass(frozen=True)
class Target:
    """A ratio to a floor that must not be passed.

    Attributes:
        what: As the table calls it.
        kind: A key of both sides' ``KINDS``.
        at_most: flowrun's time as a share of the floor's.
        shapes: Where it holds.
        max_parallel: Tasks at the same time.
        at_most_huge: The same with more than 20,000 tasks; ``None``: measured, with no target.
    """

    what: str
    kind: str
    at_most: float
    shapes: tuple[str, ...] = tuple(SHAPES)
    max_parallel: int = 4
    at_most_huge: float | None = None

    def bar(self, size: int) -> float | None:
        """Return the ratio that must not be passed with so many tasks, if there is one."""
        if size < _SMALLEST:
            return None
        return self.at_most if size <= _LARGEST else self.at_most_huge

    def jobs(self, sizes: tuple[int, ...], most_turns: int) -> list[Job]:
        """Return what is to be measured."""
        return [
            Job(FLOWRUN, self.kind, shape, size, self.max_parallel, turns_for(size, most_turns))
            for size in sizes
            for shape in self.shapes
        ]


def turns_for(size: int, most: int = 9) -> int:
    """Return how often a process repeats a run: short ones are noisy."""
    return max(1, min(most, 10_000 // size))


# From Python 3.12 on asyncio starts tasks eagerly, which makes async tasks much cheaper.
_IS_EAGER = sys.version_info >= (3, 12)
_AT_ONCE = 0.65 if _IS_EAGER else 1.15
_SUSPENDS = 0.7 if _IS_EAGER else 1.0
_HUGE_ASYNC = 0.85 if _IS_EAGER else 1.15

FLOOR_TARGETS = (
    Target("async, returns at once", "at-once", _AT_ONCE, at_most_huge=_HUGE_ASYNC),
    Target(
        "async, returns at once, 64 at a time",
        "at-once",
        _AT_ONCE,
        max_parallel=64,
        at_most_huge=_HUGE_ASYNC,
    ),
    Target("async, suspends once", "suspends", _SUSPENDS, at_most_huge=_HUGE_ASYNC),
    Target(
        "async, suspends once, 64 at a time",
        "suspends",
        _SUSPENDS,
        max_parallel=64,
        at_most_huge=_HUGE_ASYNC,
    ),
    Target("sync, wide", "sync", 0.45, WIDE),
    Target("sync, wide, 64 at a time", "sync", 0.45, WIDE, max_parallel=64),
    Target("sync, chain", "sync", 0.65, ("chain",)),
    Target("sync and async in turns", "mixed", 0.7),
    Target("durable NORMAL, wide", "durable-normal", 0.25, WIDE),
    Target("durable NORMAL, chain", "durable-normal", 0.85, ("chain",)),
    Target("durable FULL, wide", "durable-full", 0.2, WIDE),
    Target("durable FULL, chain", "durable-full", 0.95, ("chain",)),
    Target("durable NORMAL, sync tasks, wide", "durable-normal-sync", 0.25, WIDE),
    Target("durable NORMAL, sync tasks, chain", "durable-normal-sync", 0.85, ("chain",)),
    Target("durable FULL, sync tasks, wide", "durable-full-sync", 0.2, WIDE),
    Target("durable FULL, sync tasks, chain", "durable-full-sync", 0.95, ("chain",)),
    Target("build and validate, random", "build", 0.7, ("random",), at_most_huge=0.7),
    Target("build and validate, others", "build", 0.5, ("chain", "fan", "grid"), at_most_huge=0.5),
)
TEN_AT_MOST = 1.2 if _IS_EAGER else 1.5
IMPORT_AT_MOST = 1.15
IMPORT_ENGINE_AT_MOST = 1.5
BYTES_AT_MOST = 1_500
GROWTH_AT_MOST = 1.5
