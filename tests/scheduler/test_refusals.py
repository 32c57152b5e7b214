"""What stores, pools and clocks refuse, at places that few runs come to (A3, R4, D1)."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, SchedulerConfig, SqliteStateStore
from flowrun.config import Clock
from flowrun.errors import (
    FlowrunError,
    GraphError,
    ResultNotStorableError,
    RunCancelledError,
    RunFailedError,
)
from flowrun.state import Reason, TaskRecord, TransitionError

from ..conftest import WAIT_S, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


async def test_store_that_fails_to_encode_ends_the_run_with_a_clear_error(  # R4
    make_engine: MakeEngine,
) -> None:
    class Store(ThirdPartyStore):
        def encode_result(self, value: object, *, run_id: str, task_name: str) -> object:
            raise ZeroDivisionError

    engine = make_engine(state_store=Store())
    engine.task(name="a", dag="d")(lambda: 1)
    with pytest.raises(FlowrunError, match="error inside flowrun: ZeroDivisionError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert engine.list_runs()[0].finished_at is not None


async def test_result_that_the_store_refuses_is_the_cause_of_the_failed_run(  # D1
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(state_store=ThirdPartyStore())
    engine.task(name="a", dag="d")(threading.Event)  # which that store does not keep
    with pytest.raises(RunFailedError) as raised:
        await asyncio.wait_for(engine.run_once("d", raise_on_failure=True), WAIT_S)
    assert isinstance(raised.value.__cause__, ResultNotStorableError)


async def test_value_that_interrupts_when_it_is_looked_at_cancels_the_run(  # R2
    make_engine: MakeEngine,
) -> None:
    class Meta(type):
        def __getattr__(cls, name: str) -> object:
            raise KeyboardInterrupt

    engine = make_engine()
    odd = Meta("Odd", (), {})
    engine.task(name="a", dag="d")(lambda: odd())
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    assert (engine.list_runs()[0].error or "").startswith("RUN_CANCELLED")


class Refusing(Future[Any]):
    def cancel(self) -> bool:
        return False


class Keeping(ThreadPoolExecutor):
    """A pool that neither runs a call nor gives it back."""

    def __init__(self) -> None:
        super().__init__(1)
        self.calls: list[Callable[[], object]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls.append(fn)
        return Refusing()


async def test_call_that_a_pool_never_began_never_begins_after_its_run(  # A3
    make_engine: MakeEngine,
) -> None:
    ran: list[int] = []
    with Keeping() as pool:
        engine = make_engine(executor=pool, config=SchedulerConfig(thread_grace_s=0.01))
        engine.task(name="a", dag="d")(lambda: ran.append(1))
        run = asyncio.create_task(engine.run_once("d"))
        while not pool.calls:
            await asyncio.sleep(0)
        assert engine.cancel(engine.list_runs()[0].run_id)
        with pytest.raises(RunCancelledError):
            await asyncio.wait_for(run, WAIT_S)
        assert statuses(engine.get_run_report(engine.list_runs()[0].run_id)) == {"a": "FAILED"}
        pool.calls[0]()
        await asyncio.sleep(0)
    assert not ran


class BreaksOnce(Clock):
    is_armed = False

    def monotonic(self) -> float:  # type: ignore[override]
        if self.is_armed:
            self.is_armed = False
            raise ZeroDivisionError
        return Clock.monotonic()


async def test_clock_that_fails_as_a_call_elsewhere_ends_ends_the_run(  # R4
    make_engine: MakeEngine,
) -> None:
    clock = BreaksOnce()

    class Elsewhere(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(pickle.loads(pickle.dumps(fn))())
            clock.is_armed = True
            return future

    engine = make_engine(executor=Elsewhere(), config=SchedulerConfig(clock=clock))
    engine.task(name="a", dag="d")(abs_of_one)
    with pytest.raises(FlowrunError, match="inside flowrun: ZeroDivisionError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)


def abs_of_one() -> int:
    return abs(-1)


async def test_branch_of_a_sub_graph_may_choose_what_is_left_out(make_engine: MakeEngine) -> None:
    engine = make_engine()
    etl = engine.dag("d")
    etl.branch("choose")(lambda: ["left", "right"])
    etl.task("left", deps=["choose"])(lambda: 1)
    etl.task("right", deps=["choose"])(lambda: 2)
    run_id = await asyncio.wait_for(etl.run_subgraph(["left"]), WAIT_S)
    assert statuses(engine.get_run_report(run_id)) == {"choose": "SUCCESS", "left": "SUCCESS"}


def test_rule_and_a_parameter_that_nothing_fills_are_both_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.task(name="a", dag="d")(lambda: 1)

    @engine.task(dag="d", deps=["a"], trigger_rule="all_done")
    def b(nobody: int) -> int:
        return nobody

    with pytest.raises(GraphError, match="requires the parameter 'nobody', which nothing fills"):
        engine.validate("d")


def test_report_is_readable_beside_a_damaged_run(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with closing(SqliteStateStore(path)) as store:
        engine = make_engine(state_store=store)
        engine.task(name="a", dag="d")(lambda: 1)
        runs = [asyncio.run(engine.run_once("d")) for _ in range(3)]
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE runs SET created_at = 1.0 WHERE run_id = ?", (runs[0],))
            database.commit()
        assert "succeeded" in engine.report_text(runs[2])
        engine.close()


def test_impossible_transitions_of_a_record_are_refused() -> None:
    record = TaskRecord("a")
    with pytest.raises(TransitionError, match="cannot begin while it is PENDING"):
        record.begun(1.0)
    ended = record.start(1.0, 1.0).succeed(2.0, None)
    with pytest.raises(TransitionError, match="cannot be omitted while it is SUCCESS"):
        ended.omit(3.0, Reason.SKIP_TASK, "nothing")
