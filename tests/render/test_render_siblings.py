"""Tasks that differ by a number are one box of a graph."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flowrun.render import dag_svg, report_html
from flowrun.render.siblings import boxes
from flowrun.render.svg import draw

from ..browser import reports


def nodes(svg: str) -> list[str]:
    return re.findall(r"<title>([^<]*)</title>", svg)


def test_siblings_are_one_box_from_a_dozen_on() -> None:
    few = [box.name for box in boxes(reports.deps_of(reports.fan(11)))]
    assert len(few) == 24
    found = boxes(reports.deps_of(reports.fan(12)))
    assert [(box.name, len(box.members), box.parents) for box in found] == [
        ("list", 1, []),
        ("page_*", 12, [0]),
        ("clean_*", 12, [1]),
        ("join", 1, [2]),
    ]


def test_box_of_siblings_tells_their_ends_and_retries() -> None:
    again = [reports.attempt(number, 1, 1, 2, "E" if number < 3 else None) for number in (1, 2, 3)]
    failed = reports.task(["list"], reports.attempt(1, 1, 1, 2, "E"))
    report = reports.fan(200, page_7=reports.task(["list"], *again), page_9=failed)
    svg = draw("fan", reports.deps_of(report), report, critical=["list", "page_3", "clean_3"]).svg
    assert nodes(svg) == [
        "list, succeeded, 1.00 s, on the critical path",
        "page_* x 200, failed, 199 succeeded, 1 failed · 2 retries, on the critical path",
        "clean_* x 200, succeeded, 200 succeeded, on the critical path",
        "join, succeeded, 1.00 s",
    ]
    assert svg.count('class="behind"') == 2
    assert svg.count('<path class="critical"') == 2
    assert nodes(dag_svg("fan", reports.deps_of(report)))[1] == "page_* x 200"


def test_box_of_siblings_that_wait_for_each_other_runs() -> None:
    report = reports.fan(12, page_3=reports.pending(["list"]))
    assert "page_* x 12, running, 11 succeeded, 1 pending" in report_html(report)
    report = reports.fan(12, page_3=reports.skipped(["list"]))
    assert "page_* x 12, skipped, 11 succeeded, 1 skipped" in report_html(report)


def test_tasks_that_differ_in_more_than_a_number_keep_their_boxes() -> None:
    deps: dict[str, list[str]] = {"a": [], "b": []}
    deps |= {f"of_a_{number}": ["a"] for number in range(8)}
    deps |= {f"of_a_{number}": ["b"] for number in range(8, 16)}
    deps |= {f"of_{'x' * number}": ["a"] for number in range(16)}
    assert len(boxes(deps)) == len(deps)
    chain: Any = reports.chain(30)
    assert len(boxes(chain)) == 30


def test_page_knows_the_tasks_of_each_box() -> None:
    html = report_html(reports.fan(200))
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    assert [len(members) for members in data["boxes"]] == [1, 200, 200, 1]
    assert data["marks"] is None
    small = json.loads(re.search(r'id="data">(.*?)</script>', report_html(reports.fan(3)))[1])
    assert small["boxes"] is None


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    deps: dict[str, list[str]] = {}
    for place in range(draw(st.integers(0, 40))):
        name = f"{draw(st.sampled_from('abc'))}{place}"
        known = st.sampled_from(sorted(deps)) if deps else st.nothing()
        deps[name] = draw(st.lists(known, max_size=3, unique=True)) if deps else []
    return deps


@settings(deadline=None)
@given(graphs(), st.integers(2, 4))
def test_boxes_hold_each_task_once_and_stand_after_what_they_need(
    deps: dict[str, list[str]], least: int
) -> None:
    found = boxes(deps, least)
    names = list(deps)
    box_of = {names[task]: place for place, box in enumerate(found) for task in box.members}
    assert sorted(task for box in found for task in box.members) == list(range(len(deps)))
    for place, box in enumerate(found):
        needed = {box_of[dep] for task in box.members for dep in deps[names[task]]}
        assert set(box.parents) == needed
        assert all(parent < place for parent in needed)
