"""What was found: printed as it comes, and written as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.jobs import FLOOR

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.measure import Comparison


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
        versions: What was compared, by title.
        machine: Where.
        file: Where the table is written with each new line, so that a stopped run leaves one.
    """

    lines: list[Line] = field(default_factory=list[Line])
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
        """Add a comparison; ``per`` is how many tasks share the time."""
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

    def save(self, file: Path) -> None:
        """Write all figures as one table."""
        head = ("what", "where", "figure", "at most", "", "behind it")
        rows = [
            (
                line.what,
                line.where,
                shown(line.figure),
                shown(line.at_most),
                line.verdict,
                line.told,
            )
            for line in self.lines
        ]
        table = [head, ("---",) * len(head), *rows]
        about = [*self.machine.values(), *map(" ".join, self.versions.items())]
        text = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in table)
        file.write_text(f"{', '.join(about)}\n\n{text}\n", encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]
