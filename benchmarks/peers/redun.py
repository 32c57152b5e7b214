"""redun: lazy expressions of tasks, with its call graph in a database in memory."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add
from redun import Scheduler, task
from redun.config import Config

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "uses threads: see sync",
    "at-once": "not tried with async tasks: see sync",
    **dict.fromkeys(
        ("durable-normal", "durable-full"), "not tried: its database in memory is slow already"
    ),
}


@task(namespace="bench", name="work", version="1")
def _work(name: str, values: list[int]) -> int:
    del name  # without it, tasks with the same values are one task to redun
    return add(values)


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in threads."""
    logging.disable(logging.CRITICAL)
    config = Config({"executors.default": {"type": "local", "max_workers": str(max_parallel)}})
    scheduler = Scheduler(config=config)
    scheduler.load()
    expressions: dict[str, Any] = {}
    for name, parents in edges.items():
        expressions[name] = _work(name, [expressions[parent] for parent in parents])
    started = time.perf_counter()
    results = scheduler.run(expressions)
    return time.perf_counter() - started, results


KINDS = {"sync": sync}
