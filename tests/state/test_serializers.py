"""What the serializers keep, what they refuse, and what they make of damaged bytes."""

from __future__ import annotations

import base64
import collections
import dataclasses
import decimal
import enum
import hmac
import json
import math
import os
import pickle
import random
import sqlite3
import struct
import sys
import threading
import time as clock
import types
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.state.json_serializer import JsonSerializer
from flowrun.state.pickle_serializer import PickleSerializer
from flowrun.state.serializers import ResultSerializer, is_small

KEY = b"0123456789abcdef"
BERLIN = ZoneInfo("Europe/Berlin")
BIG_DIGITS = 5000
WINTER = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "winter"))


def same(left: Any, right: Any) -> bool:
    """Compare type for type, part for part; ``==`` alone is far too kind."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("d", left) == struct.pack("d", right)
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, collections.deque):
        return left.maxlen == right.maxlen and same([*left], [*right])
    if isinstance(left, collections.defaultdict) and left.default_factory != right.default_factory:
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (set, frozenset)) and len(left) > 100:  # pairing them takes too long
        return left == right and set(map(type, left)) == set(map(type, right))
    if isinstance(left, (set, frozenset)):
        rest = list(right)
        for item in left:
            found = [index for index, other in enumerate(rest) if same(item, other)]
            if not found:
                return False
            del rest[found[0]]
        return not rest
    if isinstance(left, (datetime, time)):
        zones = [(type(zone), repr(zone)) for zone in (left.tzinfo, right.tzinfo)]
        return (
            left.replace(tzinfo=None) == right.replace(tzinfo=None)
            and left.fold == right.fold
            and zones[0] == zones[1]
        )
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, range):
        return [left.start, left.stop, left.step] == [right.start, right.stop, right.step]
    if isinstance(left, uuid.UUID):
        return left == right and left.is_safe is right.is_safe
    return bool(left == right)


def kept(value: object, serializer: ResultSerializer | None = None) -> object:
    serializer = serializer or JsonSerializer()
    return serializer.deserialize(serializer.serialize(value))


fixed_zones = st.builds(
    timezone,
    st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59)),
) | st.builds(timezone, st.just(timedelta(hours=1)), st.text(max_size=5))
zones = (
    st.none() | fixed_zones | st.sampled_from([BERLIN, ZoneInfo("UTC"), ZoneInfo("Asia/Kathmandu")])
)
any_text = st.text(st.characters(exclude_categories=()), max_size=8)
plain_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
plain = st.recursive(
    plain_leaves,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=30,
)
hashable_leaves = (
    plain_leaves
    | any_text
    | st.floats()
    | st.complex_numbers()
    | st.binary(max_size=10)
    | st.dates()
    | st.datetimes(timezones=zones).flatmap(
        lambda value: st.sampled_from([value, value.replace(fold=1 - value.fold)])
    )
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.integers(-(10**6), 10**6).map(lambda number: number**900)
    | st.builds(range, st.integers(), st.integers(), st.integers(1, 9))
    | st.lists(st.sampled_from(["/", "a", "..", ".", "c:", "b c", "\\", "\udc80"])).map(
        lambda parts: PurePosixPath(*parts)
    )
    | st.lists(st.sampled_from(["/", "a", "..", "C:", "\\\\host\\share"])).map(
        lambda parts: PureWindowsPath(*parts)
    )
    | st.just(Path("/tmp"))
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
leaves = hashable_leaves | st.decimals() | st.binary(max_size=10).map(bytearray)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
        | st.dictionaries(st.sampled_from(["$flowrun", "a", "b"]) | any_text, inner, max_size=4)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.builds(
            lambda kind, items: kind(items),
            st.sampled_from([collections.OrderedDict, collections.Counter]),
            st.dictionaries(hashables, inner, max_size=4),
        )
        | st.builds(
            collections.defaultdict,
            st.sampled_from([None, int, list, dict, collections.Counter]),
            st.dictionaries(any_text, inner, max_size=4),
        )
        | st.builds(collections.deque, st.lists(inner, max_size=4), st.none() | st.integers(0, 5))
    ),
    max_leaves=20,
)
easy = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@easy
@given(values)
def test_every_supported_value_comes_back_type_for_type(value: object) -> None:  # D1
    assert same(kept(value), value)


@pytest.mark.no_cover
@easy
@given(plain)
def test_plain_json_is_written_as_json_dumps_would(value: object) -> None:
    data = JsonSerializer().serialize(value)
    assert same(json.loads(data), value) or '"$flowrun"' in data.decode()
    if '"$flowrun"' not in data.decode():
        assert data == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.no_cover
@easy
@given(values, st.integers(1, 12))
def test_a_depth_limit_allows_exactly_what_it_can_read_again(value: object, depth: int) -> None:
    serializer = JsonSerializer(max_depth=depth)
    data = JsonSerializer().serialize(value)
    try:
        limited = serializer.serialize(value)
    except ResultNotStorableError:
        with pytest.raises(ResultNotReadableError, match="max_depth"):
            serializer.deserialize(data)
    else:
        assert limited == data
        assert same(serializer.deserialize(limited), value)


@pytest.mark.parametrize(
    "value",
    [
        {"$flowrun": ["tuple", 1]},
        {"$flowrun": 1, "other": 2},
        {"$flowrun": {"$flowrun": ["set", 1, 1]}},
        [{"$flowrun": []}],
        {1: 2, "1": 3, None: 4, (1, 2): 5, True and "x": 6},
        10**BIG_DIGITS,
        [-(10**BIG_DIGITS), 7],
        range(10**BIG_DIGITS),
        "\ud83d\ude00",  # two lone surrogates, not one character
        {"\udcff": 1},
        {"a": {"\udcff": 1}},
        struct.unpack("d", struct.pack("Q", 0xFFF8000000000001))[0],
        [1.0, -0.0, math.inf, -math.inf, math.nan, -math.nan],
        complex(-0.0, math.nan),
        uuid.uuid1(),
        uuid.UUID(int=5, is_safe=uuid.SafeUUID.unsafe),
        datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
        datetime(2024, 10, 27, 2, 30, fold=1),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "winter")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))),
        time(1, tzinfo=timezone(timedelta(microseconds=7), "sliver")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "GMT")),
        datetime(2024, 1, 1, tzinfo=UTC),
        time(1, 2, 3, tzinfo=timezone(timedelta(hours=-3), "x\udc80")),
        time(2, 30, tzinfo=BERLIN, fold=1),
        timedelta.min,
        Decimal("sNaN123"),
        Decimal("-0E-20"),
        Path("no/such\udc80file"),
        PureWindowsPath("C:"),
        {frozenset({(1, b"x")}): {1, 2.5}},
        (),
        set(),
        [[], {}, (), ""],
        bytearray(b"ab"),
        b"",
        collections.OrderedDict([("b", 1), ("a", collections.OrderedDict())]),
        collections.Counter({"a": -1, (1, 2): 0}),
        collections.deque([1, (2,)], maxlen=3),
        collections.deque(maxlen=0),
        collections.deque(range(1000)),
        collections.defaultdict(None, {1: 2}),
        collections.defaultdict(collections.deque, {"a": collections.deque([1])}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_awkward_values_come_back_type_for_type(value: object) -> None:  # D1
    assert same(kept(value), value)
    assert same(kept([{"there": value}]), [{"there": value}])


@pytest.mark.parametrize(
    "text", [r".\C:a", "./x:y:z", r"C:a", r"C:\a", r"\\host\share\a", "a/../C:b"]
)
def test_a_windows_path_comes_back_with_its_parts_or_is_refused(text: str) -> None:  # D1
    path = PureWindowsPath(text)
    # Python 3.11 writes the first two as paths on a drive, which they are not.
    try:
        found = kept([path])
    except ResultNotStorableError as error:
        assert str(error).startswith("result[0]: pathlib")
        assert PureWindowsPath(str(path)).parts != path.parts
    else:
        assert isinstance(found, list)
        assert found[0].parts == path.parts


def test_shared_parts_come_back_as_copies() -> None:
    shared = [1]
    first, second = kept((shared, shared))  # type: ignore[misc]
    assert first == second == [1]
    assert first is not second


def test_decimals_do_not_depend_on_the_threads_context() -> None:
    value = Decimal("1." + "1" * 60)
    data = JsonSerializer().serialize(value)
    with decimal.localcontext(prec=3, traps=[]):
        assert same(JsonSerializer().deserialize(data), value)
        with pytest.raises(ResultNotReadableError):
            JsonSerializer().deserialize(b'{"$flowrun":["decimal","twelve"]}')


def test_sql_can_query_plain_results() -> None:
    data = JsonSerializer().serialize({"rows": [{"city": "Zürich"}], "when": date(2024, 1, 2)})
    with sqlite3.connect(":memory:") as connection:
        row = connection.execute(
            "select json_extract(?, '$.rows[0].city'), json_extract(?, '$.when.\"$flowrun\"[1]')",
            (data.decode(), data.decode()),
        ).fetchone()
    connection.close()
    assert row == ("Zürich", "2024-01-02")


ROWS = [
    {"id": index, "name": f"row {index}", "amount": index * 1.5, "note": None}
    for index in range(20_000)
]


def large_values() -> Iterator[tuple[str, object]]:
    yield "rows", ROWS
    yield "rows inside", {"head": 1, "rows": ROWS, "tail": {"x": [1]}}
    yield "rows first inside", {"rows": ROWS, "again": ROWS}
    yield "dated rows", [{"id": index, "at": datetime(2024, 1, 1)} for index in range(20_000)]
    yield "tuples", tuple((index, index + 1) for index in range(40_000))
    yield "set", set(range(200_000))
    yield "dict", {f"key {index}": index for index in range(50_000)}
    yield "number keys", dict.fromkeys(range(100_000), "v")
    yield "escaped dict", {"$flowrun": ROWS, "x": tuple(ROWS)}
    yield "text", 'ä"\\\n\u2028' * 600_000
    yield "text with lone surrogates", "\ud800" + "ä" * 1_500_000
    yield "texts", ["\U0001f600" * 300_000, "x" * 900_000, "y"]
    yield "long texts", ["x" * 2000] * 600
    yield "bytes", os.urandom(1_000_000)
    yield "bytearrays", {"a": bytearray(900_000), "b": [b"x" * 700_000]}
    yield (
        "NaN here and there",
        [math.nan if index % 1000 == 0 else float(index) for index in range(90_000)],
    )
    yield "long ints", [10**BIG_DIGITS] * 300
    yield "deep and wide", {"a": [{"b": [{"c": [(ROWS, [ROWS[:9]])]}]}]}
    yield "deep", nested_lists(200, ROWS)
    yield "brackets in texts", [{"text": '}]"{[\\' * 5}] * 20_000


def nested_lists(depth: int, inside: object) -> object:
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(*pair, id=pair[0]) for pair in large_values()]
)
def test_large_values_come_back_type_for_type(name: str, value: object) -> None:  # D1
    data = JsonSerializer().serialize(value)
    assert len(data) > 500_000
    assert same(JsonSerializer().deserialize(data), value)
    if "$flowrun" not in data[:5000].decode(errors="replace") and name.startswith("rows"):
        assert json.loads(data) == value


@pytest.mark.no_cover
@pytest.mark.parametrize("style", [{"indent": 2}, {"indent": 0, "separators": (",", " : ")}])
def test_text_that_was_reformatted_by_hand_is_still_read(style: dict[str, Any]) -> None:
    value = {"rows": [*ROWS, [], {}, "x"], "tuple": (1, 2, datetime(2024, 1, 1))}
    text = json.dumps(json.loads(JsonSerializer().serialize(value)), **style)
    assert same(JsonSerializer().deserialize(text.encode()), value)


@pytest.mark.no_cover
def test_lines_broken_at_unusual_places_are_read_as_json() -> None:
    value = {"rows": ROWS, "more": {"x": 1, "y": (1, 2)}}
    text = json.dumps(json.loads(JsonSerializer().serialize(value)))
    for old, new in [
        (",", "\n,"),
        (":", ":\n"),
        ("{", "{\n"),
        ("}", "\n}"),
        ("]", "]\n"),
        ('"y":', '\n"y":\n'),
    ]:
        assert same(JsonSerializer().deserialize(text.replace(old, new).encode()), value)


PAD = " " * 300_000


@pytest.mark.parametrize(
    "text",
    [
        "[\n1\n2\n]",
        "[\n1,\n]",
        "[\n1\n}",
        "[\n1\n],",
        "[\n1\n]]",
        "[\n1\n]\n]",
        "]\n",
        "[\n,\n]",
        "[\n1,",
        "[\n",
        "1,\n2",
        "1\n2",
        "[\n1\n]\n[\n2\n]",
        "[\n1],[2\n]",
        '{\n"a":1},{"b":2\n}',
        '{\n"a"[\n1\n]\n}',
        '{\n"a":1,"b":[\n1\n]\n}x',
        "{\n1\n}",
        "[\n1 [\n2\n]\n]",
        "{\n{\n}\n}",
        '{\n"$flowrun":["tuple",1],\n"a":1\n}',
        '{\n"$flowrun":[\n"tuple",\n1\n]\n,"a":1\n}',
        '{\n"$flowrun":[\n"no such kind"\n]\n}',
        '{\n"$flowrun":[\n"set",\n[]\n]\n}',
        "[\nNaN\n]",
    ],
)
def test_long_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ResultNotReadableError):
        JsonSerializer().deserialize((text + "\n" + PAD).encode())


def test_a_long_text_may_have_its_tag_in_one_line() -> None:
    text = '{\n"$flowrun":["tuple",1]\n}\n' + PAD
    assert JsonSerializer().deserialize(text.encode()) == (1,)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["datetime","2024-01-01T00:00:00+01:00",0,"name","winter"]', WINTER),
        ('["time","01:02:00+01:00",0,"name","winter"]', WINTER.timetz().replace(hour=1, minute=2)),
        ('["bytes","YWJj","ZGU="]', b"abcde"),
        ('["bytearray","YWJj","ZGU="]', bytearray(b"abcde")),
    ],
)
def test_values_that_earlier_releases_wrote_in_another_way_are_read(
    text: str, value: object
) -> None:  # D1
    assert same(JsonSerializer().deserialize(f'{{"$flowrun":{text}}}'.encode()), value)


def test_pieces_that_earlier_releases_wrote_are_read() -> None:  # D1
    rows = ",\n".join(
        json.dumps(ROWS[start : start + 999])[1:-1] for start in range(0, 20_000, 999)
    )
    for head, tail, value in [
        ("[\n", "\n]", ROWS),
        ('{\n"$flowrun":[\n"tuple",\n', "\n]\n}", tuple(ROWS)),
        ('{\n"head":1,\n"rows":[\n', '\n],\n"tail":2\n}', {"head": 1, "rows": ROWS, "tail": 2}),
        ("[\n[\n", "\n],\n1\n]", [ROWS, 1]),
    ]:
        assert same(JsonSerializer().deserialize((head + rows + tail).encode()), value)


def longest_stall(action: Callable[[], object]) -> tuple[float, float]:
    """Return how long the action took, and for how long nothing else could run."""
    done, ready = threading.Event(), threading.Event()
    gaps: list[float] = []

    def tick() -> None:
        last = clock.perf_counter()
        ready.set()
        while not done.wait(0.001):
            now = clock.perf_counter()
            gaps.append(now - last)
            last = now
        gaps.append(clock.perf_counter() - last)

    thread = threading.Thread(target=tick)
    thread.start()
    ready.wait(20)
    start = clock.perf_counter()
    action()
    took = clock.perf_counter() - start
    done.set()
    thread.join(20)
    return took, max(gaps)


@pytest.mark.once
@pytest.mark.no_cover
@pytest.mark.parametrize("direction", ["serialize", "deserialize"])
@pytest.mark.parametrize(
    "serializer", [JsonSerializer(), PickleSerializer()], ids=lambda one: one.name
)
def test_other_threads_run_while_a_large_value_is_handled(serializer: Any, direction: str) -> None:
    value = [dict(row) for row in ROWS * 15]
    argument = value if direction == "serialize" else serializer.serialize(value)
    # A busy machine may stall any one try; a call that never lets go stalls all of them.
    tries = [longest_stall(lambda: getattr(serializer, direction)(argument)) for _ in range(3)]
    assert min(stall / took for took, stall in tries) < 0.5


class Colour(enum.IntEnum):
    RED = 1


class Shade(enum.StrEnum):
    DARK = "dark"


class Row(NamedTuple):
    when: object


@dataclasses.dataclass
class Record:
    when: object


@dataclasses.dataclass(slots=True)
class Slotted:
    when: object
    later: object = dataclasses.field(init=False)


class Text(str):
    __slots__ = ()


def with_attribute(value: Any) -> object:
    value.unit = "kg"
    return value


class Zone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, when: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        return "zone"


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (Colour.RED, "Colour"),
        (Shade.DARK, "Shade"),
        (Row(1), "Row"),
        (Record(1), "Record"),
        (Text("x"), "Text"),
        (type("Number", (float,), {})(1.0), "Number"),
        (type("Items", (list,), {})([1]), "Items"),
        (type("Path2", (type(Path()),), {})("x"), "Path2"),
        (type("Tally", (collections.Counter,), {})("ab"), "Tally"),
        (collections.defaultdict(lambda: 0), "collections.defaultdict"),
        (collections.defaultdict(Path), "collections.defaultdict"),
        (with_attribute(collections.OrderedDict(a=1)), "collections.OrderedDict"),
        (with_attribute(collections.Counter("ab")), "collections.Counter"),
        (datetime(2024, 1, 1, tzinfo=Zone()), "datetime.datetime"),
        (time(1, tzinfo=Zone()), "datetime.time"),
        (object(), "object"),
        (..., "ellipsis"),
        (len, "builtin_function_or_method"),
        (int, "type"),
        (memoryview(b"x"), "memoryview"),
        (ValueError("x"), "ValueError"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(
    value: object, type_name: str
) -> None:  # D1
    for whole, place in [
        (value, "result"),
        ([1, value], "result[1]"),
        ((value,), "result[0]"),
        ({"rows": [1, 2, 3, {"x": value}]}, "result['rows'][3]['x']"),
        ({"a": {(1, "b"): [value]}}, "result['a'][(1, 'b')][0]"),
        ([*ROWS[:3000], {"x": value}], "result[3000]['x']"),
    ]:
        with pytest.raises(ResultNotStorableError) as caught:
            JsonSerializer().serialize(whole)
        assert str(caught.value).startswith(f"{place}: ")
        assert type_name in str(caught.value)
        assert "PickleSerializer" in str(caught.value)


def test_a_zone_that_no_key_leads_back_to_is_refused() -> None:
    for folder in ("/usr/share/zoneinfo", *sys.path):
        file = Path(folder, "tzdata/zoneinfo/UTC" if "zoneinfo" not in folder else "UTC")
        if file.is_file():
            break
    else:
        pytest.skip("no time zone files here")
    with file.open("rb") as opened:
        zone = ZoneInfo.from_file(opened)
    with pytest.raises(ResultNotStorableError, match=r"^result\[0\]: .*no key"):
        JsonSerializer().serialize([datetime(2024, 1, 1, tzinfo=zone)])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"k": {object(): 1}}, "<a key of result['k']>"),
        ({"k": {(1, object()): 1}}, "<a key of result['k']>[1]"),
        ([{Colour.RED}], "<an element of result[0]>"),
        (collections.OrderedDict({"a": [1, object()]}), "result['a'][1]"),
        (collections.Counter({(1, object()): 1}), "<a key of result>[1]"),
        (collections.defaultdict(list, {1: 2, "a": object()}), "result['a']"),
        (collections.deque([1, object()], 5), "result[1]"),
        ({"a" * 500: object()}, "result['" + "a" * 76 + "...]"),
        ({(10**BIG_DIGITS,): object()}, "result[<tuple>]"),
        ({"\x1b[31m\u202e": object()}, "result['\\x1b[31m\\u202e']"),
    ],
)
def test_a_refusal_names_keys_and_elements_and_prints_them_safely(
    value: object, place: str
) -> None:
    with pytest.raises(ResultNotStorableError) as caught:
        JsonSerializer().serialize(value)
    assert str(caught.value).startswith(f"{place}: ")


def test_a_value_that_contains_itself_is_refused_with_its_place() -> None:
    items: list[object] = [1]
    items.append({"again": (items,)})
    with pytest.raises(ResultNotStorableError, match=r"^result\[1\]\['again'\]\[0\]: .*itself"):
        JsonSerializer().serialize(items)
    many: list[object] = []
    many.extend([many] * 100)
    with pytest.raises(ResultNotStorableError, match=r"^result\[0\]: .*itself"):
        JsonSerializer().serialize(many)


def test_a_value_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ResultNotStorableError, match="max_depth"):
        JsonSerializer().serialize(nested_lists(100_000, 1))
    for depth in (1, 8, 9, 500):
        serializer = JsonSerializer(max_depth=depth)
        assert kept(nested_lists(depth, 1), serializer) == nested_lists(depth, 1)
        with pytest.raises(ResultNotStorableError, match=rf"{depth} levels"):
            serializer.serialize(nested_lists(depth + 1, 1))
        with pytest.raises(ResultNotStorableError, match=rf"{depth} levels"):
            serializer.serialize(nested_lists(depth - 1, ()))


def test_a_tagged_value_with_parts_is_nested_too() -> None:
    value = datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1)))
    assert same(kept([value], JsonSerializer(max_depth=4)), [value])
    with pytest.raises(ResultNotStorableError, match=r"^result\[0\]: nested more deeply"):
        JsonSerializer(max_depth=3).serialize([value])


def test_a_class_without_a_module_is_named() -> None:
    scope: dict[str, Any] = {}
    exec("Homeless = type('Homeless', (), {})", scope)
    with pytest.raises(ResultNotStorableError, match=r"^result: Homeless cannot be kept"):
        JsonSerializer().serialize(scope["Homeless"]())


def test_a_class_that_claims_to_be_another_is_not_trusted() -> None:
    class Liar(type):
        def __hash__(cls) -> int:
            return hash(int)

        def __eq__(cls, other: object) -> bool:
            return True

    class Number(int, metaclass=Liar):
        pass

    for value in (Number(1), [Number(1)], {"a": Number(1)}, {Number(1): 1}):
        with pytest.raises(ResultNotStorableError, match="it is a subclass of int"):
            JsonSerializer().serialize(value)
        assert not is_small(value)


@pytest.mark.parametrize(
    ("value", "small"),
    [
        (None, True),
        ("x" * 500, True),
        ("x" * 501, False),
        (2**63, False),
        ([1, "a", None], True),
        ({"a": 1.5}, True),
        ({"a": (1,)}, False),
        (tuple(range(32)), True),
        (tuple(range(33)), False),
        (dict.fromkeys(range(33)), False),
    ],
)
def test_small_is_what_takes_no_noticeable_time(value: object, small: bool) -> None:
    assert is_small(value) is small


def test_a_value_longer_than_the_limit_is_refused() -> None:
    assert JsonSerializer(max_bytes=5).serialize([1, 2]) == b"[1,2]"
    for value in ([1, 23], ROWS, "x" * 9, b"x" * 10**6):
        with pytest.raises(ResultNotStorableError, match=r"^result.*more than the 5 bytes"):
            JsonSerializer(max_bytes=5).serialize(value)
    data = JsonSerializer(max_bytes=None).serialize(ROWS)
    assert JsonSerializer(max_bytes=len(data)).serialize(ROWS) == data
    with pytest.raises(ResultNotStorableError, match="raise the limit"):
        JsonSerializer(max_bytes=len(data) - 1).serialize(ROWS)
    with pytest.raises(ResultNotReadableError, match="max_bytes"):
        JsonSerializer(max_bytes=len(data) - 1).deserialize(data)


def test_a_stack_that_is_nearly_full_is_a_refusal_too() -> None:
    value = nested_lists(8, 1)
    refusals = 0

    def dumps_from(depth: int) -> bytes:
        return JsonSerializer().serialize(value) if depth == 0 else dumps_from(depth - 1)

    limit = sys.getrecursionlimit()
    for depth in range(limit - 300, limit):
        try:
            dumps_from(depth)
        except ResultNotStorableError as error:
            assert "stack is full" in str(error)
            refusals += 1
        except RecursionError:  # No room for the call itself.
            break
    assert refusals


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_depth": 0}, {"max_depth": 501}])
def test_limits_out_of_range_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        JsonSerializer(**limits)


@easy
@given(values, st.data())
def test_damaged_text_gives_an_error_or_a_value_and_nothing_else(
    value: object, data: st.DataObject
) -> None:
    text = bytearray(JsonSerializer().serialize(value))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        JsonSerializer().deserialize(bytes(text))
    except ResultNotReadableError:
        pass


@easy
@given(st.binary(max_size=40))
def test_any_bytes_give_an_error_or_a_value_and_nothing_else(data: bytes) -> None:
    for serializer in (JsonSerializer(), PickleSerializer(key=KEY)):
        try:
            serializer.deserialize(data)
        except ResultNotReadableError:
            pass


tag_names = st.sampled_from(
    [
        "dict",
        "str",
        "int",
        "float",
        "tuple",
        "set",
        "frozenset",
        "bytes",
        "bytearray",
        "datetime",
        "date",
        "time",
        "timedelta",
        "decimal",
        "uuid",
        "PurePosixPath",
        "PureWindowsPath",
        "PosixPath",
        "WindowsPath",
        "complex",
        "range",
        "OrderedDict",
        "Counter",
        "defaultdict",
        "deque",
        "object",
        "unknown",
    ]
)
hostile_parts = plain | st.sampled_from(
    [
        "nan",
        "1e999999999999999999999",
        "../../etc/passwd",
        "zone",
        "name",
        "",
        "/",
        "2024-01-01T00:00",
        "0x10",
        10**30,
    ]
)


@easy
@given(
    st.dictionaries(
        st.just("$flowrun"),
        st.tuples(tag_names).flatmap(
            lambda name: st.lists(hostile_parts, max_size=5).map(lambda parts: [*name, *parts])
        ),
    )
)
def test_tagged_objects_of_wrong_parts_give_an_error_or_a_value_and_nothing_else(
    found: object,
) -> None:
    try:
        JsonSerializer().deserialize(json.dumps(found).encode())
    except ResultNotReadableError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nul",
        b"NaN",
        b"[Infinity]",
        b"[1,]",
        b"{1:2}",
        b"\xff",
        b'"\x00"',
        "\ufeff1".encode(),
        "[1]".encode("utf-16"),
        b"9" * 5000,
        b'{"$flowrun":1}',
        b'{"$flowrun":[]}',
        b'{"$flowrun":[["tuple"]]}',
        b'{"$flowrun":["tuple"],"x":1}',
        b'{"$flowrun":["later invention",1]}',
        b'{"$flowrun":["set",1,1]}',
        b'{"$flowrun":["set",[]]}',
        b'{"$flowrun":["dict",1]}',
        b'{"$flowrun":["dict",1,2,1,3]}',
        b'{"$flowrun":["float","1.5"]}',
        b'{"$flowrun":["float",""]}',
        b'{"$flowrun":["float","3ff0000000000000"]}',
        b'{"$flowrun":["complex",1,2]}',
        b'{"$flowrun":["complex",1.5,2]}',
        b'{"$flowrun":["bytes","&&&&"]}',
        b'{"$flowrun":["datetime","2024-01-01",0,"zone","No/Where"]}',
        b'{"$flowrun":["datetime","2024-01-01",0,"zone","../../../etc/passwd"]}',
        b'{"$flowrun":["datetime","2024-01-01",5]}',
        b'{"$flowrun":["timedelta",999999999999,0,0]}',
        b'{"$flowrun":["defaultdict","eval"]}',
        b'{"$flowrun":["defaultdict"]}',
        b'{"$flowrun":["deque",1,2,3]}',
        b'{"$flowrun":["deque","x"]}',
        b'{"$flowrun":["Counter","a"]}',
        b'{"$flowrun":["object"]}',
        b'{"$flowrun":["object",["a"]]}',
        b'{"$flowrun":["WindowsPath","x"]}'
        if os.name != "nt"
        else b'{"$flowrun":["PosixPath","x"]}',
    ],
)
def test_text_that_no_serializer_wrote_is_refused(text: bytes) -> None:
    with pytest.raises(ResultNotReadableError) as caught:
        JsonSerializer().deserialize(text)
    assert "run its task again" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b"[\n" * 200_000,
        b"[\n" * 200_000 + b"]\n" * 200_000,
        b'["]]]]",\n' * 100_000,
        b'["\\\\\\"]]","\\\\",{"x":' * 600,
        b"[" * 501 + b"]" * 501,
        b"[[]," * 501,
        b'{"$flowrun":["tuple",' * 300,
    ],
)
def test_text_nested_too_deeply_is_refused_before_it_is_decoded(text: bytes) -> None:
    with pytest.raises(ResultNotReadableError, match="nested more deeply"):
        JsonSerializer().deserialize(text)


def test_brackets_inside_of_texts_do_not_count_as_nesting() -> None:
    value = [["[{" * 1000, '\\"[[[' * 300, "\\"], {'"[': "]"}, *[[{}]] * 1000]
    assert kept(value, JsonSerializer(max_depth=3)) == value


def test_an_error_message_stays_short_and_printable() -> None:
    with pytest.raises(ResultNotReadableError) as caught:
        JsonSerializer().deserialize(json.dumps({"$flowrun": ["\x1b[31m" * 9999]}).encode())
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


pickles = pytest.mark.parametrize(
    "serializer", [PickleSerializer(), PickleSerializer(key=KEY)], ids=repr
)


@pickles
@pytest.mark.parametrize(
    "value",
    [
        None,
        {1, 2},
        Colour.RED,
        Row(1),
        collections.OrderedDict(a=1),
        Record([1]),
        Slotted(1),
        ROWS * 10,
        os.urandom(3_000_000),
        [bytearray(2_000_000), os.urandom(2_000_000), "x" * 2_000_000],
    ],
    ids=lambda value: type(value).__name__,
)
def test_pickled_values_come_back(serializer: PickleSerializer, value: object) -> None:  # D1
    found = kept(value, serializer)
    assert type(found) is type(value)
    if isinstance(value, Slotted):
        assert isinstance(found, Slotted)
        assert found.when == value.when
    else:
        assert found == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_can_be_chosen(protocol: int) -> None:
    serializer = PickleSerializer(key=KEY, protocol=protocol)
    for value in ([1, "é", None], ROWS * 3):
        assert kept(value, serializer) == value


class Buffer:
    """Hands the pickler its memory, as arrays do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        return Buffer, (pickle.PickleBuffer(self.data) if protocol >= 5 else bytes(self.data),)


@pickles
@pytest.mark.parametrize("size", [0, 1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_pickled_buffers_come_back(serializer: PickleSerializer, size: int, kind: Any) -> None:
    data = kind(os.urandom(size))
    found = kept([Buffer(data), "after"], serializer)
    assert isinstance(found, list)
    assert found[1] == "after"
    assert type(found[0].data) is kind
    assert found[0].data == data


def test_names_tell_the_serializers_apart() -> None:
    names = [one.name for one in (JsonSerializer(), PickleSerializer(), PickleSerializer(key=KEY))]
    assert names == ["json", "pickle", "pickle+hmac-sha256"]


def test_the_key_is_never_shown() -> None:  # V2
    serializer = PickleSerializer(key=KEY, protocol=4)
    assert repr(serializer) == "PickleSerializer(key=<hidden>, protocol=4)"
    assert repr(PickleSerializer()) == "PickleSerializer(key=None, protocol=5)"
    assert repr(JsonSerializer(max_bytes=9)) == "JsonSerializer(max_bytes=9, max_depth=500)"
    assert not hasattr(serializer, "__dict__")
    with pytest.raises(TypeError) as wrong_type:
        PickleSerializer(key="secret text of mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="16 bytes") as too_short:
        PickleSerializer(key=b"secret")
    assert "secret t" not in str(wrong_type.value)
    assert "b'secret" not in str(too_short.value)


@pytest.mark.parametrize("protocol", [-1, pickle.HIGHEST_PROTOCOL + 1])
def test_a_pickle_protocol_that_does_not_exist_is_refused(protocol: int) -> None:
    with pytest.raises(ValueError, match="protocol"):
        PickleSerializer(protocol=protocol)


class Bomb:
    """Unpickling it calls ``explode``."""

    exploded = False

    def __reduce__(self) -> tuple[object, ...]:
        return explode, ()


def explode() -> None:
    Bomb.exploded = True


def test_nothing_is_unpickled_before_its_signature_is_verified() -> None:  # D6
    unsigned = PickleSerializer().serialize(Bomb())
    signed = PickleSerializer(key=KEY).serialize(Bomb())
    foreign = PickleSerializer(key=KEY[::-1]).serialize(Bomb())
    # Signed over the payload alone, without the serializer's name.
    payload = pickle.dumps(Bomb())
    nameless = signed[: signed.index(b"\n") + 1] + hmac.digest(KEY, payload, "sha256") + payload
    bad = [
        unsigned,
        foreign,
        nameless,
        signed + b"x",
        signed[:-1],
        signed[:20],
        b"",
        signed[:30] + unsigned,
    ]
    randomly = random.Random(7)
    for _ in range(200):
        altered = bytearray(signed)
        altered[randomly.randrange(len(altered))] ^= 1 << randomly.randrange(8)
        bad.append(bytes(altered))
    for data in bad:
        with pytest.raises(ResultNotReadableError, match="not unpickled"):
            PickleSerializer(key=KEY).deserialize(data)
    assert not Bomb.exploded
    assert PickleSerializer(key=KEY).deserialize(signed) is None
    assert Bomb.exploded


def test_a_signed_result_is_not_read_without_the_key() -> None:
    with pytest.raises(ResultNotReadableError, match="is signed.*key"):
        PickleSerializer().deserialize(PickleSerializer(key=KEY).serialize([1]))


def test_what_a_pickle_refers_to_may_be_gone() -> None:
    module = types.ModuleType("short_lived")
    exec("class Row: pass", module.__dict__)
    sys.modules["short_lived"] = module
    try:
        data = PickleSerializer().serialize(module.Row())
        del module.Row
        with pytest.raises(ResultNotReadableError, match="moved or renamed"):
            PickleSerializer().deserialize(data)
    finally:
        del sys.modules["short_lived"]
    with pytest.raises(ResultNotReadableError, match="short_lived"):
        PickleSerializer().deserialize(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"garbage",
        b"\x80\x05\x95" + b"\xff" * 8 + b"." * 2_000_000,
        b"\x80\x05I1\n" + b"." * 2_000_000,
    ],
)
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ResultNotReadableError):
        PickleSerializer().deserialize(data)


def test_bytes_after_the_end_of_a_pickle_are_noticed() -> None:
    with pytest.raises(ResultNotReadableError, match="3 bytes follow"):
        PickleSerializer().deserialize(PickleSerializer().serialize([1]) + b"abc")


def local_class() -> type:
    class Local:
        pass

    return Local


class Moody:
    def __getstate__(self) -> object:
        raise ZeroDivisionError("not today")


class Handing:
    """Hands the pickler something that no walk can reach."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, (threading.Lock(),)


class Unreadable:
    """Cannot be pickled, nor be looked into."""

    def __reduce__(self) -> tuple[object, ...]:
        raise OSError("closed")

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        raise OSError("closed")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (threading.Lock(), "result: _thread.lock"),
        ({"rows": [1, 2, 3, Record(threading.Lock())]}, "result['rows'][3].when: _thread.lock"),
        ([Slotted({1: threading.Lock()})], "result[0].when[1]: _thread.lock"),
        ((1, local_class()()), "result[1]: "),
        ([lambda: None], "result[0]: function"),
        ([1, (x for x in ())], "result[1]: generator"),
        ({"a": None, "b": {threading.Lock()}}, "<an element of result['b']>: _thread.lock"),
        ({"a": {Row(threading.Lock()): 1}}, "<a key of result['a']>[0]: _thread.lock"),
        ([Moody()], "result[0]: "),
        ([None, Handing()], "result[1]: "),
        ([None, Unreadable()], "result"),
        ({"m": sys}, "result['m']: module"),
        ([ROWS, threading.Lock()], "result[1]: _thread.lock"),
    ],
)
def test_what_cannot_be_pickled_is_refused_with_its_place(value: object, place: str) -> None:  # D1
    with pytest.raises(ResultNotStorableError) as caught:
        PickleSerializer().serialize(value)
    assert str(caught.value).startswith(place)
    assert "cannot be pickled" in str(caught.value)


def test_the_place_is_found_in_a_value_that_contains_itself() -> None:
    items: list[object] = [1]
    items += [items, {"lock": threading.Lock()}]
    with pytest.raises(ResultNotStorableError, match=r"^result\[2\]\['lock'\]: "):
        PickleSerializer().serialize(items)


def test_a_value_nested_too_deeply_for_pickle_is_refused() -> None:
    with pytest.raises(ResultNotStorableError, match="too deeply"):
        PickleSerializer().serialize(nested_lists(100_000, 1))


def test_a_json_result_is_no_pickle_and_a_pickle_no_json() -> None:
    with pytest.raises(ResultNotReadableError):
        PickleSerializer().deserialize(JsonSerializer().serialize({"a": 1}))
    with pytest.raises(ResultNotReadableError):
        JsonSerializer().deserialize(PickleSerializer().serialize({"a": 1}))


def test_bytes_are_base64_that_others_can_read() -> None:
    found = json.loads(JsonSerializer().serialize(b"abc" * 100))
    assert base64.b64decode(found["$flowrun"][1]) == b"abc" * 100
