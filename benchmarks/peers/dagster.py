"""Dagster: a graph of ops, executed in this process without a server."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"

from benchmarks.shapes import add
from dagster import (
    DagsterInstance,
    DependencyDefinition,
    GraphDefinition,
    In,
    MultiDependencyDefinition,
    NodeInvocation,
    OpDefinition,
    Out,
    Output,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.shapes import Edges

CANNOT = {
    "at-once": "not tried with async ops: see sync",
    **dict.fromkeys(
        ("durable-normal", "durable-full"), "not tried: its event log in memory is slow already"
    ),
}


def _work(_context, inputs: dict[str, Any]) -> Iterator[Output[int]]:
    yield Output(add(inputs.get("values", ())))


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them one after the other, with its event log in memory."""
    del max_parallel
    logging.disable(logging.CRITICAL)
    out = {"result": Out(int)}
    first = OpDefinition(compute_fn=_work, name="first", ins={}, outs=out)
    later = OpDefinition(compute_fn=_work, name="later", ins={"values": In(list)}, outs=out)
    dependencies: dict[Any, Any] = {}
    for name, parents in edges.items():
        kind = "later" if parents else "first"
        dependencies[NodeInvocation(kind, name)] = (
            {"values": MultiDependencyDefinition([DependencyDefinition(p) for p in parents])}
            if parents
            else {}
        )
    job = GraphDefinition(
        name="bench", node_defs=[first, later], dependencies=dependencies
    ).to_job()
    with DagsterInstance.ephemeral() as instance:
        started = time.perf_counter()
        result = job.execute_in_process(instance=instance)
        seconds = time.perf_counter() - started
    return seconds, {name: result.output_for_node(name) for name in edges}


KINDS = {"sync": sync, "inline": sync}
