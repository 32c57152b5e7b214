"""The mistakes in a graph, gathered for one error; the search for cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.errors import CycleError, GraphError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_MOST = 20


class Problems:
    """The mistakes in one DAG, each with the task and the remedy (G1)."""

    def __init__(self, dag_name: str) -> None:
        self.dag_name = dag_name
        self._kinds: set[type[GraphError]] = set()
        self._lines: list[str] = []

    @property
    def are_many(self) -> bool:
        """Whether the error will not show any further problem."""
        return len(self._lines) >= _MOST

    def add(self, kind: type[GraphError], line: str) -> None:
        """Note a mistake."""
        self._kinds.add(kind)
        self._lines.append(line)

    def check(self) -> None:
        """Raise one error for all mistakes; of their own class if they share one."""
        if self._lines:
            more = len(self._lines) - _MOST
            lines = self._lines[:_MOST] + ([f"and {more} more"] if more > 0 else [])
            kind = self._kinds.pop() if len(self._kinds) == 1 else GraphError
            raise kind(self.dag_name, lines)

    def add_cycles(
        self,
        names: Sequence[str],
        parents: Sequence[Sequence[int]],
        children: Sequence[Sequence[int]],
        unmet: list[int],
    ) -> None:
        """Note the cycles; of those that share a dependency only one may be found.

        Args:
            names: The tasks.
            parents: Their dependencies, as positions.
            children: What depends on them.
            unmet: How many dependencies of each could not be put in order; it is changed.
        """
        cut: set[tuple[int, int]] = set()
        while any(unmet):
            if len(cut) == _MOST - 1:
                self.add(CycleError, "there are more cycles than these")
                break
            cycle = _cycle(parents, unmet, cut)
            path = " -> ".join(names[step] for step in cycle)
            self.add(
                CycleError, f"its tasks form a cycle: {path}; remove one of these dependencies"
            )
            # Without its last dependency there may be more.
            parent, number = cycle[-2:]
            cut.add((parent, number))
            unmet[number] -= 1
            met = [] if unmet[number] else [number]
            while met:
                number = met.pop()
                for child in children[number]:
                    if (number, child) not in cut:
                        unmet[child] -= 1
                        if not unmet[child]:
                            met.append(child)


def _cycle(
    parents: Sequence[Sequence[int]], unmet: Sequence[int], cut: Collection[tuple[int, int]]
) -> list[int]:
    """Follow unmet parents until one comes twice: that is a cycle."""
    number = next(number for number, count in enumerate(unmet) if count)
    path: list[int] = []
    seen: dict[int, int] = {}
    while number not in seen:
        seen[number] = len(path)
        path.append(number)
        number = next(
            parent for parent in parents[number] if unmet[parent] and (parent, number) not in cut
        )
    # Walked from child to parent; data flows the other way round.
    return [*path[seen[number] :], number][::-1]
