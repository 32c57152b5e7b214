"""What a report's page carries as data."""

from __future__ import annotations

import json
from collections import UserDict
from typing import Any

import pytest

from flowrun.render import preview, stored_previews
from flowrun.render.explanation import critical_path
from flowrun.render.page import as_json, page_data
from flowrun.render.svg import Picture

from ..browser import reports

PICTURE = Picture("", None, None)


def data_of(report, result_preview=preview) -> dict[str, Any]:
    made = page_data(
        report, critical=critical_path(report), picture=PICTURE, result_preview=result_preview
    )
    return {
        "all": made,
        **dict(zip(report["tasks"], made["tasks"], strict=True)),
    }


def test_task_carries_attempts_relative_to_the_run() -> None:
    data = data_of(reports.failure())
    place = data["all"]["texts"].index(reports.NO_ANSWER)
    assert data["fetch_rates"]["attempts"] == [
        [1, 0.0, 0.03, 1.2, place, "ERROR"],
        [2, 1.7, 1.75, 3.1, place, "ERROR"],
        [3, 4.1, 4.6, 5.2],
    ]
    assert data["clean_orders"]["deps"] == [0]
    assert data["convert_currency"]["why"] == "KeyError: 'CHF'"
    assert data["all"]["finished"] == 13.31
    assert data["notify_team"] == {
        "name": "notify_team",
        "status": "SKIPPED",
        "deps": [12],
        "reason": "UPSTREAM_FAILED",
        "error": data["all"]["texts"].index(reports.UPSTREAM),
        "why": reports.UPSTREAM,
    }


def test_abandoned_attempt_and_running_task_say_so() -> None:
    stopped = data_of(reports.cancelled())["stock_levels"]["attempts"][0]
    assert stopped[5:] == ["RUN_CANCELLED", 1]
    going = data_of(reports.running())["convert_currency"]
    assert (going["ready"], going["started"], going["attempt"]) == (8.0, 8.1, 2)
    lost = reports.task([], status="RUNNING", attempt=1, finished_at=None)
    going = data_of(reports.run("d", {"a": lost}, None))["a"]
    assert (going["ready"], going["started"]) == (0.0, 0.0)


def test_failed_attempt_without_a_reason_and_dependency_outside_the_run() -> None:
    odd = reports.task(["elsewhere"], reports.attempt(1, 0, 0, 1, "E", None))
    data = data_of(reports.run("d", {"a": odd}, 1))
    assert "deps" not in data["a"]
    assert data["a"]["attempts"] == [[1, 0.0, 0.0, 1.0, 0, ""]]


def test_result_is_shown_only_when_the_report_holds_it() -> None:
    data = data_of(reports.failure())
    assert data["fetch_rates"]["result"] == "{'USD': 0.92, 'GBP': 1.17}"
    assert data["clean_orders"]["state"] == "released"
    assert data["clean_customers"]["state"] == "stored"
    assert not {"result", "state"} & set(data["notify_team"])
    hidden = data_of(reports.failure(), None)
    assert hidden["fetch_rates"]["state"] == "hidden"
    assert "result" not in hidden["fetch_rates"]


def test_logs_and_progress_are_carried_with_their_attempts() -> None:
    data = data_of(reports.failure())["convert_currency"]
    assert data["logs"] == [
        [2, "2025-10-09 08:53:28.200Z INFO jobs.orders: converts 41,200 orders"],
        [
            3,
            (
                "(1,204 older lines not kept)\n"
                "2025-10-09 08:53:32.900Z INFO jobs.orders: 18,000 orders converted\n"
                "2025-10-09 08:53:33.250Z WARNING jobs.orders: no rate for CHF on 2025-10-09\n"
                "looked in: ecb, fallback"
            ),
        ],
    ]
    assert "logs" not in data_of(reports.failure())["fetch_rates"]
    going = data_of(reports.running())
    assert going["convert_currency"]["progress"] == "18,540 of 41,200 orders (45 %)"
    assert "progress" not in going["fetch_rates"]


def test_logs_are_cut_and_share_a_budget() -> None:
    done = reports.attempt(1, 0, 0, 1, logs=[(0, "INFO", "x" * 30_000 + "end")])
    data = data_of(
        reports.run("d", {f"t{place}": reports.task([], done) for place in range(120)}, 1)
    )
    first, last = data["t0"]["logs"][0][1], data["t119"]["logs"][0][1]
    assert first.startswith("(cut for this page; 'flowrun logs' prints it whole)\n…xxx")
    assert first.endswith("xend")
    assert (len(first), len(last)) == (20_053, 353)


def test_own_preview_is_escaped_and_cut() -> None:  # V1
    data = data_of(reports.single(), lambda value: "\x1b" + "x" * 9_000)
    assert data["greet"]["result"].startswith("\\x1bxxx")
    assert len(data["greet"]["result"]) == 2_001


def test_previews_share_a_budget() -> None:
    done = reports.attempt(1, 0, 0, 1)
    tasks = {f"t{place}": reports.task([], done, result=place) for place in range(700)}
    data = data_of(reports.run("d", tasks, 1), lambda value: "x" * 5_000)
    assert len(data["t0"]["result"]) == 2_001
    assert len(data["t699"]["result"]) == 301


def test_error_is_kept_once_and_all_errors_share_a_budget() -> None:
    error = "Traceback (most recent call last):\n" + "  line\n" * 9_000
    tasks = {
        f"t{place}": reports.task([], reports.attempt(1, 0, 0, 1, f"{error}ValueError: {place}"))
        for place in range(60)
    }
    data = data_of(reports.run("d", tasks, 1))
    assert len(data["all"]["texts"]) == 60
    assert data["all"]["texts"][0] == f"{error}ValueError: 0"
    assert data["all"]["texts"][59].startswith("(cut for this page")
    assert data["all"]["texts"][59].endswith("ValueError: 59")
    assert sum(map(len, data["all"]["texts"])) < 2_100_000


def test_json_cannot_end_its_script_element() -> None:  # V1
    text = as_json(
        page_data(reports.hostile(), critical=[], picture=PICTURE, result_preview=preview)
    )
    assert not set(text) & set("<>&\x1b\u202e\ud800")
    names = [task["name"] for task in json.loads(text)["tasks"]]
    assert "</script><img src=x onerror=hacked=2>" in names


def test_critical_path_leads_back_from_the_task_that_ended_last() -> None:
    assert critical_path(reports.success()) == [
        "extract_inventory",
        "stock_levels",
        "reorder_report",
        "publish_dashboard",
        "notify_team",
    ]
    assert critical_path(reports.failure()) == ["fetch_rates", "convert_currency"]


def test_there_is_no_critical_path_of_one_task_or_of_a_run_that_goes_on() -> None:
    assert critical_path(reports.single()) == []
    assert critical_path(reports.running()) == []
    assert critical_path(reports.run("d", {}, 0)) == []


def test_task_kept_from_an_earlier_run_is_off_the_critical_path() -> None:
    report = reports.resumed()
    assert critical_path(report) == []
    assert data_of(report)["extract"]["kept"] == 1


class Table:
    """Shows itself in lines, as a data frame does."""

    def __repr__(self) -> str:
        return "a | b\n1 | 2"


class Angry:
    """Does not want to be seen."""

    def __repr__(self) -> str:
        raise SystemError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ([1, 2], "[1, 2]"),
        (Table(), "a | b\n1 | 2"),
        ({"t": Table()}, "{'t': a | b\n1 | 2}"),
        (Angry(), "<Angry: its repr failed with SystemError>"),
        (UserDict({"a": 1}), "{'a': 1}"),
        ({"b": 2, "a": {}}, "{'b': 2, 'a': {}}"),
        ({1: {2: {3: {4: {5: 6}}}}}, "{1: {2: {3: {4: {...}}}}}"),
        (dict.fromkeys(range(13)), f"{{{', '.join(f'{key}: None' for key in range(12))}, ...}}"),
    ],
)
def test_preview_is_the_values_own_repr(value: object, shown: str) -> None:
    assert preview(value) == shown


@pytest.mark.parametrize(
    "value",
    [
        list(range(10**6)),
        "x" * 10**6,
        {str(place): "y" * 500 for place in range(99)},
        10**4_000,
        UserDict({place: place for place in range(9_999)}),
        [[[[[["deep"] * 50] * 50] * 50] * 50] * 50],
    ],
)
def test_preview_is_bounded(value: object) -> None:
    assert len(preview(value)) <= 2_001


def test_results_in_the_store_are_shown_without_a_pickle_being_read() -> None:
    report = reports.success()
    names = list(report["tasks"])
    asked: list[tuple[str, int]] = []
    long = '{"text":"' + "é" * 5000 + '"}'

    def peek(run_id: str, most: int) -> dict[str, tuple[str, int, bytes]]:
        asked.append((run_id, most))
        kept = {
            "json": b'{"span":{"$flowrun":["tuple",1,2]}}',
            "json, long": long.encode(),
            "json, broken": b"{",
            "pickle": b"\x80\x05cos\nsystem\n",
            "mine": b"x",
        }
        shown = zip(names, kept.items(), strict=False)
        return {
            name: (kind.partition(",")[0], len(data), data[:most]) for name, (kind, data) in shown
        }

    told = stored_previews(report, peek)
    assert asked == [(report["run_id"], 2000)]
    assert [told[name] for name in names[:5]] == [
        "{'span': (1, 2)}",
        '{"text":"' + "é" * 995 + "…",
        "{",
        "pickle, 13 bytes, not decoded",
        "mine, 1 byte, not decoded",
    ]
    for name in names[:5]:
        report["tasks"][name].update(status="SUCCESS", result=None, result_state="stored")
    data = page_data(report, critical=[], picture=PICTURE, result_preview=preview, stored=told)
    shown = {task["name"]: task.get("result") for task in data["tasks"]}
    assert shown[names[3]] == "pickle, 13 bytes, not decoded"
    hidden = page_data(report, critical=[], picture=PICTURE, result_preview=None, stored=told)
    assert {task["state"] for task in hidden["tasks"] if task["name"] in told} == {"hidden"}


def test_mapped_task_is_one_attempt_with_its_first_items() -> None:
    report = reports.pages(600)
    data: Any = page_data(report, critical=[], picture=PICTURE, result_preview=None)
    fetch = data["tasks"][1]
    assert fetch["mapped"] == "600 items: 599 succeeded, 1 failed"
    assert [attempt[:4] for attempt in fetch["attempts"]] == [[2, 0.0, 1.02, 7.99]]
    assert len(fetch["items"]) == 500
    log = "2025-10-09 08:53:22.500Z WARNING jobs.orders: page 1 is empty"
    assert fetch["items"][0] == [1, "FAILED", 2.0, 3.0, 1, "KeyError: 'CHF'", [[1, log]]]
    assert fetch["items"][1] == [0, "SUCCESS", 2.0, 3.0, 2, ""]
    assert critical_path(report) == ["pages", "fetch"]
