"""Sync tasks in the engine's worker threads: order, slots, values, cancellation and errors."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flowrun import Engine, current_attempt, fn_hook
from flowrun.errors import FlowrunError, RunCancelledError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


def chain(engine: Engine, length: int, work: Callable[[], Any]) -> None:
    """Declare tasks t0, t1, ... of DAG "d", each of which depends on the one before."""
    for number in range(length):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="d", deps=deps)(work)


async def most_at_once(engine: Engine) -> int:
    """Return how many async tasks of two runs are running at the same time at the most."""
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1

    for number in range(8):
        engine.task(name=f"t{number}", dag="many")(work)
    runs = [engine.run_once("many") for _ in range(2)]
    await asyncio.wait_for(asyncio.gather(*runs), WAIT_S)
    return most


class Hostile(logging.Filter):
    """Raises when a record with these words is logged."""

    def __init__(self, words: str, raised: type[BaseException]) -> None:
        super().__init__()
        self.words = words
        self.raised = raised

    def filter(self, record: logging.LogRecord) -> bool:
        if self.words in record.getMessage():
            raise self.raised
        return True


async def test_events_of_a_chain_come_in_order(  # R6
    make_engine: MakeEngine,
) -> None:
    events: list[str] = []
    hook = fn_hook(
        on_task_start=lambda event: events.append(f"start {event.task_name}"),
        on_task_success=lambda event: events.append(f"success {event.task_name}"),
    )
    engine = make_engine(hooks=[hook])
    chain(engine, 200, lambda: None)
    await engine.run_once("d")
    assert events == [f"{kind} t{n}" for n in range(200) for kind in ("start", "success")]


async def test_report_from_inside_a_task_shows_what_is_done_and_what_runs(engine: Engine) -> None:
    seen: list[tuple[str, str, str, object]] = []

    def look() -> int:
        me = current_attempt()
        tasks = engine.get_run_report(me.run_id)["tasks"]
        before = f"t{int(me.task_name[1:]) - 1}"
        if before in tasks:
            seen.append(
                (tasks[before]["status"], before, tasks[me.task_name]["status"], me.attempt)
            )
        return 1

    chain(engine, 50, look)
    await engine.run_once("d")
    assert seen == [("SUCCESS", f"t{number}", "RUNNING", 1) for number in range(49)]


@pytest.mark.parametrize("max_parallel", [1, 3])
async def test_short_tasks_never_run_in_more_slots_than_there_are(  # R3
    make_engine: MakeEngine, max_parallel: int
) -> None:
    engine = make_engine(max_parallel=max_parallel, max_workers=8)
    lock = threading.Lock()
    running: set[str] = set()
    most = 0

    def enter() -> None:
        nonlocal most
        with lock:
            running.add(current_attempt().task_name)
            most = max(most, len(running))

    def work() -> None:
        enter()
        running.discard(current_attempt().task_name)

    async def work_on_the_loop() -> None:
        enter()
        await asyncio.sleep(0)
        running.discard(current_attempt().task_name)

    for number in range(1500):
        engine.task(name=f"s{number}", dag="d")(work if number % 7 else work_on_the_loop)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert most <= max_parallel


async def test_cancelling_a_long_chain_keeps_what_has_succeeded(  # R2 S1
    engine: Engine,
) -> None:
    count = 0
    busy = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal count
        count += 1
        if count == 100:
            loop.call_soon_threadsafe(busy.set)

    chain(engine, 5_000, work)
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(busy.wait(), WAIT_S)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    ended_with = count
    (summary,) = engine.list_runs()
    report = engine.get_run_report(summary.run_id)
    found = list(statuses(report).values())
    # At most one was running, or on its way to a thread.
    assert found.count("SUCCESS") <= ended_with <= found.count("SUCCESS") + 1 < 5_000
    assert found.count("FAILED") <= 1
    assert set(found) <= {"SUCCESS", "FAILED", "SKIPPED"}
    new = engine.get_run_report(await engine.resume(summary.run_id))
    assert new["status"] == "SUCCESS"
    assert count == 5_000 + ended_with - found.count("SUCCESS")


async def test_cancelling_from_a_task_that_shares_the_loop(  # R2
    engine: Engine,
) -> None:
    count = 0
    enough = threading.Event()

    def work() -> None:
        nonlocal count
        count += 1
        if count == 10:
            enough.set()

    chain(engine, 2_000, work)

    @engine.task(dag="d")
    async def blocks_the_loop() -> None:
        while not enough.is_set():
            await asyncio.sleep(0)
        for _ in range(3):
            engine.cancel(current_attempt().run_id)

    with pytest.raises(RunCancelledError):
        await engine.run_once("d")
    (summary,) = engine.list_runs()
    found = list(statuses(engine.get_run_report(summary.run_id)).values())
    assert found.count("SUCCESS") >= count - 1
    assert "SKIPPED" in found
    assert not {"PENDING", "RUNNING"} & set(found)


async def test_timers_of_the_loop_run_beside_a_long_chain(engine: Engine) -> None:
    chain(engine, 3_000, lambda: None)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await engine.run_once("d")
    ticking.cancel()
    assert ticks > 5


async def test_task_that_becomes_ready_starts_before_those_with_a_later_place(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=1, max_workers=1)
    order: list[str] = []
    engine.task(name="first", dag="d")(lambda: order.append("first"))

    @engine.task(dag="d", deps=["first"])
    async def early() -> None:
        order.append("early")

    # Its place in the topological order is behind "early"; many wait there.
    engine.task(name="gate", dag="d")(lambda: order.append("gate"))
    engine.task(name="gate2", dag="d", deps=["gate"])(lambda: order.append("gate2"))
    for number in range(100):
        engine.task(name=f"late{number}", dag="d", deps=["gate2"])(
            lambda number=number: order.append(f"late{number}")
        )
    await engine.run_once("d")
    assert order.index("early") < order.index("late0")
    assert len(order) == 104


@pytest.mark.parametrize("seed", range(8))
async def test_order_of_launches_and_of_start_events_is_topological_then_as_declared(  # R6
    make_engine: MakeEngine, seed: int
) -> None:
    chance = random.Random(seed)
    parents = {
        number: chance.sample(range(number), min(number, chance.choice([0, 1, 1, 1, 2, 3])))
        for number in range(200)
    }
    ran: list[str] = []
    told: list[str] = []
    hook = fn_hook(on_task_start=lambda event: told.append(event.task_name))
    engine = make_engine(max_parallel=1, hooks=[hook])

    def work() -> None:
        ran.append(current_attempt().task_name)

    async def work_on_the_loop() -> None:
        ran.append(current_attempt().task_name)

    for number, deps in parents.items():
        kind = work_on_the_loop if chance.random() < seed / 20 else work
        engine.task(name=f"t{number}", dag="d", deps=[f"t{dep}" for dep in deps])(kind)
    report = engine.get_run_report(await engine.run_once("d"))
    place = {name: number for number, name in enumerate(report["tasks"])}
    needs = {f"t{number}": {f"t{dep}" for dep in deps} for number, deps in parents.items()}
    expected: list[str] = []
    while len(expected) < len(needs):
        ready = [name for name in needs if name not in expected and needs[name] <= set(expected)]
        expected.append(min(ready, key=place.__getitem__))
    assert ran == expected
    assert told == expected


@pytest.mark.parametrize("kind", ["fails", "stops", "awaits"])
async def test_chain_ends_where_a_task_fails_or_hands_over_to_the_loop(
    engine: Engine, kind: str
) -> None:
    ran: list[str] = []

    async def coroutine() -> str:
        return "awaited"

    def work() -> Any:
        name = current_attempt().task_name
        ran.append(name)
        if name != "t3":
            return name
        if kind == "awaits":
            return coroutine()
        raise ValueError(name) if kind == "fails" else SystemExit(1)

    chain(engine, 6, work)
    report = engine.get_run_report(await engine.run_once("d"))
    if kind == "awaits":
        assert report["tasks"]["t3"]["result"] == "awaited"
        assert len(ran) == 6
    else:
        assert ran == ["t0", "t1", "t2", "t3"]
        assert list(statuses(report).values()) == ["SUCCESS"] * 3 + ["FAILED"] + ["SKIPPED"] * 2


async def test_retried_short_tasks_get_their_attempts_right(engine: Engine) -> None:  # A2
    attempts: dict[str, list[int]] = {}

    def work() -> None:
        me = current_attempt()
        attempts.setdefault(me.task_name, []).append(me.attempt)
        if me.attempt < 3:
            raise ValueError

    for number in range(300):
        engine.task(name=f"t{number}", dag="d", retries=2)(work)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert attempts == {f"t{number}": [1, 2, 3] for number in range(300)}


async def test_two_runs_of_short_tasks_share_the_slots(make_engine: MakeEngine) -> None:  # R3
    engine = make_engine(max_parallel=1, max_workers=1)
    order: list[str] = []
    both_wait = threading.Event()

    def work() -> None:
        if not order:  # before the second one is there the first one need not share
            assert both_wait.wait(WAIT_S)
        order.append(current_attempt().run_id)

    chain(engine, 1_000, work)
    runs = [asyncio.create_task(engine.run_once("d")) for _ in range(2)]
    while len(engine.list_runs()) < 2:
        await asyncio.sleep(0)
    both_wait.set()
    first, second = await asyncio.gather(*runs)
    half = order[:1_000]
    assert half.count(first) > 200
    assert half.count(second) > 200


async def test_freed_slot_is_used_by_the_task_that_becomes_ready_next(  # R3 R4
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=2)
    other_ended, second_ran = threading.Event(), threading.Event()

    @engine.task(dag="d")
    def source() -> None:
        assert other_ended.wait(WAIT_S)

    engine.task(name="other", dag="d")(other_ended.set)

    @engine.task(dag="d", deps=["source"])
    def first() -> None:
        assert second_ran.wait(WAIT_S)

    engine.task(name="second", dag="d", deps=["source"])(second_ran.set)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), 2 * WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}


async def test_values_and_releases_are_right_along_a_chain(engine: Engine) -> None:  # I2
    def add(upstream: dict[str, int]) -> int:
        return sum(upstream.values()) + 1

    for number in range(100):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="kept", deps=deps)(add)
        engine.task(name=f"t{number}", dag="released", deps=deps, retain_result=number == 99)(add)
    for dag in ("kept", "released"):
        report = engine.get_run_report(await engine.run_once(dag))
        assert report["tasks"]["t99"]["result"] == 100
        states = {task["result_state"] for task in report["tasks"].values()}
        assert states == ({"kept"} if dag == "kept" else {"kept", "released"})


async def test_interrupt_while_inputs_are_copied_fails_the_task_and_goes_further(  # R2 S4
    engine: Engine,
) -> None:
    class Input:
        def __deepcopy__(self, memo: object) -> Input:
            raise KeyboardInterrupt

    engine.task(name="makes", dag="d")(Input)
    engine.task(name="takes", dag="d", copy_inputs=True)(lambda makes: None)
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"makes": "SUCCESS", "takes": "FAILED"}
    assert "KeyboardInterrupt" in (report["tasks"]["takes"]["error"] or "")


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
async def test_log_that_raises_at_a_success_ends_the_run(  # R4
    make_engine: MakeEngine, raised: type[BaseException]
) -> None:
    log = logging.Logger("hostile", logging.INFO)
    log.addFilter(Hostile("task 't1' succeeded", raised))
    engine = make_engine(logger=log)
    chain(engine, 3, lambda: None)
    with pytest.raises(FlowrunError, match=raised.__name__):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (run,) = engine.list_runs()
    found = statuses(engine.get_run_report(run.run_id))
    assert found == {"t0": "SUCCESS", "t1": "SUCCESS", "t2": "SKIPPED"}


async def test_error_about_an_abandoned_attempt_leaves_no_slot_twice(  # R3 R4
    make_engine: MakeEngine,
) -> None:
    log = logging.Logger("hostile", logging.INFO)
    log.addFilter(Hostile("ended after it was abandoned", ValueError))
    engine = make_engine(logger=log, max_parallel=2)
    may_end = threading.Event()

    @engine.task(dag="d", timeout_s=0.01)
    def hangs() -> None:
        assert may_end.wait(WAIT_S)

    @engine.task(dag="d")
    async def goes_on() -> None:
        run_id = current_attempt().run_id
        while engine.get_run_report(run_id)["tasks"]["hangs"]["status"] != "FAILED":
            await asyncio.sleep(0)
        may_end.set()
        await asyncio.Event().wait()

    with pytest.raises(FlowrunError, match="ValueError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert await most_at_once(engine) == 2
