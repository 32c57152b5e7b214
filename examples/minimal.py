"""Three tasks: two at the same time, the third with what they returned."""

import asyncio

from flowrun import build_default_engine

engine = build_default_engine()
shop = engine.dag("shop")


@shop.task
async def prices() -> dict[str, float]:
    return {"tea": 4.5, "coffee": 7.0}


@shop.task
def orders() -> list[str]:
    return ["tea", "coffee", "tea"]


@shop.task(deps=[prices, orders])
def revenue(prices: dict[str, float], orders: list[str]) -> float:
    return sum(prices[item] for item in orders)


async def main() -> None:
    async with engine:
        run_id = await shop.run_once()
        report = engine.get_run_report(run_id)
        print(report["status"], report["tasks"]["revenue"]["result"])


asyncio.run(main())
