"""Tasks that differ by a number alone -> one box of a drawing, from a dozen on."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from flowrun.render.wording import SIGNS, counted_retries, tally_text, task_facts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.report import TaskReport, TaskStatusName

LEAST_SIBLINGS = 12
_NUMBER = re.compile(r"\d+")
_WORST_FIRST: tuple[TaskStatusName, ...] = (
    "FAILED",
    "RUNNING",
    "PENDING",
    "SKIPPED",
    "SUCCESS",
    "OMITTED",
)


class Box(NamedTuple):
    """What a drawing shows as one thing: a task, or many siblings.

    Attributes:
        name: The task's, or that of the siblings with ``*`` for the number.
        members: The numbers of its tasks.
        parents: The numbers of the boxes that it depends on.
    """

    name: str
    members: list[int]
    parents: list[int]


def boxes(deps: Mapping[str, Sequence[str]], least: int = LEAST_SIBLINGS) -> list[Box]:
    """Return the boxes of a graph, each after those that it depends on.

    Siblings have names that differ by numbers alone, and depend on the same boxes. Those of one
    box have the same depth, so boxes depend on each other in no circle.

    Args:
        deps: The dependencies of each task, in topological order.
        least: How many siblings share a box.
    """
    number = {name: place for place, name in enumerate(deps)}
    parents = [
        [number[parent] for parent in dict.fromkeys(above) if parent in number]
        for above in deps.values()
    ]
    depths: list[int] = []
    for above in parents:
        depths.append(max((depths[parent] + 1 for parent in above), default=0))
    levels: list[list[int]] = [[] for _ in range(max(depths, default=-1) + 1)]
    for task, depth in enumerate(depths):
        levels[depth].append(task)
    names = list(deps)
    found: list[tuple[str, list[int]]] = []
    box_of = [0] * len(names)
    for level in levels:
        families: dict[tuple[str, frozenset[int]], list[int]] = {}
        for task in level:
            needed = frozenset(box_of[parent] for parent in parents[task])
            families.setdefault((_NUMBER.sub("*", names[task]), needed), []).append(task)
        for (pattern, _), family in families.items():
            together = [family] if len(family) >= least else [[task] for task in family]
            for members in together:
                for task in members:
                    box_of[task] = len(found)
                found.append((pattern if len(members) > 1 else names[members[0]], members))
    if len(found) == len(names):
        return [Box(name, [task], parents[task]) for task, name in enumerate(names)]
    return [
        Box(name, members, sorted({box_of[parent] for parent in parents[members[0]]}))
        for name, members in found
    ]


def title_of(box: Box) -> str:
    """Return what a box is called: ``page_* x 200`` for siblings."""
    return box.name if len(box.members) == 1 else f"{box.name} x {len(box.members):,}"


def status_of_box(tasks: Sequence[TaskReport]) -> TaskStatusName:
    """Return the status that matters most among those of a box's tasks."""
    statuses = {task["status"] for task in tasks}
    if "PENDING" in statuses and "SUCCESS" in statuses and "FAILED" not in statuses:
        return "RUNNING"
    return next(status for status in _WORST_FIRST if status in statuses)


def facts_of(tasks: Sequence[TaskReport]) -> str:
    """Return what is said of a box's tasks: how they ended, how long they ran, their retries."""
    if len(tasks) == 1:
        return " · ".join(task_facts(tasks[0]) or [SIGNS[tasks[0]["status"]].word])
    again = sum(max(task["attempt"] - 1, 0) for task in tasks)
    ends = tally_text(Counter(task["status"] for task in tasks))
    return f"{ends} · {counted_retries(again)}" if again else ends
