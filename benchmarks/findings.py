"""What was found, printed as it comes and kept for the page."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import FLOOR, Job
from benchmarks.measure import Comparison

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        what: What was measured.
        where: On which shape and size.
        figure: What came of it, a ratio or a number; ``None`` if nothing did.
        at_most: The target, if one holds here.
        told: The figures behind it, in words, or why there are none.
        excused: There is no figure, and that is no fault of flowrun's.
    """

    what: str
    where: str
    figure: float | None
    at_most: float | None
    told: str
    excused: bool = False

    @property
    def missed(self) -> bool:
        """Return whether there is a target and it is not reached."""
        if self.at_most is None or self.excused:
            return False
        return self.figure is None or self.figure > self.at_most

    @property
    def verdict(self) -> str:
        """Return one word, or none."""
        if self.at_most is None or self.excused:
            return ""
        return "MISSED" if self.missed else "ok"


def shown(figure: float | None) -> str:
    """Return a figure with as many digits as mean something."""
    if figure is None:
        return "-"
    if figure >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.2f}" if figure >= 0.01 else f"{figure:.2g}"


@dataclass
class Findings:
    """All that one command has found.

    Attributes:
        lines: One for each figure or reason.
        comparisons: What the charts are drawn of.
        versions: What was compared, by title.
        machine: Where.
        file: Where all is saved with each new line, so that whoever stops a run keeps the rest.
    """

    lines: list[Line] = field(default_factory=list[Line])
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    machine: dict[str, str] = field(default_factory=dict[str, str])
    file: Path | None = None

    @property
    def missed(self) -> list[Line]:
        """Return the lines whose target is missed."""
        return [line for line in self.lines if line.missed]

    def add(self, line: Line) -> None:
        """Keep a line, and print it."""
        self.lines.append(line)
        figure = shown(line.figure)
        target = "" if line.at_most is None else f"at most {line.at_most:g}"
        print(
            f"{line.what:36} {line.where:15} {figure:>9}  {target:12} {line.verdict:7} {line.told}",
            flush=True,
        )
        if self.file is not None:
            self.save(self.file)

    def compared(
        self, what: str, found: Comparison, at_most: float | None, *, per: int, place: str = ""
    ) -> None:
        """Keep a comparison; ``per`` is how many tasks share the time."""
        self.comparisons.append(found)
        where = place or f"{found.job.shape} {found.job.size:,}"
        if found.problem:
            excused = found.others_fault and found.other != FLOOR
            self.add(Line(what, where, None, at_most, found.problem, excused))
            return
        told = (
            f"{found.our_time / per * 1e6:.2f} us against {found.their_time / per * 1e6:.2f};"
            f" ratios {min(found.ratios):.2g} to {max(found.ratios):.2g}"
        )
        self.add(Line(what, where, found.ratio, at_most, told))

    def put_into(self, whole: Findings) -> None:
        """Have what was measured again stand where the same stood before, and say so."""
        lines = {(line.what, line.where): line for line in self.lines}
        whole.lines = [lines.pop((one.what, one.where), one) for one in whole.lines]
        whole.lines += lines.values()
        found = {(one.job, one.other): one for one in self.comparisons}
        whole.comparisons = [found.pop((one.job, one.other), one) for one in whole.comparisons]
        whole.comparisons += found.values()
        parts = ", ".join(dict.fromkeys(f"{line.what!r}" for line in self.lines))
        whole.machine["took"] += f" (later once more, with {self.machine['load']}: {parts})"

    def save(self, file: Path) -> None:
        """Write everything down, so that the page can be written again."""
        kept = {name: value for name, value in asdict(self).items() if name != "file"}
        file.write_text(json.dumps(kept), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Findings:
        """Return what :meth:`save` wrote."""
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            [Line(**line) for line in kept["lines"]],
            [_comparison(**one) for one in kept["comparisons"]],
            kept["versions"],
            kept["machine"],
        )


def _comparison(job: dict[str, Any], **rest: Any) -> Comparison:
    return Comparison(Job(**job), **rest)
