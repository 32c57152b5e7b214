"""Find ``RunContext`` and ``Param`` in annotations, without running an annotation's text.

It parses the text and looks up only the names that matter, so a type that exists only for type
checkers, or only inside a function, is not an error.
"""

from __future__ import annotations

import ast
import builtins
import datetime as dt
import enum
import functools
import inspect
import re
import sys
import types
import typing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ForwardRef, Literal, NamedTuple, Optional, Union

from flowrun.context import RunContext
from flowrun.registry.callables import definition, read_parameters
from flowrun.registry.params import MARK, Param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_UNKNOWN = object()

# The meaning of names that cannot be looked up: most likely imported under TYPE_CHECKING.
_BY_NAME: dict[str, object] = {
    "RunContext": RunContext,
    "Optional": Optional,
    "Union": Union,
    "Annotated": Annotated,
    "Literal": Literal,
    "Param": Param,
    "date": dt.date,
    "datetime": dt.datetime,
    "Decimal": Decimal,
    "Path": Path,
}

# ``from flowrun import RunContext as Context``, and ``Context: TypeAlias = RunContext[Settings]``.
_OTHER_NAME = re.compile(
    r"\bRunContext[ \t]+as[ \t]+(\w+)"
    r"|^[ \t]+(?:type[ \t]+)?(\w+)[ \t]*(?::[^=\n]*)?=[ \t]*[\"']?(?:\w+\.)*RunContext\b",
    re.MULTILINE,
)


class ContextUse(enum.Enum):
    """What an annotation says about the run's context."""

    NONE = enum.auto()
    REQUIRED = enum.auto()
    OPTIONAL = enum.auto()


class _Content(NamedTuple):
    """What stands inside a ``Param[...]``."""

    part: object


def use_of(annotation: object, owner: object) -> tuple[ContextUse, list[object]]:
    """Return whether a parameter with this annotation receives the run's context, or a parameter.

    Looks into ``Annotated``, ``Optional``, unions, type aliases, forward references and text.

    Args:
        annotation: The annotation: an object, or its text.
        owner: The annotated function; names are looked up in its closure and globals.

    Returns:
        The use of the context, and the types inside ``Param[...]``, none without one.
    """
    if isinstance(annotation, type):
        # The bulk of all annotations: a plain class.
        return ContextUse.REQUIRED if _is_context(annotation) else ContextUse.NONE, []
    parts = list(_alternatives(annotation, owner))
    may_be_none = any(part is None or part is types.NoneType for part in parts)
    if any(map(_is_context, parts)):
        return ContextUse.OPTIONAL if may_be_none else ContextUse.REQUIRED, []
    found: list[object] = [None] if may_be_none else []
    contents = [part for part in parts if isinstance(part, _Content)]
    for content in contents:
        found += filter(_is_leaf, _alternatives(content.part, owner))
    return ContextUse.NONE, (found or [_UNKNOWN]) if contents else []


def _is_leaf(part: object) -> bool:
    """Return whether a part of an annotation is a type, or nothing that stands for some."""
    if isinstance(part, str | ForwardRef | ast.expr) or type(part).__name__ == "TypeAliasType":
        return False
    return typing.get_origin(part) not in (Union, types.UnionType, Annotated)


def unresolved_annotation(function: Callable[..., object], parameter: str) -> str | None:
    """Return the text of a parameter's annotation if a name in it cannot be looked up."""
    for each in read_parameters(function) or ():
        if each.name == parameter:
            annotation: object = each.annotation
            parts = _alternatives(annotation, definition(function))
            if any(part is _UNKNOWN for part in parts):
                return str(getattr(annotation, "__forward_arg__", annotation))
    return None


def _alternatives(annotation: object, owner: object) -> Iterator[object]:
    """Yield an annotation, and its union members, aliased and wrapped types at any depth."""
    seen: dict[int, object] = {}  # values too: an id is only good while its object lives
    parts: list[object] = [annotation]
    while parts:
        part = parts.pop()
        if id(part) in seen:  # an alias may contain itself
            continue
        seen[id(part)] = part
        yield part
        if part is not None and not _is_context(part):
            parts.extend(_parts(part, owner))


def _is_context(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, RunContext)


def _parts(part: object, owner: object) -> Iterable[object]:
    """Return the members of a union, the type inside a wrapper, or the target of an alias."""
    if isinstance(part, str):
        return _parsed(part)
    if isinstance(part, ForwardRef):
        # Python 3.14 makes ``*x.__typing_unpacked_tuple_args__`` of a Param[x] with x unknown.
        text = part.__forward_arg__.removesuffix(".__typing_unpacked_tuple_args__")
        return _parsed(text.removeprefix("*"))
    if isinstance(part, ast.expr):
        return _parts_of_text(part, owner)
    return _parts_of_object(part)


def _parts_of_object(part: object) -> Iterable[object]:
    origin = typing.get_origin(part)
    if origin is Union or origin is types.UnionType:
        return typing.get_args(part)
    if origin is Annotated:
        content, *marks = typing.get_args(part)
        return (_Content(content),) if any(mark is MARK for mark in marks) else (content,)
    if origin is not None:
        return (
            () if origin is Literal else (origin,)
        )  # RunContext[...], or a generic alias: its arguments do not matter
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
    if base is Optional or base is Union:
        return (None, *items) if base is Optional else items
    if base is Annotated:
        return items[:1]
    if base is Param:
        return (_Content(content),)
    return (_literal(items) if base is Literal else base,)


def _literal(items: Sequence[ast.expr]) -> object:
    try:
        return Literal[tuple(map(ast.literal_eval, items))]
    except ValueError:  # a member of an Enum
        return _UNKNOWN


def _looked_up(node: ast.expr, owner: object) -> object:
    """Look up a dotted name where ``owner`` was defined."""
    match node:
        case ast.Name(id=name):
            found = _global(name, owner)
        case ast.Attribute(value=value, attr=name):
            found = getattr(_looked_up(value, owner), name, _UNKNOWN)
        case _:
            return _UNKNOWN
    if found is not _UNKNOWN:
        return found
    if name in _BY_NAME:
        return _BY_NAME[name]
    return RunContext if name in _other_names(getattr(owner, "__module__", None)) else _UNKNOWN


@functools.lru_cache(maxsize=128)
def _other_names(module_name: str | None) -> frozenset[str]:
    """Return the names that a module's source gives to ``RunContext``.

    Used for names that do not exist at run time: most likely imported, or defined, under
    ``if TYPE_CHECKING:``.
    """
    module = sys.modules.get(module_name or "")
    try:
        source = "" if module is None else inspect.getsource(module)
    except (OSError, TypeError):  # no source, as in an interactive session
        source = ""
    return frozenset(name for names in _OTHER_NAME.findall(source) for name in names if name)


def _global(name: str, owner: object) -> object:
    if isinstance(owner, types.FunctionType):
        free = owner.__code__.co_freevars
        if name in free and owner.__closure__ is not None:
            try:
                return owner.__closure__[free.index(name)].cell_contents
            except ValueError:  # the enclosing function has not assigned it yet
                return _UNKNOWN
        found = owner.__globals__.get(name, _UNKNOWN)
    else:
        module = sys.modules.get(getattr(owner, "__module__", None) or "")
        found = getattr(module, name, _UNKNOWN)
    return getattr(builtins, name, _UNKNOWN) if found is _UNKNOWN else found


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> tuple[ast.expr, ...]:
    """Return the expression in a text, or nothing if it is not Python."""
    try:
        return (ast.parse(text.strip(), mode="eval").body,)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ()
