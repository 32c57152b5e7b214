"""What the standard logging emits in an attempt, collected on the attempt, in any process.

One handler on the root logger serves all engines. It is there only while runs that keep logs are
alive, holds no lock, and looks at the context variable alone unless an attempt emits.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from flowrun.context import CURRENT, AttemptNotes, LogLine
from flowrun.failure import encodable, redacted
from flowrun.forks import call_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.context import Progress

MOST_LINES = 1_000
MOST_CHARACTERS = 100_000
_LONGEST = 8_000


class AttemptLogs:
    """The newest log lines of one attempt; any thread may add to them.

    Every step is one call of a ``deque`` or a counter, which is atomic: a lock would stay taken in
    a child that is forked meanwhile.

    Args:
        redact: What each text goes through before anything is cut from it (V2).
        is_whole: Whether each text stays whole, to be redacted and cut in another process.
    """

    def __init__(
        self, redact: Callable[[str], str] | None = None, *, is_whole: bool = False
    ) -> None:
        self._redact = redact
        self._is_whole = is_whole
        self._numbers = itertools.count(1)
        self._lines: deque[tuple[int, LogLine]] = deque(maxlen=MOST_LINES)
        self._cut_before = 0

    def take(self, record: logging.LogRecord) -> None:
        """Keep what a logger has emitted."""
        try:
            text = _PLAIN.format(record)
        except Exception as error:  # noqa: BLE001 - of the message's or the arguments' own
            message = record.msg if isinstance(record.msg, str) else type(record.msg).__qualname__
            text = f"{message} (not formatted: {type(error).__qualname__})"
        self.add(LogLine(record.created, record.levelname, record.name, text))

    def take_over(self, notes: AttemptNotes) -> None:
        """Keep what was collected in another process."""
        self._cut_before += notes.logs_cut
        for line in notes.logs:
            self.add(line)

    def add(self, line: LogLine) -> None:
        """Keep a line."""
        text = line.text
        if self._redact is not None:
            # In an empty context, so that what it logs itself is of no attempt.
            text = contextvars.Context().run(redacted, text, self._redact)
        if len(text) > _LONGEST and not self._is_whole:
            half = _LONGEST // 2
            cut = len(text) - 2 * half
            text = f"{text[:half]}... ({cut:,} characters cut) ...{text[-half:]}"
        line = LogLine(line.at, encodable(line.level), encodable(line.logger), encodable(text))
        self._lines.append((next(self._numbers), line))

    def notes(self, progress: Progress | None) -> AttemptNotes | None:
        """Return the newest lines, within the bounds; ``None`` if there is nothing to keep."""
        lines = self._lines.copy()
        if not lines:
            return None if progress is None else AttemptNotes(progress)
        newest = max(number for number, _ in lines)
        kept: deque[LogLine] = deque()
        room = MOST_CHARACTERS
        for _, line in reversed(lines):
            room -= len(line.text)
            if room < 0 and kept:
                break
            kept.appendleft(line)
        return AttemptNotes(progress, tuple(kept), newest - len(kept) + self._cut_before)


class _Handler(logging.NullHandler):
    """Hand each record to the attempt that emits it."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self.users: set[object] = set()
        call_in_children(self._start_over)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self.users.clear()
        logging.root.removeHandler(self)

    def handle(self, record: logging.LogRecord) -> bool:
        """Keep a record; called in the thread that emits it, without a lock."""
        attempt = CURRENT.get(None)
        if attempt is not None and attempt.logs is not None:
            attempt.logs.take(record)
        # Python writes a warning to standard error if a logger has no handler. This one writes
        # nothing, so it must not count as one.
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(record.name):
            last.handle(record)
        return True

    def _is_alone(self, name: str) -> bool:
        if logging.root.handlers != [self]:
            return False
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None and not logger.handlers:
            logger = logger.parent
        return logger is logging.root

    def settle(self) -> None:
        """Keep the handler installed while at least one run uses it."""
        with self._lock:
            if self.users:
                logging.root.addHandler(self)
            else:
                logging.root.removeHandler(self)


_PLAIN = logging.Formatter("%(message)s")
_HANDLER = _Handler()


class _Installed:
    """The handler is installed while this is entered."""

    def __enter__(self) -> None:
        _HANDLER.users.add(self)
        _HANDLER.settle()

    def __exit__(self, *_: object) -> None:
        _HANDLER.users.discard(self)
        _HANDLER.settle()


def kept_logs(*, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Return what has the handler installed while it is entered, if that is wanted."""
    return _Installed() if wanted else contextlib.nullcontext()
