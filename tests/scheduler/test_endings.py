"""A run ends, and gives its slots back, whatever comes in between: Ctrl-C, futures and logs that raise (R1-R5)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    DagEndEvent,
    DagStartEvent,
    Engine,
    FlowrunError,
    RetryPolicy,
    SchedulerConfig,
    SqliteStateStore,
    fn_hook,
)
from flowrun.errors import StoreFullError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


# -- what is told to stop raises ------------------------------------------------------------------


class Stubborn(asyncio.Future[None]):
    """A future that nobody can cancel."""

    def cancel(self, msg: Any = None) -> bool:
        raise OSError("cannot be cancelled")


@pytest.mark.parametrize("how", ["cancel", "engine", "deadline", "timeout"])
async def test_future_that_cannot_be_cancelled_keeps_nothing_else_from_being_stopped(  # R1 R2
    make_engine: MakeEngine, how: str
) -> None:
    config = SchedulerConfig(cancel_grace_s=0.02, thread_grace_s=0.02)
    engine = make_engine(max_parallel=2, config=config)
    begun, stopped = asyncio.Event(), asyncio.Event()
    awaited = Stubborn()

    @engine.task(dag="d", timeout_s=0.05 if how == "timeout" else None)
    async def a() -> None:
        await awaited

    @engine.task(dag="d")
    async def b() -> None:
        begun.set()
        if how == "timeout":
            return
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    deadline = 0.05 if how == "deadline" else None
    run = asyncio.create_task(engine.run_once("d", timeout_s=deadline))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    if how == "cancel":
        run.cancel()
    elif how == "engine":
        engine.cancel(engine.list_runs()[0].run_id)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    assert stopped.is_set() == (how != "timeout")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert report["tasks"]["a"]["status"] == "FAILED"
    assert report["tasks"]["a"]["abandoned"]
    assert report["tasks"]["b"]["status"] == ("SUCCESS" if how == "timeout" else "FAILED")
    engine.task(name="c", dag="next")(lambda: 1)
    next_run = await asyncio.wait_for(engine.run_once("next"), WAIT_S)
    assert statuses(engine.get_run_report(next_run)) == {"c": "SUCCESS"}
    awaited.set_result(None)
    await asyncio.sleep(0)


def log_that_refuses(name: str, part: str) -> tuple[logging.Logger, list[str]]:
    """Return a logger that raises on lines with a part in them, and those lines."""
    log = logging.getLogger(f"{__name__}.{name}")
    log.propagate = False
    log.addHandler(logging.NullHandler())
    refused: list[str] = []

    def refuses(record: logging.LogRecord) -> bool:
        if part in record.getMessage():
            refused.append(record.getMessage())
            raise OSError("no room for the log")
        return True

    log.addFilter(refuses)
    return log, refused


@pytest.mark.parametrize("how", ["cancel", "engine"])
async def test_log_that_raises_while_a_run_is_stopped_keeps_nothing_from_being_stopped(  # R4
    make_engine: MakeEngine, how: str
) -> None:
    log, refused = log_that_refuses(how, "timed out")
    engine = make_engine(logger=log)
    release, stopped = threading.Event(), asyncio.Event()

    @engine.task(dag="d", timeout_s=0.3, retries=1)
    def a() -> None:
        release.wait(WAIT_S)

    @engine.task(dag="d")
    async def b() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    run = asyncio.create_task(engine.run_once("d"))
    async with asyncio.timeout(WAIT_S):
        while True:  # until it was given up: now its retry waits for the thread to end
            runs = engine.list_runs()
            if runs and engine.get_run_report(runs[0].run_id)["tasks"]["a"]["abandoned"]:
                break
            await asyncio.sleep(0.001)
    if how == "cancel":
        run.cancel()
    else:
        engine.cancel(engine.list_runs()[0].run_id)
    with contextlib.suppress(asyncio.CancelledError, FlowrunError):  # it says what went wrong
        await asyncio.wait_for(run, WAIT_S)
    release.set()
    assert refused
    assert stopped.is_set()
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"a": "FAILED", "b": "FAILED"}


async def test_run_that_is_cancelled_as_it_completes_ends_as_a_cancelled_one(  # R1
    make_engine: MakeEngine,
) -> None:
    loop = asyncio.get_running_loop()

    def cancels(_: object) -> None:
        loop.call_soon_threadsafe(run.cancel)

    engine = make_engine(hooks=[fn_hook(on_dag_end=cancels)])
    engine.task(name="a", dag="d")(lambda: 1)
    run = asyncio.create_task(engine.run_once("d"))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    (summary,) = engine.list_runs()
    assert (summary.status, summary.error, summary.alive) == ("SUCCESS", None, False)


async def test_log_that_raises_as_refused_successes_are_told_keeps_no_task_running(  # R4
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    class Full(SqliteStateStore):
        def save(self, changes: Sequence[Change]) -> None:
            raise StoreFullError("the disk is full")

    log, refused = log_that_refuses("saving", "could not be saved")
    with closing(Full(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store, logger=log)
        for name in "abc":

            @engine.task(name=name, dag="d")
            async def at_once() -> int:
                return 1

        with pytest.raises(FlowrunError, match="the disk is full"):
            await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        report = engine.get_run_report(engine.list_runs()[0].run_id)  # which is still owed
        engine.close()
    assert refused
    assert statuses(report) == dict.fromkeys("abc", "FAILED")


# -- hooks, and runs inside tasks -----------------------------------------------------------------


async def test_hooks_that_hang_in_other_runs_keep_no_run_from_ending(  # R4 R5
    make_engine: MakeEngine,
) -> None:
    release, hanging = threading.Event(), threading.Semaphore(0)
    told: list[str] = []

    def hangs(event: DagStartEvent) -> None:
        if event.dag_name == "long":
            hanging.release()
            release.wait(WAIT_S)
        else:
            told.append(event.dag_name)

    config = SchedulerConfig(hook_timeout_s=1)
    engine = make_engine(max_parallel=100, hooks=[fn_hook(on_dag_start=hangs)], config=config)

    @engine.task(dag="long", timeout_s=None)
    async def waits() -> None:
        await asyncio.Event().wait()

    engine.task(name="a", dag="short")(lambda: 1)
    long = [asyncio.create_task(engine.run_once("long")) for _ in range(32)]

    def all_hang() -> bool:
        return all(hanging.acquire(timeout=WAIT_S) for _ in long)

    assert await asyncio.to_thread(all_hang)
    await asyncio.wait_for(engine.run_once("short"), WAIT_S / 2)
    assert told == ["short"]
    for run in long:
        run.cancel()
    release.set()
    await asyncio.wait(long, timeout=WAIT_S)


async def test_run_that_a_sync_task_has_sent_to_the_same_loop_ends_with_it(  # R2
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(config=SchedulerConfig(thread_grace_s=WAIT_S))
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    @engine.task(dag="outer", timeout_s=None)
    def sends() -> str:
        return asyncio.run_coroutine_threadsafe(engine.run_once("inner"), loop).result(WAIT_S)

    @engine.task(dag="inner")
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(engine.run_once("outer"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    (inner,) = engine.list_runs("inner")
    assert (inner.status, inner.alive) == ("FAILED", False)
    assert inner.error == "RUN_CANCELLED: the task 'sends' that started it was told to stop"


async def test_task_factory_that_takes_no_context_makes_the_task_of_a_returned_coroutine(  # I3
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()

    async def answer() -> int:
        return 42

    engine.task(name="a", dag="d")(lambda: answer())
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro: asyncio.Task(coro, loop=loop))
    try:
        run_id = await engine.run_once("d")
    finally:
        loop.set_task_factory(None)
    assert engine.get_run_report(run_id)["tasks"]["a"]["result"] == 42


@pytest.mark.parametrize("returned", [False, True])
async def test_task_that_is_cancelled_before_its_first_step_fails(  # R1
    make_engine: MakeEngine, *, returned: bool
) -> None:
    engine = make_engine()

    async def answer() -> int:
        return 42

    def cancelled(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        task.cancel()
        return task

    engine.task(name="a", dag="d")((lambda: answer()) if returned else answer)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(cancelled)
    try:
        run_id = await engine.run_once("d")
    finally:
        loop.set_task_factory(None)
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert (task["status"], task["error_type"]) == ("FAILED", "asyncio.exceptions.CancelledError")


# -- what a bare interrupt, or a part that raises, must not leave behind ---------------------------


async def test_predicate_that_is_interrupted_at_a_timeout_ends_the_run(  # R2 R4
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()

    def interrupted(_: BaseException) -> bool:
        raise KeyboardInterrupt

    retries = RetryPolicy(1, retry_on=interrupted)
    engine.task(name="hangs", dag="d", timeout_s=0.01, retries=retries)(asyncio.Event().wait)
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"hangs": "FAILED"}
    assert report["finished_at"] is not None


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_source_of_chance_that_raises_ends_the_run(  # R4
    make_engine: MakeEngine, kind: str
) -> None:
    def no_chance() -> float:
        raise OSError

    engine = make_engine(config=SchedulerConfig(chance=no_chance))

    def fails() -> None:
        raise ValueError

    async def fails_on_the_loop() -> None:
        raise ValueError

    work = fails if kind == "sync" else fails_on_the_loop
    engine.task(name="fails", dag="d", retries=1)(work)
    with pytest.raises(FlowrunError, match="OSError"):
        await engine.run_once("d")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"fails": "FAILED"}


class HangingSerializer:
    """Hangs at every result, until it may go on."""

    name = "hanging"

    def __init__(self) -> None:
        self.hangs, self.may_go_on = threading.Event(), threading.Event()

    def serialize(self, value: object) -> bytes:
        self.hangs.set()
        assert self.may_go_on.wait(3 * WAIT_S)
        return b""

    def deserialize(self, data: bytes) -> object:
        return None


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_serializer_that_hangs_holds_up_neither_the_run_nor_the_closing(  # A3 R1
    make_engine: MakeEngine, tmp_path: Path, how: str
) -> None:
    serializer = HangingSerializer()
    tasks = asyncio.all_tasks()
    with closing(SqliteStateStore(tmp_path / "runs.db", serializer)) as store:
        engine = make_engine(state_store=store)

        @engine.task(dag="d", timeout_s=0.05 if how == "timeout" else None)
        async def large() -> str:
            return "x" * 10_000_000

        run = asyncio.create_task(engine.run_once("d"))
        assert await asyncio.to_thread(serializer.hangs.wait, WAIT_S)
        if how == "cancel":
            run.cancel()
        await asyncio.wait({run}, timeout=WAIT_S)
        assert run.done()
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        assert statuses(report) == {"large": "FAILED"}
        await asyncio.wait_for(engine.aclose(), WAIT_S / 2)
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() - tasks <= {run}
        serializer.may_go_on.set()
    assert run.cancelled() == (how == "cancel")


def test_run_whose_loop_was_closed_keeps_nothing_and_reports_its_end(  # R1
    make_engine: MakeEngine,
) -> None:
    ended: list[str] = []
    told = threading.Event()

    def end(event: DagEndEvent) -> None:
        ended.append(event.status)
        told.set()

    engine = make_engine(max_parallel=1, hooks=[fn_hook(on_dag_end=end)])
    begun = threading.Event()

    @engine.task(dag="d", timeout_s=None)
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def begin() -> asyncio.Task[str]:
        run = asyncio.create_task(engine.run_once("d"))
        while not begun.is_set():
            await asyncio.sleep(0)
        return run

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # asyncio reports the tasks that it left pending
    lost = loop.run_until_complete(begin())
    loop.close()
    (summary,) = engine.list_runs()
    assert summary.finished_at is not None
    assert statuses(engine.get_run_report(summary.run_id)) == {"waits": "FAILED"}
    assert told.wait(WAIT_S)
    assert ended == ["FAILED"]
    del lost
    engine.task(name="other", dag="e")(lambda: 1)
    assert engine.get_run_report(asyncio.run(engine.run_once("e")))["status"] == "SUCCESS"
