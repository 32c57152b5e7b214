"""Task parameters that a run's parameters fill: how they are found, and what fits them."""

from __future__ import annotations

import datetime as dt
import enum
import sys
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest

from flowrun import Param, RunContext
from flowrun.errors import TaskTypeError
from flowrun.registry import Parameter, inspect_callable, stored_param

if TYPE_CHECKING:
    import datetime as away  # noqa: ICN001 - known to type checkers alone
    from datetime import date, datetime


class Mode(enum.Enum):
    FULL = "f"
    QUICK = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    ONE = "one"


class Bits(enum.Flag):
    A = 1


Day = Param[dt.date]
DayText = "Param[date | None]"


def found(function: Any) -> dict[str, tuple[Any, bool, bool]]:
    params = inspect_callable(function, task_name="t", dag_name="d").params
    return {each.name: (each.type, each.is_optional, each.has_default) for each in params}


def test_parameters_are_found_by_their_annotation() -> None:
    def task(
        text: Param[str],
        n: Param[int] | None,
        day: Param[date],
        when: Param[datetime | None],
        far: Param[away.date],
        alias: Day,
        aliased_text: DayText,
        mode: Annotated[Param[Mode], "doc"],
        old: Param[Optional[Decimal]],  # noqa: UP045
        *,
        pick: Param[Literal["a", 1]] = "a",
        place: Param[Path] = Path(),
        extract: list[int],
        context: RunContext[str],
    ) -> None: ...

    assert found(task) == {
        "text": (str, False, False),
        "n": (int, True, False),
        "day": (dt.date, False, False),
        "when": (dt.datetime, True, False),
        "far": (dt.date, False, False),
        "alias": (dt.date, False, False),
        "aliased_text": (dt.date, True, False),
        "mode": (Mode, False, False),
        "old": (Decimal, True, False),
        "pick": (Literal["a", 1], False, True),
        "place": (Path, False, True),
    }
    signature = inspect_callable(task, task_name="t", dag_name="d")
    assert (signature.required, signature.context_parameter) == (("extract",), "context")


def test_parameters_are_found_where_annotations_are_objects() -> None:
    def task(day, n, *rest, pick=None): ...  # type: ignore[no-untyped-def]

    task.__annotations__ = {
        "day": Param[dt.date],
        "n": Param[int] | None,
        "pick": Param[Literal["a"]],
    }
    assert found(task) == {
        "day": (dt.date, False, False),
        "n": (int, True, False),
        "pick": (Literal["a"], False, True),
    }
    assert repr(Param[dt.date]).endswith("datetime.date, flowrun.Param]")


@pytest.mark.skipif(sys.version_info < (3, 14), reason="such a name is an error before")
def test_type_may_be_known_to_type_checkers_alone() -> None:
    space: dict[str, Any] = {}
    source = "from flowrun import Param\ndef task(day: Param[date], n: Param['int']): ..."
    exec(compile(source, "<test>", "exec", dont_inherit=True), space)
    assert found(space["task"]) == {"day": (dt.date, False, False), "n": (int, False, False)}


def test_other_annotations_are_no_parameters() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = object.__hash__

    def task(a, b, c): ...  # type: ignore[no-untyped-def]

    task.__annotations__ = {"a": Annotated[int, Odd()], "b": Literal["x"], "c": "Literal['x']"}
    assert found(task) == {}


@pytest.mark.parametrize(
    "text",
    [
        "Param",
        "Param[list[int]]",
        "Param[int | str]",
        "Param[Nowhere]",
        "Param[None]",
        "Param[1]",
        "Param[Literal[Mode.FULL]]",
        "Param[Literal[b'x']]",
        "Param[Bits]",
        "Param[object]",
    ],
)
def test_parameter_of_another_type_is_refused_at_the_decorator(text: str) -> None:
    def task(day): ...  # type: ignore[no-untyped-def]

    task.__annotations__ = {"day": text}
    with pytest.raises(TaskTypeError, match="the parameter 'day' is annotated .* no supported"):
        inspect_callable(task, task_name="t", dag_name="d")


MOMENT = dt.datetime(2013, 2, 8, 1, 2, tzinfo=dt.UTC)
FITTING: list[tuple[Any, object, object]] = [
    (str, "a", "a"),
    (int, 3, 3),
    (int, "-3", -3),
    (float, 0.5, 0.5),
    (float, 2, 2.0),
    (float, "1e3", 1000.0),
    (bool, True, True),
    (bool, "No", False),
    (bool, "1", True),
    (dt.date, dt.date(2013, 2, 8), dt.date(2013, 2, 8)),
    (dt.date, "2013-02-08", dt.date(2013, 2, 8)),
    (dt.datetime, MOMENT, MOMENT),
    (dt.datetime, "2013-02-08T01:02:00+00:00", MOMENT),
    (Decimal, Decimal("1.50"), Decimal("1.50")),
    (Decimal, 2, Decimal(2)),
    (Decimal, "1.5", Decimal("1.5")),
    (Path, Path("a/b"), Path("a/b")),
    (Path, PurePosixPath("a"), Path("a")),
    (Path, "a", Path("a")),
    (Mode, Mode.FULL, Mode.FULL),
    (Mode, "FULL", Mode.FULL),
    (Mode, "f", Mode.FULL),
    (Mode, 1, Mode.QUICK),
    (Mode, "1", Mode.QUICK),
    (Level, "1", Level.LOW),
    (Word, Word.ONE, Word.ONE),
    (Literal["a", 1], "a", "a"),
    (Literal["a", 1], 1, 1),
    (Literal["a", 1], "1", 1),
]


@pytest.mark.parametrize(("kind", "value", "expected"), FITTING)
def test_value_that_fits_is_converted_and_so_is_what_is_stored_of_it(
    kind: Any, value: object, expected: object
) -> None:
    for parameter in (Parameter("p", kind), Parameter("p", kind, is_optional=True)):
        for given in (value, stored_param(value)):
            converted = parameter.convert(given)
            assert (type(converted), converted) == (type(expected), expected)


WRONG: list[tuple[Any, object]] = [
    (str, 1),
    (str, Word.ONE),
    (str, None),
    (int, True),
    (int, 1.0),
    (int, "x"),
    (int, Level.LOW),
    (float, True),
    (float, "nan"),
    (float, None),
    (bool, 1),
    (bool, "maybe"),
    (dt.date, MOMENT),
    (dt.date, "today"),
    (dt.datetime, dt.date(2013, 2, 8)),
    (dt.datetime, "x"),
    (Decimal, 0.1),
    (Decimal, True),
    (Decimal, "x"),
    (Decimal, "Infinity"),
    (Path, 1),
    (Mode, "g"),
    (Mode, Level.LOW),
    (Mode, 7),
    (Mode, [1]),
    (Literal["a", 1], "b"),
    (Literal["a", 1], True),
]


@pytest.mark.parametrize(("kind", "value"), WRONG)
def test_value_that_does_not_fit_is_refused(kind: Any, value: object) -> None:
    with pytest.raises(ValueError, match="^must be .*, not "):
        Parameter("p", kind).convert(value)


def test_kind_says_what_fits() -> None:
    assert Parameter("p", Mode).kind == "one of FULL, QUICK"
    assert Parameter("p", Literal["a", 1], is_optional=True).kind == "one of 'a', 1 or None"
    assert Parameter("p", dt.date).kind == "date"
    assert Parameter("p", int, is_optional=True).convert(None) is None


def test_what_is_stored_is_json() -> None:
    assert stored_param(Word.ONE) == "ONE"
    assert type(stored_param(type("Text", (str,), {})("a"))) is str
    assert stored_param(MOMENT) == "2013-02-08T01:02:00+00:00"
    assert [stored_param(value) for value in (None, True, 1, 0.5)] == [None, True, 1, 0.5]
    with pytest.raises(TypeError, match="holds a list"):
        stored_param([1])
