"""A graph, or a run of it -> a picture in SVG."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from flowrun.escape import for_html, for_terminal
from flowrun.render.layout import Layout, Spacing, lay_out
from flowrun.render.siblings import Box, boxes, facts_of, status_of_box, title_of
from flowrun.render.wording import SIGNS, counted, teardowns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flowrun.render.layout import Route, Span
    from flowrun.report import RunReport, TaskStatusName

MOST_LABELLED = 300
"""Tasks up to which each is a box with its name; beyond, a mark that is named on demand."""

_BOXES = Spacing(height=46, row_gap=18, layer_gap=60, most_rows=10_000)
_PLAIN_BOXES = _BOXES._replace(height=34)
_MARKS = Spacing(height=12, row_gap=4, layer_gap=28, most_rows=100)
_MARK_WIDTH = 44.0
_MARK = 5.0
_PADDING = 14
_MOST_EMS = 17.0
_NARROW = frozenset("iljtfrI.,:;'|!()[]- ")
_BROAD = frozenset("mwMW@%")
_FIRST_WIDE = "\u1100"
_TEXT = 'stroke="none" fill="currentColor"'

# Each status has its own outline, not only its own colour.
_SHAPES: dict[TaskStatusName, str] = {
    "SUCCESS": (
        '<circle cx="8" cy="8" r="7.2" class="f"/><path class="m" d="M4.6 8.3l2.4 2.4 4.5-5"/>'
    ),
    "FAILED": (
        '<path class="f" d="M8 .2 15.8 8 8 15.8.2 8z"/>'
        '<path class="m" d="M5.6 5.6l4.8 4.8m0-4.8-4.8 4.8"/>'
    ),
    "SKIPPED": '<circle cx="8" cy="8" r="6.4" class="o"/><path class="o" d="M3.5 12.5l9-9"/>',
    "OMITTED": '<circle cx="8" cy="8" r="6.4" class="o"/><path class="o" d="M4.6 8h6.8"/>',
    "RUNNING": '<path class="f" d="M3 1.2 14.6 8 3 14.8z"/>',
    "PENDING": '<circle cx="8" cy="8" r="6.4" class="o" stroke-dasharray="2.6 2.4"/>',
}
_MARK_PATHS: dict[TaskStatusName, str] = {
    "SUCCESS": "m-4 -4h8v8h-8z",
    "FAILED": "m0 -9l9 9-9 9-9-9z",
    "SKIPPED": "m-4 4l8-8m-8 0h8v8h-8z",
    "OMITTED": "m-4 0h8",
    "RUNNING": "m-4 -5l9 5-9 5z",
    "PENDING": "m-4 -4h8v8h-8z",
}


class Picture(NamedTuple):
    """An SVG element, and what its nodes stand for.

    Attributes:
        svg: The element.
        marks: The middle of each task's mark; ``None`` when there are boxes.
        boxes: The numbers of the tasks of each box; ``None`` when each task has one of its own.
    """

    svg: str
    marks: list[tuple[int, int]] | None
    boxes: list[list[int]] | None


def graph_css() -> str:
    """Return the style sheet that the pictures' classes refer to."""
    return files("flowrun.render").joinpath("graph.css").read_text("utf-8")


def symbols() -> str:
    """Return the statuses' signs and the arrows, to be used from anywhere in the document."""
    signs = "".join(
        f'<symbol id="flowrun-{status}" viewBox="0 0 16 16">'
        f'<g class="{status}">{shape}</g></symbol>'
        for status, shape in _SHAPES.items()
    )
    return signs + _arrow("arrow") + _arrow("arrow-critical")


def dag_svg(
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    report: RunReport | None = None,
    teardowns: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return the DAG as an SVG picture that needs nothing beside it.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Shows the status and duration of each task of this run.
        teardowns: What each teardown tears down; by default as the report has it.
    """
    picture = draw(dag_name, deps, report, teardowns=teardowns, interactive=False)
    head, _, rest = picture.svg.partition(">")
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg"><style>{graph_css()}</style>'
        f'<rect class="ground" width="100%" height="100%" rx="8"/><defs>{symbols()}</defs>{rest}'
    )


def draw(  # noqa: PLR0913 - what a picture can be told
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    report: RunReport | None = None,
    *,
    critical: Sequence[str] = (),
    teardowns: Mapping[str, Sequence[str]] | None = None,
    interactive: bool = True,
) -> Picture:
    """Return the picture for a page that has the style sheet and the symbols already.

    Args:
        dag_name: What a screen reader calls it.
        deps: The dependencies of each task, in topological order.
        report: Shows the status and duration of each task of this run.
        critical: The tasks on the critical path, from its start to its end.
        teardowns: What each teardown tears down; by default as the report has it.
        interactive: Whether a script will make the nodes buttons.
    """
    found = boxes(deps)
    has_boxes = len(found) <= MOST_LABELLED
    if not has_boxes:
        found = boxes(deps, len(deps) + 1)
    teardowns = teardowns_of(report) if teardowns is None else teardowns
    about = (list(deps), found, report, critical, teardowns)
    drawing = _Drawing(*about, interactive=interactive)
    parents = [box.parents for box in found]
    if has_boxes:
        widths = [drawing.width(place) for place in range(len(found))]
        layout = lay_out(parents, widths, _BOXES if report else _PLAIN_BOXES)
        content = "".join(drawing.boxes(layout))
    else:
        layout = lay_out(parents, [_MARK_WIDTH] * len(found), _MARKS)
        content = "".join(drawing.marks(layout))
    width, height = (round(side) + 2 * _PADDING for side in (layout.width, layout.height))
    role = "group" if interactive else "img"
    label = f"{for_html(dag_name)}: {counted(len(deps), 'task')}"
    svg = (
        f'<svg class="flowrun-dag" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="{role}" aria-label="{label}" fill="none"'
        f' stroke="currentColor">{content}</svg>'
    )
    marks = None if has_boxes else [drawing.middle(span) for span in layout.nodes]
    shared = len(found) < len(deps)
    return Picture(svg, marks, [box.members for box in found] if shared else None)


class _Drawing:
    def __init__(  # noqa: PLR0913 - what a picture can be told
        self,
        names: Sequence[str],
        found: Sequence[Box],
        report: RunReport | None,
        critical: Sequence[str],
        teardowns: Mapping[str, Sequence[str]],
        *,
        interactive: bool,
    ) -> None:
        self._found = found
        self._report = report
        self._interactive = interactive
        known = {} if report is None else report["tasks"]
        self._tasks = [
            [known[names[task]] for task in box.members if names[task] in known] for box in found
        ]
        box_of = {names[task]: place for place, box in enumerate(found) for task in box.members}
        path = [box_of[name] for name in critical]
        self._critical = set(path)
        self._critical_edges = set(pairwise(path))
        self._teardown_edges = {
            (box_of[setup], box_of[name])
            for name, setups in teardowns.items()
            for setup in setups
            if name in box_of and setup in box_of
        }
        self._texts = [
            (for_terminal(title_of(box)), facts_of(tasks) if tasks else "")
            for box, tasks in zip(found, self._tasks, strict=True)
        ]

    def width(self, place: int) -> float:
        """Return how wide a box must be for its texts; fonts are not known here."""
        name, facts = self._texts[place]
        text = max(_ems(_cut(name)) * 13, _ems(facts) * 10.5)
        return round(text) + (52 if self._tasks[place] else 28)

    def boxes(self, layout: Layout) -> Iterator[str]:
        yield '<g class="edges">'
        for route in sorted(layout.routes, key=self._is_critical):
            kinds = ["critical"] if self._is_critical(route) else []
            kinds += ["teardown"] if (route.source, route.target) in self._teardown_edges else []
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            path = _path(layout, route, 0.0)
            yield f'<path{kind} data-from="{route.source}" data-to="{route.target}" d="{path}"/>'
        yield "</g>"
        for place, span in enumerate(layout.nodes):
            yield self._box(place, span)

    def marks(self, layout: Layout) -> Iterator[str]:
        path = "".join(_path(layout, route, _MARK) for route in layout.routes)
        yield f'<path class="edges" d="{path}"/>'
        critical = "".join(
            _path(layout, route, _MARK) for route in layout.routes if self._is_critical(route)
        )
        yield f'<path class="edges critical" d="{critical}"/>'
        paths: dict[TaskStatusName, list[str]] = {}
        for tasks, span in zip(self._tasks, layout.nodes, strict=True):
            status: TaskStatusName = status_of_box(tasks) if tasks else "PENDING"
            x, y = self.middle(span)
            paths.setdefault(status, []).append(f"M{x} {y}{_MARK_PATHS[status]}")
        # Failures come last, so that nothing covers them.
        for status, found in sorted(paths.items(), key=lambda item: item[0] == "FAILED"):
            kind = "f" if status in {"SUCCESS", "FAILED", "RUNNING"} else "o"
            yield f'<g class="{status}"><path class="{kind}" d="{"".join(found)}"/></g>'

    def middle(self, span: Span) -> tuple[int, int]:
        """Return where the mark of a node is."""
        return round(span.left + _PADDING + _MARK), round(span.y + _PADDING)

    def _box(self, place: int, span: Span) -> str:
        tasks = self._tasks[place]
        name, facts = self._texts[place]
        status = status_of_box(tasks) if tasks else "PLAIN"
        height = (_BOXES if tasks else _PLAIN_BOXES).height
        spoken = [for_html(name), SIGNS[status_of_box(tasks)].word if tasks else "", facts]
        kind = f"node {status}"
        if place in self._critical:
            spoken.append("on the critical path")
            kind += " critical"
        if self._report is not None and tasks and all(task["kept"] for task in tasks):
            kind += " kept"
        # A task that never ran has its status for a fact, too: it is said once.
        label = ", ".join(part for part in dict.fromkeys(spoken) if part)
        corner = f"{round(span.left) + _PADDING} {round(span.y - height / 2) + _PADDING}"
        button = ""
        if self._interactive:
            # One stop for the Tab key; from there the script moves by arrow keys.
            button = f' data-box="{place}" role="button" tabindex="{-1 if place else 0}"'
        width = f"{span.right - span.left:.0f}"
        rect = f'<rect width="{width}" height="{height:.0f}" rx="8"/>'
        behind = f'<rect class="behind" x="4" y="4"{rect[5:]}' if self._is_shared(place) else ""
        parts = [
            f'<g class="{kind}" transform="translate({corner})"{button}><title>{label}</title>',
            behind + rect,
        ]
        if tasks:
            parts.append(f'<use href="#flowrun-{status}" x="12" y="15" width="16" height="16"/>')
            parts.append(f'<text class="facts" x="36" y="35.5" {_TEXT}>{facts}</text>')
        x, y = (36, 19.5) if tasks else (14, 21.5)
        parts.append(
            f'<text class="name" x="{x}" y="{y}" {_TEXT}>{for_html(_cut(name))}</text></g>'
        )
        return "".join(parts)

    def _is_shared(self, place: int) -> bool:
        return len(self._found[place].members) > 1

    def _is_critical(self, route: Route) -> bool:
        return (route.source, route.target) in self._critical_edges


def _arrow(name: str) -> str:
    return (
        f'<marker id="flowrun-{name}" class="{name}" viewBox="0 0 8 8" refX="1" refY="4"'
        ' markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 .5 7.5 4 0 7.5z"/></marker>'
    )


def _path(layout: Layout, route: Route, mark: float) -> str:
    """Return an edge as curves through the gaps between layers, level where it passes one.

    Args:
        layout: Where everything is.
        route: The edge.
        mark: Half the width of the nodes' marks; 0 when the nodes are boxes.
    """
    source, target = layout.nodes[route.source], layout.nodes[route.target]
    x = (source.left + 2 * mark if mark else source.right) + _PADDING
    y = source.y + _PADDING
    parts = [f"M{x:.0f} {y:.0f}"]
    for span in (*route.through, target):
        left, middle = span.left + _PADDING, span.y + _PADDING
        end = left - (0 if mark or span is not target else 7)
        bend = (x + end) / 2
        straight = abs(middle - y) < 0.5  # noqa: PLR2004 - less than the rounding below
        parts.append(
            f"H{end:.0f}"
            if straight
            else f"C{bend:.0f} {y:.0f} {bend:.0f} {middle:.0f} {end:.0f} {middle:.0f}"
        )
        x, y = end, middle
        if span is not target and span.right > span.left:
            x = span.right + _PADDING
            parts.append(f"H{x:.0f}")
    return "".join(parts)


def _cut(text: str) -> str:
    """Return as much of a name as a box has room for."""
    total = 0.0
    for position, character in enumerate(text):
        total += _em(character)
        if total > _MOST_EMS:
            return text[:position] + "…"
    return text


def _ems(text: str) -> float:
    return sum(map(_em, text))


def _em(character: str) -> float:
    """Return about how wide a character is in a sans-serif font."""
    if character >= _FIRST_WIDE:
        return 1.05
    if character in _NARROW:
        return 0.42
    if character in _BROAD:
        return 1.02
    return 0.78 if character.isupper() else 0.69
