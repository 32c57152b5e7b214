"""JSON text of any size, written piece by piece, so that other threads can run.

The C encoder holds the interpreter's lock for as long as one call takes: a second for
100 MB, and the event loop stands still for it. So a long value is encoded in runs of
bounded weight. For ``json_reader``, which has the same trouble, there is a line break
between runs and after each bracket around them: JSON allows white space there, and no
string contains a raw line break. Text of a small value is compact and has none.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn

from flowrun.errors import ResultNotStorableError
from flowrun.state.json_values import TAG, UnstorableError, kind_of, take_apart, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEAVY = -1
"""The weight of what must be opened: not plain JSON, nested too deeply or too long."""

_ITEM = 32
_MOST = 1 << 19
"""About 16,000 items or half a million characters: some milliseconds in the C encoder."""

_LEVELS = 8
"""How deeply a value is looked through before encoding it at once.

What turned out to be heavy is opened and its items are looked through again; this bounds
how often that can happen to one item.
"""

_BATCH = 512
_LINE_BYTES = 1 << 18
_TEXT_AT_ONCE = 1 << 20
_PLACE = 80
_KEYS = frozenset({str})
_LEAVES = frozenset({int, float, bool, type(None)})
_SIZED = frozenset({dict, tuple, set, frozenset})

encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def weigh(value: Any, levels: int) -> int:  # noqa: ANN401, C901, PLR0911, PLR0912 - called for each container: one flat pass
    """Return what plain JSON weighs, or ``HEAVY`` when it must be opened.

    Args:
        value: Anything.
        levels: How many containers may stand inside each other.
    """
    kind = kind_of(value)
    if kind is dict:
        weight = _ITEM * len(value)
        if levels <= 0 or weight > _MOST or TAG in value:
            return HEAVY
        for key, item in value.items():
            if type(key) is not str:
                return HEAVY
            kind = kind_of(item)
            if kind is str:
                weight += len(key) + len(item)
            elif kind in _LEAVES:
                weight += len(key)
            else:
                inner = weigh(item, levels - 1)
                weight += len(key) + inner
                if inner < 0 or weight > _MOST:
                    return HEAVY
    elif kind is list:
        weight = _ITEM * len(value)
        if levels <= 0 or weight > _MOST:
            return HEAVY
        for item in value:
            kind = kind_of(item)
            if kind is str:
                weight += len(item)
            elif kind not in _LEAVES:
                inner = weigh(item, levels - 1)
                weight += inner
                if inner < 0 or weight > _MOST:
                    return HEAVY
    elif kind is str:
        weight = len(value)
    elif kind in _LEAVES:
        return _ITEM
    else:
        return HEAVY
    return weight if weight <= _MOST else HEAVY


def encode_at_once(value: object, levels: int) -> bytes | None:
    """Return the text of a value that the C encoder may write in one go, else ``None``."""
    levels = min(levels, _LEVELS)
    try:
        if weigh(value, levels) >= 0:
            return encode(value).encode()
    except ValueError:
        pass  # NaN or an infinity, an int of too many digits, a lone surrogate
    try:
        return encode(_Plain().made_of(value, levels)).encode()
    except ValueError:
        return None


class _Plain:
    """Makes light values plain: rows with dates, decimals or NaN, which are so common.

    Whatever makes that impossible is a ``ValueError``; opening the value will tell it apart.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _MOST

    def made_of(self, value: Any, levels: int) -> object:  # noqa: ANN401 - what a task returned
        """Return the value with tagged objects in it, none of which is nested too deeply."""
        kind = kind_of(value)
        if kind is str:
            self._spend(len(value))
            return value
        if kind in _LEAVES and (kind is not float or isfinite(value)):
            return value
        if kind is list:
            self._spend(_ITEM * len(value), levels)
            return [self.made_of(item, levels - 1) for item in value]
        if kind is dict and TAG not in value and _KEYS.issuperset(map(kind_of, value)):
            self._spend(_ITEM * len(value) + sum(map(len, value)), levels)
            return {key: self.made_of(item, levels - 1) for key, item in value.items()}
        if kind in _SIZED:
            self._spend(_ITEM * len(value))
        tag, parts = take_apart(value)
        if isinstance(parts, Generator):
            raise UnstorableError(tag)
        self._spend(2 * _ITEM, levels - 1)
        return {TAG: [tag, *[self.made_of(part, levels - 2) for part in parts]]}

    def _spend(self, weight: int, levels: int = 1) -> None:
        self._left -= weight
        if self._left < 0 or levels <= 0:
            raise UnstorableError


def short(key: object) -> str:
    """Return a bounded ``repr`` that is safe to print, for a place in a message."""
    try:
        text = ascii(key)
    except Exception:  # noqa: BLE001 - an int of too many digits, or a class's own ``__repr__``
        text = f"<{type_name(kind_of(key))}>"
    return text if len(text) <= _PLACE else f"{text[: _PLACE - 3]}..."


class _Open:
    """A container that is being written, item by item."""

    __slots__ = (
        "batch",
        "break_next",
        "broken",
        "count",
        "first_at",
        "head_at",
        "items",
        "keyed",
        "label",
        "levels",
        "line_at",
        "mark",
        "separator_at",
        "singles",
        "tag",
        "value",
    )

    def __init__(self, value: object, tag: str, items: Iterable[Any]) -> None:
        self.value: Any = value
        self.tag = tag
        self.keyed = kind_of(value) is dict and not tag
        self.levels = 2 if tag else 1
        self.items: Iterator[Any] = iter(items)
        self.singles: Iterator[tuple[Any, Any]] = iter(())
        # Parts of long bytes are made on demand and are long themselves: one at a time.
        self.batch = 1 if kind_of(value) in {bytes, bytearray} else _BATCH
        self.count = 0
        self.label: Any = None
        self.separator_at = self.head_at = self.line_at = self.mark = 0
        self.first_at = -1
        self.broken = self.break_next = False

    def head(self) -> bytes:
        """Return what stands before the items, one bracket a line if it is broken."""
        if not self.tag:
            return b"{" if self.keyed else b"["
        line = "\n" if self.broken else ""
        return f'{{{line}"{TAG}":[{line}"{self.tag}"'.encode()

    def tail(self) -> bytes:
        """Return what stands after the items."""
        line = b"\n" if self.broken else b""
        if not self.tag:
            return line + (b"}" if self.keyed else b"]")
        return line + b"]" + line + b"}"

    def place(self, outer: str) -> str:
        """Return where the current item stands."""
        index = max(self.count - 1, 0)
        if self.keyed:
            return f"{outer}[{short(self.label)}]"
        if self.tag in {"", "tuple"}:
            return f"{outer}[{index}]"
        if self.tag == "dict":
            # Keys and values take turns in a tagged dict.
            number, is_value = divmod(index, 2)
            if is_value:
                return f"{outer}[{short(next(islice(self.value, number, None)))}]"
            return f"<a key of {outer}>"
        return f"<an element of {outer}>"


class Writer:
    """Writes one value; with a stack of its own, so that no depth exhausts Python's."""

    __slots__ = (
        "_depth",
        "_ids",
        "_max_bytes",
        "_max_depth",
        "_pieces",
        "_separator_at",
        "_size",
        "_stack",
    )

    def __init__(self, max_bytes: int | None, max_depth: int) -> None:
        self._max_bytes = max_bytes
        self._max_depth = max_depth
        self._pieces: list[bytes] = []
        self._separator_at = 0
        self._size = 0
        self._stack: list[_Open] = []
        self._ids: set[int] = set()
        self._depth = 0

    def write(self, value: object) -> bytes:
        """Return the text of the value.

        Raises:
            ResultNotStorableError: A part of it would not come back as what it is.
        """
        self._put(value)
        while self._stack:
            self._advance(self._stack[-1])
        return b"".join(self._pieces)

    def _advance(self, top: _Open) -> None:
        """Write the container's items up to one that must be opened, or its next run."""
        for label, item in top.singles:
            top.label = label
            top.count += 1
            self._separate(top)
            if top.keyed:
                self._append(encode(label).encode() + b":")
            if self._put(item):
                return
        run = list(islice(top.items, top.batch))
        if not run:
            self._close(top)
            return
        # A short container came here because it could not be encoded at once as it is.
        if len(run) == top.batch:
            text = encode_at_once(
                dict(run) if top.keyed else run, self._max_depth - self._depth + 1
            )
            if text is not None:
                top.count += len(run)
                self._separate(top)
                self._append(text[1:-1])
                return
        top.singles = iter(run) if top.keyed else enumerate(run)

    def _put(self, item: Any) -> bool:  # noqa: ANN401 - what a task returned
        """Write an item, or open it and return true."""
        text = encode_at_once(item, self._max_depth - self._depth)
        if text is not None:
            self._append(text)
            return False
        kind = kind_of(item)
        if kind is str and _is_text(item):
            self._append(b'"')
            for start in range(0, len(item), _TEXT_AT_ONCE):
                self._append(encode(item[start : start + _TEXT_AT_ONCE])[1:-1].encode())
            self._append(b'"')
            return False
        if kind is list:
            self._open(_Open(item, "", item))
        elif kind is dict and _has_plain_keys(item):
            self._open(_Open(item, "", item.items()))
        else:
            return self._put_tagged(item)
        return True

    def _put_tagged(self, item: object) -> bool:
        try:
            tag, parts = take_apart(item)
        except UnstorableError as error:
            self._refuse(
                f"{type_name(kind_of(item))} cannot be kept by JsonSerializer: {error}."
                " Return what it is made of, or use PickleSerializer"
            )
        self._open(_Open(item, tag, parts))
        return True

    def _open(self, opened: _Open) -> None:
        if id(opened.value) in self._ids:
            self._refuse(
                f"the {type_name(kind_of(opened.value))} contains itself, which JSON cannot express"
            )
        self._depth += opened.levels
        if self._depth > self._max_depth:
            self._refuse(
                f"nested more deeply than the {self._max_depth} levels that"
                " JsonSerializer(max_depth=) allows; return a flatter value"
            )
        self._ids.add(id(opened.value))
        opened.separator_at = self._separator_at
        opened.head_at = len(self._pieces)
        opened.mark = self._size
        self._stack.append(opened)
        self._append(opened.head())

    def _close(self, top: _Open) -> None:
        self._stack.pop()
        self._ids.discard(id(top.value))
        self._depth -= top.levels
        self._append(top.tail())
        if not top.broken:
            self._join(top.head_at)
            return
        self._pieces[top.head_at] = top.head()
        self._break_at(top.first_at)
        if self._stack:
            # It starts and ends on lines of its own, hence so does what holds it.
            self._break_at(top.separator_at)
            self._stack[-1].broken = self._stack[-1].break_next = True

    def _separate(self, top: _Open) -> None:
        """Write what stands before an item, with a line break if the line is long enough."""
        self._separator_at = len(self._pieces)
        if top.first_at < 0:
            top.first_at = self._separator_at
            top.line_at = self._separator_at + 1
            self._append(b"," if top.tag else b"")
        elif top.break_next or self._size - top.mark > _LINE_BYTES:
            self._join(top.line_at)
            self._separator_at = len(self._pieces)
            top.line_at = self._separator_at + 1
            top.mark = self._size
            top.broken = True
            top.break_next = False
            self._append(b",\n")
        else:
            self._append(b",")

    def _break_at(self, index: int) -> None:
        if not self._pieces[index].endswith(b"\n"):
            self._pieces[index] += b"\n"
            self._size += 1

    def _join(self, start: int) -> None:
        """Make one piece of many small ones: they take several times their text's memory."""
        self._pieces[start:] = [b"".join(self._pieces[start:])]

    def _append(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._max_bytes is not None and self._size > self._max_bytes:
            message = f"result: {too_long(self._max_bytes)}."
            raise ResultNotStorableError(message)

    def _refuse(self, problem: str) -> NoReturn:
        place = "result"
        for opened in self._stack:
            place = opened.place(place)
        message = f"{place}: {problem}."
        raise ResultNotStorableError(message)


def too_long(max_bytes: int) -> str:
    """Return what is wrong with a value whose text exceeds the limit, and the remedy."""
    return (
        f"takes more than the {max_bytes} bytes that JsonSerializer(max_bytes=) allows;"
        " write it to a file and return its path, or raise the limit"
    )


def _is_text(text: str) -> bool:
    """Return whether UTF-8 can express the text: it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        for start in range(0, len(text), _TEXT_AT_ONCE):
            text[start : start + _TEXT_AT_ONCE].encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_plain_keys(value: dict[object, object]) -> bool:
    return TAG not in value and all(
        isinstance(key, str) and type(key) is str and _is_text(key) for key in value
    )
