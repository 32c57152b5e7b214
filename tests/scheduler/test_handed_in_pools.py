"""Executors that are handed in: asked for every task, and shut down under a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowrun import Engine
from flowrun.errors import RunCancelledError
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
