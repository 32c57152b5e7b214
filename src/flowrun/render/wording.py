"""The words and signs by which every picture, page and table speaks of a run."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, TextIO

from flowrun.failure import own_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flowrun.report import AttemptReport, RunReport, TaskReport, TaskStatusName
    from flowrun.state import RunSummary


class Sign(NamedTuple):
    """How a status is shown: by a sign, by plain letters, and by a word."""

    symbol: str
    letters: str
    word: str


SIGNS: dict[TaskStatusName, Sign] = {
    "SUCCESS": Sign("✔", "[ok]", "succeeded"),
    "FAILED": Sign("✘", "[FAILED]", "failed"),
    "SKIPPED": Sign("⊘", "[skipped]", "skipped"),
    "OMITTED": Sign("⊖", "[omitted]", "omitted"),
    "RUNNING": Sign("▶", "[running]", "running"),
    "PENDING": Sign("○", "[pending]", "pending"),
}
COLOURS: dict[TaskStatusName, str] = {
    "SUCCESS": "32",
    "FAILED": "31",
    "SKIPPED": "90",
    "OMITTED": "90",
    "RUNNING": "36",
    "PENDING": "90",
}
"""The colour in which a terminal shows a status."""
DIM = "2"
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


def has_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows colours, and ``NO_COLOR`` is not set."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


def coloured(text: str, colour: str) -> str:
    """Return a text that a terminal shows in a colour."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def attempts_of(task: TaskReport) -> list[AttemptReport]:
    """Return the attempts of a task; all that its items did counts as one of a mapped task."""
    if task["items"] is None or task["finished_at"] is None:
        return task["attempts"]
    failed = task["status"] == "FAILED"
    whole: AttemptReport = {
        "attempt": task["attempt"],
        "status": "FAILED" if failed else "SUCCESS",
        "ready_at": task["ready_at"],
        "started_at": task["started_at"],
        "finished_at": task["finished_at"],
        "error": task["error"] if failed else None,
        "reason": task["reason"] if failed else None,
        "abandoned": task["abandoned"],
        "slot_wait_s": None,
        "limit_waits": {},
        "progress": None,
        "logs": [],
        "logs_cut": 0,
    }
    return [whole]


def items_text(task: TaskReport) -> str:
    """Return ``3 items: 2 succeeded, 1 failed`` of a mapped task, and nothing of another one."""
    counts = task["item_counts"]
    if counts is None:
        return ""
    return f"{counted(sum(counts.values()), 'item')}: {tally_text(counts)}".removesuffix(": ")


def ran_s(task: TaskReport) -> float | None:
    """Return how long the task's attempts ran, all together; ``None`` when none has ended."""
    spans = [
        _span(attempt["started_at"], attempt["finished_at"])
        for attempt in attempts_of(task)
        if attempt["reason"] != "OWNER_DIED"  # its end is unknown
    ]
    known = [span for span in spans if span is not None]
    return sum(known) if known else None


def task_facts(task: TaskReport) -> list[str]:
    """Return how long a task's attempts ran, and how many there were of them, if several."""
    duration_s = ran_s(task)
    facts = [] if duration_s is None else [duration_text(duration_s)]
    facts += [items_text(task)] if task["items"] is not None else []
    return [*facts, counted(task["attempt"], "attempt")] if task["attempt"] > 1 else facts


def teardown_text(setups: Iterable[str]) -> str:
    """Return what a task tears down.

    Example:
        >>> teardown_text(["cluster"])
        'tears down cluster'
    """
    return f"tears down {', '.join(setups)}"


def teardowns_of(report: RunReport | None) -> dict[str, list[str]]:
    """Return the teardowns of a run, each with what it tears down."""
    tasks = {} if report is None else report["tasks"]
    return {name: task["teardown_of"] for name, task in tasks.items() if task["teardown_of"]}


def waited_s(task: TaskReport) -> float | None:
    """Return how long the task waited for slots and limits, over all its attempts."""
    known = [wait for wait in map(wait_s, attempts_of(task)) if wait is not None]
    return sum(known) if known else None


def wait_s(attempt: AttemptReport) -> float | None:
    """Return how long an attempt waited for its slot and its limits; until it started, at most."""
    if attempt["slot_wait_s"] is None:
        return _span(attempt["ready_at"], attempt["started_at"])
    return attempt["slot_wait_s"] + sum(attempt["limit_waits"].values())


def versions_text(report: RunReport) -> str:
    """Return ``flowrun 0.1.0, Python 3.13.1`` for what carried out a run."""
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items())


def kept_text(report: RunReport) -> str:
    """Return ``12 kept, 1 run`` for a run that kept something of another one, else nothing."""
    tasks = report["tasks"].values()
    kept = sum(task["kept"] for task in tasks)
    ran = sum(bool(task["attempt"]) and not task["kept"] for task in tasks)
    return f"{kept:,} kept, {ran:,} run" if kept else ""


def params_text(params: Mapping[str, object]) -> str:
    """Return ``day=2013-02-08, limit=3`` for a run's parameters."""
    return ", ".join(f"{name}={value}" for name, value in params.items())


def given_facts(report: RunReport) -> list[tuple[str, str]]:
    """Return what a run was given, and what carried it out, each with a name for it."""
    tasks = report["tasks"].items()
    names = [f"{name} (by a {task['overridden']})" for name, task in tasks if task["overridden"]]
    facts = (
        ("parameters", params_text(report["params"])),
        ("overridden", ", ".join(names)),
        ("max_parallel", str(report["max_parallel"] or "")),
        ("versions", versions_text(report)),
    )
    return [(name, text) for name, text in facts if text]


def retries(report: RunReport) -> int:
    """Return how many attempts of this run were retries."""
    return sum(
        max(each["attempt"] - 1, 0)
        for task in report["tasks"].values()
        if not task["kept"]
        for each in (task["items"] if task["items"] is not None else [task])
        if not each["kept"]
    )


def usual_s(report: RunReport, last: Iterable[RunSummary]) -> float | None:
    """Return what the DAG's runs usually take: the median of those like it that have succeeded.

    Args:
        report: A run, which does not count.
        last: The last successful runs of its DAG.
    """
    took = sorted(
        run.finished_at - run.created_at
        for run in last
        if run.finished_at is not None
        and run.run_id != report["run_id"]
        and run.resumed_from is None
        and list(run.targets or ()) == (report["targets"] or [])
    )
    return took[len(took) // 2] if took else None


def duration_of(report: RunReport, usual: float | None = None, now: float | None = None) -> str:
    """Return how long a run took, or has been going on, and what is usual.

    Args:
        report: The run.
        usual: What the DAG's runs usually take.
        now: The time of a run that is alive; that of this call by default.
    """
    if report["finished_at"] is not None:
        took = f"in {duration_text(report['finished_at'] - report['created_at'])}"
    elif report["alive"]:
        now = time.time() if now is None else now
        took = f"for {duration_text(now - report['created_at'])}, as of {time_text(now)}"
    else:
        return ""
    return took if usual is None else f"{took}, usually {duration_text(usual)}"


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


def status_of(report: RunReport) -> TaskStatusName:
    """Return the status whose sign and colour the run has."""
    ends: dict[str, TaskStatusName] = {"Succeeded": "SUCCESS", "Running": "RUNNING"}
    return ends.get(outcome(report), "FAILED")


def why_text(task: TaskReport) -> str:
    """Return why a task did not succeed, in one line that does not begin with its reason."""
    return own_line(task["error"] or "").removeprefix(f"{task['reason']}: ")


def failure_notes(task: TaskReport) -> list[str]:
    """Return what is said of a failure beside its error: ``timeout``, ``3 attempts``."""
    notes = [] if task["reason"] in {None, "ERROR"} else [reason_text(task["reason"])]
    notes += [items_text(task)] if task["items"] is not None else []
    return [*notes, counted(task["attempt"], "attempt")] if task["attempt"] > 1 else notes


def reason_text(reason: str | None) -> str:
    """Return a reason in words.

    Example:
        >>> reason_text("UPSTREAM_FAILED")
        'upstream failed'
    """
    return (reason or "").lower().replace("_", " ")


def counted_retries(number: int) -> str:
    """Return ``1 retry``, ``2 retries``."""
    return f"{number:,} {'retry' if number == 1 else 'retries'}"


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
    total = counted(len(report["tasks"]), "task")
    return f"{total}: {tally_text(status_counts(report))}" if report["tasks"] else total


def tally_text(counts: Mapping[TaskStatusName, int] | Mapping[str, int]) -> str:
    """Return counts by status in words.

    Example:
        >>> tally_text({"FAILED": 1, "SUCCESS": 2})
        '2 succeeded, 1 failed'
    """
    return ", ".join(
        f"{counts[status]:,} {sign.word}" for status, sign in SIGNS.items() if status in counts
    )


def summary_status(run: RunSummary) -> TaskStatusName:
    """Return the status whose sign a run of a list has."""
    return "FAILED" if summary_word(run) == "left behind" else run.status.value


def summary_word(run: RunSummary) -> str:
    """Return how a run of a list has ended, or stands."""
    if run.finished_at is None and not run.alive:
        return "left behind"
    return SIGNS[run.status.value].word


def time_text(moment: float, *, local: bool = False) -> str:
    """Return a point in time in UTC, to the second, and, if asked for, on this machine's clock.

    Where that clock shows UTC, it is not said twice.
    """
    text = f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"
    here = datetime.fromtimestamp(moment, UTC).astimezone()
    return f"{text} ({here:%Y-%m-%d %H:%M:%S %Z})" if local and here.utcoffset() else text


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(end - start, 0.0)
