"""How ``runs-v1.db`` was made: ``python tests/data/make_runs.py FILE``, with flowrun 0.1.0.

For the next version of the schema make another file, and keep the older ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import Any

from flowrun import Engine, SchedulerConfig, SqliteStateStore, build_default_engine
from flowrun.clock import Clock


class Ticking(Clock):
    """A clock that goes on by a millisecond whenever it is asked."""

    def __init__(self) -> None:
        """Begin in November 2026."""
        self.now = 1_790_000_000.0

    def time(self) -> float:
        """Return epoch seconds."""
        self.now += 0.001
        return self.now

    def monotonic(self) -> float:
        """Return the same."""
        return self.time()


def declare(engine: Engine, *, failing: bool) -> None:
    """Register a DAG whose ``load`` fails, or does not."""

    @engine.task(dag="nightly")
    def extract() -> dict[str, object]:
        return {"rows": [(1, "ü"), (2, None)], "seen": {1.5, 2.5}}

    @engine.task(dag="nightly", retain_result=False)
    def clean(extract: dict[str, Any]) -> list[object]:
        return list(extract["rows"])

    @engine.task(dag="nightly", retries=1)
    def load(clean: list[object]) -> int:
        if failing:
            msg = "the target is down"
            raise ConnectionError(msg)
        return len(clean)

    @engine.task(dag="nightly", deps=[load])
    def tell() -> None: ...


async def main(path: str) -> None:
    """Make one run of each kind; the last one is left behind by a process that dies."""
    ids = iter(["failed", "resumed", "part", "whole", "dead"])
    config = SchedulerConfig(clock=Ticking(), new_run_id=lambda: next(ids))
    store = SqliteStateStore(path)
    engine = build_default_engine(state_store=store, config=config)
    declare(engine, failing=True)
    await engine.run_once("nightly", metadata={"night": 1})
    engine = build_default_engine(state_store=store, config=config)
    declare(engine, failing=False)
    await engine.resume("failed")
    await engine.run_subgraph("nightly", ["clean"])
    await engine.run_once("nightly")

    @engine.task(dag="deadly")
    def first() -> int:
        return 1

    @engine.task(dag="deadly")
    async def die(first: int) -> None:
        os._exit(0)

    with contextlib.suppress(Exception):
        await engine.run_once("deadly")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
