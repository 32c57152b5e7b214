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
    DagStartEvent,
    Engine,
    FlowrunError,
    SchedulerConfig,
    SqliteStateStore,
    build_default_engine,
    fn_hook,
)
from flowrun.errors import StoreFullError
from flowrun.scheduler.launcher import Launcher
from flowrun.scheduler.old_run import Run
from flowrun.scheduler.slots import Lane, Slots
from flowrun.state.journal import Journal

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


# -- Ctrl-C in flowrun's own code, on a loop that does not turn it into a cancellation -----------


def interrupts_once(function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """Return the function as it is where Ctrl-C comes once, before or after its work."""
    came: list[bool] = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if came:
            return function(*args, **kwargs)
        came.append(True)
        if after:
            function(*args, **kwargs)
        raise KeyboardInterrupt

    return interrupted


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (SqliteStateStore, "save_on_loop"),
        (SqliteStateStore, "_plain_rows"),
        (Journal, "save_on_loop"),
        (Journal, "submit"),
        (Journal, "drop_start"),
        (Run, "_acknowledged"),
        (Run, "_begin"),
        (Launcher, "_next"),
        (Lane, "take"),
    ],
)
def test_ctrl_c_in_a_durable_run_ends_it_and_loses_no_slot(  # R1 R3 R4
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: type, name: str, after: bool
) -> None:
    monkeypatch.setattr(place, name, interrupts_once(getattr(place, name), after=after))
    loop = asyncio.new_event_loop()
    with (
        closing(SqliteStateStore(tmp_path / "runs.db")) as store,
        closing(build_default_engine(state_store=store, max_parallel=1)) as engine,
    ):

        @engine.task(dag="d")
        async def a() -> int:
            return 1

        engine.task(name="b", dag="d", deps=["a"])(a)

        @engine.task(dag="d", deps=["b"])
        async def fails() -> None:
            raise ValueError

        async def ended(run: asyncio.Task[str]) -> bool:
            done, _ = await asyncio.wait([run], timeout=WAIT_S)
            return bool(done)

        run = loop.create_task(engine.run_once("d"))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(ended(run))
        assert isinstance(run.exception(), KeyboardInterrupt)
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        assert report["finished_at"] is not None
        assert not set(statuses(report).values()) & {"RUNNING", "PENDING"}

        engine.task(name="c", dag="next")(lambda: 1)
        following = loop.create_task(engine.run_once("next"))
        assert loop.run_until_complete(ended(following))
        assert statuses(engine.get_run_report(following.result())) == {"c": "SUCCESS"}
    loop.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["_handle", "_after_round"])
def test_run_can_go_on_where_ctrl_c_was_nobodys(  # R4
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, after: bool
) -> None:
    monkeypatch.setattr(Run, name, interrupts_once(getattr(Run, name), after=after))
    loop = asyncio.new_event_loop()
    with (
        closing(SqliteStateStore(tmp_path / "runs.db")) as store,
        closing(build_default_engine(state_store=store)) as engine,
    ):
        engine.task(name="a", dag="d")(lambda: 1)

        @engine.task(dag="d", deps=["a"])
        async def b() -> int:
            await asyncio.sleep(0)
            return 1

        engine.task(name="c", dag="d", deps=["b"])(lambda: 1)
        run = loop.create_task(engine.run_once("d"))
        # It came between two steps of the loop, where asyncio lets it through.
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.wait_for(asyncio.shield(run), WAIT_S))
        done, _ = loop.run_until_complete(asyncio.wait([run], timeout=WAIT_S))
        assert done
        with contextlib.suppress(FlowrunError):
            run.result()
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        assert report["finished_at"] is not None
        assert not set(statuses(report).values()) & {"RUNNING", "PENDING"}
    loop.close()


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
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.task(name="a", dag="d")(lambda: 1)
    complete = Run._complete

    def completes(self: Run, error: BaseException | None = None) -> None:
        run.cancel()
        complete(self, error)

    monkeypatch.setattr(Run, "_complete", completes)
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

        with pytest.raises(FlowrunError, match="inside flowrun: OSError: no room for the log"):
            await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        report = engine.get_run_report(engine.list_runs()[0].run_id)  # which is still owed
        engine.close()
    assert refused
    assert statuses(report) == dict.fromkeys("abc", "FAILED")


# -- slots ----------------------------------------------------------------------------------------


def test_lane_that_leaves_gives_back_what_it_has_and_what_was_on_its_way() -> None:  # R3
    slots, granted = Slots(2), list[str]()
    first = Lane(slots, lambda: granted.append("first"))
    second = Lane(slots, lambda: granted.append("second"))
    assert first.take()
    assert first.take()
    assert not second.take()
    first.give_back()
    assert granted == ["second"]
    second.leave()  # before it has heard of its slot
    assert slots.free == 1
    second.give_back()  # as it does when it hears of it
    assert slots.free == 1
    third = Lane(slots, lambda: granted.append("third"))
    assert third.take()
    assert not third.take()
    first.leave()  # with a slot that nobody has given back
    assert granted == ["second", "third"]
    third.leave()
    assert slots.free == 2


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

    config = SchedulerConfig(hook_timeout_s=0.1)
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
