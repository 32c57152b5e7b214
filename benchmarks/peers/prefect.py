"""Prefect: a flow that submits tasks to threads, with its own temporary server."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "its state is always written: see durable",
    "at-once": "its server's SQLite file is always written: see durable",
    "sync": "its server's SQLite file is always written: see durable",
    "durable-full": "its server's SQLite file is written with synchronous=NORMAL",
}


def durable_normal(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in threads; starting the server is not counted."""
    with TemporaryDirectory(dir=".", ignore_cleanup_errors=True) as folder:
        os.environ["PREFECT_HOME"] = str(Path(folder).absolute())
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        os.environ["DO_NOT_TRACK"] = "1"
        return _run(edges, max_parallel)


def _run(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    from benchmarks.shapes import add
    from prefect import flow, task
    from prefect.futures import PrefectFuture
    from prefect.task_runners import ThreadPoolTaskRunner

    logging.disable(logging.CRITICAL)

    @task
    def work(values: list[int]) -> int:
        return add(values)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=max_parallel))
    def all_of(edges: dict[str, tuple[str, ...]]) -> dict[str, int]:
        futures: dict[str, PrefectFuture[int]] = {}
        for name, parents in edges.items():
            futures[name] = work.submit([futures[parent] for parent in parents])
        return {name: future.result() for name, future in futures.items()}

    all_of({"warm": ()})
    started = time.perf_counter()
    results = all_of(edges)
    return time.perf_counter() - started, results


KINDS = {"durable-normal": durable_normal}
