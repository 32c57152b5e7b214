"""Timeouts, abandonment, cancellation, deadlines and closing: A1-A4, R1, R2, R4."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    DagEndEvent,
    DagStartEvent,
    Engine,
    RetryPolicy,
    RunCancelledError,
    RunContext,
    RunHook,
    SchedulerConfig,
    SqliteStateStore,
    TaskStartEvent,
    build_default_engine,
    current_attempt,
    fn_hook,
)
from flowrun.errors import AttemptCancelledError, EngineClosedError, UnknownRunError

from ..conftest import WAIT_S, SkippingClock, flowrun_threads, statuses

MakeEngine = Callable[..., Engine]


async def started(engine: Engine, event: asyncio.Event, dag: str = "d") -> asyncio.Task[str]:
    """Start a run and wait until one of its tasks has set the event."""
    run = asyncio.create_task(engine.run_once(dag))
    await asyncio.wait_for(event.wait(), WAIT_S)
    return run


def until_told() -> None:
    """Be a sync task that goes on until it is told to stop."""
    while not current_attempt().cancelled:
        pass


# -- timeouts ---------------------------------------------------------------------------------


async def test_async_timeout_fails_the_attempt_and_says_how_to_change_it(engine: Engine) -> None:
    cleaned: list[bool] = []

    @engine.task(dag="d", timeout_s=0.02)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(current_attempt().cancelled)

    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["slow"]
    error = task["error"] or ""
    assert cleaned == [True]
    assert (task["status"], task["reason"], task["abandoned"]) == ("FAILED", "TIMEOUT", False)
    assert "task 'slow' of DAG 'd' timed out: attempt 1" in error
    assert "timeout_s=0.02" in error
    assert "timeout_s=None" in error
    assert "asyncio.Event().wait()" in error  # where it was


async def test_default_timeout_is_thirty_seconds(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: current_attempt().time_left_s)
    run_id = await engine.run_once("d")
    left = engine.get_run_report(run_id)["tasks"]["a"]["result"]
    assert isinstance(left, float)
    assert 29 < left <= 30


@pytest.mark.parametrize("is_async", [True, False])
async def test_timeout_error_of_the_task_itself_is_no_timeout(  # A4
    engine: Engine, is_async: bool
) -> None:
    def work() -> None:
        msg = "the database's own"
        raise TimeoutError(msg)

    async def work_async() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    engine.task(name="a", dag="d", timeout_s=20.0)(work_async if is_async else work)
    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert task["reason"] == "ERROR"
    assert "timed out: attempt" not in (task["error"] or "")


async def test_timed_out_async_task_is_retried_only_after_it_has_ended(
    engine: Engine,
) -> None:  # A2
    log: list[str] = []

    @engine.task(dag="d", timeout_s=0.02, retries=1)
    async def slow() -> str:
        attempt = current_attempt().attempt
        log.append(f"start {attempt}")
        if attempt == 2:
            return "second"
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            log.append("end 1")
        return "unreachable"

    run_id = await engine.run_once("d")
    assert log == ["start 1", "end 1", "start 2"]
    task = engine.get_run_report(run_id)["tasks"]["slow"]
    assert (task["status"], task["result"]) == ("SUCCESS", "second")
    assert task["attempts"][0]["reason"] == "TIMEOUT"


async def test_async_task_that_swallows_its_timeout_is_abandoned(make_engine: MakeEngine) -> None:
    engine = make_engine(config=SchedulerConfig(cancel_grace_s=0.02))
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return "late"

    engine.task(name="stubborn", dag="d", timeout_s=0.02)(stubborn)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["stubborn"]
    assert (task["status"], task["abandoned"], task["result"]) == ("FAILED", True, None)
    assert "was abandoned and may still run" in (task["error"] or "")
    release.set()
    await asyncio.sleep(0)
    assert engine.get_run_report(run_id)["tasks"]["stubborn"]["result"] is None  # A3


async def test_async_task_that_returns_after_its_timeout_has_timed_out(engine: Engine) -> None:
    @engine.task(dag="d", timeout_s=0.02)
    async def swallow() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"
        return "unreachable"

    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["swallow"]
    assert (task["status"], task["reason"], task["result"]) == ("FAILED", "TIMEOUT", None)


async def test_timed_out_sync_task_is_told_abandoned_and_its_late_result_dropped(  # A2 A3
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(max_workers=1)
    release, ended = threading.Event(), threading.Event()
    told: list[bool] = []

    @engine.task(dag="d", timeout_s=0.03)
    def hung() -> str:
        release.wait(WAIT_S)
        told.append(current_attempt().cancelled)
        ended.set()
        return "late"

    @engine.task(dag="d")
    def other() -> str:
        return "needs a thread"

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["hung"]
    assert (task["status"], task["reason"], task["abandoned"]) == ("FAILED", "TIMEOUT", True)
    assert engine.get_run_report(run_id)["tasks"]["other"]["status"] == "SUCCESS"
    with caplog.at_level(logging.WARNING):
        release.set()
        assert ended.wait(WAIT_S)
        for thread in flowrun_threads():
            if thread.name.startswith("flowrun-worker"):
                thread.join(0.01)
    engine.close()
    assert told == [True]
    assert engine.get_run_report(run_id)["tasks"]["hung"]["result"] is None
    assert "task 'hung' attempt 1 does not end; it is abandoned" in caplog.text


async def test_closing_warns_of_what_is_still_running(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    release = threading.Event()
    engine.task(name="hung", dag="d", timeout_s=0.02)(lambda: release.wait(WAIT_S))
    run_id = await engine.run_once("d")
    engine.close()  # A3: does not wait for it
    assert f"engine closed while task 'hung' of run '{run_id}', abandoned earlier" in caplog.text
    release.set()


async def test_clock_of_a_sync_attempt_starts_with_its_code(make_engine: MakeEngine) -> None:  # A1
    clock, launched = SkippingClock(), threading.Semaphore(0)
    engine = make_engine(
        max_workers=1,
        max_parallel=4,
        config=SchedulerConfig(clock=clock),
        hooks=[fn_hook(on_task_start=lambda event: launched.release())],
    )

    def work() -> float | None:
        if current_attempt().task_name == "t0":  # the others wait for the thread now
            for _ in range(4):
                assert launched.acquire(timeout=WAIT_S)
        left_s = current_attempt().time_left_s
        clock.skipped_s += 50
        return left_s

    for number in range(4):
        engine.task(name=f"t{number}", dag="d", timeout_s=90)(work)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert report["status"] == "SUCCESS"
    for number, task in enumerate(report["tasks"].values()):
        left_s = task["result"]
        assert isinstance(left_s, float)
        assert left_s > 60, number
    starts = [task["started_at"] or 0 for task in report["tasks"].values()]
    assert starts[3] - starts[0] >= 150


async def test_retry_waits_for_its_predecessor_and_runs_when_it_ends(
    make_engine: MakeEngine,
) -> None:  # A2
    engine = make_engine(max_workers=2)
    inside: list[int] = []
    most: list[int] = []

    @engine.task(dag="d", timeout_s=1.0, retries=1)
    def slow() -> str:
        attempt = current_attempt()
        inside.append(attempt.attempt)
        most.append(len(inside))
        try:
            if attempt.attempt == 1:
                while not attempt.cancelled:  # polls, and so stops soon after its timeout
                    pass
                return "late"
            return "second"
        finally:
            inside.remove(attempt.attempt)

    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["slow"]
    assert (task["status"], task["result"], task["attempt"]) == ("SUCCESS", "second", 2)
    assert task["attempts"][0]["abandoned"] is True
    assert most == [1, 1]


async def test_no_retry_beside_a_predecessor_that_does_not_end(engine: Engine) -> None:  # A2
    release = threading.Event()
    calls: list[int] = []

    @engine.task(dag="d", timeout_s=0.03, retries=5)
    def hung() -> None:
        calls.append(1)
        release.wait(WAIT_S)

    engine.task(name="after", dag="d", deps=["hung"])(lambda: None)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    release.set()
    report = engine.get_run_report(run_id)
    assert calls == [1]
    assert statuses(report) == {"hung": "FAILED", "after": "SKIPPED"}
    assert report["tasks"]["hung"]["attempt"] == 1
    assert "Not retried: the timed-out attempt was still running" in (
        report["tasks"]["hung"]["error"] or ""
    )
    assert "ProcessPerAttemptExecutor" in (report["tasks"]["hung"]["error"] or "")


async def test_async_task_that_is_not_retried_is_told_what_to_do_with_its_cancellation(  # A2
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(config=SchedulerConfig(cancel_grace_s=0.02))
    release = asyncio.Event()

    @engine.task(dag="d", timeout_s=0.02, retries=1)
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    error = engine.get_run_report(run_id)["tasks"]["stubborn"]["error"] or ""
    release.set()
    assert "Not retried: the timed-out attempt was still running" in error
    assert error.endswith("Let the task go on with the CancelledError that it gets.")


async def test_sync_task_that_polls_stops_in_time(engine: Engine) -> None:
    stopped = threading.Event()

    @engine.task(dag="d", timeout_s=0.03)
    def polite() -> None:
        try:
            while True:
                current_attempt().raise_if_cancelled()
        except AttemptCancelledError as error:
            assert "timed out after 0.03 s" in str(error)
            stopped.set()
            raise

    run_id = await engine.run_once("d")
    assert stopped.wait(WAIT_S)
    assert engine.get_run_report(run_id)["tasks"]["polite"]["reason"] == "TIMEOUT"


async def test_hundred_hung_tasks_end_within_their_timeouts(make_engine: MakeEngine) -> None:  # A3
    engine = make_engine(max_workers=4, max_parallel=4)
    release = threading.Event()
    for number in range(100):
        engine.task(name=f"t{number}", dag="d", timeout_s=0.02)(lambda: release.wait(WAIT_S))
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert set(statuses(report).values()) == {"FAILED"}
    assert all(task["abandoned"] for task in report["tasks"].values())
    engine.close()
    release.set()


async def test_awaitable_of_a_sync_task_counts_against_the_same_timeout(engine: Engine) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    engine.task(name="a", dag="d", timeout_s=0.05)(lambda: forever())
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert engine.get_run_report(run_id)["tasks"]["a"]["reason"] == "TIMEOUT"


# -- cancelling -------------------------------------------------------------------------------


def declare_waiting(engine: Engine, begun: asyncio.Event, ended: list[str]) -> None:
    @engine.task(dag="d")
    def first() -> int:
        return 1

    @engine.task(dag="d", deps=[first])
    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    @engine.task(dag="d", deps=[waits])
    def never() -> None:
        ended.append("must not run")


def assert_cancelled(engine: Engine, run_id: str) -> None:
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"first": "SUCCESS", "waits": "FAILED", "never": "SKIPPED"}
    assert report["status"] == "FAILED"
    assert report["finished_at"] is not None
    assert report["tasks"]["waits"]["reason"] == "RUN_CANCELLED"
    assert report["tasks"]["never"]["reason"] == "RUN_CANCELLED"
    assert "RUN_CANCELLED" in (report["error"] or "")


async def test_cancelling_the_awaiting_task(make_engine: MakeEngine) -> None:  # R1 R2
    events: list[str] = []
    hook = fn_hook(
        on_task_failure=lambda e: events.append(f"failure {e.task_name} {e.reason}"),
        on_task_skip=lambda e: events.append(f"skip {e.task_name} {e.reason}"),
        on_dag_end=lambda e: events.append(f"end {e.status}"),
    )
    engine = make_engine(hooks=[hook])
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    tasks_before = asyncio.all_tasks()
    run = await started(engine, begun)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended == ["cleaned up"]
    assert events == ["failure waits RUN_CANCELLED", "skip never RUN_CANCELLED", "end FAILED"]
    assert asyncio.all_tasks() == tasks_before
    assert_cancelled(engine, engine.list_runs()[0].run_id)


async def test_cancelling_twice_still_ends_the_run(engine: Engine) -> None:  # R2
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    run = await started(engine, begun)
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ended == ["cleaned up"]
    assert_cancelled(engine, engine.list_runs()[0].run_id)


@pytest.mark.parametrize("from_thread", [True, False])
async def test_engine_cancel_from_anywhere(engine: Engine, from_thread: bool) -> None:  # R2
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    run = await started(engine, begun)
    (summary,) = engine.list_runs()
    assert summary.alive
    if from_thread:
        assert await asyncio.to_thread(engine.cancel, summary.run_id)
    else:
        assert engine.cancel(summary.run_id)
    with pytest.raises(asyncio.CancelledError) as caught:
        await run
    assert isinstance(caught.value, RunCancelledError)
    assert caught.value.run_id == summary.run_id
    assert_cancelled(engine, summary.run_id)
    assert engine.cancel(summary.run_id) is False


async def test_engine_cancel_twice_in_a_row(engine: Engine) -> None:  # R2
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    run = await started(engine, begun)
    (summary,) = engine.list_runs()
    assert engine.cancel(summary.run_id)
    assert engine.cancel(summary.run_id)
    with pytest.raises(RunCancelledError):
        await run
    assert_cancelled(engine, summary.run_id)


async def test_sync_task_that_returns_an_awaitable_too_late(make_engine: MakeEngine) -> None:
    engine = make_engine(config=SchedulerConfig(thread_grace_s=WAIT_S))
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    awaited: list[int] = []

    async def later() -> None:
        awaited.append(1)

    @engine.task(dag="d")
    def polite() -> object:
        loop.call_soon_threadsafe(begun.set)
        until_told()
        return later()

    run = await started(engine, begun)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert awaited == []


async def test_cancelling_a_run_that_is_unknown(engine: Engine) -> None:
    with pytest.raises(UnknownRunError):
        engine.cancel("nope")


async def test_cancelling_before_the_first_task(engine: Engine) -> None:  # R2
    ran: list[str] = []

    @engine.task(dag="d")
    async def a() -> None:
        await asyncio.sleep(0)
        ran.append("a")

    run = asyncio.create_task(engine.run_once("d"))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert ran == []
    assert engine.list_runs() == []


async def test_hook_that_cancels_the_run_at_its_start(make_engine: MakeEngine) -> None:  # R2
    engines: list[Engine] = []
    hook = fn_hook(on_dag_start=lambda event: engines[0].cancel(event.run_id))
    engine = make_engine(hooks=[hook])
    engines.append(engine)

    @engine.task(dag="d")
    async def a() -> None:
        await asyncio.Event().wait()

    engine.task(name="b", dag="d", deps=[a])(lambda: None)
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    run_id = engine.list_runs()[0].run_id
    assert set(statuses(engine.get_run_report(run_id)).values()) <= {"FAILED", "SKIPPED"}


async def test_cancelling_while_a_hook_is_busy(make_engine: MakeEngine) -> None:  # R1 R2
    inside, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    called: list[str] = []

    def busy(event: Any) -> None:
        loop.call_soon_threadsafe(inside.set)
        release.wait(WAIT_S)
        called.append(event.task_name)

    engine = make_engine(hooks=[fn_hook(on_task_success=busy)])
    engine.task(name="a", dag="d")(lambda: 1)
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(inside.wait(), WAIT_S)
    run.cancel()
    await asyncio.sleep(0)
    assert not run.done()  # R1: not before every hook has been called
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert called == ["a"]
    assert engine.list_runs()[0].status == "SUCCESS"


async def test_cancelling_during_the_wait_for_a_retry(make_engine: MakeEngine) -> None:  # R2
    retrying = asyncio.Event()
    loop = asyncio.get_running_loop()
    engine = make_engine(
        hooks=[fn_hook(on_task_retry=lambda event: loop.call_soon_threadsafe(retrying.set))]
    )

    @engine.task(dag="d", retries=RetryPolicy(1, delay_s=WAIT_S * 10, max_delay_s=WAIT_S * 10))
    def flaky() -> None:
        raise ValueError

    run = await started(engine, retrying)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["flaky"]
    assert (task["status"], task["reason"]) == ("SKIPPED", "RUN_CANCELLED")
    assert "ValueError" in (task["attempts"][0]["error"] or "")


async def test_cancelling_while_a_retry_waits_for_its_predecessor(make_engine: MakeEngine) -> None:
    engine = make_engine(config=SchedulerConfig(thread_grace_s=0.01))
    release = threading.Event()

    @engine.task(dag="d", timeout_s=1.0, retries=1)
    def hung() -> None:
        release.wait(WAIT_S)

    abandoned = asyncio.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "abandoned" in record.getMessage():
                abandoned.set()

    watch = Watch()
    logging.getLogger("flowrun.scheduler").addHandler(watch)
    try:
        run = await started(engine, abandoned)
    finally:
        logging.getLogger("flowrun.scheduler").removeHandler(watch)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    release.set()
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["hung"]
    assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")


async def test_cancelled_run_tells_sync_tasks_and_does_not_wait_for_deaf_ones(  # R2
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(config=SchedulerConfig(thread_grace_s=0.02), max_workers=3)
    begun, release = threading.Barrier(4), threading.Event()
    polite_ended: list[bool] = []

    @engine.task(dag="d", timeout_s=None)
    def deaf() -> None:
        begun.wait(WAIT_S)
        release.wait(WAIT_S)

    @engine.task(dag="d", timeout_s=None)
    def polite() -> None:
        begun.wait(WAIT_S)
        while not current_attempt().cancelled:
            pass
        polite_ended.append(True)

    @engine.task(dag="d", timeout_s=None)
    def also_deaf() -> None:
        begun.wait(WAIT_S)
        release.wait(WAIT_S)

    engine.task(name="queued", dag="d", timeout_s=None)(lambda: None)
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.to_thread(begun.wait, WAIT_S)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    tasks = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]
    release.set()
    assert {name: (task["status"], task["abandoned"]) for name, task in tasks.items()} == {
        "deaf": ("FAILED", True),
        "polite": ("FAILED", False),
        "also_deaf": ("FAILED", True),
        "queued": ("SKIPPED", False),
    }
    assert polite_ended == [True]


@pytest.mark.parametrize("where", ["own threads", "executor"])
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_what_waits_for_a_thread_when_its_run_is_stopped_has_not_started(  # R2
    make_engine: MakeEngine, tmp_path: Path, where: str, durable: bool, how: str
) -> None:
    began, told = list[str](), list[tuple[str, str]]()
    running = threading.Event()

    def runs(name: str) -> None:
        began.append(name)
        running.set()
        until_told()

    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"max_workers": 1}
        if where == "executor":
            options = {"executor": stack.enter_context(ThreadPoolExecutor(1))}
        if durable:
            options["state_store"] = stack.enter_context(
                contextlib.closing(SqliteStateStore(tmp_path / "runs.db"))
            )
        hook = fn_hook(
            on_task_start=lambda event: told.append(("start", event.task_name)),
            on_task_failure=lambda event: told.append(("failure", event.task_name)),
            on_task_skip=lambda event: told.append(("skip", event.task_name)),
        )
        engine = make_engine(hooks=[hook], max_parallel=3, **options)
        for name in ("a", "b", "c", "d"):
            engine.task(name=name, dag="d", timeout_s=None)(partial(runs, name))
        deadline = 0.2 if how == "deadline" else None
        run = asyncio.create_task(engine.run_once("d", timeout_s=deadline))
        assert await asyncio.to_thread(running.wait, WAIT_S)
        if how == "cancel":
            run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(run, WAIT_S)
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        engine.close()
    reason = "RUN_CANCELLED" if how == "cancel" else "RUN_TIMED_OUT"
    assert began == ["a"]
    assert {task["reason"] for task in report["tasks"].values()} == {reason}
    shown = {
        name: (task["status"], task["attempt"], task["started_at"] is None, task["attempts"] == [])
        for name, task in report["tasks"].items()
    }
    assert shown.pop("a") == ("FAILED", 1, False, False)
    assert shown == dict.fromkeys("bcd", ("SKIPPED", 0, True, True))
    assert told[3:] == [("failure", "a"), ("skip", "b"), ("skip", "c"), ("skip", "d")]


async def test_retry_that_waits_for_a_thread_when_its_run_is_cancelled_has_not_started(  # R2 A6
    make_engine: MakeEngine,
) -> None:
    loop, retries = asyncio.get_running_loop(), asyncio.Event()

    def launched(event: TaskStartEvent) -> None:
        if (event.task_name, event.attempt) == ("fails", 2):
            loop.call_soon_threadsafe(retries.set)

    engine = make_engine(max_workers=1, max_parallel=2, hooks=[fn_hook(on_task_start=launched)])

    @engine.task(dag="d", retries=RetryPolicy(1, delay_s=0.05))
    def fails() -> None:
        raise ValueError

    engine.task(name="holds", dag="d", timeout_s=None)(until_told)

    run = await started(engine, retries)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    tasks = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]
    task = tasks["fails"]
    assert tasks["holds"]["status"] == "FAILED"
    assert (task["status"], task["reason"], task["attempt"]) == ("SKIPPED", "RUN_CANCELLED", 1)
    assert [attempt["reason"] for attempt in task["attempts"]] == ["ERROR"]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_run_that_a_sync_task_started_ends_with_it(  # R2
    make_engine: MakeEngine, how: str
) -> None:
    engine = make_engine(config=SchedulerConfig(thread_grace_s=WAIT_S))
    began, left = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @engine.task(dag="inner")
    async def waits() -> None:
        loop.call_soon_threadsafe(began.set)
        await asyncio.Event().wait()

    @engine.task(dag="inner", deps=[waits])
    def never() -> None:
        pass

    @engine.task(dag="outer", timeout_s=1.5 if how == "timeout" else None)
    def calls() -> None:
        try:
            asyncio.run(engine.run_once("inner"))
        finally:
            left.set()

    run = asyncio.create_task(engine.run_once("outer"))
    await asyncio.wait_for(began.wait(), WAIT_S)
    if how == "cancel":
        run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    assert await asyncio.to_thread(left.wait, WAIT_S)
    (inner,) = engine.list_runs("inner")
    report = engine.get_run_report(inner.run_id)
    assert statuses(report) == {"waits": "FAILED", "never": "SKIPPED"}
    assert report["error"] == "RUN_CANCELLED: the task 'calls' that started it was told to stop"


async def test_run_that_a_task_has_shielded_goes_on_when_the_task_is_cancelled(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    begun, go_on = asyncio.Event(), asyncio.Event()
    inner: list[asyncio.Task[str]] = []

    @engine.task(dag="inner")
    async def waits() -> None:
        begun.set()
        await go_on.wait()

    @engine.task(dag="outer")
    async def calls() -> None:
        inner.append(asyncio.create_task(engine.run_once("inner")))
        await asyncio.shield(inner[0])

    run = await started(engine, begun, "outer")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    go_on.set()
    report = engine.get_run_report(await asyncio.wait_for(inner[0], WAIT_S))
    assert statuses(report) == {"waits": "SUCCESS"}


async def test_task_that_swallows_cancellation_is_waited_for_and_reported(  # R2
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(config=SchedulerConfig(cancel_grace_s=0.02))
    begun, release = asyncio.Event(), asyncio.Event()

    @engine.task(dag="d")
    async def stubborn() -> None:
        begun.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    run = await started(engine, begun)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["stubborn"]
    assert (task["status"], task["reason"], task["abandoned"]) == ("FAILED", "RUN_CANCELLED", True)
    release.set()
    while "ended after it was abandoned" not in caplog.text:
        await asyncio.sleep(0)


async def test_cancel_between_timeout_and_cleanup(make_engine: MakeEngine) -> None:
    engine = make_engine()
    cleaning, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(dag="d", timeout_s=0.02)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go_on.wait()

    run = await started(engine, cleaning)
    run.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["slow"]
    assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")


async def test_cancelling_works_with_asyncio_timeout_around_it(engine: Engine) -> None:
    @engine.task(dag="d")
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await engine.run_once("d")
    assert engine.list_runs()[0].status == "FAILED"


# -- a run's own deadline ---------------------------------------------------------------------


async def test_run_that_takes_too_long_is_stopped_and_says_so(engine: Engine) -> None:
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    run_id = await engine.run_once("d", timeout_s=2)
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"first": "SUCCESS", "waits": "FAILED", "never": "SKIPPED"}
    assert report["tasks"]["waits"]["reason"] == "RUN_TIMED_OUT"
    assert report["tasks"]["never"]["reason"] == "RUN_TIMED_OUT"
    assert "timeout_s=2" in (report["error"] or "")
    assert ended == ["cleaned up"]
    again = await engine.resume(run_id, timeout_s=0.05)
    assert engine.get_run_report(again)["status"] == "FAILED"
    part = await engine.run_subgraph("d", ["waits"], timeout_s=0.05)
    assert engine.get_run_report(part)["tasks"]["waits"]["reason"] == "RUN_TIMED_OUT"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (float("nan"), ValueError),
        ("1", TypeError),
        (True, TypeError),
    ],
)
async def test_wrong_deadline_is_refused(
    engine: Engine, wrong: Any, error: type[Exception]
) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    with pytest.raises(error, match="DAG 'd': timeout_s must be"):
        await engine.run_once("d", timeout_s=wrong)


# -- closing while runs are alive -------------------------------------------------------------


async def test_leaving_async_with_cancels_runs_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    begun, ended = asyncio.Event(), list[str]()
    async with build_default_engine() as engine:
        declare_waiting(engine, begun, ended)
        run = await started(engine, begun)
    assert ended == ["cleaned up"]
    assert_cancelled(engine, engine.list_runs()[0].run_id)
    with pytest.raises(RunCancelledError, match="the engine was closed"):
        await run


def test_close_from_another_thread_waits_for_the_runs(make_engine: MakeEngine) -> None:
    engine = make_engine()
    begun = threading.Event()
    raised: list[BaseException] = []

    @engine.task(dag="d")
    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    def run() -> None:
        try:
            asyncio.run(engine.run_once("d"))
        except asyncio.CancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(WAIT_S)
    engine.close()
    assert engine.list_runs()[0].finished_at is not None
    thread.join(WAIT_S)
    assert len(raised) == 1


async def test_close_on_the_runs_own_loop_ends_it_as_the_loop_goes_on(engine: Engine) -> None:
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    run = await started(engine, begun)
    engine.close()
    with pytest.raises(EngineClosedError):
        await engine.run_once("d")
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(run, WAIT_S)
    assert_cancelled(engine, engine.list_runs()[0].run_id)


async def test_nothing_is_left_after_all_this() -> None:
    threads = flowrun_threads()
    tasks = asyncio.all_tasks()
    engine = build_default_engine(
        hooks=[fn_hook(on_dag_end=lambda event: None)],
        config=SchedulerConfig(thread_grace_s=0.01, cancel_grace_s=0.01),
    )
    begun, ended = asyncio.Event(), list[str]()
    declare_waiting(engine, begun, ended)
    engine.task(name="slow", dag="d", timeout_s=0.01)(asyncio.Event().wait)
    run = await started(engine, begun)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await engine.aclose()
    gc.collect()
    assert flowrun_threads() == threads
    assert asyncio.all_tasks() == tasks


async def test_slot_that_is_granted_to_a_run_that_has_just_ended_is_passed_on(  # R2 R3
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=1)
    waiting: list[str] = []

    @engine.task(dag="holder")
    async def hold() -> None:
        while not waiting or engine.list_runs(dag_name="waiter")[0].status != "RUNNING":
            await asyncio.sleep(0)
            waiting[:] = [each.run_id for each in engine.list_runs(dag_name="waiter")]
        await asyncio.sleep(0)
        engine.cancel(waiting[0])  # it hears of this, and then that it has the slot

    engine.task(name="never", dag="waiter")(hold)
    engine.task(name="after", dag="third")(lambda: None)
    holder = asyncio.create_task(engine.run_once("holder"))
    waiter = asyncio.create_task(engine.run_once("waiter"))
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(waiter, WAIT_S)
    await asyncio.wait_for(holder, WAIT_S)
    await asyncio.wait_for(engine.run_once("third"), WAIT_S)


async def test_run_that_waits_for_one_more_slot_goes_on_in_the_one_it_has(  # R3
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=2)
    may_end = asyncio.Event()
    engine.task(name="hold", dag="holder", timeout_s=None)(may_end.wait)
    holder = asyncio.create_task(engine.run_once("holder"))

    async def work() -> None:
        await asyncio.sleep(0)

    for number in range(20):
        engine.task(name=f"t{number}", dag="d")(work)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    may_end.set()
    await holder
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


# -- what was found to hang, or to be kept -------------------------------------------------------


@pytest.mark.parametrize("known", ["name", "kept"])
async def test_run_that_is_cancelled_in_the_turn_in_which_a_success_is_to_be_saved_ends(  # R4
    make_engine: MakeEngine, tmp_path: Path, known: str
) -> None:
    begun, ends = asyncio.Event(), asyncio.Event()
    kept: list[object] = []
    with contextlib.closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store, max_parallel=1)

        @engine.task(dag="d")
        async def waits() -> int:
            task = asyncio.current_task()
            assert task is not None
            # Nothing follows in its asyncio task, so that the success waits for the loop's turn.
            if known == "name":
                task.set_name("waits")
            else:
                kept.append(task)
            begun.set()
            await ends.wait()
            return 1

        @engine.task(dag="d")
        async def after() -> None:
            await asyncio.Event().wait()

        cancels: list[asyncio.Task[str]] = []

        async def watch() -> None:
            await ends.wait()
            cancels[0].cancel()

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)  # it waits first, so that it goes on first
        cancels.append(asyncio.create_task(engine.run_once("d")))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        ends.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(cancels[0], WAIT_S)
        await watcher
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        engine.close()
    # The slot is free when the code has ended, so that the other task may have begun.
    assert report["tasks"]["waits"]["status"] == "SUCCESS"
    assert report["tasks"]["after"]["status"] in ("SKIPPED", "FAILED")
    assert report["tasks"]["after"]["reason"] == "RUN_CANCELLED"


INTERRUPTED_LOOP = """
    import asyncio, signal, sys, threading
    from flowrun import SqliteStateStore, build_default_engine

    signal.signal(signal.SIGINT, signal.default_int_handler)
    store = SqliteStateStore(sys.argv[1]) if len(sys.argv) > 1 else None
    engine = build_default_engine(state_store=store)

    @engine.task(dag="d")
    def first():
        return 1

    @engine.task(dag="d", deps=[first])
    async def waits():
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(engine.run_once("d"))
    except KeyboardInterrupt:
        pass
    loop.call_later(0.2, loop.stop)
    @engine.task(dag="e")
    async def goes_on():
        await asyncio.Event().wait()
    task = loop.create_task(engine.run_once("e"))
    loop.run_forever()
    began = __import__("time").monotonic()
    engine.close()
    print("closed", __import__("time").monotonic() - began < 10, flush=True)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_interpreter_ends_though_the_loop_of_a_run_stands_still(  # A3
    tmp_path: Path, durable: bool
) -> None:
    path = [str(tmp_path / "runs.db")] if durable else []
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED_LOOP), *path],
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
        check=False,
    )
    assert done.stdout == "closed True\n", done.stderr
    assert done.returncode == 0


async def test_hooks_of_many_runs_may_start_runs_of_their_own(
    make_engine: MakeEngine,
) -> None:  # R1
    ended: list[str] = []

    class Starts(RunHook):
        def on_dag_start(self, event: DagStartEvent) -> None:
            if event.dag_name == "outer":
                asyncio.run(engine.run_once("inner"))

        def on_dag_end(self, event: DagEndEvent) -> None:
            ended.append(event.dag_name)

    engine = make_engine(hooks=[Starts()], config=SchedulerConfig(hook_timeout_s=WAIT_S))
    engine.task(name="a", dag="outer")(lambda: 1)
    engine.task(name="b", dag="inner")(lambda: 1)
    async with asyncio.timeout(WAIT_S):  # the hooks have 32 threads
        await asyncio.gather(*[engine.run_once("outer") for _ in range(50)])
    assert sorted(ended) == ["inner"] * 50 + ["outer"] * 50


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_run_that_has_succeeded_when_it_is_to_be_stopped_was_not_ended_by_that(
    make_engine: MakeEngine, tmp_path: Path, how: str
) -> None:
    saving, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow(SqliteStateStore):
        def save(self, changes: Sequence[Change]) -> None:
            if any(task is not None and task.status == "SUCCESS" for _, task in changes):
                loop.call_soon_threadsafe(saving.set)
                assert go_on.wait(WAIT_S)
            super().save(changes)

    with contextlib.closing(Slow(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store)
        engine.task(name="a", dag="d")(lambda: 1)
        run = asyncio.create_task(
            engine.run_once("d", timeout_s=0.05 if how == "deadline" else None)
        )
        await asyncio.wait_for(saving.wait(), WAIT_S)
        run_id = engine.list_runs()[0].run_id
        if how == "cancel":
            engine.cancel(run_id)
        else:
            await asyncio.to_thread(threading.Event().wait, 0.1)  # its time is to be up
        go_on.set()
        with contextlib.suppress(RunCancelledError):
            await asyncio.wait_for(run, WAIT_S)
        report = engine.get_run_report(run_id)
        engine.close()
    assert (report["status"], report["error"]) == ("SUCCESS", None)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_run_that_was_stopped_is_let_go_of_at_once(  # I2
    make_engine: MakeEngine, how: str
) -> None:
    class Big:
        """Something that one would like to be rid of."""

    engine = make_engine(config=SchedulerConfig(cancel_grace_s=WAIT_S, thread_grace_s=WAIT_S))
    begun = asyncio.Event()

    @engine.task(dag="d", timeout_s=0.02 if how == "timeout" else None)
    async def waits(context: RunContext[Big]) -> None:
        begun.set()
        await asyncio.Event().wait()

    big = Big()
    known = weakref.ref(big)
    run = asyncio.create_task(engine.run_once("d", RunContext(big)))
    del big
    await asyncio.wait_for(begun.wait(), WAIT_S)
    if how == "cancel":
        run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    del run
    engine.prune_runs(keep_last=0)
    await asyncio.sleep(0)
    gc.collect()
    assert known() is None


async def test_resume_beside_code_that_was_abandoned_is_told(  # A2
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    release, calls = threading.Event(), list[int]()

    @engine.task(dag="d", timeout_s=0.02)
    def hangs_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            release.wait(WAIT_S)

    engine.task(name="hangs", dag="e", timeout_s=0.02)(lambda: release.wait(WAIT_S))
    run_id = await engine.run_once("d")
    await engine.run_once("e")
    resumed = await asyncio.wait_for(engine.resume(run_id), WAIT_S)
    release.set()
    assert statuses(engine.get_run_report(resumed)) == {"hangs_once": "SUCCESS"}
    (told,) = [message for message in caplog.messages if "beside the run" in message]
    assert told == (
        f"task 'hangs_once' of run '{run_id}' was abandoned and still runs, beside the run that"
        " resumes it"
    )
