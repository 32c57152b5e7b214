"""The values that JSON lacks, as tagged JSON objects: one table out, one table back.

A value that is not plain JSON is written as ``{"$flowrun": [name, part, ...]}``. A dict of
the user's that has that key itself is written as such an object too, so that the two are
never confused. How text is made of it and read back is ``json_text``'s business.
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

TAG = "$flowrun"

BYTES_AT_ONCE = 3 << 16
"""A multiple of three, so that the parts of long bytes need no padding between them."""


kind_of = cast("Callable[[object], type[object]]", type)
"""``type``, under a name that narrows nothing: what is checked by it stays ``Any``."""


_USUAL_NAN = struct.pack(">d", math.nan)


class UnstorableError(ValueError):
    """What is wrong with one value, or with the parts of one that is read.

    Whoever walks the result adds where it stands.
    """


def type_name(kind: type) -> str:
    """Return the name under which a reader finds the class."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def take_apart(value: object) -> tuple[str, Iterable[object]]:
    """Return the tag's name and the parts of a value that is not plain JSON.

    Raises:
        UnstorableError: The value would come back as something else, or not at all.
    """
    kind = kind_of(value)
    if kind not in _APART:
        raise UnstorableError(_refusal(kind))
    name, apart = _APART[kind]
    return name, apart(value)


def revive(found: dict[str, Any]) -> object:
    """Return what a decoded JSON object stands for: itself, unless it carries the tag.

    Raises:
        ValueError: It carries the tag but is nothing that ``take_apart`` made. (What a
            broken part raises in a constructor is left to the caller.)
    """
    if TAG not in found:
        return found
    content = found[TAG]
    if len(found) != 1 or kind_of(content) is not list or not content:
        message = f"an object with the key {TAG!r} that flowrun did not write"
        raise ValueError(message)
    name, *parts = content
    if kind_of(name) is not str or name not in _TOGETHER:
        message = (
            f"an unknown kind of value, {ascii(name)[:80]}; a newer flowrun may have written it"
        )
        raise ValueError(message)
    return _TOGETHER[name](parts)


def _refusal(kind: type) -> str:
    for base in kind.__mro__[1:]:
        if base in _APART or base is list:
            return f"it is a subclass of {base.__name__} and would come back as a plain one"
    return "it has no JSON form"


def _require(fits: bool, otherwise: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not fits:
        raise UnstorableError(otherwise)


def _bytes_apart(value: bytes | bytearray) -> Iterable[object]:
    if len(value) <= BYTES_AT_ONCE:
        return [base64.b64encode(value).decode("ascii")]
    return _long_bytes_apart(value)


def _long_bytes_apart(value: bytes | bytearray) -> Iterator[str]:
    for start in range(0, len(value), BYTES_AT_ONCE):
        yield base64.b64encode(value[start : start + BYTES_AT_ONCE]).decode("ascii")


def _bytes_together(parts: list[Any]) -> bytes:
    return b"".join([base64.b64decode(part, validate=True) for part in parts])


def _text_apart(value: str) -> list[object]:
    # Only for lone surrogates (file names of another encoding): they are no UTF-8, and
    # JSON's escapes would join two neighbours into one character.
    return [base64.b64encode(value.encode("utf-8", "surrogatepass")).decode("ascii")]


def _text_together(parts: list[Any]) -> str:
    (text,) = parts
    return base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")


def _float_apart(value: float) -> list[object]:
    bits = struct.pack(">d", value)
    # A NaN has a sign and a payload, which some programs use to tell why it is none.
    return [bits.hex() if math.isnan(value) and bits != _USUAL_NAN else repr(value)]


def _float_together(parts: list[Any]) -> float:
    (text,) = parts
    if text in {"nan", "inf", "-inf"}:
        return float(text)
    value: float = struct.unpack(">d", bytes.fromhex(text))[0]
    _require(math.isnan(value), "a tagged float that is an ordinary number")
    return value


def _int_together(parts: list[Any]) -> int:
    (text,) = parts
    return int(text, 16)


def _moment_apart(value: datetime | time) -> list[object]:
    zone = value.tzinfo
    if type(zone) is ZoneInfo:
        if zone.key is None:  # pyright: ignore[reportUnnecessaryComparison]
            message = "its ZoneInfo has no key to find it by again"
            raise UnstorableError(message)
        return [value.isoformat(), value.fold, "zone", zone.key]
    if type(zone) is timezone:
        offset, name = zone.utcoffset(None), zone.tzname(None)
        if offset and abs(offset) < _SECOND:
            # fromisoformat() of some Python versions takes such an offset for UTC.
            return [value.isoformat(), value.fold, "offset", [offset // _MICROSECOND, name]]
        if name != timezone(offset).tzname(None):
            return [value.isoformat(), value.fold, "name", name]
    elif zone is not None:
        message = f"its tzinfo is a {type_name(type(zone))}; a timezone or a ZoneInfo can be kept"
        raise UnstorableError(message)
    return [value.isoformat(), value.fold] if value.fold else [value.isoformat()]


_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_USUAL_MOMENT: tuple[Any, ...] = (0, None, None)


def _moment_together(kind: type[datetime | time]) -> Callable[[list[Any]], object]:
    def together(parts: list[Any]) -> object:
        fold, what, name = (*parts[1:], *_USUAL_MOMENT[len(parts) - 1 :])
        value = kind.fromisoformat(parts[0])
        zone = value.tzinfo
        if what == "zone":
            zone = ZoneInfo(name)
        elif what == "offset":
            microseconds, label = name
            offset = timedelta(microseconds=microseconds)
            usual = timezone(offset)
            zone = usual if label == usual.tzname(None) else timezone(offset, label)
        elif what == "name":
            # A time's offset does not depend on the day, as these zones are fixed.
            zone = timezone(value.utcoffset() or timedelta(), name)
        return value.replace(tzinfo=zone, fold=fold)

    return together


def _date_together(parts: list[Any]) -> date:
    (text,) = parts
    return date.fromisoformat(text)


def _timedelta_together(parts: list[Any]) -> timedelta:
    days, seconds, microseconds = parts
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


def _decimal_together(parts: list[Any]) -> Decimal:
    (text,) = parts
    value = Decimal(text)
    # A thread that switched decimal's traps off gets NaN instead of an error.
    _require(not value.is_nan() or "nan" in text.lower(), "a Decimal that is no number")
    return value


def _uuid_apart(value: UUID) -> list[object]:
    if value.is_safe is SafeUUID.unknown:
        return [str(value)]
    return [str(value), value.is_safe.value]


def _uuid_together(parts: list[Any]) -> UUID:
    text, safe = (*parts, None)[:2]
    return UUID(text, is_safe=SafeUUID(safe))


def _path_apart(value: PurePath) -> list[object]:
    text = str(value)
    _require(type(value)(text).parts == value.parts, "its text would be read as another path")
    return [text]


def _path_together(kind: type[PurePath]) -> Callable[[list[Any]], PurePath]:
    def together(parts: list[Any]) -> PurePath:
        (text,) = parts
        return kind(text)

    return together


def _complex_together(parts: list[Any]) -> complex:
    real, imaginary = parts
    _require(
        type(real) is type(imaginary) is float, "a complex number of something else than two floats"
    )
    return complex(real, imaginary)


def _set_together(kind: type[set[Any] | frozenset[Any]]) -> Callable[[list[Any]], object]:
    def together(parts: list[Any]) -> object:
        value = kind(parts)
        _require(len(value) == len(parts), "a set with an element that stands in it twice")
        return value

    return together


def _dict_together(parts: list[Any]) -> dict[Any, Any]:
    value = dict(zip(parts[::2], parts[1::2], strict=True))
    _require(2 * len(value) == len(parts), "a dict with a key that stands in it twice")
    return value


_APART: dict[type, tuple[str, Callable[[Any], Iterable[object]]]] = {
    # The first four are tagged only where JSON cannot have them as they are.
    dict: ("dict", lambda value: itertools.chain.from_iterable(value.items())),
    str: ("str", _text_apart),
    int: ("int", lambda value: [hex(value)]),
    float: ("float", _float_apart),
    tuple: ("tuple", lambda value: value),
    set: ("set", lambda value: value),
    frozenset: ("frozenset", lambda value: value),
    bytes: ("bytes", _bytes_apart),
    bytearray: ("bytearray", _bytes_apart),
    datetime: ("datetime", _moment_apart),
    date: ("date", lambda value: [value.isoformat()]),
    time: ("time", _moment_apart),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", lambda value: [str(value)]),
    UUID: ("uuid", _uuid_apart),
    PurePosixPath: ("PurePosixPath", _path_apart),
    PureWindowsPath: ("PureWindowsPath", _path_apart),
    type(Path()): (type(Path()).__name__, _path_apart),
    complex: ("complex", lambda value: [value.real, value.imag]),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
}

_TOGETHER: dict[str, Callable[[list[Any]], object]] = {
    "dict": _dict_together,
    "str": _text_together,
    "int": _int_together,
    "float": _float_together,
    "tuple": tuple,
    "set": _set_together(set),
    "frozenset": _set_together(frozenset),
    "bytes": _bytes_together,
    "bytearray": lambda parts: bytearray(_bytes_together(parts)),
    "datetime": _moment_together(datetime),
    "date": _date_together,
    "time": _moment_together(time),
    "timedelta": _timedelta_together,
    "decimal": _decimal_together,
    "uuid": _uuid_together,
    "PurePosixPath": _path_together(PurePosixPath),
    "PureWindowsPath": _path_together(PureWindowsPath),
    "PosixPath": _path_together(PosixPath),
    "WindowsPath": _path_together(WindowsPath),
    "complex": _complex_together,
    "range": lambda parts: range(*parts),
}
