"""What is compared with the floors, and how much flowrun may take of each."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.jobs import FLOWRUN, Job
from benchmarks.shapes import SHAPES, WIDE


@dataclass(frozen=True)
class Target:
    """A ratio to a floor that must not be passed.

    Attributes:
        what: As the table calls it.
        kind: A key of both sides' ``KINDS``.
        at_most: flowrun's time as a share of the floor's.
        shapes: Where it holds.
        max_parallel: Tasks at the same time.
        smallest: Fewer tasks are measured too, but the target does not hold for them.
    """

    what: str
    kind: str
    at_most: float
    shapes: tuple[str, ...] = tuple(SHAPES)
    max_parallel: int = 4
    smallest: int = 1_000

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


FLOOR_TARGETS = (
    Target("async, returns at once", "at-once", 0.5),
    Target("async, returns at once, 64 at a time", "at-once", 0.5, max_parallel=64),
    Target("async, suspends once", "suspends", 0.8),
    Target("async, suspends once, 64 at a time", "suspends", 0.8, max_parallel=64),
    Target("sync, wide", "sync", 0.25, WIDE),
    Target("sync, wide, 64 at a time", "sync", 0.15, WIDE, max_parallel=64),
    Target("sync, chain", "sync", 0.7, ("chain",)),
    Target("durable NORMAL, wide", "durable-normal", 0.4, WIDE),
    Target("durable NORMAL, chain", "durable-normal", 1.3, ("chain",)),
    Target("durable FULL, wide", "durable-full", 0.1, WIDE),
    Target("durable FULL, chain", "durable-full", 1.1, ("chain",)),
    Target("durable NORMAL, sync tasks, wide", "durable-normal-sync", 0.4, WIDE),
    Target("durable NORMAL, sync tasks, chain", "durable-normal-sync", 1.3, ("chain",)),
    Target("durable FULL, sync tasks, wide", "durable-full-sync", 0.1, WIDE),
    Target("durable FULL, sync tasks, chain", "durable-full-sync", 1.1, ("chain",)),
    Target("build and validate, random", "build", 0.7, ("random",)),
    Target("build and validate, others", "build", 0.5, ("chain", "fan", "grid")),
)
TEN_AT_MOST = 3.0
IMPORT_AT_MOST = 1.15
BYTES_AT_MOST = 1_500
GROWTH_AT_MOST = 1.5
