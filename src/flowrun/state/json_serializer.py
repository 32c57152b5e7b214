"""``JsonSerializer``: results as JSON text, with tags for the types that JSON lacks.

A value that is not plain JSON is written as ``{"$flowrun": [name, part, ...]}``. A user's dict
that has this key is tagged too, so that the two are never confused. The table at the end says
how each type is taken apart and rebuilt.

One C call on a large value would hold the interpreter until it is done. So one walk copies the
value into plain JSON types, and hands it to the C encoder in pieces of bounded size. A long text
has a line break between pieces. No string contains a raw one, so a reader may split there.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode, b64encode
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import accumulate, chain
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.state.value_paths import kind_of, short, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_TAG = "$flowrun"
_TAG_KEY = f'"{_TAG}"'.encode()
_TAGGED_HEAD = b"{\n%b:[\n" % _TAG_KEY
_DEEPEST = 500  # Python 3.11 shares its limit of 1,000 calls between the decoder and its callers.
_LONGEST = 1 << 29  # SQLite keeps at most 1,000,000,000 bytes in a row.

_PIECE = 1 << 14  # values, or 32 times as many characters: a few milliseconds in the C encoder
_CHARS_PER_VALUE = 32
_BYTES_PIECE = 3 << 16  # a multiple of three: base64 needs no padding between parts
_LONG_DATA = 1 << 18
_SHORT_INT = 1 << 63
_ROW = 64
_ROW_TEXT = 512

_STEPS = tuple(1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256))
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_BROKEN = (
    *(ArithmeticError, AttributeError, LookupError, NotImplementedError, OSError),
    *(RecursionError, TypeError, ValueError, struct.error),
)  # what constructors of the tagged types raise for parts that they cannot take


class JsonSerializer:
    """Keeps results as JSON text; what JSON lacks comes back as what it was.

    Values of ``dict`` with ``str`` keys, ``list``, ``str``, ``int``, ``float``, ``bool`` and
    ``None`` are written as ``json.dumps`` would, so that SQL's JSON functions can query them.
    Tuples, sets, frozensets, bytes, bytearrays, dates, times, timedeltas, Decimals, UUIDs,
    paths, ranges, complex numbers, dicts with other keys, NaN, infinities and integers of
    any length are tagged. Everything else is refused, subclasses of these types included.
    A value that stands in several places comes back as a copy in each.

    Large results are encoded and decoded in pieces. On a busy machine with two cores another
    thread, such as the event loop's, waited for at most 0.06 s for a list of dicts of 10 MB and
    0.25 s for one of 100 MB. One text of 100 MB is one piece, and took 0.5 to 2.5 s. Put
    large tables into files and return the path, or use ``PickleSerializer``.

    Args:
        max_bytes: The longest text that is written or read; ``None`` for no limit.
        max_depth: How many JSON brackets may stand inside each other, 1 to 500. A list or
            dict takes one, whatever is tagged takes two.

    Raises:
        ValueError: A limit is out of its range.

    Example:
        >>> serializer = JsonSerializer()
        >>> serializer.serialize({"rows": 3, "span": (1, 2)})
        b'{"rows":3,"span":{"$flowrun":["tuple",1,2]}}'
        >>> serializer.deserialize(_)
        {'rows': 3, 'span': (1, 2)}
    """

    __slots__ = ("_max_bytes", "_max_depth", "name")

    faithful = True

    def __init__(self, *, max_bytes: int | None = _LONGEST, max_depth: int = _DEEPEST) -> None:
        if max_bytes is not None and max_bytes < 1:
            message = f"max_bytes must be at least 1, or None for no limit; it is {max_bytes!r}"
            raise ValueError(message)
        if not 1 <= max_depth <= _DEEPEST:
            message = f"max_depth must be between 1 and {_DEEPEST}; it is {max_depth!r}"
            raise ValueError(message)
        self.name = "json"
        self._max_bytes = max_bytes
        self._max_depth = max_depth

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
            return _Writer(self._max_bytes, self._max_depth).text(obj)
        except _UnstorableError as error:
            problem = f"{error.place()}: {error}."
        except RuntimeError as error:
            problem = f"result: it changed while it was written, or the stack is full: {error}"
        raise ResultNotStorableError(problem)

    def deserialize(self, data: bytes) -> object:
        """Return the value that the text stands for; no code of it is ever run.

        Raises:
            ResultNotReadableError: The text is too long, too deep, damaged, or nothing that
                ``serialize`` wrote.
        """
        if self._max_bytes is not None and len(data) > self._max_bytes:
            message = (
                f"the stored result has {len(data)} bytes, more than the {self._max_bytes}"
                " that JsonSerializer(max_bytes=) allows"
            )
            raise ResultNotReadableError(message)
        try:
            return _read(data, self._max_depth)
        except _BROKEN as error:
            message = (
                "the stored result is not what JsonSerializer wrote:"
                f" {type(error).__name__}: {ascii(str(error))[1:-1][:500]}."
                " Read it with the serializer that wrote it, or run its task again"
            )
            # Without the cause: a JSONDecodeError would keep the whole text alive.
            raise ResultNotReadableError(message) from None


class _UnstorableError(ValueError):
    """A part of a value that cannot be kept, and the way to it, innermost step first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.steps: list[tuple[str, str]] = []

    def place(self) -> str:
        place = "result"
        for before, after in reversed(self.steps):
            place = f"{before}{place}{after}"
        return place


class _Pieces(list[bytes]):
    """The text of a part that is too large for one call of the C encoder."""


_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


class _Writer:
    """Writes one value: copies it into plain types, and encodes whatever grows too large."""

    __slots__ = ("_max_bytes", "_max_depth", "_open", "_size", "_weight")

    def __init__(self, max_bytes: int | None, max_depth: int) -> None:
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._open: set[int] = set()
        self._size = 0
        self._weight = 0  # of what _plain() returned last

    def text(self, value: object) -> bytes:
        """Return the text of the value."""
        plain = value if _atom_weight(value) else self._plain(value, self._max_depth)
        text = b"".join(plain) if type(plain) is _Pieces else _encode(plain).encode()
        self._check_size(len(text))
        return text

    def _plain(self, value: Any, levels: int) -> Any:  # noqa: ANN401 - what a task returned
        """Return a container or a tagged value in plain JSON types, or its ``_Pieces``.

        It calls itself without another function in between, so that 500 levels stay within the
        recursion limit.
        """
        if levels > 0 and _is_row(value):
            self._weight = 1 + len(value)
            return value.copy()
        name, items = _opened(value)
        levels -= 2 if name else 1
        self._enter(value, levels)
        is_object = kind_of(value) is dict and not name
        run: dict[Any, Any] = {"": name} if name else {}
        pieces: _Pieces | None = None
        weight, label = 1, None
        try:
            for label, item in items:
                added = item is None or _atom_weight(item)
                run[label] = item if added else self._plain(item, levels)
                weight += added or self._weight
                if weight > _PIECE:
                    pieces = self._flush(run, pieces, is_object=is_object)
                    weight = 0
        except _UnstorableError as error:
            error.steps.append(_step(value, name, label))
            raise
        self._open.discard(id(value))
        self._weight = weight
        if pieces:
            pieces = self._flush(run, pieces, is_object=is_object)
            self._weight = _PIECE + 1
            return _enclosed(pieces, name, is_object=is_object)
        plain = run if is_object else list(run.values())
        return {_TAG: plain} if name else plain

    def _enter(self, value: object, levels: int) -> None:
        if id(value) in self._open:
            problem = f"the {type_name(type(value))} contains itself, which JSON cannot express"
            raise _UnstorableError(problem)
        if levels < 0:
            problem = (
                f"nested more deeply than the {self._max_depth} levels that"
                " JsonSerializer(max_depth=) allows; return a flatter value"
            )
            raise _UnstorableError(problem)
        self._open.add(id(value))

    def _flush(self, run: dict[Any, Any], pieces: _Pieces | None, *, is_object: bool) -> _Pieces:
        """Encode the items that have gathered; the last of them may be in pieces already."""
        pieces = _Pieces() if pieces is None else pieces
        last = next(reversed(run.values()), None)
        label = run.popitem()[0] if type(last) is _Pieces else None
        if run:
            text = _encode(run if is_object else list(run.values()))[1:-1].encode()
            self._size += len(text)
            self._check_size(self._size)
            pieces += [b",\n", text]
            run.clear()
        if type(last) is _Pieces:
            pieces += [b",\n", f"{_encode(label)}:".encode() if is_object else b"", *last]
        return pieces

    def _check_size(self, size: int) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            message = (
                f"result: takes more than the {self._max_bytes} bytes that"
                " JsonSerializer(max_bytes=) allows; write it to a file and return its path, or"
                " raise the limit."
            )
            raise ResultNotStorableError(message)


def _atom_weight(value: Any) -> int:  # noqa: ANN401 - what a task returned
    """Return what a value of plain JSON without parts weighs, and 0 for any other."""
    kind = kind_of(value)
    if kind is str:
        is_plain = value.isascii() or _is_unicode(value)
        return 1 + len(value) // _CHARS_PER_VALUE if is_plain else 0
    if kind is int:
        try:
            return 1 if -_SHORT_INT < value < _SHORT_INT else len(str(value))
        except ValueError:  # more digits than Python writes
            return 0
    if kind is float:
        return int(math.isfinite(value))
    return int(value is None or kind is bool)


def _is_unicode(text: str) -> bool:
    """Return whether UTF-8 can express the text: it has no lone surrogate."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _opened(value: Any) -> tuple[str, Iterable[tuple[Any, Any]]]:  # noqa: ANN401 - anything
    """Return the tag of a value, or ``""`` for plain JSON, and its labelled parts."""
    kind = kind_of(value)
    if kind is list:
        items: list[Any] = value
        return "", enumerate(items)
    if kind is dict and _has_plain_keys(value):
        return "", value.items()
    problem = "it has no JSON form"
    try:
        tag, parts_of, _ = _BY_ID[id(kind)]
        return tag, enumerate(parts_of(value))
    except _UnstorableError as error:
        problem = str(error)
    except KeyError:
        for base in (*_TYPES, list):
            if issubclass(kind, base):
                problem = f"it is a subclass of {base.__name__} and would come back as a plain one"
                break
    message = (
        f"{type_name(kind)} cannot be kept by JsonSerializer: {problem}."
        " Return what it is made of, or use PickleSerializer"
    )
    raise _UnstorableError(message)


def _is_row(value: Any) -> bool:  # noqa: ANN401 - anything
    """Return whether a value is a short dict of short ASCII texts and numbers.

    Most large results are lists of such. For one this takes half as long as the general way.
    """
    if kind_of(value) is not dict or len(value) > _ROW or not _has_plain_keys(value):
        return False
    for item in value.values():
        kind = kind_of(item)
        if kind is str:
            fits = len(item) <= _ROW_TEXT and item.isascii()
        elif kind is int:
            fits = -_SHORT_INT < item < _SHORT_INT
        elif kind is float:
            fits = item - item == 0.0  # neither NaN nor an infinity
        else:
            fits = item is None or kind is bool
        if not fits:
            return False
    return True


def _has_plain_keys(value: dict[Any, Any]) -> bool:
    # The types first: the hash and the comparison of any other key are the user's code.
    for key in value:
        if kind_of(key) is not str:
            return False
    is_plain = all(map(str.isascii, value)) or all(map(_is_unicode, value))
    return is_plain and _TAG not in value


def _step(value: Any, name: str, label: Any) -> tuple[str, str]:  # noqa: ANN401 - anything
    """Return what the place of a part has before and after the place of its container."""
    if name == "dict":  # keys and values take turns
        number, is_value = divmod(label, 2)
        if not is_value:
            return "<a key of ", ">"
        label = [*value][number]
    elif name in {"set", "frozenset"}:
        return "<an element of ", ">"
    elif name not in {"", "tuple"}:
        return "", ""
    return "", f"[{short(label)}]"


def _enclosed(pieces: _Pieces, name: str, *, is_object: bool) -> _Pieces:
    """Put brackets around the pieces, each on a line of its own."""
    pieces[0] = b"{\n" if is_object else b"[\n"  # in place of the first comma
    pieces.append(b"\n}" if is_object else b"\n]")
    if name:
        pieces[0] = _TAGGED_HEAD
        pieces.append(b"\n}")
    return pieces


def _read(data: bytes, max_depth: int) -> Any:  # noqa: ANN401 - what a task returned
    for head, tail, levels in ((b"[\n", b"\n]", 0), (_TAGGED_HEAD, b"\n]\n}", 1)):
        if len(data) > _LONG_DATA and data.startswith(head) and data.endswith(tail):
            found: list[Any] = []
            with suppress(*_BROKEN):  # other line breaks, or damage: the whole text will tell
                for line in _split(data, b",\n", len(head), len(data) - len(tail)):
                    run = _decoded(b"[%b]" % line, max_depth - levels)
                    _require(bool(run), "a comma without an item")
                    found += run
                return _revived({_TAG: found}) if levels else found
    return _decoded(data, max_depth)


def _split(data: bytes, separator: bytes, start: int, stop: int) -> Iterator[bytes]:
    # Not bytes.split: it would make a second copy of a long text.
    while (end := data.find(separator, start, stop)) >= 0:
        yield data[start:end]
        start = end + len(separator)
    yield data[start:stop]


def _decoded(data: bytes, max_depth: int) -> Any:  # noqa: ANN401 - what a task returned
    if _nesting(data, max_depth) > max_depth:
        message = f"nested more deeply than the {max_depth} levels that max_depth= allows"
        raise ValueError(message)
    if len(data) > 2 * _LONG_DATA:
        return _decode_long(data.decode())
    return (_decode_tagged if _TAG_KEY in data else _decode_plain)(data.decode())


def _nesting(data: bytes, enough: int) -> int:
    """Return how deeply brackets are nested; up to ``enough`` the answer may be too high.

    The C decoder recurses, and how deeply it may is different in each Python.
    """
    most = data.count(b"[") + data.count(b"{")
    if most <= enough:
        return most
    depth = deepest = 0
    for line in _split(data, b"\n", 0, len(data)):
        text = line.replace(b"\\\\", b"").replace(b'\\"', b"")
        # Taking away two neighbouring quotes changes for no bracket whether a string holds it.
        text = text.translate(None, _NO_BRACKETS).replace(b'""', b"")
        outside = b"".join(text.split(b'"')[::2])
        depths = [*accumulate(map(_STEPS.__getitem__, outside), initial=depth)]
        deepest = max(deepest, *depths)
        depth = depths[-1]
    return deepest


def _refuse_constant(name: str) -> None:
    message = f"{name} is not JSON"
    raise ValueError(message)


def _revived(found: dict[str, Any]) -> object:
    """Return what a decoded JSON object stands for: itself, unless it carries the tag."""
    if _TAG not in found:
        return found
    content = found[_TAG]
    _require(
        len(found) == 1 and type(content) is list and bool(content),
        f"an object with the key {_TAG!r} that flowrun did not write",
    )
    name, *parts = content
    if type(name) is not str or name not in _BY_TAG:
        message = (
            f"an unknown kind of value, {ascii(name)[:80]}; a newer flowrun may have written it"
        )
        raise ValueError(message)
    return _BY_TAG[name](parts)


_decode_plain = json.JSONDecoder(parse_constant=_refuse_constant).decode
_decode_tagged = json.JSONDecoder(parse_constant=_refuse_constant, object_hook=_revived).decode
_decode_long = json.JSONDecoder(  # each call of a Python function lets other threads run
    parse_constant=_refuse_constant,
    object_hook=_revived,
    parse_float=lambda text: float(text),  # noqa: PLW0108 - float itself is no Python function
    parse_int=lambda text: int(text),  # noqa: PLW0108
).decode


def _require(fits: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not fits:
        raise _UnstorableError(otherwise)


_USUAL_NAN = struct.pack(">d", math.nan)
_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)


def _bytes_parts(value: bytes | bytearray) -> list[object]:
    starts = range(0, len(value) or 1, _BYTES_PIECE)
    return [b64encode(value[start : start + _BYTES_PIECE]).decode("ascii") for start in starts]


def _bytes_of(parts: list[Any]) -> bytes:
    return b"".join([b64decode(part, validate=True) for part in parts])


def _float_parts(value: float) -> list[object]:
    bits = struct.pack(">d", value)
    # A NaN has a sign and a payload, which some programs use to tell why it is none.
    return [bits.hex() if math.isnan(value) and bits != _USUAL_NAN else repr(value)]


def _float_of(text: str) -> float:
    if text in {"nan", "inf", "-inf"}:
        return float(text)
    value: float = struct.unpack(">d", bytes.fromhex(text))[0]
    _require(math.isnan(value), "a tagged float that is an ordinary number")
    return value


def _moment_parts(value: datetime | time) -> list[object]:
    zone = value.tzinfo
    if type(zone) is ZoneInfo:
        _require(bool(zone.key), "its ZoneInfo has no key to find it by again")
        return [value.isoformat(), value.fold, "zone", zone.key]
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        if offset and abs(offset) < _SECOND:
            # fromisoformat() of some Python versions takes such an offset for UTC.
            return [value.isoformat(), value.fold, "offset", [offset // _MICROSECOND, name]]
        if name != timezone(offset).tzname(None):
            return [value.isoformat(), value.fold, "name", name]
    elif zone is not None:
        problem = f"its tzinfo is a {type_name(type(zone))}; a timezone or a ZoneInfo can be kept"
        raise _UnstorableError(problem)
    return [value.isoformat(), value.fold] if value.fold else [value.isoformat()]


def _moment_of(
    kind: type[datetime | time],
    text: str,
    fold: int = 0,
    what: str = "",
    name: Any = None,  # noqa: ANN401
) -> object:
    value = kind.fromisoformat(text)
    zone = value.tzinfo
    if what == "zone":
        zone = ZoneInfo(name)
    elif what == "offset":
        offset, label = timedelta(microseconds=name[0]), name[1]
        zone = timezone(offset)
        if label != zone.tzname(None):
            zone = timezone(offset, label)
    elif what == "name":
        # A time's offset does not depend on the day, as these zones are fixed.
        zone = timezone(value.utcoffset() or timedelta(), name)
    return value.replace(tzinfo=zone, fold=fold)


def _decimal_of(text: str) -> Decimal:
    value = Decimal(text)
    # A thread that switched decimal's traps off gets NaN instead of an error.
    _require(not value.is_nan() or "nan" in text.lower(), "a Decimal that is no number")
    return value


def _uuid_parts(value: UUID) -> list[object]:
    safe = value.is_safe
    return [str(value)] if safe is SafeUUID.unknown else [str(value), safe.value]


def _uuid_of(text: str, safe: int | None = None) -> UUID:
    return UUID(text, is_safe=SafeUUID(safe))


def _path_parts(value: PurePath) -> list[object]:
    text = str(value)
    _require(type(value)(text).parts == value.parts, "its text would be read as another path")
    return [text]


def _complex_of(real: object, imaginary: object) -> complex:
    if isinstance(real, float) and isinstance(imaginary, float):
        return complex(real, imaginary)
    raise TypeError


def _unique(value: Any, number: int) -> object:  # noqa: ANN401 - a collection
    _require(len(value) == number, "an element or a key that stands in its collection twice")
    return value


_Row: TypeAlias = "tuple[str, Callable[[Any], Iterable[object]], Callable[[list[Any]], object]]"

_TYPES: dict[type, _Row] = {  # a type's tag, how it is taken apart, how it is rebuilt
    # JSON has the first four; they are tagged only where it cannot express the value.
    dict: (
        "dict",
        lambda value: chain.from_iterable(value.items()),
        lambda parts: _unique(dict(zip(parts[::2], parts[1::2], strict=True)), len(parts) // 2),
    ),
    str: (  # with a lone surrogate: UTF-8 has none, and JSON's escapes would join two of them
        "str",
        lambda value: [b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")],
        lambda parts: _bytes_of(parts).decode("utf-8", "surrogatepass"),
    ),
    int: ("int", lambda value: [hex(value)], lambda parts: int(parts[0], 16)),
    float: ("float", _float_parts, lambda parts: _float_of(*parts)),
    tuple: ("tuple", lambda value: value, tuple),
    set: ("set", lambda value: value, lambda parts: _unique(set(parts), len(parts))),
    frozenset: (
        "frozenset",
        lambda value: value,
        lambda parts: _unique(frozenset(parts), len(parts)),
    ),
    bytes: ("bytes", _bytes_parts, _bytes_of),
    bytearray: ("bytearray", _bytes_parts, lambda parts: bytearray(_bytes_of(parts))),
    datetime: ("datetime", _moment_parts, lambda parts: _moment_of(datetime, *parts)),
    date: ("date", lambda value: [value.isoformat()], lambda parts: date.fromisoformat(*parts)),
    time: ("time", _moment_parts, lambda parts: _moment_of(time, *parts)),
    timedelta: (
        "timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda parts: timedelta(*parts),
    ),
    Decimal: ("decimal", lambda value: [str(value)], lambda parts: _decimal_of(*parts)),
    UUID: ("uuid", _uuid_parts, lambda parts: _uuid_of(*parts)),
    PosixPath: ("PosixPath", _path_parts, lambda parts: PosixPath(*parts)),
    WindowsPath: ("WindowsPath", _path_parts, lambda parts: WindowsPath(*parts)),
    PurePosixPath: ("PurePosixPath", _path_parts, lambda parts: PurePosixPath(*parts)),
    PureWindowsPath: ("PureWindowsPath", _path_parts, lambda parts: PureWindowsPath(*parts)),
    complex: ("complex", lambda value: [value.real, value.imag], lambda parts: _complex_of(*parts)),
    range: (
        "range",
        lambda value: [value.start, value.stop, value.step],
        lambda parts: range(*parts),
    ),
}
# By id: a class may have a metaclass with a hostile ``__hash__`` or ``__eq__``.
_BY_ID = {id(kind): row for kind, row in _TYPES.items()}
_BY_TAG = {tag: value_of for tag, _, value_of in _TYPES.values()}
