"""The parameters of a run: given to tasks, kept, replaced by a resume, refused."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from flowrun import DagScope, Engine, Param, RunContext, SqliteStateStore
from flowrun.errors import OverrideError, ParameterError

from ..conftest import statuses

MakeEngine = Callable[..., Engine]
DAY = dt.date(2013, 2, 8)


class Job:
    """Tasks with parameters; it notes what ran."""

    def __init__(self, engine: Engine) -> None:
        self.ran: list[str] = []
        self.broken = False
        dag = engine.dag("daily")

        @dag.task
        def extract(day: Param[dt.date], limit: Param[int] = 10) -> list[str]:
            self.ran.append("extract")
            return [day.isoformat(), str(limit)]

        @dag.task
        async def load(extract: list[str], *, mode: Param[str | None] = None) -> str:
            self.ran.append("load")
            if self.broken:
                raise ValueError
            return f"{'/'.join(extract)} {mode}"

        @dag.task
        def other() -> None:
            self.ran.append("other")


@pytest.mark.parametrize("durable", [False, True])
async def test_parameters_are_converted_given_and_stored(
    file: SqliteStateStore, make_engine: MakeEngine, durable: bool
) -> None:
    options = {"state_store": file} if durable else {}
    engine = make_engine(**options)
    Job(engine)
    params = {"day": "2013-02-08", "mode": "quick"}
    run_id = await engine.run_once("daily", params=params)
    report = engine.get_run_report(run_id)
    assert report["tasks"]["load"]["result"] == "2013-02-08/10 quick"
    assert report["params"] == params
    assert engine.list_runs()[0].params == params
    assert "  parameters      day=2013-02-08, mode=quick\n" in engine.report_text(run_id)
    assert "<dt>Parameters</dt><dd>day=2013-02-08, mode=quick</dd>" in engine.report_html(run_id)


def _run_in_plain_code(dag: DagScope) -> str:
    return dag.run(params={"day": DAY}, overrides={"load": "x"})["run_id"]


async def test_every_way_to_run_takes_parameters(engine: Engine) -> None:
    job = Job(engine)
    dag = engine.dag("daily")
    runs = [
        await dag.run_once(params={"day": DAY}),
        await engine.run_subgraph("daily", ["extract"], params={"day": DAY}),
        await dag.run_subgraph(["extract"], params={"day": DAY}),
        (await engine.start("daily", params={"day": DAY}, overrides={"load": "x"}))["run_id"],
        await asyncio.to_thread(_run_in_plain_code, dag),
    ]
    for run_id in runs:
        report = engine.get_run_report(run_id)
        assert report["params"] == {"day": "2013-02-08"}
        assert report["tasks"]["extract"]["result"] == ["2013-02-08", "10"]
    assert job.ran.count("load") == 1


async def test_parameter_wins_over_a_task_of_its_name(engine: Engine) -> None:  # G4
    dag = engine.dag("d")

    @dag.task
    def day() -> str:
        return "of the task"

    @dag.task
    def inferred(day: Param[str]) -> str:
        return day

    @dag.task(deps=[day])
    def listed(day: Param[str] = "of the default", **rest: Any) -> tuple[str, dict[str, Any]]:
        return day, rest

    @dag.task(deps=[day])
    def all_of_them(upstream: dict[str, Any], /, day: Param[str]) -> tuple[Any, str]:
        return upstream, day

    assert engine.graph("d").deps()["inferred"] == []
    run_id = await engine.run_once("d", params={"day": "of the run"})
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["inferred"]["result"] == "of the run"
    assert tasks["listed"]["result"] == ("of the run", {})
    assert tasks["all_of_them"]["result"] == ({"day": "of the task"}, "of the run")


async def test_parameters_by_position_and_of_a_template(engine: Engine) -> None:
    def fetch(first: list[int], day: Param[dt.date], /, *, table: Param[str]) -> Any:
        return first, day, table

    engine.task(dag="d", name="first")(lambda: [1])
    engine.task_template(fetch, dag="d").bind("fetch", table="bound")
    run_id = await engine.run_once("d", params={"day": DAY})
    assert engine.get_run_report(run_id)["tasks"]["fetch"]["result"] == ([1], DAY, "bound")
    with pytest.raises(ParameterError, match="'table' is of no task of this run"):
        await engine.run_once("d", params={"day": DAY, "table": "x"})


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        (None, r"'day' is missing: task 'extract' requires it \(date\); pass params="),
        ({"day": 20130208}, "'day' of task 'extract' must be date, not 20130208; correct params="),
        ({"day": DAY, "limit": "x"}, "'limit' of task 'extract' must be int, not 'x'"),
        ({"day": DAY, "lmit": 3}, "'lmit' is of no task of this run; .*Did you mean 'limit'"),
        ({"day": DAY, 3: 3}, "the parameter 3 is of no task"),
    ],
)
async def test_parameters_that_do_not_fit_are_refused_before_anything_runs(
    engine: Engine, params: Any, problem: str
) -> None:
    job = Job(engine)
    with pytest.raises(ParameterError, match=f"DAG 'daily': .*{problem}") as caught:
        await engine.run_once("daily", params=params)
    assert caught.value.dag_name == "daily"
    with pytest.raises(ParameterError):
        await engine.run_subgraph("daily", ["extract"], params=params)
    assert (job.ran, engine.list_runs()) == ([], [])


async def test_parameters_that_are_no_mapping_are_refused(engine: Engine) -> None:
    Job(engine)
    with pytest.raises(TypeError, match="params must be a mapping"):
        await engine.run_once("daily", params=["day"])  # type: ignore[arg-type]


async def test_tasks_may_read_one_parameter_as_different_types(engine: Engine) -> None:
    @engine.task(dag="d")
    def text(day: Param[str]) -> str:
        return day

    @engine.task(dag="d")
    def date(day: Param[dt.date]) -> dt.date:
        return day

    tasks = engine.get_run_report(await engine.run_once("d", params={"day": "2013-02-08"}))["tasks"]
    assert (tasks["text"]["result"], tasks["date"]["result"]) == ("2013-02-08", DAY)
    with pytest.raises(ParameterError, match="'day' of task 'text' must be str, not datetime.date"):
        await engine.run_once("d", params={"day": DAY})


async def test_resume_keeps_parameters_and_runs_what_reads_a_replaced_one(
    engine: Engine,
) -> None:  # S3
    job = Job(engine)
    job.broken = True
    old = await engine.run_once("daily", params={"day": DAY, "limit": 3})
    job.broken = False
    job.ran.clear()
    new = await engine.resume(old)
    assert job.ran == ["load"]
    assert engine.get_run_report(new)["params"] == {"day": "2013-02-08", "limit": 3}
    assert engine.plan_resume(new, params={"limit": "3", "day": "2013-02-08"}).to_run == []
    plan = engine.plan_resume(new, params={"limit": 4})
    assert {name: task.why for name, task in plan.tasks.items()} == {
        "extract": "its parameter 'limit' is replaced",
        "other": "succeeded before",
        "load": "depends on 'extract', which runs again",
    }
    assert engine.plan_resume(new, params={"mode": "quick"}).to_run == ["load"]
    job.ran.clear()
    last = await engine.resume(new, params={"limit": 4})
    assert job.ran == ["extract", "load"]
    report = engine.get_run_report(last)
    assert report["params"] == {"day": "2013-02-08", "limit": 4}
    assert report["tasks"]["load"]["result"] == "2013-02-08/4 None"
    with pytest.raises(ParameterError, match="'limit' of task 'extract' must be int, not 'many'"):
        await engine.resume(last, params={"limit": "many"})


async def test_resume_with_tasks_that_read_other_parameters(
    file: SqliteStateStore, make_engine: MakeEngine
) -> None:
    store = file
    before = make_engine(state_store=store)

    @before.task(dag="d", name="a")
    def old_a(n: Param[str], gone: Param[str]) -> str:
        return n + gone

    old = await before.run_once("d", params={"n": "x", "gone": "y"})
    now = make_engine(state_store=store)

    @now.task(dag="d", name="a")
    def new_a(n: Param[int]) -> int:
        return n

    with pytest.raises(ParameterError, match="'n' of task 'a' must be int, not 'x'"):
        now.plan_resume(old)
    assert now.plan_resume(old, params={"n": 3}).tasks["a"].why == "its parameter 'n' is replaced"
    report = now.get_run_report(await now.resume(old, params={"n": 3}))
    assert (report["params"], statuses(report)) == ({"n": 3}, {"a": "SUCCESS"})


async def test_parameter_that_only_an_overridden_task_has_is_known(engine: Engine) -> None:
    Job(engine)
    run_id = await engine.run_once("daily", overrides={"extract": ["x"]})
    assert engine.get_run_report(run_id)["tasks"]["load"]["result"] == "x None"
    await engine.run_once("daily", params={"day": DAY}, overrides={"extract": ["x"]})
    with pytest.raises(ParameterError, match="'day' holds a list, which no parameter can be"):
        await engine.run_once("daily", params={"day": [1]}, overrides={"extract": ["x"]})


async def test_function_that_overrides_a_task_reads_its_parameters_and_context(
    engine: Engine,
) -> None:
    @engine.task(dag="d")
    def a(context: RunContext[dict[str, int]], day: Param[dt.date]) -> None: ...

    def fake(context, day, more: Param[int] = 1):  # type: ignore[no-untyped-def]
        return context.n, day, more

    context = RunContext({"n": 1})
    params = {"day": DAY, "more": "2"}
    run_id = await engine.run_once("d", context, params=params, overrides={"a": fake})
    assert engine.get_run_report(run_id)["tasks"]["a"]["result"] == (1, DAY, 2)
    with pytest.raises(OverrideError, match="requires 'n'"):
        await engine.run_once("d", context, params=params, overrides={"a": lambda n: n})
