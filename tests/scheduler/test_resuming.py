"""Resume: what is kept, what runs again, and why (S1-S5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    RunContext,
    RunRecord,
    SqliteStateStore,
    TaskRegistry,
)
from flowrun.errors import ResumeError, RunAliveError, UnknownRunError, UnknownTaskError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


class Job:
    """A diamond that fails where it is told to, and notes what ran."""

    def __init__(self, engine: Engine, *, retain: bool = True) -> None:
        self.ran: list[str] = []
        self.fail_at: set[str] = set()
        self.given: dict[str, Any] = {}

        def step(name: str, deps: list[str], value: Any, *, kept: bool = True) -> None:
            def work(upstream: dict[str, Any]) -> Any:
                self.ran.append(name)
                self.given[name] = dict(upstream)
                if name in self.fail_at:
                    raise ValueError(name)
                return value

            engine.task(name=name, dag="d", deps=deps, retain_result=kept)(work)

        step("extract", [], [1, 2], kept=retain)
        step("left", ["extract"], None)
        step("right", ["extract"], {"n": 1})
        step("load", ["left", "right"], "loaded")


async def test_resume_runs_only_what_is_left(engine: Engine) -> None:  # S1 S4
    job = Job(engine)
    job.fail_at = {"right"}
    old = await engine.run_once("d", metadata={"night": 1})
    assert statuses(engine.get_run_report(old)) == {
        "extract": "SUCCESS",
        "left": "SUCCESS",
        "right": "FAILED",
        "load": "SKIPPED",
    }
    plan = engine.plan_resume(old)
    assert {name: task.action for name, task in plan.tasks.items()} == {
        "extract": "keep",
        "left": "keep",
        "right": "run",
        "load": "run",
    }
    assert plan.tasks["right"].why == "had failed"
    assert plan.to_run == ["right", "load"]
    job.fail_at, job.ran = set(), []
    new = await engine.resume(old)
    report = engine.get_run_report(new)
    assert job.ran == ["right", "load"]
    assert job.given["right"] == {"extract": [1, 2]}
    assert job.given["load"] == {"left": None, "right": {"n": 1}}  # I2: None is a result
    assert report["status"] == "SUCCESS"
    assert report["resumed_from"] == old
    assert report["metadata"] == {"night": 1}
    assert report["tasks"]["extract"]["result"] == [1, 2]
    assert report["tasks"]["extract"]["attempt"] == 1
    assert engine.get_run_report(old)["status"] == "FAILED"


async def test_resume_from_a_checkpoint_runs_it_and_everything_after(engine: Engine) -> None:
    job = Job(engine)
    old = await engine.run_once("d")
    job.ran = []
    new = await engine.resume(old, from_tasks=["left"])
    assert job.ran == ["left", "load"]
    assert engine.get_run_report(new)["status"] == "SUCCESS"
    why = engine.plan_resume(new, from_tasks=["left"]).tasks
    assert why["left"].why == "named to run again"
    assert why["load"].why == "depends on a task named to run again"


async def test_resume_of_a_success_runs_nothing(engine: Engine) -> None:
    job = Job(engine)
    old = await engine.run_once("d")
    job.ran = []
    new = await engine.resume(old, from_tasks=[])
    assert job.ran == []
    assert engine.get_run_report(new)["status"] == "SUCCESS"
    assert engine.get_run_report(new)["tasks"]["load"]["result"] == "loaded"


async def test_released_input_is_made_again_and_nothing_else(engine: Engine) -> None:  # S2
    job = Job(engine, retain=False)
    job.fail_at = {"right"}
    old = await engine.run_once("d")
    plan = engine.plan_resume(old)
    assert plan.to_run == ["extract", "right", "load"]
    assert plan.tasks["extract"].why == "its result was released, and 'right' needs it"
    job.fail_at, job.ran = set(), []
    new = await engine.resume(old)
    assert job.ran == ["extract", "right", "load"]
    assert engine.get_run_report(new)["status"] == "SUCCESS"


async def test_chain_of_released_inputs_is_made_again(engine: Engine) -> None:  # S2
    ran: list[str] = []
    fail = [True]

    def step(name: str, deps: list[str]) -> None:
        def work(upstream: dict[str, Any]) -> str:
            ran.append(name)
            if name == "d" and fail:
                fail.clear()
                raise ValueError
            return name

        engine.task(name=name, dag="x", deps=deps, retain_result=False)(work)

    for name, deps in (("a", []), ("b", ["a"]), ("c", ["b"]), ("d", ["c"])):
        step(name, list[str](deps))
    old = await engine.run_once("x")
    ran.clear()
    await engine.resume(old)
    assert ran == ["a", "b", "c", "d"]


async def test_dependency_that_only_orders_is_not_made_again(engine: Engine) -> None:  # S1
    ran: list[str] = []
    fail = [True]
    engine.task(name="prepare", dag="d", retain_result=False)(lambda: ran.append("prepare"))

    @engine.task(dag="d", deps=["prepare"])
    def work() -> None:
        ran.append("work")
        if fail:
            fail.clear()
            raise ValueError

    old = await engine.run_once("d")
    ran.clear()
    await engine.resume(old)
    assert ran == ["work"]


async def test_resume_of_a_subgraph_stays_in_it(engine: Engine) -> None:  # S3
    job = Job(engine)
    job.fail_at = {"left"}
    old = await engine.run_subgraph("d", ["left"])
    job.fail_at, job.ran = set(), []
    new = await engine.resume(old)
    assert job.ran == ["left"]
    assert list(engine.get_run_report(new)["tasks"]) == ["extract", "left"]
    assert engine.get_run_report(new)["targets"] == ["left"]
    with pytest.raises(UnknownTaskError):
        await engine.resume(new, from_tasks=["load"])


async def test_resume_after_the_dag_has_changed(make_engine: MakeEngine) -> None:  # S3
    from flowrun import InMemoryStateStore

    store = InMemoryStateStore()
    ran: list[str] = []

    def build(dags: dict[str, list[str]], fail: str = "") -> Engine:
        engine = make_engine(state_store=store, registry=TaskRegistry())
        for name, deps in dags.items():

            def work(upstream: dict[str, Any], name: str = name) -> str:
                ran.append(name)
                if name == fail:
                    raise ValueError
                return name

            engine.task(name=name, dag="d", deps=deps)(work)
        return engine

    before = build({"a": [], "b": ["a"], "gone": ["a"], "c": ["b"], "e": ["c"]}, fail="e")
    old = await before.run_once("d")
    after = build({"a": [], "new": ["a"], "b": ["a"], "c": ["b", "new"], "e": ["c"]})
    plan = after.plan_resume(old)
    assert {name: task.action for name, task in plan.tasks.items()} == {
        "a": "keep",
        "new": "run",
        "b": "keep",
        "c": "run",
        "e": "run",
    }
    assert plan.tasks["new"].why == "new in the DAG"
    assert plan.tasks["c"].why == "its dependencies have changed"
    assert plan.dropped == ["gone"]
    ran.clear()
    new = await after.resume(old)
    assert ran == ["new", "c", "e"]
    assert list(after.get_run_report(new)["tasks"]) == ["a", "new", "b", "c", "e"]
    part = await before.run_subgraph("d", ["gone"])
    with pytest.raises(ResumeError, match="none of its targets 'gone' is in the DAG any more"):
        await after.resume(part)


async def test_resume_goes_on_where_the_last_resume_ended(engine: Engine) -> None:  # S1
    job = Job(engine)
    job.fail_at = {"left", "right"}
    first = await engine.run_once("d")
    job.fail_at = {"right"}
    second = await engine.resume(first)
    job.fail_at, job.ran = set(), []
    third = await engine.resume(first)
    assert job.ran == ["right", "load"]
    assert engine.get_run_report(third)["resumed_from"] == second
    assert engine.plan_resume(third).run_id == third


async def test_resume_of_a_cancelled_run(engine: Engine) -> None:
    begun = asyncio.Event()
    go_on = asyncio.Event()
    ran: list[str] = []

    @engine.task(dag="d")
    def a() -> int:
        ran.append("a")
        return 1

    @engine.task(dag="d", deps=[a])
    async def b(a: int) -> int:
        ran.append("b")
        begun.set()
        await go_on.wait()
        return a + 1

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    (alive,) = engine.list_runs()
    with pytest.raises(RunAliveError, match="still running"):  # S5
        await engine.resume(alive.run_id)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    go_on.set()
    new = await engine.resume(alive.run_id)
    assert ran == ["a", "b", "b"]
    assert engine.get_run_report(new)["tasks"]["b"]["result"] == 2


async def test_resume_while_a_successor_is_alive_is_refused(engine: Engine) -> None:  # S5
    begun, go_on = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @engine.task(dag="d")
    async def a() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError
        begun.set()
        await go_on.wait()

    old = await engine.run_once("d")
    second = asyncio.create_task(engine.resume(old))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    with pytest.raises(RunAliveError):
        await engine.resume(old)
    with pytest.raises(RunAliveError):
        await engine.resume(old, from_tasks=["a"])
    go_on.set()
    assert engine.get_run_report(await second)["status"] == "SUCCESS"
    assert calls == [1, 1]


async def test_resume_takes_a_context(engine: Engine) -> None:
    @engine.task(dag="d")
    def a(context: RunContext[Any]) -> int:
        return int(context.deps)

    old = await engine.run_once("d", RunContext("no number"))
    new = await engine.resume(old, context=RunContext("7"))
    assert engine.get_run_report(new)["tasks"]["a"]["result"] == 7


@pytest.mark.parametrize(
    ("wrong", "error"), [("load", TypeError), (["laod"], UnknownTaskError), (7, TypeError)]
)
async def test_wrong_checkpoints_are_refused(
    engine: Engine, wrong: Any, error: type[Exception]
) -> None:
    Job(engine)
    old = await engine.run_once("d")
    with pytest.raises(error):
        await engine.resume(old, from_tasks=wrong)
    assert len(engine.list_runs()) == 1


@pytest.mark.parametrize("durable", [False, True])
async def test_resume_of_a_task_that_copies_its_inputs_is_given_what_the_first_attempt_was_given(  # S4
    make_engine: MakeEngine, durable: bool, tmp_path: Path
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    engine = make_engine(state_store=store)
    given: list[tuple[object, ...]] = []
    fixed, stalled = False, asyncio.Event()
    engine.task(name="rows", dag="d")(lambda: [{"n": 1}])
    engine.task(name="number", dag="d")(lambda: 7)
    engine.task(name="once", dag="d", retain_result=False)(lambda: [5])
    engine.task(name="items", dag="d")(lambda: {"a": [1]})

    @engine.task(dag="d", retries=1, copy_inputs=True)
    def spoil(rows: list[dict[str, int]], number: int, once: list[int]) -> None:
        given.append(("spoil", *map(dict, rows), number, *once))
        rows.append({"n": 2})
        rows[0]["n"] = 3
        once.append(6)
        if not fixed:
            raise ValueError

    @engine.task(dag="d", deps=["number", "items"], timeout_s=None, copy_inputs=True)
    async def stall(upstream: dict[str, Any]) -> None:
        assert upstream["number"] == 7
        items = upstream["items"]
        given.append(("stall", *items["a"]))
        items["a"].append(2)
        if not fixed:
            stalled.set()
            await asyncio.Event().wait()

    async def stop_when_stalled(run: asyncio.Task[str]) -> str:
        await asyncio.wait_for(stalled.wait(), WAIT_S)
        stalled.clear()
        newest = engine.list_runs()[0].run_id
        while engine.get_run_report(newest)["tasks"]["spoil"]["status"] != "FAILED":
            await asyncio.sleep(0)
        assert engine.cancel(newest)
        with pytest.raises(asyncio.CancelledError):
            await run
        return newest

    first = await stop_when_stalled(asyncio.create_task(engine.run_once("d")))
    again = await stop_when_stalled(asyncio.create_task(engine.resume(first)))
    fixed = True
    last = await engine.resume(again)
    assert engine.get_run_report(last)["status"] == "SUCCESS"
    assert sorted(given) == [("spoil", {"n": 1}, 7, 5)] * 5 + [("stall", 1)] * 3  # with retries
    store.close()


async def test_resume_of_a_task_whose_input_is_made_anew_is_given_the_new_one(  # S2 S4
    engine: Engine,
) -> None:
    versions = iter(["old", "new"])
    seen: list[list[str]] = []
    engine.task(name="rows", dag="d")(lambda: [next(versions)])

    @engine.task(dag="d")
    def spoil(rows: list[str]) -> None:
        seen.append(list(rows))
        rows.clear()
        if len(seen) == 1:
            raise ValueError

    run_id = await engine.run_once("d")
    await engine.resume(run_id, from_tasks=["rows"])
    assert seen == [["old"], ["new"]]


def test_run_that_is_pruned_while_it_is_resumed_is_unknown(  # D7
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    class Pruning(SqliteStateStore):
        def create_run(self, run: RunRecord) -> None:
            if run.resumed_from:
                self.prune_runs(keep_last=0, created_before=None)
            super().create_run(run)

    with closing(Pruning(tmp_path / "runs.db")) as store:
        engine = make_engine(state_store=store)
        engine.task(name="a", dag="d")(lambda: 1)
        engine.task(name="b", dag="d", deps=["a"])(lambda: 1 / 0)
        run_id = asyncio.run(engine.run_once("d"))
        with pytest.raises(UnknownRunError, match="or it was pruned"):
            asyncio.run(engine.resume(run_id))
        engine.close()


async def test_what_depends_on_a_task_that_runs_again_runs_again_too(  # S3
    make_engine: MakeEngine,
) -> None:
    store = InMemoryStateStore()
    ran: list[str] = []
    failing = [True]

    def declare(engine: Engine, refunds: bool) -> None:
        dag = engine.dag("d")
        dag.task("orders")(lambda: ran.append("orders") or [1, 2])
        clean = ["orders"]
        if refunds:
            dag.task("refunds")(lambda: ran.append("refunds") or [-1])
            clean.append("refunds")
        dag.task("clean", deps=clean)(lambda upstream: sum(map(sum, upstream.values())))
        dag.task("total", deps=["clean"])(lambda clean: ran.append("total") or clean)

        @dag.task(deps=["total"])
        def mail(total: int) -> int:
            if failing:
                raise ValueError
            return total

    engine = make_engine(state_store=store)
    declare(engine, refunds=False)
    run_id = await engine.run_once("d")
    changed = make_engine(state_store=store)
    declare(changed, refunds=True)
    failing.clear()
    ran.clear()
    plan = changed.plan_resume(run_id)
    assert plan.tasks["orders"].action == "keep"
    assert plan.tasks["total"].why == "depends on 'clean', which runs again"
    report = changed.get_run_report(await changed.resume(run_id))
    assert report["tasks"]["mail"]["result"] == 2
    assert sorted(ran) == ["refunds", "total"]
