"""pipefunc: functions with output names, joined into a pipeline."""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add
from pipefunc import PipeFunc, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.shapes import Edges

CANNOT = {
    "at-once": "takes sync functions only",
    **dict.fromkeys(("durable-normal", "durable-full"), "keeps results, but no state of its runs"),
}


def _function(parents: tuple[str, ...]) -> Callable[..., Any]:
    def work(**values: int) -> int:
        return add(values.values())

    function: Any = work
    function.__signature__ = inspect.Signature(
        [inspect.Parameter(parent, inspect.Parameter.POSITIONAL_OR_KEYWORD) for parent in parents]
    )
    return function


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them one after the other: its executors are for maps over arrays."""
    del max_parallel
    pipeline = Pipeline(
        [PipeFunc(_function(parents), output_name=name) for name, parents in edges.items()],
        validate_type_annotations=False,
    )
    needed = {parent for parents in edges.values() for parent in parents}
    leaves = [name for name in edges if name not in needed]
    started = time.perf_counter()
    results = pipeline.run(leaves, full_output=True, kwargs={})
    return time.perf_counter() - started, results


KINDS = {"sync": sync, "inline": sync}
