"""Tasks that tear down what others have set up."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    RunHandle,
    SchedulerConfig,
    SkipTask,
    SqliteStateStore,
    current_attempt,
)
from flowrun.errors import CycleError, GraphError, OverrideError, TaskDefinitionError
from flowrun.registry import TriggerRule

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def stored(
    request: pytest.FixtureRequest, tmp_path: Path, make_engine: MakeEngine
) -> Iterator[MakeEngine]:
    """Build engines with a store of each kind."""
    stores: list[SqliteStateStore] = []

    def make(**options: Any) -> Engine:
        if request.param == "sqlite":
            stores.append(SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL"))
            options["state_store"] = stores[-1]
        return make_engine(**options)

    yield make
    for store in stores:
        store.close()


class Pipeline:
    """A DAG with a cluster that two tasks use, one of which fails or waits if it is told to.

    Attributes:
        calls: The tasks whose code has begun, in order.
        failing: Those that fail.
        waiting: Those that wait for ever, once they have begun.
        begun: Set when one of those has begun.
    """

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.waiting: set[str] = set()
        self.begun = threading.Event()
        self.clusters = 0

        @engine.task(dag="d")
        def cluster() -> str:
            self.calls.append("cluster")
            self.clusters += 1
            return f"cluster {self.clusters}"

        @engine.task(dag="d", deps=[cluster])
        async def load() -> str:
            return await self.work("load")

        @engine.task(dag="d")
        async def train(cluster: str) -> str:
            return await self.work(f"train on {cluster}")

        @engine.task(dag="d", deps=[load])
        async def report() -> str:
            return await self.work("report")

        @engine.task(dag="d", teardown_of=[cluster], **options)
        async def drop(cluster: str) -> str:
            return await self.work(f"drop {cluster}")

    async def work(self, what: str) -> str:
        self.calls.append(what)
        name = what.split(maxsplit=1)[0]
        if name in self.waiting:
            self.begun.set()
            await asyncio.Event().wait()
        if name in self.failing:
            raise ValueError(name)
        return name

    async def run(self, **options: Any) -> dict[str, str]:
        """Run the DAG and return its tasks' statuses."""
        return self.statuses(await asyncio.wait_for(self.engine.run_once("d", **options), WAIT_S))

    async def resume(self, **options: Any) -> dict[str, str]:
        """Resume the last run and return its tasks' statuses; forget the calls before."""
        self.calls.clear()
        (last,) = self.engine.list_runs(limit=1)
        resumed = self.engine.resume(last.run_id, **options)
        return self.statuses(await asyncio.wait_for(resumed, WAIT_S))

    async def start(self) -> RunHandle:
        """Start a run and wait until one of the waiting tasks has begun."""
        handle = self.engine.start("d")
        assert await asyncio.to_thread(self.begun.wait, WAIT_S)
        self.begun.clear()
        return handle

    def statuses(self, run_id: str) -> dict[str, str]:
        return statuses(self.engine.get_run_report(run_id))

    def last(self) -> dict[str, str]:
        (last,) = self.engine.list_runs(limit=1)
        return self.statuses(last.run_id)


GOOD = dict.fromkeys(("cluster", "load", "train", "report", "drop"), "SUCCESS")


# -- when it runs ---------------------------------------------------------------------------------


async def test_it_runs_after_all_that_names_its_setup(stored: MakeEngine) -> None:
    pipeline = Pipeline(stored(max_parallel=8))
    assert await pipeline.run() == GOOD
    users = [call for call in pipeline.calls if call != "report"]
    assert sorted(users[1:3]) == ["load", "train on cluster 1"]
    assert (users[0], users[3:]) == ("cluster", ["drop cluster 1"])


async def test_it_runs_whatever_has_become_of_them(stored: MakeEngine) -> None:
    pipeline = Pipeline(stored())
    pipeline.failing = {"load", "train"}
    failed = {**GOOD, "load": "FAILED", "train": "FAILED", "report": "SKIPPED"}
    assert await pipeline.run() == failed
    assert pipeline.calls[-1] == "drop cluster 1"


async def test_it_waits_for_its_own_dependencies_too(stored: MakeEngine) -> None:
    pipeline = Pipeline(stored(), deps=["report"])
    pipeline.failing = {"report"}
    assert await pipeline.run() == {**GOOD, "report": "FAILED"}
    assert pipeline.calls[-2:] == ["report", "drop cluster 1"]


async def test_its_other_dependencies_may_have_no_result(stored: MakeEngine) -> None:
    engine = stored()

    def fail() -> None:
        raise ValueError

    engine.task(name="setup", dag="d")(lambda: "set up")
    engine.task(name="good", dag="d")(lambda: 1)
    engine.task(name="bad", dag="d")(fail)

    @engine.task(dag="d", teardown_of=["setup"], deps=["good", "bad"])
    def named(setup: str, good: int = 0, bad: int = 0) -> object:
        return [setup, good, bad]

    @engine.task(dag="d", teardown_of=["setup"], deps=["good", "bad"])
    def whole(upstream: dict[str, object]) -> object:
        return [upstream, current_attempt().upstream_status]

    report = await engine.start("d")
    assert report["tasks"]["named"]["result"] == ["set up", 1, 0]
    became = {"setup": "SUCCESS", "good": "SUCCESS", "bad": "FAILED"}
    assert report["tasks"]["whole"]["result"] == [{"setup": "set up", "good": 1}, became]


async def test_it_ends_like_a_setup_that_did_not_succeed(stored: MakeEngine) -> None:
    engine = stored()

    def fail() -> None:
        raise ValueError

    def omit() -> None:
        raise SkipTask

    for name, work in (("good", lambda: 1), ("failed", fail), ("omitted", omit)):
        engine.task(name=name, dag="d")(work)
        engine.task(name=f"after {name}", dag="d", teardown_of=[name])(lambda: None)
    engine.task(name="after two", dag="d", teardown_of=["good", "omitted"])(lambda: None)
    engine.task(name="after all", dag="d", teardown_of=["failed", "omitted"])(lambda: None)
    report = await engine.start("d")
    found = {name: task["status"] for name, task in report["tasks"].items() if "after" in name}
    assert found == {
        "after good": "SUCCESS",
        "after failed": "SKIPPED",
        "after omitted": "OMITTED",
        "after two": "OMITTED",
        "after all": "SKIPPED",
    }
    assert report["tasks"]["after failed"]["error"] == (
        "UPSTREAM_FAILED: what it tears down was not set up"
    )


async def test_branch_does_not_omit_its_teardown(stored: MakeEngine) -> None:
    engine = stored()
    engine.branch("choose", dag="d")(lambda: "small")
    engine.task(name="small", dag="d", deps=["choose"])(lambda: 1)
    engine.task(name="large", dag="d", deps=["choose"])(lambda: 1)
    engine.task(name="undo", dag="d", teardown_of=["choose"])(lambda: 1)
    found = statuses(await engine.start("d"))
    assert (found["large"], found["undo"]) == ("OMITTED", "SUCCESS")


async def test_run_whose_teardown_fails_has_failed(stored: MakeEngine) -> None:
    engine = stored()
    pipeline = Pipeline(engine, retries=1)
    pipeline.failing = {"drop"}
    assert await pipeline.run() == {**GOOD, "drop": "FAILED"}
    assert pipeline.calls[-2:] == ["drop cluster 1"] * 2
    assert engine.list_runs()[0].status == "FAILED"


async def test_inner_teardown_that_names_the_outer_setup_comes_first(engine: Engine) -> None:
    order: list[str] = []

    def declare(name: str, **options: Any) -> None:
        engine.task(name=name, dag="d", **options)(lambda: order.append(name))

    # Declared in any order: what comes after what is settled when the graph is built (G4).
    declare("drop cluster", teardown_of=["cluster"])
    declare("drop database", teardown_of=["database"], deps=["cluster"])
    declare("load", deps=["database"])
    declare("database", deps=["cluster"])
    declare("cluster")
    await engine.run_once("d")
    assert order == ["cluster", "database", "load", "drop database", "drop cluster"]
    assert engine.list_tasks("d") == order


# -- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "timeout", "fail_fast"])
async def test_it_runs_alone_when_the_run_is_stopped(stored: MakeEngine, way: str) -> None:  # R2
    pipeline = Pipeline(stored())
    pipeline.waiting = {"load", "train"}
    stopped = {**GOOD, "load": "FAILED", "train": "FAILED", "report": "SKIPPED"}
    if way == "timeout":
        assert await pipeline.run(timeout_s=0.2) == stopped
    elif way == "fail_fast":
        pipeline.waiting, pipeline.failing = {"train"}, {"load"}
        assert await pipeline.run(fail_fast=True) == stopped
    else:
        handle = await pipeline.start()
        assert handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(handle, WAIT_S)
        assert pipeline.last() == stopped
    assert pipeline.calls[-1] == "drop cluster 1"


async def test_it_is_skipped_if_its_setup_did_not_run(stored: MakeEngine) -> None:
    engine = stored()
    pipeline = Pipeline(engine)
    engine.task(name="first", dag="d")(lambda: pipeline.work("first"))
    engine.task(name="cluster", dag="d", deps=["first"], replace=True)(lambda: "cluster")
    pipeline.waiting = {"first"}
    handle = await pipeline.start()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(handle, WAIT_S)
    assert set(pipeline.last().values()) == {"FAILED", "SKIPPED"}
    task = engine.get_run_report(handle.run_id)["tasks"]["drop"]
    assert task["reason"] == "RUN_CANCELLED"


async def test_second_cancellation_ends_it(
    stored: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = stored()
    pipeline = Pipeline(engine)
    pipeline.waiting = {"load", "train", "drop"}
    run = asyncio.create_task(engine.run_once("d"))
    for _ in range(2):
        assert await asyncio.to_thread(pipeline.begun.wait, WAIT_S)
        await until(lambda: pipeline.calls[-1].startswith(("train", "drop")))
        pipeline.begun.clear()
        run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(run, WAIT_S)
    assert pipeline.last()["drop"] == "FAILED"
    assert "task 'drop', the teardown of 'cluster', has not succeeded; resume run" in caplog.text
    # It has begun, and nothing that has failed uses what it tore down.
    pipeline.waiting.clear()
    assert await pipeline.resume() == GOOD


async def until(holds: Callable[[], object]) -> None:
    """Let the loop go on until something holds."""
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0)


async def test_cancelling_twice_from_elsewhere_does_not_end_it(engine: Engine) -> None:
    pipeline = Pipeline(engine)
    go = asyncio.Event()
    pipeline.waiting = {"load"}

    @engine.task(name="drop", dag="d", teardown_of=["cluster"], replace=True)
    async def drop() -> None:
        pipeline.begun.set()
        await go.wait()

    handle = await pipeline.start()
    handle.cancel()
    assert await asyncio.to_thread(pipeline.begun.wait, WAIT_S)
    assert handle.cancel()
    assert engine.cancel(handle.run_id)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(handle, WAIT_S)
    assert pipeline.last()["drop"] == "SUCCESS"


@pytest.mark.parametrize("limit_s", [WAIT_S, None])
def test_close_waits_for_it(stored: MakeEngine, limit_s: float | None) -> None:
    config = SchedulerConfig(cancel_grace_s=0.0, hook_timeout_s=0.01)
    engine = stored(config=config)
    pipeline = Pipeline(engine)
    pipeline.waiting = {"load"}
    closing, go = threading.Event(), threading.Event()

    @engine.task(name="drop", dag="d", teardown_of=["cluster"], replace=True, timeout_s=limit_s)
    def drop() -> None:
        closing.set()
        assert go.wait(WAIT_S)
        pipeline.calls.append("drop")

    def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            engine.run("d")

    runs = threading.Thread(target=run)
    runs.start()
    assert pipeline.begun.wait(WAIT_S)
    closes = threading.Thread(target=engine.close)
    closes.start()
    assert closing.wait(WAIT_S)
    assert closes.is_alive()
    go.set()
    closes.join(WAIT_S)
    assert pipeline.calls[-1] == "drop"
    runs.join(WAIT_S)
    assert pipeline.last()["drop"] == "SUCCESS"


class SkippingLoop(asyncio.SelectorEventLoop):
    """The real loop, but for seconds that a test skips."""

    skipped_s = 0.0

    def time(self) -> float:
        return super().time() + self.skipped_s


def test_closing_waits_as_long_as_it_may_take(make_engine: MakeEngine) -> None:
    config = SchedulerConfig(cancel_grace_s=0.0, hook_timeout_s=0.01)
    engine = make_engine(config=config)
    pipeline = Pipeline(engine)
    pipeline.waiting = {"load"}
    go = asyncio.Event()

    @engine.task(name="drop", dag="d", teardown_of=["cluster"], replace=True, timeout_s=100.0)
    async def drop() -> None:
        pipeline.begun.set()
        await go.wait()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)
        handle = await pipeline.start()
        closing = asyncio.create_task(engine.aclose())
        assert await asyncio.to_thread(pipeline.begun.wait, WAIT_S)
        loop.skipped_s = 100.0  # the usual wait is of some 10 s
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        await closing
        with pytest.raises(asyncio.CancelledError):
            await handle

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(main())
    assert pipeline.last()["drop"] == "SUCCESS"


async def test_aclose_waits_for_it(stored: MakeEngine) -> None:
    engine = stored()
    pipeline = Pipeline(engine, timeout_s=None)
    pipeline.waiting = {"load"}
    handle = await pipeline.start()
    await asyncio.wait_for(engine.aclose(), WAIT_S)
    with pytest.raises(asyncio.CancelledError):
        await handle
    assert pipeline.last()["drop"] == "SUCCESS"


@pytest.mark.parametrize(
    ("options", "waits_s"), [({}, 30.0), ({"timeout_s": 100, "retries": 2}, 300.0)]
)
def test_close_waits_as_long_as_all_attempts_may_take(
    engine: Engine, options: dict[str, Any], waits_s: float
) -> None:
    Pipeline(engine, **options)
    assert engine.graph("d").teardowns_take_s == waits_s


def test_bare_interrupt_runs_none(stored: MakeEngine) -> None:
    engine = stored()
    pipeline = Pipeline(engine)

    @engine.task(name="load", dag="d", deps=["cluster"], replace=True)
    async def load() -> None:
        # As Ctrl-C does in ``run_until_complete``, between two steps of the loop.
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.Event().wait()

    def interrupt() -> None:
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(engine.run_once("d"))
    finally:
        loop.set_exception_handler(lambda *_: None)
        loop.close()
    found = pipeline.last()
    assert (found["cluster"], found["drop"]) == ("SUCCESS", "SKIPPED")
    assert not any("drop" in call for call in pipeline.calls)
    gc.collect()  # asyncio logs what was destroyed; not in the middle of another test


INTERRUPTED = """
import asyncio, signal, sys
from flowrun import build_default_engine

# A shell that starts the tests in the background has its children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
engine = build_default_engine()
engine.task(name="setup", dag="d")(lambda: 1)

@engine.task(dag="d")
async def use(setup):
    print("begun", flush=True)
    await asyncio.Event().wait()

@engine.task(dag="d", teardown_of=["setup"])
async def teardown():
    print("tears down", flush=True)
    if sys.argv[1] == "twice":
        await asyncio.Event().wait()

try:
    asyncio.run(engine.run_once("d"))
except KeyboardInterrupt:
    (run,) = engine.list_runs()
    print(engine.get_run_report(run.run_id)["tasks"]["teardown"]["status"], flush=True)
    engine.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("times", "status"), [("once", "SUCCESS"), ("twice", "FAILED")])
def test_ctrl_c_lets_it_run_and_the_second_one_ends_it(times: str, status: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, times]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            assert child.stdout.readline() == "begun\n"
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "tears down\n"
            if times == "twice":
                child.send_signal(signal.SIGINT)
            # Not communicate(): the rest may have been read with the line before.
            assert child.stdout.read() == f"{status}\n", child.stderr.read()
        finally:
            child.kill()


async def test_mapped_tasks_are_set_up_and_used_as_a_whole(stored: MakeEngine) -> None:
    engine = stored()
    calls: list[str] = []
    failing = {2}
    engine.task(name="numbers", dag="d")(lambda: [1, 2, 3])

    @engine.task(dag="d", map_over="numbers")
    def table(numbers: int) -> str:
        calls.append(f"create {numbers}")
        return f"table {numbers}"

    @engine.task(dag="d", map_over="numbers", deps=["table"])
    def load(numbers: int) -> None:
        calls.append(f"load {numbers}")
        if numbers in failing:
            raise ValueError

    @engine.task(dag="d", teardown_of=["table"])
    def drop(table: list[str]) -> None:
        calls.append(f"drop {table}")

    report = await engine.start("d")
    assert statuses(report)["load"] == "FAILED"
    dropped = "drop ['table 1', 'table 2', 'table 3']"
    assert (calls.count(dropped), calls[-1]) == (1, dropped)
    failing.clear()
    calls.clear()
    run_id = await asyncio.wait_for(engine.resume(report["run_id"]), WAIT_S)
    assert set(statuses(engine.get_run_report(run_id)).values()) == {"SUCCESS"}
    # All that was torn down is set up again, and of its users only what has not succeeded runs.
    assert sorted(calls[:3]) == ["create 1", "create 2", "create 3"]
    assert calls[3:] == ["load 2", dropped]


async def test_stop_skips_items_and_then_tears_down(stored: MakeEngine) -> None:
    engine = stored(max_parallel=1)
    pipeline = Pipeline(engine)
    engine.task(name="numbers", dag="d")(lambda: [1, 2, 3])
    pipeline.waiting = {"load"}

    @engine.task(name="load", dag="d", map_over="numbers", deps=["cluster"], replace=True)
    async def load(numbers: int) -> None:
        await pipeline.work("load")

    handle = await pipeline.start()
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(handle, WAIT_S)
    found = pipeline.last()
    assert (found["load"], found["drop"]) == ("FAILED", "SUCCESS")
    assert pipeline.calls[-1] == "drop cluster 1"


# -- resuming -------------------------------------------------------------------------------------


async def test_resume_sets_up_again_what_was_torn_down_if_something_needs_it(
    stored: MakeEngine,
) -> None:
    engine = stored()
    pipeline = Pipeline(engine)
    pipeline.failing = {"load"}
    await pipeline.run()
    pipeline.failing.clear()
    (last,) = engine.list_runs(limit=1)
    assert str(engine.plan_resume(last.run_id)).splitlines() == [
        "Plan  Task     Why",
        "run   cluster  it was torn down, and 'load' needs it",
        "run   load     had failed",
        "keep  train    succeeded before",
        "run   report   was skipped",
        "run   drop     tears down 'cluster', which runs again",
    ]
    assert await pipeline.resume() == GOOD
    assert pipeline.calls[:2] == ["cluster", "load"]
    assert sorted(pipeline.calls[2:]) == ["drop cluster 2", "report"]


async def test_resume_does_not_set_up_again_for_what_does_not_name_the_setup(
    stored: MakeEngine,
) -> None:
    pipeline = Pipeline(stored())
    pipeline.failing = {"report"}
    await pipeline.run()
    pipeline.failing.clear()
    assert await pipeline.resume() == GOOD
    assert pipeline.calls == ["report"]


@pytest.mark.parametrize("why", ["torn down", "released"])
async def test_resume_keeps_what_was_kept_while_something_was_made_again(
    stored: MakeEngine, why: str
) -> None:  # S1 S2
    engine = stored()
    calls: list[str] = []
    failing = {"late"}
    options: dict[str, Any] = {"retain_result": why != "released"}

    def declare(name: str, work: Callable[..., object], **more: Any) -> None:
        def called(**upstream: object) -> object:
            calls.append(name)
            if name in failing:
                raise ValueError
            return work(**upstream)

        engine.task(name=name, dag="d", **more)(called)

    declare("origin", lambda **_: 1, **options)
    declare("source", lambda **_: 1, deps=["origin"], **options)
    declare("early", lambda **_: 1, deps=["source"])
    declare("late", lambda **_: 1, deps=["source", "early"])
    if why == "torn down":
        engine.task(name="undo", dag="d", teardown_of=["source", "origin"])(lambda: None)
    run_id = await engine.run_once("d")
    failing.clear()
    for broken in ("origin", "source"):
        failing.add(broken)
        run_id = await engine.resume(run_id)
        failing.clear()
    calls.clear()
    run_id = await engine.resume(run_id)
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    # What was set up in the run before has not been torn down; what was released is gone.
    assert calls == [*(["origin"] if why == "released" else []), "source", "late"]


async def test_resume_repeats_a_failed_teardown_of_what_was_set_up(stored: MakeEngine) -> None:
    pipeline = Pipeline(stored())
    pipeline.failing = {"drop"}
    await pipeline.run()
    assert (await pipeline.resume())["drop"] == "FAILED"
    pipeline.failing.clear()
    assert await pipeline.resume() == GOOD
    assert pipeline.calls == ["drop cluster 1"]


async def test_released_input_of_a_failed_teardown_is_made_again(stored: MakeEngine) -> None:  # S2
    engine = stored()
    pipeline = Pipeline(engine)

    @engine.task(name="cluster", dag="d", replace=True, retain_result=False)
    def cluster() -> str:
        pipeline.clusters += 1
        return f"cluster {pipeline.clusters}"

    pipeline.failing = {"drop"}
    await pipeline.run()
    pipeline.failing.clear()
    assert await pipeline.resume() == GOOD
    assert pipeline.calls == ["drop cluster 2"]


async def test_setup_that_runs_again_has_the_others_of_its_teardown_run_again(
    stored: MakeEngine,
) -> None:
    engine = stored()
    calls: list[str] = []
    failing = {"use a"}

    def declare(name: str, **options: Any) -> None:
        def work() -> str:
            calls.append(name)
            if name in failing:
                raise ValueError
            return name

        engine.task(name=name, dag="d", **options)(work)

    for name in ("a", "b"):
        declare(name)
        declare(f"use {name}", deps=[name])
    declare("kept")
    declare("undo", teardown_of=["a", "b"], deps=["kept"])
    run_id = await engine.run_once("d")
    failing.clear()
    assert engine.plan_resume(run_id).to_run == ["a", "b", "use a", "undo"]
    calls.clear()
    await engine.resume(run_id)
    assert sorted(calls[:2]) == ["a", "b"]
    assert calls[2:] == ["use a", "undo"]


async def test_resume_follows_what_was_changed_about_a_teardown(stored: MakeEngine) -> None:
    engine = stored()
    Pipeline(engine, deps=["load"])
    run_id = await engine.run_once("d")
    assert engine.plan_resume(run_id).to_run == []
    assert engine.plan_resume(run_id, from_tasks=["train"]).to_run == ["cluster", "train", "drop"]
    assert engine.plan_resume(run_id, from_tasks=["drop"]).to_run == ["drop"]
    engine.task(name="more", dag="d", teardown_of=["load"])(lambda: None)
    assert engine.plan_resume(run_id).to_run == ["more"]
    engine.task(name="drop", dag="d", teardown_of=["load"], deps=["cluster"], replace=True)(
        lambda: None
    )
    plan = str(engine.plan_resume(run_id))
    assert "run   drop     what it tears down has changed" in plan


async def test_sub_graph_with_a_setup_has_its_teardown(stored: MakeEngine) -> None:
    engine = stored()
    pipeline = Pipeline(engine)
    run_id = await engine.run_subgraph("d", ["train"])
    assert list(pipeline.statuses(run_id)) == ["cluster", "train", "drop"]
    run_id = await engine.run_subgraph("d", ["cluster"], overrides={"cluster": "given"})
    assert pipeline.statuses(run_id) == {"cluster": "SUCCESS", "drop": "SUCCESS"}
    assert pipeline.calls == ["cluster", "train on cluster 1", "drop cluster 1", "drop given"]
    assert engine.plan_resume(run_id).to_run == ["cluster", "drop"]  # it was overridden


# -- seeing ---------------------------------------------------------------------------------------


async def test_report_names_what_is_torn_down(stored: MakeEngine) -> None:
    engine = stored()
    Pipeline(engine, deps=["report"])
    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["drop"]["teardown_of"] == ["cluster"]
    assert tasks["drop"]["deps"] == ["cluster", "report"]
    assert tasks["load"]["teardown_of"] == []
    assert "tears down cluster" in engine.report_text(run_id)
    assert "tears down cluster" in engine.report_html(run_id)
    assert "drop  tears down cluster" in engine.display_dag("d")
    assert "drop  tears down cluster, " in engine.display_dag("d", run_id=run_id)
    assert "t0 -.-> t4" in engine.display_dag("d", style="mermaid")
    assert "t3 -> t4;" in engine.display_dag("d", style="dot")
    assert "t0 -> t4 [style=dashed];" in engine.display_dag("d", style="dot", run_id=run_id)
    picture = engine.dag("d")._repr_mimebundle_()["image/svg+xml"]
    assert picture.count('class="teardown"') == 1


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teardown_of": []}, "teardown_of is empty, a teardown of nothing; name the tasks"),
        ({"teardown_of": "a"}, r"teardown_of must be a list .* write teardown_of=\[...\]"),
        ({"teardown_of": [3]}, "a dependency is a task's name or a decorated callable, not 3"),
        ({"teardown_of": ["b"]}, "it depends on itself; remove it from its own teardown_of"),
        ({"teardown_of": ["a"], "trigger_rule": "all_done"}, "has a rule of its own"),
        ({"teardown_of": ["a"], "map_over": "a"}, "a mapped task cannot be a teardown"),
    ],
)
def test_wrong_declaration_is_refused(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskDefinitionError, match=f"task 'b' .*'d'.*{message}"):
        engine.task(name="b", dag="d", **options)(lambda: 1)


def test_branch_cannot_be_a_teardown(engine: Engine) -> None:
    with pytest.raises(TaskDefinitionError, match="'b'.*a branch cannot be a teardown"):
        engine.branch("b", dag="d", teardown_of=["a"])(lambda: None)


def test_default_trigger_rule_may_be_written_out(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    rule = TriggerRule.ALL_SUCCESS
    engine.task(name="b", dag="d", teardown_of=["a"], trigger_rule=rule)(lambda: 1)
    engine.validate("d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teardown_of": ["z"]}, "'b' has a missing dependency: this DAG has no task 'z'"),
        ({"teardown_of": ["a"], "deps": ["a"]}, "'b' lists dependency 'a' twice; list it once"),
        (
            {"teardown_of": ["a"], "deps": ["c"]},
            (
                "'b' requires the parameter 'c', and when a teardown runs that dependency may have no"
                " result; give the parameter a default"
            ),
        ),
    ],
)
def test_wrong_graph_is_refused(engine: Engine, options: dict[str, Any], message: str) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    engine.task(name="c", dag="d")(lambda: 1)
    engine.task(name="b", dag="d", **options)(lambda c: c)
    with pytest.raises(GraphError, match=message):
        engine.validate("d")


def test_task_that_depends_on_a_setup_and_on_its_teardown_is_refused(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    engine.task(name="b", dag="d", teardown_of=["a"])(lambda: 1)
    engine.task(name="c", dag="d", deps=["a", "b"])(lambda: 1)
    with pytest.raises(CycleError, match="b -> c -> b"):
        engine.validate("d")


async def test_function_that_overrides_a_teardown_must_allow_for_missing_results(
    engine: Engine,
) -> None:
    Pipeline(engine, deps=["report"])
    given: list[str] = []
    with pytest.raises(OverrideError, match="'report', and when a teardown runs that dependency"):
        await engine.run_once("d", overrides={"drop": lambda cluster, report: None})
    await engine.run_once("d", overrides={"drop": lambda cluster, report="": given.append(cluster)})
    assert given == ["cluster 1"]


def test_template_makes_teardowns(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    template = engine.task_template(lambda what: what, dag="d", teardown_of=iter(["a"]))
    for what in ("x", "y"):
        template.bind(what, what=what)
    assert engine.graph("d").teardowns.names == {"x": ("a",), "y": ("a",)}
