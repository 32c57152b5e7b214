"""Worker threads put successes together and save them: nothing counts before it is saved (S1)."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import Change, Engine, PickleSerializer, SqliteStateStore, current_attempt, fn_hook
from flowrun.errors import FlowrunError
from flowrun.scheduler.old_run import Run
from flowrun.state.protocol import Successes

from ..conftest import WAIT_S, statuses
from ..state.test_journal import ThirdPartyStore, cancelled_while_storing
from .test_following import Hostile, chain, in_a_worker, most_at_once

MakeEngine = Callable[..., Engine]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStateStore]:
    store = SqliteStateStore(tmp_path / "runs.db")
    yield store
    store.close()


@pytest.mark.parametrize("max_parallel", [1, 4, 64])
async def test_children_start_when_all_their_parents_are_saved(  # S1
    make_engine: MakeEngine, store: SqliteStateStore, max_parallel: int
) -> None:
    other = SqliteStateStore(store.path)  # as another process would see it
    engine = make_engine(state_store=store, max_parallel=max_parallel)
    seen: set[str] = set()

    def work(upstream: dict[str, int]) -> int:
        if upstream:
            tasks = other.load_run(current_attempt().run_id, results=False).tasks
            seen.update(tasks[name].status.value for name in upstream)
        return sum(upstream.values()) + 1

    for number in range(120):
        row, column = divmod(number, 12)
        deps = [f"t{12 * (row - 1) + (column + shift) % 12}" for shift in range(3)] if row else []
        engine.task(name=f"t{number}", dag="d", deps=deps)(work)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert report["tasks"]["t119"]["result"] == (3**10 - 1) // 2
    assert seen == {"SUCCESS"}
    assert {
        task.status.value for task in other.load_run(report["run_id"], results=True).tasks.values()
    } == seen
    other.close()


async def test_many_go_together(
    make_engine: MakeEngine, store: SqliteStateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    for name in ("save_in_thread", "save_on_loop"):
        save = getattr(SqliteStateStore, name)

        def counted(
            self: SqliteStateStore, successes: Successes, save: Callable[..., bool] = save
        ) -> bool:
            sizes.append(len(successes.ended))
            return save(self, successes)

        monkeypatch.setattr(SqliteStateStore, name, counted)
    save_all = SqliteStateStore.save_all

    def all_counted(
        self: SqliteStateStore, changes: Sequence[Change], successes: Sequence[Successes]
    ) -> None:
        sizes.extend(len(each.ended) for each in successes)
        save_all(self, changes, successes)

    monkeypatch.setattr(SqliteStateStore, "save_all", all_counted)
    engine = make_engine(state_store=store)
    told: list[str] = []
    engine.add_hook(fn_hook(on_task_success=lambda event: told.append(event.task_name)))
    for number in range(1000):
        engine.task(name=f"t{number}", dag="d")(lambda: number)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert sorted(told) == sorted(report["tasks"])
    assert sum(sizes) >= 1000
    assert max(sizes) > 1


async def test_success_does_not_wait_for_a_long_task(  # S1
    make_engine: MakeEngine, store: SqliteStateStore
) -> None:
    engine = make_engine(state_store=store, max_parallel=1)
    saved: list[bool] = []
    engine.task(name="short", dag="d")(lambda: 1)

    @engine.task(dag="d")
    def long() -> None:
        run_id = current_attempt().run_id
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and not saved:
            if store.load_run(run_id, results=False).tasks["short"].status == "SUCCESS":
                saved.append(True)

    await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert saved


class Large:
    """A result of which can be seen whether anybody still has it."""


@pytest.mark.parametrize("saved_by", ["a thread", "the journal"])
@pytest.mark.parametrize("max_parallel", [1, 4])
async def test_results_are_let_go_once_they_are_saved_and_used(  # I2
    make_engine: MakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_parallel: int,
    saved_by: str,
) -> None:
    if saved_by == "the journal":
        monkeypatch.setattr(Run, "save", lambda run, ended: False)
    with closing(SqliteStateStore(tmp_path / "p.db", PickleSerializer(key=bytes(16)))) as store:
        engine = make_engine(state_store=store, max_parallel=max_parallel)
        made: list[weakref.ref[Large]] = []
        left: list[int] = []

        def makes() -> Large:
            large = Large()
            made.append(weakref.ref(large))
            return large

        def looks() -> None:
            deadline = time.monotonic() + WAIT_S / 2
            left.append(len(made))
            while left[-1] and time.monotonic() < deadline:
                gc.collect()  # a thread may be about to let go of its last one
                left.append(sum(reference() is not None for reference in made))

        sources = [f"t{number}" for number in range(8)]
        for source in sources:
            engine.task(name=source, dag="d")(makes)
        engine.task(name="uses", dag="d", deps=sources)(lambda upstream: None)
        engine.task(name="looks", dag="d", deps=["uses"])(looks)
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        assert len(made) == 8
        assert left[-1] == 0
        engine.close()


async def test_loop_takes_over_where_threads_cannot_go_on(
    make_engine: MakeEngine, store: SqliteStateStore
) -> None:
    engine = make_engine(state_store=store, max_parallel=2)
    order: list[str] = []

    def note() -> None:
        order.append(current_attempt().task_name)

    async def note_on_the_loop() -> None:
        note()

    for number in range(40):
        engine.task(name=f"s{number}", dag="d")(note)
        engine.task(name=f"a{number}", dag="d")(note_on_the_loop)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert sorted(order) == sorted(report["tasks"])


@pytest.mark.parametrize("others", [0, 50])
async def test_result_that_cannot_be_kept_fails_alone_and_is_not_made_again(
    make_engine: MakeEngine, store: SqliteStateStore, others: int
) -> None:
    engine = make_engine(state_store=store)
    ran: list[str] = []
    engine.task(name="source", dag="d")(lambda: 1)

    def cannot_be_kept(source: int) -> object:
        ran.append(current_attempt().task_name)
        return object()

    engine.task(name="bad", dag="d", deps=["source"], retries=3)(cannot_be_kept)
    engine.task(name="child", dag="d", deps=["bad"])(lambda bad: 0)
    for number in range(others):
        engine.task(name=f"t{number}", dag="d", deps=["source"])(lambda source: source)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    found = statuses(report)
    assert (found.pop("bad"), found.pop("child")) == ("FAILED", "SKIPPED")
    assert set(found.values()) == {"SUCCESS"}
    assert ran == ["bad"]
    assert "serializer" in (report["tasks"]["bad"]["error"] or "")


async def test_cancelling_while_threads_wait_to_save_keeps_what_has_succeeded(  # R2 S1
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store, max_parallel=4)
    ended = threading.Barrier(4)
    for number in range(4):
        engine.task(name=f"t{number}", dag="d")(lambda: ended.wait(WAIT_S) and None)
        engine.task(name=f"child{number}", dag="d", deps=[f"t{number}"])(lambda: None)
    summary = await cancelled_while_storing(engine, store, lambda _: in_a_worker())
    kept = store.runs[summary.run_id].tasks
    for number in range(4):
        # What had not come as far as to be recorded has been cancelled.
        assert kept[f"t{number}"].status.value in ("SUCCESS", "FAILED")
        assert kept[f"child{number}"].status == "SKIPPED"
    assert [name for name, task in kept.items() if task.status == "SUCCESS"]
    assert statuses(engine.get_run_report(summary.run_id)) == {
        name: task.status.value for name, task in kept.items()
    }


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
async def test_error_in_saving_ends_the_run(  # R4
    make_engine: MakeEngine,
    store: SqliteStateStore,
    monkeypatch: pytest.MonkeyPatch,
    raised: type[BaseException],
) -> None:
    def save(run: Run, ended: Any) -> bool:
        raise raised

    engine = make_engine(state_store=store, max_parallel=2)
    chain(engine, 5, lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save", save)
        with pytest.raises(FlowrunError, match=raised.__name__):
            await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (summary,) = engine.list_runs()
    assert statuses(engine.get_run_report(summary.run_id))["t4"] == "SKIPPED"
    resumed = engine.get_run_report(await asyncio.wait_for(engine.resume(summary.run_id), WAIT_S))
    assert set(statuses(resumed).values()) == {"SUCCESS"}


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
@pytest.mark.parametrize("saved_by", ["a thread", "the journal"])
async def test_error_in_telling_of_one_success_takes_no_other_along(  # R3 R4 D9
    make_engine: MakeEngine,
    store: SqliteStateStore,
    monkeypatch: pytest.MonkeyPatch,
    raised: type[BaseException],
    saved_by: str,
) -> None:
    log = logging.Logger("hostile", logging.INFO)
    log.addFilter(Hostile("task 'bad' succeeded", raised))
    engine = make_engine(state_store=store, max_parallel=1, logger=log)
    monkeypatch.setattr("flowrun.scheduler.saving._WAIT_S", 60.0)  # both are in one group
    if saved_by == "the journal":
        monkeypatch.setattr(Run, "save", lambda run, ended: False)
    for name in ("bad", "good"):
        engine.task(name=name, dag="d")(lambda: None)
    engine.task(name="child", dag="d", deps=["bad", "good"])(lambda: None)
    with pytest.raises(FlowrunError, match=raised.__name__):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (summary,) = engine.list_runs()
    found = statuses(engine.get_run_report(summary.run_id))
    assert found == {"bad": "SUCCESS", "good": "SUCCESS", "child": "SKIPPED"}
    assert await most_at_once(engine) == 1
