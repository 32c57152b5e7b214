"""What the tasks of one run are given, and what of it is kept for a retry or a resume (S4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from flowrun.registry import UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowrun.context import RunContext
    from flowrun.graph import Arguments, Graph
    from flowrun.state.records import Preserved, RunRecord, TaskRecord

    Changeable: TypeAlias = Mapping[str, object]

NO_ARGUMENTS: Arguments = ((), {})
NOTHING: Changeable = {}
UNCHANGING = frozenset(map(id, (int, float, complex, str, bytes, bool, type(None))))
"""Ids of the types of values that a task cannot change.

Of the types, not the types: to look one up would call code of a type that has its own ``__eq__``.
"""


class Inputs:
    """Bind tasks to what they are given.

    Args:
        graph: The graph.
        record: The run.
        tasks: Its records, by the graph's numbers.
        context: What the caller of the run has given.
        live: Whether the store holds the records themselves.

    Attributes:
        may_change: Whether a result has been seen that a task could change.
    """

    __slots__ = ("_context", "_graph", "_live", "_preserved", "_record", "_tasks", "may_change")

    def __init__(
        self,
        graph: Graph,
        record: RunRecord,
        tasks: Sequence[TaskRecord],
        context: RunContext[object] | None,
        *,
        live: bool,
    ) -> None:
        self._graph = graph
        self._record = record
        self._tasks = tasks
        self._context = context
        self._live = live
        self._preserved: dict[int, Preserved] = {
            graph.index[name]: inputs for name, inputs in record.inputs.items()
        }
        self.may_change = record.resumed_from is not None

    def arguments(self, number: int) -> Arguments:
        """Return what a task is called with; its parents have results."""
        graph, tasks = self._graph, self._tasks
        plan = graph.plans[number]
        if not plan.gives_any:
            return NO_ARGUMENTS
        if plan.only_upstream and not self._preserved:
            upstream: dict[str, object] = {}
            for each in graph.parents[number]:
                parent = tasks[each]
                upstream[parent.name] = parent.result
            return (), {UPSTREAM: upstream}
        values = [tasks[parent].result for parent in graph.parents[number]]
        if self._preserved:
            self._restore(number, values)
        return plan.arguments(graph.dependency_names[number], values, self._context)

    def changeable(self, number: int) -> Changeable:
        """Return what a task's first attempt might change, if it will be asked for again."""
        graph = self._graph
        retried = bool(graph.specs[number].retry.retries)
        if not (retried or self._live):
            return NOTHING
        known = self._preserved.get(number) or {}
        found: dict[str, object] = {}
        for parent in graph.plans[number].passed_on(graph.parents[number]):
            name, value = graph.names[parent], self._tasks[parent].result
            # What is not retained is made again for a resume (S2), but not for a retry.
            wanted = retried or graph.specs[parent].retain_result
            if wanted and id(type(value)) not in UNCHANGING and name not in known:
                found[name] = value
        return found

    def keep(self, number: int, preserved: Preserved) -> None:
        """Give a task's later attempts what its first one was given."""
        self._preserved[number] = {**(self._preserved.get(number) or {}), **preserved}

    def leave_for_resume(self, number: int) -> None:
        """A task has failed: leave what it was given for the run that resumes this one."""
        if self._live and number in self._preserved:
            graph = self._graph
            self._record.inputs[graph.names[number]] = {
                name: thaw
                for name, thaw in self._preserved[number].items()
                if graph.specs[graph.index[name]].retain_result
            }

    def forget(self, number: int) -> None:
        """A task has ended: it needs its inputs no more."""
        if self._preserved:
            self._preserved.pop(number, None)

    def _restore(self, number: int, values: list[object]) -> None:
        """Put in what an earlier attempt was given, made anew."""
        preserved = self._preserved.get(number) or {}
        for place, name in enumerate(self._graph.dependency_names[number]):
            if name in preserved:
                values[place] = preserved[name]()


def frozen(values: Changeable) -> Preserved:
    """Return what makes these values anew, as they are now, as often as it is called."""
    return {name: _frozen(value) for name, value in values.items()}


def _frozen(value: object) -> Callable[[], object]:
    # A pickle, or a deep copy where the type says how to make one or cannot be pickled. What
    # cannot be copied at all (an open connection) is shared.
    import copy  # noqa: PLC0415 - few tasks are given what they could change
    import pickle  # noqa: PLC0415

    try:
        if not hasattr(type(value), "__deepcopy__"):
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            pickle.loads(data)  # noqa: S301 - our own bytes; refuses what would not come back
            return lambda: pickle.loads(data)  # noqa: S301 - our own bytes
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001, S110 - a value's own methods may raise anything
        pass
    try:
        twin = copy.deepcopy(value)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - see above
        return lambda: value
    return lambda: copy.deepcopy(twin)
