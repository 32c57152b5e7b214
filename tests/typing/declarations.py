"""What the type checkers must make of flowrun's public names; checked, never run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal, assert_type

from flowrun import (
    Cache,
    Engine,
    Param,
    RunContext,
    RunHandle,
    RunOptions,
    RunReport,
    TaskTemplate,
    build_default_engine,
    fn_hook,
)

engine = build_default_engine(max_workers=2, max_parallel=2, hooks=[fn_hook(on_dag_end=None)])
assert_type(engine, Engine)
etl = engine.dag(dag_name="etl")


@dataclass(frozen=True)
class Settings:
    path: str


@engine.task
def bare() -> list[int]:
    return [1]


@engine.task(dag="etl", timeout_s=None)
def configured(context: RunContext[Settings]) -> str:
    return assert_type(context.deps, Settings).path


@etl.task("named", deps=[configured])
async def named(configured: str) -> int:
    return len(configured)


@etl.task
def scoped() -> None:
    return None


@etl.task(cache=Cache(ttl_s=86400, version="2", key=lambda context: context.deps.path))
def cached(context: RunContext[Settings]) -> str:
    return context.deps.path


# A type checker sees the type inside ``Param``.
@etl.task
def daily(
    day: Param[date],
    mode: Param[Literal["append", "replace"]] = "append",
    limit: Param[int | None] = None,
) -> date:
    assert_type(mode, Literal["append", "replace"])
    assert_type(limit, int | None)
    return assert_type(day, date)


assert_type(daily(date(2013, 2, 8), limit=3), date)


def fetch(*, table: str) -> str:
    return table


# A decorated function keeps its own type.
assert_type(bare(), list[int])
assert_type(scoped(), None)
assert_type(etl.task_template(fetch), TaskTemplate)
engine.task("no_deps", dag="etl", deps=None, copy_inputs=True)(fetch)


async def read() -> None:
    assert_type(await named("a"), int)
    run_id = await engine.run_once("etl", context=RunContext(Settings("a")))
    await etl.run_once(refresh=["daily"])
    await etl.run_once(refresh=True)
    await etl.run_once(params={"day": date(2013, 2, 8)}, overrides={"scoped": None, "named": len})
    assert_type(run_id, str)
    report = engine.get_run_report(run_id)
    assert_type(report, RunReport)
    assert_type(report["tasks"]["named"]["attempt"], int)
    assert_type(await etl.run_subgraph(["named"]), str)
    assert_type(await engine.resume(run_id, from_tasks=["named"]), str)


async def start() -> None:
    handle = engine.start("etl", RunContext(Settings("a")), if_running="refuse")
    assert_type(handle, RunHandle)
    assert_type(await handle, RunReport)
    assert_type(handle.progress, dict[str, int])
    options: RunOptions = {"raise_on_failure": True, "timeout_s": 3.0}
    assert_type(await etl.run_once(**options), str)


def run() -> None:
    with engine as same:
        assert_type(same, Engine)
        assert_type(same.run("etl", metadata={"n": 1}), RunReport)
        assert_type(etl.run(), RunReport)
