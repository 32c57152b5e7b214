"""The time of a run cut into parts, and the critical path that they follow: plain arithmetic.

``explanation.py`` puts it in words.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from flowrun.escape import for_terminal
from flowrun.render.wording import attempts_of

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
WORDS: dict[Kind, str] = {
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
"""What the time went to, in words; in the order in which it is told."""
_STOPPED = frozenset(("RUN_CANCELLED", "RUN_TIMED_OUT", "RUN_BROKEN", "FAIL_FAST", "OWNER_DIED"))
_LEAST_S = 1e-6


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
        words = WORDS[self.kind]
        return f"{words} {for_terminal(self.limit)}" if self.limit else words


# -- the critical path -----------------------------------------------------------------------------


def chain_of(report: RunReport) -> list[str]:
    """Return the critical path with the tasks on it that had no attempt."""
    tasks = report["tasks"]
    ended = {
        name: _available_at(task)
        for name, task in tasks.items()
        if _last_moment(task) and not task["kept"]
    }
    last = [name for name in reversed(ended) if spans_of(tasks[name])]  # of a tie, what depends
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


def spans_of(task: TaskReport) -> list[_Span]:
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


def time_of_run(report: RunReport, chain: Sequence[str], end: float) -> list[TimePart]:
    """Return what the time of a run went to, the first part first."""
    tasks, begin = report["tasks"], report["created_at"]
    back = _Backwards(begin, end)
    for place, name in enumerate(reversed(chain)):
        task = tasks[name]
        if place:  # what follows it became ready when it was saved
            back.to(task["finished_at"], "saving", name)
        elif task["status"] not in _GOES_ON:
            back.to(_available_at(task), "overhead", None)
            back.to(task["finished_at"], "saving", name)
        back.over(spans_of(task), name)
    back.to(begin, "overhead", None)
    return back.parts()


def time_of_task(report: RunReport, name: str, now: float | None = None) -> list[TimePart]:
    """Return what the time of a run was to one of its tasks, the first part first."""
    task, begin = report["tasks"][name], report["created_at"]
    back = _Backwards(begin, end_of(report, now))
    if task["kept"]:
        back.to(begin, "after", name)
        return back.parts()
    if task["finished_at"] is not None and task["status"] not in _GOES_ON:
        back.to(task["finished_at"] + (task["saving_s"] or 0.0), "after", name)
        back.to(task["finished_at"], "saving", name)
    back.over(spans_of(task), name)
    has_deps = any(parent in report["tasks"] for parent in task["deps"])
    back.to(begin, "dependencies" if has_deps else "overhead", name if has_deps else None)
    return back.parts()


def end_of(report: RunReport, now: float | None) -> float:
    """Return when a run has ended, or until when it is looked at."""
    if report["finished_at"] is not None:
        return report["finished_at"]
    return max(time.time() if now is None else now, report["created_at"])


def busy_share(report: RunReport, end: float) -> float | None:
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
        for span in spans if task["items"] is not None else spans_of(task):
            if span.started_at is not None and span.reason != "OWNER_DIED":
                held += max((span.finished_at or end) - span.started_at, 0.0)
    return min(held / (slots * (end - begin)), 1.0)
