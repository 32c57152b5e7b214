"""Name a part of a result in an error message: ``result['rows'][3].when``.

A value may be an instance of any class, so everything here is safe to call on a hostile one.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ATOM_IDS = frozenset(map(id, (type(None), bool, int, float, str, bytes)))
"""Types that have no parts, by id: a class may have a hostile ``__hash__`` or ``__eq__``."""

_LONGEST = 80
_MOST_LEVELS = 100
_MOST_PARTS = 1_000_000

kind_of = cast("Callable[[object], type[object]]", type)
"""``type``, under a name that narrows nothing: what is checked by it stays ``Any``."""


def type_name(kind: type) -> str:
    """Return the class's qualified name, without running code of its metaclass."""
    name: str = _qualname_of(kind)
    try:
        module: object = _module_of(kind)
    except AttributeError:  # a class that ``exec`` made without a module
        return name
    return name if module == "builtins" or type(module) is not str else f"{module}.{name}"


_qualname_of = type.__dict__["__qualname__"].__get__
_module_of = type.__dict__["__module__"].__get__


def short(key: object) -> str:
    """Return a bounded ``repr`` that is safe to print."""
    try:
        text = ascii(key)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - an int of too many digits, or a class's own ``__repr__``
        text = f"<{type_name(kind_of(key))}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def smallest_failing(value: object, fails: Callable[[object], bool]) -> tuple[str, object]:
    """Return the place and the smallest part of a failing value that fails by itself.

    The parts of a container are halved until one is left, so the cost is about twice that of
    the whole value for each level of nesting.

    Args:
        value: The value, which fails.
        fails: Says whether a part, or a list of parts, fails by itself.
    """
    place = "result"
    seen: set[int] = set()
    for _ in range(_MOST_LEVELS):
        seen.add(id(value))
        found = _failing_part(_parts(place, value, seen), fails)
        if found is None:
            break
        place, value = found
    return place, value


def _failing_part(
    parts: Sequence[tuple[str, object]], fails: Callable[[object], bool]
) -> tuple[str, object] | None:
    while len(parts) > 1:
        middle = len(parts) // 2
        first = parts[:middle]
        parts = first if fails([part for _, part in first]) else parts[middle:]
    return parts[0] if parts and fails(parts[0][1]) else None


def _parts(place: str, value: object, seen: set[int]) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    try:
        for part in _walk(place, value):
            if id(part[1]) not in seen:
                found.append(part)
            if len(found) >= _MOST_PARTS:
                break
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001, S110 - looking into an object runs code of its class
        pass
    return found


def _walk(place: str, value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401 - anything
    kind = kind_of(value)
    if issubclass(kind, dict):
        for key, item in value.items():
            yield f"<a key of {place}>", key
            yield f"{place}[{short(key)}]", item
    elif issubclass(kind, (list, tuple)):
        for index, item in enumerate(value):
            yield f"{place}[{index}]", item
    elif issubclass(kind, (set, frozenset)):
        for item in value:
            yield f"<an element of {place}>", item
    if not callable(value) and kind is not ModuleType:
        slots = [base.__dict__.get("__slots__", ()) for base in kind.__mro__]
        names = [name for found in slots for name in ([found] if type(found) is str else found)]
        for name in (*getattr(value, "__dict__", ()), *names):
            if hasattr(value, name):
                yield f"{place}.{name}", getattr(value, name)
