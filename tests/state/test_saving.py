"""What a run saves, when, and who saves it: nothing counts before it is saved (S1, D8)."""

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

import pytest

from flowrun import Change, Engine, PickleSerializer, SqliteStateStore, current_attempt, fn_hook
from flowrun.errors import FlowrunError
from flowrun.hooks import TaskSuccessEvent

from ..conftest import WAIT_S, statuses
from ..scheduler.test_sync_tasks import Hostile, chain, most_at_once
from ..third_party import ThirdPartyStore
from .test_journal import cancelled_while_storing

MakeEngine = Callable[..., Engine]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStateStore]:
    store = SqliteStateStore(tmp_path / "runs.db")
    yield store
    store.close()


async def test_success_is_saved_before_its_child_starts_and_its_hook_is_called(  # S1 D8
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    events: list[str] = []
    told_early: list[str] = []

    def check_saved(event: TaskSuccessEvent) -> None:
        events.append(f"success {event.task_name}")
        if store.load_run(event.run_id, results=False).tasks[event.task_name].status != "SUCCESS":
            told_early.append(event.task_name)

    hook = fn_hook(
        on_task_start=lambda event: events.append(f"start {event.task_name}"),
        on_task_success=check_saved,
    )
    engine = make_engine(state_store=store, hooks=[hook])
    seen: list[str] = []

    def work(upstream: dict[str, int]) -> int:
        me = current_attempt()
        tasks = store.load_run(me.run_id, results=False).tasks
        seen.extend(tasks[parent].status for parent in upstream)
        assert tasks[me.task_name].status in ("PENDING", "RUNNING")
        return sum(upstream.values()) + 1

    for number in range(200):
        deps = [f"t{number - 1}"] if number else []
        retain = bool(number % 2)
        engine.task(name=f"t{number}", dag="d", deps=deps, retain_result=retain)(work)
    engine.task(name="last", dag="d", deps=["t199"])(lambda t199: t199)
    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["last"]["result"] == 200
    assert seen == ["SUCCESS"] * 199
    assert not told_early
    names = [*(f"t{n}" for n in range(200)), "last"]
    assert events == [f"{kind} {name}" for name in names for kind in ("start", "success")]
    started = [task["started_at"] or 0.0 for task in report["tasks"].values()]
    finished = [task["finished_at"] or 0.0 for task in report["tasks"].values()]
    assert all(end <= start for end, start in zip(finished, started[1:], strict=False))


async def test_one_thread_writes_to_a_store_that_blocks(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    writers: set[threading.Thread] = set()
    store.before = lambda _: writers.add(threading.current_thread())
    engine = make_engine(state_store=store, max_parallel=4)

    async def on_the_loop() -> None:
        pass

    for number in range(40):
        deps = [f"t{number - 4}"] if number >= 4 else []
        work = on_the_loop if number % 3 else lambda: None
        engine.task(name=f"t{number}", dag="d", deps=deps)(work)
    for _ in range(2):
        await engine.run_once("d")
    engine.prune_runs(keep_last=1)
    assert len(writers) == 1
    assert threading.current_thread() not in writers


async def test_store_that_does_not_block_is_written_to_on_the_loop(
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    store.blocking = False
    writers: set[threading.Thread] = set()
    store.before = lambda _: writers.add(threading.current_thread())
    engine = make_engine(state_store=store, max_parallel=2)
    for number in range(200):
        engine.task(name=f"t{number}", dag="d")(lambda: None)
    report = engine.get_run_report(await engine.run_once("d"))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert all(task.status == "SUCCESS" for task in store.runs[report["run_id"]].tasks.values())
    assert writers == {threading.current_thread()}


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


async def test_successes_that_come_while_the_store_is_busy_are_saved_together(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    sizes: list[int] = []

    class Counting(SqliteStateStore):
        def save(self, changes: Sequence[Change]) -> None:
            sizes.append(len(changes))
            super().save(changes)

    with closing(Counting(tmp_path / "runs.db")) as store:
        told: list[str] = []
        hook = fn_hook(on_task_success=lambda event: told.append(event.task_name))
        engine = make_engine(state_store=store, hooks=[hook])
        for number in range(1000):
            engine.task(name=f"t{number}", dag="d")(lambda number=number: number)
        report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
        assert set(statuses(report).values()) == {"SUCCESS"}
        assert sorted(told) == sorted(report["tasks"])
        assert sum(sizes) >= 1000
        assert len(sizes) < 1000
        engine.close()


async def test_success_is_saved_while_another_task_runs(  # S1
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


@pytest.mark.parametrize("max_parallel", [1, 4])
async def test_results_are_released_once_they_are_saved_and_used(  # I2
    make_engine: MakeEngine,
    tmp_path: Path,
    max_parallel: int,
) -> None:
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
                gc.collect()  # a thread may be about to drop its last one
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


async def test_sync_and_async_tasks_side_by_side_are_all_saved(
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


async def test_cancelling_while_successes_are_saved_keeps_them(  # R2 S1
    make_engine: MakeEngine,
) -> None:
    class Store(ThirdPartyStore):
        saves_success = False

        def save(self, changes: Sequence[Change]) -> None:
            self.saves_success = any(task and task.status == "SUCCESS" for _, task in changes)
            super().save(changes)

    store = Store()
    engine = make_engine(state_store=store, max_parallel=4)
    all_run = threading.Event()
    ended = threading.Barrier(4, action=all_run.set)

    def meet() -> None:
        if not all_run.is_set():  # not in the resume
            ended.wait(WAIT_S)

    for number in range(4):
        engine.task(name=f"t{number}", dag="d")(meet)
        engine.task(name=f"child{number}", dag="d", deps=[f"t{number}"])(lambda: None)
    summary = await cancelled_while_storing(
        engine, store, lambda what: what == "save" and store.saves_success
    )
    kept = store.load_run(summary.run_id, results=False).tasks
    for number in range(4):
        # The run cancels attempts whose outcome it has not received yet.
        assert kept[f"t{number}"].status.value in ("SUCCESS", "FAILED")
        assert kept[f"child{number}"].status == "SKIPPED"
    assert [name for name, task in kept.items() if task.status == "SUCCESS"]
    assert statuses(engine.get_run_report(summary.run_id)) == {
        name: task.status.value for name, task in kept.items()
    }
    resumed = engine.get_run_report(await engine.resume(summary.run_id))
    assert set(statuses(resumed).values()) == {"SUCCESS"}


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
async def test_store_that_raises_anything_ends_the_run_which_can_be_resumed(  # R4 S1
    make_engine: MakeEngine, raised: type[BaseException]
) -> None:
    store = ThirdPartyStore()
    refuses: list[type[BaseException]] = []

    def before(what: str) -> None:
        if what == "save" and refuses:
            raise refuses[0]

    store.before = before
    engine = make_engine(state_store=store, max_parallel=2)
    ran: list[str] = []

    def work() -> None:
        ran.append(current_attempt().task_name)
        if ran == ["t0", "t1", "t2"]:
            refuses.append(raised)

    chain(engine, 5, work)
    with pytest.raises(FlowrunError, match=raised.__name__):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    refuses.clear()
    (summary,) = engine.list_runs()
    found = statuses(engine.get_run_report(summary.run_id))
    assert [found["t0"], found["t1"], found["t4"]] == ["SUCCESS", "SUCCESS", "SKIPPED"]
    resumed = engine.get_run_report(await asyncio.wait_for(engine.resume(summary.run_id), WAIT_S))
    assert set(statuses(resumed).values()) == {"SUCCESS"}
    assert ran.count("t0") == ran.count("t1") == 1


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
async def test_error_in_reporting_one_success_loses_no_other(  # R3 R4 D9
    make_engine: MakeEngine, store: SqliteStateStore, raised: type[BaseException]
) -> None:
    log = logging.Logger("hostile", logging.INFO)
    log.addFilter(Hostile("task 'bad' succeeded", raised))
    engine = make_engine(state_store=store, max_parallel=2, logger=log)
    both_run = asyncio.Barrier(2)  # they end in one turn of the loop, and are saved together
    for name in ("bad", "good"):
        engine.task(name=name, dag="d", retain_result=False)(both_run.wait)
    engine.task(name="child", dag="d", deps=["bad", "good"])(lambda: None)
    with pytest.raises(FlowrunError, match=raised.__name__):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (summary,) = engine.list_runs()
    found = statuses(engine.get_run_report(summary.run_id))
    assert found == {"bad": "SUCCESS", "good": "SUCCESS", "child": "SKIPPED"}
    assert await most_at_once(engine) == 2
