"""flowrun beside the floors, and what it takes besides time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.findings import Line
from benchmarks.jobs import EXTRAS, FLOOR, FLOWRUN, Job
from benchmarks.measure import Comparison
from benchmarks.shapes import SHAPES, SIZES
from benchmarks.targets import (
    BYTES_AT_MOST,
    FLOOR_TARGETS,
    GROWTH_AT_MOST,
    IMPORT_AT_MOST,
    IMPORT_ENGINE_AT_MOST,
    TEN_AT_MOST,
    turns_for,
)

if TYPE_CHECKING:
    from benchmarks.findings import Findings
    from benchmarks.measure import Bench
    from benchmarks.targets import Target

_HUGE = 100_000
_REPETITIONS = {100: 2, 1_000: 5}  # of a hundred tasks nothing is asked
_QUICK_SIZES = (1_000,)
_QUICK_SHAPES = ("grid",)
_IMPORT = (
    "import time; start = time.perf_counter(); {};"
    " seconds = time.perf_counter() - start;"
    " from benchmarks.jobs import Answer; print(Answer(seconds).dump())"
)


@dataclass
class Suite:
    """All that is measured without the peers.

    Attributes:
        bench: Starts the processes.
        findings: Where the figures go.
        quick: Fewer sizes, shapes and repetitions.
        only: Measure only what has this in its name.
        sizes: Other sizes than usual.
        repetitions: Other repetitions than usual.
    """

    bench: Bench
    findings: Findings
    quick: bool
    only: str = ""
    sizes: tuple[int, ...] = ()
    repetitions: int = 0

    def run(self) -> None:
        """Measure everything that was asked for."""
        for target in FLOOR_TARGETS:
            if self._wanted(target.what, target.kind):
                self._floor(target)
        if self._wanted("ten"):
            self._ten()
        if self._wanted("import"):
            self._import()
        if self._wanted("growth"):
            self._growth()
        if self._wanted("memory"):
            self._memory()
        if not self.quick or self.only:
            self._others()

    def _wanted(self, *names: str) -> bool:
        return any(name.startswith(self.only) for name in names)

    def _times(self, *, quick: int, full: int) -> int:
        return self.repetitions or (quick if self.quick else full)

    @property
    def _shapes(self) -> tuple[str, ...]:
        return _QUICK_SHAPES if self.quick else tuple(SHAPES)

    def _floor(self, target: Target) -> None:
        if self.quick and not self.only:
            if target.max_parallel != 4 and target.kind != "sync":
                return
            if target.kind == "durable-full-sync":
                return
        sizes = self.sizes or (_QUICK_SIZES if self.quick else SIZES)
        for job in target.jobs(sizes, 3 if self.quick else 9):
            times = self._times(quick=3, full=_REPETITIONS.get(job.size, 3))
            found = self.bench.compare(job, repetitions=times)
            self.findings.compared(target.what, found, target.bar(job.size), per=job.size)

    def _ten(self) -> None:
        job = Job(FLOWRUN, "ten", "chain", 1_000 if self.quick else 10_000)
        found = self.bench.compare(job, repetitions=self._times(quick=3, full=5))
        self.findings.compared(
            "a run of ten tasks", found, TEN_AT_MOST, per=1, place=f"{job.size:,} runs"
        )

    def _import(self) -> None:
        self._import_of("import", "import flowrun", IMPORT_AT_MOST)
        # Its parts are loaded when they are first asked for: what most programs ask for.
        statement = "from flowrun import build_default_engine"
        self._import_of("import an engine", statement, IMPORT_ENGINE_AT_MOST)

    def _import_of(self, what: str, statement: str, at_most: float) -> None:
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(self._times(quick=7, full=21) + 1):
            their = self.bench.ask(FLOOR, ["-c", _IMPORT.format("import asyncio")])
            our = self.bench.ask(FLOOR, ["-c", _IMPORT.format(statement)])
            if turn:  # the first one wrote the bytecode
                ours.append(our.seconds)
                theirs.append(their.seconds)
        found = Comparison(Job(FLOWRUN, "import", "-", 1), FLOOR, tuple(ours), tuple(theirs))
        self.findings.compared(what, found, at_most, per=1, place="once")

    def _growth(self) -> None:
        small = 1_000
        for kind in (
            ("at-once", "build") if self.quick else ("at-once", "suspends", "sync", "build")
        ):
            for shape in self._shapes:
                each: dict[int, list[float]] = {small: [], _HUGE: []}
                for _ in range(self._times(quick=1, full=2)):
                    for size, found in each.items():
                        job = Job(FLOWRUN, kind, shape, size, turns=turns_for(size))
                        found.append(self.bench.answer(job).seconds / size * 1e6)
                ours, theirs = statistics.median(each[_HUGE]), statistics.median(each[small])
                told = f"{ours:.2f} us per task against {theirs:.2f} at {small:,}"
                where = f"{shape} {_HUGE:,}"
                figure = ours / theirs if theirs else None
                self.findings.add(Line(f"growth, {kind}", where, figure, GROWTH_AT_MOST, told))

    def _memory(self) -> None:
        for shape in self._shapes:
            answer = self.bench.answer(Job(EXTRAS, "memory", shape, _HUGE))
            told = answer.problem or "bytes per task, by the peak of the resident set"
            figure = answer.figures.get("bytes_per_task")
            self.findings.add(Line("memory", f"{shape} {_HUGE:,}", figure, BYTES_AT_MOST, told))

    def _others(self) -> None:
        for kind in dict.fromkeys(kind for kind, *_ in _OTHERS):
            if self._wanted(kind):
                answer = self.bench.answer(Job(EXTRAS, kind, "chain", 1))
                for _, name, where, told in (other for other in _OTHERS if other[0] == kind):
                    figure = answer.figures.get(name)
                    self.findings.add(Line(kind, where, figure, None, answer.problem or told))


_OTHERS = (
    ("runs", "bytes_per_run", "10,000 runs", "bytes that a run of ten tasks left behind"),
    ("idle", "cpu_per_second", "1,000 waiting", "CPU seconds per second of waiting"),
    ("large result", "memory_s", "100 MB", "seconds, in memory"),
    ("large result", "memory_stall_s", "100 MB", "seconds of the longest stall, in memory"),
    ("large result", "durable_s", "100 MB", "seconds, through SQLite (JSON, NORMAL)"),
    ("large result", "durable_stall_s", "100 MB", "seconds of the longest stall, through SQLite"),
)
