"""Worker threads that go on to the next short task by themselves: nothing may differ but speed."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from flowrun import Engine, SchedulerConfig, current_attempt, fn_hook
from flowrun.config import Clock
from flowrun.errors import FlowrunError, StoreFullError
from flowrun.executors.worker_threads import Job, WorkerThreads
from flowrun.scheduler.following import Following
from flowrun.scheduler.launcher import Launcher
from flowrun.scheduler.ledger import Ready
from flowrun.scheduler.slots import Lane

from ..conftest import WAIT_S, statuses
from ..state.test_journal import ThirdPartyStore, cancelled_while_storing

MakeEngine = Callable[..., Engine]


def chain(engine: Engine, length: int, work: Callable[[], Any]) -> None:
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


async def test_events_of_a_chain_come_in_order(make_engine: MakeEngine) -> None:
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


@pytest.mark.no_cover
async def test_cancelling_stops_threads_that_go_on_by_themselves(engine: Engine) -> None:  # R2
    count = 0
    busy = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        nonlocal count
        count += 1
        if count == 100:
            loop.call_soon_threadsafe(busy.set)

    chain(engine, 20_000, work)
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
    assert found.count("SUCCESS") <= ended_with <= found.count("SUCCESS") + 1 < 20_000
    assert found.count("FAILED") <= 1
    assert set(found) <= {"SUCCESS", "FAILED", "SKIPPED"}
    new = engine.get_run_report(await engine.resume(summary.run_id))
    assert new["status"] == "SUCCESS"
    assert count == 20_000 + ended_with - found.count("SUCCESS")


@pytest.mark.no_cover
async def test_cancelling_while_a_thread_goes_on_and_the_loop_is_busy(engine: Engine) -> None:  # R2
    count = 0
    enough = threading.Event()

    def work() -> None:
        nonlocal count
        count += 1
        if count % 10 == 0:
            enough.set()

    chain(engine, 20_000, work)

    @engine.task(dag="d")
    async def blocks_the_loop() -> None:
        for _ in range(3):
            enough.clear()
            while not enough.wait(0.01):  # it may be that the thread has to ask the loop
                await asyncio.sleep(0)
            engine.cancel(current_attempt().run_id)

    with pytest.raises(asyncio.CancelledError):
        await engine.run_once("d")
    (summary,) = engine.list_runs()
    found = list(statuses(engine.get_run_report(summary.run_id)).values())
    assert found.count("SUCCESS") >= count - 1
    assert "SKIPPED" in found
    assert not {"PENDING", "RUNNING"} & set(found)


@pytest.mark.no_cover
async def test_timers_run_while_threads_go_on_by_themselves(engine: Engine) -> None:
    chain(engine, 30_000, lambda: None)
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


async def test_task_that_becomes_ready_is_not_left_behind_staged_ones(
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
async def test_order_of_launches_is_what_it_would_be_without(  # R6
    make_engine: MakeEngine, seed: int
) -> None:
    chance = random.Random(seed)
    parents = {
        number: chance.sample(range(number), min(number, chance.choice([0, 1, 1, 1, 2, 3])))
        for number in range(200)
    }
    engine = make_engine(max_parallel=1)
    ran: list[str] = []

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


@pytest.mark.no_cover
async def test_two_runs_of_short_tasks_share_the_slots(make_engine: MakeEngine) -> None:  # R3
    engine = make_engine(max_parallel=1, max_workers=1)
    order: list[str] = []
    both_wait = threading.Event()

    def work() -> None:
        if not order:  # before the second one is there the first one need not share
            assert both_wait.wait(WAIT_S)
        order.append(current_attempt().run_id)

    chain(engine, 10_000, work)
    runs = [asyncio.create_task(engine.run_once("d")) for _ in range(2)]
    while len(engine.list_runs()) < 2:
        await asyncio.sleep(0)
    both_wait.set()
    first, second = await asyncio.gather(*runs)
    half = order[:10_000]
    assert half.count(first) > 2000
    assert half.count(second) > 2000


async def test_values_and_releases_are_right_along_a_chain(engine: Engine) -> None:  # I2
    def add(upstream: dict[str, int]) -> int:
        return sum(upstream.values()) + 1

    for number in range(100):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="kept", deps=deps)(add)
        engine.task(name=f"t{number}", dag="let go", deps=deps, retain_result=number == 99)(add)
    for dag in ("kept", "let go"):
        report = engine.get_run_report(await engine.run_once(dag))
        assert report["tasks"]["t99"]["result"] == 100
        states = {task["result_state"] for task in report["tasks"].values()}
        assert states == ({"kept"} if dag == "kept" else {"kept", "released"})


async def test_handed_in_thread_that_ends_late_changes_nothing(  # A3
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    release, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        engine = make_engine(executor=pool)

        @engine.task(dag="d", timeout_s=0.01)
        def hangs() -> str:
            assert release.wait(WAIT_S)
            return "late"

        run_id = await engine.run_once("d")
        task = engine.get_run_report(run_id)["tasks"]["hangs"]
        assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")
        release.set()
        pool.submit(ended.set)
        assert await asyncio.to_thread(ended.wait, WAIT_S)
    assert engine.get_run_report(run_id)["tasks"]["hangs"]["result"] is None
    assert "ended after it was abandoned" in caplog.text


async def test_handed_in_threads_are_asked_for_every_task(make_engine: MakeEngine) -> None:
    class Counting(ThreadPoolExecutor):
        calls = 0

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().submit(*args, **kwargs)

    with Counting(2) as pool:
        engine = make_engine(executor=pool)
        chain(engine, 20, lambda: None)
        await engine.run_once("d")
        assert pool.calls == 20


class ActingClock(Clock):
    """A clock that stands still, and acts when the loop reads it for the n-th time."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.left = -1
        self.act = act
        self.loop_thread = threading.current_thread()

    def monotonic(self) -> float:  # type: ignore[override]
        if threading.current_thread() is self.loop_thread and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.act()
        return 0.0


@pytest.mark.parametrize("nth", range(4))
async def test_thread_takes_the_last_staged_task_while_the_loop_looks_for_one(  # R4
    make_engine: MakeEngine, nth: int
) -> None:
    may_end, took = threading.Event(), threading.Event()

    def let_the_thread_go_on() -> None:
        may_end.set()
        took.wait(0.2)  # in vain where it has to ask the loop first

    clock = ActingClock(let_the_thread_go_on)
    engine = make_engine(max_workers=1, config=SchedulerConfig(clock=clock), max_parallel=2)
    staged = asyncio.Event()

    @engine.task(dag="d")
    async def first() -> None:
        asyncio.get_running_loop().call_soon(staged.set)
        await staged.wait()
        clock.left = nth

    @engine.task(dag="d")
    def second() -> None:
        assert may_end.wait(WAIT_S)

    @engine.task(dag="d")
    def third() -> None:
        took.set()

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait({run}, timeout=0.1)
    may_end.set()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["status"] == "SUCCESS"


async def test_thread_takes_what_is_staged_before_an_async_task(  # R4
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()
    begun = threading.Semaphore(0)
    may_fail, may_end, took = threading.Event(), threading.Event(), threading.Event()
    clock = ActingClock(lambda: None)  # all tasks are short
    engine = make_engine(max_workers=2, config=SchedulerConfig(clock=clock), max_parallel=3)
    engine.task(name="holds a slot", dag="other")(release.wait)

    @engine.task(dag="d")
    def fails() -> None:
        begun.release()
        assert may_fail.wait(WAIT_S)
        raise ValueError

    @engine.task(dag="d")
    def ends() -> None:
        begun.release()
        assert may_end.wait(WAIT_S)

    engine.task(name="staged", dag="d")(took.set)

    @engine.task(dag="d")
    async def behind_it() -> None:
        pass

    runs = [asyncio.create_task(engine.run_once(dag)) for dag in ("other", "d")]
    for _ in range(2):
        while not begun.acquire(blocking=False):
            await asyncio.sleep(0)
    renew = Lane.renew

    def late(self: Lane) -> bool:
        may_end.set()
        assert took.wait(WAIT_S)
        release.set()
        return renew(self)

    monkeypatch.setattr(Lane, "renew", late)
    may_fail.set()
    _, run_id = await asyncio.wait_for(asyncio.gather(*runs), WAIT_S)
    assert list(statuses(engine.get_run_report(run_id)).values()) == ["FAILED", *["SUCCESS"] * 3]


@pytest.mark.parametrize("behind", ["nothing", "an async task", "a sync task"])
async def test_thread_takes_a_task_while_the_loop_gets_a_slot_for_it(  # R3 R6
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, behind: str
) -> None:
    engine = make_engine(max_parallel=2, max_workers=2)
    may_end, took = threading.Event(), threading.Event()
    ran: list[str] = []

    @engine.task(dag="d")
    def first() -> None:
        assert may_end.wait(WAIT_S)

    @engine.task(dag="d")
    def second() -> None:
        ran.append("second")
        took.set()

    @engine.task(dag="other")
    async def alone() -> None:
        ran.append("alone")

    if behind == "an async task":

        @engine.task(dag="d")
        async def third() -> None:
            ran.append("third")

    elif behind == "a sync task":
        engine.task(name="third", dag="d")(lambda: ran.append("third"))
    take = Lane.take
    slots: list[bool] = []

    def late(self: Lane) -> bool:
        slots.append(take(self))
        if len(slots) == 2:  # that for the second task: its thread is faster than the loop
            may_end.set()
            assert took.wait(WAIT_S)
        return slots[-1]

    monkeypatch.setattr(Lane, "take", late)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    monkeypatch.undo()
    assert report["status"] == "SUCCESS"
    assert ran == ["second", "third"][: len(report["tasks"]) - 1]
    # Every slot was given back.
    for _ in range(3):
        await asyncio.wait_for(engine.run_once("other"), WAIT_S)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("nth", range(3, 11))
async def test_starts_are_told_in_the_order_of_launches(  # R6
    make_engine: MakeEngine, nth: int, kind: str
) -> None:
    may_end, took = threading.Event(), threading.Event()

    def let_the_thread_go_on() -> None:
        may_end.set()
        took.wait(0.1)  # in vain where it has to wait

    clock = ActingClock(let_the_thread_go_on)
    started: list[str] = []
    hook = fn_hook(on_task_start=lambda event: started.append(event.task_name))
    config = SchedulerConfig(clock=clock)
    engine = make_engine(max_workers=2, config=config, max_parallel=2, hooks=[hook])

    @engine.task(dag="d")
    def first() -> None:
        assert may_end.wait(WAIT_S)

    engine.task(name="second", dag="d")(_nothing if kind == "async" else lambda: None)
    engine.task(name="third", dag="d")(took.set)
    clock.left = nth
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait({run}, timeout=0.1)
    may_end.set()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["status"] == "SUCCESS"
    assert started == ["first", "second", "third"]


async def test_no_thread_gets_past_an_async_task_that_the_loop_has_looked_at(  # R6
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    hook = fn_hook(on_task_start=lambda event: started.append(event.task_name))
    engine = make_engine(max_parallel=3, max_workers=2, hooks=[hook])
    first_may_end, other_may_end, all_may_end = (threading.Event() for _ in range(3))
    third_runs, last_runs = threading.Event(), threading.Event()

    @engine.task(dag="d")
    def first() -> None:
        assert first_may_end.wait(WAIT_S)

    @engine.task(dag="d")
    def other() -> None:
        assert other_may_end.wait(WAIT_S)

    @engine.task(dag="d")
    def third() -> None:
        third_runs.set()
        assert all_may_end.wait(WAIT_S)

    @engine.task(dag="d")
    async def on_the_loop() -> None:
        all_may_end.set()

    engine.task(name="last", dag="d")(last_runs.set)
    take, push = Lane.take, Ready.push
    taken: list[bool] = []

    def late(self: Lane) -> bool:
        taken.append(take(self))
        if len(taken) == 3:  # that for the third task: a thread is faster than the loop
            first_may_end.set()
            assert third_runs.wait(WAIT_S)
        return taken[-1]

    def slow(self: Ready, number: int) -> None:
        if len(taken) >= 3:
            other_may_end.set()
            last_runs.wait(0.2)  # in vain where its thread has to wait
        push(self, number)

    monkeypatch.setattr(Lane, "take", late)
    monkeypatch.setattr(Ready, "push", slow)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert report["status"] == "SUCCESS"
    assert other_may_end.is_set()
    assert started == ["first", "other", "third", "on_the_loop", "last"]


class Reluctant(WorkerThreads):
    """Worker threads that do something before they take a job, and may refuse it."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def enqueue(self, job: Job) -> None:
        self.before()
        super().enqueue(job)


async def test_pool_that_is_shut_down_fails_the_tasks_that_it_does_not_take(
    make_engine: MakeEngine,
) -> None:
    pool = WorkerThreads(2)
    engine = make_engine(executor=pool)
    chain(engine, 3, lambda: None)
    pool.shutdown()
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert list(statuses(report).values()) == ["FAILED", "SKIPPED", "SKIPPED"]
    assert "the executor did not take the task" in (report["tasks"]["t0"]["error"] or "")


async def test_thread_has_taken_what_its_pool_refuses(make_engine: MakeEngine) -> None:  # R3
    may_end, took = threading.Event(), threading.Event()
    asked = 0

    def refuse_the_second() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            may_end.set()
            assert took.wait(WAIT_S)
            msg = "no thread to be had"
            raise RuntimeError(msg)

    with Reluctant(1) as pool:
        pool.before = refuse_the_second
        engine = make_engine(executor=pool, max_parallel=2)

        @engine.task(dag="d")
        def first() -> None:
            assert may_end.wait(WAIT_S)

        engine.task(name="second", dag="d")(took.set)
        chain_of_slots = [engine.task(name=f"a{n}", dag="d", deps=["second"]) for n in range(3)]
        for declare in chain_of_slots:
            declare(_nothing)
        report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert asked >= 2
    assert set(statuses(report).values()) == {"SUCCESS"}


async def _nothing() -> None:
    pass


async def test_pool_that_is_shut_down_under_a_run_ends_it(make_engine: MakeEngine) -> None:  # R4
    with WorkerThreads(1) as pool:
        engine = make_engine(executor=pool, max_parallel=3)
        begun, may_end = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        @engine.task(dag="d")
        def first() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert may_end.wait(WAIT_S)

        for name in ("second", "third"):
            engine.task(name=name, dag="d")(lambda: None)
        run = asyncio.create_task(engine.run_once("d"))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        pool.shutdown(wait=False, cancel_futures=True)
        may_end.set()
        report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    found = statuses(report)
    assert found["first"] == "SUCCESS"
    assert "CancelledError" in (report["tasks"]["third"]["error"] or "")


async def test_seat_that_is_withdrawn_as_its_run_ends_leaves_its_slot_once(  # R3
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(WorkerThreads):
        """No thread comes for any job but the first."""

        jobs = 0

        def enqueue(self, job: Job) -> None:
            self.jobs += 1
            if self.jobs == 1:
                super().enqueue(job)

    cancel = Job.cancel

    def late(self: Job) -> bool:
        # The pool is shut down just before the run, which is over, cancels its seats itself.
        calls = self.take()
        if calls is not None:
            _, withdrawn = calls
            withdrawn()
        return cancel(self)

    with Slow(1) as pool:
        engine = make_engine(executor=pool, max_parallel=2)
        may_end = threading.Event()
        engine.task(name="first", dag="d")(lambda: may_end.wait(WAIT_S))
        engine.task(name="second", dag="d")(lambda: None)
        run = asyncio.create_task(engine.run_once("d"))
        while pool.jobs < 2:
            await asyncio.sleep(0)
        monkeypatch.setattr(Job, "cancel", late)
        may_end.set()
        report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
        monkeypatch.undo()
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert await most_at_once(engine) == 2


async def test_seat_that_is_withdrawn_when_its_attempt_has_run(make_engine: MakeEngine) -> None:
    with WorkerThreads(1) as pool:
        engine = make_engine(executor=pool, max_parallel=3)
        may_end = threading.Event()
        blocked = asyncio.Event()

        @engine.task(dag="d")
        def first() -> None:
            assert may_end.wait(WAIT_S)

        engine.task(name="second", dag="d")(lambda: None)

        @engine.task(dag="d", deps=["second"])
        def last() -> None:
            # The only thread has run all three; two seats still wait for one.
            pool.shutdown(wait=False, cancel_futures=True)

        @engine.task(dag="d")
        async def lets_it_go() -> None:
            may_end.set()
            await blocked.wait()

        run = asyncio.create_task(engine.run_once("d"))
        while not may_end.is_set():
            await asyncio.sleep(0)
        await asyncio.to_thread(pool.shutdown)
        blocked.set()
        report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}


async def test_thread_goes_on_to_a_task_with_a_timeout_of_its_own(engine: Engine) -> None:  # A1
    release = threading.Event()
    for number, timeout_s in enumerate([None, None, 30, 0.02]):
        deps = [f"t{number - 1}"] if number else []
        work = (lambda: release.wait(WAIT_S)) if number == 3 else (lambda: None)
        engine.task(name=f"t{number}", dag="d", deps=deps, timeout_s=timeout_s)(work)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    release.set()
    assert list(statuses(report).values()) == [*["SUCCESS"] * 3, "FAILED"]
    assert report["tasks"]["t3"]["reason"] == "TIMEOUT"


class TellingClock(Clock):
    """A clock that stands still, keeps timers for the test, and tells when threads read it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.callbacks: list[Callable[[], object]] = []
        self.read_in_worker = threading.Semaphore(0)

    def monotonic(self) -> float:  # type: ignore[override]
        if in_a_worker():
            self.read_in_worker.release()
        return self.now

    def call_later(self, loop: Any, delay_s: float, callback: Callable[[], object]) -> Any:
        self.callbacks.append(callback)
        return loop.call_later(WAIT_S, callback)


class HandClock(Clock):
    """A clock that only the test moves."""

    now = 0.0

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now


async def test_time_is_up_when_the_code_has_ended_but_the_loop_has_not_heard(  # A4
    make_engine: MakeEngine,
) -> None:
    clock = TellingClock()
    engine = make_engine(config=SchedulerConfig(clock=clock))
    begun = asyncio.Event()
    may_end = threading.Event()
    loop = asyncio.get_running_loop()

    @engine.task(dag="d", timeout_s=5)
    def fails() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(WAIT_S)
        raise ValueError

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    while clock.read_in_worker.acquire(blocking=False):
        pass
    may_end.set()
    assert clock.read_in_worker.acquire(timeout=WAIT_S)  # its end is settled now
    clock.now = 6.0
    for callback in clock.callbacks:
        callback()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["fails"]["reason"] == "ERROR"


async def test_time_is_up_before_the_loop_has_heard_that_there_is_more_to_await(  # I3 A1
    make_engine: MakeEngine,
) -> None:
    clock = TellingClock()
    engine = make_engine(config=SchedulerConfig(clock=clock))
    begun, awaits = asyncio.Event(), asyncio.Event()
    may_end = threading.Event()
    loop = asyncio.get_running_loop()

    async def rest() -> None:
        awaits.set()
        await asyncio.Event().wait()

    @engine.task(dag="d", timeout_s=5)
    def returns_a_coroutine() -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert may_end.wait(WAIT_S)
        return rest()

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    while clock.read_in_worker.acquire(blocking=False):
        pass
    may_end.set()
    assert clock.read_in_worker.acquire(timeout=WAIT_S)  # its thread has ended it
    clock.now = 6.0
    for callback in clock.callbacks:
        callback()
    clock.callbacks.clear()
    await asyncio.wait_for(awaits.wait(), WAIT_S)
    for callback in clock.callbacks:
        callback()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["returns_a_coroutine"]["reason"] == "TIMEOUT"


async def test_starts_in_threads_are_saved_in_a_store_that_does_not_block(
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    store.blocking = False
    saved_in_workers: list[str] = []
    store.before = lambda what: saved_in_workers.append(what) if in_a_worker() else None
    engine = make_engine(state_store=store, max_parallel=2)
    for number in range(200):
        engine.task(name=f"t{number}", dag="d")(lambda: None)
    report = engine.get_run_report(await engine.run_once("d"))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert all(task.status == "SUCCESS" for task in store.runs[report["run_id"]].tasks.values())
    assert not saved_in_workers


async def test_thread_that_is_interrupted_at_its_inputs_fails_its_task(  # R2 S4
    engine: Engine,
) -> None:
    class Hostile:
        def __deepcopy__(self, memo: object) -> Hostile:
            raise KeyboardInterrupt

    engine.task(name="makes", dag="d")(Hostile)
    engine.task(name="takes", dag="d")(lambda makes: None)
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"makes": "SUCCESS", "takes": "FAILED"}
    assert "KeyboardInterrupt" in (report["tasks"]["takes"]["error"] or "")


async def test_thread_waits_for_one_that_tells_of_its_success_at_length(  # R4
    make_engine: MakeEngine,
) -> None:
    both_run, ended = threading.Barrier(2), threading.Event()
    told: list[str] = []

    class SlowHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if in_a_worker() and "succeeded" in record.getMessage():
                told.append(record.getMessage())
                if len(told) == 1:
                    assert ended.wait(WAIT_S)
                    threading.Event().wait(0.1)  # the other one comes for the lock meanwhile

    logger = logging.Logger("slow", logging.INFO)
    logger.addHandler(SlowHandler())
    engine = make_engine(logger=logger, max_parallel=2, max_workers=2)

    @engine.task(dag="d")
    def first() -> None:
        both_run.wait(WAIT_S)

    @engine.task(dag="d")
    def second() -> None:
        both_run.wait(WAIT_S)
        while not told:
            pass
        ended.set()

    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert ["first" in told[0], "second" in told[1]] == [True, True]


class LateLock:
    """A lock; a worker thread waits after it has let go of it for the last time."""

    def __init__(self, has_let_go: Callable[[], object], may_go_on: threading.Event) -> None:
        self.lock = threading.Lock()
        self.has_let_go = has_let_go
        self.may_go_on = may_go_on
        self.left = -1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, *, blocking: bool = True) -> bool:
        return self.lock.acquire(blocking=blocking)

    def release(self) -> None:
        self.lock.release()
        if in_a_worker() and self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.has_let_go()
                assert self.may_go_on.wait(WAIT_S)


async def test_thread_that_finds_nothing_as_the_run_ends_leaves_its_slot_once(  # R3
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    came, over = asyncio.Event(), threading.Event()
    lock = LateLock(lambda: loop.call_soon_threadsafe(came.set), over)
    engine = make_engine(max_parallel=3, max_workers=1)
    engine.task(name="first", dag="d")(lambda: None)

    @engine.task(dag="d")
    def second() -> None:
        lock.left = 1  # its own end, and the seat that it came with

    engine.task(name="waits", dag="d")(came.wait)
    monkeypatch.setattr("flowrun.scheduler.ledger.threading", SimpleNamespace(Lock=lambda: lock))
    await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    monkeypatch.undo()
    over.set()
    engine.task(name="ends", dag="other")(lambda: None)
    await asyncio.wait_for(engine.run_once("other"), WAIT_S)  # in that thread
    assert await most_at_once(engine) == 3


async def test_thread_that_comes_when_its_run_is_over_leaves_its_slot_once(  # R3
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, over, left = threading.Event(), threading.Event(), threading.Event()
    turns = iter(range(2))
    first = Following._first

    def late(self: Following, seat: Any) -> Any:
        if next(turns):  # the second thread
            came.set()
            assert over.wait(WAIT_S)
            assert first(self, seat) is None
            left.set()
            return None
        assert came.wait(WAIT_S)  # the seat is taken: nobody can withdraw it any more
        return first(self, seat)

    monkeypatch.setattr(Following, "_first", late)
    engine = make_engine(max_parallel=2, max_workers=2)
    for number in range(2):
        engine.task(name=f"t{number}", dag="d")(lambda: None)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}
    over.set()
    assert await asyncio.to_thread(left.wait, WAIT_S)
    monkeypatch.undo()
    assert await most_at_once(engine) == 2


class Hostile(logging.Filter):
    """Raises when it is told something."""

    def __init__(self, words: str, raised: type[BaseException]) -> None:
        super().__init__()
        self.words = words
        self.raised = raised

    def filter(self, record: logging.LogRecord) -> bool:
        if self.words in record.getMessage():
            raise self.raised
        return True


async def test_task_that_becomes_ready_while_the_loop_gives_the_last_slots_back_is_launched(  # R4
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_parallel=2)
    may_end, x_runs, y_ran = threading.Event(), threading.Event(), threading.Event()
    give_back = Launcher._give_slots_back

    def slow(self: Launcher) -> None:
        if self._held == 1 and not may_end.is_set():  # the one that b has left
            may_end.set()
            assert x_runs.wait(WAIT_S)  # its thread has seen that no slot is free
        give_back(self)

    monkeypatch.setattr(Launcher, "_give_slots_back", slow)

    @engine.task(dag="d")
    def a() -> None:
        assert may_end.wait(WAIT_S)

    engine.task(name="b", dag="d")(lambda: None)

    @engine.task(dag="d", deps=["a"])
    def x() -> None:
        x_runs.set()
        assert y_ran.wait(WAIT_S)

    engine.task(name="y", dag="d", deps=["a"])(y_ran.set)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), 3 * WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
async def test_error_of_whatever_kind_in_a_thread_ends_the_run(  # R4
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


# -- chains in a store that has to be written to -------------------------------------------------


def in_a_worker() -> bool:
    return threading.current_thread().name.startswith("flowrun-worker")


@pytest.mark.parametrize("retain_result", [True, False])
async def test_success_is_saved_before_its_thread_goes_on_with_the_child(  # S1
    make_engine: MakeEngine, retain_result: bool
) -> None:
    store = ThirdPartyStore()
    saved_in_workers: list[bool] = []
    store.before = lambda what: saved_in_workers.append(in_a_worker())
    events: list[str] = []
    hook = fn_hook(
        on_task_start=lambda event: events.append(f"start {event.task_name}"),
        on_task_success=lambda event: events.append(f"success {event.task_name}"),
    )
    engine = make_engine(state_store=store, hooks=[hook])
    seen: list[str] = []

    def work(upstream: dict[str, int]) -> int:
        me = current_attempt()
        tasks = store.runs[me.run_id].tasks
        seen.extend(tasks[parent].status for parent in upstream)
        assert tasks[me.task_name].status in ("PENDING", "RUNNING")
        return sum(upstream.values()) + 1

    for number in range(200):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="d", deps=deps, retain_result=retain_result)(work)
    engine.task(name="last", dag="d", deps=["t199"])(lambda t199: t199)
    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["last"]["result"] == 200
    assert seen == ["SUCCESS"] * 199
    names = [*(f"t{n}" for n in range(200)), "last"]
    assert events == [f"{kind} {name}" for name in names for kind in ("start", "success")]
    started = [task["started_at"] or 0.0 for task in report["tasks"].values()]
    finished = [task["finished_at"] or 0.0 for task in report["tasks"].values()]
    assert all(end <= start for end, start in zip(finished, started[1:], strict=False))
    assert any(saved_in_workers)


async def test_what_a_thread_cannot_save_is_saved_by_the_journal(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    refused: list[str] = []

    def before(what: str) -> None:
        if in_a_worker():
            refused.append(what)
            msg = "not by you"
            raise StoreFullError(msg)

    store.before = before
    engine = make_engine(state_store=store)
    ran: list[str] = []
    chain(engine, 20, lambda: ran.append(current_attempt().task_name))
    report = engine.get_run_report(await engine.run_once("d"))
    assert report["status"] == "SUCCESS"
    assert len(ran) == 20
    assert refused
    assert all(task.status == "SUCCESS" for task in store.runs[report["run_id"]].tasks.values())


async def test_saving_takes_no_time_from_the_child(make_engine: MakeEngine) -> None:  # A1
    clock = HandClock()
    store = ThirdPartyStore()
    saved_in_workers: list[bool] = []

    def before(what: str) -> None:
        if in_a_worker():
            saved_in_workers.append(True)
            clock.now += 10.0

    store.before = before
    engine = make_engine(state_store=store, config=SchedulerConfig(clock=clock))
    left: list[float] = []

    def work() -> None:
        left.append((current_attempt().deadline or 0.0) - clock.now)

    for number in range(50):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="d", deps=deps, timeout_s=20)(work)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert saved_in_workers
    assert left == [20.0] * 50
    for task in report["tasks"].values():
        assert task["started_at"] == task["finished_at"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_what_is_told_takes_no_time_from_the_next_task(  # A1
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


async def test_cancelling_while_a_thread_saves_keeps_what_it_saves(  # R2 S1
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    chain(engine, 3, lambda: None)
    summary = await cancelled_while_storing(engine, store, lambda _: in_a_worker())
    found = statuses(engine.get_run_report(summary.run_id))
    assert found == {"t0": "SUCCESS", "t1": "SKIPPED", "t2": "SKIPPED"}
    assert statuses(engine.get_run_report(await engine.resume(summary.run_id))) == dict.fromkeys(
        found, "SUCCESS"
    )
