"""Inspect a callable once: which parameters take dependency results and the run's context.

``callables`` finds the code behind a callable, ``positions`` what must be passed by position,
``annotations`` the parameters for the run's context and for its own parameters. ``graph`` decides
which task fills which parameter.
"""

from __future__ import annotations

import functools
import inspect
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from flowrun.errors import TaskDefinitionError, TaskTypeError, close_match, listed
from flowrun.registry.annotations import ContextUse, use_of
from flowrun.registry.callables import (
    annotations_of,
    called_code,
    definition,
    read_parameters,
    taken_names,
)
from flowrun.registry.params import Parameter, parameter_of
from flowrun.registry.positions import by_position, leaves_star_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_Where: TypeAlias = tuple[object, str | None]  # the task and its DAG, for errors

UPSTREAM = "upstream"
"""The parameter that receives the results of all dependencies in one dict."""

_NOT_PLAIN = (
    inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
)


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """How to call a callable; callables with the same parameters share one.

    Attributes:
        is_async: It is a coroutine function. A sync callable that returns a coroutine is not.
        context_parameter: The parameter annotated with ``RunContext``, if there is one.
        context_optional: That parameter may be given ``None``.
        context_has_default: That parameter may be left out.
        wants_upstream: All results go into the parameter ``upstream``, none elsewhere.
        required: Parameters that only a task's result can fill, as declared.
        optional: Parameters with a default, which a listed dependency may fill.
        by_position: Those of all the above that are passed by position.
        positional_defaults: Default of each of them; ``inspect.Parameter.empty`` for none.
        accepts_any_keyword: It has ``**kwargs``.
        leaves_star_arguments: It has ``*args``, which results never go to.
        bound: Names already taken, by a template or a ``functools.partial``.
        params: Parameters annotated with ``Param``, which the run's parameters fill.
    """

    is_async: bool
    context_parameter: str | None = None
    context_optional: bool = False
    context_has_default: bool = False
    wants_upstream: bool = False
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    by_position: tuple[str, ...] = ()
    positional_defaults: tuple[object, ...] = ()
    accepts_any_keyword: bool = False
    leaves_star_arguments: bool = False
    bound: frozenset[str] = frozenset()
    params: tuple[Parameter, ...] = ()

    @property
    def takes_named_results(self) -> bool:
        """Whether a result goes to the parameter that has the name of its task."""
        named = bool(self.required or self.optional or self.accepts_any_keyword)
        return named and not self.wants_upstream

    @property
    def needs_context(self) -> bool:
        """Whether it cannot be called without the run's context."""
        return not (
            self.context_parameter is None or self.context_optional or self.context_has_default
        )


def inspect_callable(
    function: object,
    *,
    task_name: object,
    dag_name: str | None,
    bound: Mapping[str, object] | None = None,
) -> Signature:
    """Read a callable's parameters.

    A callable whose signature cannot be read (some builtins) counts as one without
    parameters: its dependencies are order only.

    Args:
        function: The callable of a task.
        task_name: The task, for errors.
        dag_name: Its DAG, for errors.
        bound: Parameters that a template has filled, by keyword.

    Example:
        >>> def load(transform, *, chunk_size=100): ...
        >>> found = inspect_callable(load, task_name="load", dag_name="daily")
        >>> found.required, found.optional
        (('transform',), ('chunk_size',))
    """
    where = (task_name, dag_name)
    if type(function) is types.FunctionType and not bound:
        found = _from_code(function, where)
        if found is not None:
            return found
    if not callable(function):
        _refuse_object(function, where)
    _refuse_generator_function(function, where)
    return _from_parameters(function, bound or {}, where)


def _refuse_generator_function(function: object, where: _Where) -> None:
    codes = called_code(function)
    if any(map(inspect.isasyncgenfunction, codes)):
        kind, remedy = "an async generator", "[item async for item in ...]"
    elif any(
        inspect.isgeneratorfunction(each)
        # types.coroutine marks the code of a coroutine that is written as a generator.
        and not each.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE
        for each in codes
    ):
        kind, remedy = "a generator", "list(...) or [item for item in ...]"
    else:
        return
    problem = (
        f"{kind} function cannot be a task: its result could be read only once, so a second"
        f" consumer, a retry or a resume would get nothing; return a list: return {remedy}"
    )
    raise TaskTypeError(*where, problem)


def _from_code(function: types.FunctionType, where: _Where) -> Signature | None:
    """Read a plain function's own code; ``None`` if the code alone does not say how to call it.

    That may be so with an attribute on the function: ``__wrapped__``, ``__signature__``, a
    coroutine mark. ``inspect.signature`` gives the same, but makes a declaration five times as
    long: seconds for 100,000 tasks.
    """
    code = function.__code__
    if code.co_flags & _NOT_PLAIN or code.co_posonlyargcount or function.__dict__:
        return None
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    annotations = annotations_of(function)
    pairs = [(name, annotations[name]) for name in names if name in annotations]
    with_default: tuple[str, ...] = ()
    if function.__defaults__:
        with_default = names[code.co_argcount - len(function.__defaults__) : code.co_argcount]
    if function.__kwdefaults__:
        with_default += tuple(function.__kwdefaults__)
    found = _annotated(pairs, with_default, function, where)
    return _shared(code.co_flags & inspect.CO_COROUTINE != 0, names, with_default, *found)


def _from_parameters(
    function: Callable[..., object],
    bound: Mapping[str, object],
    where: _Where,
) -> Signature:
    is_async = any(map(inspect.iscoroutinefunction, called_code(function)))
    parameters = read_parameters(function)
    if parameters is None:
        if isinstance(function, functools.partial) and read_parameters(function.func) is not None:
            problem = (
                "its functools.partial has arguments that the function does not take; every call"
                " would fail, so correct them"
            )
            raise TaskDefinitionError(*where, problem)
        return Signature(is_async, bound=frozenset(bound))
    any_keyword = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = [
        each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    _check_bound(named, bound, any_keyword, where)
    taken = taken_names(function, named) | bound.keys()
    free = [each for each in named if each.name not in taken]
    pairs = [(each.name, each.annotation) for each in free if each.annotation is not each.empty]
    with_default = tuple([each.name for each in free if each.default is not each.empty])
    context, use, params = _annotated(pairs, with_default, definition(function), where)
    positional = by_position(function, named, taken, context)
    return _assembled(
        is_async,
        tuple([each.name for each in free]),
        with_default,
        context,
        use,
        params,
        by_position=tuple([each.name for each in positional]),
        positional_defaults=tuple([each.default for each in positional]),
        accepts_any_keyword=any_keyword,
        leaves_star_arguments=leaves_star_arguments(function, parameters),
        bound=frozenset(taken),
    )


def bind_positions(
    function: Callable[..., object],
    arguments: Sequence[object],
    parameters: Mapping[str, object],
    where: _Where,
) -> tuple[Callable[..., object], Mapping[str, object]]:
    """Bind arguments without context and ``upstream``; return the callable and the names bound."""
    if not arguments:
        return function, parameters
    context = inspect_callable(function, task_name=where[0], dag_name=where[1]).context_parameter
    found = read_parameters(function)
    if found is None:
        return functools.partial(function, *arguments), parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    places = [each.name for each in found if each.kind in kinds]
    names = [name for name in places if name not in (context, UPSTREAM)]
    star = any(each.kind is each.VAR_POSITIONAL for each in found)
    if len(arguments) > len(names) and not star:
        problem = (
            f"bind() got {len(arguments)} arguments by position; by position the function accepts"
            f" {listed(names)}; pass the others by name"
        )
        raise TaskDefinitionError(*where, problem)
    twice = [name for name in names[: len(arguments)] if name in parameters]
    if twice:
        problem = f"bind() got the parameter {twice[0]!r} by position and by name; pass it once"
        raise TaskDefinitionError(*where, problem)
    if places[: len(arguments)] == names[: len(arguments)]:
        return functools.partial(function, *arguments), parameters
    return function, {**dict(zip(names, arguments, strict=False)), **parameters}


def _assembled(  # noqa: PLR0913 - private
    is_async: bool,  # noqa: FBT001 - private
    names: tuple[str, ...],
    with_default: tuple[str, ...],
    context: str | None,
    use: ContextUse,
    params: tuple[Parameter, ...],
    **more: Any,  # noqa: ANN401 - further fields as they are
) -> Signature:
    given = {context, *(each.name for each in params)}
    others = [name for name in names if name not in given]
    by_result = [name for name in others if name != UPSTREAM]
    return Signature(
        is_async,
        context_parameter=context,
        context_optional=use is ContextUse.OPTIONAL,
        context_has_default=context in with_default,
        wants_upstream=len(by_result) < len(others),
        required=tuple([name for name in by_result if name not in with_default]),
        optional=tuple([name for name in by_result if name in with_default]),
        params=params,
        **more,
    )


# Loops, templates and generated DAGs declare many callables of the same shape.
_shared = functools.lru_cache(maxsize=1024)(_assembled)


def _annotated(
    annotated: Iterable[tuple[str, object]],
    with_default: Sequence[str],
    owner: object,
    where: _Where,
) -> tuple[str | None, ContextUse, tuple[Parameter, ...]]:
    """Return the parameter for the run's context, how it is used, and the run's parameters."""
    uses: dict[str, ContextUse] = {}
    params: list[Parameter] = []
    for name, annotation in annotated:
        uses[name], kinds = use_of(annotation, owner)
        if kinds:
            try:
                params.append(parameter_of(name, kinds, has_default=name in with_default))
            except TypeError as error:
                raise TaskTypeError(*where, str(error)) from None
    found = [name for name, use in uses.items() if use is not ContextUse.NONE]
    if len(found) > 1:
        problem = (
            f"its parameters {found[0]!r} and {found[1]!r} both take the RunContext;"
            " a run has one context, so keep one of them"
        )
        raise TaskDefinitionError(*where, problem)
    context, use = (found[0], uses[found[0]]) if found else (None, ContextUse.NONE)
    return context, use, tuple(params)


def _check_bound(
    named: Sequence[inspect.Parameter],
    bound: Mapping[str, object],
    any_keyword: bool,  # noqa: FBT001 - private
    where: _Where,
) -> None:
    kinds = {each.name: each.kind for each in named}
    for name in bound:
        if kinds.get(name) is inspect.Parameter.POSITIONAL_ONLY:
            problem = (
                f"parameter {name!r} is positional-only and cannot be bound by name;"
                " remove the '/' from the function's parameters"
            )
            raise TaskDefinitionError(*where, problem)
        if name not in kinds and not any_keyword:
            accepted = [each.name for each in named if each.kind is not each.POSITIONAL_ONLY]
            problem = (
                f"unknown parameter {name!r} was bound; the function accepts {listed(accepted)}."
                f"{close_match(name, accepted)}"
            )
            raise TaskDefinitionError(*where, problem)


def _refuse_object(value: object, where: _Where) -> NoReturn:
    kind = type(value).__name__
    problem = f"a task must be callable, not {kind}; pass a function"
    if inspect.iscoroutine(value):
        if inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
            value.close()  # else Python warns that it was never awaited
        problem = (
            f"a task is the function itself, not the coroutine that calling it makes;"
            f" pass {value.__name__}, not {value.__name__}()"
        )
    elif inspect.isasyncgen(value) or inspect.isgenerator(value):
        problem = (
            f"a task is a function, not the {kind} that calling one makes;"
            " pass a function that returns a list of its items"
        )
    elif isinstance(value, classmethod):
        problem = (
            "a classmethod cannot be called before its class exists;"
            " register it after the class body: engine.task(...)(TheClass.method)"
        )
    raise TaskTypeError(*where, problem)
