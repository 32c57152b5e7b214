"""``Param``: task parameters that a run's parameters fill, and how their values are converted."""

from __future__ import annotations

import datetime as dt
import math
import typing
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


class _Mark:
    """Tells ``Param[T]`` from any other ``Annotated[T, ...]``."""

    def __repr__(self) -> str:
        return "flowrun.Param"


MARK = _Mark()

Param = Annotated[T, MARK]
"""The annotation of a task parameter that a run's ``params`` fill; a type checker sees a ``T``.

Example:
    >>> from flowrun import build_default_engine
    >>> engine = build_default_engine()
    >>> @engine.task(dag="daily")
    ... def extract(day: Param[dt.date]) -> str:
    ...     return day.strftime("%A")
    >>> report = engine.get_run_report(
    ...     __import__("asyncio").run(engine.run_once("daily", params={"day": "2013-02-08"}))
    ... )
    >>> report["tasks"]["extract"]["result"]
    'Friday'
    >>> engine.close()
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One task parameter that a run's parameters fill.

    Attributes:
        name: Its name, in the task and in the run.
        type: A class, or a ``Literal[...]``.
        is_optional: Whether it may be ``None``.
        has_default: Whether the run may leave it out.
    """

    name: str
    type: Any
    is_optional: bool = False
    has_default: bool = False

    @property
    def kind(self) -> str:
        """Its type in words."""
        if typing.get_origin(self.type) is Literal:
            text = f"one of {', '.join(map(repr, typing.get_args(self.type)))}"
        elif issubclass(self.type, Enum):
            text = f"one of {', '.join(self.type.__members__)}"
        else:
            text = self.type.__name__
        return f"{text} or None" if self.is_optional else text

    def convert(self, value: object) -> object:
        """Return what the task is given for a value, which may also be its text.

        Raises:
            ValueError: It does not fit; the message ends what ``the parameter`` begins.
        """
        if value is None and self.is_optional:
            return None
        try:
            is_literal = typing.get_origin(self.type) is Literal
            if not is_literal and issubclass(self.type, Enum):
                return _member(self.type, value)
            if isinstance(value, Enum):
                raise TypeError  # noqa: TRY301 - as what a conversion raises
            if is_literal:
                return _chosen(((each, each) for each in typing.get_args(self.type)), value)
            return _CONVERT[self.type](value)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            msg = f"must be {self.kind}, not {value!r:.80}"
            raise ValueError(msg) from None


def parameter_of(name: str, types: list[object], *, has_default: bool) -> Parameter:
    """Return the parameter with these alternatives inside its ``Param[...]``.

    Raises:
        TypeError: A parameter cannot be of that type; the message names the remedy.
    """
    kinds = [each for each in types if each is not None and each is not type(None)]
    if len(kinds) != 1 or not _is_supported(kinds[0]):
        msg = (
            f"the parameter {name!r} is annotated with a Param of no supported type; write Param[T]"
            " with T one of str, int, float, bool, date, datetime, Decimal, Path, an Enum or a"
            " Literal of texts and numbers, or Param[T | None], and import T outside"
            " 'if TYPE_CHECKING:'"
        )
        raise TypeError(msg)
    return Parameter(name, kinds[0], len(kinds) < len(types), has_default)


def stored_param(value: object) -> object:
    """Return the JSON value that stands for the value of a parameter in the store and on screens.

    Raises:
        TypeError: Parameters do not hold such values.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool):
        return value
    for plain, make in _STORED:
        if isinstance(value, plain):
            return make(value)
    msg = f"holds a {type(value).__name__}, which no parameter can be"
    raise TypeError(msg)


_STORED: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (str, str.__str__),
    (int, int),
    (float, float),
    (dt.date, lambda value: value.isoformat()),
    (Decimal, str),
    (PurePath, str),
)


def _is_supported(kind: object) -> bool:
    if typing.get_origin(kind) is Literal:
        return all(type(each) in (str, int, bool) for each in typing.get_args(kind))
    if not isinstance(kind, type):
        return False
    return kind in _CONVERT or (issubclass(kind, Enum) and not issubclass(kind, Flag))


def _text(value: object) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
        _text(value).lower()
    ]


def _date(value: object) -> dt.date:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    return dt.date.fromisoformat(_text(value))


def _datetime(value: object) -> dt.datetime:
    return value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(_text(value))


def _decimal(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        raise TypeError
    number = Decimal(value)
    if not number.is_finite():
        raise ValueError
    return number


def _path(value: object) -> Path:
    return Path(value if isinstance(value, PurePath) else _text(value))


_CONVERT: dict[type, Callable[[object], object]] = {
    str: _text,
    int: _int,
    float: _float,
    bool: _bool,
    dt.date: _date,
    dt.datetime: _datetime,
    Decimal: _decimal,
    Path: _path,
}


def _member(kind: type[Enum], value: object) -> Enum:
    """Return a member by itself, by its name, by its value, or by the text of that."""
    if isinstance(value, kind):
        return value
    if isinstance(value, Enum):
        raise TypeError
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    return _chosen(((member, member.value) for member in kind), value)


def _chosen(choices: Iterable[tuple[T, object]], value: object) -> T:
    """Return the choice whose value, or the text of that, is this one."""
    by_text: dict[object, T] = {}
    for choice, its in choices:
        if type(its) is type(value) and its == value:
            return choice
        by_text.setdefault(str(its), choice)
    return by_text[_text(value)]
