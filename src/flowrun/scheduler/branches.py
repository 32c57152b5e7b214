"""Which of the tasks that depend on a branch it has chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from flowrun.errors import NonRetryableError, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowrun.graph import Graph


def chosen(graph: Graph, number: int, value: object) -> tuple[list[str], frozenset[int]]:
    """Return the names and the numbers of the children that a branch has returned.

    Raises:
        NonRetryableError: It has returned something else.
    """
    children = {graph.names[child]: child for child in graph.children[number]}
    given: list[object] = [] if value is None else [value]
    if isinstance(value, list | tuple | set | frozenset):
        given = list(cast("Iterable[object]", value))
    names: list[str] = []
    for each in given:
        name = each
        if callable(each):
            name = next(
                (
                    graph.names[child]
                    for child in children.values()
                    if _is_same(graph.declared.specs[child].function, each)
                ),
                None,
            )
        if isinstance(name, str) and name not in children and graph.targets is not None:
            continue  # a sub-graph may leave it out
        if not isinstance(name, str) or name not in children:
            problem = (
                f"the branch {graph.names[number]!r} returned {each!r:.80}, and no task that"
                f" depends on it is meant by that; return {listed(sorted(children))}, or a list"
            )
            raise NonRetryableError(problem)
        names.append(name)
    return names, frozenset(children[name] for name in names)


def kept_choices(graph: Graph, values: Mapping[str, object]) -> dict[int, frozenset[int]]:
    """Return the children that the branches among tasks that a resume keeps have chosen.

    Args:
        graph: The graph of the new run.
        values: The kept results, by task; of a branch the names that it has chosen.
    """
    found: dict[int, frozenset[int]] = {}
    for name, value in values.items():
        number = graph.index[name]
        if graph.specs[number].is_branch:
            names = frozenset(cast("Iterable[str]", value))
            children = graph.children[number]
            found[number] = frozenset(each for each in children if graph.names[each] in names)
    return found


def _is_same(declared: object, given: object) -> bool:
    """Return whether a callable is a task's, or a wrapper around it."""
    while given is not None:
        if declared is given:
            return True
        given = getattr(given, "__wrapped__", None)
    return False
