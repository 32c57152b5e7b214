"""Live progress of runs in a terminal; plain lines where there is none."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO, cast

from flowrun.hooks import RunHook
from flowrun.render.escape import for_terminal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrun.hooks import (
        DagEndEvent,
        DagStartEvent,
        TaskFailureEvent,
        TaskRetryEvent,
        TaskSkipEvent,
        TaskStartEvent,
        TaskSuccessEvent,
    )

_REDRAW_S = 0.1
_MOST_LINES = 12
_SIGNS = {"run": "*", "ok": "+", "failed": "x", "retry": "~", "skipped": "-"}
_COLOURS = {"run": "36", "ok": "32", "failed": "31", "retry": "33", "skipped": "90"}


class ProgressHook(RunHook):
    """Show what runs, for how long, and what went wrong.

    On a terminal: one line per running task with its elapsed time and a line of counts, redrawn
    in place, with failures and retries kept above. What is printed or logged meanwhile goes
    above too. Elsewhere (CI, a file): one plain line per change. ``NO_COLOR`` is honoured.

    Args:
        stream: Where to write; standard error by default.
        live: Whether to redraw; by default if the stream is a terminal.

    Example:
        >>> import sys
        >>> hook = ProgressHook(sys.stdout)
    """

    def __init__(self, stream: TextIO | None = None, *, live: bool | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        dumb = os.environ.get("TERM") == "dumb"
        self._live = (self._stream.isatty() and not dumb) if live is None else live
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._lock = threading.RLock()
        self._running: dict[tuple[str, str], tuple[float, int]] = {}
        self._counts: dict[str, int] = {}
        self._total = 0
        self._runs = 0
        self._drawn = 0
        self._mid_line = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._diverted: _Diverted | None = None

    def on_dag_start(self, event: DagStartEvent) -> None:
        """Begin to show a run."""
        with self._lock:
            self._runs += 1
            self._total += len(event.task_names)
            if self._runs == 1 and self._live:
                self._begin_drawing()
            self._say(f"run {event.run_id} of {event.dag_name}: {len(event.task_names)} tasks")

    def on_task_start(self, event: TaskStartEvent) -> None:
        """Show a running task."""
        with self._lock:
            key = (event.run_id, event.task_name)
            self._running[key] = (time.monotonic(), event.attempt)
            if not self._live:
                again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
                self._line("run", f"{event.task_name}{again}")

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """Count a success."""
        self._ended(event.run_id, event.task_name, "ok")
        if not self._live:
            self._line("ok", f"{event.task_name}  {seconds(event.duration_s)}")

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        """Keep a failure on the screen."""
        self._ended(event.run_id, event.task_name, "failed")
        self._line("failed", f"{event.task_name}: {event.message}")

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """Keep a retry on the screen."""
        with self._lock:
            self._running.pop((event.run_id, event.task_name), None)
        wait = f", again in {event.delay_s:g} s" if event.delay_s else ", again"
        self._line("retry", f"{event.task_name}: {event.message}{wait}")

    def on_task_skip(self, event: TaskSkipEvent) -> None:
        """Count a skip."""
        self._ended(event.run_id, event.task_name, "skipped")
        if not self._live:
            self._line("skipped", f"{event.task_name} skipped")

    def on_dag_end(self, event: DagEndEvent) -> None:
        """Say how the run ended; with the last run the drawing ends."""
        with self._lock:
            self._runs -= 1
            last = self._runs == 0
            if last:
                self._end_drawing()
            counts = ", ".join(f"{number} {word}" for word, number in self._counts.items())
            self._line(
                "ok" if event.status == "SUCCESS" else "failed",
                f"{event.dag_name} {event.status} in {seconds(event.duration_s)}: {counts}",
            )
            if last:
                self._counts.clear()
                self._total = 0

    def _ended(self, run_id: str, task_name: str, word: str) -> None:
        with self._lock:
            self._running.pop((run_id, task_name), None)
            self._counts[word] = self._counts.get(word, 0) + 1

    def _line(self, kind: str, text: str) -> None:
        sign = _SIGNS[kind]
        if self._colour:
            sign = f"\x1b[{_COLOURS[kind]}m{sign}\x1b[0m"
        self._say(f"{sign} {for_terminal(text)}", safe=True)

    def _say(self, text: str, *, safe: bool = False) -> None:
        """Write a line that stays, above whatever is redrawn."""
        with self._lock:
            self.write_above((text if safe else for_terminal(text)) + "\n")

    def write_above(self, text: str) -> None:
        """Write text above the lines that are redrawn, in one piece."""
        with self._lock:
            erased = self._erased()
            if text:
                self._mid_line = not text.endswith("\n")
            # In the middle of a line that somebody prints in pieces nothing is drawn.
            drawing = self._diverted is not None and not self._mid_line
            block = self._block() if drawing else []
            self._drawn = len(block)
            self._stream.write(erased + text + "".join(f"{line}\x1b[K\n" for line in block))
            self._stream.flush()

    # Drawing.

    def _begin_drawing(self) -> None:
        self._stop.clear()
        self._diverted = _Diverted(self, self._stream)
        self._thread = threading.Thread(target=self._redraw, name="flowrun-progress", daemon=True)
        self._thread.start()

    def _end_drawing(self) -> None:
        if self._diverted is None:
            return
        self._stop.set()
        self._stream.write(self._erased())
        self._stream.flush()
        self._diverted.undo()
        self._diverted = None

    def _redraw(self) -> None:
        while not self._stop.wait(_REDRAW_S):
            self.write_above("")

    def _erased(self) -> str:
        """Return what moves up over the drawn lines and clears them."""
        drawn, self._drawn = self._drawn, 0
        return f"\r\x1b[{drawn}A\x1b[J" if drawn else ""

    def _block(self) -> list[str]:
        size = shutil.get_terminal_size()
        room = max(1, min(_MOST_LINES, size.lines - 2))
        now = time.monotonic()
        running = sorted(self._running.items(), key=lambda item: item[1][0])
        lines: list[str] = []
        for (_, name), (since, attempt) in running[:room]:
            again = f" (attempt {attempt})" if attempt > 1 else ""
            lines.append(f"* {for_terminal(name)}{again}  {seconds(now - since)}")
        if len(running) > room:
            lines.append(f"  and {len(running) - room} more")
        done = sum(self._counts.values())
        words = "".join(f", {number} {word}" for word, number in self._counts.items())
        lines.append(f"{done}/{self._total} done, {len(running)} running{words}")
        return [line[: max(1, size.columns - 1)] for line in lines]


class _Diverted:
    """Standard output, standard error and log handlers, sent above the drawing for a while."""

    def __init__(self, hook: ProgressHook, stream: TextIO) -> None:
        self._saved: Mapping[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        proxies = {
            name: _Above(hook, original)
            for name, original in self._saved.items()
            if original is stream or (original.isatty() and stream.isatty())
        }
        for name, proxy in proxies.items():
            setattr(sys, name, proxy)
        originals = {id(self._saved[name]): proxy for name, proxy in proxies.items()}
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                writes = cast("logging.StreamHandler[TextIO]", handler)
                above = originals.get(id(writes.stream))
                if above is not None:
                    self._handlers.append((writes, writes.stream))
                    writes.setStream(cast("TextIO", above))

    def undo(self) -> None:
        """Put everything back."""
        for name, original in self._saved.items():
            if isinstance(getattr(sys, name), _Above):
                setattr(sys, name, original)
        for handler, original in self._handlers:
            handler.setStream(original)


class _Above:
    """A stream whose lines are written above the drawing."""

    def __init__(self, hook: ProgressHook, original: TextIO) -> None:
        self._hook = hook
        self._original = original

    def write(self, text: str) -> int:
        self._hook.write_above(text)
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)


def seconds(duration_s: float) -> str:
    """Return a duration as people say it."""
    if duration_s < 60:  # noqa: PLR2004 - a minute
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes} min {seconds:02} s"
