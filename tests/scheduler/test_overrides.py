"""Tasks overridden for one run, by a value or by another function."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    ProcessPerAttemptExecutor,
    RunContext,
    SqliteStateStore,
    fn_hook,
)
from flowrun.errors import ContextError, OverrideError, ResultNotStorableError, StoreError

from ..conftest import statuses

MakeEngine = Callable[..., Engine]


class Job:
    """A chain of three tasks; it notes what ran."""

    def __init__(self, engine: Engine) -> None:
        self.ran: list[str] = []
        dag = engine.dag("d")

        @dag.task
        def first() -> int:
            self.ran.append("first")
            return 1

        @dag.task
        def extract(first: int) -> list[int]:
            self.ran.append("extract")
            return [first]

        @dag.task
        def load(extract: list[int]) -> str:
            self.ran.append("load")
            return f"loaded {extract}"


@pytest.mark.parametrize("durable", [False, True])
async def test_value_stands_for_a_result_and_a_callable_for_a_function(
    file: SqliteStateStore, make_engine: MakeEngine, durable: bool
) -> None:
    store = file if durable else InMemoryStateStore()
    events: list[tuple[str, str, int]] = []
    hook = fn_hook(
        on_task_start=lambda e: events.append(("start", e.task_name, e.attempt)),
        on_task_success=lambda e: events.append(("success", e.task_name, e.attempt)),
    )
    engine = make_engine(state_store=store, hooks=[hook])
    job = Job(engine)

    async def fake_load(extract: list[int]) -> str:
        await asyncio.sleep(0)
        return f"faked {extract}"

    overrides = {"extract": [1, 2, 3], "load": fake_load}
    run_id = await engine.run_once("d", overrides=overrides)
    report = engine.get_run_report(run_id)
    task = report["tasks"]["extract"]
    assert (task["status"], task["attempt"], task["attempts"]) == ("SUCCESS", 0, [])
    assert (task["result"], task["started_at"]) == ([1, 2, 3], None)
    assert report["tasks"]["load"]["result"] == "faked [1, 2, 3]"
    by = {name: each["overridden"] for name, each in report["tasks"].items()}
    assert by == {"first": None, "extract": "value", "load": "function"}
    assert (job.ran, report["status"]) == (["first"], "SUCCESS")
    assert events == [
        ("start", "first", 1),
        ("success", "first", 1),
        ("success", "extract", 0),
        ("start", "load", 1),
        ("success", "load", 1),
    ]
    text = engine.report_text(run_id, width=120)
    assert "  overridden      extract (by a value), load (by a function)\n" in text
    assert text.endswith("overridden by a function")
    page = engine.report_html(run_id)
    assert "<dt>Overridden</dt><dd>extract (by a value), load (by a function)</dd>" in page
    assert '"why":"overridden by a value"' in page
    job.ran.clear()
    await engine.run_once("d")
    assert job.ran == ["first", "extract", "load"]


async def test_every_way_to_run_takes_overrides(engine: Engine) -> None:
    job = Job(engine)
    dag = engine.dag("d")
    for run_id in (
        await dag.run_once(overrides={"first": 5}),
        await engine.run_subgraph("d", ["extract"], overrides={"first": 5}),
        await dag.run_subgraph(["extract"], overrides={"first": 5}),
    ):
        assert engine.get_run_report(run_id)["tasks"]["extract"]["result"] == [5]
    assert "first" not in job.ran


async def test_resume_without_overrides_runs_those_tasks_again(engine: Engine) -> None:  # S3
    job = Job(engine)
    for overrides in ({"extract": [9]}, {"extract": lambda: [9]}):
        job.ran.clear()
        old = await engine.run_once("d", overrides=overrides)
        plan = engine.plan_resume(old)
        assert {name: task.why for name, task in plan.tasks.items()} == {
            "first": "succeeded before",
            "extract": "was overridden before",
            "load": "depends on 'extract', which runs again",
        }
        new = await engine.resume(old)
        assert job.ran == ["first", "load", "extract", "load"]
        report = engine.get_run_report(new)
        assert report["tasks"]["load"]["result"] == "loaded [1]"
        assert {task["overridden"] for task in report["tasks"].values()} == {None}
        assert engine.plan_resume(new).to_run == []


async def test_resume_with_overrides(file: SqliteStateStore, make_engine: MakeEngine) -> None:
    engine = make_engine(state_store=file)
    job = Job(engine)

    def breaks(extract: list[int]) -> None:
        raise ValueError(extract)

    old = await engine.run_once("d", overrides={"load": breaks})
    plan = engine.plan_resume(old, overrides={"extract": [7]})
    assert plan.tasks["extract"].why == "is overridden"
    assert plan.to_run == ["extract", "load"]
    new = await engine.resume(old, overrides={"extract": [7]})
    report = engine.get_run_report(new)
    assert (job.ran, report["tasks"]["load"]["result"]) == (
        ["first", "extract", "load"],
        "loaded [7]",
    )
    assert [task["overridden"] for task in report["tasks"].values()] == [None, "value", None]


async def test_value_needs_no_inputs_again(engine: Engine) -> None:  # S2
    dag = engine.dag("d")
    ran: list[str] = []

    @dag.task(retain_result=False)
    def big() -> int:
        ran.append("big")
        return 1

    @dag.task
    def small(big: int) -> int:
        raise ValueError(big)

    old = await engine.run_once("d")
    assert engine.plan_resume(old).to_run == ["big", "small"]
    assert engine.plan_resume(old, overrides={"small": 2}).to_run == ["small"]
    assert statuses(engine.get_run_report(await engine.resume(old, overrides={"small": 2}))) == {
        "big": "SUCCESS",
        "small": "SUCCESS",
    }
    assert ran == ["big"]


async def test_value_of_a_task_that_retains_nothing_reaches_its_consumers(engine: Engine) -> None:
    dag = engine.dag("d")
    dag.task(retain_result=False, name="a")(lambda: 1)
    dag.task(name="b", deps=["a"])(lambda a: a)
    tasks = engine.get_run_report(await engine.run_once("d", overrides={"a": 2}))["tasks"]
    assert (tasks["a"]["result_state"], tasks["b"]["result"]) == ("released", 2)


async def test_overridden_task_whose_parent_fails_is_skipped(engine: Engine) -> None:
    dag = engine.dag("d")

    @dag.task
    def bad() -> None:
        raise ValueError

    dag.task(name="a", deps=[bad])(lambda: 1)
    dag.task(name="any", deps=[bad], trigger_rule="all_done")(lambda: 1)
    run_id = await engine.run_once("d", overrides={"a": 2, "any": 3})
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"bad": "FAILED", "a": "SKIPPED", "any": "SUCCESS"}
    assert report["tasks"]["any"]["result"] == 3


async def test_branch_is_overridden_by_its_choice(engine: Engine) -> None:
    dag = engine.dag("d")

    @dag.branch
    def which() -> str:
        return "left"

    @dag.task(deps=[which])
    def left() -> None: ...

    @dag.task(deps=[which])
    def right() -> None: ...

    for given in ("right", lambda: right):
        run_id = await engine.run_once("d", overrides={"which": given, "right": lambda: 1})
        assert statuses(engine.get_run_report(run_id)) == {
            "which": "SUCCESS",
            "left": "OMITTED",
            "right": "SUCCESS",
        }
    with pytest.raises(OverrideError, match="'which' cannot be a result: .* returned 'up'"):
        await engine.run_once("d", overrides={"which": "up"})


async def test_overridden_task_needs_no_context(engine: Engine) -> None:
    @engine.task(dag="d")
    def a(context: RunContext[Any]) -> None: ...

    with pytest.raises(ContextError):
        await engine.run_once("d")
    await engine.run_once("d", overrides={"a": None})
    await engine.run_once("d", overrides={"a": lambda: None})
    with pytest.raises(ContextError):
        await engine.run_once("d", overrides={"a": lambda context: None})


async def test_mock_stands_for_a_function(engine: Engine) -> None:
    Job(engine)
    load = Mock(return_value="mocked")
    report = engine.get_run_report(await engine.run_once("d", overrides={"load": load}))
    assert report["tasks"]["load"]["result"] == "mocked"
    load.assert_called_once_with(extract=[1])


async def test_async_function_stands_for_one_on_an_executor(make_engine: MakeEngine) -> None:
    with ProcessPerAttemptExecutor(1) as pool:
        engine = make_engine(executors={"processes": pool})
        engine.task(dag="d", name="a", executor="processes")(os.getpid)

        async def fake() -> int:
            return 5

        run_id = await engine.run_once("d", overrides={"a": fake})
    assert engine.get_run_report(run_id)["tasks"]["a"]["result"] == 5


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"extrct": 1}, "'extrct' is of no task of this run; .* Did you mean 'extract'"),
        ({5: 1}, "task 5 is of no task of this run"),
        ({"first": lambda n: n}, r"'first' requires 'n', which nothing fills; .* \(none\)"),
        ({"load": lambda extract, upstream: 1}, "'load' requires 'extract', which nothing fills"),
        ({"load": lambda: (yield)}, "'load' cannot be a task: .*generator"),
        ({"load": map(str, [1])}, "'load' cannot be a result: .*read only once"),
        ({"any": lambda load: load}, "'any' requires 'load', and with trigger_rule='all_done'"),
    ],
)
async def test_override_that_does_not_fit_is_refused_before_anything_runs(
    engine: Engine, overrides: dict[Any, Any], problem: str
) -> None:
    job = Job(engine)
    engine.task(dag="d", name="any", deps=["load"], trigger_rule="all_done")(lambda: 1)
    with pytest.raises(OverrideError, match=f"DAG 'd': the override of .*{problem}") as caught:
        await engine.run_once("d", overrides=overrides)
    assert [caught.value.name] == list(overrides)
    assert (job.ran, engine.list_runs()) == ([], [])


async def test_overrides_that_are_no_mapping_are_refused(engine: Engine) -> None:
    Job(engine)
    with pytest.raises(TypeError, match="overrides must be a mapping"):
        await engine.run_once("d", overrides=["load"])  # type: ignore[arg-type]


async def test_value_that_the_store_cannot_keep_is_refused_before_anything_runs(
    file: SqliteStateStore, make_engine: MakeEngine
) -> None:
    engine = make_engine(state_store=file)
    job = Job(engine)
    with pytest.raises(OverrideError, match="'extract' cannot be a result: .*object"):
        await engine.run_once("d", overrides={"extract": object()})
    assert (job.ran, engine.list_runs()) == ([], [])


class Picky(InMemoryStateStore):
    """Refuses what tasks have returned, in one of two ways."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def save(self, changes: Any) -> None:
        if any(change.task and change.task.status == "SUCCESS" for change in changes):
            raise self.error
        super().save(changes)


async def test_value_that_the_store_refuses_when_it_saves_fails_its_task(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(state_store=Picky(ResultNotStorableError("not that")))
    Job(engine)
    run_id = await engine.run_once("d", overrides={"first": 1})
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"first": "FAILED", "extract": "SKIPPED", "load": "SKIPPED"}
    assert "not that" in (report["tasks"]["first"]["error"] or "")


async def test_store_that_breaks_at_a_value_ends_the_run(make_engine: MakeEngine) -> None:  # R4
    engine = make_engine(state_store=Picky(StoreError("the disk is gone")))
    Job(engine)
    with pytest.raises(StoreError, match="the disk is gone"):
        await engine.run_once("d", overrides={"first": 1})
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report)["first"] == "FAILED"
    assert report["status"] == "FAILED"
