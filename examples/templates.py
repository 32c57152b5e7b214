"""One function, a task for each branch of a shop: ``task_template``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from flowrun import RunContext, build_default_engine

engine = build_default_engine(max_parallel=3)
takings = engine.dag("takings")


@dataclass(frozen=True)
class Till:
    """What every task may read; a real one would hold a client of some system."""

    sales: dict[str, list[int]]


@takings.task_template(retries=1)
async def read_sales(context: RunContext[Till], *, branch: str) -> int:
    return sum(context.deps.sales[branch])


BRANCHES = ("north", "south")
for name in BRANCHES:
    read_sales.bind(f"sales_{name}", branch=name)

# The harbour's line is slow, so its task gets more time than the others have.
read_sales.with_options(timeout_s=120.0).bind("sales_harbour", branch="harbour")


@takings.task(deps=[f"sales_{name}" for name in (*BRANCHES, "harbour")])
def total(upstream: dict[str, int]) -> int:
    for task_name, amount in upstream.items():
        print(f"{task_name:15}{amount:>6}")
    return sum(upstream.values())


async def main() -> None:
    till = Till({"north": [120, 80], "south": [45], "harbour": [300, 15, 60]})
    async with engine:
        run_id = await takings.run_once(context=RunContext(till))
    print(f"{'total':15}{engine.get_run_report(run_id)['tasks']['total']['result']:>6}")


if __name__ == "__main__":
    asyncio.run(main())
