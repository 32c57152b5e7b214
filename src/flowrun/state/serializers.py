"""How results become bytes and values again, and ``JsonSerializer``, which is the default.

A store calls them off the event loop and keeps the serializer's name beside each result.
Neither converts anything in silence: what would not come back as it is, is refused.
"""

from __future__ import annotations

from typing import Any, Protocol

from flowrun.errors import ResultNotStorableError
from flowrun.state.json_reader import read
from flowrun.state.json_values import kind_of
from flowrun.state.json_writer import Writer, encode_at_once, too_long

DEEPEST = 500
"""Python 3.11 shares its recursion limit of 1,000 between the JSON decoder and its callers."""

LONGEST = 1 << 29
"""SQLite keeps at most 1,000,000,000 bytes in one row, unless it was built otherwise."""

_PLAIN_INT = 1 << 63
ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_TEXTS = frozenset({str, bytes})
_MOST_SMALL = 32
_SMALL_TEXT = 500


class ResultSerializer(Protocol):
    """What a store needs to keep results: bytes from a value, and the value from bytes.

    A store calls both methods from worker threads, several at once.
    """

    @property
    def name(self) -> str:
        """Return a short id that is kept with each result and never changes.

        Unless a subclass says otherwise it is the full name of its class.
        """
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def dumps(self, value: object) -> bytes:
        """Return the bytes to keep.

        Raises:
            ResultNotStorableError: The value would not come back as what it is.
        """
        ...

    def loads(self, data: bytes) -> object:
        """Return the value that ``dumps`` was given.

        Raises:
            ResultNotReadableError: The bytes are damaged, or another serializer's.
        """
        ...


def checked_serializer(serializer: ResultSerializer) -> ResultSerializer:
    """Return the serializer if it can be one.

    Raises:
        TypeError: It cannot; the message says what it lacks.
    """
    name: object = getattr(serializer, "name", None)
    methods = [getattr(serializer, method, None) for method in ("dumps", "loads")]
    if isinstance(serializer, type) or not all(map(callable, methods)):
        msg = f"serializer= takes a ResultSerializer, such as JsonSerializer(), not {serializer!r}"
        raise TypeError(msg)
    if not isinstance(name, str) or not name:
        msg = (
            f"serializer= takes a ResultSerializer; {type(serializer).__name__} lacks a name, which"
            " is kept with each result: a text that never changes"
        )
        raise TypeError(msg)
    return serializer


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
    return kind in ATOMS and (kind not in _TEXTS or len(value) <= _SMALL_TEXT)


class JsonSerializer:
    """Keeps results as JSON text; what JSON lacks comes back as what it was.

    Values of ``dict`` with ``str`` keys, ``list``, ``str``, ``int``, ``float``, ``bool`` and
    ``None`` are written as ``json.dumps`` would, so that SQL's JSON functions can query them.
    Tuples, sets, frozensets, bytes, bytearrays, dates, times, timedeltas, Decimals, UUIDs,
    paths, ranges, complex numbers, dicts with other keys, NaN, infinities and integers of
    any length are tagged. Everything else is refused, subclasses of these types included.
    A value that stands in several places comes back as a copy in each.

    Args:
        max_bytes: The longest text that is written or read; ``None`` for no limit.
        max_depth: How many JSON brackets may stand inside each other, 1 to 500. A list or
            dict takes one, whatever is tagged takes two.

    Raises:
        ValueError: A limit is out of its range.

    Example:
        >>> serializer = JsonSerializer()
        >>> serializer.dumps({"rows": 3, "span": (1, 2)})
        b'{"rows":3,"span":{"$flowrun":["tuple",1,2]}}'
        >>> serializer.loads(_)
        {'rows': 3, 'span': (1, 2)}
    """

    __slots__ = ("_max_bytes", "_max_depth", "name")

    def __init__(self, *, max_bytes: int | None = LONGEST, max_depth: int = DEEPEST) -> None:
        if max_bytes is not None and max_bytes < 1:
            message = f"max_bytes must be at least 1, or None for no limit; it is {max_bytes!r}"
            raise ValueError(message)
        if not 1 <= max_depth <= DEEPEST:
            message = f"max_depth must be between 1 and {DEEPEST}; it is {max_depth!r}"
            raise ValueError(message)
        self.name = "json"
        self._max_bytes = max_bytes
        self._max_depth = max_depth

    def __repr__(self) -> str:
        return f"JsonSerializer(max_bytes={self._max_bytes}, max_depth={self._max_depth})"

    def dumps(self, value: object) -> bytes:
        """Return the value as JSON text in UTF-8.

        Raises:
            ResultNotStorableError: A part of the value would come back as something else;
                the message names its place, like ``result['rows'][3]``.
        """
        if value is None:  # What most tasks return.
            return b"null"
        if type(value) is int and -_PLAIN_INT < value < _PLAIN_INT:
            return b"%d" % value
        try:
            data = encode_at_once(value, self._max_depth)
            if data is None:
                data = Writer(self._max_bytes, self._max_depth).write(value)
        except RuntimeError as error:
            message = (
                f"result: it changed while it was being written, or the stack is full: {error}"
            )
            raise ResultNotStorableError(message) from error
        if self._max_bytes is not None and len(data) > self._max_bytes:
            message = f"result: {too_long(self._max_bytes)}."
            raise ResultNotStorableError(message)
        return data

    def loads(self, data: bytes) -> object:
        """Return the value that the text stands for; no code of it is ever run.

        Raises:
            ResultNotReadableError: The text is too long, too deep, damaged, or nothing that
                ``dumps`` wrote.
        """
        return read(data, self._max_bytes, self._max_depth)
