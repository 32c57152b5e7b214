"""The run report: plain dictionaries, made of a record as it stands."""

from __future__ import annotations

import json

import pytest

from flowrun.context import AttemptNotes, LogLine, Progress
from flowrun.report import build_report
from flowrun.state import NoResult, Reason, RunRecord, TaskRecord, TaskStatus, TransitionError


def test_report_shows_all_of_a_run() -> None:
    tasks = {name: TaskRecord(name) for name in ("new", "kept", "gone", "away", "failed")}
    retried = tasks["kept"].start(2.0, 1.5).fail(3.0, "boom", Reason.TIMEOUT, abandoned=True)
    tasks["kept"] = retried.retry().start(4.0, 3.5).succeed(5.0, [1])
    tasks["gone"] = tasks["gone"].start(2.0, 2.0).succeed(3.0, [1]).release()
    tasks["away"] = tasks["away"].start(2.0, 2.0).succeed(3.0, NoResult.STORED)
    tasks["failed"] = TaskRecord("failed", ("kept",)).skip(6.0, Reason.UPSTREAM_FAILED, "why")
    run = RunRecord("r", "d", 1.0, tasks, {"n": 1}, "r0", ("failed",), "r9")
    run = run._replace(params={"day": "2013-02-08"}, overridden={"kept": "function"})
    run = run._replace(max_parallel=4, versions={"Python": "3.11.0"})
    report = build_report(run)
    assert json.loads(json.dumps(report)) == report
    assert {key: value for key, value in report.items() if key != "tasks"} == {
        "run_id": "r",
        "dag_name": "d",
        "created_at": 1.0,
        "finished_at": None,
        "status": "FAILED",
        "error": None,
        "metadata": {"n": 1},
        "resumed_from": "r0",
        "targets": ["failed"],
        "started_by": "r9",
        "params": {"day": "2013-02-08"},
        "alive": True,
        "max_parallel": 4,
        "versions": {"Python": "3.11.0"},
    }
    assert {name: task["result_state"] for name, task in report["tasks"].items()} == {
        "new": "absent",
        "kept": "kept",
        "gone": "released",
        "away": "stored",
        "failed": "absent",
    }
    assert report["tasks"]["kept"]["overridden"] == "function"
    assert report["tasks"]["gone"]["overridden"] is None
    assert report["tasks"]["failed"]["reason"] == "UPSTREAM_FAILED"
    assert report["tasks"]["failed"]["deps"] == ["kept"]
    assert report["tasks"]["gone"]["result"] is None


def test_each_attempt_says_how_it_ended() -> None:  # A6
    task = TaskRecord("t").start(2.0, 1.5).fail(3.0, "boom", Reason.TIMEOUT, abandoned=True)
    logs = (LogLine(4.5, "INFO", "shop", "half of it"),)
    notes = AttemptNotes(Progress(2, 5.0, "rows"), logs, 7)
    task = task.retry().start(4.0, 3.5, (("api", 0.25),))._replace(notes=notes).succeed(5.0, 1)
    report = build_report(RunRecord("r", "d", 1.0, {"t": task}))
    assert report["started_by"] is None
    assert report["targets"] is None
    assert report["tasks"]["t"]["progress"] == {"done": 2, "total": 5.0, "unit": "rows"}
    assert report["tasks"]["t"]["attempts"] == [
        {
            "attempt": 1,
            "status": "FAILED",
            "ready_at": 1.5,
            "started_at": 2.0,
            "finished_at": 3.0,
            "error": "boom",
            "reason": "TIMEOUT",
            "abandoned": True,
            "slot_wait_s": 0.5,
            "limit_waits": {},
            "progress": None,
            "logs": [],
            "logs_cut": 0,
        },
        {
            "attempt": 2,
            "status": "SUCCESS",
            "ready_at": 3.5,
            "started_at": 4.0,
            "finished_at": 5.0,
            "error": None,
            "reason": None,
            "abandoned": False,
            "slot_wait_s": 0.25,
            "limit_waits": {"api": 0.25},
            "progress": {"done": 2, "total": 5.0, "unit": "rows"},
            "logs": [{"time": 4.5, "level": "INFO", "logger": "shop", "text": "half of it"}],
            "logs_cut": 7,
        },
    ]
    assert report["tasks"]["t"]["limit_waits"] == {"api": 0.25}
    assert report["tasks"]["t"]["slot_wait_s"] == 0.25


def test_saving_is_the_time_until_the_children_are_ready() -> None:  # V3
    a = TaskRecord("a").start(1.0, 1.0).succeed(2.0, 1, encoded_at=2.5)
    b = TaskRecord("b").start(1.0, 1.0).succeed(4.0, 1, encoded_at=4.0)
    c = TaskRecord("c", ("a",)).start(3.0, 3.0).succeed(5.0, 1, encoded_at=9.0)
    d = TaskRecord("d", ("a", "b")).start(6.0, 4.25).succeed(7.0, 1, encoded_at=7.0)
    e = TaskRecord("e", ("a", "b"), why_run="had failed")
    run = RunRecord("r", "d", 1.0, {task.name: task for task in (a, b, c, d, e)})
    tasks = build_report(run)["tasks"]
    saving = {name: task["saving_s"] for name, task in tasks.items()}
    assert saving == {"a": 1.0, "b": 0.25, "c": None, "d": None, "e": None}
    assert tasks["c"]["encoded_at"] == 9.0
    assert tasks["e"]["why_run"] == "had failed"
    # What a resume keeps was saved in another run.
    later = build_report(run._replace(resumed_from="q"))["tasks"]
    assert later["a"]["saving_s"] == 0.5


def test_what_a_resume_keeps_is_not_told_by_the_clock() -> None:
    """The clock of the computer may have been set back since, or be another computer's."""
    done = TaskRecord("done").start(6.0, 6.0).succeed(7.0, 1)
    none = TaskRecord("none").omit(7.0, Reason.SKIP_TASK, "nothing new")
    again = TaskRecord("again", why_run="had failed")._replace(items=2)
    item = TaskRecord("again", item=0).start(6.0, 6.0).succeed(7.0, 1)
    new = TaskRecord("again", item=1, why_run="had failed").start(5.5, 5.5).succeed(6.0, 1)
    tasks = {task.name: task for task in (done, none, again)}
    run = RunRecord("r", "d", 5.0, tasks, resumed_from="q", items={"again": [item, new]})

    def kept(run: RunRecord) -> list[bool]:
        found = build_report(run)["tasks"]
        items = (found["again"]["items"] or ()) if "again" in found else ()
        return [each["kept"] for each in (*found.values(), *items)]

    assert kept(run) == [True, True, False, True, False]
    assert kept(run._replace(resumed_from=None)) == [False] * 5
    # A release that did not note why a task ran has kept this one.
    older = run._replace(tasks={"done": done, "none": none})
    assert kept(older) == [False, False]
    assert kept(older._replace(created_at=8.0)) == [True, True]


def test_report_is_a_snapshot() -> None:
    metadata: dict[str, object] = {"n": 1}
    report = build_report(RunRecord("r", "d", 1.0, {}, metadata))
    metadata["n"] = 2
    assert report["metadata"] == {"n": 1}


def test_result_of_a_mapped_task_is_where_those_of_its_items_are() -> None:
    def state(*results: object) -> tuple[object, str, dict[str, int] | None]:
        items = [
            TaskRecord("t", item=number).start(2.0, 1.0).succeed(3.0, result)
            for number, result in enumerate(results)
        ]
        task = TaskRecord("t").expand(1.0, 1.0, 3)
        task = task.gather(TaskStatus.SUCCESS, items, 4.0, NoResult.ITEMS)._replace(items=3)
        report = build_report(RunRecord("r", "d", 1.0, {"t": task}, items={"t": items}))["tasks"][
            "t"
        ]
        return report["result"], report["result_state"], report["item_counts"]

    assert state(1, 2, 3) == ([1, 2, 3], "kept", {"SUCCESS": 3})
    assert state(1, NoResult.STORED) == (None, "stored", {"SUCCESS": 2, "SKIPPED": 1})
    assert state(NoResult.RELEASED) == (None, "released", {"SUCCESS": 1, "SKIPPED": 2})


@pytest.mark.parametrize("change", ["expand", "gather"])
def test_items_of_a_task_that_cannot_have_any(change: str) -> None:
    task = TaskRecord("t").start(1.0, 1.0).succeed(2.0, 3)
    with pytest.raises(TransitionError, match="cannot (expand|gather items) while it is SUCCESS"):
        task.expand(1.0, 1.0, 2) if change == "expand" else task.gather(
            TaskStatus.SUCCESS, [], 2.0, None
        )
