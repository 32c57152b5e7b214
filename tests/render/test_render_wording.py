"""The words by which everything speaks of a run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import json
import multiprocessing
import sys
import traceback

import pytest

import flowrun
from flowrun import RunStatus, RunSummary
from flowrun.failure import own_line
from flowrun.render.source_places import place_of
from flowrun.render.wording import (
    SIGNS,
    counted,
    duration_text,
    has_colours,
    outcome,
    ran_s,
    sign_of,
    summary_status,
    summary_word,
    tally,
    time_text,
    usual_s,
    waited_s,
)
from flowrun.state.records import TaskStatus

from ..browser import reports


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (-1, "0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
    ],
)
def test_durations_round_to_what_a_person_says(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_every_status_has_its_own_sign_letters_and_word() -> None:
    assert set(SIGNS) == {str(status) for status in TaskStatus}
    for column in zip(*SIGNS.values(), strict=True):
        assert len(set(column)) == len(SIGNS)
    assert sign_of("SUCCESS") == "✔"
    assert sign_of(TaskStatus.FAILED, ascii_only=True) == "[FAILED]"


def test_time_that_ran_and_waited_is_summed_over_attempts() -> None:
    tried = reports.task([], reports.attempt(1, 0, 1, 3, "E"), reports.attempt(2, 4, 4.5, 5))
    assert ran_s(tried) == pytest.approx(2.5)
    assert waited_s(tried) == pytest.approx(1.5)
    never = reports.task([], reports.attempt(1, None, None, 3, "E"))
    assert ran_s(never) is None
    assert waited_s(reports.skipped([])) is None


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (reports.success(), "Succeeded"),
        (reports.failure(), "Failed"),
        (reports.cancelled(), "Cancelled"),
        (reports.running(), "Running"),
        (reports.running() | {"alive": False}, "Left behind"),
        (reports.run("d", {"a": reports.skipped([], "late", "RUN_TIMED_OUT")}, 1), "Timed out"),
        (reports.run("d", {"a": reports.skipped([], "gone", "OWNER_DIED")}, 1), "Broken off"),
    ],
)
def test_outcome_says_how_the_run_stands(report, words: str) -> None:
    assert outcome(report) == words


def test_tally_counts_by_status() -> None:
    assert tally(reports.failure()) == "14 tasks: 9 succeeded, 1 failed, 4 skipped"
    assert tally(reports.run("d", {}, 0)) == "0 tasks"
    assert counted(1_200, "failure") == "1,200 failures"


def test_time_is_given_in_utc() -> None:
    assert time_text(reports.START + 0.9) == "2025-10-09 08:53:20 UTC"


def raised(raiser) -> str:
    """Return the formatted traceback of what a callable raises."""
    try:
        raiser()
    except BaseException as error:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    raise AssertionError


def chained() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer\nwith a second line") from error


def grouped() -> None:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def quoting() -> None:
    raise RuntimeError("child said:\nTraceback (most recent call last):\nOSError: child's own")


@pytest.mark.parametrize(
    ("raiser", "line"),
    [
        (chained, "ValueError: outer"),
        (grouped, "ExceptionGroup: several (2 sub-exceptions)"),
        (quoting, "RuntimeError: child said:"),
        (lambda: compile("a b", "<task>", "exec"), "SyntaxError: invalid syntax"),
        (lambda: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_own_line_is_the_line_of_the_exception_that_ended_the_task(raiser, line: str) -> None:
    assert own_line(raised(raiser)) == line


def test_own_line_of_an_error_from_another_process() -> None:
    async def fail() -> None:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            await asyncio.wrap_future(pool.submit(int, "x"))

    line = own_line(raised(lambda: asyncio.run(fail())))
    assert line == "ValueError: invalid literal for int() with base 10: 'x'"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("upstream task 'a' failed", "upstream task 'a' failed"),
        ("first\nsecond", "first"),
        ("  ", ""),
        ("Traceback (most recent call last):\n  File", "File"),
        ("  + Exception Group Traceback (most recent call last):\n  |   File", "|   File"),
        ("cut in the middle\n" + "x" * 70_000 + "\nValueError: the end", "ValueError: the end"),
    ],
)
def test_own_line_of_texts_that_are_no_whole_traceback(text: str, line: str) -> None:
    assert own_line(text) == line


def test_own_line_of_a_timeout_says_that_it_timed_out() -> None:  # A6
    text = (
        'Traceback (most recent call last):\n  File "x"\nasyncio.exceptions.CancelledError\n\n'
        "TaskTimeoutError: task 'a' timed out"
    )
    assert own_line(text) == "TaskTimeoutError: task 'a' timed out"
    assert own_line(f"{text}\nNot retried: it still ran") == "TaskTimeoutError: task 'a' timed out"
    assert own_line("OSError: gone\n\nNot retried: it still ran") == "Not retried: it still ran"


def test_place_of_an_error_is_the_last_line_of_the_tasks_own_code() -> None:
    def task() -> None:
        json.loads("{")

    error = raised(task)
    assert "decoder.py" in error
    line = task.__code__.co_firstlineno + 1
    assert place_of(error) == (f"{task.__code__.co_filename}:{line}", 'json.loads("{")')


def test_place_of_a_chained_error_is_that_of_the_last() -> None:
    place = place_of(raised(chained))
    assert place[1].startswith('raise ValueError("outer')


def test_place_of_a_group_is_where_the_group_was_raised() -> None:
    assert place_of(raised(grouped))[1].startswith('raise ExceptionGroup("several"')


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("ValueError: no", None),
        ('  File "a.py", line 3\n  File "b.py", line 4, in f\n    1 / 0\nE', ("b.py:4", "1 / 0")),
        ('  File "a.py", line 3, in f\n', ("a.py:3", "")),
        (
            '  File "/usr/lib/python3.12/x.py", line 1, in f\n  File "/usr/lib/python3.12/json/y.py", line 2, in f\n    b\nE',
            ("/usr/lib/python3.12/json/y.py:2", "b"),
        ),
        (f'  File "{flowrun.__file__}", line 1, in f\n    a\nE', None),
    ],
)
def test_place_of_other_texts(text: str, place: tuple[str, str] | None) -> None:
    assert place_of(text) == place


def run_of(took: float | None, run_id: str = "other") -> RunSummary:
    end = None if took is None else reports.START + took
    return RunSummary(
        run_id, "d", RunStatus.SUCCESS, reports.START, end, None, {}, None, None, False, {}
    )


def test_usual_is_the_median_of_other_runs() -> None:
    report = reports.single()
    others = [run_of(1), run_of(9), run_of(2), run_of(None), run_of(99, report["run_id"])]
    assert usual_s(report, others) == 2
    assert usual_s(report, []) is None
    # Runs of a part of the DAG, and those that kept much of another run, take less.
    part = run_of(77)._replace(targets=("a",))
    assert usual_s(report, [*others, part, run_of(77)._replace(resumed_from="a")]) == 2
    assert usual_s(report | {"targets": ["a"]}, [*others, part]) == 77


def test_colours_are_for_terminals_where_nobody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert has_colours(Terminal())
    assert not has_colours(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colours(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours(Terminal())


def test_run_of_a_list_has_one_word_and_one_sign() -> None:
    ended = run_of(1)
    alive = ended._replace(status=RunStatus.RUNNING, finished_at=None, alive=True)
    found = [
        (summary_word(run), summary_status(run))
        for run in (ended, alive, alive._replace(alive=False))
    ]
    assert found == [
        ("succeeded", "SUCCESS"),
        ("running", "RUNNING"),
        ("left behind", "FAILED"),
    ]
