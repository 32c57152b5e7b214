"""``PickleSerializer``: results of almost any type as pickles, signed if so wanted."""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
from typing import TYPE_CHECKING

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.failure import error_line
from flowrun.state.value_paths import smallest_failing, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIGNED = b"flowrun-signed-1\n"
_DIGEST = "sha256"
_DIGEST_BYTES = hashlib.new(_DIGEST).digest_size
_SHORTEST_KEY = 16
_PROTOCOL = pickle.PROTO[0]
_FRAMED = 4
_LONG = 1 << 20


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
        >>> serializer.deserialize(serializer.serialize({1, 2}))
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

    def serialize(self, obj: object) -> bytes:
        """Return the pickled value, signed if there is a key.

        Raises:
            ResultNotStorableError: A part of the value cannot be pickled; the message names
                its place, like ``result['rows'][3].when``, where that can be found out.
        """
        pieces = _Pieces()
        try:
            pickle.Pickler(pieces, self._protocol).dump(obj)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a class's own pickling code may raise anything
            raise ResultNotStorableError(_why_unpicklable(obj, self._protocol, error)) from error
        if self._key is not None:
            pieces.kept[:0] = [_SIGNED, self._digest(self._key, pieces.kept)]
        return b"".join(pieces.kept)

    def deserialize(self, data: bytes) -> object:
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
                f"the stored result cannot be unpickled: {error_line(error)}."
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

    def write(self, piece: bytes | pickle.PickleBuffer, /) -> int:
        # A large buffer of an array arrives as it is. bytes() would put the elements of one in
        # Fortran order into C order; raw() gives the memory as it stands.
        self.kept.append(bytes(piece.raw() if isinstance(piece, pickle.PickleBuffer) else piece))
        return len(self.kept[-1])


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

    def fails(part: object) -> bool:
        try:
            pickle.Pickler(_Void(), protocol).dump(part)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - a class's own pickling code may raise anything
            return True
        return False

    place, part = smallest_failing(value, fails)
    return (
        f"{place}: {type_name(type(part))} cannot be pickled: {error_line(error)}."
        " Return what it is made of, or what it can be made from again"
    )


class _Void:
    """A file that keeps nothing."""

    __slots__ = ()

    def write(self, _piece: object, /) -> int:
        return 0
