"""``JsonSerializer``: results as JSON text, with tags for the types that JSON lacks.

A value that is not plain JSON is written as ``{"$flowrun": [name, part, ...]}``. A user's dict
that has this key is tagged too, so that the two are never confused. ``json_types`` says
how each type is taken apart and rebuilt, and ``json_objects`` does it for objects of given classes.

One walk makes plain JSON of a value; the C encoder writes it. A call of that encoder holds the
interpreter, so the items of a long outermost container are written some hundred at a time, with a
line break after each piece. No string contains a raw one, so the reader splits the text there.
"""

from __future__ import annotations

import json
import math
import struct
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.state.json_objects import (
    UnstorableError,
    may_be_given,
    name_to_keep,
    object_of,
    object_parts,
    require,
    short_name,
)
from flowrun.state.json_types import BY_ID, BY_TAG, TYPES
from flowrun.state.serializers import kind_of, short, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from flowrun.state.json_objects import Classes

_TAG = "$flowrun"
_TAG_KEY = b'"$flowrun"'
_TAGGED_HEAD = b'{\n"$flowrun":[\n'
_DEEPEST = 500  # Python 3.11 shares its limit of 1,000 calls between the decoder and its callers.
_LONGEST = 1 << 29  # SQLite keeps at most 1,000,000,000 bytes in a row.
_PIECE = 512  # items of the outermost container for one call of the encoder
_LONG_TEXT = 1 << 18


class JsonSerializer:
    """Keeps results as JSON text; what JSON lacks comes back as what it was.

    Values of ``dict`` with ``str`` keys, ``list``, ``str``, ``int``, ``float``, ``bool`` and
    ``None`` are written as ``json.dumps`` would, so that SQL's JSON functions can query them.
    Tuples, sets, frozensets, bytes, bytearrays, dates, times, timedeltas, Decimals, UUIDs,
    paths, ranges, complex numbers, deques, ``OrderedDict``, ``Counter``, ``defaultdict`` with a
    builtin factory, dicts with other keys, NaN, infinities and integers of any length are tagged.
    Dataclasses, enums and named tuples are, if their classes are given. Everything else is
    refused, subclasses of these types included. A value that stands in several places comes back
    as a copy in each.

    A large result may hold the event loop; docs/durability.md says for how long. Put large tables
    into files and return the path, or use ``PickleSerializer``.

    Args:
        max_bytes: The longest text that is written or read; ``None`` for no limit.
        max_depth: How many JSON brackets may stand inside each other, 1 to 500. A list or
            dict takes one, whatever is tagged takes two.
        classes: Dataclasses, enums and named tuples whose objects may be kept and made again. Each
            is known by its module and name. Results are then read back before they count.

    Raises:
        TypeError: One of ``classes`` is something else.
        ValueError: A limit is out of its range.

    Example:
        >>> serializer = JsonSerializer()
        >>> serializer.serialize({"rows": 3, "span": (1, 2)})
        b'{"rows":3,"span":{"$flowrun":["tuple",1,2]}}'
        >>> serializer.deserialize(_)
        {'rows': 3, 'span': (1, 2)}
    """

    __slots__ = ("_classes", "_max_bytes", "_max_depth", "name")

    def __init__(
        self,
        *,
        max_bytes: int | None = _LONGEST,
        max_depth: int = _DEEPEST,
        classes: Iterable[type] = (),
    ) -> None:
        if max_bytes is not None and max_bytes < 1:
            message = f"max_bytes must be at least 1, or None for no limit; it is {max_bytes!r}"
            raise ValueError(message)
        if not 1 <= max_depth <= _DEEPEST:
            message = f"max_depth must be between 1 and {_DEEPEST}; it is {max_depth!r}"
            raise ValueError(message)
        self.name = "json"
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._classes: Classes = {name_to_keep(kind): kind for kind in classes}

    @property
    def faithful(self) -> bool:
        """Whether what it accepts comes back as it was; given classes have code of their own."""
        return not self._classes

    def __repr__(self) -> str:
        return f"JsonSerializer(max_bytes={self._max_bytes}, max_depth={self._max_depth})"

    def serialize(self, obj: object) -> bytes:
        """Return the value as JSON text in UTF-8.

        Raises:
            ResultNotStorableError: A part of the value would come back as something else;
                the message names its place, like ``result['rows'][3]``.
        """
        if obj is None:  # what most tasks return
            return b"null"
        try:
            try:
                text = _Walk(_ATOMS, self._max_depth, self._classes).text(obj)
            except ValueError:  # JSON or UTF-8 cannot express a number or a text
                text = _Walk(_CERTAIN, self._max_depth, self._classes).text(obj)
        except UnstorableError as error:
            problem = f"{error.place()}: {error}."
        except RuntimeError as error:
            problem = f"result: it changed while it was written, or the stack is full: {error}"
        else:
            if self._max_bytes is None or len(text) <= self._max_bytes:
                return text
            problem = (
                f"result: takes more than the {self._max_bytes} bytes that"
                " JsonSerializer(max_bytes=) allows; write it to a file and return its path, or"
                " raise the limit."
            )
        raise ResultNotStorableError(problem)

    def deserialize(self, data: bytes) -> object:
        """Return the value that the text stands for; only code of given classes is ever run.

        Raises:
            ResultNotReadableError: The text is too long, too deep, damaged, nothing that
                ``serialize`` wrote, or holds an object of a class that was not given.
        """
        if self._max_bytes is not None and len(data) > self._max_bytes:
            message = (
                f"the stored result has {len(data)} bytes, more than the {self._max_bytes}"
                " that JsonSerializer(max_bytes=) allows"
            )
            raise ResultNotReadableError(message)
        try:
            return _read(data, self._max_depth, partial(_revived, self._classes))
        except ResultNotReadableError:
            raise
        except _BROKEN as error:
            message = (
                "the stored result is not what JsonSerializer wrote:"
                f" {type(error).__name__}: {ascii(str(error))[1:-1][:500]}."
                " Read it with the serializer that wrote it, or run its task again"
            )
            # Without the cause: a JSONDecodeError would keep the whole text alive.
            raise ResultNotReadableError(message) from None


_Revive: TypeAlias = "Callable[[dict[str, Any]], object]"


_BROKEN = (
    *(ArithmeticError, AttributeError, LookupError, NotImplementedError, OSError),
    *(RecursionError, TypeError, ValueError, struct.error, UnstorableError),
)  # what constructors of the tagged types raise for parts that they cannot take


class _Walk:
    """Makes plain JSON of a value, and text of that.

    Args:
        atoms: Ids of the types whose values are taken as they are: ``_ATOMS``, and where the
            encoder then finds a text or a number that JSON lacks, ``_CERTAIN``.
        max_depth: How many brackets may stand inside each other.
        classes: Classes whose objects may be kept.
    """

    __slots__ = ("_atoms", "_classes", "_has_long", "_max_depth", "_open")

    def __init__(self, atoms: frozenset[int], max_depth: int, classes: Classes) -> None:
        self._atoms = atoms
        self._classes = classes
        self._max_depth = max_depth
        self._open: set[int] = set()
        self._has_long = False

    def text(self, value: object) -> bytes:
        """Return the text of a value."""
        plain = self.plain(value)
        return _written(plain) if self._has_long else _encode(plain).encode()

    def plain(self, value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - what a task returned
        """Return a value in plain JSON types.

        It calls itself without another function in between, so that 500 levels stay within the
        recursion limit.
        """
        kind = kind_of(value)
        atoms = self._atoms
        if id(kind) in atoms or (id(kind) in _ATOMS and _is_expressible(value)):
            return value
        name, parts = "", value
        if kind is dict and self._has_plain_keys(value):
            parts = value.values()
        elif kind is not list:
            name, parts = _taken_apart(kind, value, self._classes)
        depth += 2 if name else 1
        if id(value) in self._open or depth > self._max_depth:
            raise UnstorableError(self._problem_of(value))
        if len(parts) <= _PIECE and atoms.issuperset(map(id, map(type, parts))):
            return {_TAG: [name, *parts]} if name else value
        self._has_long |= len(parts) > _PIECE
        self._open.add(id(value))
        keys, parts = [*value] if kind is dict else (), [*parts]
        found: list[Any] = []
        try:
            for part in parts:
                plain = part if id(kind_of(part)) in atoms else self.plain(part, depth)
                found.append(plain)  # one by one: its length is the number of a refused part
        except UnstorableError as error:
            error.steps.append(_step(name, len(found), parts if name else keys))
            raise
        self._open.discard(id(value))
        if name:
            return {_TAG: [name, *found]}
        return dict(zip(keys, found, strict=True)) if kind is dict else found

    def _has_plain_keys(self, value: dict[Any, Any]) -> bool:
        # The types first: the hash and the comparison of any other key are the user's code.
        is_plain = _TEXT.issuperset(map(id, map(type, value))) and _TAG not in value
        return is_plain and (self._atoms is _ATOMS or all(map(_is_expressible, value)))

    def _problem_of(self, value: object) -> str:
        if id(value) in self._open:
            return f"the {type_name(type(value))} contains itself, which JSON cannot express"
        return (
            f"nested more deeply than the {self._max_depth} levels that"
            " JsonSerializer(max_depth=) allows; return a flatter value"
        )


def _is_expressible(value: Any) -> bool:  # noqa: ANN401 - a text or a number
    """Return whether UTF-8 or JSON can express the value."""
    if type(value) is float:
        return math.isfinite(value)
    try:  # a lone surrogate, or more digits than Python writes
        return bool(value.encode() if type(value) is str else str(value)) or True
    except ValueError:
        return False


def _taken_apart(kind: type, value: object, classes: Classes) -> tuple[str, Collection[Any]]:
    """Return the tag of a value, and its parts.

    Raises:
        UnstorableError: It has no tag, or would come back as something else.
    """
    problem, remedy = "it has no JSON form", "Return"
    try:
        row = BY_ID.get(id(kind))
        if row is not None:
            return row[0], row[1](value)
        if classes.get(type_name(kind)) is kind:
            return "object", object_parts(kind, value)
    except UnstorableError as error:
        problem = str(error)
    else:
        bases = [base.__name__ for base in (*TYPES, list) if issubclass(kind, base)]
        if may_be_given(kind):
            problem = "its class is not among those it was given"
            remedy = f"Write JsonSerializer(classes=[{short_name(type_name(kind))}]), return"
        elif bases:
            problem = f"it is a subclass of {bases[0]} and would come back as a plain one"
    message = (
        f"{type_name(kind)} cannot be kept by JsonSerializer: {problem}."
        f" {remedy} what it is made of, or use PickleSerializer"
    )
    raise UnstorableError(message)


def _step(name: str, number: int, around: Sequence[object]) -> tuple[str, str]:
    """Return what the place of a part has before and after the place of its container.

    Args:
        name: The container's tag.
        number: The part's.
        around: All its parts; of a dict without a tag the keys, of a list nothing.
    """
    number -= name in {"defaultdict", "deque", "object"}  # the first part is no item
    if name in {"dict", "OrderedDict", "Counter", "defaultdict", "object"}:  # keys and values
        if number % 2 == 0:
            return "<a key of ", ">"
        key = around[number // 2 * 2 + (name in {"defaultdict", "object"})]
        return "", f".{key}" if name == "object" else f"[{short(key)}]"
    if name in {"set", "frozenset"}:
        return "<an element of ", ">"
    if name not in {"", "tuple", "deque"}:
        return "", ""
    return "", f"[{number if name or not around else short(around[number])}]"


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def _written(plain: Any) -> bytes:  # noqa: ANN401 - plain JSON
    """Return the text of plain JSON: a long container in pieces, one of long ones item by item."""
    is_tagged = kind_of(plain) is dict and _TAG in plain
    content = plain[_TAG] if is_tagged else plain
    is_object = kind_of(content) is dict
    if _is_long(content):
        make: Any = dict if is_object else list
        rest = iter(content.items() if is_object else content)
        pieces: Iterator[Any] = iter(lambda: make(islice(rest, _PIECE)), make())
        texts = [_encode(piece)[1:-1].encode() for piece in pieces]
    elif is_object and any(map(_is_long, content.values())):
        texts = [b"%b:%b" % (_encode(key).encode(), _written(content[key])) for key in content]
    elif kind_of(content) is list and any(map(_is_long, content)):
        texts = [*map(_written, content)]
    else:
        return _encode(plain).encode()
    form = b"{\n%b\n}" if is_object else _TAGGED_HEAD + b"%b\n]\n}" if is_tagged else b"[\n%b\n]"
    return form % b",\n".join(texts)


def _is_long(plain: Any) -> bool:  # noqa: ANN401 - plain JSON
    return type(plain) in {list, dict} and len(plain) > _PIECE


def _read(data: bytes, max_depth: int, revive: _Revive) -> Any:  # noqa: ANN401 - what a task returned
    for head, tail, levels in ((b"[\n", b"\n]", 0), (_TAGGED_HEAD, b"\n]\n}", 1)):
        if len(data) > _LONG_TEXT and data.startswith(head) and data.endswith(tail):
            found: list[Any] = []
            with suppress(*_BROKEN):  # other line breaks, or damage: the whole text is read below
                for line in data[len(head) : -len(tail)].split(b",\n"):
                    items = _decoded(b"[%b]" % line, max_depth - levels, revive)
                    require(bool(items), "a comma without an item")
                    found += items
                return revive({_TAG: found}) if levels else found
    return _decoded(data, max_depth, revive)


def _decoded(data: bytes, max_depth: int, revive: _Revive) -> Any:  # noqa: ANN401 - what a task returned
    _check_nesting(data, max_depth)
    # In a long text each call of a Python function lets other threads run.
    is_plain = len(data) <= _LONG_TEXT and _TAG_KEY not in data
    # NaN and Infinity are not JSON, and int() refuses them.
    decoder = json.JSONDecoder(parse_constant=int, object_hook=None if is_plain else revive)
    return decoder.decode(data.decode())


def _check_nesting(data: bytes, max_depth: int) -> None:
    """Refuse text that is nested too deeply: each Python's C decoder recurses to another depth."""
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return
    text = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = text.translate(bytes.maketrans(b"{}", b"[]"), _NO_BRACKETS)
    # Taking away two neighbouring quotes changes for no bracket whether a string holds it.
    rest = b"".join(text.replace(b'""', b"").split(b'"')[::2])
    for _ in range(max_depth):
        shorter = rest.replace(b"[]", b"")  # the innermost brackets
        if len(shorter) == len(rest):
            break
        rest = shorter
    if len(rest) > max_depth or b"[]" in rest:
        message = f"nested more deeply than the {max_depth} levels that max_depth= allows"
        raise ValueError(message)


_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}"')


def _revived(classes: Classes, found: dict[str, Any]) -> object:
    """Return what a decoded JSON object stands for: itself, unless it carries the tag."""
    if _TAG not in found:
        return found
    content = found[_TAG]
    is_tagged = len(found) == 1 and kind_of(content) is list and bool(content)
    require(is_tagged, f"an object with the key {_TAG!r} that flowrun did not write")
    name, *parts = content
    if name == "object":
        return object_of(classes, *parts)
    if kind_of(name) is not str or name not in BY_TAG:
        message = f"a kind of value, {ascii(name)[:80]}, that only a newer flowrun may have written"
        raise ValueError(message)
    return BY_TAG[name](*parts)


_TEXT = frozenset({id(str)})
_CERTAIN = frozenset({id(type(None)), id(bool)})
_ATOMS = _CERTAIN | {id(int), id(float), id(str)}
