"""Task specs of one DAG -> a validated, immutable graph: order, parents, children.

Cost grows with tasks plus edges; nothing here recurses (G2).
"""

from __future__ import annotations

from itertools import islice
from operator import le
from typing import TYPE_CHECKING, cast

from flowrun.errors import GraphError, UnknownTaskError
from flowrun.graph import problems as wrong
from flowrun.graph.call_plan import lost_results, plan_call, plan_without_dependencies

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from flowrun.graph.call_plan import CallPlan
    from flowrun.registry import Signature, TaskFunction, TaskRegistry, TaskSpec

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
    """

    __slots__ = (
        "children",
        "context_tasks",
        "dag_name",
        "dependency_names",
        "index",
        "is_async",
        "names",
        "parents",
        "plans",
        "specs",
        "targets",
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
        self.plans = _plans(signatures, distinct, dependency_names)
        is_async = {signature: signature.is_async for signature in distinct}
        self.is_async = tuple(map(is_async.__getitem__, signatures))
        self.context_tasks: tuple[str, ...] = ()
        demanding = {signature for signature in distinct if signature.needs_context}
        if demanding:
            self.context_tasks = tuple([spec.name for spec in specs if spec.signature in demanding])

    @classmethod
    def build(
        cls,
        dag_name: str,
        specs: Sequence[TaskSpec],
        registry: TaskRegistry,
        executors: Collection[str] = (),
    ) -> Graph:
        """Resolve and validate the tasks of a DAG.

        Args:
            dag_name: The DAG.
            specs: Its tasks, as declared.
            registry: Where callables and other DAGs' tasks are looked up.
            executors: Names of the executors that tasks may ask for.

        Raises:
            GraphError: Every mistake in the DAG, in one error (G1).
        """
        specs = tuple(specs)
        declared = tuple([spec.deps for spec in specs])
        order = None if _needs_care(specs) else _declared_order(specs, declared)
        if order is not None:  # so every dependency is the name of a task, not a callable
            names = cast("tuple[tuple[str, ...], ...]", declared)
        else:
            problems: list[GraphError] = []
            names = _resolve(dag_name, specs, registry, executors, problems)
            order = None if problems else _declared_order(specs, names)
            if order is None:
                order = _order_by_levels(dag_name, specs, names, problems)
            if problems:
                raise wrong.together(dag_name, problems)
        if order != range(len(specs)):
            specs = tuple(map(specs.__getitem__, order))
            names = tuple(map(names.__getitem__, order))
        return cls(dag_name, specs, names)

    def subgraph(self, targets: Iterable[str]) -> Graph:
        """Return the part that leads to these tasks, themselves included.

        Raises:
            UnknownTaskError: A target is not a task of this graph.
        """
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
        """Return a task's number.

        Raises:
            UnknownTaskError: There is no such task.
        """
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
    if {spec.executor for spec in specs} != {None}:
        return True
    return any(
        signature.required or signature.leaves_star_arguments
        for signature in {spec.signature for spec in specs}
    )


def _resolve(
    dag_name: str,
    specs: Sequence[TaskSpec],
    registry: TaskRegistry,
    executors: Collection[str],
    problems: list[GraphError],
) -> tuple[tuple[str, ...], ...]:
    """Return the names of every task's dependencies; add mistakes to ``problems``."""
    known = {spec.name: None for spec in specs}
    resolved: list[tuple[str, ...]] = []
    for spec in specs:
        found: dict[str, None] = {}  # an ordered set: a fan-in may have 100,000
        for dependency in spec.deps:
            name = dependency
            if not isinstance(name, str):
                there = _name_of(dag_name, spec, name, registry)
                if isinstance(there, GraphError):
                    problems.append(there)
                    continue
                name = there
            if name not in known:
                # The error lists only the first problems. A hint for each of the others would
                # search all tasks, at the cost of tasks times problems (G2).
                hints = known if len(problems) < wrong.MOST else ()
                problems.append(wrong.missing(dag_name, spec, name, hints, registry))
            elif name in found:
                problem = f"task {spec.name!r} lists dependency {name!r} twice; list it once"
                problems.append(GraphError(dag_name, [problem]))
            else:
                found[name] = None
        _fill(dag_name, spec, known, found, problems)
        if spec.executor is not None and spec.executor not in executors:
            problems.append(wrong.unknown_executor(dag_name, spec, executors))
        resolved.append(tuple(found))
    return tuple(resolved)


def _fill(
    dag_name: str,
    spec: TaskSpec,
    known: dict[str, None],
    found: dict[str, None],
    problems: list[GraphError],
) -> None:
    """Add the dependencies that required parameters name (G4); report what nothing fills."""
    for parameter in spec.signature.required:
        if spec.signature.wants_upstream or parameter not in known:
            hints = known if len(problems) < wrong.MOST else ()  # see _resolve
            problems.append(wrong.unfilled(dag_name, spec, parameter, hints))
        else:
            found[parameter] = None
    if spec.signature.leaves_star_arguments:
        lost = lost_results(spec.signature, tuple(found))
        if lost:
            problems.append(wrong.star_arguments(dag_name, spec, lost))


def _name_of(
    dag_name: str, spec: TaskSpec, function: TaskFunction, registry: TaskRegistry
) -> str | GraphError:
    homes = registry.homes(function)
    here = [name for dag, name in homes if dag == spec.dag]
    if len(here) == 1:
        return here[0]
    if here:
        return wrong.ambiguous(dag_name, spec, function, here)
    if homes:
        dag, name = homes[0]
        return wrong.cross(dag_name, spec, name, [dag])
    return wrong.not_a_task(dag_name, spec, function)


def _plans(
    signatures: Sequence[Signature],
    distinct: Collection[Signature],
    dependency_names: Sequence[tuple[str, ...]],
) -> tuple[CallPlan, ...]:
    fixed = {
        signature: plan
        for signature in distinct
        if (plan := plan_without_dependencies(signature)) is not None
    }
    if len(fixed) == len(distinct):
        return tuple(map(fixed.__getitem__, signatures))
    return tuple(
        [
            fixed.get(signature) or plan_call(signature, names)
            for signature, names in zip(signatures, dependency_names, strict=True)
        ]
    )


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

    ``None`` if a dependency is no task that was declared before the task which lists it: then
    one pass cannot compute how deep that task is.
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
    dag_name: str,
    specs: Sequence[TaskSpec],
    dependency_names: Sequence[tuple[str, ...]],
    problems: list[GraphError],
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
        problems += wrong.cycles(dag_name, specs, parents, children, unmet)
    return order
