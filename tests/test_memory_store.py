"""The in-memory store's own business: its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from flowrun import Engine, InMemoryStateStore, StateStore


def test_both_names_are_one_store() -> None:
    assert StateStore is InMemoryStateStore


async def test_oldest_finished_runs_are_dropped_beyond_the_bound(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(state_store=InMemoryStateStore(max_finished_runs=3))
    begun, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(dag="long")
    async def wait() -> None:
        begun.set()
        await go_on.wait()

    engine.task(name="a", dag="short")(lambda: 1)
    alive = asyncio.create_task(engine.run_once("long"))
    await begun.wait()
    runs = [await engine.run_once("short") for _ in range(5)]
    kept = {run.run_id for run in engine.list_runs()}
    assert kept - set(runs) == {engine.list_runs("long")[0].run_id}  # a live run is never dropped
    assert kept >= set(runs[2:])
    assert len(kept) == 4
    assert engine.prune_runs(keep_last=2) == 1
    runs.append(await engine.run_once("short"))
    assert len(engine.list_runs("short")) == 3
    go_on.set()
    await alive


async def test_unbounded_and_zero(make_engine: Callable[..., Engine]) -> None:
    for bound, kept in ((None, 3), (0, 0)):
        engine = make_engine(state_store=InMemoryStateStore(max_finished_runs=bound))
        engine.task(name="a", dag="d")(lambda: 1)
        for _ in range(3):
            await engine.run_once("d")
        assert len(engine.list_runs()) == kept


def test_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="max_finished_runs must be 0 or more"):
        InMemoryStateStore(max_finished_runs=-1)


async def test_pruned_heirs_are_forgotten(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    fail = [True]

    @engine.task(dag="d")
    def a() -> None:
        if fail:
            fail.clear()
            raise ValueError

    old = await engine.run_once("d")
    new = await engine.resume(old)
    assert engine.prune_runs(older_than_s=3600) == 0
    kept = [run.run_id for run in engine.list_runs()]
    assert kept == [new, old]
    assert engine.prune_runs(keep_last=0) == 2
    assert engine.list_runs() == []
