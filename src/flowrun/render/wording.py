"""The words and signs by which every picture, page and table speaks of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from flowrun.report import RunReport, TaskReport, TaskStatusName


class Sign(NamedTuple):
    """How a status is told apart: by a sign, by plain letters, and by a word."""

    symbol: str
    letters: str
    word: str


SIGNS: dict[TaskStatusName, Sign] = {
    "SUCCESS": Sign("✔", "[ok]", "succeeded"),
    "FAILED": Sign("✘", "[FAILED]", "failed"),
    "SKIPPED": Sign("⊘", "[skipped]", "skipped"),
    "RUNNING": Sign("▶", "[running]", "running"),
    "PENDING": Sign("○", "[pending]", "pending"),
}
_TRACEBACK = "Traceback (most recent call last):"
_GROUP_TRACEBACK = "  + Exception Group Traceback (most recent call last):"
_CHAIN_LINKS = frozenset(
    (
        "The above exception was the direct cause of the following exception:",
        "During handling of the above exception, another exception occurred:",
    )
)
_MAX_ERROR_CHARACTERS = 60_000
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86_400


def sign_of(status: TaskStatusName, *, ascii_only: bool = False) -> str:
    """Return the sign of a status.

    Example:
        >>> sign_of("FAILED"), sign_of("FAILED", ascii_only=True)
        ('✘', '[FAILED]')
    """
    sign = SIGNS[status]
    return sign.letters if ascii_only else sign.symbol


def duration_text(duration_s: float) -> str:
    """Return a duration as a person says it.

    Example:
        >>> [duration_text(value) for value in (0.0042, 1.5, 75, 3700, 90_000)]
        ['4 ms', '1.50 s', '1 min 15 s', '1 h 01 min', '1 d 1 h']
    """
    if duration_s < 0.9995:  # noqa: PLR2004 - from here on it would round to "1000 ms"
        return f"{max(duration_s, 0) * 1000:.0f} ms"
    if duration_s < 9.995:  # noqa: PLR2004 - from here on it would round to "10.00 s"
        return f"{duration_s:.2f} s"
    if duration_s < 59.95:  # noqa: PLR2004 - from here on it would round to "60.0 s"
        return f"{duration_s:.1f} s"
    whole = round(duration_s)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S:02} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S:02} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def ran_s(task: TaskReport) -> float | None:
    """Return how long the task's attempts ran, all together; ``None`` when none has ended."""
    spans = [_span(attempt["started_at"], attempt["finished_at"]) for attempt in task["attempts"]]
    known = [span for span in spans if span is not None]
    return sum(known) if known else None


def waited_s(task: TaskReport) -> float | None:
    """Return how long the task was ready and had no slot, over all its attempts."""
    spans = [_span(attempt["ready_at"], attempt["started_at"]) for attempt in task["attempts"]]
    known = [span for span in spans if span is not None]
    return sum(known) if known else None


def is_kept(report: RunReport, task: TaskReport) -> bool:
    """Return whether the task's success was taken over from the run that this one resumes."""
    started_at = task["started_at"]
    return (
        report["resumed_from"] is not None
        and task["status"] == "SUCCESS"
        and started_at is not None
        and started_at < report["created_at"]
    )


def outcome(report: RunReport) -> str:
    """Return one word or two for how the run stands."""
    if report["finished_at"] is None:
        return "Running" if report["alive"] else "Left behind"
    reasons = {task["reason"] for task in report["tasks"].values()}
    if "RUN_CANCELLED" in reasons:
        return "Cancelled"
    if "RUN_TIMED_OUT" in reasons:
        return "Timed out"
    if reasons & {"RUN_BROKEN", "OWNER_DIED"}:
        return "Broken off"
    return "Succeeded" if report["status"] == "SUCCESS" else "Failed"


_REMARKS = ("TaskTimeoutError: ", "Not retried: ")
"""Lines that say more than the error that the code raised when its time was up."""


def own_line(error: str) -> str:
    r"""Return the exception's own line out of a text with its traceback.

    If the attempt timed out, or flowrun had a reason not to retry it, the line that says so.

    Example:
        >>> own_line('Traceback (most recent call last):\n  File "x"\nValueError: no rows')
        'ValueError: no rows'
    """
    lines = error.split("\n")
    for line in reversed(lines):
        if line.startswith(_REMARKS):
            return line
    start = 0
    for number, line in enumerate(lines):
        if line in _CHAIN_LINKS:
            start = number + 1
    lines = [line for line in lines[start:] if line.strip()]
    if not lines:
        return error.strip()
    if lines[0] == _TRACEBACK:
        return next((line for line in lines[1:] if not line.startswith(" ")), lines[-1].strip())
    if lines[0] == _GROUP_TRACEBACK:
        return next((line[4:] for line in lines[1:] if _is_group_line(line)), lines[-1].strip())
    # The front of a very long text was cut off, and with it what told its parts apart.
    return (lines[-1] if len(error) > _MAX_ERROR_CHARACTERS else lines[0]).strip()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "task"), counted(2, "task")
        ('1 task', '2 tasks')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def status_counts(report: RunReport) -> dict[TaskStatusName, int]:
    """Return how many tasks have each status, in the order in which they are shown."""
    statuses = [task["status"] for task in report["tasks"].values()]
    return {status: statuses.count(status) for status in SIGNS if status in statuses}


def tally(report: RunReport) -> str:
    """Return how many tasks there are and how they stand: ``3 tasks: 2 succeeded, 1 failed``."""
    parts = [f"{count:,} {SIGNS[status].word}" for status, count in status_counts(report).items()]
    total = counted(len(report["tasks"]), "task")
    return f"{total}: {', '.join(parts)}" if parts else total


def time_text(moment: float) -> str:
    """Return a point in time in UTC, to the second."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _is_group_line(line: str) -> bool:
    return line.startswith("  | ") and not line[4:5].isspace()


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(end - start, 0.0)
