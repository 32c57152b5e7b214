"""A graph -> text in one of the styles: a tree for people, or a language of programs that draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from flowrun.errors import close_match
from flowrun.escape import for_dot, for_mermaid
from flowrun.render.tree_text import tree
from flowrun.render.wording import SIGNS, duration_text, ran_s, teardowns_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowrun.report import RunReport, TaskStatusName

GraphStyle = Literal["tree", "mermaid", "dot"]

LIGHT: dict[TaskStatusName, tuple[str, str]] = {
    "SUCCESS": ("#00694d", "#e9f6f1"),
    "FAILED": ("#a83200", "#fdeee6"),
    "SKIPPED": ("#5b6270", "#f1f2f4"),
    "OMITTED": ("#5b6270", "#f6f7f8"),
    "RUNNING": ("#00599c", "#e8f2fb"),
    "PENDING": ("#5b6270", "#ffffff"),
}
"""The colour of each status's lines and text, and of the ground they stand on.

Chosen after Okabe and Ito's palette, so that the usual colour blindnesses keep them apart, and
dark enough for small text: a contrast of 4.5 to 1.
"""
_NO_TEARDOWNS: Mapping[str, Sequence[str]] = {}
_MERMAID_EDGES = 500
_MERMAID_CHARACTERS = 50_000


def graph_text(  # noqa: PLR0913 - what a tree can be told, handed on
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    *,
    style: GraphStyle = "tree",
    report: RunReport | None = None,
    teardowns: Mapping[str, Sequence[str]] | None = None,
    ascii_only: bool = False,
    width: int | None = None,
) -> str:
    """Return a graph as text in one of the styles.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        style: ``"tree"`` for people, ``"mermaid"`` or ``"dot"`` for programs that draw.
        report: Shows the status and duration of each task of this run.
        teardowns: What each teardown tears down; by default as the report has it.
        ascii_only: Of a tree; see :func:`flowrun.render.tree`.
        width: Of a tree; see :func:`flowrun.render.tree`.

    Raises:
        ValueError: The style is unknown.
    """
    teardowns = teardowns_of(report) if teardowns is None else teardowns
    if style == "tree":
        about = (dag_name, deps)
        return tree(*about, report=report, teardowns=teardowns, ascii_only=ascii_only, width=width)
    if style == "mermaid":
        return mermaid(dag_name, deps, report, teardowns)
    if style == "dot":
        return dot(dag_name, deps, report, teardowns)
    styles = get_args(GraphStyle)
    names = ", ".join(repr(name) for name in styles)
    msg = f"unknown style {style!r}; the styles are {names}.{close_match(style, styles)}"
    raise ValueError(msg)


def mermaid(
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    report: RunReport | None = None,
    teardowns: Mapping[str, Sequence[str]] = _NO_TEARDOWNS,
) -> str:
    """Return the DAG as a Mermaid flowchart; names stand in labels only, never as ids.

    A comment before it says when it passes what Mermaid draws by default.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Adds status and duration to each task.
        teardowns: What each teardown tears down, by a dotted arrow.

    Example:
        >>> print(mermaid("etl", {"extract": [], "load": ["extract"]}))
        flowchart LR
            accTitle: etl
            t0["extract"]
            t1["load"]
            t0 --> t1
    """
    lines = ["flowchart LR", f"accTitle: {for_mermaid(dag_name)}"]
    members: dict[TaskStatusName, list[str]] = {}
    for number, name in enumerate(deps):
        label = _label(name, report, for_mermaid, "<br/>")
        lines.append(f't{number}["{label}"]')
        if report is not None and name in report["tasks"]:
            members.setdefault(report["tasks"][name]["status"], []).append(f"t{number}")
    edges = [
        f"t{parent} {'-.->' if tears_down else '-->'} t{child}"
        for parent, child, tears_down in _edges(deps, teardowns)
    ]
    lines += edges
    for status, (ink, ground) in LIGHT.items():
        if status in members:
            word = SIGNS[status].word
            lines.append(f"classDef {word} fill:{ground},stroke:{ink},color:{ink}")
            lines.append(f"class {','.join(members[status])} {word}")
    text = "\n    ".join(lines)
    remarks = ""
    if len(edges) > _MERMAID_EDGES:
        remarks = f"%% {len(edges):,} edges: Mermaid draws {_MERMAID_EDGES} unless its maxEdges is"
        remarks += " higher\n"
    if len(text) > _MERMAID_CHARACTERS:
        remarks += f"%% {len(text):,} characters: Mermaid reads {_MERMAID_CHARACTERS:,} unless its"
        remarks += " maxTextSize is higher\n"
    return remarks + text


def dot(
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    report: RunReport | None = None,
    teardowns: Mapping[str, Sequence[str]] = _NO_TEARDOWNS,
) -> str:
    """Return the DAG in Graphviz's language; names stand in labels only, never as ids.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Adds status and duration to each task.
        teardowns: What each teardown tears down, by a dashed arrow.

    Example:
        >>> print(dot("etl", {"extract": [], "load": ["extract"]}))
        digraph flowrun {
            graph [label="etl", labelloc=t, rankdir=LR, fontname="Helvetica"];
            node [shape=box, style="rounded,filled", fillcolor="#ffffff", fontname="Helvetica"];
            t0 [label="extract"];
            t1 [label="load"];
            t0 -> t1;
        }
    """
    font = 'fontname="Helvetica"'
    lines = [
        "digraph flowrun {",
        f'graph [label="{for_dot(dag_name)}", labelloc=t, rankdir=LR, {font}];',
        f'node [shape=box, style="rounded,filled", fillcolor="#ffffff", {font}];',
    ]
    for number, name in enumerate(deps):
        colours = ""
        if report is not None and name in report["tasks"]:
            ink, ground = LIGHT[report["tasks"][name]["status"]]
            colours = f', color="{ink}", fontcolor="{ink}", fillcolor="{ground}"'
        label = _label(name, report, for_dot, "\\n")
        lines.append(f't{number} [label="{label}"{colours}];')
    lines += [
        f"t{parent} -> t{child}{' [style=dashed]' if tears_down else ''};"
        for parent, child, tears_down in _edges(deps, teardowns)
    ]
    return "\n    ".join(lines) + "\n}"


def _label(
    name: str, report: RunReport | None, escaped: Callable[[str], str], line_end: str
) -> str:
    task = None if report is None else report["tasks"].get(name)
    if task is None:
        return escaped(name)
    label = f"{SIGNS[task['status']].symbol} {escaped(name)}"
    duration_s = ran_s(task)
    return label if duration_s is None else f"{label}{line_end}{duration_text(duration_s)}"


def _edges(
    deps: Mapping[str, Sequence[str]], teardowns: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, int, bool]]:
    """Yield the numbers of parent and child, and whether the child tears down the parent.

    Dependencies outside the drawing are left out.
    """
    number = {name: position for position, name in enumerate(deps)}
    for name, needed in deps.items():
        for parent in dict.fromkeys(needed):
            if parent in number:
                yield number[parent], number[name], parent in teardowns.get(name, ())
