"""Find the parameters that must be passed by position, and ``*args`` that nothing fills.

A wrapper has the signature of the function that it wraps. Its own code may use other names for
the first parameters (``functools.wraps``) or take them by position only
(``functools.singledispatch``); a call by name would then fail.
"""

from __future__ import annotations

import functools
import inspect
import types
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from flowrun.registry.callables import call_method, read_parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_MOST_LAYERS = 100


def by_position(
    function: object,
    parameters: Sequence[inspect.Parameter],
    taken: Collection[str],
    context: str | None,
) -> list[inspect.Parameter]:
    """Return the leading parameters that a call must pass by position.

    Args:
        function: The callable.
        parameters: The parameters in its signature.
        taken: Names that a template or a partial has filled; they end the leading ones.
        context: The parameter for the run's context.
    """
    leading = list(
        takewhile(lambda each: each.kind in _BY_POSITION and each.name not in taken, parameters)
    )
    wanted = sum(each.kind is each.POSITIONAL_ONLY for each in leading)
    for layer in _layers(function):
        wanted = max(wanted, _renamed(layer, [each.name for each in leading], context))
    return leading[:wanted]


def _renamed(layer: object, names: Sequence[str], context: str | None) -> int:
    """Return how many leading parameters a wrapper's own code wants by position."""
    own_names, star = _own_positions(layer)
    if star and not own_names and names:
        # The contract passes a context by position; singledispatch reads its first argument.
        return int(names[0] == context or _is_singledispatch(layer))
    pairs = enumerate(zip(names, own_names, strict=False), start=1)
    return max((number for number, (name, own) in pairs if name != own), default=0)


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


def _own_positions(function: object) -> tuple[tuple[str, ...], bool]:
    """Return the parameters that a callable's own code takes by position, and if it has ``*args``.

    Nothing for code that cannot be read.
    """
    if isinstance(function, functools.partial):
        given = cast("functools.partial[object]", function)
        names, star = _own_positions(given.func)
        return names[len(given.args) :], star
    if isinstance(function, types.MethodType):
        names, star = _own_positions(function.__func__)
        return names[1:], star
    if isinstance(function, types.FunctionType):
        code = function.__code__
        return code.co_varnames[: code.co_argcount], bool(code.co_flags & inspect.CO_VARARGS)
    method = call_method(function)
    if isinstance(method, types.FunctionType):  # a class-based decorator
        return _own_positions(types.MethodType(method, function))
    return (), False


def _is_singledispatch(function: object) -> bool:
    return isinstance(getattr(function, "registry", None), types.MappingProxyType) and callable(
        getattr(function, "dispatch", None)
    )


def leaves_star_arguments(function: object, parameters: Sequence[inspect.Parameter]) -> bool:
    """Return whether the callable has ``*args`` that no partial gives anything to."""
    if all(each.kind is not each.VAR_POSITIONAL for each in parameters):
        return False
    if not isinstance(function, functools.partial):
        return True
    given = cast("functools.partial[object]", function)
    inner = read_parameters(given.func) or ()
    places = sum(each.kind in _BY_POSITION for each in inner)
    return len(given.args) <= places
