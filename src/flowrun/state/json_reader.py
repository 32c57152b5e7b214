"""JSON text back to a value: within limits, and line by line where it is long.

``json_writer`` breaks a long text into lines, each of which is one opening bracket, one
closing bracket, or a run of whole items, so each line is decoded by itself and other
threads run in between. Text with any other line breaks is valid too; it is decoded whole.
"""

from __future__ import annotations

import json
import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NoReturn

from flowrun.errors import ResultNotReadableError
from flowrun.state.json_values import TAG, kind_of, revive

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONG = 1 << 18
_SPACE = b" \t\r"
_ROUNDS = 4

_TAG_KEY = f'"{TAG}"'.encode()
_STEPS = tuple(1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256))
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b'[]{}"')

BROKEN_PARTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the constructors of the tagged types raise for parts that they cannot take."""


def _refuse(problem: str) -> NoReturn:
    raise ValueError(problem)


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"{name} is not JSON")


_decode_plain = json.JSONDecoder(parse_constant=_refuse_constant).decode
_decode_tagged = json.JSONDecoder(parse_constant=_refuse_constant, object_hook=revive).decode


def read(data: bytes, max_bytes: int | None, max_depth: int) -> object:
    """Return the value that the text stands for.

    Raises:
        ResultNotReadableError: It is too long, too deep, damaged, or nothing that
            ``JsonSerializer`` wrote.
    """
    if max_bytes is not None and len(data) > max_bytes:
        message = (
            f"the stored result has {len(data)} bytes, more than the {max_bytes}"
            " that JsonSerializer(max_bytes=) allows"
        )
        raise ResultNotReadableError(message)
    try:
        if len(data) > _LONG and b"\n" in data:
            try:
                return _Lines(max_depth).read(data)
            except ValueError:
                pass  # Broken into other lines, or damaged: the whole text will tell.
        return _decode(data, max_depth)
    except BROKEN_PARTS as error:
        message = (
            "the stored result is not what JsonSerializer wrote:"
            f" {type(error).__name__}: {ascii(str(error))[1:-1][:500]}."
            " Read it with the serializer that wrote it, or run its task again"
        )
        # Without the cause: a JSONDecodeError would keep the whole text alive.
        raise ResultNotReadableError(message) from None


def _decode(data: bytes, max_depth: int) -> Any:  # noqa: ANN401 - what a task returned
    if len(data) > _LONG and _is_one_string(data):
        # In one call as any other, but one that holds other threads up half as long.
        return str(memoryview(data)[1:-1], "utf-8")
    if nesting(data, max_depth) > max_depth:
        _refuse(f"nested more deeply than the {max_depth} levels that max_depth= allows")
    return (_decode_tagged if _TAG_KEY in data else _decode_plain)(data.decode())


def _is_one_string(data: bytes) -> bool:
    """Return whether the text is a string without escapes, and nothing else."""
    return data.startswith(b'"') and data.find(b'"', 1) == len(data) - 1 and b"\\" not in data


def nesting(data: bytes, enough: int) -> int:
    """Return how deeply brackets stand inside each other, counted without parsing.

    The C decoder recurses, and how deeply it may is different in each Python. Up to
    ``enough`` the answer may be too high, never too low; above that it is exact.
    """
    upper = data.count(b"[") + data.count(b"{")
    if upper <= enough:
        return upper
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    data = data.translate(None, _NO_BRACKETS)
    # Taking away two neighbouring quotes changes for no bracket whether a string holds it.
    data = data.replace(b'""', b"")
    if b'"' in data:
        data = b"".join(data.split(b'"')[::2])
    # Most brackets are gone after few rounds, each of which takes two levels at most.
    rest = data
    for _ in range(_ROUNDS):
        rest = rest.replace(b"{}", b"").replace(b"[]", b"")
    upper = 2 * _ROUNDS + _deepest(rest)
    return upper if upper <= enough else _deepest(data)


def _deepest(brackets: bytes) -> int:
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


class _Lines:
    """Decodes a text of the lines that ``json_writer`` makes.

    Every method raises ``ValueError`` for a text of other lines.
    """

    __slots__ = ("_expected", "_max_depth", "_opened", "_stack")

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        # The lowest list only takes the value itself; a key belongs to the one above it.
        self._stack: list[tuple[Any, Any]] = [([], None)]
        self._expected = True
        """Whether an item must follow: nothing stands before it, or a comma."""
        self._opened = False
        """Whether nothing stands between here and the bracket that was opened last."""

    def read(self, data: bytes) -> object:
        """Return the value."""
        for line in _lines(data):
            text = line.strip(_SPACE)
            if text[:1] in {b"]", b"}"}:
                self._close(text)
            elif not self._expected:
                _refuse("no comma between two lines")
            elif text[-1:] in {b"[", b"{"}:
                self._open(text)
            elif text:
                self._take_run(text)
        (found,) = self._stack[0][0]
        if len(self._stack) > 1 or self._expected:
            _refuse("a bracket or an item is missing at the end")
        return found

    def _open(self, text: bytes) -> None:
        container, _ = self._stack[-1]
        before = text[:-1].rstrip(_SPACE)
        key = None
        if kind_of(container) is dict:
            ((key, _),) = json.loads(b"{" + before + b"0}").items()
        elif before:
            _refuse("something between the items of a list")
        if len(self._stack) > self._max_depth:
            _refuse("nested too deeply")
        self._stack.append(([] if text.endswith(b"[") else {}, key))
        self._expected = self._opened = True

    def _close(self, text: bytes) -> None:
        if self._expected and not self._opened:
            _refuse("a comma before a closing bracket")
        value, key = self._stack.pop()
        if text.rstrip(b"," + _SPACE) != (b"}" if kind_of(value) is dict else b"]"):
            _refuse("another bracket than the one that was opened")
        if kind_of(value) is dict:
            value = revive(value)
        container, _ = self._stack[-1]
        if kind_of(container) is dict:
            container[key] = value
        else:
            container.append(value)
        self._opened = False
        self._expected = text.endswith(b",")

    def _take_run(self, text: bytes) -> None:
        """Decode a line of whole items, or of whole members of an object."""
        container, _ = self._stack[-1]
        self._opened = False
        self._expected = text.endswith(b",")
        items = text[:-1] if self._expected else text
        depth = self._max_depth - len(self._stack) + 2
        if kind_of(container) is list:
            run = _decode(b"[" + items + b"]", depth)
            container.extend(run)
        else:
            run = _decode(b"{" + items + b"}", depth)
            if kind_of(run) is not dict:
                _refuse("a tagged object in one line of an object")
            container.update(run)
        if not run:
            _refuse("a comma without an item")


def _lines(data: bytes) -> Iterator[bytes]:
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        yield data[start:end]
        start = end + 1
    yield data[start:]
