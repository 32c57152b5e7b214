"""Retries and timeouts of the real engine in virtual time: hours of waiting take milliseconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    RetryPolicy,
    SchedulerConfig,
    SqliteStateStore,
    current_attempt,
)

from ..virtual_time import VirtualClock

HOUR_S = 3600.0


class World:
    """An engine in virtual time, and when its tasks' attempts began."""

    def __init__(
        self,
        make_engine: Callable[..., Engine],
        clock: VirtualClock | None = None,
        **options: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.begun: list[float] = []
        config = {"clock": self.clock, **options.pop("config", {})}
        self.engine = make_engine(
            logger=self.clock.logger(), config=SchedulerConfig(**config), **options
        )

    async def run(self, dag: str = "d", **options: Any) -> Any:
        """Run a DAG; return its report."""
        run_id = await self.clock.run(self.engine, self.engine.run_once(dag, **options))
        return self.engine.get_run_report(run_id)

    def began(self) -> int:
        """Note that an attempt begins; return its number."""
        self.begun.append(self.clock.now)
        return current_attempt().attempt


@pytest.fixture(params=["memory", "sqlite"])
def world(
    make_engine: Callable[..., Engine], request: pytest.FixtureRequest, tmp_path: Path
) -> Any:
    if request.param == "memory":
        yield World(make_engine)
        return
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    world = World(make_engine, state_store=store)
    yield world
    world.engine.close()
    store.close()


@pytest.fixture(params=["async", "sync"])
def declare(world: World, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Declare a task of either kind that calls a function with its attempt's number."""

    def task(function: Callable[[int], object], name: str = "a", **options: Any) -> None:
        if request.param == "async":

            async def asynchronous() -> object:
                return function(world.began())

            world.engine.task(name, dag="d", **options)(asynchronous)
        else:
            world.engine.task(name, dag="d", **options)(lambda: function(world.began()))

    return task


def fail_until(last: int) -> Callable[[int], int]:
    def work(attempt: int) -> int:
        if attempt < last:
            raise ConnectionError(attempt)
        return attempt

    return work


async def test_hours_of_back_off_take_no_time(world: World, declare: Callable[..., None]) -> None:
    policy = RetryPolicy(9, delay_s=60, backoff=3, max_delay_s=6 * HOUR_S)
    declare(fail_until(10), retries=policy)
    before = time.monotonic()
    report = await world.run()
    assert time.monotonic() - before < 10.0
    assert report["status"] == "SUCCESS"
    assert report["tasks"]["a"]["result"] == 10
    delays = [policy.delay_before(retry, 0.5) for retry in range(1, 10)]
    assert delays[:4] == [60, 180, 540, 1620]
    assert delays[-1] == 6 * HOUR_S
    assert world.begun == list(itertools.accumulate(delays, initial=0.0))
    attempts = report["tasks"]["a"]["attempts"]
    assert [attempt["started_at"] - report["created_at"] for attempt in attempts] == world.begun
    assert report["finished_at"] - report["created_at"] == world.begun[-1]


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
async def test_jitter_is_placed_by_the_injected_chance(
    make_engine: Callable[..., Engine], chance: float
) -> None:
    delays: list[float] = []
    clock = VirtualClock()
    hook = clock.hook(on_task_retry=lambda event: delays.append(event.delay_s))
    world = World(make_engine, clock, hooks=[hook], config={"chance": lambda: chance})
    policy = RetryPolicy(3, delay_s=100, backoff=2, max_delay_s=1000, jitter=0.5)

    @world.engine.task(dag="d", retries=policy)
    async def flaky() -> None:
        fail_until(4)(world.began())

    await world.run()
    assert delays == [policy.delay_before(retry, chance) for retry in (1, 2, 3)]
    assert delays[0] == 100 * (0.5 + chance)
    assert world.begun == list(itertools.accumulate(delays, initial=0.0))


async def test_waiting_for_a_retry_holds_no_slot(world: World) -> None:
    order: list[tuple[str, float]] = []

    @world.engine.task(dag="d", retries=RetryPolicy(1, delay_s=HOUR_S, max_delay_s=HOUR_S))
    async def flaky() -> None:
        order.append(("flaky", world.clock.now))
        fail_until(2)(current_attempt().attempt)

    for number in range(6):

        @world.engine.task(f"t{number}", dag="d", timeout_s=None)
        async def steady() -> None:
            await world.clock.wait_for(60.0)
            order.append(("steady", world.clock.now))

    await world.run()
    assert order == [
        ("flaky", 0.0),
        *[("steady", 60.0)] * 4,
        *[("steady", 120.0)] * 2,
        ("flaky", HOUR_S),
    ]


async def test_async_task_times_out_at_its_time(world: World) -> None:  # A1, A4
    left: list[float | None] = []

    @world.engine.task(dag="d", timeout_s=2 * HOUR_S, retries=1)
    async def slow() -> None:
        left.append(current_attempt().time_left_s)
        await world.clock.wait_for(HOUR_S)
        left.append(current_attempt().time_left_s)
        await world.clock.wait_for(HOUR_S + 1)

    report = await world.run()
    assert report["finished_at"] - report["created_at"] == 4 * HOUR_S
    assert left == [2 * HOUR_S, HOUR_S] * 2
    task = report["tasks"]["slow"]
    assert (task["status"], task["reason"], task["attempt"]) == ("FAILED", "TIMEOUT", 2)
    assert "took longer than timeout_s=7200" in task["error"]


async def test_sync_task_is_told_at_its_time(world: World) -> None:  # A1, A2
    left: list[float | None] = []

    @world.engine.task(dag="d", timeout_s=60.0, retries=1)
    def slow() -> None:
        left.append(current_attempt().time_left_s)
        while not current_attempt().cancelled:
            world.clock.sleep(25.0)
            left.append(current_attempt().time_left_s)

    report = await world.run()
    assert left[:7] == [60.0, 35.0, 10.0, 0.0, 60.0, 35.0, 10.0]
    task = report["tasks"]["slow"]
    assert (task["status"], task["reason"], task["attempt"]) == ("FAILED", "TIMEOUT", 2)
    # Its thread looks every 25 s; the retry waits for it.
    assert [attempt["started_at"] - report["created_at"] for attempt in task["attempts"]] == [
        0.0,
        75.0,
    ]


async def test_retry_waits_for_an_abandoned_attempt_and_then_its_delay(world: World) -> None:  # A2
    began: list[float] = []

    @world.engine.task(
        dag="d", timeout_s=100.0, retries=RetryPolicy(1, delay_s=500.0, max_delay_s=500.0)
    )
    def deaf() -> str:
        began.append(world.clock.now)
        if current_attempt().attempt == 1:
            world.clock.sleep(180.0)
        return "done"

    report = await world.run()
    assert began == [0.0, 180.0 + 500.0]
    task = report["tasks"]["deaf"]
    assert (task["status"], task["result"]) == ("SUCCESS", "done")
    assert task["attempts"][0]["finished_at"] - report["created_at"] == 100.0
    assert task["attempts"][0]["abandoned"]


async def test_abandoned_attempt_is_waited_for_as_long_again_as_its_timeout(  # A2
    world: World,
) -> None:
    @world.engine.task(dag="d", timeout_s=100.0, retries=1)
    def deaf() -> None:
        world.clock.sleep(1000.0)

    @world.engine.task(dag="d", timeout_s=None)
    async def other() -> None:
        await world.clock.wait_for(2000.0)  # the run goes on beside it

    report = await world.run()
    task = report["tasks"]["deaf"]
    assert (task["status"], task["attempt"]) == ("FAILED", 1)
    assert "Not retried: the timed-out attempt was still running" in task["error"]
    assert report["tasks"]["other"]["status"] == "SUCCESS"


@pytest.mark.parametrize("willing", [True, False])
async def test_async_task_gets_its_grace_to_clean_up(  # R1
    make_engine: Callable[..., Engine], willing: bool
) -> None:
    world = World(make_engine, config={"cancel_grace_s": 30.0})
    ended: list[float] = []

    @world.engine.task(dag="d", timeout_s=100.0)
    async def cleans_up() -> None:
        try:
            await world.clock.wait_for(1000.0)
        finally:
            await world.clock.wait_for(20.0 if willing else 40.0)
            ended.append(world.clock.now)

    report = await world.run()
    task = report["tasks"]["cleans_up"]
    assert task["status"] == "FAILED"
    assert report["finished_at"] - report["created_at"] == (120.0 if willing else 130.0)
    assert ended == ([120.0] if willing else [])


async def test_run_is_stopped_when_its_time_is_up(world: World) -> None:  # R2
    @world.engine.task(dag="d", timeout_s=None)
    async def long() -> None:
        await world.clock.wait_for(10 * HOUR_S)

    @world.engine.task(dag="d", retries=RetryPolicy(1, delay_s=9 * HOUR_S, max_delay_s=9 * HOUR_S))
    async def waits() -> None:
        raise ConnectionError

    @world.engine.task(dag="d", deps=["long"])
    async def after() -> None: ...

    report = await world.run(timeout_s=HOUR_S)
    assert report["finished_at"] - report["created_at"] == HOUR_S
    assert report["error"] == "RUN_TIMED_OUT: the run took longer than timeout_s=3600"
    found = {name: (task["status"], task["reason"]) for name, task in report["tasks"].items()}
    assert found == {
        "long": ("FAILED", "RUN_TIMED_OUT"),
        "waits": ("SKIPPED", "RUN_TIMED_OUT"),
        "after": ("SKIPPED", "RUN_TIMED_OUT"),
    }


async def test_time_stands_still_while_a_hook_or_a_thread_works(
    make_engine: Callable[..., Engine],
) -> None:
    """What the double itself promises: real work takes no virtual time."""
    clock = VirtualClock()
    seen: list[float] = []

    def on_success(_: object) -> None:
        time.sleep(0.02)  # real work
        seen.append(clock.now)

    world = World(make_engine, clock, hooks=[clock.hook(on_task_success=on_success)])

    @world.engine.task(dag="d", timeout_s=0.001)
    def works() -> None:
        time.sleep(0.02)

    @world.engine.task(dag="d", deps=["works"])
    async def waits() -> None:
        await world.clock.wait_for(5.0)

    report = await world.run()
    assert report["status"] == "SUCCESS"
    assert report["tasks"]["works"]["finished_at"] == report["created_at"]
    assert seen == [0.0, 5.0]
