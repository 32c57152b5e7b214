"""A run that fails half way, and its rest: what was done is not done again."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flowrun import Engine, RunContext, SqliteStateStore, build_default_engine


@dataclass(frozen=True)
class Settings:
    """Whether the warehouse can be reached."""

    warehouse_is_up: bool


def new_engine(store: SqliteStateStore) -> Engine:
    """Declare the DAG on an engine of its own, as a program does each time it starts."""
    engine = build_default_engine(state_store=store)
    nightly = engine.dag("nightly")

    @nightly.task
    def extract() -> list[int]:
        print("  extract runs")
        return [3, 1, 2]

    @nightly.task
    def transform(extract: list[int]) -> list[int]:
        print("  transform runs")
        return sorted(extract)

    @nightly.task
    def load(context: RunContext[Settings], transform: list[int]) -> int:
        print("  load runs")
        if not context.deps.warehouse_is_up:
            msg = "the warehouse is down"
            raise ConnectionError(msg)
        return len(transform)

    return engine


async def main(database: Path) -> int:
    print("at night")
    with closing(SqliteStateStore(database)) as store:
        async with new_engine(store) as engine:
            run_id = await engine.run_once("nightly", RunContext(Settings(warehouse_is_up=False)))
            print(f"  {engine.get_run_report(run_id)['status']}")

    print("in the morning")
    context = RunContext(Settings(warehouse_is_up=True))
    with closing(SqliteStateStore(database, recover=True)) as store:
        async with new_engine(store) as engine:
            for name, planned in engine.plan_resume(run_id).tasks.items():
                print(f"  {name}: {planned.action}, {planned.why}")
            run_id = await engine.resume(run_id, context=context)
            report = engine.get_run_report(run_id)
            print(f"  {report['status']}, {report['tasks']['load']['result']} rows loaded")
    return 0 if report["status"] == "SUCCESS" else 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(asyncio.run(main(Path(folder) / "runs.sqlite")))
