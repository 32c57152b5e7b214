"""Objects of classes that ``JsonSerializer`` was given: their parts, and objects from parts."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum, Flag
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.errors import ResultNotReadableError
from flowrun.state.serializers import kind_of, short, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Classes: TypeAlias = Mapping[str, type]
    """By module and name."""

_MOST_OF_A_NAME = 200

_TUPLE: Any = tuple
"""Its own methods are called: a class may have others of these names."""


class UnstorableError(Exception):
    """A part of a value that cannot be kept, and the way to it, innermost step first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.steps: list[tuple[str, str]] = []

    def place(self) -> str:
        """Return the way as a Python expression."""
        place = "result"
        for before, after in reversed(self.steps):
            place = f"{before}{place}{after}"
        return place


def require(fits: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Raise an ``UnstorableError`` unless something holds."""
    if not fits:
        raise UnstorableError(otherwise)


def may_be_given(kind: type) -> bool:
    """Return whether objects of a class can be kept if the class is given."""
    mark = "_fields" if _is_tuple(kind) else "__dataclass_fields__"
    try:
        type.__getattribute__(kind, mark)  # a metaclass has no say
    except AttributeError:
        return issubclass(kind, Enum)
    return True


def name_to_keep(kind: Any) -> str:  # noqa: ANN401 - what the caller gave
    """Return the module and name by which a class is known.

    Raises:
        TypeError: Objects of it cannot be kept.
    """
    if isinstance(kind, type) and may_be_given(kind):
        return type_name(kind)
    message = (
        f"JsonSerializer(classes=) takes dataclasses, enums and named tuples, not {short(kind)}"
    )
    raise TypeError(message)


def short_name(name: str) -> str:
    """Return a name without its module."""
    return name.rpartition(".")[2]


def _fields_of(kind: Any) -> Sequence[str]:  # noqa: ANN401 - a dataclass or a named tuple
    return kind._fields if _is_tuple(kind) else [field.name for field in fields(kind)]


def _is_tuple(kind: type) -> bool:
    return issubclass(kind, tuple)


def object_parts(kind: Any, value: Any) -> list[object]:  # noqa: ANN401 - an object of it
    """Return the name of a class, then its object's fields and values by turns, or the member.

    Raises:
        UnstorableError: The object is more, or less, than its fields.
    """
    if issubclass(kind, Flag):
        return [type_name(kind), value._value_]
    if issubclass(kind, Enum):
        require(kind.__members__.get(value._name_) is value, "the enum has no member of that name")
        return [type_name(kind), value._name_]
    names, found = _fields_of(kind), attributes(value)
    if _is_tuple(kind):
        found |= zip(names, _TUPLE.__iter__(value), strict=True)
    for name in sorted(found.keys() ^ names, key=str):
        what = "is no field" if name in found else "is not set"
        problem = f"its attribute {short(name)} {what}, so it would not come back as it is"
        raise UnstorableError(problem)
    return [type_name(kind), *chain.from_iterable((name, found[name]) for name in names)]


def object_of(classes: Classes, name: str, *parts: Any) -> object:  # noqa: ANN401 - plain JSON
    """Return the object that ``object_parts`` has taken apart; its constructor is not called.

    Raises:
        ResultNotReadableError: The class was not given, or has other fields now.
    """
    kind: Any = classes.get(name)
    if kind is None:
        shown = ascii(str(name))[1:-1][:_MOST_OF_A_NAME]
        message = (
            f"the stored result holds a {shown}, and objects are made only of classes that"
            f" JsonSerializer was given: write JsonSerializer(classes=[{short_name(shown)}])"
        )
        raise ResultNotReadableError(message)
    if issubclass(kind, Enum):
        (part,) = parts
        return kind(part) if issubclass(kind, Flag) else kind.__members__[part]
    found, names = dict_of(*parts), _fields_of(kind)
    if found.keys() != {*names}:
        message = (
            f"the fields of {name} are not those of the stored result any more; run its task again"
        )
        raise ResultNotReadableError(message)
    if _is_tuple(kind):
        return _TUPLE.__new__(kind, map(found.__getitem__, names))
    made = object.__new__(kind)
    for field in names:
        object.__setattr__(made, field, found[field])  # it may be frozen
    return made


def attributes(value: object) -> dict[str, object]:
    """Return all that an object keeps in its ``__dict__`` and its slots."""
    state: Any = object.__getstate__(value)
    if kind_of(state) is tuple:
        in_dict, in_slots = state
        return {**(in_dict or {}), **in_slots}
    return state or {}


def dict_of(*parts: object) -> dict[object, object]:
    """Return a dict of keys and values that take turns."""
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    require(len(found) * 2 == len(parts), "a key that stands in its dict twice")
    return found
