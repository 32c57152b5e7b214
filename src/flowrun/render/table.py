"""A run report -> plain text that fits a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from flowrun.escape import columns, for_terminal, padded, shortened
from flowrun.failure import own_line
from flowrun.render.explanation import why_slow
from flowrun.render.inside import at_progress, task_progress
from flowrun.render.source_places import place_of
from flowrun.render.wording import (
    COLOURS,
    DIM,
    coloured,
    counted,
    duration_of,
    duration_text,
    failure_notes,
    given_facts,
    items_text,
    kept_text,
    outcome,
    ran_s,
    retries,
    sign_of,
    status_of,
    tally,
    teardown_text,
    time_text,
    waited_s,
    why_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowrun.report import RunReport, TaskReport, TaskStatusName

_LEAST_WIDTH = 40
_LEAST_TASK = 8
_LEAST_NOTE = 14
_ERROR_LINES = 6
_HEADINGS = ("Task", "Attempts", "Waited", "Ran")
_GAP = "  "
_FACT = 14


def report_table(  # noqa: PLR0913 - what a page can be told
    report: RunReport,
    width: int = 80,
    *,
    ascii_only: bool = False,
    colours: bool = False,
    failures_only: bool = False,
    usual: float | None = None,
) -> str:
    """Return the report for people: how the run ended, its failures, then every task.

    Args:
        report: The run.
        width: Columns that no line exceeds; at least 40 are taken.
        ascii_only: For screens that can show nothing else.
        colours: For a terminal that shows them.
        failures_only: Leave out where the time went, and the table of tasks.
        usual: What the DAG's runs usually take, in seconds.

    Returns:
        Lines joined by line feeds, without one at the end.
    """
    page = _Page(report, max(width, _LEAST_WIDTH), ascii_only=ascii_only, colours=colours)
    title, *facts = page.header(usual)
    if failures_only:
        return "\n".join([title, *facts, *page.failures()])
    return "\n".join([title, *page.why_slow(), *facts, *page.failures(), *page.tasks()])


class _Page:
    """One report for one screen."""

    def __init__(self, report: RunReport, width: int, *, ascii_only: bool, colours: bool) -> None:
        self._report = report
        self._width = width
        self._ascii_only = ascii_only
        self._colours = colours
        self._mark = "..." if ascii_only else "…"

    def header(self, usual: float | None) -> list[str]:
        report = self._report
        word = outcome(report)
        verdict = f"{word} {duration_of(report, usual)}".rstrip()
        room = max(self._width - columns(verdict) - 2, _LEAST_TASK)
        title = f"{shortened(self._text(report['dag_name']), room, self._mark)}: "
        end = self._cut(title + verdict)[len(title) + len(word) :]
        lines = [title + self._painted(word, status_of(report)) + end]
        facts = [
            ("run", report["run_id"]),
            ("started", time_text(report["created_at"], local=True)),
        ]
        if report["finished_at"] is not None:
            facts.append(("finished", time_text(report["finished_at"], local=True)))
        if report["resumed_from"] is not None:
            kept = kept_text(report)
            facts.append(("resumed from", report["resumed_from"] + (f": {kept}" if kept else "")))
        if report["targets"] is not None:
            facts.append(("targets", ", ".join(report["targets"])))
        facts += given_facts(report)
        for key, value in report["metadata"].items():
            facts.append((key, value if isinstance(value, str) else repr(value)))
        facts.append(("tasks", tally(report)))
        if again := retries(report):
            facts.append(("retries", f"{again:,}"))
        if report["error"] is not None:
            facts.append(("ended by", report["error"]))
        for name, value in facts:
            label = padded(shortened(self._text(name), _FACT, self._mark), _FACT)
            lines.append(self._cut(f"{_GAP}{label}{_GAP}{self._text(value)}"))
        return lines

    def why_slow(self) -> list[str]:
        line = why_slow(self._report)
        return self._wrapped("".join(name or text for name, text in line), _GAP) if line else []

    def failures(self) -> list[str]:
        tasks = self._report["tasks"].items()
        failed = [(name, task) for name, task in tasks if task["status"] == "FAILED"]
        lines = ["", f"{counted(len(failed), 'failure')}:"] if failed else []
        for name, task in failed:
            notes = ", ".join(failure_notes(task) + at_progress(task))
            sign = sign_of("FAILED", ascii_only=self._ascii_only)
            room = self._width - len(_GAP) - len(sign)
            text = self._text(f"{name} ({notes})" if notes else name)
            text = shortened(f" {text}", room, self._mark)
            lines.append(f"{_GAP}{self._painted(sign, 'FAILED')}{text}")
            error = task["error"] or "no error was recorded"
            lines += self._wrapped(own_line(error))
            place = place_of(error)
            if place is not None:
                where, source = map(self._text, place)
                lines.append(_GAP * 3 + self._end_of(where, self._width - 3 * len(_GAP)))
                lines += [self._cut(_GAP * 3 + source)] if source else []
        return lines

    def tasks(self) -> list[str]:
        rows = [self._row(name, task) for name, task in self._report["tasks"].items()]
        if not rows:
            return []
        signs = max(columns(row[0]) for row in rows)
        has_notes = any(row[-1] for row in rows)
        heading = ("", *_HEADINGS, "Why" if has_notes else "")
        longest = [max(columns(row[place]) for row in (heading, *rows)) for place in range(1, 5)]
        fixed = signs + 1 + sum(longest[1:]) + 3 * len(_GAP)
        room = self._width - fixed - (len(_GAP) + _LEAST_NOTE if has_notes else 0)
        longest[0] = max(min(longest[0], room), _LEAST_TASK)

        def line(row: Sequence[str]) -> str:
            sign, name, *numbers, note = row
            task = padded(shortened(name, longest[0], self._mark), longest[0])
            cells = [f"{padded(sign, signs)} {task}"]
            cells += [
                padded(number, width, right=True)
                for number, width in zip(numbers, longest[1:], strict=True)
            ]
            return self._cut(_GAP.join([*cells, note]).rstrip())

        lines = [line(row) for row in (heading, *rows)]
        rule = ("-" if self._ascii_only else "─") * max(columns(line) for line in lines)
        shown = zip(lines[1:], rows, self._report["tasks"].values(), strict=True)
        return ["", lines[0], rule, *(self._colour_row(*each) for each in shown)]

    def _colour_row(self, line: str, row: Sequence[str], task: TaskReport) -> str:
        if self._colours and task["kept"]:
            return coloured(line, DIM)
        return self._painted(row[0], task["status"]) + line[len(row[0]) :]

    def _row(self, name: str, task: TaskReport) -> Sequence[str]:
        """Return the sign, the name, three numbers and the note."""
        # What failed has its error above the table.
        note = why_text(task) if task["status"] in ("SKIPPED", "OMITTED") else ""
        if task["teardown_of"] and not note:
            note = teardown_text(task["teardown_of"])
        if task["status"] == "RUNNING":
            note = task_progress(task) or note
        if task["overridden"] and not note:
            note = f"overridden by a {task['overridden']}"
        if task["cached_from"]:
            note = f"cached from {task['cached_from']}"
        if task["why_run"] and not note:
            note = f"run by the resume: {task['why_run']}"
        if task["kept"]:
            note = "kept from the earlier run"
        if task["items"] is not None:
            note = "; ".join(filter(None, (items_text(task), note)))
        spans = (waited_s(task), ran_s(task))
        return (
            sign_of(task["status"], ascii_only=self._ascii_only),
            self._text(name),
            str(task["attempt"] or ""),
            *("" if span is None else duration_text(span) for span in spans),
            self._text(note),
        )

    def _wrapped(self, text: str, indent: str = _GAP * 3) -> list[str]:
        safe = self._text(text)
        room = self._width - len(indent)
        if not safe.isascii():
            # Wide characters take two columns: wrapped at half the room, they fit. So does half
            # of a flag.
            room = room - 1 if columns(safe) <= len(safe) else room // 2
        found = textwrap.wrap(safe, room)
        if len(found) > _ERROR_LINES:
            found = [*found[: _ERROR_LINES - 1], "..."]
        return [indent + line for line in found]

    def _text(self, text: str) -> str:
        return for_terminal(text, ascii_only=self._ascii_only)

    def _end_of(self, text: str, width: int) -> str:
        """Return a path cut to a width at its front: its end says more."""
        shown = text
        while columns(shown) > width:
            text = text[1:]
            shown = self._mark + text
        return shown

    def _painted(self, text: str, status: TaskStatusName) -> str:
        return coloured(text, COLOURS[status]) if self._colours else text

    def _cut(self, line: str) -> str:
        return shortened(line, self._width, self._mark)
