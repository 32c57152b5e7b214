"""The same work done by flowrun, with everything on that is on by default."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from benchmarks.shapes import TEN, add
from flowrun import Engine, SqliteStateStore, build_default_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.shapes import Edges

Timed: TypeAlias = "tuple[float, dict[str, int]]"

_DAG = "bench"


async def _add_at_once(upstream: dict[str, int]) -> int:
    return add(upstream.values())


async def _add_suspending(upstream: dict[str, int]) -> int:
    await asyncio.sleep(0)
    return add(upstream.values())


def _add_sync(upstream: dict[str, int]) -> int:
    return add(upstream.values())


def declare(
    engine: Engine, edges: Edges, works: Sequence[Callable[..., Any]] = (_add_at_once,)
) -> None:
    """Register a shape's tasks, which do the works in turns."""
    scope = engine.dag(_DAG)
    for (name, parents), work in zip(edges.items(), cycle(works), strict=False):
        scope.task(name, deps=parents)(work)


def at_once(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks that return at once."""
    return asyncio.run(_run(build_default_engine(max_parallel=max_parallel), edges, _add_at_once))


def suspends(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks that suspend once."""
    engine = build_default_engine(max_parallel=max_parallel)
    return asyncio.run(_run(engine, edges, _add_suspending))


def sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks in the engine's threads."""
    engine = build_default_engine(max_parallel=max_parallel, max_workers=max_parallel)
    return asyncio.run(_run(engine, edges, _add_sync))


def mixed(edges: Edges, max_parallel: int) -> Timed:
    """Run sync and async tasks that alternate."""
    engine = build_default_engine(max_parallel=max_parallel, max_workers=max_parallel)
    return asyncio.run(_run(engine, edges, _add_sync, _add_at_once))


def durable_normal(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks whose ends survive ``kill -9``."""
    return _durable(edges, max_parallel, "NORMAL", _add_at_once)


def durable_full(edges: Edges, max_parallel: int) -> Timed:
    """Run async tasks whose ends survive power loss."""
    return _durable(edges, max_parallel, "FULL", _add_at_once)


def durable_normal_sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks whose ends survive ``kill -9``."""
    return _durable(edges, max_parallel, "NORMAL", _add_sync)


def durable_full_sync(edges: Edges, max_parallel: int) -> Timed:
    """Run sync tasks whose ends survive power loss."""
    return _durable(edges, max_parallel, "FULL", _add_sync)


def _durable(
    edges: Edges,
    max_parallel: int,
    synchronous: Literal["NORMAL", "FULL"],
    work: Callable[..., Any],
) -> Timed:
    with TemporaryDirectory(dir=".") as folder:
        store = SqliteStateStore(Path(folder) / "runs.sqlite", synchronous=synchronous)
        with closing(store):
            engine = build_default_engine(
                max_parallel=max_parallel, max_workers=max_parallel, state_store=store
            )
            return asyncio.run(_run(engine, edges, work))


async def _run(engine: Engine, edges: Edges, *works: Callable[..., Any]) -> Timed:
    declare(engine, edges, works)
    engine.validate(_DAG)
    async with engine:
        started = time.perf_counter()
        run_id = await engine.run_once(_DAG)
        seconds = time.perf_counter() - started
    return seconds, results_of(engine, run_id)


def results_of(engine: Engine, run_id: str) -> dict[str, int]:
    """Return what every task of a run returned."""
    report = engine.get_run_report(run_id)
    assert report["status"] == "SUCCESS"
    return {name: cast("int", task["result"]) for name, task in report["tasks"].items()}


def build(edges: Edges, max_parallel: int) -> Timed:
    """Build and validate a registered DAG."""
    with closing(build_default_engine(max_parallel=max_parallel)) as engine:
        declare(engine, edges)
        started = time.perf_counter()
        engine.validate(_DAG)
        seconds = time.perf_counter() - started
        return seconds, dict.fromkeys(engine.list_tasks(_DAG), 0)


def ten(edges: Edges, max_parallel: int) -> Timed:
    """Run a DAG of ten tasks as often as there are ``edges``; the time is that of one run."""
    return asyncio.run(_ten(max_parallel, len(edges)))


async def _ten(max_parallel: int, runs: int) -> Timed:
    async with build_default_engine(max_parallel=max_parallel) as engine:
        declare_ten(engine)
        run_id = ""
        started = time.perf_counter()
        for _ in range(runs):
            run_id = await engine.run_once(_DAG)
        return (time.perf_counter() - started) / runs, results_of(engine, run_id)


def declare_ten(engine: Engine) -> None:
    """Register the DAG of ten tasks."""
    declare(engine, TEN)


KINDS: dict[str, Callable[[Edges, int], Timed]] = {
    "at-once": at_once,
    "suspends": suspends,
    "sync": sync,
    "mixed": mixed,
    "inline": at_once,  # as a peer that uses one thread only, so that nothing else can run
    "durable-normal": durable_normal,
    "durable-full": durable_full,
    "durable-normal-sync": durable_normal_sync,
    "durable-full-sync": durable_full_sync,
    "build": build,
    "ten": ten,
}
