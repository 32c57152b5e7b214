"""The report as plain text."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.escape import columns
from flowrun.render import report_html, report_table

from ..browser import reports


def widest(text: str) -> int:
    return max(columns(line) for line in text.split("\n"))


def test_failures_come_first_with_their_own_line() -> None:
    lines = report_table(reports.failure()).split("\n")
    assert lines[0] == "daily_etl: Failed in 13.3 s"
    start = lines.index("1 failure:")
    assert lines[start + 1 : start + 3] == [
        "  ✘ convert_currency (3 attempts)",
        "      KeyError: 'CHF'",
    ]
    assert lines[start + 3].strip() == "/srv/etl/jobs/orders.py:41"
    assert lines[start + 4].strip().startswith('return [row | {"eur":')
    assert start < next(place for place, line in enumerate(lines) if "Attempts" in line)


def test_table_has_a_row_for_each_task() -> None:
    lines = report_table(reports.failure()).split("\n")
    table = lines[next(place for place, line in enumerate(lines) if "Attempts" in line) :]
    assert table[0].split() == ["Task", "Attempts", "Waited", "Ran", "Why"]
    assert set(table[1]) == {"─"}
    assert len(table) == 2 + 14
    assert table[4].split() == ["✔", "fetch_rates", "3", "580", "ms", "3.12", "s"]
    assert table[11].startswith("⊘ revenue_by_day ")
    assert table[11].endswith("upstream task 'convert_currency…")
    assert table[8].split()[-2:] == ["4.85", "s"]  # its error is said once, above


def test_header_names_lineage_targets_metadata_and_what_ended_the_run() -> None:
    shown = report_table(reports.cancelled() | {"resumed_from": "old"})
    assert "daily_etl: Cancelled in 6.60 s" in shown
    for name, value in (
        ("run", "01K7-4f2c9a1e"),
        ("started", "2025-10-09 08:53:20 UTC"),
        ("finished", "2025-10-09 08:53:26 UTC"),
        ("resumed from", "old"),
        ("targets", "publish_dashboard"),
        ("trigger", "cron"),
        ("ended by", "RUN_CANCELLED: SIGINT"),
        ("tasks", "14 tasks: 6 succeeded, 2 failed, 6 skipped"),
    ):
        assert f"  {name:<14}  {value}" in shown.split("\n")


def test_successful_run_has_no_failures_and_no_why() -> None:
    shown = report_table(reports.success())
    assert "failure" not in shown
    assert "Why" not in shown


def test_task_kept_from_the_run_that_was_resumed_says_so() -> None:
    shown = report_table(reports.resumed()).split("\n")
    assert shown[-2].endswith("  kept from the earlier run")
    assert shown[-1].split()[:2] == ["✔", "load"]
    assert "  resumed from    01K6-77aa0c52: 1 kept, 1 run" in shown


def test_retries_and_what_is_usual_stand_above() -> None:
    shown = report_table(reports.failure(), usual=12).split("\n")
    assert shown[0] == "daily_etl: Failed in 13.3 s, usually 12.0 s"
    assert "  retries         4" in shown


def test_times_are_told_on_this_machines_clock_too(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(time, "tzset"):
        pytest.skip("the time zone of a process cannot be changed here")
    try:
        monkeypatch.setenv("TZ", "CET-1")
        time.tzset()
        shown = report_table(reports.failure())
    finally:
        monkeypatch.undo()
        time.tzset()
    assert "started         2025-10-09 08:53:20 UTC (2025-10-09 09:53:20 CET)\n" in shown


def test_failures_alone() -> None:
    shown = report_table(reports.failure(), failures_only=True)
    assert "convert_currency (3 attempts)" in shown
    assert "fetch_rates" not in shown


COLOURS = re.compile(r"\x1b\[\d+m")


@pytest.mark.parametrize("report", [reports.failure(), reports.resumed(), reports.running()])
def test_colours_change_nothing_but_colours(report) -> None:
    shown = report_table(report, colours=True)
    plain = report_table(report)
    assert re.sub(r"\d+ d \d+ h, as of [\d :-]+", "", COLOURS.sub("", shown)) == re.sub(
        r"\d+ d \d+ h, as of [\d :-]+", "", plain
    )
    assert ("\x1b[2m✔ extract" in shown) is (report["tasks"].keys() == {"extract", "load"})
    assert "\x1b[32m✔\x1b[0m " in shown


def test_run_that_goes_on_says_for_how_long_and_as_of_when() -> None:
    shown = report_table(reports.running(), width=100)
    assert re.search(r"convert_currency .* 18,540 of 41,200 orders \(45 %\)\n", shown)
    failed = reports.task([], reports.attempt(1, 0, 0, 1, "boom"))
    failed["progress"] = reports.progress(2, None, "pages")
    told = reports.run("d", {"fetch": failed}, 1)
    assert "fetch (at 2 pages)\n" in report_table(told)
    assert '<p class="notes">at 2 pages</p>' in report_html(told)
    shown = report_table(reports.running())
    assert re.match(r"daily_etl: Running for \d+ d \d+ h, as of \S+ \S+ UTC\n", shown)
    left = report_table(reports.running() | {"alive": False})
    assert left.startswith("daily_etl: Left behind\n")
    assert "▶ convert_currency" in shown


def test_run_without_tasks_is_a_header() -> None:
    assert report_table(reports.run("d", {}, 0.0)).split("\n")[-1] == "  tasks           0 tasks"


def test_failure_without_a_reason_or_an_error() -> None:
    broken = reports.task([], reports.attempt(1, 0, 0, 1, "E"), error=None, reason=None)
    shown = report_table(reports.run("d", {"a": broken}, 1))
    assert "  ✘ a\n      no error was recorded\n" in shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(
    "report",
    [
        reports.failure(),
        reports.success(),
        reports.cancelled(),
        reports.hostile(),
        reports.big(300),
    ],
)
def test_no_line_is_wider_than_asked_for(report, width: int, ascii_only: bool) -> None:
    shown = report_table(report, width, ascii_only=ascii_only)
    assert widest(shown) <= max(width, 40)
    assert shown.isascii() or not ascii_only


def test_wide_characters_keep_columns_aligned() -> None:
    done = reports.attempt(1, 0, 0, 1)
    tasks = {"名前が長い仕事": reports.task([], done), "plain": reports.task([], done)}
    rows = report_table(reports.run("d", tasks, 1)).split("\n")[-2:]
    assert len({columns(row) for row in rows}) == 1
    long = reports.task([], reports.attempt(1, 0, 0, 1, "ValueError: " + "漢字" * 200))
    shown = report_table(reports.run("d", {"a": long}, 1), 60)
    assert widest(shown) <= 60


def test_long_error_is_cut_after_some_lines() -> None:
    failed = reports.task([], reports.attempt(1, 0, 0, 1, "ValueError: " + "word " * 500))
    shown = report_table(reports.run("d", {"a": failed}, 1)).split("\n")
    start = shown.index("1 failure:")
    assert shown[start + 7] == "      ..."
    assert shown[start + 8] == ""


def test_hostile_texts_cannot_write_to_the_screen() -> None:  # V1
    shown = report_table(reports.hostile())
    assert not set(shown) & set("\x1b\x07\u202e\u202c\u2066\ud800")
    assert "\\u202egnp.exe\\u202c" in shown


PIECES = [*"ab c注文を가ｱ－é½🚀🧪☺™", "e\u0301", "❤\ufe0f", "🇨🇭", "👩\u200d👧", "👍🏽"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join)


@given(NAMES, NAMES, st.integers(40, 120))
def test_no_line_is_wider_than_a_terminal_shows_it(name: str, error: str, width: int) -> None:
    wcwidth = pytest.importorskip("wcwidth", reason="wcwidth comes with pyte (group 'dev')")
    report = reports.single()
    (task,) = report["tasks"].values()
    failed = reports.task([], reports.attempt(1, 0, 0, 1, f"ValueError: {error}"))
    report.update(dag_name=name, tasks={name: task, f"{name}2": failed}, metadata={name: error})
    lines = report_table(report, width).split("\n")
    assert max(map(wcwidth.wcswidth, lines)) <= width


def test_end_of_a_long_path_is_shown_with_its_line() -> None:
    error = f'Traceback (most recent call last):\n  File "/{"folder/" * 30}jobs.py", line 77\nE: no'
    failed = reports.task([], reports.attempt(1, 0, 0, 1, error))
    shown = report_table(reports.run("d", {"a": failed}, 1), 50).split("\n")
    (line,) = [line for line in shown if "jobs.py" in line]
    assert line.startswith("      …")
    assert line.endswith("older/jobs.py:77")
    assert len(line) == 50


def test_mapped_task_says_how_its_items_ended() -> None:
    text = report_table(reports.pages(), 100)
    assert "✘ fetch (200 items: 199 succeeded, 1 failed, 2 attempts)" in text
    assert "KeyError: 'CHF'" in text
    assert "  retries         1\n" in text
    row = next(line for line in text.split("\n") if line.startswith("✘ fetch  "))
    assert row.split("  ")[-1] == "200 items: 199 succeeded, 1 failed"
    empty = reports.run("d", {"none": reports.mapped([], [])}, 1.0)
    assert "0 items" in report_table(empty)
    going_on = reports.mapped([], [reports.item(0)], status="RUNNING", finished_at=None)
    going_on["item_counts"] = {"SUCCESS": 1, "PENDING": 2}
    assert "3 items: 1 succeeded, 2 pending" in report_table(
        reports.run("d", {"t": going_on}, None)
    )
