"""A graph -> Mermaid text, for pages and wikis that draw it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.escape import for_mermaid
from flowrun.render.palette import LIGHT
from flowrun.render.wording import SIGNS, duration_text, ran_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.report import RunReport


def mermaid(
    dag_name: str, deps: Mapping[str, Sequence[str]], report: RunReport | None = None
) -> str:
    """Return the DAG as a Mermaid flowchart; names stand in labels only, never as ids.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Adds status and duration to each task.

    Example:
        >>> print(mermaid("etl", {"extract": [], "load": ["extract"]}))
        flowchart LR
            accTitle: etl
            t0["extract"]
            t1["load"]
            t0 --> t1
    """
    number = {name: position for position, name in enumerate(deps)}
    lines = ["flowchart LR", f"    accTitle: {for_mermaid(dag_name)}"]
    lines += [f'    t{number[name]}["{_label(name, report)}"]' for name in deps]
    for name, needed in deps.items():
        for parent in dict.fromkeys(needed):
            if parent in number:
                lines.append(f"    t{number[parent]} --> t{number[name]}")
    if report is not None:
        lines += _colours(number, report)
    return "\n".join(lines)


def _label(name: str, report: RunReport | None) -> str:
    task = None if report is None else report["tasks"].get(name)
    if task is None:
        return for_mermaid(name)
    label = f"{SIGNS[task['status']].symbol} {for_mermaid(name)}"
    duration_s = ran_s(task)
    return label if duration_s is None else f"{label}<br/>{duration_text(duration_s)}"


def _colours(number: Mapping[str, int], report: RunReport) -> list[str]:
    lines: list[str] = []
    for status, shade in LIGHT.items():
        members = [
            f"t{number[name]}"
            for name, task in report["tasks"].items()
            if task["status"] == status and name in number
        ]
        if members:
            word = SIGNS[status].word
            ink = f"stroke:{shade.ink},color:{shade.ink}"
            lines.append(f"    classDef {word} fill:{shade.ground},{ink}")
            lines.append(f"    class {','.join(members)} {word}")
    return lines
