"""A run report -> the data that its HTML page carries: bounded, escaped, inert."""

from __future__ import annotations

import json
import reprlib
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from flowrun.errors import ResultNotReadableError
from flowrun.escape import for_terminal
from flowrun.failure import own_line
from flowrun.render.inside import log_text, task_progress
from flowrun.render.time_parts import time_of_task
from flowrun.render.wording import (
    attempts_of,
    counted,
    items_text,
    teardown_text,
    wait_s,
    why_text,
)
from flowrun.state import JsonSerializer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from flowrun.render.svg import Picture
    from flowrun.report import AttemptReport, ItemReport, RunReport, TaskReport

    Peek: TypeAlias = Callable[[str, int], Mapping[str, tuple[str, int, bytes]]]

_MOST_ERROR_BYTES = 2_000_000
_MOST_PREVIEW_BYTES = 1_000_000
_MOST_LOG_BYTES = 2_000_000
_LOG = 20_000
_SHORT = 300
_PREVIEW = 2_000
_MOST_ITEMS = 500
_SHOWN_IN_PANEL = frozenset(("limit", "slot", "start", "retry", "saving"))
"""What a task's time went to beside its dependencies and its code."""


def preview(value: object) -> str:
    """Return a short ``repr`` of a result, whatever it is.

    Example:
        >>> preview([1, 2, 3])
        '[1, 2, 3]'
    """
    try:
        text = _SHORTENER.repr(value)
    except Exception as error:  # noqa: BLE001 - a value's own repr may raise anything
        return f"<{type(value).__qualname__}: its repr failed with {type(error).__qualname__}>"
    return text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}…"


def stored_previews(report: RunReport, peek: Peek) -> dict[str, str]:
    """Return what to show of each result that is in the store; no pickle is read for it.

    Args:
        report: The run.
        peek: Returns of each of a run's results the serializer's name, the size and the first
            bytes, as ``SqliteStateStore.stored_results`` does.
    """
    found = peek(report["run_id"], _PREVIEW)
    return {name: _stored_preview(*result) for name, result in found.items()}


def _stored_preview(serializer: str, size: int, start: bytes) -> str:
    if serializer != _JSON.name:
        return f"{serializer}, {counted(size, 'byte')}, not decoded"
    if size <= len(start):
        with suppress(ResultNotReadableError):
            return preview(_JSON.deserialize(start))
    return start.decode("utf-8", "ignore") + "…" * (size > len(start))


class _Shortener(reprlib.Repr):
    """Bounded in depth and width; leaves a table's ``repr`` its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 12
        self.maxarray = self.maxdict = 12
        self.maxstring = self.maxlong = 300

    def repr_dict(self, x: dict[object, object], level: int) -> str:
        # reprlib's own sorts the keys; a dictionary's order is part of what it shows.
        if x and level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        if len(x) > self.maxdict:
            pairs.append("...")
        return f"{{{', '.join(pairs)}}}"

    def repr_instance(self, x: object, level: int) -> str:  # noqa: ARG002 - reprlib's names
        text = repr(x)
        return text if len(text) <= _PREVIEW else f"{text[:_PREVIEW]}…"


_SHORTENER = _Shortener()
_JSON = JsonSerializer()


def page_data(
    report: RunReport,
    *,
    critical: list[str],
    picture: Picture,
    result_preview: Callable[[object], str] | None,
    stored: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Return all that the page's script needs.

    Args:
        report: The run.
        critical: The tasks on the critical path.
        picture: The graph.
        result_preview: Makes a result's text; ``None`` shows no result.
        stored: What to show of results that are in the store, by task.
    """
    builder = _Builder(report, set(critical), result_preview, stored or {})
    return {
        "finished": builder.offset(report["finished_at"]),
        "tasks": [builder.task(name, task) for name, task in report["tasks"].items()],
        "texts": builder.texts,
        "marks": picture.marks,
        "boxes": picture.boxes,
    }


def as_json(data: object) -> str:
    """Return JSON that nothing in it can make an HTML parser leave the script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _why(task: TaskReport) -> str:
    """Return what is said of a task that has not failed, in few words."""
    if task["cached_from"]:
        return f"cached from {task['cached_from']}"
    if task["overridden"]:
        return f"overridden by a {task['overridden']}"
    if task["why_run"]:
        return f"run by the resume: {task['why_run']}"
    return teardown_text(task["teardown_of"]) if task["teardown_of"] else ""


class _Builder:
    def __init__(
        self,
        report: RunReport,
        critical: set[str],
        result_preview: Callable[[object], str] | None,
        stored: Mapping[str, str],
    ) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}
        self._report = report
        self._critical = critical
        self._preview = result_preview
        self._stored = stored
        self._number = {name: number for number, name in enumerate(report["tasks"])}
        self._error_room = _MOST_ERROR_BYTES
        self._preview_room = _MOST_PREVIEW_BYTES
        self._log_room = _MOST_LOG_BYTES

    def task(self, name: str, task: TaskReport) -> dict[str, object]:
        """Return what the page shows of a task.

        Times are seconds since the run was created. What would say nothing is left out.
        """
        made: dict[str, object] = {
            "name": for_terminal(name),
            "status": str(task["status"]),
            "deps": [self._number[parent] for parent in task["deps"] if parent in self._number],
            "attempt": task["attempt"],
            "reason": for_terminal(task["reason"] or ""),
            "critical": int(name in self._critical),
            "kept": int(task["kept"]),
            "attempts": [self._attempt(attempt) for attempt in attempts_of(task)],
            "why": for_terminal(_why(task)),
            "mapped": items_text(task),
            "items": self._items(task["items"] or []),
        }
        made["progress"] = for_terminal(task_progress(task))
        made["logs"] = self._logs(task)
        made = {key: value for key, value in made.items() if value}
        if task["error"] is not None and task["status"] != "SUCCESS":
            made["error"] = self._text(task["error"])
            made["why"] = for_terminal(why_text(task))[:_SHORT]
        waits = [wait_s(attempt) for attempt in attempts_of(task)]
        if any(attempt["slot_wait_s"] is not None for attempt in task["attempts"]):
            made["waits"] = [wait and round(wait, 6) for wait in waits]
        spent: dict[str, float] = {}
        for part in time_of_task(self._report, name):
            if part.kind in _SHOWN_IN_PANEL:
                spent[part.words] = spent.get(part.words, 0.0) + part.duration_s
        if spent:
            made["spent"] = [[words, round(spent_s, 3)] for words, spent_s in spent.items()]
        if task["status"] == "RUNNING":
            made["ready"] = self.offset(task["ready_at"]) or 0.0
            made["started"] = self.offset(task["started_at"]) or 0.0
        if task["status"] == "SUCCESS":
            made |= self._result(name, task)
        return made

    def _items(self, items: list[ItemReport]) -> list[list[object]]:
        """Return the first items of a mapped task, before them those that failed or run."""
        shown = sorted(items, key=lambda item: item["status"] not in ("FAILED", "RUNNING"))
        return [self._item(item) for item in shown[:_MOST_ITEMS]]

    def _item(self, item: ItemReport) -> list[object]:
        """Return number, status, started, finished, attempt, why, logs."""
        why = own_line(item["error"] or "").removeprefix(f"{item['reason']}: ")
        why = why or task_progress(item)
        times = (self.offset(item["started_at"]), self.offset(item["finished_at"]))
        row: list[object] = [item["item"], item["status"], *times, item["attempt"]]
        logs = self._logs(item)
        return [*row, for_terminal(why)[:_SHORT], *([logs] if logs else [])]

    def _attempt(self, attempt: AttemptReport) -> list[object]:
        """Return number, ready, started, finished, place of the error, reason, abandoned."""
        row: list[object] = [
            attempt["attempt"],
            self.offset(attempt["ready_at"]),
            self.offset(attempt["started_at"]),
            self.offset(attempt["finished_at"]),
        ]
        if attempt["error"] is not None:
            row += [self._text(attempt["error"]), for_terminal(attempt["reason"] or "")]
            row += [1] if attempt["abandoned"] else []
        return row

    def _logs(self, task: TaskReport | ItemReport) -> list[list[object]]:
        return [self._log(attempt) for attempt in task["attempts"] if attempt["logs"]]

    def _log(self, attempt: AttemptReport) -> list[object]:
        """Return the number of an attempt and what was logged in it."""
        text = log_text(attempt)
        most = min(_LOG, max(_SHORT, self._log_room))
        if len(text) > most:
            text = f"(cut for this page; 'flowrun logs' prints it whole)\n…{text[-most:]}"
        text = for_terminal(text, multiline=True)
        self._log_room -= len(text)
        return [attempt["attempt"], text]

    def _result(self, name: str, task: TaskReport) -> dict[str, str]:
        state = task["result_state"]
        if self._preview is None and state in {"kept", "stored"}:
            return {"state": "hidden"}
        if self._preview is not None and state == "kept":
            shown = self._preview(task["result"])
        elif name in self._stored:
            shown = self._stored[name]
        else:
            return {"state": str(state)}
        text = for_terminal(shown, multiline=True)
        most = _PREVIEW if self._preview_room > 0 else _SHORT
        text = text if len(text) <= most else f"{text[:most]}…"
        self._preview_room -= len(text)
        return {"result": text}

    def offset(self, moment: float | None) -> float | None:
        """Return a point in time as seconds since the run was created, to the millisecond."""
        return None if moment is None else round(moment - self._report["created_at"], 3)

    def _text(self, error: str) -> int:
        """Return the place of an error among the texts."""
        if error not in self._places:
            text = for_terminal(error, multiline=True)
            if len(text) > self._error_room:
                # The end of a traceback says what happened; the beginning only where.
                text = f"(cut for this page; the run's report has it whole)\n…{text[-_SHORT:]}"
            self._error_room -= len(text)
            self._places[error] = len(self._places)
            self.texts.append(text)
        return self._places[error]
