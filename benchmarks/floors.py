"""The floors: what somebody would write by hand for the one purpose, as tight as it can be.

Each answers how long the run took and what every task returned. Nothing else is promised: no
states, no retries, no report, no hooks, no cancellation. The sorter is made and prepared before
the clock starts, as flowrun's graph is.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
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
Work: TypeAlias = "Callable[[str, list[int]], Awaitable[int]]"
"""What a task does with its name and the results of its parents."""
Save: TypeAlias = "Callable[[str, float, int], Awaitable[None]]"
"""Keeps a task's name, start and result."""


async def _add_at_once(name: str, values: list[int]) -> int:
    del name
    return add(values)


async def _add_suspending(name: str, values: list[int]) -> int:
    del name
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
    return asyncio.run(_with_threads(edges, max_parallel, set(edges)))


def mixed(edges: Edges, max_parallel: int) -> Timed:
    """Run sync and async tasks that alternate."""
    return asyncio.run(_with_threads(edges, max_parallel, set(list(edges)[::2])))


async def _with_threads(
    edges: Edges, max_parallel: int, in_threads: set[str], save: Save | None = None
) -> Timed:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_parallel) as pool:

        def work(name: str, values: list[int]) -> Awaitable[int]:
            if name in in_threads:
                return loop.run_in_executor(pool, add, values)
            return _add_at_once(name, values)

        return await _sorted(edges, max_parallel, work, save)


async def _sorted(edges: Edges, max_parallel: int, work: Work, save: Save | None = None) -> Timed:
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
        began = time.time()
        async with semaphore:
            value = await work(name, [results[parent] for parent in edges[name]])
        if save is not None:
            await save(name, began, value)
        results[name] = value
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
    """Run async tasks, each with a transaction that survives ``kill -9``."""
    return _durable(edges, max_parallel, "NORMAL", set())


def durable_full(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks, each with a transaction that survives power loss."""
    return _durable(edges, max_parallel, "FULL", set())


def durable_normal_sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks in threads, each with a transaction that survives ``kill -9``."""
    return _durable(edges, max_parallel, "NORMAL", set(edges))


def durable_full_sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks in threads, each with a transaction that survives power loss."""
    return _durable(edges, max_parallel, "FULL", set(edges))


def _durable(edges: Edges, max_parallel: int, synchronous: str, in_threads: set[str]) -> Timed:
    """Commit each task's result in a writer thread, before the task's children start."""
    with TemporaryDirectory(dir=".") as folder, ThreadPoolExecutor(1) as writer:
        db = sqlite3.connect(Path(folder) / "runs.sqlite", check_same_thread=False)
        with closing(db):
            db.isolation_level = None
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={synchronous}")
            db.execute(_TABLE)

            def commit(name: str, began: float, value: int) -> None:
                # One statement outside of BEGIN and COMMIT is one transaction.
                db.execute(_INSERT, (name, began, time.time(), json.dumps(value)))

            async def run() -> Timed:
                loop = asyncio.get_running_loop()

                def save(name: str, began: float, value: int) -> Awaitable[None]:
                    return loop.run_in_executor(writer, commit, name, began, value)

                if in_threads:
                    return await _with_threads(edges, max_parallel, in_threads, save)
                return await _sorted(edges, max_parallel, _add_at_once, save)

            return asyncio.run(run())


_TABLE = (
    "CREATE TABLE tasks (name TEXT PRIMARY KEY, status TEXT, attempt INTEGER,"
    " started_at REAL, finished_at REAL, result BLOB) WITHOUT ROWID"
)
_INSERT = "INSERT INTO tasks VALUES (?, 'SUCCESS', 1, ?, ?, ?)"


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
            return await _add_at_once("", values)

    for name, parents in TEN.items():
        tasks[name] = asyncio.create_task(node(parents))
    return {name: await task for name, task in tasks.items()}


KINDS: dict[str, Callable[[Edges, int], Timed]] = {
    "at-once": at_once,
    "suspends": suspends,
    "sync": sync,
    "mixed": mixed,
    "durable-normal": durable_normal,
    "durable-full": durable_full,
    "durable-normal-sync": durable_normal_sync,
    "durable-full-sync": durable_full_sync,
    "build": build,
    "ten": ten,
}
