"""Where the time of a run went: parts that add up, a line that says it, why tasks did not run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flowrun.errors import UnknownTaskError
from flowrun.render import explain, report_html, report_table
from flowrun.render.explanation import Explanation, why_slow
from flowrun.report import AttemptReport, RunReport

from ..browser import reports

START = reports.START


def granted(
    attempt: AttemptReport, slot_wait_s: float = 0.0, **limit_waits: float
) -> AttemptReport:
    """Return an attempt of which it is known when it got its slot and its limits."""
    return attempt | {"slot_wait_s": slot_wait_s, "limit_waits": limit_waits}


def spent(explained: Explanation) -> list[tuple[str, str | None, float]]:
    parts = [(part.words, part.task, round(part.duration_s, 3)) for part in explained.parts]
    assert sum(part.duration_s for part in explained.parts) == pytest.approx(explained.duration_s)
    return parts


def etl(**fields: Any) -> RunReport:
    """Make a run whose time is known to the last bit."""
    tasks = {
        "extract": reports.task(
            [],
            granted(reports.attempt(1, 0.1, 0.6, 1.0, "OSError: away"), 0.5),
            granted(reports.attempt(2, 2.0, 5.0, 9.0), 0.5, api=2.0),
            encoded_at=START + 9.5,
            saving_s=1.0,
        ),
        "look": reports.task([], granted(reports.attempt(1, 0.1, 0.1, 3.0)), saving_s=0.0),
        "load": reports.task(
            ["extract", "look"],
            granted(reports.attempt(1, 10.0, 10.25, 12.0), 0.0),
            encoded_at=START + 14.0,
            why_run="had failed",
        ),
        "tell": reports.task(["look"], granted(reports.attempt(1, 3.0, 3.0, 4.0))),
    }
    return reports.run("etl", tasks, 15.1, **{"max_parallel": 2, **fields})


def test_parts_follow_the_critical_path_and_add_up() -> None:  # V3
    explained = explain(etl())
    assert explained.path == ("extract", "load")
    assert spent(explained) == [
        ("overhead (start and end of the run)", None, 0.1),
        ("waiting for a slot", "extract", 0.5),
        ("running", "extract", 0.4),
        ("waiting before a retry", "extract", 1.0),
        ("waiting for a slot", "extract", 0.5),
        ("waiting for limit api", "extract", 2.0),
        ("waiting for a thread or the loop", "extract", 0.5),
        ("running", "extract", 4.0),
        ("saving", "extract", 1.0),
        ("waiting for a thread or the loop", "load", 0.25),
        ("running", "load", 1.75),
        ("saving", "load", 2.0),
        ("overhead (start and end of the run)", None, 1.1),
    ]
    assert explained.busy == pytest.approx((0.4 + 4.0 + 2.9 + 1.75 + 1.0) / 2 / 15.1)


def test_line_names_the_tasks_that_ran_longest_first() -> None:
    explained = explain(etl())
    assert explained.line == (
        "15.1 s: extract 4.4, load 1.8; waiting for a slot 1.0; waiting for limit api 2.0; waiting"
        " for a thread or the loop 0.8; waiting before a retry 1.0; saving 3.0; overhead (start"
        " and end of the run) 1.2; slots 33 % busy"
    )
    assert [name for name, _ in explained.pieces() if name] == ["extract", "load"]


def test_text_has_the_line_the_parts_and_why_tasks_ran_again() -> None:
    lines = str(explain(etl())).split("\n")
    assert lines[0].startswith("etl: 15.1 s: extract 4.4, load 1.8; ")
    assert lines[2:5] == [
        "Time    Task     Spent on",
        "100 ms           overhead (start and end of the run)",
        "500 ms  extract  waiting for a slot",
    ]
    assert lines[-2:] == ["Task  Why", "load  run by the resume: had failed"]
    assert str(explain(reports.run("d", {}, 0.0))) == "d: 0 ms"


def test_time_of_one_task_adds_up_to_that_of_the_run() -> None:  # V3
    assert spent(explain(etl(), "load")) == [
        ("waiting for what it depends on", "load", 10.0),
        ("waiting for a thread or the loop", "load", 0.25),
        ("running", "load", 1.75),
        ("after it, while the run went on", "load", 3.1),
    ]
    assert spent(explain(etl(), "extract"))[-3:] == [
        ("running", "extract", 4.0),
        ("saving", "extract", 1.0),
        ("after it, while the run went on", "extract", 5.1),
    ]
    assert explain(etl(), "extract").why == {}
    assert str(explain(etl(), "load")).startswith("load of etl: 15.1 s: load 1.8; waiting for what")
    with pytest.raises(UnknownTaskError, match="extract"):
        explain(etl(), "extrakt")


def test_long_and_short_runs_are_told_in_their_own_units() -> None:
    tasks = {
        f"t{n}": reports.task([f"t{n - 1}"] if n else [], reports.attempt(1, n, n, n + 1))
        for n in range(120)
    }
    line = explain(reports.run("long", tasks, 120)).line
    assert line == "2 min 00 s: t0 1.00 s, t1 1.00 s, t2 1.00 s, t3 1.00 s, 116 others 1 min 56 s"
    short = {"a": reports.task([], reports.attempt(1, 0, 0, 0.0421)), "b": reports.skipped([])}
    assert explain(reports.run("short", short, 0.0431)).line == (
        "43 ms: a 42; overhead (start and end of the run) 1"
    )


def test_tasks_say_why_they_did_not_run() -> None:
    tasks = {
        "kept": reports.task([], reports.attempt(1, -9, -9, -8), kept=True),
        "given": reports.task([], status="SUCCESS", overridden="value", attempt=0),
        "bad": reports.task(["kept"], reports.attempt(1, 0, 0, 1, "ValueError: x")),
        "not": reports.skipped(["bad"], "UPSTREAM_FAILED: the task 'bad' failed"),
        "none": reports.task(status="OMITTED", reason="SKIP_TASK", error="nothing new"),
    }
    report = reports.run("d", tasks, 2, resumed_from="r0")
    assert explain(report).why == {
        "kept": "kept from run r0",
        "given": "overridden by a value",
        "bad": "failed: ValueError: x",
        "not": "skipped: the task 'bad' failed",
        "none": "omitted: nothing new",
    }
    again = report["tasks"]["bad"] | {"why_run": "had failed"}
    assert explain(report | {"tasks": {"bad": again}}).why == {
        "bad": "failed: ValueError: x; run by the resume: had failed"
    }
    assert explain(report, "kept").why == {"kept": "kept from run r0"}
    assert spent(explain(report, "kept")) == [("after it, while the run went on", "kept", 2.0)]
    assert explain(report).path == ("bad",)


def stopped(**tasks: Any) -> RunReport:
    return reports.run("d", tasks, 5, error="RUN_CANCELLED: Ctrl-C")


def test_run_that_was_stopped_is_explained_by_what_ran_then() -> None:
    cut = reports.attempt(1, 0, 0, 4, "RUN_CANCELLED: Ctrl-C", "RUN_CANCELLED")
    waited = reports.skipped([], "Ctrl-C", "RUN_CANCELLED") | {
        "finished_at": START + 5,
        "ready_at": START,
    }
    assert spent(explain(stopped(ran=reports.task([], cut), waited=waited))) == [
        ("running", "ran", 4.0),
        ("overhead (start and end of the run)", None, 1.0),
    ]


def test_run_that_was_stopped_while_tasks_waited_says_for_what() -> None:
    def wait(ready: float, **limit_waits: float) -> Any:
        fields = {"finished_at": START + 5, "ready_at": START + ready, "limit_waits": limit_waits}
        return reports.skipped([], "Ctrl-C", "RUN_CANCELLED") | fields

    done = reports.task([], reports.attempt(1, 0, 0, 1))
    explained = explain(stopped(done=done, later=wait(2), first=wait(1, api=3.5)))
    assert spent(explained) == [
        ("overhead (start and end of the run)", None, 1.0),
        ("waiting for a slot", "first", 0.5),
        ("waiting for limit api", "first", 3.5),
    ]


def test_it_is_unknown_how_long_the_task_of_a_dead_process_ran() -> None:  # D3
    died = reports.attempt(1, 0, 1, 5, "OWNER_DIED: dead", "OWNER_DIED")
    report = stopped(died=reports.task([], died), last=reports.skipped(["died"]))
    assert spent(explain(report)) == [
        ("waiting for a slot", "died", 1.0),
        ("running, until an unknown time: its process died", "died", 4.0),
    ]
    assert explain(report | {"max_parallel": 1}).busy == 0
    row = report_table(report).split("\n")[-2]
    assert row.split() == ["✘", "died", "1", "1.00", "s"]


def test_wait_for_a_retry_that_never_came_counts() -> None:
    retried = reports.task(
        [],
        reports.attempt(1, 0, 0, 1, "OSError: away"),
        status="SKIPPED",
        finished_at=START + 5,
        reason="RUN_CANCELLED",
    )
    assert spent(explain(stopped(retried=retried))) == [
        ("running", "retried", 1.0),
        ("waiting before a retry", "retried", 4.0),
    ]
    ready = stopped(retried=retried | {"ready_at": START + 3, "started_at": START})
    assert spent(explain(ready))[1:] == [
        ("waiting before a retry", "retried", 2.0),
        ("waiting for a slot", "retried", 2.0),
    ]


def test_run_that_goes_on_is_told_so_far() -> None:
    begun = reports.task(
        ["a"], status="RUNNING", attempt=1, ready_at=START + 2, started_at=START + 2.5
    )
    tasks = {
        "a": reports.task([], reports.attempt(1, 0, 0, 2), saving_s=0.0),
        "b": begun | {"finished_at": None},
        "c": reports.pending(["b"]),
    }
    report = reports.run("d", tasks, None, max_parallel=1)
    explained = explain(report, now=START + 4.5)
    assert explained.line == ("4.5 s so far: a 2.0, b 2.0; waiting for a slot 0.5; slots 89 % busy")
    assert spent(explain(report, "c", now=START + 4.5)) == [
        ("waiting for what it depends on", "c", 4.5)
    ]
    assert spent(explain(report, "b", now=START + 4.5))[-1] == ("running", "b", 2.0)
    assert why_slow(report)
    assert why_slow(report | {"alive": False}) == []


def test_kept_dependency_is_no_part_of_the_run() -> None:
    report = reports.resumed()
    explained = explain(report)
    assert explained.path == ("load",)
    assert {part.task for part in explained.parts} == {None, "load"}


def test_table_and_page_say_why_a_resume_ran_a_task() -> None:
    assert "run by the resume: had failed" in report_table(etl(), 120)
    assert '"why":"run by the resume: had failed"' in report_html(etl())


def test_hostile_names_control_nothing() -> None:  # V1
    hostile = "\x1b[31m<b>"
    waited = granted(reports.attempt(1, 0, 1, 2), 0.0, **{hostile: 1.0})
    report = reports.run(hostile, {hostile: reports.task([], waited, why_run=hostile)}, 2)
    for shown in (str(explain(report)), explain(report).line, report_table(report)):
        assert "\x1b" not in shown
    (line,) = re.findall(r'<p class="slow">(.*?)</p>', report_html(report))
    assert "\x1b" not in line
    assert "<b>" not in line


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("report", [etl(), reports.failure(), reports.cancelled()])
def test_page_and_table_have_the_same_line(report: RunReport) -> None:  # V3
    line = explain(report).line
    (shown,) = re.findall(r'<p class="slow">(.*?)</p>', report_html(report))
    assert re.sub(r"<[^>]+>", "", shown).replace("&#x27;", "'") == line
    assert flat(line) in flat(report_table(report))
    names = [name for name, _ in explain(report).pieces() if name]
    places = [list(report["tasks"]).index(name) for name in names]
    assert re.findall(r'data-open="(\d+)"', shown) == [str(place) for place in places]
