"""Task specs of one DAG -> a validated, immutable graph: order, parents, children.

Cost grows with tasks plus edges; nothing here recurses (G2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.errors import (
    AmbiguousDependencyError,
    CrossDagDependencyError,
    CycleError,
    GraphError,
    MissingDependencyError,
    UnfilledParameterError,
    UnknownExecutorError,
    UnknownTaskError,
    close_match,
    listed,
)
from flowrun.registry import callable_name
from flowrun.signature import plan_call

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from flowrun.registry import TaskFunction, TaskRegistry, TaskSpec
    from flowrun.signature import CallPlan

_MOST_PROBLEMS = 20


class Graph:
    """One DAG, or a part of it, ready to run.

    Tasks are numbered in topological order: by the length of the longest path that leads to
    them, then as declared. Everything but the names speaks of these numbers.

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
        specs: Sequence[TaskSpec],
        parents: Sequence[tuple[int, ...]],
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self.dag_name = dag_name
        self.specs = tuple(specs)
        self.parents = tuple(parents)
        self.targets = targets
        self.names = tuple(spec.name for spec in self.specs)
        self.index = {name: number for number, name in enumerate(self.names)}
        names = self.names
        self.dependency_names = tuple(
            [tuple([names[parent] for parent in dependencies]) for dependencies in self.parents]
        )
        self.plans: tuple[CallPlan, ...] = tuple(
            [plan_call(spec.signature, given) for spec, given in zip(specs, self.dependency_names)]  # noqa: B905 - a hot path
        )
        self.children = tuple(map(tuple, _children(self.parents)))
        self.is_async = tuple([spec.signature.is_async for spec in self.specs])
        self.context_tasks = tuple(
            spec.name
            for spec in self.specs
            if spec.signature.context_parameter is not None
            and not spec.signature.context_optional
            and not spec.signature.context_has_default
        )

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
        problems: list[GraphError] = []
        resolved = _resolve(dag_name, specs, registry, executors, problems)
        if problems:
            raise _together(dag_name, problems)
        order = _order(dag_name, specs, resolved)
        if order == list(range(len(order))):
            return cls(dag_name, specs, resolved)
        place = [0] * len(order)
        for number, declared in enumerate(order):
            place[declared] = number
        return cls(
            dag_name,
            [specs[declared] for declared in order],
            [tuple([place[parent] for parent in resolved[declared]]) for declared in order],
        )

    def subgraph(self, targets: Iterable[str]) -> Graph:
        """Return the part that leads to these tasks, themselves included.

        Raises:
            UnknownTaskError: A target is no task of this graph.
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
        place = {number: new for new, number in enumerate(kept)}
        return Graph(
            self.dag_name,
            [self.specs[number] for number in kept],
            [tuple([place[parent] for parent in self.parents[number]]) for number in kept],
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


def _resolve(
    dag_name: str,
    specs: Sequence[TaskSpec],
    registry: TaskRegistry,
    executors: Collection[str],
    problems: list[GraphError],
) -> list[tuple[int, ...]]:
    """Return every task's parents as positions in ``specs``, and note what is wrong."""
    position = {spec.name: number for number, spec in enumerate(specs)}
    resolved: list[tuple[int, ...]] = []
    for spec in specs:
        parents: dict[int, None] = {}  # an ordered set: a fan-in may have 100,000
        for dependency in spec.deps:
            name = dependency
            if not isinstance(name, str):
                found = _name_of(dag_name, spec, name, registry)
                if isinstance(found, GraphError):
                    problems.append(found)
                    continue
                name = found
            parent = position.get(name)
            if parent is None:
                # What is cut short is not shown: a search for a hint there, through all the
                # tasks for each of them, would cost their product (G2).
                known = position if len(problems) < _MOST_PROBLEMS else ()
                problems.append(_missing(dag_name, spec, name, known, registry))
            elif parent in parents:
                problem = f"task {spec.name!r} lists dependency {name!r} twice; list it once"
                problems.append(GraphError(dag_name, [problem]))
            else:
                parents[parent] = None
        if spec.signature.required:
            _infer(dag_name, spec, position, parents, problems)
        if spec.executor is not None and spec.executor not in executors:
            problems.append(_unknown_executor(dag_name, spec, executors))
        resolved.append(tuple(parents))
    return resolved


def _infer(
    dag_name: str,
    spec: TaskSpec,
    position: dict[str, int],
    parents: dict[int, None],
    problems: list[GraphError],
) -> None:
    """Add the parents that required parameters name (G4), or note what nothing fills."""
    for parameter in spec.signature.required:
        parent = None if spec.signature.wants_upstream else position.get(parameter)
        if parent is None:
            known = position if len(problems) < _MOST_PROBLEMS else ()  # see _resolve
            problems.append(_unfilled(dag_name, spec, parameter, known))
        else:
            parents[parent] = None


def _name_of(
    dag_name: str, spec: TaskSpec, function: TaskFunction, registry: TaskRegistry
) -> str | GraphError:
    homes = registry.homes(function)
    here = [name for dag, name in homes if dag == spec.dag]
    if len(here) == 1:
        return here[0]
    label = callable_name(function)
    if here:
        return AmbiguousDependencyError(
            dag_name,
            [
                (
                    f"task {spec.name!r} depends on the callable {label!r}, which is registered"
                    f" as {listed(here)}; name the one that is meant: deps=[{here[0]!r}]"
                )
            ],
        )
    if homes:
        dag, name = homes[0]
        return _cross(dag_name, spec, name, [dag])
    return MissingDependencyError(
        dag_name,
        [
            (
                f"task {spec.name!r} depends on the callable {label!r}, which is not registered"
                f" as a task; decorate it with @engine.task(dag={spec.dag!r})"
            )
        ],
    )


def _cross(
    dag_name: str, spec: TaskSpec, dependency: str, dags: Sequence[str | None]
) -> GraphError:
    home = f"DAG {dags[0]!r}" if dags[0] is not None else "no DAG"
    return CrossDagDependencyError(
        dag_name,
        [
            (
                f"task {spec.name!r} depends on {dependency!r}, a cross-DAG dependency:"
                f" that task belongs to {home}; a task can only depend on tasks of its own DAG,"
                f" so register it in {dag_name!r} too, or run the DAGs one after the other"
            )
        ],
    )


def _missing(
    dag_name: str,
    spec: TaskSpec,
    dependency: str,
    known: Collection[str],
    registry: TaskRegistry,
) -> GraphError:
    dags = registry.dags_with(dependency)
    if dags:
        return _cross(dag_name, spec, dependency, dags)
    hint = close_match(dependency, known)
    if known and spec.dag is not None and dependency in registry.list_tasks(None):
        hint = f" A task of that name belongs to no DAG: give it dag={spec.dag!r}."
    return MissingDependencyError(
        dag_name,
        [
            (
                f"task {spec.name!r} has a missing dependency: there is no task"
                f" {dependency!r:.200} in this DAG; register it or correct deps.{hint}"
            )
        ],
    )


def _unfilled(dag_name: str, spec: TaskSpec, parameter: str, known: Collection[str]) -> GraphError:
    if spec.signature.wants_upstream:
        remedy = (
            "a task that declares 'upstream' is given no named results: read"
            f" upstream[{parameter!r}], or drop 'upstream'"
        )
    else:
        remedy = (
            "name it after a task of this DAG, give it a default, annotate it as"
            f" RunContext[...], or bind it in a template.{close_match(parameter, known)}"
        )
    return UnfilledParameterError(
        dag_name,
        [f"task {spec.name!r} requires the parameter {parameter!r}, which nothing fills; {remedy}"],
    )


def _unknown_executor(dag_name: str, spec: TaskSpec, executors: Collection[str]) -> GraphError:
    return UnknownExecutorError(
        dag_name,
        [
            (
                f"task {spec.name!r} asks for executor {spec.executor!r}; the engine has"
                f" {listed(sorted(executors))}: pass executors={{{spec.executor!r}: ...}} to"
                f" build_default_engine.{close_match(spec.executor, executors)}"
            )
        ],
    )


def _together(dag_name: str, problems: Sequence[GraphError]) -> GraphError:
    """Return one error for all of them; of their own class if they share it."""
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else GraphError
    lines = [line for problem in problems for line in problem.problems]
    if len(lines) > _MOST_PROBLEMS:
        more = f"and {len(lines) - _MOST_PROBLEMS} more"
        lines = [*lines[:_MOST_PROBLEMS], more]
    return kind(dag_name, lines)


def _children(parents: Sequence[Sequence[int]]) -> list[list[int]]:
    children: list[list[int]] = [[] for _ in parents]
    for number, dependencies in enumerate(parents):
        for parent in dependencies:
            children[parent].append(number)
    return children


def _order(dag_name: str, specs: Sequence[TaskSpec], parents: Sequence[Sequence[int]]) -> list[int]:
    """Return positions in topological order: by depth, then as declared.

    Raises:
        CycleError: With one whole cycle.
    """
    depth = [0] * len(parents)
    for number, dependencies in enumerate(parents):
        deepest = 0
        for parent in dependencies:
            if parent >= number:  # declared later: how deep that is cannot be told yet
                return _order_by_levels(dag_name, specs, parents)
            if depth[parent] >= deepest:
                deepest = depth[parent] + 1
        depth[number] = deepest
    return sorted(range(len(parents)), key=depth.__getitem__)


def _order_by_levels(
    dag_name: str, specs: Sequence[TaskSpec], parents: Sequence[Sequence[int]]
) -> list[int]:
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
        raise CycleError(dag_name, [_cycle_text(specs, parents, unmet)])
    return order


def _cycle_text(
    specs: Sequence[TaskSpec], parents: Sequence[Sequence[int]], unmet: Sequence[int]
) -> str:
    """Follow unmet parents until one comes twice: that is a cycle."""
    number = next(number for number, count in enumerate(unmet) if count)
    path: list[int] = []
    seen: dict[int, int] = {}
    while number not in seen:
        seen[number] = len(path)
        path.append(number)
        number = next(parent for parent in parents[number] if unmet[parent])
    # Walked from child to parent; data flows the other way round.
    cycle = [*path[seen[number] :], number][::-1]
    names = " -> ".join(specs[step].name for step in cycle)
    return f"its tasks form a cycle: {names}; remove one of these dependencies"
