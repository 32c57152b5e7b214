"""The HTML report as a file; tests/browser shows it to a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from flowrun import Engine, RunRecord
from flowrun.render import index_html, report_html
from flowrun.report import RunReport

from ..browser import reports


class Seen(HTMLParser):
    """Notes elements, attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_small_report_stays_under_a_hundred_kilobytes() -> None:
    for report in (reports.success(), reports.failure(), reports.cancelled(), reports.running()):
        assert len(report_html(report).encode()) < 100_000


def test_page_refers_to_nothing_outside_itself() -> None:
    html = report_html(reports.failure())
    seen = Seen(html)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name in {"src", "style", "action"}]
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert {value[0] for name, value in seen.attributes if name == "href"} == {"#"}
    assert not re.findall(r"url\((?!#)|@import", html)


def test_policy_allows_the_pages_own_style_and_script_by_hash_alone() -> None:  # V1
    html = report_html(reports.failure())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}';"
        " base-uri 'none'; form-action 'none'"
    )
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script


def test_header_tells_outcome_duration_metadata_and_lineage() -> None:
    text = " ".join(Seen(report_html(reports.failure())).texts)
    for word in (
        "daily_etl",
        "Failed",
        "in 13.3 s",
        "cron",
        "4be21c0",
        "01K6-77aa0c52",
        "4 retries",
    ):
        assert word in text
    assert "2025-10-09 08:53:20 UTC" in text
    assert "2025-10-09 08:53:33 UTC" in text
    text = " ".join(Seen(report_html(reports.cancelled())).texts)
    for word in ("Cancelled", "publish_dashboard", "RUN_CANCELLED: SIGINT"):
        assert word in text


def test_failures_stand_before_the_graph_with_their_line_and_folded_traceback() -> None:
    html = report_html(reports.failure())
    assert html.index('id="failures"') < html.index('id="graph"')
    failures = html[html.index('id="failures"') : html.index('id="graph"')]
    assert "KeyError: &#x27;CHF&#x27;" in failures
    assert "3 attempts · 4 tasks skipped after it" in failures
    assert "<details><summary>Traceback" in failures
    assert "in convert_currency" in failures
    assert "<code>/srv/etl/jobs/orders.py:41</code>" in failures
    assert failures.index("orders.py:41") < failures.index("<details>")


def test_failed_part_of_the_bar_can_be_seen_among_thousands() -> None:
    def widths(report: RunReport) -> dict[str, float]:
        bar = report_html(report).partition('<svg class="bar"')[2].partition("</svg>")[0]
        parts = re.findall(r'class="(\w+)" x="[\d.]+%" width="([\d.]+)%"', bar)
        return {status: float(width) for status, width in parts}

    many = widths(reports.big(4_000))
    assert many["FAILED"] > 0.9
    assert sum(many.values()) == pytest.approx(100, abs=0.1)
    assert widths(reports.failure())["FAILED"] == pytest.approx(100 / 14, abs=0.1)


def test_resumed_run_says_what_was_kept_and_dims_it() -> None:
    html = report_html(reports.resumed(), usual=2.04)
    assert '<li class="chip extra">1 kept, 1 run</li>' in html
    assert 'class="node SUCCESS kept"' in html
    assert html.count(" kept") >= 1
    assert "in 2.60 s, usually 2.04 s" in html
    assert 'data-filter="kept"' in html
    assert 'data-filter="kept"' not in report_html(reports.failure())
    assert "retried <b>2</b>" in report_html(reports.failure())


def test_run_that_is_alive_says_as_of_when() -> None:
    assert re.search(r"for \d+ d \d+ h, as of \d{4}-\d\d-\d\d ", report_html(reports.running()))
    left = report_html(reports.running() | {"alive": False})
    assert '<p class="took"></p>' in left


def test_long_timeline_offers_its_critical_path_and_failures() -> None:
    def rows(report: RunReport) -> list[str]:
        return re.findall(r'data-rows="(\w+)"', report_html(report))

    assert rows(reports.big(300)) == ["all", "critical"]
    assert rows(reports.big(2_300)) == ["worst", "all", "critical"]
    assert rows(reports.failure()) == []


def test_plain_or_missing_error_needs_no_fold() -> None:
    tasks = {
        "plain": reports.task([], reports.attempt(1, 0, 0, 1, "gone", None)),
        "silent": reports.task([], reports.attempt(1, 0, 0, 1, "E"), error=None),
    }
    html = report_html(reports.run("d", tasks, 1))
    assert "<details>" not in html.partition("<script")[0]
    assert "no error was recorded" in html


def test_many_failures_and_long_tracebacks_are_cut_and_said_to_be() -> None:
    error = "Traceback (most recent call last):\n" + "  line\n" * 5_000 + "ValueError: " + "z" * 999
    tasks = {
        f"t{place}": reports.task([], reports.attempt(1, 0, 0, 1, error)) for place in range(25)
    }
    html = report_html(reports.run("d", tasks, 1))
    assert html.count('<article class="failure">') == 20
    assert "5 more failures in the table below." in html
    assert "z…</p>" in html
    assert "…  line\n" in html or "…line\n" in html or "…" in html


def test_run_without_failures_or_tasks_leaves_those_parts_out() -> None:
    assert 'id="failures"' not in report_html(reports.success())
    empty = report_html(reports.run("d", {}, 0.0))
    assert 'id="graph"' not in empty
    assert 'id="timeline"' not in empty


def test_legend_names_only_what_the_timeline_shows() -> None:
    def legend(report) -> str:
        return re.search(r'<ul class="legend">(.*?)</ul>', report_html(report))[1]

    assert "running" in legend(reports.running())
    assert "critical path" not in legend(reports.running())
    assert "failed" not in legend(reports.single())
    assert "critical path" in legend(reports.success())
    assert "The critical path is 5 tasks long and ran for 12.5 s." in report_html(reports.success())


def test_hostile_texts_make_no_element() -> None:  # V1
    html = report_html(reports.hostile())
    seen = Seen(html)
    assert seen.tags.count("script") == 2
    assert not {"img", "b onload", "u", "s", "q", "i"} & set(seen.tags)
    assert not set(html) & set("\x1b\x07\u202c\u202e\u2066\ud800")
    html.encode("utf-8")
    assert any("<script>hacked=1</script>" in text for text in seen.texts)


def test_big_graph_has_another_hint() -> None:
    assert "Point at a mark" in report_html(reports.big(600))
    assert "With the keyboard" in report_html(reports.big(300))


@pytest.mark.once
@pytest.mark.no_cover
def test_five_thousand_tasks_make_a_page_in_seconds() -> None:
    report = reports.big()
    started = time.process_time()
    html = report_html(report)
    assert time.process_time() - started < 15
    assert len(html.encode()) < 3_000_000


def test_results_can_be_left_out() -> None:  # V2
    assert "'USD'" not in report_html(reports.failure(), result_preview=None)
    assert "masked" in report_html(reports.failure(), result_preview=lambda value: "masked")


async def test_report_of_a_real_run(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()

    @engine.task(name="extract", dag="etl")
    def extract() -> list[int]:
        return [1, 2, 3]

    @engine.task(name="load", dag="etl", deps=["extract"], retries=1)
    def load(extract: list[int]) -> Any:
        raise ValueError(f"cannot load {len(extract)} <rows>")

    run_id = await engine.run_once("etl")
    text = " ".join(Seen(engine.report_html(run_id)).texts)
    assert "ValueError: cannot load 3 <rows>" in text
    assert '"result":"[1, 2, 3]"' in text
    assert "✘ load" in engine.display_dag("etl", run_id=run_id)
    assert engine.display_dag("etl") == "etl\n└─ extract\n   └─ load"
    with pytest.raises(ValueError, match="unknown style"):
        engine.display_dag("etl", style="picture")


def test_index_lists_parameters_if_any_run_has_them() -> None:
    run = RunRecord("r1", "d", 1.0, {}, finished_at=2.0).summary()
    assert "Parameters" not in index_html([run], {"r1": "r1.html"}, "runs.db")
    shown = index_html([run._replace(params={"day": "<1>"})], {"r1": "r1.html"}, "runs.db")
    assert '<th scope="col">Parameters</th>' in shown
    assert "<td>day=&lt;1&gt;</td>" in shown


def test_header_says_what_carried_out_the_run() -> None:
    page = report_html(reports.success() | {"max_parallel": 4, "versions": {"Python": "3.13.1"}})
    assert "<dt>max_parallel</dt><dd>4</dd>" in page
    assert "<dt>Versions</dt><dd>Python 3.13.1</dd>" in page
