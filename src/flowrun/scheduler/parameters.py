"""The parameters of one run: checked before anything runs, and converted for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowrun.errors import ParameterError, close_match, listed
from flowrun.registry import stored_param

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flowrun.graph import Graph
    from flowrun.registry import Parameter


def checked_params(
    graph: Graph, given: Mapping[str, object] | None, kept: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return a run's parameters as JSON values that every task can be given.

    Args:
        graph: The graph of the run.
        given: What the caller gave.
        kept: What a resume keeps of the old run. Those that no task has any more are dropped.

    Raises:
        ParameterError: One is missing, unknown, or of the wrong type.
    """
    if given is not None and not isinstance(given, Mapping):
        msg = f"params must be a mapping of parameters, not {given!r:.80}; write params={{...}}"
        raise TypeError(msg)
    known = {each.name: None for _, each in _parameters(graph.declared)}
    known |= {each.name: None for _, each in _parameters(graph)}
    stored = {name: value for name, value in (kept or {}).items() if name in known}
    for name, value in (given or {}).items():
        if name not in known:
            problem = (
                f"is of no task of this run; its parameters: {listed(list(known))}."
                f"{close_match(name, known)} A task declares one by its annotation:"
                f" {name}: Param[str]"
            )
            raise ParameterError(graph.dag_name, name, problem)
        for task_name, parameter in _parameters(graph):
            if parameter.name == name:
                _converted(graph, task_name, parameter, value)
        try:
            stored[name] = stored_param(value)
        except TypeError as error:  # of a parameter that only an overridden task has
            raise ParameterError(graph.dag_name, name, str(error)) from None
    for task_name, parameter in _parameters(graph):
        if parameter.name in stored:
            _converted(graph, task_name, parameter, stored[parameter.name])
        elif not parameter.has_default:
            name = parameter.name
            problem = (
                f"is missing: task {task_name!r} requires it ({parameter.kind}); pass"
                f" params={{{name!r}: ...}}, on the command line --param {name}=..., or give it a"
                " default"
            )
            raise ParameterError(graph.dag_name, name, problem)
    return stored


def task_params(graph: Graph, number: int, stored: Mapping[str, object]) -> dict[str, object]:
    """Return what a task is given of a run's parameters, which were checked."""
    return {
        each.name: each.convert(stored[each.name])
        for each in graph.specs[number].signature.params
        if each.name in stored
    }


def all_params(graph: Graph, stored: Mapping[str, object]) -> dict[str, object]:
    """Return a run's parameters, each as the first task that has it is given it."""
    found: dict[str, object] = {}
    for number in reversed(graph.with_params):
        found |= task_params(graph, number, stored)
    return {**stored, **found}


def replaced_param(
    graph: Graph, number: int, old: Mapping[str, object], new: Mapping[str, object]
) -> str | None:
    """Return the first parameter of a task that is not what it was in the old run."""
    for each in graph.specs[number].signature.params:
        try:
            values = [each.convert(of[each.name]) if each.name in of else each for of in (old, new)]
        except ValueError:  # the type has changed
            return each.name
        if type(values[0]) is not type(values[1]) or values[0] != values[1]:
            return each.name
    return None


def _parameters(graph: Graph) -> Iterator[tuple[str, Parameter]]:
    for number in graph.with_params:
        for parameter in graph.specs[number].signature.params:
            yield graph.names[number], parameter


def _converted(graph: Graph, task_name: str, parameter: Parameter, value: object) -> object:
    try:
        return parameter.convert(value)
    except ValueError as error:
        problem = f"of task {task_name!r} {error}; correct params={{{parameter.name!r}: ...}}"
        raise ParameterError(graph.dag_name, parameter.name, problem) from None
