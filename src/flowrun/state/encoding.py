"""A result to the bytes that a store keeps, and back; what would not come back is refused.

``flowrun.state.serializers`` says what a serializer is. This module decides whether what it made
may be kept (D1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.failure import error_line
from flowrun.state.json_serializer import JsonSerializer
from flowrun.state.records import EncodedResult
from flowrun.state.serializers import serializer_name, smallest_failing, type_name

if TYPE_CHECKING:
    from flowrun.state.serializers import ResultSerializer

_JSON = JsonSerializer()


def encode(
    serializer: ResultSerializer, value: object, *, longest: int, run_id: str, task_name: str
) -> EncodedResult:
    """Return the bytes of a result, once it is known that they can be read back.

    The bytes of a serializer that does not say ``faithful = True`` are read back once.

    Raises:
        ResultNotStorableError: The serializer refuses the value, or the value does not come
            back as an object of the same type, or there are more than ``longest`` bytes.
    """
    cause: BaseException | None = None
    try:
        data = _serialized(serializer, value)
        problem = _problem_of(serializer, value, data, longest)
        if not problem:
            return EncodedResult(serializer_name(serializer), data)
    except KeyboardInterrupt:
        raise  # it is not about this value
    except ResultNotStorableError as error:
        cause, problem = error, error.problem
    except BaseException as error:  # noqa: BLE001 - a value's own code may raise anything
        cause, problem = error, _located(serializer, value, error)
    message = (
        f"the result of task {task_name!r} in run {run_id!r} cannot be kept by the"
        f" {serializer_name(serializer)!r} serializer: {problem.rstrip('.')}. Return something it"
        " can keep, use another serializer, or declare the task with retain_result=False"
    )
    raise ResultNotStorableError(message, run_id, task_name) from cause


def is_readable(serializer: ResultSerializer, stored_name: str) -> bool:
    """Return whether a store with this serializer reads what the one of that name has made."""
    return stored_name in (serializer_name(serializer), _JSON.name)


def decode(serializer: ResultSerializer, stored_name: str, data: bytes) -> object:
    """Return the value of a stored result.

    Results that ``JsonSerializer`` wrote are readable whatever the store's serializer is: reading
    them runs no code of theirs.

    Raises:
        ResultNotReadableError: Another serializer made the bytes, or they are damaged.
    """
    name = serializer_name(serializer)
    if stored_name == name:
        return serializer.deserialize(data)
    if stored_name == _JSON.name:
        return _JSON.deserialize(data)
    message = (
        f"the stored result was written by the {stored_name!r} serializer, and this store has"
        f" {name!r}; open the file with the serializer that wrote it, or run the task again"
    )
    raise ResultNotReadableError(message)


class _UnreadableError(Exception):
    """Bytes that were made just now cannot be read back; the cause says why."""


def _serialized(serializer: ResultSerializer, value: object) -> bytes:
    data: object = serializer.serialize(value)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    problem = f"its serialize() returned {type_name(type(data))}, not bytes"
    raise ResultNotStorableError(problem)


def _read_back(serializer: ResultSerializer, data: bytes) -> object:
    try:
        return serializer.deserialize(data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _UnreadableError from error


def _problem_of(serializer: ResultSerializer, value: object, data: bytes, longest: int) -> str:
    """Return what is wrong with the bytes, or an empty text."""
    if len(data) > longest:
        return f"it comes to {len(data):,} bytes, and SQLite keeps at most {longest:,} in a row"
    if getattr(serializer, "faithful", False) is not True:
        kind = type(_read_back(serializer, data))
        if kind is not type(value):
            return f"result: {type_name(type(value))} would come back as {type_name(kind)}"
    return ""


def _located(serializer: ResultSerializer, value: object, error: BaseException) -> str:
    """Return the error's own line, after the place of the smallest part that fails by itself."""
    place, part = smallest_failing(
        value, lambda part: _read_back(serializer, _serialized(serializer, part))
    )
    what = f"{place} ({type_name(type(part))})"
    if isinstance(error, _UnreadableError) and error.__cause__ is not None:
        return f"{what} cannot be read back: {error_line(error.__cause__)}"
    return f"{what}: {error_line(error)}"
