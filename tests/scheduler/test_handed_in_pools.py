"""Executors that are handed in: asked for every task, and shut down under a run."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from flowrun import Engine, RetryPolicy, SchedulerConfig
from flowrun.errors import FlowrunError, RunCancelledError
from flowrun.executors import WorkerThreads

from ..conftest import WAIT_S, statuses
from .test_sync_tasks import chain, most_at_once

MakeEngine = Callable[..., Engine]


async def test_executor_is_asked_for_every_task(make_engine: MakeEngine) -> None:
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
        await asyncio.sleep(0)  # what the thread has sent is read in the loop's next turn
    assert engine.get_run_report(run_id)["tasks"]["hangs"]["result"] is None
    assert "ended after it was abandoned" in caplog.text


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


async def test_pool_that_is_shut_down_under_a_run_fails_what_it_has_not_begun(
    make_engine: MakeEngine,
) -> None:  # R4
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
    assert found == {"first": "SUCCESS", "second": "FAILED", "third": "FAILED"}
    assert "ExecutorError" in (report["tasks"]["third"]["error"] or "")
    assert await most_at_once(engine) == 3


async def test_pool_that_is_shut_down_in_a_run_that_is_cancelled_leaves_its_slot_once(  # R3
    make_engine: MakeEngine,
) -> None:
    with WorkerThreads(1) as pool:
        engine = make_engine(executor=pool, max_parallel=2)
        begun, may_end = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        @engine.task(dag="d")
        def first() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert may_end.wait(WAIT_S)

        engine.task(name="second", dag="d")(lambda: None)
        run = asyncio.create_task(engine.run_once("d"))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        pool.shutdown(wait=False, cancel_futures=True)
        engine.cancel(engine.list_runs()[0].run_id)
        with pytest.raises(RunCancelledError):
            await asyncio.wait_for(run, WAIT_S)
        may_end.set()
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert not {"PENDING", "RUNNING"} & set(statuses(report).values())
    assert await most_at_once(engine) == 2


class Holding(Executor):
    """A pool that says that it runs a call, and runs it when it is told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.calls.append(fn)
        self.futures.append(future)
        return future


@pytest.mark.parametrize("ends_by", ["call", "future"])
async def test_call_that_was_given_up_before_it_began_never_runs_its_body(  # A2 A3
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, ends_by: str
) -> None:
    pool, ran = Holding(), list[int]()
    engine = make_engine(executor=pool)
    engine.task(name="a", dag="d", timeout_s=0.05)(lambda: ran.append(1))
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert engine.get_run_report(run_id)["tasks"]["a"]["reason"] == "TIMEOUT"
    if ends_by == "call":
        pool.calls[0]()
    else:
        pool.futures[0].set_result(None)
    await asyncio.sleep(0)
    assert "ended after it was abandoned" in caplog.text
    assert not ran


class Elsewhere(Executor):
    """A pool whose calls leave the process, as far as the engine can tell."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(pickle.loads(pickle.dumps(fn))())
        return future


async def test_jitter_that_raises_for_a_call_elsewhere_ends_the_run(  # R4
    make_engine: MakeEngine,
) -> None:
    def chance() -> float:
        raise ZeroDivisionError

    engine = make_engine(executor=Elsewhere(), config=SchedulerConfig(chance=chance))
    engine.task(name="a", dag="d", retries=RetryPolicy(1, delay_s=1, jitter=1))(divide_by_zero)
    with pytest.raises(FlowrunError, match="inside flowrun: ZeroDivisionError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    (summary,) = engine.list_runs()
    assert summary.finished_at is not None


def divide_by_zero() -> float:
    return 1 / 0
