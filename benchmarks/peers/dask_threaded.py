"""Dask's scheduler in one process, with threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add
from dask.threaded import get

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "uses threads: see sync",
    "at-once": "takes sync functions only",
    **dict.fromkeys(("durable-normal", "durable-full"), "keeps no state of its runs"),
}


def graph(edges: Edges) -> dict[str, Any]:
    """Return the tasks as Dask writes them: a callable and its arguments."""
    return {name: (add, list(parents)) for name, parents in edges.items()}


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in threads."""
    tasks = graph(edges)
    started = time.perf_counter()
    values = get(tasks, list(edges), num_workers=max_parallel)
    return time.perf_counter() - started, dict(zip(edges, values, strict=True))


KINDS = {"sync": sync}
