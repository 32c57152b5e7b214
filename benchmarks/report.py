"""The page and its charts, written of what was found.

Between two marks of ``docs/performance.md`` all is written anew; what stands outside of them,
such as what was tried and did not pay, is written by people.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.charts import Panel, bars, panels
from benchmarks.findings import shown
from benchmarks.jobs import FLOOR
from benchmarks.peers import PEERS
from benchmarks.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.findings import Findings, Line
    from benchmarks.measure import Comparison

_BEGIN = "<!-- measured: everything from here is written by make bench -->"
_END = "<!-- /measured -->"
_HEAD = "# Performance\n\n"
_CHARTS = {
    "at-once": "async tasks that return at once",
    "suspends": "async tasks that suspend once",
    "sync": "sync tasks in threads, 4 at a time",
    "durable-normal": "durable, synchronous=NORMAL, async tasks",
    "durable-full": "durable, synchronous=FULL, async tasks",
    "durable-normal-sync": "durable, synchronous=NORMAL, sync tasks",
    "durable-full-sync": "durable, synchronous=FULL, sync tasks",
    "build": "building and validating",
}
_LARGEST_OF_ALL_PEERS = 1_000


def write(findings: Findings, docs: Path) -> None:
    """Write the page and its charts."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("performance-*.svg"):
        old.unlink()
    drawn: dict[str, str] = {}
    for kind, title in _CHARTS.items():
        if drawn_of := _panels(findings.comparisons, kind):
            drawn[f"performance-{kind}.svg"] = panels(title.capitalize(), drawn_of)
    if leads := _bars(findings.comparisons):
        title = f"flowrun's lead over its peers, {_LARGEST_OF_ALL_PEERS:,} tasks or the most done"
        drawn["performance-peers.svg"] = bars(title, leads)
    for name, chart in drawn.items():
        (images / name).write_text(chart, encoding="utf-8")
    page = docs / "performance.md"
    text = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2].strip()
    measured = "\n\n".join([_BEGIN, *_measured(findings, list(drawn)), _END])
    whole = "\n\n".join([before.rstrip(), measured, *([after] if after else [])])
    page.write_text(f"{whole}\n", encoding="utf-8")


def _measured(findings: Findings, images: Sequence[str]) -> Iterable[str]:
    peers = tuple(f"{peer.title}, " for peer in PEERS)
    own = [line for line in findings.lines if not line.what.startswith(peers)]
    theirs = [line for line in findings.lines if line.what.startswith(peers)]
    yield "## Measured\n\n" + ". ".join(_sentence(findings))
    yield "### Targets"
    yield (
        "The worst ratio of every target, over all shapes and sizes for which it holds. A ratio"
        " is flowrun's time as a share of the floor's, so that less is better."
    )
    yield _targets(own)
    for image in images:
        if image != "performance-peers.svg":
            yield f"![{image.removesuffix('.svg')}](images/{image})"
    yield "### Every figure"
    yield _table(
        ("what", "where", "figure", "at most", "", "behind it"),
        [
            (line.what, line.where, shown(line.figure), shown(line.at_most), line.verdict, told)
            for line, told in ((line, _cell(line.told)) for line in own)
        ],
    )
    if theirs:
        yield from _peers(findings, theirs, images)


def _sentence(findings: Findings) -> list[str]:
    machine = findings.machine
    versions = [f"{title} {number}" for title, number in findings.versions.items()]
    where = ", ".join(machine[key] for key in ("cpu", "system", "python", "sqlite", "flowrun"))
    found = [f"On {where}", f"On {machine['date']}, in {machine['took']}, with a {machine['load']}"]
    if versions:
        found.append(f"Peers: {', '.join(versions)}")
    return [*found, ""]


def _targets(lines: Sequence[Line]) -> str:
    rows: list[Sequence[str]] = []
    for what in dict.fromkeys(line.what for line in lines if line.at_most is not None):
        held = [line for line in lines if line.what == what and line.at_most is not None]
        missed = sum(line.missed for line in held)
        figures = [line for line in held if line.figure is not None]
        worst = max(figures, key=lambda line: line.figure or 0.0) if figures else held[0]
        middle = statistics.median(line.figure or 0.0 for line in figures) if figures else None
        verdict = f"missed on {missed} of {len(held)}" if missed else "reached"
        rows.append(
            (
                what,
                shown(held[0].at_most),
                shown(middle),
                shown(worst.figure),
                worst.where,
                verdict,
            )
        )
    return _table(("what", "at most", "median", "worst", "where", ""), rows)


def _peers(findings: Findings, lines: Sequence[Line], images: Sequence[str]) -> Iterable[str]:
    yield "### Peers"
    yield (
        "The same tasks, in turns with flowrun. A figure says how many times as long the peer"
        " took; below 1 it was faster. Building is not counted on either side, unless the peer"
        " cannot tell it apart, and neither is starting a server, a cluster or an interpreter."
        " *Sync tasks* are sync functions, which flowrun always runs in threads, so that the loop"
        " stays free; *one thread* is the same work of a peer that blocks its caller's thread,"
        " beside flowrun's async tasks, which share one thread as well."
    )
    if "performance-peers.svg" in images:
        yield "![performance-peers](images/performance-peers.svg)"
    rows: list[Sequence[str]] = []
    for what in dict.fromkeys(line.what for line in lines if line.where != "-"):
        of_it = {line.where: line for line in lines if line.what == what}
        for size in sorted({_size(where) for where in of_it if where != "-"}):
            cells = [of_it.get(f"{shape} {size:,}") for shape in SHAPES]
            rows.append((what, f"{size:,}", *map(_lead, cells)))
    yield _table(("peer", "tasks", *SHAPES), rows)
    yield (
        "*no*: it failed; -: not tried, since it would have taken too long, as the size before"
        " shows. Both are explained below."
    )
    reasons = [
        f"- {line.what}{'' if line.where == '-' else f', {line.where}'}: {_cell(line.told)}"
        for line in lines
        if line.figure is None
    ]
    if reasons:
        yield "What could not be measured, and why:"
        yield "\n".join(reasons)
    yield "What each does that flowrun does not:"
    yield "\n".join(
        f"- {peer.title}: {peer.more}." for peer in PEERS if peer.title in findings.versions
    )


def _size(where: str) -> int:
    return int(where.split()[1].replace(",", ""))


def _lead(line: Line | None) -> str:
    if line is None or line.figure is None:
        return "-" if line is None or line.at_most is None else "no"
    return shown(1 / line.figure)


def _panels(comparisons: Sequence[Comparison], kind: str) -> list[Panel]:
    found_of: list[Panel] = []
    for shape in SHAPES:
        found = {
            one.job.size: one
            for one in comparisons
            if (one.other, one.job.kind, one.job.shape) == (FLOOR, kind, shape)
            and one.job.max_parallel == 4
            and not one.problem
        }
        sizes = sorted(found)
        if sizes:
            ours = [found[size].our_time / size * 1e6 for size in sizes]
            theirs = [found[size].their_time / size * 1e6 for size in sizes]
            found_of.append(Panel(shape, sizes, ours, theirs))
    return found_of


def _bars(comparisons: Sequence[Comparison]) -> list[tuple[str, float]]:
    """Return every peer's median over the shapes, at the largest size it has done."""
    titles = {peer.module: peer.title for peer in PEERS}
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in comparisons:
        if one.other in titles and not one.problem and one.job.size <= _LARGEST_OF_ALL_PEERS:
            sizes = found.setdefault((one.other, one.job.kind), {})
            sizes.setdefault(one.job.size, []).append(1 / one.ratio)
    leads = [
        (f"{titles[module]}, {kind}", statistics.median(sizes[max(sizes)]))
        for (module, kind), sizes in found.items()
    ]
    return sorted(leads, key=lambda lead: lead[1])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:200]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
