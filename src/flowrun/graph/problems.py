"""The mistakes in a graph, as errors that name the task and the remedy."""

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
    close_match,
    listed,
)
from flowrun.registry import TaskTemplate, callable_name, unresolved_annotation

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.registry import TaskFunction, TaskRegistry, TaskSpec

MOST = 20
"""The most problems that one error lists."""


def ambiguous(
    dag_name: str, spec: TaskSpec, function: TaskFunction, names: Sequence[str]
) -> GraphError:
    """A dependency is a callable that is several tasks of the DAG."""
    return AmbiguousDependencyError(
        dag_name,
        [
            (
                f"task {spec.name!r} depends on the callable {callable_name(function)!r}, which is"
                f" registered as {listed(names)}; name the one that is meant: deps=[{names[0]!r}]"
            )
        ],
    )


def not_a_task(dag_name: str, spec: TaskSpec, function: TaskFunction) -> GraphError:
    """A dependency is a callable that is not a task, or a template."""
    what = f"the callable {callable_name(function)!r}, which is not registered as a task"
    remedy = f"decorate it with @engine.task(dag={spec.dag!r})"
    if isinstance(function, TaskTemplate):
        what = "a template, and a template is not a task"
        remedy = "list a task that its bind() has registered"
    return MissingDependencyError(dag_name, [f"task {spec.name!r} depends on {what}; {remedy}"])


def cross(dag_name: str, spec: TaskSpec, dependency: str, dags: Sequence[str | None]) -> GraphError:
    """A dependency is a task of another DAG."""
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


def missing(
    dag_name: str,
    spec: TaskSpec,
    dependency: str,
    known: Collection[str],
    registry: TaskRegistry,
) -> GraphError:
    """A dependency names a task that the DAG does not have."""
    dags = registry.dags_with(dependency)
    if dags:
        return cross(dag_name, spec, dependency, dags)
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


def unfilled(dag_name: str, spec: TaskSpec, parameter: str, known: Collection[str]) -> GraphError:
    """Nothing fills a required parameter."""
    if spec.signature.wants_upstream:
        remedy = (
            "a task that declares 'upstream' is given no named results: read"
            f" upstream[{parameter!r}], or drop 'upstream'"
        )
    elif (annotation := unresolved_annotation(spec.function, parameter)) is not None:
        remedy = (
            f"its annotation {annotation!r} cannot be resolved at run time: if that is"
            " RunContext under another name, import it outside 'if TYPE_CHECKING:', or under"
            f" its own name. Else name the parameter after a task.{close_match(parameter, known)}"
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


def star_arguments(dag_name: str, spec: TaskSpec, lost: Sequence[str]) -> GraphError:
    """The results of dependencies would go to ``*args``, and be lost."""
    return UnfilledParameterError(
        dag_name,
        [
            (
                f"task {spec.name!r} has *args, and results are never passed to those:"
                f" {listed(lost)} would be lost; declare a parameter 'upstream' and read"
                f" upstream[{lost[0]!r}], or name a parameter after each dependency"
            )
        ],
    )


def unknown_executor(dag_name: str, spec: TaskSpec, executors: Collection[str]) -> GraphError:
    """A task names an executor that the engine does not have."""
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


def together(dag_name: str, problems: Sequence[GraphError]) -> GraphError:
    """Return one error for all problems; of their own class if they share one."""
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else GraphError
    lines = [line for problem in problems for line in problem.problems]
    if len(lines) > MOST:
        more = f"and {len(lines) - MOST} more"
        lines = [*lines[:MOST], more]
    return kind(dag_name, lines)


def cycles(
    dag_name: str,
    specs: Sequence[TaskSpec],
    parents: Sequence[Sequence[int]],
    children: Sequence[Sequence[int]],
    unmet: list[int],
) -> list[GraphError]:
    """Return the cycles of a graph; two that share a dependency may be reported as one.

    Args:
        dag_name: The DAG.
        specs: Its tasks.
        parents: Their dependencies, as positions.
        children: What depends on them.
        unmet: How many dependencies of each could not be put in order; it is changed.
    """
    found: list[GraphError] = []
    cut: set[tuple[int, int]] = set()
    while any(unmet):
        if len(found) == MOST - 1:
            found.append(CycleError(dag_name, ["there are more cycles than these"]))
            break
        cycle = _cycle(parents, unmet, cut)
        names = " -> ".join(specs[step].name for step in cycle)
        text = f"its tasks form a cycle: {names}; remove one of these dependencies"
        found.append(CycleError(dag_name, [text]))
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
    return found


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
