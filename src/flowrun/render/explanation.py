"""Where the time of a run, or of one of its tasks, went: counted here once, for all that show it.

The time is cut into parts that follow each other from the run's creation to its end, so that they
add up to it (V3). Of a run they are those of the critical path, found backwards from its end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from flowrun.errors import UnknownTaskError
from flowrun.escape import columns, for_terminal, padded
from flowrun.failure import own_line
from flowrun.render.wording import SIGNS, attempts_of, counted, duration_text, why_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flowrun.report import AttemptReport, RunReport, TaskReport

Kind: TypeAlias = Literal[
    "running",
    "dependencies",
    "slot",
    "limit",
    "start",
    "retry",
    "saving",
    "after",
    "lost",
    "overhead",
]
_WORDS: dict[Kind, str] = {
    "running": "running",
    "dependencies": "waiting for what it depends on",
    "slot": "waiting for a slot",
    "limit": "waiting for limit",
    "start": "waiting for a thread or the loop",
    "retry": "waiting before a retry",
    "saving": "saving",
    "after": "after it, while the run went on",
    "lost": "running, until an unknown time: its process died",
    "overhead": "overhead (start and end of the run)",
}
_ORDER = tuple(_WORDS)
_MOST_NAMED = 4
_STOPPED = frozenset(("RUN_CANCELLED", "RUN_TIMED_OUT", "RUN_BROKEN", "FAIL_FAST", "OWNER_DIED"))
_LEAST_S = 1e-6
_MOST_SECONDS = 59.95
_MOST_MILLISECONDS = 0.9995


class TimePart(NamedTuple):
    """One stretch of time.

    Attributes:
        kind: What the time went to: ``"running"``, ``"slot"``, ...
        task: The task; ``None`` for time that belongs to no task.
        duration_s: How long, in seconds.
        limit: The limit that was waited for.
    """

    kind: Kind
    task: str | None
    duration_s: float
    limit: str | None = None

    @property
    def words(self) -> str:
        """What the time went to, in words."""
        words = _WORDS[self.kind]
        return f"{words} {for_terminal(self.limit)}" if self.limit else words


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
            if words != _WORDS["running"] and _shows(show(spent_s))
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
    begin, end = report["created_at"], _end_of(report, now)
    chain = _chain(report)
    parts = _of_run(report, chain, end) if task is None else time_of_task(report, task, now)
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
        _busy(report, end),
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
    path = [] if report["finished_at"] is None else _with_attempts(report, _chain(report))
    return path if len(path) > 1 else []


def _with_attempts(report: RunReport, chain: Iterable[str]) -> list[str]:
    return [name for name in chain if _spans(report["tasks"][name])]


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


# -- the critical path -----------------------------------------------------------------------------


def _chain(report: RunReport) -> list[str]:
    """Return the critical path with the tasks on it that had no attempt."""
    tasks = report["tasks"]
    ended = {
        name: _available_at(task)
        for name, task in tasks.items()
        if _last_moment(task) and not task["kept"]
    }
    last = [name for name in reversed(ended) if _spans(tasks[name])]  # of a tie, what depends
    step = max(last, key=_last_of(report), default=None)
    chain: list[str] = []
    while step is not None:
        chain.append(step)
        before = [name for name in _comes_after(report, step) if name in ended]
        step = max(before, key=ended.__getitem__, default=None)
    return chain[::-1]


def _comes_after(report: RunReport, name: str) -> list[str]:
    """Return what had to end before a task could start."""
    task = report["tasks"][name]
    if not task["teardown_of"]:
        return task["deps"]
    setups = set(task["teardown_of"])
    users = [
        other
        for other, found in report["tasks"].items()
        if setups.intersection(found["deps"]) and not setups.intersection(found["teardown_of"])
    ]
    return [*task["deps"], *users]


def _last_of(report: RunReport) -> Callable[[str], tuple[int, float]]:
    """Return what orders tasks by how much the run's end was up to them."""

    def order(name: str) -> tuple[int, float]:
        task = report["tasks"][name]
        if task["status"] == "RUNNING" or (task["status"], task["reason"]) in _ENDED_BY_A_STOP:
            return 2, _available_at(task)
        waited = task["status"] == "SKIPPED"  # and was ready: the run was stopped meanwhile
        return (1, -(task["ready_at"] or 0.0)) if waited else (0, _available_at(task))

    return order


_GOES_ON = frozenset(("PENDING", "RUNNING"))
_ENDED_BY_A_STOP = frozenset(("FAILED", reason) for reason in _STOPPED)


def _last_moment(task: TaskReport) -> float:
    return task["finished_at"] or task["started_at"] or 0.0


def _available_at(task: TaskReport) -> float:
    """Return when the outcome of a task was there to be saved."""
    return task["encoded_at"] or _last_moment(task)


# -- parts of the time -----------------------------------------------------------------------------


class _Span(NamedTuple):
    """An attempt, or the wait for one that never came."""

    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    slot_wait_s: float | None
    limit_waits: dict[str, float]
    reason: str | None


def _spans(task: TaskReport) -> list[_Span]:
    """Return the attempts of a task, the one that runs and one that never came included."""
    found = [_span(attempt) for attempt in attempts_of(task)]
    ready_at = task["ready_at"]
    if task["status"] == "RUNNING":
        found.append(_span(task))
    elif task["status"] in ("SKIPPED", "PENDING") and ready_at is not None:
        ended_at = found[-1].finished_at if found else None
        if ended_at is not None and ready_at < ended_at:  # it waited for a retry
            found.append(_Span(None, None, None, None, {}, None))
        else:
            found.append(_span(task)._replace(started_at=None))
    return found


def _span(of: TaskReport | AttemptReport) -> _Span:
    times = (of["ready_at"], of["started_at"], of["finished_at"])
    return _Span(*times, of["slot_wait_s"], of["limit_waits"], of["reason"])


class _Backwards:
    """Parts of time, gathered from the end of a run to its beginning."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin = begin
        self._at = end
        self._parts: list[TimePart] = []

    def to(
        self, moment: float | None, kind: Kind, task: str | None, limit: str | None = None
    ) -> None:
        """Say what the time between a moment and the one before was spent on."""
        if moment is None:
            return
        moment = max(moment, self._begin)
        if moment < self._at - _LEAST_S:  # less is rounding, and belongs to the part before
            self._parts.append(TimePart(kind, task, self._at - moment, limit))
            self._at = moment

    def over(self, spans: Iterable[_Span], task: str) -> None:
        """Say what the time of a task was spent on, from its end to when it became ready."""
        later = False
        for span in reversed(list(spans)):
            if later:
                self.to(span.finished_at, "retry", task)
            later = True
            self.to(span.started_at, "lost" if span.reason == "OWNER_DIED" else "running", task)
            ready_at, at = span.ready_at, self._at
            if ready_at is None:
                continue
            waits = sum(span.limit_waits.values())
            if span.slot_wait_s is not None:
                at = ready_at + span.slot_wait_s + waits
                self.to(at, "start", task)
            for limit, wait_s in reversed(span.limit_waits.items()):
                self.to(max(self._at - wait_s, ready_at), "limit", task, limit)
            self.to(ready_at, "slot", task)

    def parts(self) -> list[TimePart]:
        """Return the parts, the first one first."""
        return self._parts[::-1]


def _of_run(report: RunReport, chain: Sequence[str], end: float) -> list[TimePart]:
    tasks, begin = report["tasks"], report["created_at"]
    back = _Backwards(begin, end)
    for place, name in enumerate(reversed(chain)):
        task = tasks[name]
        if place:  # what follows it became ready when it was saved
            back.to(task["finished_at"], "saving", name)
        elif task["status"] not in _GOES_ON:
            back.to(_available_at(task), "overhead", None)
            back.to(task["finished_at"], "saving", name)
        back.over(_spans(task), name)
    back.to(begin, "overhead", None)
    return back.parts()


def time_of_task(report: RunReport, name: str, now: float | None = None) -> list[TimePart]:
    """Return what the time of a run was to one of its tasks, the first part first."""
    task, begin = report["tasks"][name], report["created_at"]
    back = _Backwards(begin, _end_of(report, now))
    if task["kept"]:
        back.to(begin, "after", name)
        return back.parts()
    if task["finished_at"] is not None and task["status"] not in _GOES_ON:
        back.to(task["finished_at"] + (task["saving_s"] or 0.0), "after", name)
        back.to(task["finished_at"], "saving", name)
    back.over(_spans(task), name)
    has_deps = any(parent in report["tasks"] for parent in task["deps"])
    back.to(begin, "dependencies" if has_deps else "overhead", name if has_deps else None)
    return back.parts()


def _end_of(report: RunReport, now: float | None) -> float:
    """Return when a run has ended, or until when it is looked at."""
    if report["finished_at"] is not None:
        return report["finished_at"]
    return max(time.time() if now is None else now, report["created_at"])


def _busy(report: RunReport, end: float) -> float | None:
    """Return the share of the run's slots that its attempts held."""
    slots, begin = report["max_parallel"], report["created_at"]
    if not slots or end <= begin:
        return None
    held = 0.0
    for task in report["tasks"].values():
        if task["kept"]:
            continue
        items = task["items"] or ()
        new = [item for item in items if not item["kept"]]
        spans = [_span(attempt) for item in new for attempt in item["attempts"]]
        for span in spans if task["items"] is not None else _spans(task):
            if span.started_at is not None and span.reason != "OWNER_DIED":
                held += max((span.finished_at or end) - span.started_at, 0.0)
    return min(held / (slots * (end - begin)), 1.0)


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
