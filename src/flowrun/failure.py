"""The text of an exception for store, log and hooks: traceback, length, redaction (A6, V2)."""

from __future__ import annotations

import contextlib
import re
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE = 500
_TRACEBACK = "Traceback (most recent call last):\n"
_GROUP_TRACEBACK = "  + Exception Group Traceback (most recent call last):"
CHAIN_LINKS = frozenset(
    (
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    )
)
"""Lines of a traceback, each between an error and the one that came of it."""
_MAX_ERROR_CHARACTERS = 60_000
_REMARKS = ("TaskTimeoutError: ", "Not retried: ")
"""Lines that say more than the error that the code raised when its time was up."""
_TYPE = re.compile(r"([^\W\d][\w.<>]*)(?:: (.*))?$", re.DOTALL)
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
    """Return the text of an error with its traceback, and its own line.

    ``redact`` sees all of both before they are shortened (V2). ``text`` is the error's text if
    another process has made it.
    """
    whole = _whole_text(error) if text is None else text
    return bounded(redacted(whole, redact)), _first_line(redacted(_message(error), redact))


def error_text(error: BaseException) -> str:
    """Return the error with its traceback, without locals and without flowrun's own frames.

    The text can always be encoded; of more than 64 KB it is the end.
    """
    return bounded(_whole_text(error))


def error_line(error: BaseException) -> str:
    """Return the exception's own line, ``ValueError: no rows``, at most 500 characters."""
    return _first_line(_message(error))


def own_line(error: str) -> str:
    r"""Return the exception's own line out of a text with its traceback.

    If the attempt timed out, or flowrun had a reason not to retry it, the line that says so.

    Example:
        >>> own_line('Traceback (most recent call last):\n  File "x"\nValueError: no rows')
        'ValueError: no rows'
    """
    lines = error.split("\n")
    for remark in _REMARKS:
        for line in reversed(lines):
            if line.startswith(remark):
                return line
    start = 0
    for number, line in enumerate(lines):
        if line in CHAIN_LINKS:
            start = number + 1
    lines = [line for line in lines[start:] if line.strip()]
    if not lines:
        return error.strip()
    if lines[0] == _TRACEBACK.rstrip():
        return next((line for line in lines[1:] if not line.startswith(" ")), lines[-1].strip())
    if lines[0] == _GROUP_TRACEBACK:
        return next((line[4:] for line in lines[1:] if _is_group_line(line)), lines[-1].strip())
    # The front of a very long text was cut off, and with it what separated its parts.
    return (lines[-1] if len(error) > _MAX_ERROR_CHARACTERS else lines[0]).strip()


def type_and_message(error: str, reason: str | None) -> tuple[str | None, str]:
    r"""Return the class of the exception in a stored text, and its message's first line.

    The class is named as a traceback names it; ``None`` if the text is of no exception.

    Example:
        >>> type_and_message("json.JSONDecodeError: no value", "ERROR")
        ('json.JSONDecodeError', 'no value')
        >>> type_and_message("RUN_CANCELLED: the engine was closed", "RUN_CANCELLED")
        (None, 'the engine was closed')
    """
    line = own_line(error)
    why = line.removeprefix(f"{reason}: ")
    found = _TYPE.match(line) if why == line else None
    return (None, why) if found is None else (found[1], found[2] or "")


def _whole_text(error: BaseException) -> str:
    with contextlib.suppress(BaseException):  # a hostile exception must not hide the failure
        lines = traceback.format_exception(type(error), error, _own_frames_off(error))
        return "".join(lines).rstrip("\n")
    # The traceback module takes the truth value of errors and follows their causes. An error that
    # raises there still has frames and a message.
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
    """Return the last 64 KB of the text in UTF-8."""
    data = text[-MAX_ERROR_BYTES:].encode("utf-8", "backslashreplace")
    return data[-MAX_ERROR_BYTES:].decode("utf-8", "ignore")


def encodable(text: str) -> str:
    """Return the text with lone surrogates escaped, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def redacted(text: str, redact: Callable[[str], str] | None) -> str:
    """Return the text after the user's ``redact``; hide all of it if that fails."""
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


def _is_group_line(line: str) -> bool:
    return line.startswith("  | ") and not line[4:5].isspace()
