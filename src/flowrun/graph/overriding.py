"""Override tasks of a graph for one run: by a value for its result, or by another function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowrun.errors import OverrideError, TaskDefinitionError, close_match, listed
from flowrun.registry import Signature, inspect_callable

if TYPE_CHECKING:
    from typing import Any

    from flowrun.graph.graph import Graph
    from flowrun.registry import TaskFunction, TaskSpec

_NO_CALL = Signature(is_async=False)


def override(graph: Graph, overrides: Mapping[str, object] | None) -> Graph:
    """Return the graph with some tasks overridden; the dependencies stay as they are.

    Args:
        graph: The graph of the run.
        overrides: By task, a callable in place of the task's function, or a value in place of its
            result.

    Raises:
        OverrideError: There is no such task, or a callable does not fit.
    """
    if not overrides:
        return graph
    if not isinstance(overrides, Mapping):
        msg = f"overrides must be a mapping of task names, not {overrides!r:.80}"
        raise TypeError(msg)
    specs = list(graph.specs)
    values: dict[int, object] = {}
    for name, given in overrides.items():
        number = graph.index.get(name) if isinstance(name, str) else None
        if number is None:
            problem = (
                f"is of no task of this run; its tasks: {listed(graph.names)}."
                f"{close_match(name, graph.names)}"
            )
            raise OverrideError(graph.dag_name, name, problem)
        spec = specs[number]
        if callable(given):
            specs[number] = _with_function(graph, spec, graph.dependency_names[number], given)
        else:
            values[number] = given
            specs[number] = dataclasses.replace(spec, signature=_NO_CALL)
    # A result that an override has a part in neither comes from the cache nor goes there.
    for number in graph.descendants([graph.index[name] for name in overrides]):
        if specs[number].cache is not None:
            specs[number] = dataclasses.replace(specs[number], cache=None)
    by = {name: "value" if graph.index[name] in values else "function" for name in overrides}
    return graph.with_overrides(tuple(specs), values, by)


def _with_function(
    graph: Graph, spec: TaskSpec, dependencies: tuple[str, ...], function: TaskFunction
) -> TaskSpec:
    """Return a task with another function, which must need no more than the task is given.

    A parameter without an annotation is what the one of that name is in the task's own function:
    the context, or a parameter of the run.
    """
    try:
        found = inspect_callable(function, task_name=spec.name, dag_name=spec.dag)
    except TaskDefinitionError as error:
        raise OverrideError(graph.dag_name, spec.name, f"cannot be a task: {error}") from error
    own = spec.signature
    named = {*found.required, *found.optional}
    params = [each for each in own.params if each.name in named]
    changes: dict[str, Any] = {"params": (*found.params, *params)}
    taken = {each.name for each in params}
    if found.context_parameter is None and own.context_parameter in named:
        taken.add(own.context_parameter)
        changes["context_parameter"] = own.context_parameter
        changes["context_has_default"] = own.context_parameter in found.optional
    for field in ("required", "optional"):
        changes[field] = tuple(each for each in getattr(found, field) if each not in taken)
    found = dataclasses.replace(found, **changes)
    unfilled = [name for name in found.required if found.wants_upstream or name not in dependencies]
    if unfilled:
        problem = (
            f"requires {listed(unfilled)}, which nothing fills; it can have parameters named after"
            f" the task's dependencies ({listed(dependencies) or 'there are none'}), 'upstream', a"
            " RunContext and Params"
        )
        raise OverrideError(graph.dag_name, spec.name, problem)
    setups = graph.teardowns.names.get(spec.name, ())
    lacking = [name for name in found.required if name not in setups]
    if lacking and graph.index[spec.name] in graph.lenient:
        cause = (
            "when a teardown runs" if setups else f"with trigger_rule={str(spec.trigger_rule)!r}"
        )
        problem = (
            f"requires {listed(lacking)}, and {cause} that dependency may have no result; give"
            " the parameter a default"
        )
        raise OverrideError(graph.dag_name, spec.name, problem)
    executor = None if found.is_async else spec.executor
    return dataclasses.replace(spec, function=function, signature=found, executor=executor)
