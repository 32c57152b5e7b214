"""The in-memory store's own business: its bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    RunQuery,
    RunRecord,
    SchedulerConfig,
    SqliteStateStore,
    StateStore,
    TaskRecord,
)
from flowrun.errors import StoreError


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


class Moving(RunRecord):
    """A run that another thread ends in the middle of being read."""

    reads = 0

    @property
    def end(self) -> tuple[float | None, str | None, bool]:
        found = super().end
        Moving.reads += 1
        self.go_on()
        return found

    def go_on(self) -> None:
        if self.finished_at is None:
            for task in self.tasks.values():
                if task.status == "PENDING":
                    task.start(2.0, 2.0)
                    task.succeed(3.0, task.name)
                    return
            self.finish(4.0)


class Slow(TaskRecord):
    """A task, the copying of which takes time."""

    run: Moving

    def copy(self) -> TaskRecord:
        twin = super().copy()
        self.run.go_on()
        return twin


def test_run_that_goes_on_while_it_is_read_is_shown_as_it_was_at_one_moment() -> None:  # R5
    for steps in range(6):
        store = InMemoryStateStore()
        tasks: dict[str, TaskRecord] = {name: Slow(name) for name in "abc"}
        run = Moving("r", "d", 1.0, tasks)
        for task in tasks.values():
            task.run = run  # type: ignore[attr-defined]
        store.create_run(run)
        for _ in range(steps):
            run.go_on()
        for shown in (store.load_run("r", results=True), store.list_runs(RunQuery())[0]):
            assert shown.alive is (shown.finished_at is None)
            if shown.finished_at is not None:
                assert shown.status == "SUCCESS"
            if isinstance(shown, RunRecord):
                states = [task.status == "SUCCESS" for task in shown.tasks.values()]
                assert states == sorted(states, reverse=True)  # no child before its parent
                for task in shown.tasks.values():
                    assert (task.result == task.name) is (task.status == "SUCCESS")
                assert list(shown.tasks) == list("abc")


def test_run_whose_end_is_just_being_written_has_not_ended() -> None:
    run = RunRecord("r", "d", 1.0, {"a": TaskRecord("a")})
    run.error = "it is about to end"
    assert run.end == (None, None, True)
    run.finished_at = 2.0
    assert run.end == (2.0, "it is about to end", False)


async def test_pruning_in_several_threads(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = InMemoryStateStore()
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1)
    for _ in range(3):
        await engine.run_once("d")
    newest_first, deleted = store._newest_first, list[int]()

    def meanwhile(before: str | float | None) -> Any:
        runs = list(newest_first(before))
        monkeypatch.undo()
        deleted.append(store.prune_runs(keep_last=1, created_before=None))
        return iter(runs)

    monkeypatch.setattr(store, "_newest_first", meanwhile)
    assert store.prune_runs(keep_last=0, created_before=None) == 1
    assert deleted == [2]


async def test_id_that_was_given_before_is_refused(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    for store in (InMemoryStateStore(), SqliteStateStore(tmp_path / "runs.db")):
        config = SchedulerConfig(new_run_id=lambda: "same")
        engine = make_engine(state_store=store, config=config)
        engine.task(name="a", dag="d")(lambda: 1)
        await engine.run_once("d")
        with pytest.raises(StoreError, match="there is a run 'same' already"):
            await engine.run_once("d")
        assert engine.get_run_report("same")["status"] == "SUCCESS"
        engine.close()
        store.close()


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
