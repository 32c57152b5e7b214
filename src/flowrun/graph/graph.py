"""A validated, immutable graph of one DAG's tasks: order, parents, children.

The cost grows with tasks plus edges; nothing recurses (G2).
"""

from __future__ import annotations

from itertools import islice
from operator import le
from typing import TYPE_CHECKING, cast

from flowrun.errors import UnknownTaskError
from flowrun.graph.call_plan import plan_call
from flowrun.graph.problems import Problems
from flowrun.graph.resolving import Resolver

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from flowrun.config import Limit
    from flowrun.registry import TaskRegistry, TaskSpec
    from flowrun.registry.task_spec import Dependency

_FEW = 8  # children up to here are added to a tuple, which is copied each time


class Graph:
    """One DAG, or a part of it, ready to run.

    Tasks are numbered in topological order: by the length of the longest path that leads to
    them, then as declared. All attributes but the names use these numbers.

    Attributes:
        dag_name: The DAG.
        specs: The tasks, in topological order.
        names: Their names.
        index: Name -> number.
        parents: Numbers of a task's dependencies, in declared order, the inferred ones last.
        dependency_names: The same by name.
        children: Numbers of the tasks that depend on a task, ascending.
        plans: How results and context are injected into a task's callable.
        is_async: Which tasks run on the event loop.
        targets: The targets of a sub-graph, ``None`` for a whole DAG.
        with_params: Tasks that a run's parameters are given to.
        map_sources: Of each mapped task the dependencies that it is mapped over.
        values: Values that stand for tasks' results, by task.
        overridden: By what a task is overridden for one run, by name; see ``overriding.py``.
    """

    __slots__ = (
        "_declared",
        "children",
        "dag_name",
        "dependency_names",
        "index",
        "is_async",
        "map_sources",
        "names",
        "overridden",
        "parents",
        "plans",
        "specs",
        "targets",
        "values",
        "with_params",
    )

    def __init__(
        self,
        dag_name: str,
        specs: tuple[TaskSpec, ...],
        dependency_names: tuple[tuple[str, ...], ...],
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self.dag_name = dag_name
        self.specs = specs
        self.dependency_names = dependency_names
        self.targets = targets
        self.names = tuple([spec.name for spec in specs])
        self.index = dict(zip(self.names, range(len(specs)), strict=True))
        self.parents = _numbers(self.index, dependency_names)
        self.children = _children(self.parents)
        signatures = [spec.signature for spec in specs]
        # Many tasks share a few signatures, so what depends on a signature alone is computed once.
        distinct = set(signatures)
        shared = {each: plan_call(each, ()) for each in distinct if not each.takes_named_results}
        self.plans = tuple(
            [
                shared.get(signature) or plan_call(signature, names)
                for signature, names in zip(signatures, dependency_names, strict=True)
            ]
        )
        self.is_async = tuple([signature.is_async for signature in signatures])
        self.with_params: Sequence[int] = ()
        if any(each.params for each in distinct):
            self.with_params = [number for number, each in enumerate(signatures) if each.params]
        self.map_sources: Mapping[int, tuple[int, ...]] = {
            number: tuple(
                [self.index[_source_name(each, spec, names)] for each in spec.mapping.over]
            )
            for number, (spec, names) in enumerate(zip(specs, dependency_names, strict=True))
            if spec.mapping is not None
        }
        self.values: Mapping[int, object] = {}
        self.overridden: Mapping[str, str] = {}
        self._declared: Graph | None = None

    @classmethod
    def build(
        cls,
        dag_name: str,
        specs: Sequence[TaskSpec],
        registry: TaskRegistry,
        executors: Collection[str] = (),
        limits: Mapping[str, Limit] | None = None,
    ) -> Graph:
        """Resolve and validate the tasks of a DAG.

        Args:
            dag_name: The DAG.
            specs: Its tasks, as declared.
            registry: Where callables and other DAGs' tasks are looked up.
            executors: Names of the executors that tasks may use.
            limits: The limits that tasks may use.

        Raises:
            GraphError: Every mistake in the DAG, in one error (G1).
        """
        specs = tuple(specs)
        declared = tuple([spec.deps for spec in specs])
        order = None if _needs_care(specs) else _declared_order(specs, declared)
        if order is not None:  # so every dependency is the name of a task, not a callable
            names = cast("tuple[tuple[str, ...], ...]", declared)
        else:
            problems = Problems(dag_name)
            resolver = Resolver(specs, registry, executors, limits or {}, problems)
            names = tuple([resolver.dependencies(spec) for spec in specs])
            order = _declared_order(specs, names)
            if order is None:
                order = _order_by_levels(specs, names, problems)
            problems.check()
        if order != range(len(specs)):
            specs = tuple(map(specs.__getitem__, order))
            names = tuple(map(names.__getitem__, order))
        return cls(dag_name, specs, names)

    def subgraph(self, targets: Iterable[str]) -> Graph:
        """Return the part that leads to these tasks, themselves included."""
        wanted = tuple(targets)
        chosen: set[int] = set()
        stack = [self.number(name) for name in wanted]
        while stack:
            number = stack.pop()
            if number not in chosen:
                chosen.add(number)
                stack.extend(self.parents[number])
        kept = sorted(chosen)
        return Graph(
            self.dag_name,
            tuple(map(self.specs.__getitem__, kept)),
            tuple(map(self.dependency_names.__getitem__, kept)),
            wanted,
        )

    def with_overrides(
        self, specs: tuple[TaskSpec, ...], values: Mapping[int, object], by: Mapping[str, str]
    ) -> Graph:
        """Return the graph with other specs of the same tasks, ``values`` and ``overridden``."""
        made = Graph(self.dag_name, specs, self.dependency_names, self.targets)
        made.values, made.overridden, made._declared = values, by, self
        return made

    @property
    def declared(self) -> Graph:
        """The graph without what overrides a part of it."""
        return self._declared or self

    @property
    def context_tasks(self) -> list[str]:
        """The tasks that cannot be called without the run's context."""
        return [spec.name for spec in self.specs if spec.signature.needs_context]

    def descendants(self, numbers: Iterable[int]) -> set[int]:
        """Return these tasks and everything that depends on them, directly or not."""
        found: set[int] = set()
        stack = list(numbers)
        while stack:
            number = stack.pop()
            if number not in found:
                found.add(number)
                stack.extend(self.children[number])
        return found

    def number(self, name: object) -> int:
        """Return a task's number, or raise an ``UnknownTaskError``."""
        number = self.index.get(name) if isinstance(name, str) else None
        if number is None:
            raise UnknownTaskError(self.dag_name, name, self.names)
        return number

    def deps(self) -> dict[str, list[str]]:
        """Return every task's dependencies by name, in topological order."""
        return dict(zip(self.names, map(list, self.dependency_names), strict=True))

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self.specs)


def _needs_care(specs: Sequence[TaskSpec]) -> bool:
    """Return whether more must be resolved than the dependencies that tasks list."""
    if any(spec.executor is not None or spec.uses or spec.mapping for spec in specs):
        return True
    return any(
        signature.required or signature.leaves_star_arguments
        for signature in {spec.signature for spec in specs}
    )


def _source_name(source: Dependency, spec: TaskSpec, names: Sequence[str]) -> str:
    """Return the task that a mapped one is mapped over; its listed dependencies come first."""
    return source if isinstance(source, str) else names[spec.deps.index(source)]


def _numbers(
    index: dict[str, int], dependency_names: Sequence[tuple[str, ...]]
) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of names; the usual small counts are written out for speed."""
    number_of = index.__getitem__
    numbers: list[tuple[int, ...]] = []
    for names in dependency_names:
        match len(names):
            case 1:
                numbers.append((index[names[0]],))
            case 2:
                first, second = names
                numbers.append((index[first], index[second]))
            case 3:
                first, second, third = names
                numbers.append((index[first], index[second], index[third]))
            case _:
                numbers.append(tuple(map(number_of, names)))
    return tuple(numbers)


def _children(parents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the tasks that have each task as a parent.

    Not with a list for each task: the garbage collector visits every list, and 100,000 of them
    slow it down. It does not track tuples of numbers.
    """
    children: list[tuple[int, ...]] = [()] * len(parents)
    of_many: dict[int, list[int]] = {}
    for number, dependencies in enumerate(parents):
        one = (number,)
        for parent in dependencies:
            found = children[parent]
            if not found:
                children[parent] = one
            elif len(found) < _FEW:
                children[parent] = found + one
            elif parent in of_many:
                of_many[parent].append(number)
            else:
                of_many[parent] = [*found, number]
    for parent, numbers in of_many.items():
        children[parent] = tuple(numbers)
    return tuple(children)


def _declared_order(
    specs: Sequence[TaskSpec], dependency_names: Sequence[Sequence[object]]
) -> Sequence[int] | None:
    """Return positions in topological order: by depth, then as declared.

    ``None`` if a task lists a dependency that was not declared before it: one pass cannot compute
    the depth of that task.
    """
    depths: dict[object, int] = {}
    try:
        for spec, names in zip(specs, dependency_names):  # noqa: B905 - a hot path
            deepest = -1
            for name in names:
                depth = depths[name]
                if depth > deepest:  # noqa: PLR1730 - max() takes five times as long
                    deepest = depth
            depths[spec.name] = deepest + 1
    except (KeyError, TypeError):  # the latter by a callable that cannot be hashed
        return None
    found = list(depths.values())
    positions = range(len(found))
    if all(map(le, found, islice(found, 1, None))):
        return positions
    return sorted(positions, key=found.__getitem__)


def _order_by_levels(
    specs: Sequence[TaskSpec],
    dependency_names: Sequence[tuple[str, ...]],
    problems: Problems,
) -> list[int]:
    """Return positions in topological order: by depth, then as declared; note cycles."""
    position = {spec.name: number for number, spec in enumerate(specs)}
    parents = _numbers(position, dependency_names)
    children = _children(parents)
    unmet = [len(dependencies) for dependencies in parents]
    level = [number for number, count in enumerate(unmet) if not count]
    order: list[int] = []
    while level:
        order += level
        following: list[int] = []
        for number in level:
            for child in children[number]:
                unmet[child] -= 1
                if not unmet[child]:
                    following.append(child)
        following.sort()
        level = following
    if len(order) < len(parents):
        problems.add_cycles([spec.name for spec in specs], parents, children, unmet)
    return order
