"""doit: tasks with actions, and a small database of what is up to date."""

from __future__ import annotations

import io
import time
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import add
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.shapes import Edges

CANNOT = {
    "inline": "uses threads: see sync",
    "at-once": "takes sync functions and commands only",
    **dict.fromkeys(
        ("durable-normal", "durable-full"), "its database is written when a run has ended"
    ),
}


def sync(edges: Edges, max_parallel: int) -> tuple[float, dict[str, int]]:
    """Run them in threads; loading the tasks is counted, since it cannot be told apart."""
    results: dict[str, int] = {}

    def work(name: str) -> None:
        results[name] = add([results[parent] for parent in edges[name]])

    def task_all() -> Iterator[dict[str, Any]]:
        for name, parents in edges.items():
            yield {"basename": name, "actions": [(work, [name])], "task_dep": list(parents)}

    with TemporaryDirectory(dir=".") as folder:
        settings = {
            "dep_file": f"{folder}/doit.db",
            "backend": "json",
            "num_process": max_parallel,
            "par_type": "thread",
            "verbosity": 0,
            "reporter": "zero",
            "outfile": io.StringIO(),
        }
        loader = ModuleTaskLoader({"task_all": task_all, "DOIT_CONFIG": settings})
        started = time.perf_counter()
        code = DoitMain(loader).run([])
        seconds = time.perf_counter() - started
    if code:
        msg = f"doit ended with {code}"
        raise RuntimeError(msg)
    return seconds, results


KINDS = {"sync": sync}
