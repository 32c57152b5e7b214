"""What the command prints, so that its exit code never depends on who reads it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from flowrun.escape import columns, for_terminal, padded
from flowrun.render import coloured, has_colours, report_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrun.report import RunReport

_USUAL_WIDTH = 80
_RED = "31"
_COLOURS = {"succeeded": "32", "failed": _RED, "running": "36", "left behind": _RED}
_NOT_ASCII = "✔✘⊘▶○├─└│…"


class Output:
    """Standard output of one command.

    After the first failed write, all further text is dropped. :meth:`finish` returns whether text
    was lost for another reason than a reader that has left.
    """

    def __init__(self) -> None:
        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None:  # the caller closed it: ``>&-``
                # The new file takes the free descriptor, so no database gets it.
                stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - stays open
                setattr(sys, name, stream)
            with suppress(AttributeError):  # a replaced stream may lack it
                stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        self._error: Exception | None = None

    def say(self, text: str) -> None:
        """Print one text with a line end."""
        if self._error is not None:
            return
        try:
            print(text, flush=True)
        except (OSError, ValueError) as error:  # the latter: the stream is closed
            self._error = error

    def say_json(self, value: object) -> None:
        """Print a value as JSON."""
        self.say(json.dumps(value, indent=2, default=str))

    def say_report(
        self, report: RunReport, usual: float | None = None, *, failures_only: bool = False
    ) -> None:
        """Print a report as a table, as wide as the terminal."""
        wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else _USUAL_WIDTH
        text = report_table(
            report,
            wide,
            ascii_only=self.is_ascii_only,
            colours=has_colours(sys.stdout),
            failures_only=failures_only,
            usual=usual,
        )
        self.say(text)

    def say_table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows below their headings; words that say how a run ended are coloured."""
        lines = [[for_terminal(cell) for cell in row] for row in (headings, *rows)]
        widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
        paint = has_colours(sys.stdout)
        for line in lines:
            cells = [
                coloured(text, _COLOURS[cell]) if paint and cell in _COLOURS else text
                for cell, width in zip(line, widths, strict=True)
                for text in [padded(cell, width)]
            ]
            self.say("  ".join(cells).rstrip())

    @property
    def is_ascii_only(self) -> bool:
        """Whether standard output cannot show the signs and lines of tables and trees."""
        try:
            _NOT_ASCII.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:
            return True
        return False

    def finish(self) -> Exception | None:
        """Flush both streams, and return the error that text was lost by, if any was."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError) as error:
                if stream is sys.stdout and self._error is None:
                    self._error = error
                _redirect_to_nowhere(stream)
        # Windows reports a pipe without a reader as an invalid argument.
        left = isinstance(self._error, BrokenPipeError) or (
            isinstance(self._error, OSError) and self._error.errno == errno.EINVAL
        )
        return None if left else self._error


def _redirect_to_nowhere(stream: TextIO) -> None:
    """Drop what a stream still holds and what is written to it from now on.

    The interpreter would try again to write it while it exits, and replace the exit code.
    """
    with suppress(OSError, ValueError):  # the stream has no descriptor, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def notify(text: str) -> None:
    """Print a line on standard error; a stream that cannot be written to is no error."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _redirect_to_nowhere(sys.stderr)


def complain(text: str) -> None:
    """Print an error on standard error."""
    name = coloured("flowrun:", _RED) if has_colours(sys.stderr) else "flowrun:"
    notify(f"{name} {for_terminal(text, multiline=True)}")
