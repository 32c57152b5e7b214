"""What is measured, in which order, and which targets were missed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.jobs import EXTRAS, FLOOR, FLOWRUN, Answer, Job
from benchmarks.measure import Comparison
from benchmarks.targets import (
    BYTES_AT_MOST,
    FLOOR_TARGETS,
    GROWTH_AT_MOST,
    IMPORT_AT_MOST,
    TEN_AT_MOST,
    turns_for,
)

if TYPE_CHECKING:
    from benchmarks.measure import Bench
    from benchmarks.targets import Target

_FULL_SIZES = (100, 1_000, 10_000, 100_000)
_IMPORTS = 15
_IMPORT = (
    "import time; start = time.perf_counter(); import {};"
    " seconds = time.perf_counter() - start;"
    " from benchmarks.jobs import Answer; print(Answer(seconds).dump())"
)


@dataclass(frozen=True)
class Line:
    """One line of the table of targets.

    Attributes:
        what: What was measured.
        where: On which shape and size.
        figure: What came of it, a ratio or a number.
        at_most: The target, if one holds here.
        told: The figures behind it, in words.
    """

    what: str
    where: str
    figure: float
    at_most: float | None
    told: str

    @property
    def missed(self) -> bool:
        """Return whether there is a target and the figure is above it."""
        return self.at_most is not None and not self.figure <= self.at_most


@dataclass
class Suite:
    """All that one command measures; what is done is printed at once.

    Attributes:
        bench: Starts the processes.
        quick: Fewer sizes and repetitions.
        only: Measure only what has this in its name.
        lines: What was found.
        comparisons: The same with all figures, for the charts.
    """

    bench: Bench
    quick: bool
    only: str = ""
    sizes: tuple[int, ...] | None = None
    repetitions: int | None = None
    lines: list[Line] = field(default_factory=list[Line])
    comparisons: list[Comparison] = field(default_factory=list[Comparison])

    @property
    def missed(self) -> list[Line]:
        """Return the lines whose target is missed."""
        return [line for line in self.lines if line.missed]

    def run(self) -> None:
        """Measure everything that was asked for."""
        for target in FLOOR_TARGETS:
            if self._wanted(target.what, target.kind):
                self._floor(target)
        if self._wanted("ten tasks"):
            self._ten()
        if self._wanted("import"):
            self._import()
        if self._wanted("growth"):
            self._growth()
        if self._wanted("memory"):
            self._memory()

    def _wanted(self, *names: str) -> bool:
        return any(self.only in name for name in names)

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        target = "" if line.at_most is None else f"at most {line.at_most:g}"
        verdict = "" if line.at_most is None else "MISSED" if line.missed else "ok"
        print(
            f"{line.what:38} {line.where:15} {line.figure:9.2f}  {target:12} {verdict:7}"
            f" {line.told}",
            flush=True,
        )

    def _floor(self, target: Target) -> None:
        sizes = self.sizes or ((1_000,) if self.quick else _FULL_SIZES)
        if self.quick and target.max_parallel != 4 and target.kind != "sync":
            return
        for job in target.jobs(sizes, 3 if self.quick else 9):
            repetitions = self.repetitions or (3 if self.quick else 5)
            comparison = self.bench.compare(job, repetitions=repetitions)
            self.comparisons.append(comparison)
            at_most = target.at_most if job.size >= target.smallest else None
            self._compared(target.what, comparison, at_most, per=job.size)

    def _compared(self, what: str, found: Comparison, at_most: float | None, *, per: int) -> None:
        where = f"{found.job.shape} {found.job.size:,}"
        if found.problem:
            self._add(Line(what, where, float("nan"), at_most, found.problem))
            return
        told = (
            f"{found.our_time / per * 1e6:.2f} us against {found.their_time / per * 1e6:.2f};"
            f" ratios {min(found.ratios):.2f} to {max(found.ratios):.2f}"
        )
        self._add(Line(what, where, found.ratio, at_most, told))

    def _ten(self) -> None:
        job = Job(FLOWRUN, "ten", "chain", 10)
        found = self.bench.compare(job, repetitions=self.repetitions or (3 if self.quick else 5))
        self._compared("a run of ten tasks", found, TEN_AT_MOST, per=1)

    def _import(self) -> None:
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range((self.repetitions or (_IMPORTS // 2 if self.quick else _IMPORTS)) + 1):
            their = self.bench.ask(FLOOR, ["-c", _IMPORT.format("asyncio")])
            our = self.bench.ask(FLOOR, ["-c", _IMPORT.format("flowrun")])
            if turn:  # the first one wrote the bytecode
                ours.append(our.seconds)
                theirs.append(their.seconds)
        found = Comparison(Job(FLOWRUN, "import", "-", 1), FLOOR, tuple(ours), tuple(theirs))
        self._compared("import", found, IMPORT_AT_MOST, per=1)

    def _growth(self) -> None:
        small, large = (1_000, 100_000)
        shapes = ("grid",) if self.quick else ("chain", "fan", "grid", "random")
        for shape in shapes:
            each: dict[int, list[float]] = {small: [], large: []}
            for _ in range(self.repetitions or (1 if self.quick else 3)):
                for size, found in each.items():
                    job = Job(FLOWRUN, "at-once", shape, size, turns=turns_for(size))
                    found.append(self.bench.answer(job).seconds / size * 1e6)
            ours, theirs = statistics.median(each[large]), statistics.median(each[small])
            told = f"{ours:.2f} us per task against {theirs:.2f}"
            where = f"{shape} {large:,}"
            self._add(Line("growth", where, ours / theirs, GROWTH_AT_MOST, told))

    def _memory(self) -> None:
        size = 100_000
        for shape in ("grid",) if self.quick else ("chain", "fan", "grid", "random"):
            job = Job(EXTRAS, "memory", shape, size)
            answer: Answer = self.bench.answer(job)
            figure = answer.figures.get("bytes_per_task", float("nan"))
            told = answer.problem or "bytes per task, peak resident set"
            self._add(Line("memory", f"{shape} {size:,}", figure, BYTES_AT_MOST, told))
