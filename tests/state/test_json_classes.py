"""Objects of classes that ``JsonSerializer(classes=...)`` was given (D1, D6)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrun import Engine, JsonSerializer, SqliteStateStore, build_default_engine
from flowrun.cli import main
from flowrun.errors import ResultNotReadableError, ResultNotStorableError

T = TypeVar("T")


class Status(enum.Enum):
    NEW = "new"
    DONE = ("done", 1)
    FINISHED = DONE


class Level(enum.IntEnum):
    LOW = 1


class Shade(enum.StrEnum):
    DARK = "dark"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag, boundary=enum.KEEP):
    ONE = 1


class Point(NamedTuple):
    x: object
    y: object = None


class Labelled(collections.namedtuple("Labelled", "x")):  # noqa: SLOT002 - has a __dict__
    pass


@dataclasses.dataclass
class Row:
    kind: ClassVar[str] = "row"
    id: int
    status: object = Status.NEW
    made: dataclasses.InitVar[int] = 0
    total: float = dataclasses.field(init=False)

    def __post_init__(self, made: int) -> None:
        self.total = made / 2

    @functools.cached_property
    def text(self) -> str:
        return str(self.id)


class SubRow(Row):
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    name: str
    at: Point


@dataclasses.dataclass(slots=True)
class Slotted(Generic[T]):
    value: T
    later: object = dataclasses.field(init=False)


@dataclasses.dataclass
class Once:
    """Its constructor can be called only once."""

    made: ClassVar[int] = 0
    value: object

    def __post_init__(self) -> None:
        type(self).made += 1
        assert self.made == 1


class Outer:
    @dataclasses.dataclass
    class Inner:
        value: object


CLASSES = (
    *(Status, Level, Shade, Access, Bits),
    *(Point, Labelled, Row, Key, Slotted, Once, Outer.Inner),
)
SERIALIZER = JsonSerializer(classes=CLASSES)


def written(value: object) -> str:
    return SERIALIZER.serialize(value).decode()


def kept(value: object, serializer: JsonSerializer = SERIALIZER) -> Any:
    return serializer.deserialize(serializer.serialize(value))


@pytest.mark.parametrize(
    "value",
    [
        Status.NEW,
        Status.FINISHED,
        Level.LOW,
        Shade.DARK,
        Access.READ | Access.WRITE,
        Access(0),
        ~Access.READ,
        Bits(1 | 1 << 70),
        Point((1, 2), b"y"),
        Labelled(1),
        Row(1, made=3),
        Key("a", Point(1)),
        Outer.Inner(Outer.Inner(None)),
        {Key("a", Point(1, Status.NEW)): [Row(7, Level.LOW)]},
        {Status.NEW: {Level.LOW, Access.READ}, Point(1): frozenset({Point(2)})},
        collections.deque([Row(1)], 2),
        [Row(number) for number in range(2000)],
        Outer.Inner({"$flowrun": ["object", "x"]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_given_classes_come_back_type_for_type(value: object) -> None:  # D1
    for whole in (value, {"rows": [value]}):
        back = kept(whole)
        assert back == whole
        assert repr(back) == repr(whole)
    assert type(kept(value)) is type(value)
    if isinstance(value, enum.Enum):
        assert kept(value) is value


fields = st.recursive(
    st.integers() | st.text(max_size=3) | st.sampled_from([*Status, *Level, *Shade, *Access]),
    lambda inner: (
        st.builds(Point, inner, inner)
        | st.builds(Outer.Inner, inner)
        | st.builds(Row, st.integers(), inner)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(collections.deque, st.lists(inner, max_size=3))
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(fields)
def test_whatever_they_hold_comes_back(value: object) -> None:  # D1
    assert repr(kept(value)) == repr(value)


def test_no_constructor_is_called_to_read() -> None:  # D6
    assert kept(Once(5)).value == 5
    assert Once.made == 1


def test_fields_are_kept_by_name() -> None:
    assert written(Point(1, "a")) == (f'{{"$flowrun":["object","{__name__}.Point","x",1,"y","a"]}}')
    turned = f'{{"$flowrun":["object","{__name__}.Point","y","a","x",1]}}'
    assert SERIALIZER.deserialize(turned.encode()) == Point(1, "a")


@pytest.mark.parametrize("value", [Row(1), Point(1), Status.NEW, Level.LOW, Access.READ])
def test_a_refusal_names_the_remedy(value: object) -> None:
    name = type(value).__name__
    for serializer in (JsonSerializer(), JsonSerializer(classes=[Key])):
        with pytest.raises(ResultNotStorableError) as caught:
            serializer.serialize({"rows": [value]})
        assert str(caught.value) == (
            f"result['rows'][0]: {__name__}.{name} cannot be kept by JsonSerializer: its class is"
            f" not among those it was given. Write JsonSerializer(classes=[{name}]), return what it"
            " is made of, or use PickleSerializer."
        )
    assert kept([value], JsonSerializer(classes=[type(value), Status])) == [value]


def test_a_subclass_is_not_its_base() -> None:  # D1
    with pytest.raises(ResultNotStorableError, match=r"Write JsonSerializer\(classes=\[SubRow\]"):
        SERIALIZER.serialize(SubRow(1))
    assert type(kept(SubRow(1), JsonSerializer(classes=[SubRow, Status]))) is SubRow


def test_another_class_of_the_same_name_is_not_the_given_one() -> None:  # D1
    other = type("Row", (Row,), {"__module__": __name__, "__qualname__": "Row"})
    with pytest.raises(ResultNotStorableError, match="not among those"):
        SERIALIZER.serialize(other(1))


def test_a_class_with_a_metaclass_that_knows_all_is_no_dataclass() -> None:
    class Liar(type):
        def __getattr__(cls, name: str) -> object:
            return {}

    class Anything(metaclass=Liar):
        pass

    with pytest.raises(ResultNotStorableError, match="no JSON form"):
        JsonSerializer().serialize(Anything())


def odd_row() -> Row:
    row = Row(1)
    assert row.text == "1"
    return row


def odd_tuple() -> Labelled:
    value = Labelled(1)
    value.unit = "kg"
    return value


def odd_member() -> Status:
    member = object.__new__(Status)
    member._name_, member._value_ = "NEW", "new"
    return member


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (odd_row(), "its attribute 'text' is no field"),
        (odd_tuple(), "its attribute 'unit' is no field"),
        (Slotted(1), "its attribute 'later' is not set"),
        (odd_member(), "the enum has no member of that name"),
    ],
)
def test_what_would_not_come_back_whole_is_refused(value: object, problem: str) -> None:  # D1
    with pytest.raises(ResultNotStorableError, match=rf"^result\[0\]: .*{problem}"):
        SERIALIZER.serialize([value])


def test_a_refusal_in_a_field_has_its_place() -> None:
    with pytest.raises(ResultNotStorableError, match=r"^result\.status\['a'\]: object cannot"):
        SERIALIZER.serialize(Row(1, {"a": object()}))
    with pytest.raises(ResultNotStorableError, match=r"^result\[1\]\.y\.x: object cannot"):
        SERIALIZER.serialize([1, Point(2, Point(object()))])
    inner = Outer.Inner(None)
    inner.value = inner
    with pytest.raises(ResultNotStorableError, match=r"^result\.value: .* contains itself"):
        SERIALIZER.serialize(inner)


@pytest.mark.parametrize(
    "wrong", [int, dict, object, Row(1), "Row", Slotted[int], collections.OrderedDict, Path]
)
def test_other_classes_are_refused_at_once(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"classes=\) takes dataclasses, enums and named tuples"):
        JsonSerializer(classes=[Row, wrong])


def test_what_was_written_with_classes_is_not_read_without() -> None:  # D6
    data = SERIALIZER.serialize([Point(1)])
    with pytest.raises(ResultNotReadableError) as caught:
        JsonSerializer().deserialize(data)
    assert str(caught.value) == (
        f"the stored result holds a {__name__}.Point, and objects are made only of classes that"
        " JsonSerializer was given: write JsonSerializer(classes=[Point])"
    )


def test_nothing_is_imported_to_read() -> None:  # D6
    assert "antigravity" not in sys.modules
    for name in ("antigravity.Sky", "subprocess.Popen", f"{__name__}.Once"):
        with pytest.raises(ResultNotReadableError, match="only of classes that"):
            JsonSerializer(classes=[Row]).deserialize(
                b'{"$flowrun":["object","%b","value",1]}' % name.encode()
            )
    assert "antigravity" not in sys.modules
    text = b'{"$flowrun":["object","%b"]}' % (b"\\u001b[31m" * 999)
    with pytest.raises(ResultNotReadableError) as caught:
        SERIALIZER.deserialize(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("parts", ['"x",1', '"x",1,"y",2,"z",3', '"x",1,"z",2', ""])
@pytest.mark.parametrize("name", ["Point", "Key"])
def test_other_fields_than_the_class_has_are_an_error(name: str, parts: str) -> None:  # D1
    text = ",".join([f'"object","{__name__}.{name}"', *filter(None, [parts])])
    with pytest.raises(ResultNotReadableError, match=rf"fields of .*{name} .*run its task again"):
        SERIALIZER.deserialize(f'{{"$flowrun":[{text}]}}'.encode())


@pytest.mark.parametrize(
    "parts", ['"Status","GONE"', '"Status"', '"Status","NEW",1', '"Access","x"', '"Status",[]']
)
def test_a_member_that_is_gone_is_an_error(parts: str) -> None:
    text = f'{{"$flowrun":["object","{__name__}.{parts[1:]}]}}'
    with pytest.raises(ResultNotReadableError, match="run its task again"):
        SERIALIZER.deserialize(text.encode())


def test_the_serializer_crosses_to_other_processes() -> None:
    other = pickle.loads(pickle.dumps(SERIALIZER))
    assert kept(Row(1, Status.DONE), other) == Row(1, Status.DONE)
    assert (JsonSerializer().faithful, SERIALIZER.faithful) == (True, False)


class Positive:
    """A field that refuses to be set twice."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.seen: list[object] = []

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return instance.__dict__[self.name]

    def __set__(self, instance: Any, value: object) -> None:
        assert value not in self.seen
        self.seen.append(value)
        instance.__dict__[self.name] = value


@dataclasses.dataclass(init=False)
class Moody:
    value: Any = Positive()

    def __init__(self, value: object) -> None:
        self.value = value


@contextlib.asynccontextmanager
async def open_engine(path: Path, *classes: type) -> AsyncIterator[Engine]:
    with closing(SqliteStateStore(path, JsonSerializer(classes=classes))) as store:
        async with build_default_engine(state_store=store) as engine:
            declare(engine)
            yield engine


def declare(engine: Engine) -> None:
    engine.task("rows", dag="d")(lambda: [Row(1, Status.DONE), Point(1)])

    @engine.task(dag="d")
    def total(rows: list[Any]) -> int:
        assert type(rows[0]) is Row
        return int(rows[0].id)

    engine.task("moody", dag="moody")(lambda: Moody(3))


async def test_a_file_keeps_them_and_says_what_it_needs(  # D1
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.db"
    async with open_engine(path, Row, Status, Point, Moody) as engine:
        run_id = await engine.run_once("d")
        assert engine.get_run_report(run_id)["status"] == "SUCCESS"
        moody = engine.get_run_report(await engine.run_once("moody"))["tasks"]["moody"]
        assert moody["status"] == "FAILED", "it cannot be read back"
        assert "cannot be read back: AssertionError" in (moody["error"] or "")
    async with open_engine(path, Row, Status, Point) as engine:
        again = await engine.resume(run_id, from_tasks=["total"])
        report = engine.get_run_report(again)
        assert report["tasks"]["rows"]["result"] == [Row(1, Status.DONE), Point(1)]
    async with open_engine(path) as engine:
        needed = r"task 'rows'.*JsonSerializer\(classes=\[(Row|Status)\]\)"
        with pytest.raises(ResultNotReadableError, match=needed):
            engine.get_run_report(run_id)
        assert ".Row" in engine.report_html(run_id)
    with closing(SqliteStateStore(path)) as store:
        assert store.load_run(run_id, results=False).tasks["rows"].status == "SUCCESS"
    assert main(["result", str(path), run_id, "rows"]) == 1
    assert "add --json" in capsys.readouterr().err
    assert main(["result", str(path), run_id, "rows", "--json"]) == 0
    assert f"{__name__}.Row" in capsys.readouterr().out
