"""Find the parameters that must be passed by position, and ``*args`` that nothing fills.

A wrapper shows the signature of the function that it wraps. Its own code may name the first
parameters differently (``functools.wraps``) or look at them by position only
(``functools.singledispatch``); passing them by name would then fail.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, NamedTuple, cast

from flowrun.registry.callables import call_method, read_parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_MOST_LAYERS = 100


class _Positions(NamedTuple):
    """The parameters that a callable's own code takes by position.

    Attributes:
        names: Their names, in order.
        star: Whether ``*args`` take the rest.
    """

    names: tuple[str, ...]
    star: bool


def by_position(
    function: object,
    parameters: Sequence[inspect.Parameter],
    taken: Collection[str],
    context: str | None,
) -> list[inspect.Parameter]:
    """Return the leading parameters that a call must pass by position.

    Args:
        function: The callable.
        parameters: Its parameters, as its signature shows them.
        taken: Names that a template or a partial has filled; they end the leading ones.
        context: The parameter for the run's context.
    """
    leading: list[inspect.Parameter] = []
    for each in parameters:
        if each.kind not in _BY_POSITION or each.name in taken:
            break
        leading.append(each)
    wanted = sum(each.kind is each.POSITIONAL_ONLY for each in leading)
    for layer in _layers(function):
        wanted = max(wanted, _renamed(layer, [each.name for each in leading], context))
    return leading[:wanted]


def _renamed(layer: object, names: Sequence[str], context: str | None) -> int:
    """Return how many leading parameters a wrapper's own code wants by position."""
    own = _own_positions(layer)
    if own is None:
        return 0
    wanted = 0
    for number, (name, own_name) in enumerate(zip(names, own.names, strict=False), start=1):
        if name != own_name:
            wanted = number
    if own.star and not own.names and names:
        # The contract passes a context by position; singledispatch reads its first argument.
        wanted = int(names[0] == context or _is_singledispatch(layer))
    return wanted


def _layers(function: object) -> Iterator[object]:
    """Yield a callable, what it wraps, and so on."""
    for _ in range(_MOST_LAYERS):  # ``__wrapped__`` may lead back to where it began
        yield function
        inner = _unwrapped(function)
        if inner is None:
            return
        function = inner


def _unwrapped(function: object) -> object | None:
    """Take one wrapper off; arguments that a partial or a method gives stay."""
    if isinstance(function, functools.partial):
        given = cast("functools.partial[object]", function)
        inner = _unwrapped(given.func)
        if not callable(inner):
            return None
        return functools.partial(inner, *given.args, **given.keywords)
    if isinstance(function, types.MethodType):
        inner = _unwrapped(function.__func__)
        return types.MethodType(inner, function.__self__) if callable(inner) else None
    return None if isinstance(function, type) else getattr(function, "__wrapped__", None)


def _own_positions(function: object) -> _Positions | None:
    """Return what the code of a callable takes by position; ``None`` if it cannot be read."""
    if isinstance(function, functools.partial):
        given = cast("functools.partial[object]", function)
        own = _own_positions(given.func)
        return own and _Positions(own.names[len(given.args) :], own.star)
    if isinstance(function, types.MethodType):
        own = _own_positions(function.__func__)
        return own and _Positions(own.names[1:], own.star)
    if isinstance(function, types.FunctionType):
        code = function.__code__
        star = bool(code.co_flags & inspect.CO_VARARGS)
        return _Positions(code.co_varnames[: code.co_argcount], star)
    method = call_method(function)
    if isinstance(method, types.FunctionType):  # a class-based decorator
        return _own_positions(types.MethodType(method, function))
    return None


def _is_singledispatch(function: object) -> bool:
    return isinstance(getattr(function, "registry", None), types.MappingProxyType) and callable(
        getattr(function, "dispatch", None)
    )


def leaves_star_arguments(function: object, parameters: Sequence[inspect.Parameter]) -> bool:
    """Return whether the callable has ``*args`` that no partial gives anything to."""
    star = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), None)
    if star is None:
        return False
    if not isinstance(function, functools.partial):
        return True
    given = cast("functools.partial[object]", function)
    inner = read_parameters(given.func) or ()
    places = sum(each.kind in _BY_POSITION for each in inner)
    return len(given.args) <= places
