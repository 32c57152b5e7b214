"""Run the heavy tasks of a DAG on a cluster: here Dask, with two worker processes on loopback.

    pip install distributed
    .venv/bin/python examples/on_a_cluster.py

Nothing in flowrun knows of Dask. A cluster's client that can act as a
`concurrent.futures.Executor` is handed in by name, and a task asks for it.
"""

from __future__ import annotations

import asyncio
import os
import sys

try:
    from distributed import Client, LocalCluster
except ImportError:
    sys.exit("this example needs Dask: pip install distributed")

from flowrun import build_default_engine, current_attempt


def declare(engine) -> None:  # noqa: ANN001 - an Engine
    jobs = engine.dag("counting")

    @jobs.task
    def ranges() -> list[tuple[int, int]]:
        return [(start, start + 50_000) for start in range(0, 200_000, 50_000)]

    def count_primes(ranges: list[tuple[int, int]], *, part: int) -> dict[str, int]:
        low, high = ranges[part]
        primes = sum(
            number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
            for number in range(low, high)
        )
        return {"primes": primes, "process": os.getpid(), "attempt": current_attempt().attempt}

    heavy = jobs.task_template(count_primes, executor="cluster", timeout_s=120.0)
    parts = [heavy.bind(f"count_{part}", part=part) for part in range(4)]

    @jobs.task(deps=parts)
    def total(upstream: dict[str, dict[str, int]]) -> str:
        primes = sum(result["primes"] for result in upstream.values())
        processes = {result["process"] for result in upstream.values()}
        return f"{primes} primes below 200000, counted in {len(processes)} other processes"


async def main() -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        executors = {"cluster": client.get_executor()}
        async with build_default_engine(executors=executors) as engine:
            declare(engine)
            print(engine.display_dag("counting"))
            run_id = await engine.run_once("counting")
            print(engine.report_text(run_id))
            print(engine.get_run_report(run_id)["tasks"]["total"]["result"])


if __name__ == "__main__":
    asyncio.run(main())
