"""What may be a task's result, and what is awaited first (I3)."""

from __future__ import annotations

import csv
import itertools
import types
from asyncio import isfuture
from collections.abc import Coroutine
from inspect import CO_ITERABLE_COROUTINE
from typing import Any, cast

_EMPTY: dict[Any, Any] = {}
_REVERSED: tuple[Any, ...] = ([], _EMPTY, _EMPTY.values(), _EMPTY.items())
_READ_ONCE: tuple[Any, ...] = (
    types.GeneratorType,
    types.AsyncGeneratorType,
    map,
    zip,
    filter,
    enumerate,
    reversed,
    *(type(reversed(each)) for each in _REVERSED),
    type(csv.reader(())),
    *(kind for kind in vars(itertools).values() if hasattr(kind, "__next__")),
)


def read_once_problem(value: object) -> str | None:
    """Return why a value cannot be a result because it can be read only once (I3)."""
    kind = type(value)
    if kind not in _READ_ONCE_IDS:
        return None
    return (
        f"the task returned a {kind.__name__}, which can be read only once: a second consumer, a"
        " retry or a resume would get nothing. Return a list instead: list(...)"
    )


class _Identities:
    """Membership by identity: the type of a user's value may have an ``__eq__`` of its own."""

    def __init__(self, kinds: tuple[Any, ...]) -> None:
        self._ids = frozenset(map(id, kinds))

    def __contains__(self, kind: type) -> bool:
        return id(kind) in self._ids


_READ_ONCE_IDS = _Identities(_READ_ONCE)
_PLAIN = _Identities((int, str, float, bool, bytes, list, dict, tuple, set, type(None)))


def is_to_be_awaited(value: object) -> bool:
    """Return whether a returned value is awaited: a coroutine, or one of asyncio's futures (I3)."""
    kind = type(value)
    if kind in _PLAIN:
        return False
    if kind is types.CoroutineType:
        return True
    if kind is types.GeneratorType:  # perhaps one that types.coroutine has marked
        code = cast("types.GeneratorType[Any, Any, Any]", value).gi_code
        return bool(code.co_flags & CO_ITERABLE_COROUTINE)
    try:
        return issubclass(kind, Coroutine) or bool(isfuture(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a class of the user's may raise anything when asked
        return False


def close_unawaited(value: object) -> None:
    """Close a coroutine that will not be awaited, so that Python does not warn of it."""
    if type(value) is types.CoroutineType:
        cast("Coroutine[Any, Any, object]", value).close()
