"""One process that measures one candidate: ``python -m benchmarks.child JOB``."""

from __future__ import annotations

import gc
import importlib
import statistics
import sys

from benchmarks.jobs import EXTRAS, FLOOR, FLOWRUN, Answer, Job
from benchmarks.shapes import SHAPES, digest

_MODULES = {FLOOR: "benchmarks.floors", FLOWRUN: "benchmarks.candidates"}


def main() -> None:
    """Do what the command line asks for, and print the answer as the last line."""
    job = Job.load(sys.argv[1])
    if job.side == EXTRAS:
        extras = importlib.import_module("benchmarks.extras")
        answer = Answer(figures=extras.KINDS[job.kind](SHAPES[job.shape](job.size)))
        print(f"\n{answer.dump()}", flush=True)
        return
    module = importlib.import_module(_MODULES.get(job.side, f"benchmarks.peers.{job.side}"))
    kind = module.KINDS.get(job.kind)
    if kind is None:
        answer = Answer(problem=module.CANNOT.get(job.kind, "has nothing of the kind"))
    else:
        edges = SHAPES[job.shape](job.size)
        seconds: list[float] = []
        results: dict[str, int] = {}
        for _ in range(job.turns):
            results = {}
            gc.collect()
            taken, results = kind(edges, job.max_parallel)
            seconds.append(taken)
        answer = Answer(statistics.median(seconds), digest(results))
    print(f"\n{answer.dump()}", flush=True)


if __name__ == "__main__":
    main()
