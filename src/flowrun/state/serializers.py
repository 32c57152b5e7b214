"""What a serializer is, the check of one that a user hands in, and names of a value's parts.

A value may be an instance of any class: what looks at one here is safe to call on a hostile one.
"""

from __future__ import annotations

from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLAIN_INT = 1 << 63
_MOST_SMALL = 32
_SMALL_TEXT = 500
_LONGEST_KEY = 80
_MOST_LEVELS = 100
_MOST_PARTS = 1_000_000
_ATOM_IDS = frozenset(map(id, (type(None), bool, int, float, str, bytes)))
"""Types that have no parts, by id: a class may have a hostile ``__hash__`` or ``__eq__``."""

kind_of = cast("Callable[[object], type[object]]", type)
"""``type``, under a name that narrows nothing: what is checked by it stays ``Any``."""


class ResultSerializer(Protocol):
    """What a store needs to keep results: bytes from a value, and the value from bytes.

    A store calls both methods from worker threads, several at once. Two attributes are optional:

    - ``name: str`` is kept with each result and must never change. Without it the full name of
      the class is kept.
    - ``faithful: bool`` says that whatever ``serialize`` accepts comes back as it was. The bytes
      of any other serializer are read back once before a result counts as kept.
    """

    def serialize(self, obj: object) -> bytes:
        """Return the bytes to keep.

        Raises:
            ResultNotStorableError: The value would not come back as what it is.
        """
        ...

    def deserialize(self, data: bytes) -> object:
        """Return the value that ``serialize`` was given.

        Raises:
            ResultNotReadableError: The bytes are damaged, or another serializer's.
        """
        ...


def serializer_name(serializer: ResultSerializer) -> str:
    """Return the name that is kept with each result: ``name``, or the full name of the class."""
    name: object = getattr(serializer, "name", None)
    return name if isinstance(name, str) else type_name(type(serializer))


def checked_serializer(serializer: ResultSerializer) -> ResultSerializer:
    """Return the serializer if it can be one.

    Raises:
        TypeError: It cannot; the message says what it lacks.
    """
    lacking = [name for name in ("serialize", "deserialize") if not _has(serializer, name)]
    if isinstance(serializer, type) or len(lacking) > 1:
        msg = f"serializer= takes a ResultSerializer, such as JsonSerializer(), not {serializer!r}"
        raise TypeError(msg)
    kind = type_name(type(serializer))
    if lacking:
        msg = (
            f"serializer= takes a ResultSerializer; {kind} lacks the method {lacking[0]}()."
            " Define both serialize(obj) -> bytes and deserialize(data) -> object"
        )
        raise TypeError(msg)
    name: object = getattr(serializer, "name", kind)
    if not isinstance(name, str) or not name:
        msg = (
            f"serializer= takes a ResultSerializer; the name of {kind} is {name!r}. A name is kept"
            " with each result: make it a text that never changes, or leave the attribute out"
        )
        raise TypeError(msg)
    return serializer


def _has(serializer: object, method: str) -> bool:
    # A subclass of the protocol inherits its empty methods.
    stub = getattr(ResultSerializer, method)
    return (
        callable(getattr(serializer, method, None))
        and getattr(type(serializer), method, None) is not stub
    )


def is_small(value: Any) -> bool:  # noqa: ANN401 - what a task returned
    """Return whether serialising a value takes no noticeable time."""
    kind = kind_of(value)
    if kind is list or kind is tuple or kind is dict:
        if len(value) > _MOST_SMALL:
            return False
        atoms = (*value, *value.values()) if kind is dict else value
        return all(map(_is_small_atom, atoms))
    return _is_small_atom(value)


def _is_small_atom(value: Any) -> bool:  # noqa: ANN401 - what a task returned
    kind = kind_of(value)
    if kind is int:
        return bool(-_PLAIN_INT < value < _PLAIN_INT)
    if kind is str or kind is bytes:
        return len(value) <= _SMALL_TEXT
    return id(kind) in _ATOM_IDS


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
    return text if len(text) <= _LONGEST_KEY else f"{text[: _LONGEST_KEY - 3]}..."


def smallest_failing(value: object, keep: Callable[[object], object]) -> tuple[str, object]:
    """Return the place and the smallest part of a failing value that fails by itself.

    The parts of a container are halved until one is left, so the cost is about twice that of
    the whole value for each level of nesting.

    Args:
        value: The value, which fails.
        keep: Raises an error for a part, or a list of parts, that fails by itself.
    """
    place = "result"
    seen: set[int] = set()
    for _ in range(_MOST_LEVELS):
        seen.add(id(value))
        found = _failing_part(_parts(place, value, seen), keep)
        if found is None:
            break
        place, value = found
    return place, value


def _failing_part(
    parts: list[tuple[str, object]], keep: Callable[[object], object]
) -> tuple[str, object] | None:
    while len(parts) > 1:
        middle = len(parts) // 2
        first = parts[:middle]
        parts = first if _fails(keep, [part for _, part in first]) else parts[middle:]
    return parts[0] if parts and _fails(keep, parts[0][1]) else None


def _fails(keep: Callable[[object], object], part: object) -> bool:
    try:
        keep(part)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a value's own code may raise anything
        return True
    return False


def _parts(place: str, value: object, seen: set[int]) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    try:
        for part in islice(_walk(place, value), _MOST_PARTS):
            if id(part[1]) not in seen:
                found.append(part)  # noqa: PERF401 - what was found before an error counts
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
