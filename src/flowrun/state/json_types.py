"""The types that ``JsonSerializer`` tags: how each is taken apart, and rebuilt.

``json_objects`` has those of a user's own classes.
"""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from flowrun.state.json_objects import (
    UnstorableError,
    attributes,
    dict_of,
    require,
)
from flowrun.state.serializers import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


_USUAL_NAN = struct.pack(">d", math.nan)


def _base64(value: bytes | bytearray) -> list[object]:
    return [b64encode(value).decode("ascii")]


def _bytes_of(*parts: str) -> bytes:
    return b"".join([b64decode(part, validate=True) for part in parts])


def _float_parts(value: float) -> list[object]:
    bits = struct.pack(">d", value)
    # A NaN has a sign and a payload, which some programs use to say why it is none.
    return [bits.hex() if math.isnan(value) and bits != _USUAL_NAN else repr(value)]


def _float_of(text: str) -> float:
    if text in {"nan", "inf", "-inf"}:
        return float(text)
    value: float = struct.unpack(">d", bytes.fromhex(text))[0]
    require(math.isnan(value), "a tagged float that is an ordinary number")
    return value


def _moment_parts(value: datetime | time) -> list[object]:
    zone = value.tzinfo
    if type(zone) is ZoneInfo:
        require(bool(zone.key), "its ZoneInfo has no key to find it by again")
        return [value.isoformat(), value.fold, "zone", zone.key]
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        # fromisoformat() of some Python versions takes an offset of less than a second for UTC.
        if name != timezone(offset).tzname(None) or 0 < abs(offset.total_seconds()) < 1:
            microseconds = offset // timedelta(microseconds=1)
            return [value.isoformat(), value.fold, "offset", [microseconds, name]]
    elif zone is not None:
        problem = f"its tzinfo is a {type_name(type(zone))}; a timezone or a ZoneInfo can be kept"
        raise UnstorableError(problem)
    return [value.isoformat(), value.fold] if value.fold else [value.isoformat()]


def _moment_of(
    kind: type[datetime | time],
    text: str,
    fold: int = 0,
    what: str = "",
    name: Any = None,  # noqa: ANN401 - a text, or an offset with one
) -> object:
    value = kind.fromisoformat(text)
    zone = value.tzinfo
    if what == "zone":
        zone = ZoneInfo(name)
    elif what:  # "name", without an offset, was written by earlier releases
        microseconds, label = name if what == "offset" else (None, name)
        offset = value.utcoffset() if microseconds is None else timedelta(microseconds=microseconds)
        zone = timezone(offset or timedelta())
        zone = zone if label == zone.tzname(None) else timezone(zone.utcoffset(None), label)
    return value.replace(tzinfo=zone, fold=fold)


def _decimal_of(text: str) -> Decimal:
    value = Decimal(text)
    # A thread that switched decimal's traps off gets NaN instead of an error.
    require(not value.is_nan() or "nan" in text.lower(), "a Decimal that is no number")
    return value


def _uuid_parts(value: UUID) -> list[object]:
    safe = value.is_safe
    return [str(value)] if safe is SafeUUID.unknown else [str(value), safe.value]


def _uuid_of(text: str, safe: int | None = None) -> UUID:
    return UUID(text, is_safe=SafeUUID(safe))


def _path_parts(value: PurePath) -> list[object]:
    text = str(value)
    require(type(value)(text).parts == value.parts, "its text would be read as another path")
    return [text]


def _complex_of(real: object, imaginary: object) -> complex:
    if isinstance(real, float) and isinstance(imaginary, float):
        return complex(real, imaginary)
    raise TypeError


def _items(value: dict[object, object]) -> list[object]:
    # A class that is written in Python gives its objects a ``__dict__``.
    require(not attributes(value), "it has attributes, which would be lost")
    return [*chain.from_iterable(value.items())]


def _defaultdict_parts(value: defaultdict[object, object]) -> list[object]:
    names = [name for name, factory in _FACTORIES.items() if factory is value.default_factory]
    problem = f"its factory is none of {', '.join(map(str, _FACTORIES))}"
    require(bool(names), problem)
    return [*names, *_items(value)]


def _defaultdict_of(factory: str | None, *parts: object) -> object:
    return defaultdict(_FACTORIES[factory], dict_of(*parts))


def _deque_of(max_length: int | None, *parts: object) -> object:
    found = deque(parts, max_length)
    require(len(found) == len(parts), "a deque of more items than it may have")
    return found


def _set_of(kind: type[set[object] | frozenset[object]], *parts: object) -> object:
    found = kind(parts)
    require(len(found) == len(parts), "an element that stands in its set twice")
    return found


_FACTORIES: dict[str | None, Callable[[], object] | None] = {
    None: None,
    **{
        kind.__name__: kind
        for kind in (
            *(bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset),
            *(Counter, OrderedDict, deque),
        )
    },
}

_Row: TypeAlias = "tuple[str, Callable[[Any], Collection[Any]], Callable[..., object]]"

TYPES: dict[type, _Row] = {  # a type's tag, how it is taken apart, how it is rebuilt
    OrderedDict: ("OrderedDict", _items, lambda *parts: OrderedDict(dict_of(*parts))),
    Counter: ("Counter", _items, lambda *parts: Counter(dict_of(*parts))),
    defaultdict: ("defaultdict", _defaultdict_parts, _defaultdict_of),
    deque: ("deque", lambda value: [value.maxlen, *value], _deque_of),
    # JSON has the next four; they are tagged only where it cannot express the value.
    dict: ("dict", lambda value: [*chain.from_iterable(value.items())], dict_of),
    str: (  # with a lone surrogate: UTF-8 has none, and JSON's escapes would join two of them
        "str",
        lambda value: _base64(value.encode("utf-8", "surrogatepass")),
        lambda *parts: _bytes_of(*parts).decode("utf-8", "surrogatepass"),
    ),
    int: ("int", lambda value: [hex(value)], partial(int, base=16)),
    float: ("float", _float_parts, _float_of),
    tuple: ("tuple", tuple, lambda *parts: parts),
    set: ("set", list, partial(_set_of, set)),
    frozenset: ("frozenset", list, partial(_set_of, frozenset)),
    bytes: ("bytes", _base64, _bytes_of),
    bytearray: ("bytearray", _base64, lambda *parts: bytearray(_bytes_of(*parts))),
    datetime: ("datetime", _moment_parts, partial(_moment_of, datetime)),
    date: ("date", lambda value: [value.isoformat()], date.fromisoformat),
    time: ("time", _moment_parts, partial(_moment_of, time)),
    timedelta: (
        "timedelta",
        lambda value: [value.days, value.seconds, value.microseconds],
        timedelta,
    ),
    Decimal: ("decimal", lambda value: [str(value)], _decimal_of),
    UUID: ("uuid", _uuid_parts, _uuid_of),
    PosixPath: ("PosixPath", _path_parts, PosixPath),
    WindowsPath: ("WindowsPath", _path_parts, WindowsPath),
    PurePosixPath: ("PurePosixPath", _path_parts, PurePosixPath),
    PureWindowsPath: ("PureWindowsPath", _path_parts, PureWindowsPath),
    complex: ("complex", lambda value: [value.real, value.imag], _complex_of),
    range: ("range", lambda value: [value.start, value.stop, value.step], range),
}
# By id: a class may have a metaclass with a hostile ``__hash__`` or ``__eq__``.
BY_ID = {id(kind): row for kind, row in TYPES.items()}
"""A type's tag, how it is taken apart, and how it is rebuilt."""
BY_TAG = {tag: value_of for tag, _, value_of in TYPES.values()}
"""How the value of a tag is rebuilt from its parts."""
