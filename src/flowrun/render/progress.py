"""Live progress of runs in a terminal; plain lines where there is none."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, TextIO, cast

from flowrun.escape import columns, for_terminal, shortened
from flowrun.forks import call_in_children
from flowrun.hooks import RunHook
from flowrun.render.inside import progress_text
from flowrun.render.wording import coloured, counted, has_colours

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flowrun.hooks import (
        DagEndEvent,
        DagStartEvent,
        TaskFailureEvent,
        TaskOmitEvent,
        TaskProgressEvent,
        TaskRetryEvent,
        TaskSkipEvent,
        TaskStartEvent,
        TaskSuccessEvent,
    )

    TaskEnd = TaskSuccessEvent | TaskFailureEvent | TaskSkipEvent | TaskOmitEvent

_REDRAW_S = 0.1
_MOST_LINES = 12
_MOST_ROWS = 4
_KEPT_PIECES = 2_000
_SIGNS = {
    "run": ("*", "36"),
    "succeeded": ("+", "32"),
    "failed": ("x", "31"),
    "retry": ("~", "33"),
    "skipped": ("-", "90"),
    "omitted": ("-", "90"),
}
"""The sign of each kind of line, and its colour."""


class ProgressHook(RunHook):
    """Show what runs, for how long, and what went wrong.

    On a terminal: one line per running task, with its progress and its elapsed time, and a line of
    counts, redrawn in place, with failures and retries kept above. What is printed or logged
    meanwhile goes above too. Elsewhere (CI, a file): one plain line per change. ``NO_COLOR`` is
    honoured.

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
        self._colour = self._live and has_colours(self._stream)
        self._diverted: _Diverted | None = None
        self._start_over()
        call_in_children(self._start_over)

    def _start_over(self) -> None:
        """Show nothing yet; in a forked child, nothing of what the parent shows."""
        self._lock = threading.RLock()
        # Held while streams are diverted, which takes the locks of log handlers. Who writes holds
        # such a lock already and takes only the other one.
        self._turn = threading.Lock()
        self._running: dict[tuple[str, str], tuple[float, int]] = {}
        self._progress: dict[tuple[str, str], str] = {}
        # Of each run how many tasks it has, and how many of them have ended in which way.
        self._runs: dict[str, tuple[int, Counter[str]]] = {}
        self._drawn: list[int] = []
        self._kept: deque[str] = deque(maxlen=_KEPT_PIECES)
        self._mid_line = False
        self._stop = threading.Event()
        # Not before the first redraw: a print that had begun as the streams were diverted goes
        # straight to the terminal, and would be written over below a drawing.
        self._drawing = False
        diverted, self._diverted = self._diverted, None
        if diverted is not None:
            diverted.undo(writes=False)

    def on_dag_start(self, event: DagStartEvent) -> None:
        """Begin to show a run."""
        with self._turn:
            with self._lock:
                self._runs[event.run_id] = len(event.task_names), Counter()
            if self._live and self._diverted is None:
                self._begin_drawing()
            tasks = counted(len(event.task_names), "task")
            self._say(for_terminal(f"run {event.run_id} of {event.dag_name}: {tasks}"))

    def on_task_start(self, event: TaskStartEvent) -> None:
        """Show a running task."""
        with self._lock:
            name = _label(event)
            self._progress.pop((event.run_id, name), None)
            self._running[event.run_id, name] = (time.monotonic(), event.attempt)
            if not self._live and event.item is None:
                again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
                self._line("run", f"{name}{again}")

    def on_task_progress(self, event: TaskProgressEvent) -> None:
        """Show how far a running task has come; only where lines are redrawn."""
        with self._lock:
            text = progress_text(event.done, event.total, event.unit)
            self._progress[event.run_id, _label(event)] = for_terminal(text)

    def on_task_success(self, event: TaskSuccessEvent) -> None:
        """Count a success."""
        self._ended(event, "succeeded")
        if not self._live and event.item is None:
            self._line("succeeded", f"{event.task_name}  {seconds(event.duration_s)}")

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        """Keep a failure on the screen."""
        self._ended(event, "failed")
        self._line("failed", f"{_label(event)}: {event.message}")

    def on_task_retry(self, event: TaskRetryEvent) -> None:
        """Keep a retry on the screen."""
        with self._lock:
            self._running.pop((event.run_id, _label(event)), None)
        wait = f"again in {event.delay_s:g} s" if event.delay_s else "again"
        self._line("retry", f"{_label(event)}: {event.message}", f", {wait}")

    def on_task_skip(self, event: TaskSkipEvent) -> None:
        """Count a skip."""
        self._ended(event, "skipped")
        if not self._live and event.item is None:
            self._line("skipped", f"{event.task_name} skipped")

    def on_task_omit(self, event: TaskOmitEvent) -> None:
        """Count an omission."""
        self._ended(event, "omitted")
        if not self._live and event.item is None:
            self._line("omitted", f"{event.task_name} omitted: {event.error}")

    def on_dag_end(self, event: DagEndEvent) -> None:
        """Say how the run ended; with the last run the drawing ends."""
        with self._turn:
            with self._lock:
                _, ended = self._runs.pop(event.run_id)
                for key in [key for key in self._running if key[0] == event.run_id]:
                    del self._running[key]
                others = self._progress.items()
                self._progress = {key: text for key, text in others if key[0] != event.run_id}
            if not self._runs and self._diverted is not None:
                self._end_drawing(self._diverted)
            counts = ", ".join(f"{number} {word}" for word, number in ended.items())
            word = "succeeded" if event.status == "SUCCESS" else "failed"
            took = seconds(event.duration_s)
            self._line(word, f"{event.dag_name} {word} in {took}: {counts}")
            if not self._runs:
                with self._lock:
                    self._kept.clear()

    def _ended(self, event: TaskEnd, word: str) -> None:
        with self._lock:
            self._running.pop((event.run_id, _label(event)), None)
            if event.item is None:  # items count with their task
                self._runs[event.run_id][1][word] += 1

    def _line(self, kind: str, text: str, ending: str = "") -> None:
        (sign, colour), shown = _SIGNS[kind], for_terminal(text)
        if self._live:
            # The report has the whole of a long error; here it must not push the others away.
            room = self._size().columns * _MOST_ROWS - len(ending) - len(sign) - 1
            shown = shortened(shown, room)
        if self._colour:
            sign = coloured(sign, colour)
        self._say(f"{sign} {shown}{ending}")

    def _say(self, line: str) -> None:
        """Write a line that stays, above whatever is redrawn."""
        with self._lock:
            self.write_above(f"\n{line}\n" if self._mid_line else f"{line}\n")

    def write_above(self, text: str) -> None:
        """Write text above the lines that are redrawn, in one piece."""
        with self._lock:
            size = self._size()
            start = self._start(size)
            self._mid_line = not text.endswith("\n")
            # Nothing is drawn in the middle of a line that a task prints in pieces.
            block = self._block(size) if self._drawing and not self._mid_line else ""
            if self._live:
                self._kept.append(text)
            self._stream.write(f"{start}\x1b[J{text}{block}" if start else f"{text}{block}")
            self._stream.flush()

    # Drawing.

    def _begin_drawing(self) -> None:
        self._stop = threading.Event()
        self._diverted = _Diverted(self, self._stream)
        redraw = threading.Thread(
            target=self._redraw, args=(self._stop,), name="flowrun-progress", daemon=True
        )
        redraw.start()

    def _end_drawing(self, diverted: _Diverted) -> None:
        with self._lock:
            self._stop.set()
            self._diverted = None
            self._drawing = False
            start = self._start(self._size())
            self._stream.write(f"{start}\x1b[J" if start else "")
            self._stream.flush()
        diverted.undo()

    def _redraw(self, stop: threading.Event) -> None:
        while not stop.wait(_REDRAW_S):
            with self._lock:
                size = self._size()
                self._drawing = not stop.is_set()
                if self._mid_line or not self._drawing:
                    continue
                # Written over and not erased before, so that nothing flickers.
                start = self._start(size)
                try:
                    self._stream.write(f"{start}{self._block(size)}\x1b[J")
                    self._stream.flush()
                except (OSError, ValueError):  # the terminal has gone; the run goes on
                    return

    def _start(self, size: os.terminal_size) -> str:
        """Return what moves to the first of the drawn lines, which count as drawn no more."""
        drawn, self._drawn = self._drawn, []
        if not drawn:
            return ""
        if max(drawn) < size.columns:
            return f"\r\x1b[{len(drawn)}A"
        # The terminal has become so narrow that a drawn line does not fit any more. Some
        # terminals now cut it and others wrap it, so the place of the first line is unknown.
        lines = "".join(self._kept).split("\n")
        return "\x1b[2J\x1b[H" + "\n".join(lines[-size.lines :])

    def _size(self) -> os.terminal_size:
        """Return the stream's own size: another stream may be a file, or another terminal."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return shutil.get_terminal_size()
        return size if size.columns and size.lines else shutil.get_terminal_size()

    def _block(self, size: os.terminal_size) -> str:
        """Return the lines to draw, and note how wide each is."""
        # Beside them stand the line of those that are left out, the counts, and the cursor.
        room = max(0, min(_MOST_LINES, size.lines - 4))
        now = time.monotonic()
        running = sorted(self._running.items(), key=lambda item: item[1][0])
        lines: list[str] = []
        most = max(1, size.columns - 1)
        for key, (since, attempt) in running[:room]:
            name = key[1]
            again = f" (attempt {attempt})" if attempt > 1 else ""
            told = f"  {self._progress[key]}" if key in self._progress else ""
            ending = f"{again}{told}  {seconds(now - since)}"
            shown = shortened(for_terminal(name), max(1, most - 2 - len(ending)))
            lines.append(f"* {shown}{ending}")
        if len(running) > room > 0:
            lines.append(f"  and {len(running) - room} more")
        counts = sum((ended for _, ended in self._runs.values()), Counter[str]())
        total = sum(size for size, _ in self._runs.values())
        words = "".join(f", {number} {word}" for word, number in counts.items())
        lines.append(f"{counts.total()}/{total} done, {len(running)} running{words}")
        lines = [shortened(line, most) for line in lines]
        self._drawn = [columns(line) for line in lines]
        return "".join(f"{line}\x1b[K\n" for line in lines)


def _label(event: TaskEnd | TaskStartEvent | TaskRetryEvent | TaskProgressEvent) -> str:
    """Return the task's name, with the number of the item if the event is of one."""
    return event.task_name if event.item is None else f"{event.task_name}[{event.item}]"


class _Diverted:
    """Standard output, standard error and log handlers, sent above the drawing for a while."""

    def __init__(self, hook: ProgressHook, stream: TextIO) -> None:
        self._proxies: list[tuple[str, TextIO, _Above]] = []
        for name in ("stdout", "stderr"):
            original: TextIO = getattr(sys, name)
            if original is stream or (original.isatty() and stream.isatty()):
                proxy = _Above(hook, original)
                self._proxies.append((name, original, proxy))
                setattr(sys, name, proxy)
        self._handlers: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []
        above = {id(original): proxy for _, original, proxy in self._proxies}
        for handler in _handlers():
            written = handler.stream
            if id(written) in above:
                self._handlers.append((handler, written))
                handler.setStream(cast("TextIO", above[id(written)]))

    def undo(self, *, writes: bool = True) -> None:
        """Put everything back.

        Args:
            writes: Whether to write what threads have not ended.
        """
        for name, original, proxy in self._proxies:
            if getattr(sys, name) is proxy:
                setattr(sys, name, original)
            proxy.finish(writes=writes)
        for handler, original in self._handlers:
            handler.setStream(original)


def _handlers() -> list[logging.StreamHandler[TextIO]]:
    """Return every handler of every logger that writes to a stream."""
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found: dict[int, logging.StreamHandler[TextIO]] = {}
    for logger in loggers:
        # A name that only others stand below has a place holder.
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, logging.StreamHandler):
                writes = cast("logging.StreamHandler[TextIO]", handler)
                found[id(writes)] = writes
    return list(found.values())


class _Above:
    """A stream whose lines are written above the drawing, each in one piece.

    ``print`` writes a line and its end one after the other, and another thread's ``print`` may
    come in between; so each thread's line is held until it has ended, or is flushed.
    """

    def __init__(self, hook: ProgressHook, original: TextIO) -> None:
        self._hook = hook
        self._original = original
        self._held: dict[int, str] = {}

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        whole, end, rest = (self._held.pop(thread, "") + text).rpartition("\n")
        if rest:
            self._held[thread] = rest
        if end:
            self._hook.write_above(whole + end)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        held = self._held.pop(threading.get_ident(), "")
        if held:
            self._hook.write_above(held)

    def finish(self, *, writes: bool) -> None:
        while self._held:
            _, text = self._held.popitem()
            if writes:  # pragma: no branch - not in a forked child
                self._hook.write_above(text + "\n")

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)


def seconds(duration_s: float) -> str:
    """Return a duration as people say it."""
    if duration_s < 60:  # noqa: PLR2004 - a minute
        return f"{duration_s:.1f} s"
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes} min {seconds:02} s"
