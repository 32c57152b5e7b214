"""What is behind a callable: the code that is called, and the parameters it was given.

Partials, methods, static methods, callable objects, classes and wrappers are seen through.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def is_coroutine_function(function: object) -> bool:
    """Return whether calling it makes a coroutine, as far as its code says so."""
    inner = _behind(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(_call_method(inner))


def is_async_generator_function(function: object) -> bool:
    """Return whether calling it makes an async generator, as far as its code says so."""
    inner = _behind(function)
    return inspect.isasyncgenfunction(inner) or inspect.isasyncgenfunction(_call_method(inner))


def is_awaitable(value: object) -> bool:
    """Return whether ``await`` takes it: also a generator that ``types.coroutine`` has marked."""
    kind = type(value)  # not what it claims to be: it may raise anything when it is asked
    if kind is types.GeneratorType:
        generator = cast("types.GeneratorType[object, object, object]", value)
        return bool(generator.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    try:
        return hasattr(kind, "__await__")
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - so may its class
        return False


def definition(function: object) -> object:
    """Return the function whose parameters ``inspect.signature`` reads, for its globals."""
    while True:
        function = _behind(function)
        following = _followed(function)
        if following is None:
            return function
        function = following


def _behind(function: object) -> object:
    """Return what is behind partials, bound methods and static methods."""
    while True:
        if isinstance(function, functools.partial):
            function = cast("object", function.func)
        elif isinstance(function, types.MethodType | staticmethod):
            function = cast("object", function.__func__)
        else:
            return function


def _call_method(function: object) -> object:
    """Return the ``__call__`` of a callable object; a class is called by its own rules."""
    return None if isinstance(function, type) else getattr(type(function), "__call__", None)  # noqa: B004 - the method itself is wanted


def _followed(function: object) -> object | None:
    """Return what declares the parameters in place of ``function``."""
    # Up to Python 3.12 the attribute had one underscore.
    method = getattr(function, "__partialmethod__", getattr(function, "_partialmethod", None))
    if isinstance(method, functools.partialmethod):
        return cast("object", method.func)
    if hasattr(function, "__wrapped__") and not hasattr(function, "__signature__"):
        return cast("object", getattr(function, "__wrapped__"))  # noqa: B009 - object has none
    if isinstance(function, types.FunctionType):
        return None
    names = ("__init__", "__new__") if isinstance(function, type) else ("__call__",)
    owner = function if isinstance(function, type) else type(function)
    methods = [getattr(owner, name, None) for name in names]
    return next((each for each in methods if isinstance(each, types.FunctionType)), None)


if sys.version_info >= (3, 14):  # pragma: no cover - the newest Python to test with was 3.13
    # From 3.14 on annotations are evaluated when asked for, and names may be missing then.
    import annotationlib

    def annotations_of(function: types.FunctionType) -> Mapping[str, object]:
        """Return a plain function's annotations; names that do not exist do no harm."""
        if function.__annotate__ is None:
            return function.__annotations__
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)

    def _inspected(function: Callable[..., object]) -> inspect.Signature:
        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)

else:

    def annotations_of(function: types.FunctionType) -> Mapping[str, object]:
        """Return a plain function's annotations; names that do not exist do no harm."""
        return function.__annotations__

    def _inspected(function: Callable[..., object]) -> inspect.Signature:
        return inspect.signature(function)


def read_parameters(function: Callable[..., object]) -> tuple[inspect.Parameter, ...] | None:
    """Return the parameters, or ``None`` if Python itself cannot tell them."""
    try:
        return tuple(_inspected(function).parameters.values())
    except (TypeError, ValueError):
        return None


def taken_names(
    function: Callable[..., object], named: Sequence[inspect.Parameter]
) -> frozenset[str]:
    """Return the names that a result must not be passed by: a partial or a method gave them."""
    names: set[str] = set()
    inner = function
    while isinstance(inner, functools.partial | types.MethodType):
        if isinstance(inner, functools.partial):
            names.update(inner.keywords)
            inner = inner.func
        else:
            inner = inner.__func__
    if inner is not function:
        free = {each.name for each in named}
        names.update(
            each.name
            for each in read_parameters(inner) or ()
            if each.kind is each.POSITIONAL_OR_KEYWORD and each.name not in free
        )
    return frozenset(names)
