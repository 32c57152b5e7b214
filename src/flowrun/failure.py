"""An exception -> the text that is kept, logged and shown (A6, V2)."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE = 500
_TRACEBACK = "Traceback (most recent call last):\n"
_OWN_MODULES = frozenset(
    (
        "flowrun.scheduler.attempt",
        "flowrun.scheduler.attempts",
        "flowrun.scheduler.async_attempt",
        "flowrun.scheduler.run",
        "flowrun.scheduler.sync_attempt",
        "flowrun.executors.remote_call",
        "flowrun.executors.worker_threads",
        "flowrun.executors.process_child",
    )
)


def described(
    error: BaseException, redact: Callable[[str], str] | None, text: str | None = None
) -> tuple[str, str]:
    """Return the text that is kept of an error, and its own line.

    ``redact`` sees the whole of both before anything is cut from them (V2).

    Args:
        error: The error.
        redact: The user's function, if there is one.
        text: The error's text with its traceback, if another process has made it.
    """
    whole = _whole_text(error) if text is None else text
    return bounded(redacted(whole, redact)), _first_line(redacted(_message(error), redact))


def error_text(error: BaseException) -> str:
    """Return the error with its traceback, without locals and without flowrun's own frames.

    Up to 64 KB are kept whole; of a longer text the end is. The text can always be encoded.
    """
    return bounded(_whole_text(error))


def error_line(error: BaseException) -> str:
    """Return the exception's own line, ``ValueError: no rows``, at most 500 characters."""
    return _first_line(_message(error))


def _whole_text(error: BaseException) -> str:
    with contextlib.suppress(BaseException):  # a hostile exception must not hide that it happened
        lines = traceback.format_exception(type(error), error, _own_frames_off(error))
        return "".join(lines).rstrip("\n")
    # The traceback module asks errors for their truth value, and follows what caused them. What
    # raises there still has frames and a message of its own.
    frames = "".join(traceback.format_tb(_own_frames_off(error)))
    return f"{_TRACEBACK}{frames}{_message(error)}" if frames else _message(error)


def _message(error: BaseException) -> str:
    name = type(error).__qualname__
    try:
        message = str.__str__(str(error)).strip()
    except BaseException:  # noqa: BLE001 - see _whole_text; a __str__ may even raise SystemExit
        message = "<its text cannot be formatted>"
    return f"{name}: {message}" if message else name


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0].rstrip()
    return encodable(line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 3] + "...")


def bounded(text: str) -> str:
    """Return a text of at most 64 KB in UTF-8: the end of it when it is longer."""
    data = text[-MAX_ERROR_BYTES:].encode("utf-8", "backslashreplace")
    if len(data) > MAX_ERROR_BYTES or len(text) > MAX_ERROR_BYTES:
        data = data[-MAX_ERROR_BYTES:]
    return data.decode("utf-8", "ignore")


def encodable(text: str) -> str:
    """Return the text with lone surrogates written out, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def redacted(text: str, redact: Callable[[str], str] | None) -> str:
    """Return the text as the user's ``redact`` leaves it; hidden whole when that fails."""
    if redact is None:
        return text
    try:
        left: object = redact(text)
        if isinstance(left, str):
            return left
    except BaseException as error:  # noqa: BLE001 - a broken redact must not show the secret
        return f"<hidden: redact failed with {type(error).__qualname__}>"
    return f"<hidden: redact returned {type(left).__qualname__}, not str>"


def _own_frames_off(error: BaseException) -> TracebackType | None:
    """Return the traceback from the first frame that is not flowrun's; ``None`` if all are."""
    trace = error.__traceback__
    while trace is not None and _is_own(trace):
        trace = trace.tb_next
    return trace


def _is_own(trace: TracebackType) -> bool:
    module = trace.tb_frame.f_globals.get("__name__", "")
    return isinstance(module, str) and module in _OWN_MODULES
