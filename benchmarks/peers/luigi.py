"""Luigi: tasks that require tasks and leave targets behind."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import luigi
from benchmarks.shapes import add

if TYPE_CHECKING:
    from benchmarks.shapes import Edges

CANNOT = {
    "at-once": "takes sync functions only",
    **dict.fromkeys(
        ("durable-normal", "durable-full"), "what is durable are the targets that a task writes"
    ),
}
_EDGES: Edges = {}
_RESULTS: dict[str, int] = {}


class Node(luigi.Task):
    """A task; a dictionary stands for its targets, so that no disk is measured."""

    name: Any = luigi.Parameter()

    def requires(self) -> list[Node]:
        """Return its parents."""
        return [Node(name=parent) for parent in _EDGES[self.name]]

    def complete(self) -> bool:
        """Return whether it has run."""
        return self.name in _RESULTS

    def run(self) -> None:
        """Do its work."""
        _RESULTS[self.name] = add([_RESULTS[parent] for parent in _EDGES[self.name]])


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in this process: its workers beyond one are processes, which share no results."""
    del max_parallel
    logging.disable(logging.CRITICAL)
    _EDGES.clear()
    _EDGES.update(edges)
    _RESULTS.clear()
    needed = {parent for parents in edges.values() for parent in parents}
    leaves = [Node(name=name) for name in edges if name not in needed]
    started = time.perf_counter()
    succeeded = luigi.build(leaves, local_scheduler=True, workers=1, log_level="CRITICAL")
    seconds = time.perf_counter() - started
    if not succeeded:
        msg = "luigi.build failed"
        raise RuntimeError(msg)
    return seconds, dict(_RESULTS)


KINDS = {"sync": sync, "inline": sync}
