"""pydantic-graph: steps with edges between them, forks and joins."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "takes async steps only: see async",
    "sync": "takes async steps only",
    **dict.fromkeys(("durable-normal", "durable-full"), "keeps no state of parallel steps"),
}


async def _run(edges: Edges) -> tuple[float, dict[str, int]]:
    graph = _graph(edges)
    results: dict[str, int] = {}
    started = time.perf_counter()
    await graph.run(state=results)
    return time.perf_counter() - started, results


def _graph(edges: Edges) -> Any:
    """Return a graph with a join before each task that has parents, and before the end."""
    from pydantic_graph import GraphBuilder, StepContext, reduce_null

    builder: Any = GraphBuilder(state_type=dict)
    steps: dict[str, Any] = {}
    children: dict[str, list[Any]] = {name: [] for name in edges}
    first: list[Any] = []
    for name, parents in edges.items():
        steps[name] = builder.step(_work(name, parents, StepContext), node_id=name)
        entry = steps[name]
        if len(parents) > 1:
            entry = builder.join(
                reduce_null, initial=None, node_id=f"join-{name}", preferred_parent_fork="farthest"
            )
            builder.add(builder.edge_from(entry).to(steps[name]))
        for parent in parents:
            children[parent].append(entry)
        if not parents:
            first.append(entry)
    leaves = [name for name in edges if not children[name]]
    end = builder.end_node
    if len(leaves) > 1:
        end = builder.join(
            reduce_null, initial=None, node_id="join-end", preferred_parent_fork="farthest"
        )
        builder.add(builder.edge_from(end).to(builder.end_node))
    builder.add(builder.edge_from(builder.start_node).to(*first))
    for name, step in steps.items():
        builder.add(builder.edge_from(step).to(*(children[name] or [end])))
    return builder.build()


def _work(name: str, parents: tuple[str, ...], context_type: type[Any]) -> Any:
    async def work(context: Any) -> None:
        results = context.state
        if missing := [parent for parent in parents if parent not in results]:
            msg = f"a join let {name} start before {missing[0]}, which it needs, had run"
            raise RuntimeError(msg)
        results[name] = add([results[parent] for parent in parents])

    work.__annotations__ = {"context": context_type, "return": None}
    return work


def at_once(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them on an event loop, the results in the graph's state; it knows no bound."""
    del max_parallel
    return asyncio.run(_run(edges))


KINDS = {"at-once": at_once}
