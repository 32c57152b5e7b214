"""What happened inside an attempt -> plain words: its progress, its log lines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flowrun.render.wording import counted

if TYPE_CHECKING:
    from flowrun.report import AttemptReport, ItemReport, TaskReport

_HUGE = 1e15


def progress_text(done: float, total: float | None, unit: str) -> str:
    """Return how far something has come, in words.

    Example:
        >>> progress_text(1500, 6000, "rows"), progress_text(2.5, None, "")
        ('1,500 of 6,000 rows (25 %)', '2.5')
    """
    text = _number(done)
    if total is not None:
        text += f" of {_number(total)}"
    if unit:
        text += f" {unit}"
    return f"{text} ({100 * done / total:.0f} %)" if total else text


def task_progress(task: TaskReport | ItemReport) -> str:
    """Return how far the task said last that it had come, in words; empty if it said nothing."""
    progress = task["progress"]
    if progress is None:
        return ""
    return progress_text(progress["done"], progress["total"], progress["unit"])


def at_progress(task: TaskReport) -> list[str]:
    """Return where a failed task was, if it said so: ``at 40 of 100 rows (40 %)``."""
    text = task_progress(task)
    return [f"at {text}"] if text else []


def log_text(attempt: AttemptReport) -> str:
    """Return the log lines of an attempt, with their times in UTC; empty if there are none."""
    lines = [
        f"{datetime.fromtimestamp(line['time'], UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
        + f"Z {line['level']} {line['logger']}: {line['text']}"
        for line in attempt["logs"]
    ]
    if attempt["logs_cut"]:
        lines.insert(0, f"({counted(attempt['logs_cut'], 'older line')} not kept)")
    return "\n".join(lines)


def _number(number: float) -> str:
    return f"{number:,.0f}" if number == int(number) < _HUGE else f"{number:,.6g}"
