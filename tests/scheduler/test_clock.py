"""The system's clocks, timers on an event loop, and what a clock that is set back may do."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from flowrun import (
    Change,
    Engine,
    RunRecord,
    RunReport,
    SchedulerConfig,
    SqliteStateStore,
    TaskRecord,
    fn_hook,
)
from flowrun.config import Clock
from flowrun.report import build_report

from ..conftest import WAIT_S


def test_time_is_epoch_seconds_and_monotonic_never_goes_back() -> None:
    clock = Clock()
    before = time.time()
    assert before <= clock.time() <= time.time()
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[0] <= time.monotonic()


async def test_timer_calls_back_on_the_loop_after_its_delay() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    rung = loop.create_future()
    start = clock.monotonic()
    clock.call_later(loop, 0.02, lambda: rung.set_result(asyncio.get_running_loop()))
    assert await asyncio.wait_for(rung, WAIT_S) is loop
    # A loop may fire a timer early by the resolution of its clock.
    assert clock.monotonic() - start >= 0.02 - 2 * time.get_clock_info("monotonic").resolution


async def test_cancelled_timer_does_not_call_back() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    rung: list[str] = []
    last = asyncio.Event()
    clock.call_later(loop, 0.001, lambda: rung.append("cancelled")).cancel()
    clock.call_later(loop, 0.005, last.set)  # due after it: the loop has passed its moment
    await asyncio.wait_for(last.wait(), WAIT_S)
    assert rung == []


class SetBack(Clock):
    """A clock that somebody sets; it may also go back by itself whenever it is read."""

    now = 1_000_000.0
    back_s = 0.0

    def time(self) -> float:
        self.now -= self.back_s
        return self.now


def check_times(report: RunReport) -> None:
    """Nothing may end before it began."""
    created, finished = report["created_at"], report["finished_at"]
    assert finished is not None
    assert finished >= created
    for task in report["tasks"].values():
        for attempt in task["attempts"]:
            assert attempt["ready_at"] is not None
            assert attempt["started_at"] is not None
            assert attempt["finished_at"] is not None
            assert attempt["ready_at"] <= attempt["started_at"] <= attempt["finished_at"]


async def test_clock_set_back_changes_no_order_and_no_duration(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    clock = SetBack()
    failing = True
    durations: list[float] = []
    hook = fn_hook(
        on_task_success=lambda event: durations.append(event.duration_s),
        on_dag_end=lambda event: durations.append(event.duration_s),
    )
    store = SqliteStateStore(tmp_path / "runs.db")
    engine = make_engine(state_store=store, hooks=[hook], config=SchedulerConfig(clock=clock))

    @engine.task(dag="d")
    def first() -> int:
        clock.now -= 3600  # during a run
        return 1

    @engine.task(dag="d", deps=[first])
    def second() -> None:
        if failing:
            raise ConnectionError

    ids: list[str] = []
    for back_s in (0.0, 0.0, 5.0):
        clock.back_s = back_s
        ids.append(await engine.run_once("d"))
        clock.now -= 86_400  # between runs
        check_times(engine.get_run_report(ids[-1]))
    failing = False
    ids.append(await engine.resume(ids[0]))
    report = engine.get_run_report(ids[-1])
    assert report["status"] == "SUCCESS"
    check_times(report)
    # What it kept is from a time that has not come yet.
    assert report["tasks"]["first"]["finished_at"] > report["finished_at"]  # type: ignore[operator]
    for text in (engine.report_text(ids[-1]), engine.display_dag("d", run_id=ids[-1])):
        assert not re.search(r"(?<!\S)-\d", text), text
    assert engine.report_html(ids[-1])
    assert min(durations) >= 0
    assert [run.run_id for run in engine.list_runs()] == ids[::-1]
    # Each is stamped later than now, so none is old; the newest are told by their order.
    clock.back_s = 0.0
    assert engine.prune_runs(older_than_s=60) == 0
    assert engine.prune_runs(keep_last=2) == 2
    assert [run.run_id for run in engine.list_runs()] == ids[:1:-1]
    engine.close()
    store.close()


def test_run_of_a_dead_owner_whose_clock_was_ahead_does_not_end_before_its_tasks(  # D3
    tmp_path: Path,
) -> None:
    ahead = time.time() + 86_400
    run = RunRecord("r1", "d", ahead, {name: TaskRecord(name) for name in "abc"})
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        store.create_run(run)
        a = run.tasks["a"].start(ahead + 10, ahead + 10).succeed(ahead + 30, 1)
        b = run.tasks["b"].start(ahead + 40, ahead + 35)
        store.save([Change(run, task) for task in (a, b)])
    with closing(SqliteStateStore(tmp_path / "runs.db", recover=True)) as store:
        found = store.load_run("r1", results=True)
    assert [task.status for task in found.tasks.values()] == ["SUCCESS", "FAILED", "SKIPPED"]
    check_times(build_report(found))
    assert found.finished_at == ahead + 40
