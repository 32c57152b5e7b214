"""The contract's API: building, declaring, running, looking, closing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flowrun
from flowrun import (
    Engine,
    InMemoryStateStore,
    RunContext,
    RunHook,
    SchedulerConfig,
    SqliteStateStore,
    TaskRegistry,
    build_default_engine,
    task,
    task_template,
)
from flowrun.errors import (
    AlreadyResumedError,
    ContextError,
    CycleError,
    DefinitionError,
    EngineClosedError,
    GraphError,
    MissingDependencyError,
    UnknownDagError,
    UnknownRunError,
    UnknownTaskError,
)

from .conftest import WAIT_S, flowrun_threads, statuses

MakeEngine = Callable[..., Engine]


@dataclass(frozen=True)
class Settings:
    source: str


def declare_etl(engine: Engine) -> None:
    etl = engine.dag("etl")

    @etl.task
    def extract() -> list[int]:
        return [1, 2, 3]

    @etl.task(deps=[extract])
    async def transform(extract: list[int]) -> int:
        return sum(extract)

    @etl.task("load", deps=["transform"])
    def write(transform: int) -> str:
        return f"wrote {transform}"


# -- building ---------------------------------------------------------------------------------


def test_defaults_of_the_contract() -> None:
    import inspect

    parameters = inspect.signature(build_default_engine).parameters
    assert {name: parameters[name].default for name in list(parameters)[:6]} == {
        "executor": None,
        "max_workers": 8,
        "max_parallel": 4,
        "logger": None,
        "hooks": None,
        "state_store": None,
    }


@pytest.mark.parametrize("wrong", [0, -1])
def test_max_parallel_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="max_parallel must be 1 or more"):
        build_default_engine(max_parallel=wrong)


def test_max_parallel_must_be_an_int() -> None:
    with pytest.raises(TypeError, match="max_parallel must be an int"):
        build_default_engine(max_parallel=True)


def test_max_workers_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_workers"):
        build_default_engine(max_workers=0)


@pytest.mark.parametrize("name", ["cancel_grace_s", "thread_grace_s", "hook_timeout_s"])
def test_negative_durations_of_the_config_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SchedulerConfig(**{name: -1.0})  # type: ignore[arg-type]


def test_config_keeps_its_other_settings_beside_max_parallel(make_engine: MakeEngine) -> None:
    ids = iter(["run-1"])
    engine = make_engine(config=SchedulerConfig(new_run_id=lambda: next(ids)))
    engine.task(name="a", dag="d")(lambda: 1)
    assert asyncio.run(engine.run_once("d")) == "run-1"


def test_what_is_no_executor_store_or_hook_is_refused() -> None:
    with pytest.raises(TypeError, match="executor 'cpu' must be"):
        build_default_engine(executors={"cpu": object()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="executor 'executor' must be"):
        build_default_engine(executor=ThreadPoolExecutor)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="state_store= takes .* lacks blocking"):
        build_default_engine(state_store=object())  # type: ignore[arg-type]
    for wrong in (object(), RunHook):
        with pytest.raises(TypeError, match="hooks= takes RunHook objects"):
            build_default_engine(hooks=[wrong])  # type: ignore[list-item]

    with pytest.raises(TypeError, match=r"hooks= takes a list of .* write hooks=\[...\]"):
        build_default_engine(hooks=RunHook())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"state_store= .*: SqliteStateStore\('runs.db'\)"):
        build_default_engine(state_store="runs.db")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not the class InMemoryStateStore: make one of it"):
        build_default_engine(state_store=InMemoryStateStore)  # type: ignore[arg-type]
    for name, kind in (("registry", "TaskRegistry"), ("config", "SchedulerConfig")):
        with pytest.raises(TypeError, match=f"{name}= takes a {kind}, not 3"):
            build_default_engine(**{name: 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"logger= takes a logging.Logger, not 'root'"):
        build_default_engine(logger="root")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="redact= takes a function from text to text, not 'x'"):
        build_default_engine(redact="x")  # type: ignore[arg-type]

    async def nobody_awaits(event: object) -> None:
        """Never called."""

    with pytest.raises(TypeError, match="is an async function"):
        build_default_engine(hooks=[flowrun.fn_hook(on_dag_end=nobody_awaits)])


class Empty:
    """Something that has no elements, so that it is false."""

    def __len__(self) -> int:
        return 0


async def test_what_is_empty_is_used_all_the_same(make_engine: MakeEngine) -> None:
    class Registry(flowrun.TaskRegistry, Empty):
        pass

    class Pool(ThreadPoolExecutor, Empty):
        pass

    registry, heard = Registry(), list[str]()
    hooks = (flowrun.fn_hook(on_dag_end=lambda event: heard.append(event.status)) for _ in "ab")
    with Pool(1, thread_name_prefix="mine") as pool:
        engine = make_engine(registry=registry, executor=pool, hooks=hooks)
        assert engine.registry is registry
        engine.task(name="who", dag="d")(lambda: threading.current_thread().name)
        report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["who"]["result"] == "mine_0"
    assert heard == ["SUCCESS", "SUCCESS"]


# -- running and looking ----------------------------------------------------------------------


async def test_run_once_runs_a_dag_and_reports_it(engine: Engine) -> None:
    declare_etl(engine)
    engine.validate("etl")
    run_id = await engine.run_once("etl")
    report = engine.get_run_report(run_id)
    assert report["run_id"] == run_id
    assert report["dag_name"] == "etl"
    assert report["status"] == "SUCCESS"
    assert report["finished_at"] is not None
    assert report["created_at"] <= report["finished_at"]
    assert list(report["tasks"]) == ["extract", "transform", "load"]
    load = report["tasks"]["load"]
    assert {
        key: load[key]  # type: ignore[literal-required]
        for key in ("status", "attempt", "error", "result")
    } == {"status": "SUCCESS", "attempt": 1, "error": None, "result": "wrote 6"}
    assert load["started_at"] is not None
    assert load["finished_at"] is not None
    assert load["started_at"] <= load["finished_at"]


async def test_scope_runs_displays_and_lists_its_dag(engine: Engine) -> None:
    declare_etl(engine)
    scope = engine.dag("etl")
    scope.validate()
    assert scope.name == "etl"
    assert scope.list_tasks() == ["extract", "transform", "load"]
    assert "transform" in scope.display()
    run_id = await scope.run_once()
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    partial_id = await scope.run_subgraph(["transform"])
    assert statuses(engine.get_run_report(partial_id)) == {
        "extract": "SUCCESS",
        "transform": "SUCCESS",
    }
    assert repr(scope) == "<DagScope 'etl'>"


def test_scope_templates_belong_to_its_dag(engine: Engine) -> None:
    etl = engine.dag("etl")

    def fetch(*, table: str) -> str:
        return f"rows of {table}"

    etl.task_template(fetch, retries=2).bind("fetch_users", table="users")

    @etl.task_template(timeout_s=None)
    def count(*, table: str) -> int:
        return len(table)

    count.bind("count_users", table="users")
    assert engine.list_tasks("etl") == ["fetch_users", "count_users"]
    assert engine.registry.specs("etl")[0].retries == 2
    assert engine.registry.specs("etl")[1].timeout_s is None


def test_scope_refuses_another_dag(engine: Engine) -> None:
    with pytest.raises(DefinitionError, match="this scope registers in 'etl'"):
        engine.dag("etl").task(dag="other")


def test_engine_templates(engine: Engine) -> None:
    @engine.task_template(dag="etl")
    def fetch(*, table: str) -> str:
        return table

    fetch.bind("users", table="users")
    engine.task_template(lambda *, table: table, dag="etl").bind("orders", table="orders")
    run_id = asyncio.run(engine.run_once("etl"))
    tasks = engine.get_run_report(run_id)["tasks"]
    assert {name: entry["result"] for name, entry in tasks.items()} == {
        "users": "users",
        "orders": "orders",
    }


async def test_global_decorator_with_an_activated_registry(make_engine: MakeEngine) -> None:
    registry = TaskRegistry()
    token = registry.activate()

    @task
    def first() -> int:
        return 1

    @task("second", deps=[first])
    def other(first: int) -> int:
        return first + 1

    template = task_template(lambda *, n: n)
    template.bind("third", n=3)
    TaskRegistry.deactivate(token)
    engine = make_engine(registry=registry)
    run_id = await engine.run_once("anything")
    report = engine.get_run_report(run_id)
    assert report["dag_name"] == "anything"
    assert {name: entry["result"] for name, entry in report["tasks"].items()} == {
        "first": 1,
        "third": 3,
        "second": 2,
    }
    assert engine.list_dags() == []


def test_list_dags_and_tasks_are_in_order(engine: Engine) -> None:
    engine.task(name="b", dag="second", deps=["a"])(lambda: 1)
    engine.task(name="a", dag="second")(lambda: 1)
    engine.task(name="a", dag="first")(lambda: 1)
    assert engine.list_dags() == ["second", "first"]
    assert engine.list_tasks("second") == ["a", "b"]
    assert repr(engine) == "<Engine open, DAGs: 'second', 'first'>"


def test_unknown_dag_suggests_and_lists(engine: Engine) -> None:
    declare_etl(engine)
    for call in (engine.validate, engine.list_tasks, engine.display_dag):
        with pytest.raises(UnknownDagError, match=r"available DAGs: 'etl'\. Did you mean 'etl'"):
            call("elt")
    with pytest.raises(ValueError, match="unknown DAG"):
        asyncio.run(engine.run_once(7))  # type: ignore[arg-type]


def test_mixed_registry_tells_which_tasks_belong_to_no_dag(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare_etl(engine)

    @engine.task
    def forgotten() -> None:
        return None

    with pytest.raises(UnknownDagError, match="belong to no DAG: 'forgotten'"):
        engine.validate("other")
    with caplog.at_level(logging.WARNING):
        engine.validate("etl")
        engine.validate("etl")
    assert [record.message for record in caplog.records] == [
        "these tasks belong to no DAG and are never run: 'forgotten'; give them dag=..."
    ]


def test_graph_is_built_again_when_the_registry_changes(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    assert engine.list_tasks("d") == ["a"]
    engine.task(name="b", dag="d")(lambda: 1)
    assert engine.list_tasks("d") == ["a", "b"]


async def test_mistakes_are_found_before_anything_runs(engine: Engine) -> None:  # G1
    ran: list[str] = []
    engine.task(name="a", dag="d")(lambda: ran.append("a"))
    engine.task(name="b", dag="d", deps=["missing"])(lambda: ran.append("b"))
    with pytest.raises(MissingDependencyError, match="DAG 'd': task 'b' .* 'missing'"):
        await engine.run_once("d")
    engine.task(name="x", dag="e", deps=["y"])(lambda: None)
    engine.task(name="y", dag="e", deps=["x"])(lambda: None)
    with pytest.raises(CycleError, match="x -> y -> x|y -> x -> y"):
        await engine.run_once("e")
    assert ran == []


def test_executor_that_the_engine_does_not_have(make_engine: MakeEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        engine = make_engine(executors={"gpu": pool})
        engine.task(name="a", dag="d", executor="cpu")(lambda: 1)
        with pytest.raises(GraphError, match="'a' uses executor 'cpu'; the engine has 'gpu'"):
            engine.validate("d")


# -- context ----------------------------------------------------------------------------------


async def test_context_reaches_the_tasks_that_ask(engine: Engine) -> None:
    @engine.task(dag="d")
    def read(context: RunContext[Settings]) -> str:
        return f"from {context.source}"

    @engine.task(dag="d")
    async def read_later(read: str, context: RunContext[Settings]) -> str:
        return f"{read} for {context.deps.source}"

    run_id = await engine.run_once("d", RunContext(Settings("orders.csv")))
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["read_later"]["result"] == "from orders.csv for orders.csv"


async def test_missing_or_wrong_context_is_refused_before_anything_runs(engine: Engine) -> None:
    ran: list[str] = []

    @engine.task(dag="d")
    def first() -> None:
        ran.append("first")

    @engine.task(dag="d", deps=[first])
    def read(context: RunContext[Settings]) -> str:
        return context.source

    with pytest.raises(ContextError, match="DAG 'd': task.* 'read' ask for a RunContext"):
        await engine.run_once("d")
    with pytest.raises(TypeError, match="context must be a RunContext, not Settings"):
        await engine.run_once("d", Settings("x"))  # type: ignore[arg-type]
    assert ran == []


# -- sub-graphs -------------------------------------------------------------------------------


async def test_subgraph_runs_targets_and_what_they_need(engine: Engine) -> None:
    declare_etl(engine)
    run_id = await engine.run_subgraph("etl", ["transform"])
    report = engine.get_run_report(run_id)
    assert list(report["tasks"]) == ["extract", "transform"]
    assert report["targets"] == ["transform"]
    assert report["status"] == "SUCCESS"


async def test_subgraph_takes_decorated_callables(engine: Engine) -> None:
    @engine.task(dag="d")
    def a() -> int:
        return 1

    @engine.task(dag="d", deps=[a])
    def b(a: int) -> int:
        return a

    run_id = await engine.run_subgraph("d", [a, "a"])  # type: ignore[list-item]
    assert engine.get_run_report(run_id)["targets"] == ["a"]


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([], ValueError, "targets is empty"),
        ("load", TypeError, r"targets must be a list of tasks, not 'load'; write targets=\["),
        (7, TypeError, "targets must be a list"),
        (["laod"], UnknownTaskError, "DAG 'etl' has no task 'laod'.*Did you mean 'load'"),
        ([len], UnknownTaskError, "DAG 'etl' has no task"),
        ([7], UnknownTaskError, "DAG 'etl' has no task"),
    ],
)
async def test_wrong_targets_are_refused(
    engine: Engine, targets: Any, error: type[Exception], message: str
) -> None:
    declare_etl(engine)
    with pytest.raises(error, match=message):
        await engine.run_subgraph("etl", targets)
    assert engine.list_runs() == []


# -- reports, lists, pruning ------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["nope", 7, None, {"run_id": "r"}])
async def test_unknown_run_id(engine: Engine, wrong: Any) -> None:
    remedy = r"list_runs\(\) lists" if isinstance(wrong, str) else r'report\["run_id"\] in its'
    for ask in (engine.get_run_report, engine.report_text, engine.report_html, engine.cancel):
        with pytest.raises(UnknownRunError, match=f"no run.*{remedy}"):
            ask(wrong)
    with pytest.raises(KeyError):
        engine.plan_resume(wrong)
    with pytest.raises(UnknownRunError, match=remedy):
        await engine.resume(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"status": "FAIL"}, "status must be one of 'RUNNING', 'SUCCESS', 'FAILED', or None, not"),
        ({"dag_name": RunHook}, "dag_name must be the name of a DAG or None, not <class"),
        ({"before": {"run_id": "r"}}, "no run"),
    ],
)
def test_runs_are_not_listed_by_what_cannot_be_meant(
    engine: Engine, wrong: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        engine.list_runs(**wrong)


async def test_a_function_is_no_name_of_a_dag(engine: Engine) -> None:
    engine.task("t", dag="d")(task := (lambda: None))
    not_a_name: Any = task
    with pytest.raises(UnknownDagError, match=r"DAGs: 'd'\. A DAG is given by its name, a str\.$"):
        await engine.run_once(not_a_name)


async def test_metadata_is_kept_and_listed(engine: Engine) -> None:
    declare_etl(engine)
    first = await engine.run_once("etl", metadata={"by": "cron", "tags": ["a"]})
    second = await engine.run_subgraph("etl", ["extract"])
    assert engine.get_run_report(first)["metadata"] == {"by": "cron", "tags": ["a"]}
    runs = engine.list_runs()
    assert [run.run_id for run in runs] == [second, first]
    assert runs[1].metadata == {"by": "cron", "tags": ["a"]}
    assert [run.run_id for run in engine.list_runs("etl", "SUCCESS", limit=1)] == [second]
    assert [run.run_id for run in engine.list_runs(before=second)] == [first]
    assert engine.list_runs("other") == []


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": float("nan")}, {1: "a"}, {"a": (1, 2)}])
async def test_metadata_that_is_no_json_is_refused(engine: Engine, wrong: Any) -> None:
    declare_etl(engine)
    with pytest.raises(ValueError, match="metadata must be a mapping of JSON values"):
        await engine.run_once("etl", metadata=wrong)
    assert engine.list_runs() == []


def test_wrong_list_and_prune_arguments(engine: Engine) -> None:
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        engine.list_runs(limit=0)
    with pytest.raises(ValueError, match="DONE"):
        engine.list_runs(status="DONE")
    with pytest.raises(ValueError, match="say what to delete"):
        engine.prune_runs()
    for wrong in ({"keep_last": -1}, {"older_than_s": -1.0}):
        with pytest.raises(ValueError, match="must be 0 or more"):
            engine.prune_runs(**wrong)  # type: ignore[arg-type]
    for number in (1.5, "2", True):
        with pytest.raises(TypeError, match="keep_last must be a whole number of runs, not"):
            engine.prune_runs(keep_last=number)  # type: ignore[arg-type]


def test_prune_may_keep_more_runs_than_there_can_be(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        assert make_engine(state_store=store).prune_runs(keep_last=10**30) == 0


async def test_prune_keeps_the_newest(engine: Engine) -> None:
    declare_etl(engine)
    runs = [await engine.run_once("etl") for _ in range(3)]
    assert engine.prune_runs(keep_last=1) == 2
    assert [run.run_id for run in engine.list_runs()] == [runs[2]]
    assert engine.prune_runs(older_than_s=3600) == 0
    assert engine.prune_runs(older_than_s=0) == 1


async def test_report_can_leave_results_in_the_store(engine: Engine) -> None:
    declare_etl(engine)
    run_id = await engine.run_once("etl")
    load = engine.get_run_report(run_id, results=False)["tasks"]["load"]
    assert (load["result"], load["result_state"]) == (None, "stored")


async def test_display_shows_a_run(engine: Engine) -> None:
    declare_etl(engine)
    run_id = await engine.run_subgraph("etl", ["extract"])
    shown = engine.display_dag("etl", run_id=run_id)
    assert "extract" in shown
    assert "load" not in shown
    whole = await engine.run_once("etl")
    assert "load" in engine.display_dag("etl", run_id=whole)
    assert "graph" in engine.display_dag("etl", style="mermaid") or "flowchart" in (
        engine.display_dag("etl", style="mermaid")
    )
    assert engine.display_dag("etl", style="dot").startswith("digraph")
    with pytest.raises(ValueError, match="style"):
        engine.display_dag("etl", style="painting")  # type: ignore[arg-type]
    assert engine.report_html(whole).lower().startswith("<!doctype html>")


# -- closing ----------------------------------------------------------------------------------


def test_closed_engine_refuses_work_and_still_reports(make_engine: MakeEngine) -> None:
    engine = make_engine()
    declare_etl(engine)
    run_id = asyncio.run(engine.run_once("etl"))
    engine.close()
    engine.close()
    assert repr(engine).startswith("<Engine closed")
    with pytest.raises(EngineClosedError, match="cannot run a DAG: this engine is closed"):
        asyncio.run(engine.run_once("etl"))
    with pytest.raises(RuntimeError):
        asyncio.run(engine.resume(run_id))
    with pytest.raises(EngineClosedError):
        asyncio.run(engine.run_subgraph("etl", ["load"]))
    with pytest.raises(EngineClosedError):
        engine.task(dag="etl")
    with pytest.raises(EngineClosedError):
        engine.task_template(dag="etl")
    with pytest.raises(EngineClosedError):
        engine.dag("etl").task(lambda: 1)
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


async def test_async_with_closes_and_leaves_no_thread() -> None:
    before = flowrun_threads()
    hook = flowrun.fn_hook(on_dag_end=lambda event: None)
    async with build_default_engine(hooks=[hook]) as engine:
        declare_etl(engine)
        await engine.run_once("etl")
    assert flowrun_threads() == before
    with pytest.raises(EngineClosedError):
        async with engine:
            pass


def test_handed_in_executor_is_used_and_never_shut_down() -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        engine = build_default_engine(executor=pool)
        engine.task(name="who", dag="d")(lambda: threading.current_thread().name)
        run_id = asyncio.run(engine.run_once("d"))
        engine.close()
        assert engine.get_run_report(run_id)["tasks"]["who"]["result"] == "mine_0"
        assert pool.submit(lambda: "alive").result(WAIT_S) == "alive"


async def test_store_that_was_handed_in_is_used(make_engine: MakeEngine) -> None:
    store = InMemoryStateStore()
    engine = make_engine(state_store=store)
    declare_etl(engine)
    run_id = await engine.run_once("etl")
    assert store.load_run(run_id, results=True).tasks["load"].result == "wrote 6"
    assert make_engine(state_store=store).get_run_report(run_id)["status"] == "SUCCESS"


# -- logging ----------------------------------------------------------------------------------


async def test_log_levels_of_the_contract(make_engine: MakeEngine) -> None:
    seen: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    log = logging.Logger("mine", level=logging.DEBUG)
    log.addHandler(Keep())
    engine = make_engine(logger=log)

    @engine.task(dag="d", retries=1)
    def broken() -> None:
        msg = "no rows"
        raise ValueError(msg)

    @engine.task(dag="d", deps=[broken])
    def after() -> None:
        return None

    @engine.task(dag="d")
    def fine() -> None:
        return None

    run_id = await engine.run_once("d")
    by_level = {
        level: [record.getMessage() for record in seen if record.levelname == level]
        for level in ("DEBUG", "INFO", "WARNING")
    }
    info = "\n".join(by_level["INFO"])
    assert f"run {run_id} of DAG 'd' started: 3 task(s)" in info
    assert "task 'fine' succeeded" in info
    assert "task 'after' skipped: UPSTREAM_FAILED" in info
    assert f"run {run_id} of DAG 'd' finished: FAILED" in info
    assert by_level["WARNING"] == [
        "task 'broken' attempt 1 failed and will be retried in 0 s: ValueError: no rows",
        "task 'broken' failed: ValueError: no rows",
    ]
    debug = "\n".join(by_level["DEBUG"])
    assert "task 'broken' attempt 2 launched" in debug
    assert "Traceback" in debug
    about = next(record for record in seen if record.levelname == "WARNING")
    assert (about.run_id, about.dag, about.task) == (run_id, "d", "broken")  # type: ignore[attr-defined]


async def test_resume_twice_of_a_finished_run_is_refused(engine: Engine) -> None:
    fail = [True]

    @engine.task(dag="d")
    def flaky() -> str:
        if fail:
            fail.clear()
            msg = "first time"
            raise ValueError(msg)
        return "ok"

    old = await engine.run_once("d")
    new = await engine.resume(old)
    assert engine.get_run_report(new)["resumed_from"] == old
    with pytest.raises(AlreadyResumedError, match=f"run '{new}' has already finished it"):
        await engine.resume(old)
    with pytest.raises(AlreadyResumedError):
        engine.plan_resume(old)


@pytest.mark.parametrize("run_id", [1, None, b"x", "", "x" * 201, "line\nbreak", "\ud800"])
async def test_run_ids_are_checked_before_anything_is_stored(
    make_engine: MakeEngine, run_id: object
) -> None:
    engine = make_engine(config=SchedulerConfig(new_run_id=lambda: run_id))  # type: ignore[arg-type, return-value]
    engine.task(name="a", dag="d")(lambda: 1)
    with pytest.raises((TypeError, ValueError), match="SchedulerConfig.new_run_id must return"):
        await engine.run_once("d")
    assert engine.list_runs() == []
