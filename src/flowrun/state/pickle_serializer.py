"""``PickleSerializer``: results of almost any type as pickles, signed if so wanted."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import pickle
from collections import deque
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.state.json_values import kind_of, type_name
from flowrun.state.json_writer import short
from flowrun.state.serializers import ATOMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SIGNED = b"flowrun-signed-1\n"
_DIGEST = "sha256"
_DIGEST_BYTES = hashlib.new(_DIGEST).digest_size
_SHORTEST_KEY = 16
_PROTOCOL = pickle.PROTO[0]
_FRAMED = 4
_LONG = 1 << 20
_REMEMBERED = 64
_MOST_VISITED = 1_000_000


class PickleSerializer:
    """Keeps results as pickles: almost any Python value, for code that trusts its store.

    Reading a pickle runs what it says. With a ``key`` only bytes signed with that key are
    unpickled, so whoever can write to the file but does not know the key cannot make this
    process run anything. (They can still put back an older result of the same store.)

    Args:
        key: A secret of at least 16 bytes, such as ``secrets.token_bytes(32)``.
        protocol: The pickle protocol, 0 to ``pickle.HIGHEST_PROTOCOL``.

    Raises:
        TypeError: The key is not ``bytes``.
        ValueError: The key is too short, or there is no such protocol.

    Example:
        >>> serializer = PickleSerializer(key=bytes(16))
        >>> serializer.loads(serializer.dumps({1, 2}))
        {1, 2}
    """

    __slots__ = ("_key", "_protocol", "name")

    def __init__(self, *, key: bytes | None = None, protocol: int = 5) -> None:
        if key is not None:
            # No message shows the key, not even a wrong one.
            if not isinstance(key, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
                message = f"key must be bytes, not {type_name(type(key))}; encode it first"
                raise TypeError(message)
            if len(key) < _SHORTEST_KEY:
                message = (
                    f"key must have at least {_SHORTEST_KEY} bytes, this one has {len(key)};"
                    " secrets.token_bytes(32) makes a good one"
                )
                raise ValueError(message)
        if not 0 <= protocol <= pickle.HIGHEST_PROTOCOL:
            message = f"protocol must be 0 to {pickle.HIGHEST_PROTOCOL}; it is {protocol!r}"
            raise ValueError(message)
        self.name = "pickle" if key is None else f"pickle+hmac-{_DIGEST}"
        self._key = key
        self._protocol = protocol

    def __repr__(self) -> str:
        key = "None" if self._key is None else "<hidden>"
        return f"PickleSerializer(key={key}, protocol={self._protocol})"

    def dumps(self, value: object) -> bytes:
        """Return the pickled value, signed if there is a key.

        Raises:
            ResultNotStorableError: A part of the value cannot be pickled; the message names
                its place, like ``result['rows'][3].when``, where that can be found out.
        """
        pieces = _Pieces()
        try:
            pickle.Pickler(pieces, self._protocol).dump(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a class's own pickling code may raise anything
            raise ResultNotStorableError(_why_unpicklable(value, self._protocol, error)) from error
        if self._key is not None:
            pieces.kept[:0] = [_SIGNED, self._digest(self._key, pieces.kept)]
        return b"".join(pieces.kept)

    def loads(self, data: bytes) -> object:
        """Return the value that was pickled, once its signature has been verified.

        Raises:
            ResultNotReadableError: The bytes are damaged, altered or signed in another way,
                or what they refer to is no longer there.
        """
        payload = memoryview(data)
        if self._key is not None:
            payload = self._verified(self._key, payload)
        elif data.startswith(_SIGNED):
            message = (
                "the stored result is signed, and this PickleSerializer has no key to verify"
                " it with; give it the key that it was written with"
            )
            raise ResultNotReadableError(message)
        framed = len(payload) > _LONG and payload[0] == _PROTOCOL and payload[1] >= _FRAMED
        stream = _Source(payload) if framed else io.BytesIO(payload)
        try:
            value: object = pickle.Unpickler(stream).load()  # noqa: S301 - asked for by the user, signed at will
            rest = len(payload) - stream.tell()
        except Exception as error:  # a damaged pickle, or what it calls, may raise anything
            message = (
                f"the stored result cannot be unpickled: {type(error).__name__}: {error}."
                " If a class or module was moved or renamed since, make it importable under"
                " its old name again; else run the task again"
            )
            raise ResultNotReadableError(message) from error
        if rest:
            message = f"the stored result is damaged: {rest} bytes follow the end of its pickle"
            raise ResultNotReadableError(message)
        return value

    def _digest(self, key: bytes, payload: Iterable[bytes | memoryview]) -> bytes:
        signature = hmac.new(key, self.name.encode() + b"\0", _DIGEST)
        for piece in payload:
            signature.update(piece)
        return signature.digest()

    def _verified(self, key: bytes, data: memoryview) -> memoryview:
        start = len(_SIGNED) + _DIGEST_BYTES
        if bytes(data[: len(_SIGNED)]) != _SIGNED:
            problem = "is not signed; if it was kept without a key, read it without one"
        elif not hmac.compare_digest(data[len(_SIGNED) : start], self._digest(key, [data[start:]])):
            problem = "was altered, or signed with another key"
        else:
            return data[start:]
        message = f"the stored result {problem}. It was not unpickled"
        raise ResultNotReadableError(message)


class _Pieces:
    """A file for a pickler.

    The C pickler calls ``write`` for each 64 KB, which lets other threads run in between;
    ``pickle.dumps`` would hold the interpreter's lock until it is done.
    """

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def write(self, piece: bytes, /) -> int:
        self.kept.append(bytes(piece))
        return len(piece)


class _Source:
    """A file for an unpickler, to the same end: it is asked for each frame of 64 KB."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int, /) -> bytes:
        piece = bytes(self._data[self._at : self._at + size])
        self._at += len(piece)
        return piece

    def readline(self) -> bytes:
        # Lines occur in old opcodes only, which the C pickler puts into frames.
        return self.read(0)

    def readinto(self, buffer: memoryview, /) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at


def _why_unpicklable(value: object, protocol: int, error: BaseException) -> str:
    """Return the message for what a pickler refused, with the place if it can be found."""
    if isinstance(error, RecursionError):
        return "result: nested too deeply to be pickled; return a flatter value"
    tracker = _Tracker(protocol)
    place, found = "result", value
    with contextlib.suppress(BaseException):
        with contextlib.suppress(BaseException):
            tracker.dump(value)
        place, found = _find(value, tracker.latest)
    return (
        f"{place}: {type_name(type(found))} cannot be pickled: {type(error).__name__}: {error}."
        " Return what it is made of, or what it can be made from again"
    )


class _Tracker(pickle.Pickler):
    """Pickles into the void and remembers what it met last."""

    def __init__(self, protocol: int) -> None:
        super().__init__(_Void(), protocol)
        self.latest: deque[object] = deque(maxlen=_REMEMBERED)

    def persistent_id(self, obj: object) -> None:
        """Take note of an object before it is pickled."""
        if type(obj) not in ATOMS:
            self.latest.append(obj)


class _Void:
    __slots__ = ()

    def write(self, piece: bytes, /) -> int:
        return len(piece)


def _find(value: object, latest: Iterable[object]) -> tuple[str, object]:
    """Return the place and the object of those met latest that can be reached from a value.

    What a class's own pickling code made up cannot be reached; then it is its owner.
    """
    ranks = {id(item): rank for rank, item in enumerate(latest)}
    best, place, found = -1, "result", value
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [(place, value)]
    while waiting and len(seen) < _MOST_VISITED:
        here, item = waiting.pop()
        if id(item) in seen or type(item) in ATOMS:
            continue
        seen.add(id(item))
        if ranks.get(id(item), -1) > best:
            best, place, found = ranks[id(item)], here, item
        with contextlib.suppress(Exception):  # Looking into an object runs code of its class.
            waiting.extend(_children(here, item))
    return place, found


def _children(place: str, value: Any) -> Iterator[tuple[str, object]]:  # noqa: ANN401 - anything
    kind = kind_of(value)
    if issubclass(kind, dict):
        for key, item in value.items():
            yield f"<a key of {place}>", key
            yield f"{place}[{short(key)}]", item
    elif issubclass(kind, (list, tuple)):
        for index, item in enumerate(value):
            yield f"{place}[{index}]", item
    elif issubclass(kind, (set, frozenset)):
        for item in value:
            yield f"<an element of {place}>", item
    if not callable(value) and kind is not ModuleType:
        names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
        for name in (*getattr(value, "__dict__", ()), *names):
            if hasattr(value, name):
                yield f"{place}.{name}", getattr(value, name)
