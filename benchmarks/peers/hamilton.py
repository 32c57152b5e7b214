"""Hamilton: functions whose parameters name other functions."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add
from hamilton import ad_hoc_utils, async_driver, driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.shapes import Edges

CANNOT = dict.fromkeys(("durable-normal", "durable-full"), "keeps no state of its runs")


def _function(name: str, parents: tuple[str, ...], *, is_async: bool) -> Callable[..., Any]:
    """Return a function with the signature that stands for a task's edges."""

    def work(**values: int) -> int:
        return add(values.values())

    async def work_async(**values: int) -> int:
        return add(values.values())

    function: Any = work_async if is_async else work
    function.__name__ = function.__qualname__ = name
    function.__annotations__ = {**dict.fromkeys(parents, int), "return": int}
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(parent, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=int)
            for parent in parents
        ],
        return_annotation=int,
    )
    return function


def _module(edges: Edges, *, is_async: bool) -> Any:
    functions = [_function(name, parents, is_async=is_async) for name, parents in edges.items()]
    return ad_hoc_utils.create_temporary_module(*functions, module_name="tasks")


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them one after the other, as its driver does by default."""
    del max_parallel
    built = driver.Builder().with_modules(_module(edges, is_async=False)).build()
    started = time.perf_counter()
    results = built.execute(list(edges))
    return time.perf_counter() - started, results


def at_once(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them on an event loop; it knows no bound on what runs at a time."""
    del max_parallel

    async def run() -> tuple[float, dict[str, int]]:
        built = await async_driver.Builder().with_modules(_module(edges, is_async=True)).build()
        started = time.perf_counter()
        results = await built.execute(list(edges))
        return time.perf_counter() - started, results

    return asyncio.run(run())


KINDS = {"sync": sync, "inline": sync, "at-once": at_once}
