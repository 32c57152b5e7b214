"""A graph -> Graphviz text, for those who have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.escape import for_dot
from flowrun.render.palette import LIGHT
from flowrun.render.wording import SIGNS, duration_text, ran_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.report import RunReport


def dot(dag_name: str, deps: Mapping[str, Sequence[str]], report: RunReport | None = None) -> str:
    """Return the DAG in Graphviz's language; names stand in labels only, never as ids.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Adds status and duration to each task.

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
    number = {name: position for position, name in enumerate(deps)}
    font = 'fontname="Helvetica"'
    lines = [
        "digraph flowrun {",
        f'    graph [label="{for_dot(dag_name)}", labelloc=t, rankdir=LR, {font}];',
        f'    node [shape=box, style="rounded,filled", fillcolor="#ffffff", {font}];',
    ]
    lines += [f"    t{number[name]} [{_attributes(name, report)}];" for name in deps]
    for name, needed in deps.items():
        for parent in dict.fromkeys(needed):
            if parent in number:
                lines.append(f"    t{number[parent]} -> t{number[name]};")
    lines.append("}")
    return "\n".join(lines)


def _attributes(name: str, report: RunReport | None) -> str:
    task = None if report is None else report["tasks"].get(name)
    if task is None:
        return f'label="{for_dot(name)}"'
    label = f"{SIGNS[task['status']].symbol} {for_dot(name)}"
    duration_s = ran_s(task)
    if duration_s is not None:
        label += f"\\n{duration_text(duration_s)}"
    shade = LIGHT[task["status"]]
    return (
        f'label="{label}", color="{shade.ink}", fontcolor="{shade.ink}", fillcolor="{shade.ground}"'
    )
