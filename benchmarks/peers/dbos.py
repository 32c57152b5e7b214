"""DBOS: a workflow of steps, each recorded in SQLite."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

# Its tables need SQLite 3.42; the interpreter's own may be older.
sys.modules["sqlite3"] = importlib.import_module("pysqlite3")

from benchmarks.shapes import add
from dbos import DBOS

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "its state is always written: see durable",
    "at-once": "every step is recorded: see durable",
    "sync": "every step is recorded: see durable",
    "durable-normal": "writes its SQLite file with synchronous=FULL",
}


@DBOS.step()
async def _step(values: list[int]) -> int:
    return add(values)


@DBOS.workflow()
async def _workflow(edges: Edges) -> dict[str, int]:
    # Steps that overlap must be started in the same order each time, so layers it is; within
    # a layer they run at the same time.
    results: dict[str, int] = {}
    left = dict(edges)
    while left:
        ready = [name for name, parents in left.items() if all(p in results for p in parents)]
        values = await asyncio.gather(
            *(_step([results[parent] for parent in left[name]]) for name in ready)
        )
        results.update(zip(ready, values, strict=True))
        for name in ready:
            del left[name]
    return results


def durable_full(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in one workflow, on one event loop."""
    del max_parallel
    logging.disable(logging.CRITICAL)
    with TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        url = f"sqlite:///{Path(folder).absolute()}/dbos.sqlite"
        DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False})
        DBOS.launch()
        try:
            return asyncio.run(_timed(edges))
        finally:
            DBOS.destroy()


async def _timed(edges: Edges) -> tuple[float, dict[str, int]]:
    started = time.perf_counter()
    results = await _workflow(edges)
    return time.perf_counter() - started, results


KINDS = {"durable-full": durable_full}
