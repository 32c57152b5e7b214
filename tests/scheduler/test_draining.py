"""Closing an engine that lets its runs end: ``close(drain=True)``, ``aclose(drain=True)``."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable

import pytest

from flowrun import Engine
from flowrun.errors import EngineClosedError, RunCancelledError, WrongCallError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


def declare(engine: Engine) -> tuple[threading.Event, threading.Event]:
    """Declare a DAG whose first task waits; return its begun and its open."""
    begun, go = threading.Event(), threading.Event()

    @engine.task(dag="d")
    def work() -> None:
        begun.set()
        assert go.wait(WAIT_S)

    @engine.task(dag="inner")
    def number() -> int:
        return 7

    @engine.task(dag="d", deps=[work])
    def nested() -> object:
        return engine.run("inner")["tasks"]["number"]["result"]

    @engine.task(dag="d", deps=[work])
    async def nested_on_the_loop() -> str:
        return await engine.run_once("inner")

    return begun, go


async def until_closed(engine: Engine) -> None:
    """Wait until the engine takes no more runs."""
    while "closed" not in repr(engine):
        await asyncio.sleep(0)


ALL_DONE = {"work": "SUCCESS", "nested": "SUCCESS", "nested_on_the_loop": "SUCCESS"}


async def test_aclose_lets_runs_end_and_takes_no_others(engine: Engine) -> None:
    begun, go = declare(engine)
    handle = engine.start("d")
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    closing = asyncio.create_task(engine.aclose(drain=True))
    await asyncio.wait_for(until_closed(engine), WAIT_S)
    for refused in (engine.run_once("d"), asyncio.to_thread(engine.run, "d")):
        with pytest.raises(EngineClosedError):
            await refused
    assert not closing.done()
    go.set()
    await asyncio.wait_for(closing, WAIT_S)
    assert statuses(await handle) == ALL_DONE


async def test_run_started_just_before_is_let_end(engine: Engine) -> None:
    _, go = declare(engine)
    go.set()
    handle = engine.start("d")
    await asyncio.wait_for(engine.aclose(drain=True, timeout_s=WAIT_S), WAIT_S)
    assert statuses(await handle) == ALL_DONE


async def test_aclose_cancels_what_has_not_ended_in_time(engine: Engine) -> None:
    @engine.task(dag="d")
    async def stuck() -> None:
        await asyncio.Event().wait()

    handle = engine.start("d")
    await asyncio.wait_for(engine.aclose(drain=True, timeout_s=0.01), WAIT_S)
    with pytest.raises(RunCancelledError, match="the engine was closed"):
        await handle


async def test_time_limit_without_drain_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="use it with drain=True"):
        await engine.aclose(timeout_s=1.0)
    with pytest.raises(ValueError, match="timeout_s"):
        await engine.aclose(drain=True, timeout_s=-1.0)
    assert "open" in repr(engine)


def test_close_lets_runs_of_other_threads_end(make_engine: MakeEngine) -> None:
    engine = make_engine()
    begun, go = declare(engine)
    found: list[dict[str, str]] = []
    runs = threading.Thread(target=lambda: found.append(statuses(engine.run("d"))))
    runs.start()
    assert begun.wait(WAIT_S)
    closes = threading.Thread(target=engine.close, kwargs={"drain": True})
    closes.start()
    asyncio.run(asyncio.wait_for(until_closed(engine), WAIT_S))
    assert closes.is_alive()
    go.set()
    closes.join(WAIT_S)
    assert not closes.is_alive()
    runs.join(WAIT_S)
    assert found == [ALL_DONE]


def test_plain_close_ends_what_is_drained(make_engine: MakeEngine) -> None:
    engine = make_engine()
    begun = threading.Event()

    @engine.task(dag="d")
    async def stuck() -> None:
        begun.set()
        await asyncio.Event().wait()

    raised: list[BaseException] = []

    def run() -> None:
        try:
            engine.run("d")
        except BaseException as error:
            raised.append(error)

    runs = threading.Thread(target=run)
    runs.start()
    assert begun.wait(WAIT_S)
    closes = threading.Thread(target=engine.close, kwargs={"drain": True})
    closes.start()
    asyncio.run(asyncio.wait_for(until_closed(engine), WAIT_S))
    engine.close()
    for thread in (closes, runs):
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert [type(error) for error in raised] == [RunCancelledError]


def test_close_does_not_wait_for_a_loop_that_has_stopped(make_engine: MakeEngine) -> None:
    engine = make_engine()
    declare(engine)

    async def main() -> None:
        engine.start("d")

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    engine.close(drain=True)
    loop.close()
    engine.close()
    gc.collect()  # asyncio logs what was destroyed; not in the middle of another test


async def test_draining_inside_a_task_is_refused(engine: Engine) -> None:
    @engine.task(dag="d")
    async def close_on_the_loop() -> None:
        await engine.aclose(drain=True)

    @engine.task(dag="d")
    def close() -> None:
        engine.close(drain=True)

    report = await engine.start("d")
    for task in report["tasks"].values():
        assert task["error_type"] == f"{WrongCallError.__module__}.WrongCallError"
    assert "open" in repr(engine)
