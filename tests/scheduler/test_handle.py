"""Handles of runs that go on beside the code that has started them."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    DagEndEvent,
    DagStartEvent,
    Engine,
    RunFailedError,
    RunHandle,
    RunHook,
    SchedulerConfig,
    SqliteStateStore,
    TaskStartEvent,
    TaskSuccessEvent,
)
from flowrun.errors import (
    EngineClosedError,
    RunAliveError,
    RunCancelledError,
    StoreError,
    UnknownDagError,
    WrongCallError,
)

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def engine(request: pytest.FixtureRequest, make_engine: MakeEngine, tmp_path: Path) -> Engine:
    """Return an engine on a store of each kind."""
    if request.param == "memory":
        return make_engine()
    store = SqliteStateStore(tmp_path / "runs.db")
    request.addfinalizer(store.close)
    return make_engine(state_store=store)


class Gate:
    """A DAG of two tasks, ``work`` and ``after``; the first waits until the gate is opened."""

    def __init__(self, engine: Engine) -> None:
        self.begun, self.open = asyncio.Event(), asyncio.Event()

        @engine.task(dag="d")
        async def work() -> str:
            self.begun.set()
            await self.open.wait()
            return "done"

        @engine.task(dag="d", deps=[work])
        def after() -> None: ...


async def within(work: Any) -> Any:
    return await asyncio.wait_for(work, WAIT_S)


async def test_start_returns_at_once_and_the_handle_gives_the_report(engine: Engine) -> None:
    gate = Gate(engine)
    handle = engine.start("d", metadata={"n": 1})
    assert isinstance(handle, RunHandle)
    assert repr(handle) == f"<RunHandle {handle.run_id!r} of DAG 'd'>"
    assert handle.progress == {"PENDING": 2}
    await within(gate.begun.wait())
    assert handle.progress == {"RUNNING": 1, "PENDING": 1}
    assert engine.get_run_report(handle.run_id)["alive"]
    gate.open.set()
    report = await within(handle)
    assert report == engine.get_run_report(handle.run_id)
    assert report["tasks"]["work"]["result"] == "done"
    assert report["metadata"] == {"n": 1}
    assert handle.progress == {"SUCCESS": 2}
    assert await handle == report
    assert handle.cancel() is False


async def test_cancelling_who_awaits_does_not_cancel_the_run(engine: Engine) -> None:
    gate = Gate(engine)
    handle = engine.start("d")
    waiting = asyncio.ensure_future(handle)
    await within(gate.begun.wait())
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.open.set()
    assert (await within(handle))["status"] == "SUCCESS"


async def test_cancel_ends_the_run(engine: Engine) -> None:  # R2
    gate = Gate(engine)
    handle = engine.start("d")
    await within(gate.begun.wait())
    assert handle.cancel()
    for _ in range(2):
        with pytest.raises(RunCancelledError, match=r"handle\.cancel\(\) was called"):
            await within(handle)
    report = engine.get_run_report(handle.run_id)
    assert statuses(report) == {"work": "FAILED", "after": "SKIPPED"}
    assert handle.progress == {"FAILED": 1, "SKIPPED": 1}


async def test_run_can_be_cancelled_before_it_has_begun(engine: Engine) -> None:  # R2
    Gate(engine)
    handle = engine.start("d")
    assert handle.cancel()
    with pytest.raises(RunCancelledError):
        await within(handle)
    assert engine.get_run_report(handle.run_id)["tasks"]["after"]["reason"] == "RUN_CANCELLED"


async def test_cancel_from_another_thread(engine: Engine) -> None:
    gate = Gate(engine)
    handle = engine.start("d")
    await within(gate.begun.wait())
    assert await asyncio.to_thread(handle.cancel)
    with pytest.raises(RunCancelledError):
        await within(handle)


async def test_closing_the_engine_cancels_the_run(engine: Engine) -> None:
    gate = Gate(engine)
    handle = engine.start("d")
    await within(gate.begun.wait())
    await within(engine.aclose())
    with pytest.raises(RunCancelledError, match="the engine was closed"):
        await within(handle)
    with pytest.raises(EngineClosedError):
        engine.start("d")


async def test_failure_that_nobody_awaits_is_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @engine.task(dag="d")
    def fail() -> None:
        raise ValueError

    caplog.set_level(logging.ERROR, "flowrun")
    run_id = engine.start("d").run_id
    await within(ended(engine, run_id))
    assert caplog.messages == [
        f"run {run_id} of DAG 'd', started by engine.start(), has failed: see its report"
    ]
    caplog.clear()
    run_id = engine.start("d", raise_on_failure=True).run_id
    await within(ended(engine, run_id))
    (line,) = caplog.messages
    assert f"RunFailedError: run '{run_id}' of DAG 'd' failed: task 'fail': ValueError" in line


async def ended(engine: Engine, run_id: str) -> None:
    """Wait until a run that nobody awaits has left no task behind."""
    names = {f"flowrun-{run_id}"}
    while tasks := [task for task in asyncio.all_tasks() if task.get_name() in names]:
        await asyncio.wait(tasks)
        await asyncio.sleep(0)
    assert engine.get_run_report(run_id)["finished_at"] is not None


async def test_nothing_is_logged_of_what_succeeds_is_cancelled_or_is_awaited(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(engine)
    caplog.set_level(logging.ERROR)
    cancelled = engine.start("d")
    cancelled.cancel()
    await within(ended(engine, cancelled.run_id))
    gate.open.set()
    await within(ended(engine, engine.start("d").run_id))

    @engine.task(dag="e")
    def fail() -> None:
        raise ValueError

    with pytest.raises(RunFailedError):
        await within(engine.start("e", raise_on_failure=True))
    assert [each for each in caplog.records if each.name.startswith("flowrun")] == []


async def test_overlap_in_one_engine_is_refused_at_once(engine: Engine) -> None:
    gate = Gate(engine)
    first = engine.start("d", if_running="refuse")
    with pytest.raises(RunAliveError, match=first.run_id):
        engine.start("d", if_running="refuse")
    gate.open.set()
    await within(first)


async def test_errors_of_the_store_come_out_of_the_handle(make_engine: MakeEngine) -> None:
    ids = iter(["one", "one"])
    engine = make_engine(config=SchedulerConfig(new_run_id=lambda: next(ids)))
    engine.task("work", dag="d")(threading.get_ident)
    await within(engine.start("d"))
    handle = engine.start("d")
    events = [event async for event in handle.events()]
    assert events == []
    with pytest.raises(StoreError, match="there is a run 'one' already"):
        await within(handle)


async def test_mistakes_are_raised_at_once(engine: Engine) -> None:
    with pytest.raises(UnknownDagError):
        engine.start("d")
    assert engine.list_runs() == []


def test_start_needs_a_loop(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.task("work", dag="d")(threading.get_ident)
    with pytest.raises(WrongCallError, match=r"report = engine\.run\('d'\)"):
        engine.start("d")


async def test_start_is_refused_inside_a_task(engine: Engine) -> None:
    engine.task("work", dag="inner")(threading.get_ident)

    @engine.task(dag="outer")
    async def begin() -> None:
        engine.start("inner")

    @engine.task(dag="outer")
    def begin_in_thread() -> None:
        async def main() -> None:
            engine.start("inner")

        asyncio.run(main())

    report = await within(engine.start("outer"))
    for task in report["tasks"].values():
        assert task["error_type"] == "flowrun.errors.WrongCallError"
        assert "run_id = await engine.run_once('inner')" in (task["error_message"] or "")
    assert engine.list_runs("inner") == []


# -- events ----------------------------------------------------------------------------------------


def of_kinds(events: list[Any]) -> list[tuple[type, str | None]]:
    return [(type(event), getattr(event, "task_name", None)) for event in events]


FROM_FIRST_TO_LAST = [
    (DagStartEvent, None),
    (TaskStartEvent, "work"),
    (TaskSuccessEvent, "work"),
    (TaskStartEvent, "after"),
    (TaskSuccessEvent, "after"),
    (DagEndEvent, None),
]


async def test_events_come_from_the_first_to_the_end(engine: Engine) -> None:
    seen_by_hook: list[Any] = []

    class Seeing(RunHook):
        def on_task_success(self, event: TaskSuccessEvent) -> None:
            seen_by_hook.append(event)

    engine.add_hook(Seeing())
    gate = Gate(engine)
    handle = engine.start("d")
    await within(gate.begun.wait())
    early: list[Any] = []
    async for event in handle.events():  # it begins late and misses nothing
        early.append(event)
        gate.open.set()
    assert of_kinds(early) == FROM_FIRST_TO_LAST
    assert [event async for event in handle.events()] == early
    await within(handle)
    assert [event async for event in handle.events()] == early
    assert seen_by_hook[0].result == "done"
    assert early[2] == seen_by_hook[0]._replace(result=None)


async def test_reader_that_leaves_disturbs_nobody(engine: Engine) -> None:
    gate = Gate(engine)
    handle = engine.start("d")

    async def read() -> list[Any]:
        return [event async for event in handle.events()]

    left, stays = asyncio.create_task(read()), asyncio.create_task(read())
    await within(gate.begun.wait())
    left.cancel()
    gate.open.set()
    await within(handle)
    assert of_kinds(await within(stays)) == FROM_FIRST_TO_LAST
    assert left.cancelled()


async def test_slow_reader_misses_the_oldest_and_the_log_says_so(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    for number in range(5_010):
        engine.task(f"t{number}", dag="d")(_nothing)
    handle = engine.start("d")
    await asyncio.wait_for(handle, 60)
    events = [event async for event in handle.events()]
    assert len(events) == 10_000
    assert type(events[-1]) is DagEndEvent
    assert [each.message for each in caplog.records if each.name == "flowrun.scheduler"] == [
        f"a reader of the events of run {handle.run_id} has missed 22 of them, as it is too slow"
    ]


async def _nothing() -> None: ...


# -- loops that end --------------------------------------------------------------------------------


def test_loop_that_ends_cancels_the_run(make_engine: MakeEngine) -> None:
    engine = make_engine()
    handles: list[RunHandle] = []

    async def main() -> None:
        gate = Gate(engine)
        handles.append(engine.start("d"))
        await within(gate.begun.wait())

    asyncio.run(main())
    report = engine.get_run_report(handles[0].run_id)
    assert statuses(report) == {"work": "FAILED", "after": "SKIPPED"}


def test_loop_that_ends_before_the_run_began(make_engine: MakeEngine) -> None:
    engine = make_engine()
    outcomes: list[BaseException] = []

    async def main() -> None:
        Gate(engine)
        handle = engine.start("d")

        async def wait() -> None:
            try:
                await handle
            except BaseException as error:
                outcomes.append(error)
                raise

        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        waiting = asyncio.create_task(wait())
        await asyncio.wait([waiting])
        assert handle.cancel() is False

    asyncio.run(main())
    assert [type(error) for error in outcomes] == [asyncio.CancelledError]
    assert engine.list_runs() == []
    engine.close()


def test_loop_that_is_closed_under_the_run(make_engine: MakeEngine) -> None:
    engine = make_engine()
    handles: list[RunHandle] = []

    async def main() -> None:
        gate = Gate(engine)
        handles.append(engine.start("d"))
        await within(gate.begun.wait())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    report = engine.get_run_report(handles[0].run_id)
    assert statuses(report) == {"work": "FAILED", "after": "SKIPPED"}
    handles.clear()
    gc.collect()  # asyncio logs what was destroyed; not in the middle of another test


def test_ctrl_c_raised_by_a_task_goes_to_the_loop(make_engine: MakeEngine) -> None:  # A5
    engine = make_engine()

    @engine.task(dag="d")
    async def stop() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        await engine.start("d")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
