"""Async tasks share asyncio tasks, one after another: none may feel what ran before it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import re
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, FlowrunError, SchedulerConfig, SqliteStateStore, current_attempt
from flowrun.config import Clock
from flowrun.context import Attempt

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.mark.parametrize("suspends", [False, True])
async def test_context_variables_do_not_leak_to_the_next_task(  # A7
    make_engine: MakeEngine, suspends: bool
) -> None:
    engine = make_engine(max_parallel=1)
    seen: list[str] = []
    colour.set("caller's")

    async def paint() -> None:
        seen.append(colour.get())
        colour.set(f"task {len(seen)}'s")
        if suspends:
            await asyncio.sleep(0)
        assert colour.get() == f"task {len(seen)}'s"

    for number in range(5):
        engine.task(name=f"t{number}", dag="d")(paint)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert seen == ["caller's"] * 5
    assert colour.get() == "caller's"


@pytest.mark.parametrize("suspends", [False, True])
async def test_late_cancellation_of_a_finished_task_hits_no_other(  # A5
    make_engine: MakeEngine, suspends: bool
) -> None:
    engine = make_engine(max_parallel=1)
    me: list[asyncio.Task[Any]] = []
    told = asyncio.Event()

    @engine.task(dag="d")
    async def first() -> None:
        if suspends:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        me.append(task)

    @engine.task(dag="d", deps=[first])
    async def second() -> str:
        assert asyncio.current_task() is not me[0]
        told.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "undisturbed"

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(told.wait(), WAIT_S)
    me[0].cancel()
    report = engine.get_run_report(await run)
    assert report["tasks"]["second"]["result"] == "undisturbed"


@pytest.mark.parametrize("suspends", [False, True])
async def test_cancellation_that_a_task_took_back_hits_no_other(  # A5
    make_engine: MakeEngine, suspends: bool
) -> None:
    engine = make_engine(max_parallel=1)

    async def changes_its_mind() -> str:
        if suspends:
            await asyncio.sleep(0)
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        me.uncancel()
        return "well"

    async def waits() -> str:
        await asyncio.sleep(0)
        return "undisturbed"

    engine.task(dag="d")(changes_its_mind)
    engine.task(dag="d", deps=[changes_its_mind])(waits)
    tasks = engine.get_run_report(await engine.run_once("d"))["tasks"]
    assert [task["result"] for task in tasks.values()] == ["well", "undisturbed"]


@pytest.mark.parametrize("suspends", [False, True])
async def test_end_of_an_asyncio_task_is_told_when_the_task_in_it_has_ended(
    make_engine: MakeEngine, suspends: bool
) -> None:
    engine = make_engine(max_parallel=1)
    over = asyncio.Event()

    @engine.task(dag="d")
    async def first() -> None:
        if suspends:
            await asyncio.sleep(0)
        me = asyncio.current_task()
        assert me is not None
        me.set_name("the first")
        me.add_done_callback(lambda _: over.set())

    @engine.task(dag="d", deps=[first], timeout_s=WAIT_S)
    async def second() -> str:
        await over.wait()
        me = asyncio.current_task()
        assert me is not None
        return me.get_name()

    tasks = engine.get_run_report(await engine.run_once("d"))["tasks"]
    assert tasks["second"]["status"] == "SUCCESS"
    assert tasks["second"]["result"] != "the first"


async def test_error_after_a_cancellation_that_was_caught_has_no_other_context(  # A5
    engine: Engine,
) -> None:
    @engine.task(dag="d")
    async def stubborn() -> None:
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        msg = "all by itself"
        raise ValueError(msg)

    task = engine.get_run_report(await engine.run_once("d"))["tasks"]["stubborn"]
    assert "ValueError: all by itself" in (task["error"] or "")
    assert "CancelledError" not in (task["error"] or "")


@pytest.mark.parametrize("fails_by", ["retries", "many tasks"])
async def test_tasks_that_fail_at_once_let_the_loop_in(engine: Engine, fails_by: str) -> None:
    calls = 0

    async def fails() -> None:
        nonlocal calls
        calls += 1
        msg = "at once"
        raise ValueError(msg)

    if fails_by == "retries":
        engine.task(dag="d", retries=100_000)(fails)
    else:
        for number in range(20_000):
            engine.task(name=f"t{number}", dag="d")(fails)
    engine.validate("d")
    run = asyncio.create_task(engine.run_once("d"))
    while not calls:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert calls < 20_000


@pytest.mark.parametrize("max_parallel", [1, 2])
async def test_task_that_has_to_wait_for_a_slot_does_not_keep_the_loop_busy(  # R3
    make_engine: MakeEngine, max_parallel: int
) -> None:
    made = 0
    engine = make_engine(max_parallel=max_parallel)
    release = asyncio.Event()

    async def holds() -> None:
        await release.wait()

    async def waits() -> None:
        pass

    for number in range(max_parallel):
        engine.task(name=f"holds{number}", dag="holds")(holds)
    engine.task(dag="waits")(waits)
    runs = [asyncio.create_task(engine.run_once(dag)) for dag in ("waits", "holds")]
    runs.insert(0, asyncio.create_task(engine.run_once("holds")))
    known: set[asyncio.Task[Any]] = set()
    for _ in range(200):
        await asyncio.sleep(0)
        new = asyncio.all_tasks() - known
        made += len(new)
        known |= new
    release.set()
    await asyncio.gather(*runs)
    assert made < 20


@pytest.mark.parametrize("how", ["weakly", "cancelled", "cancelled and caught"])
async def test_asyncio_task_that_somebody_knows_or_has_cancelled_carries_no_other(
    make_engine: MakeEngine, how: str
) -> None:
    engine = make_engine(max_parallel=1)
    states: weakref.WeakKeyDictionary[asyncio.Task[Any], int] = weakref.WeakKeyDictionary()
    leftovers: list[int] = []

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        leftovers.append(states.get(task, 0) + task.cancelling())
        if how == "weakly":
            states[task] = 1
            return
        task.cancel()
        if how == "cancelled and caught":
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(0)

    for number in range(4):
        engine.task(name=f"t{number}", dag="d")(work)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert leftovers == [0, 0, 0, 0]


@pytest.mark.parametrize("suspends", [False, True])
async def test_what_a_task_leaves_on_its_attempt_reaches_no_other(  # A7
    make_engine: MakeEngine, suspends: bool
) -> None:
    engine = make_engine(max_parallel=1)
    states: weakref.WeakKeyDictionary[Attempt, str] = weakref.WeakKeyDictionary()
    leftovers: list[object] = []

    async def work() -> None:
        me = current_attempt()
        leftovers.extend((states.get(me), vars(me).get("note"), me.cancelled))
        states[me] = me.task_name
        vars(me)["note"] = me.task_name
        me.tell("enough")
        if suspends:
            await asyncio.sleep(0)

    for number in range(4):
        engine.task(name=f"t{number}", dag="d")(work)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert leftovers == [None, None, False] * 4


async def test_timeouts_of_the_tasks_own_do_not_end_what_follows(make_engine: MakeEngine) -> None:
    engine = make_engine(max_parallel=1)

    @engine.task(dag="d")
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "gave up"
        return "?"

    @engine.task(dag="d", deps=[impatient])
    async def after() -> str:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0, "child"))
        return await asyncio.wait_for(asyncio.sleep(0, child.result()), WAIT_S)

    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["impatient"]["result"] == "gave up"
    assert report["tasks"]["after"]["result"] == "child"


async def test_run_goes_on_when_somebody_cancels_every_asyncio_task(engine: Engine) -> None:
    engine.task(name="sync", dag="d")(lambda: None)

    @engine.task(dag="d")
    async def waits() -> None:
        await asyncio.Event().wait()

    @engine.task(dag="d", deps=["sync"])
    async def later() -> int:
        return 1

    mine = asyncio.all_tasks()
    run = asyncio.create_task(engine.run_once("d"))
    mine.add(run)

    def cancel_all() -> None:
        for task in asyncio.all_tasks() - mine:
            task.cancel()

    for _ in range(20):  # also those that have not begun
        await asyncio.sleep(0)
        cancel_all()
    while statuses(engine.get_run_report(engine.list_runs()[0].run_id))["waits"] == "RUNNING":
        await asyncio.sleep(0)
        cancel_all()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert statuses(report)["waits"] == "FAILED"
    assert statuses(report)["sync"] == "SUCCESS"
    assert report["tasks"]["waits"]["reason"] == "ERROR"
    assert "CancelledError" in (report["tasks"]["waits"]["error"] or "")


async def test_coroutines_and_futures_are_awaited_and_other_awaitables_are_data(  # I3
    engine: Engine,
) -> None:
    class Ticket:
        def __await__(self) -> Any:
            raise AssertionError("nobody asked for this")
            yield

    class Counter:
        async def __call__(self) -> str:
            return "called"

    async def inner() -> str:
        return "inner"

    async def outer() -> object:
        return inner()

    def future() -> object:
        async def answer() -> str:
            return "answered"

        return answer()

    async def of_the_loop() -> object:
        made = asyncio.get_running_loop().create_future()
        made.set_result("from a future")
        return made

    async def ticket_of_async() -> Ticket:
        return Ticket()

    engine.task(name="ticket", dag="d")(Ticket)
    engine.task(name="ticket_of_async", dag="d")(ticket_of_async)
    engine.task(name="counter", dag="d")(Counter())
    engine.task(name="outer", dag="d")(outer)
    engine.task(name="coroutine", dag="d")(future)
    engine.task(name="future", dag="d")(of_the_loop)
    report = engine.get_run_report(await engine.run_once("d"))
    results = {name: task["result"] for name, task in report["tasks"].items()}
    assert isinstance(results.pop("ticket"), Ticket)
    assert isinstance(results.pop("ticket_of_async"), Ticket)
    assert results == {
        "counter": "called",
        "outer": "inner",
        "coroutine": "answered",
        "future": "from a future",
    }


async def test_function_whose_code_was_replaced_after_its_declaration(engine: Engine) -> None:
    class Ticket:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "served"

    async def takes(ticket: Any = None) -> Any:
        return ticket

    async def returns_a_number(ticket: Any = None) -> Any:
        return ticket

    async def demands(ticket: Any = None) -> Any:
        return ticket

    async def stops(ticket: Any = None) -> Any:
        return ticket

    for function in (takes, returns_a_number, demands, stops):
        engine.task(dag="d")(function)

    def gives(ticket: Any = None) -> Any:
        return ticket

    def five(ticket: Any = None) -> int:
        return 5

    def exhausted(ticket: Any = None) -> Any:
        raise StopIteration(ticket)

    # As the reloader of an interactive session does it, with functions that are in use.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python itself advises against it
        takes.__code__ = gives.__code__
        returns_a_number.__code__ = five.__code__
        stops.__code__ = exhausted.__code__
    takes.__defaults__ = (Ticket(),)
    demands.__defaults__ = None
    tasks = engine.get_run_report(await engine.run_once("d"))["tasks"]
    assert tasks["takes"]["result"] == "served"
    error = tasks["returns_a_number"]["error"] or ""
    # The words are the interpreter's, and differ between its releases.
    assert re.match(r"TypeError: .*\bint\b.*\bawait", error)
    assert "missing 1 required positional argument" in (tasks["demands"]["error"] or "")
    assert "StopIteration" in (tasks["stops"]["error"] or "")


def test_loop_that_is_closed_closes_what_is_suspended(make_engine: MakeEngine) -> None:
    engine = make_engine()
    closed: list[str] = []

    @engine.task(dag="d", timeout_s=None)
    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            closed.append("closed")
            raise

    async def begin() -> asyncio.Task[str]:
        run = asyncio.create_task(engine.run_once("d"))
        while not engine.list_runs() or not any(
            task["status"] == "RUNNING"
            for task in engine.get_run_report(engine.list_runs()[0].run_id)["tasks"].values()
        ):
            await asyncio.sleep(0)
        return run

    loop = asyncio.new_event_loop()
    run = loop.run_until_complete(begin())
    try:
        carriers = asyncio.all_tasks(loop) - {run}
        for carrier in carriers:
            coroutine: Any = carrier.get_coro()
            coroutine.close()
        assert closed == ["closed"]
    finally:
        run.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


async def test_coroutine_of_a_sync_task_is_cancelled_with_its_run(  # I3 R2
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_workers=1)
    blocked, behind = threading.Event(), threading.Event()
    ended: list[int] = []

    async def waits() -> None:
        await asyncio.Event().wait()
        ended.append(1)

    @engine.task(dag="d")
    def returns_awaitable() -> Any:
        assert blocked.wait(WAIT_S)
        return waits()

    @engine.task(dag="d")
    def queued_behind_it() -> None:
        behind.set()

    @engine.task(dag="d")
    async def blocks_the_loop() -> None:
        # The only worker thread has told the loop of the first task when it begins the second.
        blocked.set()
        assert behind.wait(WAIT_S)
        engine.cancel(current_attempt().run_id)

    with pytest.raises(asyncio.CancelledError):
        await engine.run_once("d")
    (run,) = engine.list_runs()
    report = engine.get_run_report(run.run_id)
    assert report["tasks"]["returns_awaitable"]["reason"] == "RUN_CANCELLED"
    assert not ended


async def test_awaitable_of_a_sync_task_that_does_not_stop_is_abandoned(  # I3 A3
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(config=SchedulerConfig(cancel_grace_s=0.01))
    release, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        ended.set()
        return "late"

    @engine.task(dag="d", timeout_s=0.01)
    def returns_awaitable() -> Any:
        return stubborn()

    report = engine.get_run_report(await engine.run_once("d"))
    task = report["tasks"]["returns_awaitable"]
    assert task["reason"] == "TIMEOUT"
    assert "abandoned" in (task["error"] or "")
    release.set()
    await asyncio.wait_for(ended.wait(), WAIT_S)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "ended after it was abandoned; its result is not recorded" in caplog.text
    again = engine.get_run_report(report["run_id"])["tasks"]["returns_awaitable"]
    assert again["result"] is None


async def test_awaitable_of_a_sync_task_without_a_timeout_has_all_its_time(  # A1 I3
    engine: Engine,
) -> None:
    async def served() -> str:
        await asyncio.sleep(0)
        return "served"

    @engine.task(dag="d", timeout_s=None)
    def returns_awaitable() -> Any:
        return served()

    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert report["tasks"]["returns_awaitable"]["result"] == "served"


async def test_async_partial_is_given_all_results(engine: Engine) -> None:
    async def total(upstream: dict[str, int], *, factor: int) -> int:
        await asyncio.sleep(0)
        return factor * sum(upstream.values())

    async def one() -> int:
        return 1

    engine.task(name="one", dag="d")(one)
    engine.task(name="total", dag="d", deps=["one"])(functools.partial(total, factor=3))
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert report["tasks"]["total"]["result"] == 3


def refusing(refuses: Callable[[logging.LogRecord], bool]) -> logging.Logger:
    """Return a logger that raises for the records that it refuses."""

    def passes(record: logging.LogRecord) -> bool:
        if refuses(record):
            msg = "no room in the log"
            raise OSError(msg)
        return True

    logger = logging.Logger("refusing", logging.DEBUG)
    logger.addFilter(passes)
    return logger


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("refused_later", ["traceback of task 'first'", "of DAG 'd' finished"])
async def test_launch_that_cannot_be_told_leaves_its_slot(  # R1 R3 R4
    make_engine: MakeEngine, tmp_path: Path, durable: bool, refused_later: str
) -> None:
    refused: list[str] = []

    def refuse(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        wanted = refused_later if refused else "first"
        is_it = record.levelno <= logging.INFO and wanted in text and len(refused) < 2
        if is_it:
            refused.append(text)
        return is_it

    store = SqliteStateStore(tmp_path / "runs.sqlite") if durable else None
    engine = make_engine(logger=refusing(refuse), max_parallel=1, state_store=store)
    engine.task(name="first", dag="d")(lambda: None)
    engine.task(name="behind", dag="d", deps=["first"])(lambda: None)
    engine.task(name="second", dag="other")(lambda: None)
    with pytest.raises(FlowrunError, match="no room in the log"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (broken,) = engine.list_runs()
    # That, or its failure, could not be told either.
    report = engine.get_run_report(broken.run_id)
    assert statuses(report)["first"] in ("FAILED", "SKIPPED")  # its thread may not have begun
    assert statuses(report)["behind"] == "SKIPPED"
    assert not broken.alive
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("other"), WAIT_S))
    assert report["status"] == "SUCCESS"
    await engine.aclose()
    if store is not None:
        store.close()


class NoMoreTimers(Clock):
    """A clock that sets no timer any more once it is told so."""

    broken = False

    def call_later(self, loop: Any, delay_s: float, callback: Callable[[], object]) -> Any:
        if self.broken:
            msg = "no timers"
            raise OSError(msg)
        return super().call_later(loop, delay_s, callback)


@pytest.mark.parametrize("durable", [False, True])
async def test_run_that_cannot_even_be_stopped_in_order_ends(  # R1 R4
    make_engine: MakeEngine, tmp_path: Path, durable: bool
) -> None:
    clock = NoMoreTimers()
    begun, stopped = threading.Event(), asyncio.Event()

    def refuse(record: logging.LogRecord) -> bool:
        return record.levelno == logging.DEBUG and "'first'" in record.getMessage()

    store = SqliteStateStore(tmp_path / "runs.sqlite") if durable else None
    config = SchedulerConfig(clock=clock)
    engine = make_engine(logger=refusing(refuse), max_parallel=2, state_store=store, config=config)

    @engine.task(dag="d", timeout_s=None)
    async def waits() -> None:
        clock.broken = True
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    engine.task(name="gate", dag="d", timeout_s=None)(lambda: begun.wait(WAIT_S))
    engine.task(name="first", dag="d", deps=["gate"], timeout_s=None)(lambda: None)
    engine.task(name="behind", dag="d", deps=["first"])(lambda: None)
    with pytest.raises(FlowrunError, match="no room in the log|no timers"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    await asyncio.wait_for(stopped.wait(), WAIT_S)
    clock.broken = False
    (broken,) = engine.list_runs()
    report = engine.get_run_report(broken.run_id)
    assert statuses(report)["first"] in ("FAILED", "SKIPPED")  # its thread may not have begun
    assert (statuses(report)["waits"], statuses(report)["behind"]) == ("FAILED", "SKIPPED")
    assert not broken.alive
    await engine.aclose()
    if store is not None:
        store.close()
