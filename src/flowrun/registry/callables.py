"""Find the code behind a callable, and the parameters that it was given.

Looks through partials, methods, static methods, callable objects, classes and wrappers.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def called_code(function: object) -> tuple[object, object]:
    """Return the function that a call runs, and the ``__call__`` if it is an object."""
    inner = _behind(function)
    return inner, _behind(call_method(inner))


def definition(function: object) -> object:
    """Return the function that declares the parameters; its globals resolve their annotations."""
    while True:
        function = _behind(function)
        following = _followed(function)
        if following is None:
            return function
        function = following


def _behind(function: object) -> object:
    """Return the callable inside partials, bound methods and static methods."""
    while True:
        if isinstance(function, functools.partial):
            function = cast("object", function.func)
        elif isinstance(function, types.MethodType | staticmethod):
            function = cast("object", function.__func__)
        else:
            return function


def call_method(function: object) -> object:
    """Return the ``__call__`` of a callable object; ``None`` for a class."""
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


if sys.version_info >= (3, 14):  # pragma: no cover - coverage is measured on one Python
    # From 3.14 on annotations are evaluated on access, and names may be missing then.
    import annotationlib

    _FORMAT: dict[str, Any] = {"annotation_format": annotationlib.Format.FORWARDREF}

    def annotations_of(function: types.FunctionType) -> Mapping[str, object]:
        """Return a plain function's annotations; names that do not exist are no error."""
        if function.__annotate__ is None:
            return function.__annotations__
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)

else:  # pragma: no cover - the same
    _FORMAT: dict[str, Any] = {}

    def annotations_of(function: types.FunctionType) -> Mapping[str, object]:
        """Return a plain function's annotations; names that do not exist are no error."""
        return function.__annotations__


def read_parameters(function: Callable[..., object]) -> tuple[inspect.Parameter, ...] | None:
    """Return the parameters, or ``None`` if Python cannot read the signature."""
    try:
        return tuple(inspect.signature(function, **_FORMAT).parameters.values())
    except (TypeError, ValueError):
        return None


def taken_names(
    function: Callable[..., object], named: Sequence[inspect.Parameter]
) -> frozenset[str]:
    """Return the parameters that a partial or a method has filled; no result may replace them."""
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
