"""What a serializer is: the protocol, its name, and the check of one that a user hands in."""

from __future__ import annotations

from typing import Any, Protocol

from flowrun.state.value_paths import ATOM_IDS, kind_of, type_name

_PLAIN_INT = 1 << 63
_MOST_SMALL = 32
_SMALL_TEXT = 500


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
    if kind is list or kind is tuple:
        return len(value) <= _MOST_SMALL and all(map(_is_small_atom, value))
    if kind is dict:
        atoms = (*value, *value.values())
        return len(value) <= _MOST_SMALL and all(map(_is_small_atom, atoms))
    return _is_small_atom(value)


def _is_small_atom(value: Any) -> bool:  # noqa: ANN401 - what a task returned
    kind = kind_of(value)
    if kind is int:
        return bool(-_PLAIN_INT < value < _PLAIN_INT)
    if kind is str or kind is bytes:
        return len(value) <= _SMALL_TEXT
    return id(kind) in ATOM_IDS
