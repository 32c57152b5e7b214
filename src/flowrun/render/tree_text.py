"""A graph -> a tree of text that a person reads in a terminal."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from flowrun.escape import for_terminal, shortened
from flowrun.render.wording import sign_of, task_facts, teardown_text, teardowns_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flowrun.report import RunReport

_MAX_DEPTH = 20
"""Levels of indentation before a branch goes on in a section of its own: without that, the
output of a chain would grow with the square of its length."""


_AS_ASCII = str.maketrans({"├": "|", "─": "-", "└": "`", "│": "|"})


def tree(  # noqa: PLR0913 - what a tree can be told
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    *,
    report: RunReport | None = None,
    teardowns: Mapping[str, Sequence[str]] | None = None,
    ascii_only: bool = False,
    width: int | None = None,
) -> str:
    """Return the DAG as a tree: its name, then the tasks that wait for nothing, then theirs.

    A task with several dependencies stands in full below the first of them and is marked
    ``(see above)`` below the others, so the tree has one line for each edge at most.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        report: Adds status, duration and number of attempts to each task.
        teardowns: What each teardown tears down; by default as the report has it.
        ascii_only: For screens that can show nothing else.
        width: Columns after which a line is cut; ``None`` never cuts.

    Returns:
        Lines joined by line feeds, without one at the end.

    Example:
        >>> print(tree("etl", {"extract": [], "clean": ["extract"], "load": ["clean"]}))
        etl
        └─ extract
           └─ clean
              └─ load
    """
    teardowns = teardowns_of(report) if teardowns is None else teardowns
    lines = _Tree(deps, report, teardowns, ascii_only=ascii_only).lines(dag_name)
    if ascii_only:
        lines = (line.translate(_AS_ASCII) for line in lines)
    if width is not None:
        lines = (shortened(line, width, "..." if ascii_only else "…") for line in lines)
    return "\n".join(lines)


class _Tree:
    """One drawing: what has been printed, and what must go on in a later section."""

    def __init__(
        self,
        deps: Mapping[str, Sequence[str]],
        report: RunReport | None,
        teardowns: Mapping[str, Sequence[str]],
        *,
        ascii_only: bool,
    ) -> None:
        self._teardowns = teardowns
        self._children: dict[str, list[str]] = {name: [] for name in deps}
        self._roots: list[str] = []
        for name, needed in deps.items():
            parents = [parent for parent in dict.fromkeys(needed) if parent in deps]
            for parent in parents:
                self._children[parent].append(name)
            if not parents:
                self._roots.append(name)
        self._tasks = {} if report is None else report["tasks"]
        self._ascii_only = ascii_only
        self._printed: set[str] = set()
        self._postponed: deque[str] = deque()

    def lines(self, dag_name: str) -> Iterator[str]:
        yield self._text(dag_name)
        if not self._roots:
            yield "└─ (no tasks)"
        yield from self._branch(self._roots)
        while self._postponed:
            name = self._postponed.popleft()
            yield ""
            yield f"{self._text(name)} (continued)"
            yield from self._branch(self._children[name])

    def _branch(self, first: Sequence[str]) -> Iterator[str]:
        # A stack of (children still to print, indentation of their lines): recursion would
        # end at Python's limit.
        stack = [(deque(first), "")]
        while stack:
            siblings, indent = stack[-1]
            if not siblings:
                stack.pop()
                continue
            name = siblings.popleft()
            lead = indent + ("├─ " if siblings else "└─ ")
            children = self._children[name]
            if name in self._printed:
                yield f"{lead}{self._label(name)} (see above)"
                continue
            self._printed.add(name)
            facts = task_facts(self._tasks[name]) if name in self._tasks else []
            if name in self._teardowns:
                facts = [self._text(teardown_text(self._teardowns[name])), *facts]
            line = f"{lead}{self._label(name)}  {', '.join(facts)}".rstrip()
            if children and len(stack) >= _MAX_DEPTH:
                self._postponed.append(name)
                line += " (continued below)"
            elif children:
                stack.append((deque(children), indent + ("│  " if siblings else "   ")))
            yield line

    def _label(self, name: str) -> str:
        task = self._tasks.get(name)
        if task is None:
            return self._text(name)
        return f"{sign_of(task['status'], ascii_only=self._ascii_only)} {self._text(name)}"

    def _text(self, name: str) -> str:
        return for_terminal(name, ascii_only=self._ascii_only)
