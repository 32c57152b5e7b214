"""``PickleSerializer``: results of almost any type as pickles, signed if so wanted."""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
from typing import Any

from flowrun.errors import ResultNotReadableError, ResultNotStorableError
from flowrun.failure import error_line
from flowrun.state.serializers import smallest_failing, type_name

_SIGNED = b"flowrun-signed-1\n"
_DIGEST = "sha256"
_DIGEST_BYTES = hashlib.new(_DIGEST).digest_size
_SHORTEST_KEY = 16
_FRAMED = bytes([4])  # the first protocol that has frames


class PickleSerializer:
    """Keeps results as pickles: almost any Python value, for code that trusts its store.

    Reading a pickle runs what it says. With a ``key`` only bytes signed with that key are
    unpickled. An attacker who can write to the file, but does not know the key, cannot make this
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
        sink = _Sink()
        try:
            pickle.Pickler(sink, self._protocol).dump(obj)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a class's own pickling code may raise anything
            raise ResultNotStorableError(_why_unpicklable(obj, self._protocol, error)) from error
        data = sink.getvalue()
        return data if self._key is None else b"".join((_SIGNED, self._digest(data), data))

    def deserialize(self, data: bytes) -> object:
        """Return the value that was pickled, once its signature has been verified.

        Raises:
            ResultNotReadableError: The bytes are damaged, altered or signed in another way,
                or what they refer to is no longer there.
        """
        payload = data
        if self._key is not None:
            payload = self._verified(data)
        elif data.startswith(_SIGNED):
            message = (
                "the stored result is signed, and this PickleSerializer has no key to verify"
                " it with; give it the key that it was written with"
            )
            raise ResultNotReadableError(message)
        is_framed = payload[:1] == pickle.PROTO and payload[1:2] >= _FRAMED
        stream = _Source(payload) if is_framed else io.BytesIO(payload)
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

    def _digest(self, payload: bytes) -> bytes:
        signature = hmac.new(self._key or b"", self.name.encode() + b"\0", _DIGEST)
        signature.update(payload)
        return signature.digest()

    def _verified(self, data: bytes) -> bytes:
        start = len(_SIGNED) + _DIGEST_BYTES
        payload = data[start:]
        if not data.startswith(_SIGNED):
            problem = "is not signed; if it was kept without a key, read it without one"
        elif not hmac.compare_digest(data[len(_SIGNED) : start], self._digest(payload)):
            problem = "was altered, or signed with another key"
        else:
            return payload
        message = f"the stored result {problem}. It was not unpickled"
        raise ResultNotReadableError(message)


class _Sink(io.BytesIO):
    """A file for a pickler.

    The C pickler calls ``write`` for each 64 KB, which lets other threads run in between;
    ``pickle.dumps`` would hold the interpreter's lock until it is done.
    """

    def write(self, piece: Any, /) -> int:  # noqa: ANN401 - bytes or a buffer
        # A large buffer of an array arrives as it is. bytes() would put the elements of one in
        # Fortran order into C order; raw() gives the memory as it stands.
        return super().write(piece.raw() if isinstance(piece, pickle.PickleBuffer) else piece)


class _Source(io.BytesIO):
    """A file for an unpickler, to the same end: it is asked for each frame of 64 KB."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size)


def _why_unpicklable(value: object, protocol: int, error: BaseException) -> str:
    """Return the message for what a pickler refused, with the place if it can be found."""
    if isinstance(error, RecursionError):
        return "result: nested too deeply to be pickled; return a flatter value"
    place, part = smallest_failing(value, lambda part: pickle.Pickler(_Sink(), protocol).dump(part))
    return (
        f"{place}: {type_name(type(part))} cannot be pickled: {error_line(error)}."
        " Return what it is made of, or what it can be made from again"
    )
