"""Stores that fail, block or are wrapped: what of a run is kept, told, and let go of (R4, D4, S1)."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    Engine,
    InMemoryStateStore,
    RunRecord,
    SchedulerConfig,
    SqliteStateStore,
    TaskRecord,
    build_default_engine,
)
from flowrun.errors import (
    DamagedRecordError,
    RunAliveError,
    StoreBusyError,
    StoreError,
    StoreFullError,
)
from flowrun.state.records import Reason

from ..conftest import WAIT_S, flowrun_threads, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


class Refusing(SqliteStateStore):
    """Refuses to save as long as it is told to."""

    refuses = 0

    def save(self, changes: Sequence[Change]) -> None:
        if self.refuses:
            self.refuses -= 1
            msg = "locked"
            raise StoreBusyError(msg)
        super().save(changes)


@pytest.mark.parametrize("how", ["cancel", "timeout", "awaiting task"])
async def test_run_whose_last_rows_were_refused_while_it_stopped_is_whole(  # D4 R1 S1
    make_engine: MakeEngine, tmp_path: Path, how: str
) -> None:
    with closing(Refusing(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store)
        begun = asyncio.Event()
        again: list[str] = []

        @engine.task(dag="d")
        async def precious() -> int:
            again.append("precious")
            return 42

        @engine.task(dag="d")
        async def slow(precious: int) -> int:
            if len(again) == 1 and not begun.is_set():
                begun.set()
                await asyncio.Event().wait()
            return precious

        engine.task(name="last", dag="d")(lambda slow: slow)
        timeout_s = 0.5 if how == "timeout" else None
        run = asyncio.create_task(engine.run_once("d", timeout_s=timeout_s))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        (alive,) = engine.list_runs()
        store.refuses = 1
        if how == "cancel":
            engine.cancel(alive.run_id)
        elif how == "awaiting task":
            run.cancel()
        with pytest.raises((StoreBusyError, asyncio.CancelledError)):
            await asyncio.wait_for(run, WAIT_S)
        report = engine.get_run_report(alive.run_id)
        assert statuses(report) == {"precious": "SUCCESS", "slow": "FAILED", "last": "SKIPPED"}
        assert report["finished_at"] is not None
        new = engine.get_run_report(await engine.resume(alive.run_id))
        assert set(statuses(new).values()) == {"SUCCESS"}
        assert again == ["precious"]
        engine.close()


class Wrapped:
    """Hands on what it does not do itself."""

    def __init__(self, inner: SqliteStateStore, save: Callable[[Sequence[Change]], None]) -> None:
        self.inner = inner
        self.save = save

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("how", ["wrapped", "replaced before", "replaced after"])
async def test_who_stands_in_for_a_store_sees_every_save(  # S1
    make_engine: MakeEngine, tmp_path: Path, is_async: bool, how: str
) -> None:
    saved: list[str] = []

    async def work_async() -> int:
        return 1

    with closing(SqliteStateStore(tmp_path / "runs.db")) as inner:

        def save(changes: Sequence[Change]) -> None:
            saved.extend(task.name for _, task in changes if task and task.status == "SUCCESS")
            SqliteStateStore.save(inner, changes)

        if how == "replaced before":
            inner.save = save  # type: ignore[method-assign]
        engine = make_engine(state_store=Wrapped(inner, save) if how == "wrapped" else inner)
        if how == "replaced after":
            inner.save = save  # type: ignore[method-assign]
        for name in "abc":
            engine.task(name=name, dag="d")(work_async if is_async else lambda: 1)
        await engine.run_once("d")
        assert sorted(saved) == ["a", "b", "c"]
        engine.close()


async def test_system_that_had_no_thread_for_once_is_asked_again(  # R4
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store)
        engine.task(name="a", dag="d")(lambda: 1)
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "flowrun-journal":
                msg = "can't start new thread"
                raise RuntimeError(msg)
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(StoreError, match="can't start new thread"):
                engine.prune_runs(keep_last=1)
            with pytest.raises(StoreError, match="can't start new thread"):
                await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        assert statuses(
            engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
        ) == {"a": "SUCCESS"}
        assert len(engine.list_runs()) == 1  # the other one was not begun later
        engine.close()


def fails_twice(engine: Engine) -> tuple[asyncio.Event, asyncio.Event]:
    """Declare a task that fails two times; then it says that it has begun, and waits."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    fails = [True, True]

    @engine.task(dag="d")
    async def x() -> None:
        if fails:
            fails.pop()
            raise ValueError
        begun.set()
        await go_on.wait()

    return begun, go_on


@pytest.mark.parametrize("from_tasks", [None, ["x"]])
@pytest.mark.parametrize("durable", [True, False])
async def test_run_is_not_resumed_beside_an_heir_of_its_heir(  # S5
    make_engine: MakeEngine, tmp_path: Path, from_tasks: list[str] | None, durable: bool
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    engine = make_engine(state_store=store)
    begun, go_on = fails_twice(engine)
    first = await engine.run_once("d")
    await engine.resume(first)
    heir = asyncio.create_task(engine.resume(first))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    with pytest.raises(RunAliveError):
        engine.plan_resume(first, from_tasks)
    with pytest.raises(RunAliveError):
        await engine.resume(first, from_tasks)
    go_on.set()
    await heir
    assert await engine.resume(first, ["x"])
    engine.close()
    store.close()


@pytest.mark.parametrize("durable", [True, False])
def test_heir_that_came_meanwhile_is_seen_when_the_run_is_created(  # S5
    tmp_path: Path, durable: bool
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    runs = [
        RunRecord(f"r{number}", "d", float(number), {"a": TaskRecord("a")}, resumed_from=ancestor)
        for number, ancestor in enumerate((None, "r0", "r1", "r0"))
    ]

    def end(run: RunRecord) -> None:
        task = run.tasks["a"].skip(9.0, Reason.RUN_CANCELLED, "no")
        ended = run.finish(9.0, None, {"a": task})
        store.save([Change(ended, task), Change(ended, None)])

    store.create_run(runs[0])
    end(runs[0])
    store.create_run(runs[1])
    end(runs[1])
    store.create_run(runs[2])
    with pytest.raises(RunAliveError, match="cannot resume run 'r0'.*'r2'"):
        store.create_run(runs[3])
    end(runs[2])
    store.create_run(runs[3])
    store.close()


async def test_what_is_owed_is_paid_off_the_loop_and_not_beside_another_save(  # R5
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1 // len(works))
    works: list[int] = []
    full, paying, go_on = [True], threading.Event(), threading.Event()
    inside, most = [0], [0]
    guard = threading.Lock()

    def before(what: str) -> None:
        if what == "save" and full:
            msg = "full"
            raise StoreFullError(msg)
        if what == "save" and paying.is_set():
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            assert go_on.wait(WAIT_S)  # only the loop opens it
            with guard:
                inside[0] -= 1

    other = await engine.run_once("d")
    store.before = before
    with pytest.raises(StoreFullError):
        await engine.run_once("d")
    full.clear()
    works.append(1)
    paying.set()
    resumed = asyncio.create_task(engine.resume(other))
    listed = asyncio.get_running_loop().run_in_executor(None, engine.list_runs)
    while not inside[0]:
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(resumed, WAIT_S)
    assert len(await asyncio.wait_for(listed, WAIT_S)) >= 2
    assert most == [1]


async def test_closing_pays_off_the_loop(make_engine: MakeEngine) -> None:  # R5
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1)
    full, go_on = [True], threading.Event()

    def before(what: str) -> None:
        if what == "save" and full:
            msg = "full"
            raise StoreFullError(msg)
        if what == "save":
            assert go_on.wait(WAIT_S)  # only the loop opens it

    store.before = before
    with pytest.raises(StoreFullError):
        await engine.run_once("d")
    full.clear()
    before_closing = flowrun_threads()
    closing_ = asyncio.create_task(engine.aclose())
    while not [thread for thread in flowrun_threads() if thread.name == "flowrun-closing"]:
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(asyncio.gather(closing_, engine.aclose()), WAIT_S)
    assert all(run.finished_at for run in store.runs.values())
    assert set(flowrun_threads()) < set(before_closing)


async def test_closing_without_a_thread_for_it(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.task(name="a", dag="d")(lambda: 1)
    await engine.run_once("d")

    def refuse(thread: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        await asyncio.wait_for(engine.aclose(), WAIT_S)
    assert repr(engine).startswith("<Engine closed")


async def test_error_in_closing_is_raised(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def broken(*args: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(engine._parts.services.journal, "close", broken)
        with pytest.raises(ZeroDivisionError):
            await engine.aclose()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_run_that_outlasts_the_closing_releases_the_engine(  # R4
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store, config=SchedulerConfig(cancel_grace_s=0.01))
    engine.task(name="a", dag="d")(lambda: 1)
    entered, go_on = threading.Event(), threading.Event()

    def before(what: str) -> None:
        if what == "save":
            entered.set()
            assert go_on.wait(WAIT_S)

    store.before = before
    threads = flowrun_threads()
    run = asyncio.create_task(engine.run_once("d"))
    while not entered.is_set():
        await asyncio.sleep(0)
    if cancelled:
        closing_ = asyncio.create_task(engine.aclose())
        await asyncio.sleep(0)
        closing_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing_
    else:
        with monkeypatch.context() as patch:
            patch.setattr("flowrun.scheduler.lifecycle.Lifecycle._close_wait_s", lambda _: 0.01)
            await asyncio.wait_for(engine.aclose(), WAIT_S)
    assert not run.done()
    go_on.set()
    with pytest.raises((asyncio.CancelledError, StoreError)):
        await asyncio.wait_for(run, WAIT_S)
    assert next(iter(store.runs.values())).finished_at is not None
    while set(flowrun_threads()) - set(threads):
        await asyncio.sleep(0)


def test_readers_of_a_cached_run_do_not_share_its_results(tmp_path: Path) -> None:  # D1
    with closing(SqliteStateStore(tmp_path / "runs.db", cache_ttl_s=60.0)) as store:
        engine = build_default_engine(state_store=store)
        engine.task(name="a", dag="d")(lambda: [1])
        run_id = asyncio.run(engine.run_once("d"))
        for _ in range(3):
            result: Any = engine.get_run_report(run_id)["tasks"]["a"]["result"]
            assert result == [1]
            result.append("changed by a reader")
        engine.close()


async def test_run_with_a_damaged_heir_can_be_resumed_from_tasks(  # D7
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store)
        _, go_on = fails_twice(engine)
        go_on.set()
        first = await engine.run_once("d")
        heir = await engine.resume(first)
        with closing(sqlite3.connect(store.path)) as database, database:
            database.execute("UPDATE runs SET checksum = checksum + 1 WHERE run_id = ?", (heir,))
        with pytest.raises(DamagedRecordError):
            engine.plan_resume(first)
        new = await engine.resume(first, ["x"])
        assert engine.get_run_report(new)["status"] == "SUCCESS"
        engine.close()


def test_closing_in_a_thread_of_the_engines_own() -> None:  # A3
    engine = build_default_engine()
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    @engine.task(dag="d", timeout_s=None)
    def closes() -> None:
        begun.set()
        assert go_on.wait(WAIT_S)
        asyncio.run(engine.aclose())
        closed.set()

    loop = asyncio.new_event_loop()
    run = loop.create_task(engine.run_once("d"))
    while not begun.is_set():
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()  # under the run
    go_on.set()
    assert closed.wait(WAIT_S)
    del run
    gc.collect()


async def test_closing_again_in_whatever_way_is_fine() -> None:
    engine = build_default_engine()
    engine.close()
    await engine.aclose()
    await engine.aclose()
    engine.close()
    assert repr(engine).startswith("<Engine closed")


@pytest.mark.parametrize("blocking", [True, False])
async def test_store_that_cannot_create_a_run_is_told_as_a_store_error(  # R4
    make_engine: MakeEngine, blocking: bool
) -> None:
    store = ThirdPartyStore(blocking=blocking)
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="etl")(lambda: 1)

    def refuse(what: str) -> None:
        raise OSError("no route to host")

    store.before = refuse
    with pytest.raises(
        StoreError, match=r"of DAG 'etl' could not be created: .* OSError: no route to host"
    ) as caught:
        await asyncio.wait_for(engine.run_once("etl"), WAIT_S)
    assert isinstance(caught.value.__cause__, OSError)
    store.before = str
    assert statuses(engine.get_run_report(await engine.run_once("etl"))) == {"a": "SUCCESS"}
