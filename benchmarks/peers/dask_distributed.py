"""Dask's distributed scheduler, with one worker process on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.peers.dask_threaded import CANNOT, graph
from distributed import Client, LocalCluster

if TYPE_CHECKING:
    from benchmarks.shapes import Edges


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in a worker process; starting the cluster is not counted."""
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=max_parallel, processes=True, dashboard_address=None
    )
    with cluster, Client(cluster) as client:
        tasks = graph(edges)
        client.submit(int, 1).result()
        started = time.perf_counter()
        values = client.get(tasks, list(edges))
        seconds = time.perf_counter() - started
    return seconds, dict(zip(edges, values, strict=True))


__all__ = ["CANNOT", "KINDS"]
KINDS = {"sync": sync}
