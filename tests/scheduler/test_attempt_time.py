"""What counts as an attempt's time, and what does not (A1, A4); the test moves the clock."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    JsonSerializer,
    RetryPolicy,
    SchedulerConfig,
    SqliteStateStore,
    current_attempt,
)
from flowrun.config import Clock

from ..conftest import WAIT_S, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


class HandClock(Clock):
    """A clock that only the test moves, and whose timers only the test fires."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Callable[[], object]] = []

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now

    def call_later(self, loop: Any, delay_s: float, callback: Callable[[], object]) -> Any:
        self.timers.append(callback)
        return loop.call_later(WAIT_S, callback)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        timers, self.timers = self.timers, []
        for fire in timers:
            fire()


async def test_each_task_of_a_chain_has_its_own_timeout(engine: Engine) -> None:  # A1
    release = threading.Event()
    for number, timeout_s in enumerate([None, None, 30, 0.02]):
        deps = [f"t{number - 1}"] if number else []
        work = (lambda: release.wait(WAIT_S)) if number == 3 else (lambda: None)
        engine.task(name=f"t{number}", dag="d", deps=deps, timeout_s=timeout_s)(work)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    release.set()
    assert list(statuses(report).values()) == [*["SUCCESS"] * 3, "FAILED"]
    assert report["tasks"]["t3"]["reason"] == "TIMEOUT"


async def test_code_that_ended_in_time_has_not_timed_out_though_the_loop_is_told_late(  # A4
    make_engine: MakeEngine,
) -> None:
    clock = HandClock()
    engine = make_engine(config=SchedulerConfig(clock=clock))
    has_ended, may_tell = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    asked: list[type[BaseException]] = []

    def may_retry(error: BaseException) -> bool:  # called in the thread, once the code has ended
        asked.append(type(error))
        loop.call_soon_threadsafe(has_ended.set)
        assert may_tell.wait(WAIT_S)
        return False

    @engine.task(dag="d", timeout_s=5, retries=RetryPolicy(1, retry_on=may_retry))
    def fails() -> None:
        raise ValueError

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(has_ended.wait(), WAIT_S)
    clock.advance(6)
    may_tell.set()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["fails"]["reason"] == "ERROR"
    assert asked == [ValueError]  # not about a timeout


@pytest.mark.parametrize("begins", [True, False])
async def test_coroutine_of_a_sync_task_has_only_the_time_that_is_left(  # I3 A1
    make_engine: MakeEngine, *, begins: bool
) -> None:
    clock = HandClock()
    begun, may_end, ended, awaits = (threading.Event() for _ in range(4))

    async def rest() -> None:
        awaits.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        engine = make_engine(executor=pool, config=SchedulerConfig(clock=clock))

        @engine.task(dag="d", timeout_s=5)
        def returns_a_coroutine() -> Any:
            begun.set()
            assert may_end.wait(WAIT_S)
            return rest()

        run = asyncio.create_task(engine.run_once("d"))
        while not begun.is_set():
            await asyncio.sleep(0)
        may_end.set()
        pool.submit(ended.set)
        assert ended.wait(WAIT_S)  # the call is over, and the loop has not seen that yet
        while begins and not awaits.is_set():
            await asyncio.sleep(0)
        clock.advance(6)
        report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["returns_a_coroutine"]["reason"] == "TIMEOUT"


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_saving_takes_no_time_from_the_child(  # A1
    make_engine: MakeEngine, kind: str
) -> None:
    clock = HandClock()
    store = ThirdPartyStore()
    saves = 0

    def before(_: str) -> None:
        nonlocal saves
        saves += 1
        clock.now += 10.0

    store.before = before
    engine = make_engine(state_store=store, config=SchedulerConfig(clock=clock))
    left: list[float] = []

    def work() -> None:
        left.append((current_attempt().deadline or 0.0) - clock.now)

    async def work_on_the_loop() -> None:
        work()

    for number in range(50):
        deps = [f"t{number - 1}"] if number else []
        function = work if kind == "sync" else work_on_the_loop
        engine.task(name=f"t{number}", dag="d", deps=deps, timeout_s=20)(function)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert saves > 50
    assert left == [20.0] * 50
    for task in report["tasks"].values():
        assert task["started_at"] == task["finished_at"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_slow_log_takes_no_time_from_the_next_task(  # A1
    make_engine: MakeEngine, kind: str
) -> None:
    clock = HandClock()

    def passes(_: logging.LogRecord) -> bool:
        clock.now += 10.0
        return True

    log = logging.Logger("slow", logging.INFO)
    log.addFilter(passes)
    engine = make_engine(logger=log, config=SchedulerConfig(clock=clock))
    left: list[float] = []

    def work() -> None:
        left.append((current_attempt().deadline or 0.0) - clock.now)

    async def work_on_the_loop() -> None:
        work()

    for number in range(5):
        deps = [f"t{number - 1}"] if number else []
        function = work if kind == "sync" else work_on_the_loop
        engine.task(name=f"t{number}", dag="d", deps=deps, timeout_s=20)(function)
    await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert left == [20.0] * 5


async def test_result_that_is_encoded_for_too_long_is_given_up(  # A1 A3
    make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()

    class Slow(JsonSerializer):
        def serialize(self, value: object, /) -> bytes:
            release.wait(WAIT_S)
            return super().serialize(value)

    with closing(SqliteStateStore(tmp_path / "runs.db", Slow())) as store:
        engine = make_engine(state_store=store)
        engine.task(name="a", dag="d", timeout_s=0.05)(lambda: 1)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        assert engine.get_run_report(run_id)["tasks"]["a"]["reason"] == "TIMEOUT"
        release.set()
        while "ended after it was abandoned" not in caplog.text:
            await asyncio.sleep(0)
        engine.close()
