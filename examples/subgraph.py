"""Only one branch of a DAG: a target, and what it depends on."""

from __future__ import annotations

import asyncio

from flowrun import build_default_engine

engine = build_default_engine()
weekly = engine.dag("weekly")


@weekly.task
def visits() -> list[int]:
    return [310, 280, 295, 305, 410, 520, 490]


@weekly.task
def busiest_day(visits: list[int]) -> int:
    return visits.index(max(visits))


@weekly.task
def average(visits: list[int]) -> float:
    return sum(visits) / len(visits)


@weekly.task
def letter(busiest_day: int, average: float) -> str:
    return f"Busiest on day {busiest_day}, {average:.0f} visits on average."


async def main() -> None:
    print(weekly.display())
    async with engine:
        run_id = await weekly.run_subgraph(targets=["average"])
        report = engine.get_run_report(run_id)
    print(f"\nasked for {report['targets']}, so these ran:")
    for name, task in report["tasks"].items():
        print(f"  {name}: {task['status']}")


if __name__ == "__main__":
    asyncio.run(main())
