"""The floors: what somebody would write by hand for the one purpose, as tight as it can be.

Each answers how long the run took and what every task returned. Nothing else is promised: no
states, no retries, no report, no hooks, no cancellation. The sorter is made and prepared before
the clock starts, as flowrun's graph is.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.shapes import TEN, add

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.shapes import Edges

Timed: TypeAlias = "tuple[float, dict[str, int]]"
"""Seconds, and what every task returned."""


async def _add_at_once(values: list[int]) -> int:
    return add(values)


async def _add_suspending(values: list[int]) -> int:
    await asyncio.sleep(0)
    return add(values)


def at_once(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks that return at once."""
    return asyncio.run(_sorted(edges, max_parallel, _add_at_once))


def suspends(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks that suspend once."""
    return asyncio.run(_sorted(edges, max_parallel, _add_suspending))


def sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks in threads."""

    async def run() -> Timed:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_parallel) as pool:

            def in_thread(values: list[int]) -> Awaitable[int]:
                return loop.run_in_executor(pool, add, values)

            return await _sorted(edges, max_parallel, in_thread)

    return asyncio.run(run())


async def _sorted(
    edges: Edges, max_parallel: int, work: Callable[[list[int]], Awaitable[int]]
) -> Timed:
    """Run one asyncio task per node, as soon as the sorter hands it out."""
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    results: dict[str, int] = {}
    started = time.perf_counter()
    semaphore = asyncio.Semaphore(max_parallel)
    running: set[asyncio.Task[None]] = set()
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    create_task = asyncio.create_task

    async def node(name: str) -> None:
        async with semaphore:
            results[name] = await work([results[parent] for parent in edges[name]])
        sorter.done(name)
        launch()

    def launch() -> None:
        for name in sorter.get_ready():
            task = create_task(node(name))
            running.add(task)
            task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if not over.done() and (task.exception() or not running):
            over.set_result(None)

    launch()
    await over
    return time.perf_counter() - started, results


def durable_normal(edges: Edges, max_parallel: int) -> Timed:
    """Run tasks in one thread, each with a transaction that survives ``kill -9``."""
    return _in_transactions(edges, max_parallel, "NORMAL")


def durable_full(edges: Edges, max_parallel: int) -> Timed:
    """Run tasks in one thread, each with a transaction that survives power loss."""
    return _in_transactions(edges, max_parallel, "FULL")


def _in_transactions(edges: Edges, max_parallel: int, synchronous: str) -> Timed:
    """Do all in one thread, without a hop per task: nothing with a transaction each is faster."""
    del max_parallel
    order = tuple(TopologicalSorter(edges).static_order())
    results: dict[str, int] = {}
    with TemporaryDirectory(dir=".") as folder:
        db = sqlite3.connect(Path(folder) / "runs.sqlite", check_same_thread=False)
        with closing(db):
            db.isolation_level = None
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={synchronous}")
            db.execute(_TABLE)
            started = time.perf_counter()
            thread = threading.Thread(target=_commit_each, args=(db, edges, order, results))
            thread.start()
            thread.join()
            return time.perf_counter() - started, results


_TABLE = (
    "CREATE TABLE tasks (name TEXT PRIMARY KEY, status TEXT, attempt INTEGER,"
    " started_at REAL, finished_at REAL, result BLOB) WITHOUT ROWID"
)
_INSERT = "INSERT INTO tasks VALUES (?, 'SUCCESS', 1, ?, ?, ?)"


def _commit_each(
    db: sqlite3.Connection, edges: Edges, order: tuple[str, ...], results: dict[str, int]
) -> None:
    for name in order:
        began = time.time()
        value = results[name] = add([results[parent] for parent in edges[name]])
        # One statement outside of BEGIN and COMMIT is one transaction.
        db.execute(_INSERT, (name, began, time.time(), json.dumps(value)))


def build(edges: Edges, max_parallel: int) -> Timed:
    """Sort the tasks, and refuse a cycle."""
    del max_parallel
    started = time.perf_counter()
    order = tuple(TopologicalSorter(edges).static_order())  # it calls prepare()
    return time.perf_counter() - started, dict.fromkeys(order, 0)


def ten(edges: Edges, max_parallel: int) -> Timed:
    """Run a DAG of ten tasks as often as there are ``edges``; the time is that of one run."""
    return asyncio.run(_ten(max_parallel, len(edges)))


async def _ten(max_parallel: int, runs: int) -> Timed:
    results: dict[str, int] = {}
    started = time.perf_counter()
    for _ in range(runs):
        results = await _one_of_ten(asyncio.Semaphore(max_parallel))
    return (time.perf_counter() - started) / runs, results


async def _one_of_ten(semaphore: asyncio.Semaphore) -> dict[str, int]:
    tasks: dict[str, asyncio.Task[int]] = {}

    async def node(parents: tuple[str, ...]) -> int:
        values = [await tasks[parent] for parent in parents]
        async with semaphore:
            return await _add_at_once(values)

    for name, parents in TEN.items():
        tasks[name] = asyncio.create_task(node(parents))
    return {name: await task for name, task in tasks.items()}


KINDS: dict[str, Callable[[Edges, int], Timed]] = {
    "at-once": at_once,
    "suspends": suspends,
    "sync": sync,
    "durable-normal": durable_normal,
    "durable-full": durable_full,
    "durable-normal-sync": durable_normal,
    "durable-full-sync": durable_full,
    "build": build,
    "ten": ten,
}
