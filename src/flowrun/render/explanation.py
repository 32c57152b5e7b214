"""Where the time of a run, or of one of its tasks, went: counted here once, for all that show it.

The time is cut into parts that follow each other from the run's creation to its end, so that they
add up to it (V3). Of a run they are those of the critical path, found backwards from its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flowrun.errors import UnknownTaskError
from flowrun.escape import columns, for_terminal, padded
from flowrun.failure import own_line
from flowrun.render.time_parts import (
    WORDS,
    TimePart,
    busy_share,
    chain_of,
    end_of,
    spans_of,
    time_of_run,
    time_of_task,
)
from flowrun.render.wording import SIGNS, counted, duration_text, why_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowrun.report import RunReport, TaskReport

_ORDER = tuple(WORDS)
_MOST_NAMED = 4
_MOST_SECONDS = 59.95
_MOST_MILLISECONDS = 0.9995


class Explanation(NamedTuple):
    """Where the time of a run went, or that of one of its tasks; ``str()`` is a text to read.

    Attributes:
        run_id: The run.
        dag_name: Its DAG.
        task: The task that is explained; ``None`` for the whole run.
        duration_s: How long the run took, or has been going on.
        is_over: Whether it has ended.
        path: The critical path: the tasks that decided when the run ended, from first to last.
        parts: What the time went to, from the run's creation to its end; they add up to
            ``duration_s``.
        busy: The share of the run's slots that were in use; ``None`` if it is not known.
        why: Why tasks did not run, or ran again: by task, in one line.
    """

    run_id: str
    dag_name: str
    task: str | None
    duration_s: float
    is_over: bool
    path: tuple[str, ...]
    parts: tuple[TimePart, ...]
    busy: float | None
    why: dict[str, str]

    def totals(self) -> dict[str, float]:
        """Return how long was spent on what, in words."""
        found: dict[str, float] = {}
        for part in sorted(self.parts, key=lambda part: _ORDER.index(part.kind)):
            found[part.words] = found.get(part.words, 0.0) + part.duration_s
        return found

    def pieces(self) -> list[tuple[str | None, str]]:
        """Return the line that answers "why was it slow?", in pieces: a task's name, or a text."""
        show = _scale(self.duration_s)
        so_far = "" if self.is_over else " so far"
        pieces: list[tuple[str | None, str]] = [(None, _whole(self.duration_s, show) + so_far)]
        by_task = sorted(self._by_task().items(), key=lambda item: -item[1])
        named = [item for item in by_task[:_MOST_NAMED] if _shows(show(item[1]))]
        for place, (name, ran_s) in enumerate(named):
            pieces += [(None, ", " if place else ": "), (name, ""), (None, f" {show(ran_s)}")]
        others = show(sum(ran_s for _, ran_s in by_task[len(named) :]))
        if _shows(others):
            number = counted(len(by_task) - len(named), "other")
            pieces.append((None, f"{', ' if named else ': '}{number} {others}"))
        rest = [
            f"{words} {show(spent_s)}"
            for words, spent_s in self.totals().items()
            if words != WORDS["running"] and _shows(show(spent_s))
        ]
        if self.busy is not None:
            rest.append(f"slots {100 * self.busy:.0f} % busy")
        for text in rest:
            pieces.append((None, f"{': ' if len(pieces) == 1 else '; '}{text}"))
        return pieces

    @property
    def line(self) -> str:
        """The line that answers "why was it slow?"."""
        return "".join(text if name is None else for_terminal(name) for name, text in self.pieces())

    def __str__(self) -> str:
        """Return the line, the critical path or the task's time, and why tasks did not run."""
        subject = self.dag_name if self.task is None else f"{self.task} of {self.dag_name}"
        lines = [f"{for_terminal(subject)}: {self.line}"]
        rows = [
            (duration_text(part.duration_s), for_terminal(part.task or ""), part.words)
            for part in self.parts
        ]
        if rows:
            lines += ["", *_table(("Time", "Task", "Spent on"), rows)]
        if self.why:
            shown = [(for_terminal(name), for_terminal(text)) for name, text in self.why.items()]
            lines += ["", *_table(("Task", "Why"), shown)]
        return "\n".join(lines)

    def _by_task(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in self.parts:
            if part.kind == "running" and part.task is not None:
                found[part.task] = found.get(part.task, 0.0) + part.duration_s
        return found


def explain(report: RunReport, task: str | None = None, *, now: float | None = None) -> Explanation:
    """Return where the time of a run went, or that of one of its tasks.

    Args:
        report: The run.
        task: The task.
        now: The time of a run that has not ended; that of this call by default.

    Raises:
        UnknownTaskError: The run has no such task.
    """
    if task is not None and task not in report["tasks"]:
        raise UnknownTaskError(report["dag_name"], task, report["tasks"])
    begin, end = report["created_at"], end_of(report, now)
    chain = chain_of(report)
    parts = time_of_run(report, chain, end) if task is None else time_of_task(report, task, now)
    wanted = report["tasks"] if task is None else [task]
    why = {name: text for name in wanted if (text := why_of(report, name))}
    return Explanation(
        report["run_id"],
        report["dag_name"],
        task,
        end - begin,
        report["finished_at"] is not None,
        tuple(_with_attempts(report, chain)),
        tuple(parts),
        busy_share(report, end),
        why,
    )


def why_slow(report: RunReport) -> list[tuple[str | None, str]]:
    """Return the pieces of the line that says where the time of a run went.

    There are none if nothing has run, and if it is unknown how long a dead process went on.
    """
    is_known = report["finished_at"] is not None or report["alive"]
    explained = explain(report)
    return explained.pieces() if is_known and explained.path else []


def critical_path(report: RunReport) -> list[str]:
    """Return the chain of tasks that decided when the run ended, from first to last.

    Backwards from the task that ended last, each time to the dependency whose result was there
    last. Of a run that was stopped it begins at what ran then, or else at what waited. Empty while
    the run has not ended, and for a single task: it is no path.
    """
    path = [] if report["finished_at"] is None else _with_attempts(report, chain_of(report))
    return path if len(path) > 1 else []


def _with_attempts(report: RunReport, chain: Iterable[str]) -> list[str]:
    return [name for name in chain if spans_of(report["tasks"][name])]


def why_of(report: RunReport, name: str) -> str:
    """Return why a task did not run, or did again, or an empty text."""
    task = report["tasks"][name]
    return "; ".join(filter(None, [reason(report, task) for reason in _REASONS]))


def _why_it_ended(report: RunReport, task: TaskReport) -> str:
    del report
    if task["status"] == "FAILED":
        return f"failed: {own_line(task['error'] or '')}"
    if task["status"] in ("SKIPPED", "OMITTED"):
        return f"{SIGNS[task['status']].word}: {why_text(task)}"
    return ""


def _why_kept(report: RunReport, task: TaskReport) -> str:
    return f"kept from run {report['resumed_from']}" if task["kept"] else ""


def _why_overridden(report: RunReport, task: TaskReport) -> str:
    del report
    return f"overridden by a {task['overridden']}" if task["overridden"] else ""


def _why_run_again(report: RunReport, task: TaskReport) -> str:
    del report
    return f"run by the resume: {task['why_run']}" if task["why_run"] else ""


_REASONS: tuple[Callable[[RunReport, TaskReport], str], ...] = (
    _why_it_ended,
    _why_kept,
    _why_overridden,
    _why_run_again,
)
"""What is asked why a task did not run, or did again; whatever has no answer says nothing."""


# -- words -----------------------------------------------------------------------------------------


def _scale(total_s: float) -> Callable[[float], str]:
    """Return what shows numbers in the unit of their sum."""
    if total_s >= _MOST_SECONDS:
        return duration_text
    if total_s >= _MOST_MILLISECONDS:
        return lambda duration_s: f"{duration_s:.1f}"
    return lambda duration_s: f"{duration_s * 1000:.0f}"


def _whole(total_s: float, show: Callable[[float], str]) -> str:
    if total_s >= _MOST_SECONDS:
        return show(total_s)
    return f"{show(total_s)} {'s' if total_s >= _MOST_MILLISECONDS else 'ms'}"


def _shows(number: str) -> bool:
    return any(digit in number for digit in "123456789")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows below their headings, each column as wide as it has to be."""
    lines = [headings, *rows]
    widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(padded, line, widths)).rstrip() for line in lines]
