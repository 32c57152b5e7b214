"""What becomes of a result before a store keeps it, and when it is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.state.encoding import decode, encode
from flowrun.state.json_serializer import JsonSerializer
from flowrun.state.pickle_serializer import PickleSerializer
from flowrun.state.records import EncodedResult
from flowrun.state.serializers import ResultSerializer, checked_serializer, serializer_name

LONGEST = 1_000_000


class ApiError(Exception):
    """Pickles, but cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Response:
    def __init__(self, body: object) -> None:
        self.body = body


class Slotted:
    __slots__ = "body"  # noqa: PLC0205 - a single name is allowed, too

    def __init__(self, body: object) -> None:
        self.body = body


class Shifty:
    """Comes back as a number."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, (7,)


class Plain:
    """The serializer that people write first."""

    def serialize(self, value: object) -> bytes:
        return json.dumps(value).encode()

    def deserialize(self, data: bytes) -> object:
        return json.loads(data)


def encoded(serializer: Any, value: object, longest: int = LONGEST) -> EncodedResult:
    return encode(serializer, value, longest=longest, run_id="run-1", task_name="load")


def refusal(serializer: Any, value: object, longest: int = LONGEST) -> str:
    with pytest.raises(ResultNotStorableError) as caught:
        encoded(serializer, value, longest)
    error = caught.value
    assert (error.run_id, error.task_name) == ("run-1", "load")
    message = str(error)
    assert message.startswith("the result of task 'load' in run 'run-1' cannot be kept by the ")
    assert message.endswith("or declare the task with retain_result=False")
    return message


@pytest.mark.parametrize(
    ("serializer", "name"),
    [
        (JsonSerializer(), "json"),
        (PickleSerializer(), "pickle"),
        (PickleSerializer(key=bytes(16)), "pickle+hmac-sha256"),
        (Plain(), f"{__name__}.Plain"),
    ],
)
def test_result_is_encoded_under_the_serializers_name(serializer: Any, name: str) -> None:
    found = encoded(serializer, {"rows": [1, None]})
    assert found == EncodedResult(name, serializer.serialize({"rows": [1, None]}))
    assert decode(serializer, *found) == {"rows": [1, None]}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (ApiError(1, "x"), "result"),
        ({"rows": 9, "errors": [ApiError(1, "x")]}, "result['errors'][0]"),
        ([1, (2, {"a": ApiError(1, "x")}), "y"], "result[1][1]['a']"),
        ([*range(999), {ApiError(1, "x")}], "<an element of result[999]>"),
        ({ApiError(1, "x"): 1}, "<a key of result>"),
        ([Response([ApiError(1, "x")])], "result[0].body[0]"),
        ([Slotted(ApiError(1, "x"))], "result[0].body"),
    ],
)
def test_result_that_cannot_be_read_back_is_refused_with_its_place(  # D1
    value: object, place: str
) -> None:
    message = refusal(PickleSerializer(), value)
    assert f"serializer: {place} ({__name__}.ApiError) cannot be read back: " in message
    assert "missing 1 required positional argument" in message


def test_result_that_comes_back_as_another_type_is_refused() -> None:  # D1
    assert f"result: {__name__}.Shifty would come back as int. Return" in refusal(
        PickleSerializer(), Shifty()
    )
    assert "result: tuple would come back as list" in refusal(Plain(), (1, 2))


def test_error_of_a_serializer_that_names_no_place_gets_one() -> None:  # D1
    message = refusal(Plain(), {"rows": [1, {"x": [b"a", 2]}]})
    assert "result['rows'][1]['x'][0] (bytes): TypeError: Object of type bytes" in message


def test_place_that_a_serializer_names_is_kept() -> None:  # D1
    assert "serializer: result['a'][1]: object cannot be kept by JsonSerializer: it has" in (
        refusal(JsonSerializer(), {"a": [1, object()]})
    )
    assert "serializer: result[0]: function cannot be pickled" in (
        refusal(PickleSerializer(), [lambda: 1])
    )


@pytest.mark.parametrize("serializer", [JsonSerializer(), PickleSerializer()])
def test_result_that_is_too_long_is_refused(serializer: Any) -> None:
    assert "it comes to 1,0" in refusal(serializer, "x" * 1000, longest=1000)
    assert "SQLite keeps at most 1,000 in a row" in refusal(serializer, "x" * 1000, longest=1000)


class Odd(Plain):
    """Returns what it is told to return."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def serialize(self, value: object) -> Any:
        return self.kind(super().serialize(value))


@pytest.mark.parametrize("kind", [bytearray, memoryview, type("Bytes", (bytes,), {})])
def test_bytes_like_results_become_bytes(kind: Any) -> None:
    _, data = encoded(Odd(kind), [1])
    assert data == b"[1]"
    assert type(data) is bytes


def test_serializer_that_returns_no_bytes_is_named() -> None:
    assert "serializer: its serialize() returned str, not bytes. Return" in refusal(Odd(str), [1])


def test_faithful_serializer_is_not_read_back() -> None:
    class Trusted(Plain):
        faithful = True

        def deserialize(self, data: bytes) -> object:
            raise AssertionError

    assert encoded(Trusted(), (1,)).data == b"[1]"
    Trusted.faithful = 1  # type: ignore[assignment]
    assert "cannot be read back: AssertionError" in refusal(Trusted(), (1,))


class Hostile:
    """Raises whatever is asked of it."""

    def __init__(self, error: type[BaseException]) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")("no")

    def fail(self, *args: object) -> Any:
        raise object.__getattribute__(self, "error")("no")

    __bool__ = __eq__ = __len__ = __str__ = __repr__ = __iter__ = __reduce_ex__ = fail
    __hash__ = fail  # type: ignore[assignment]


class HostileMeta(type):
    """A class that cannot be hashed, compared or named."""

    def __hash__(cls) -> int:
        raise SystemExit

    def __eq__(cls, other: object) -> bool:
        raise SystemExit

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise SystemExit


class HostileClass(metaclass=HostileMeta):
    def __reduce__(self) -> Any:
        raise SystemExit


@pytest.mark.parametrize("serializer", [JsonSerializer(), PickleSerializer(), Plain()])
@pytest.mark.parametrize("error", [SystemExit, RuntimeError, GeneratorExit])
def test_whatever_a_value_raises_is_a_refusal(serializer: Any, error: Any) -> None:
    message = refusal(serializer, {"a": [1, Hostile(error)]})
    assert "result['a'][1]" in message
    assert "result[0]" in refusal(serializer, [HostileClass()])


class Interrupted:
    """Ctrl-C comes when its pickling has failed so many times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def __reduce__(self) -> Any:
        self.failures -= 1
        raise KeyboardInterrupt if self.failures < 0 else ValueError


class LookedInto:
    """Ctrl-C comes when its attributes are looked for."""

    def __reduce__(self) -> Any:
        raise ValueError

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


class Key:
    """Ctrl-C comes when it is printed."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


class Deaf(Plain):
    def deserialize(self, data: bytes) -> object:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("serializer", "make"),
    [
        (PickleSerializer(), lambda: Interrupted(0)),
        (PickleSerializer(), lambda: [Interrupted(1)]),
        (PickleSerializer(), LookedInto),
        (Plain(), lambda: {Key(): 1}),
        (Deaf(), lambda: 1),
    ],
)
def test_ctrl_c_in_a_values_own_code_goes_through(serializer: Any, make: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        encoded(serializer, make())


def test_ctrl_c_while_the_place_is_looked_for_goes_through() -> None:
    class Strict(Plain):
        calls = 0

        def serialize(self, value: object) -> bytes:
            self.calls += 1
            raise KeyboardInterrupt if self.calls > 1 else ValueError

    with pytest.raises(KeyboardInterrupt):
        encoded(Strict(), [1])


def test_search_for_the_place_ends_in_a_value_of_any_depth_and_size() -> None:
    deep: object = ApiError(1, "x")
    for _ in range(150):
        deep = [deep]
    message = refusal(PickleSerializer(), deep)
    assert "result" + "[0]" * 100 + " (list) cannot be read back" in message
    endless: list[object] = [ApiError(1, "x")]
    endless.insert(0, endless)
    assert "result[1] (" in refusal(PickleSerializer(), endless)
    wide = [*range(1_000_000), ApiError(1, "x")]
    assert "serializer: result (list) cannot" in refusal(PickleSerializer(), wide, 10**9)


def test_json_is_readable_whatever_the_stores_serializer_is() -> None:
    data = JsonSerializer().serialize({"a": (1, 2)})
    assert decode(PickleSerializer(key=bytes(16)), "json", data) == {"a": (1, 2)}
    with pytest.raises(ResultNotReadableError):
        decode(PickleSerializer(), "json", PickleSerializer().serialize(1))


def test_stores_own_serializer_reads_what_has_its_name() -> None:
    class Json(Plain):
        name = "json"

        def deserialize(self, data: bytes) -> object:
            return "mine"

    assert decode(Json(), "json", b"1") == "mine"


def test_result_of_another_serializer_is_refused_with_both_names() -> None:  # D6
    problem = "by the 'pickle' serializer, and this store has 'json'; open the file with the"
    with pytest.raises(ResultNotReadableError, match=problem):
        decode(JsonSerializer(), "pickle", PickleSerializer().serialize(1))
    with pytest.raises(ResultNotReadableError, match=r"'json\+' serial.* has '.*\.Plain'; open"):
        decode(Plain(), "json+", b"1")


class Half(ResultSerializer):
    """Defines one method, and inherits an empty one."""

    def serialize(self, value: object, /) -> bytes:
        return b""


class OtherHalf:
    def deserialize(self, data: bytes) -> object:
        return 1


class Unset(Plain):
    serialize = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("serializer", "lacking"),
    [(Half(), "deserialize"), (OtherHalf(), "serialize"), (Unset(), "serialize")],
)
def test_half_a_serializer_is_refused(serializer: Any, lacking: str) -> None:
    kind = type(serializer).__name__
    with pytest.raises(TypeError, match=rf"{__name__}\.{kind} lacks the method {lacking}\(\)"):
        checked_serializer(serializer)


@pytest.mark.parametrize("wrong", [Plain, JsonSerializer, None, object(), json, "json"])
def test_what_is_no_serializer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a ResultSerializer, such as JsonSerializer\(\)"):
        checked_serializer(wrong)


@pytest.mark.parametrize("name", [None, "", 3])
def test_name_that_is_no_text_is_refused(name: Any) -> None:
    plain: Any = Plain()
    plain.name = name
    with pytest.raises(TypeError, match=r"the name of .*Plain is .*make it a text that never"):
        checked_serializer(plain)


def test_class_stands_for_a_name_that_is_missing() -> None:
    assert serializer_name(checked_serializer(Plain())) == f"{__name__}.Plain"
    named: Any = Plain()
    named.name = "plain-1"
    assert serializer_name(named) == "plain-1"
