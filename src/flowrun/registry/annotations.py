"""Does an annotation speak of ``RunContext``? Answered without running any annotation's text.

Annotations given as text are parsed, and only the names that matter are looked up: a type
that exists for type checkers alone, or only inside a function, is no obstacle then.
"""

from __future__ import annotations

import ast
import enum
import functools
import sys
import types
import typing
from typing import TYPE_CHECKING, Annotated, ForwardRef, Optional, Union

from flowrun.context import RunContext

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNKNOWN = object()

# What a name means that cannot be looked up: most likely it was imported under TYPE_CHECKING.
_BY_NAME: dict[str, object] = {
    "RunContext": RunContext,
    "Optional": Optional,
    "Union": Union,
    "Annotated": Annotated,
}


class ContextUse(enum.Enum):
    """What an annotation says of the run's context."""

    NONE = enum.auto()
    REQUIRED = enum.auto()
    OPTIONAL = enum.auto()


def context_use(annotation: object, owner: object) -> ContextUse:
    """Say whether a parameter annotated like this is given the run's context.

    Looks into ``Annotated``, ``Optional``, unions, type aliases, forward references and text.

    Args:
        annotation: The annotation: an object, or its text.
        owner: The function that it stands on; its closure and globals give names their sense.
    """
    if isinstance(annotation, type):
        # The bulk of all annotations: a plain class.
        return ContextUse.REQUIRED if _is_context(annotation) else ContextUse.NONE
    found = may_be_none = False
    seen: dict[int, object] = {}  # values too: an id is only good while its object lives
    parts: list[object] = [annotation]
    while parts:
        part = parts.pop()
        if part is None or part is types.NoneType:
            may_be_none = True
        elif _is_context(part):
            found = True
        elif id(part) not in seen:  # an alias may contain itself
            seen[id(part)] = part
            parts.extend(_parts(part, owner))
    if not found:
        return ContextUse.NONE
    return ContextUse.OPTIONAL if may_be_none else ContextUse.REQUIRED


def _is_context(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, RunContext)


def _parts(part: object, owner: object) -> Iterable[object]:
    """Return what an annotation is an alternative of, a wrapper around, or an alias for."""
    if isinstance(part, str):
        return _parsed(part)
    if isinstance(part, ForwardRef):
        return _parsed(part.__forward_arg__)
    if isinstance(part, ast.expr):
        return _parts_of_text(part, owner)
    return _parts_of_object(part)


def _parts_of_object(part: object) -> Iterable[object]:
    origin = typing.get_origin(part)
    if origin is Union or origin is types.UnionType:
        return typing.get_args(part)
    if origin is Annotated:
        return typing.get_args(part)[:1]
    if origin is not None:
        return (origin,)  # RunContext[...], or a generic alias: what it is given does not matter
    if type(part).__name__ == "TypeAliasType":  # typing's from Python 3.12, or a backport
        try:
            return (getattr(part, "__value__"),)  # noqa: B009 - 3.11's typing has no such class
        except Exception:  # noqa: BLE001, S110 - evaluated only now: anything may fail in it
            pass
    return ()


def _parts_of_text(node: ast.expr, owner: object) -> Iterable[object]:
    match node:
        case ast.Constant(value=str() | None as value):
            return (value,)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return (left, right)
        case ast.Name() | ast.Attribute():
            return (_looked_up(node, owner),)
        case ast.Subscript(value=value, slice=content):
            return _parts_of_subscript(_looked_up(value, owner), content)
        case _:
            return ()


def _parts_of_subscript(base: object, content: ast.expr) -> Iterable[object]:
    items = content.elts if isinstance(content, ast.Tuple) else [content]
    if base is Optional:
        return (None, *items)
    if base is Union:
        return items
    if base is Annotated:
        return items[:1]
    return (base,)


def _looked_up(node: ast.expr, owner: object) -> object:
    """Return what a dotted name stands for where ``owner`` was defined."""
    match node:
        case ast.Name(id=name):
            found = _global(name, owner)
        case ast.Attribute(value=value, attr=name):
            found = getattr(_looked_up(value, owner), name, _UNKNOWN)
        case _:
            return _UNKNOWN
    return _BY_NAME.get(name, _UNKNOWN) if found is _UNKNOWN else found


def _global(name: str, owner: object) -> object:
    if isinstance(owner, types.FunctionType):
        free = owner.__code__.co_freevars
        if name in free and owner.__closure__ is not None:
            try:
                return owner.__closure__[free.index(name)].cell_contents
            except ValueError:  # the enclosing function has not assigned it yet
                return _UNKNOWN
        return owner.__globals__.get(name, _UNKNOWN)
    module = sys.modules.get(getattr(owner, "__module__", None) or "")
    return getattr(module, name, _UNKNOWN)


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> tuple[ast.expr, ...]:
    """Return the one expression that a text is, or none if it is no Python."""
    try:
        return (ast.parse(text.strip(), mode="eval").body,)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ()
