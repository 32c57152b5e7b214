"""The HTML report in a real Chromium."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flowrun import Engine, RunStatus, RunSummary
from flowrun.render import dag_svg, index_html, report_html
from flowrun.report import RunReport

from . import reports
from .conftest import AXE, Opened, cannot

Show = Callable[..., Opened]

PAGES: dict[str, Callable[[], RunReport]] = {
    "success": reports.success,
    "failure": reports.failure,
    "cancelled": reports.cancelled,
    "running": reports.running,
    "resumed": reports.resumed,
    "single": reports.single,
    "fan": reports.failed_fan,
    "omitted": reports.omitted,
    "mapped": reports.pages,
    "hostile": reports.hostile,
    "big": reports.big,
    "empty": lambda: reports.run("empty", {}, 0.0),
}


@functools.cache
def page_of(name: str) -> str:
    """Return one of the pages; the big one is made once."""
    return report_html(PAGES[name](), usual=12.0)


def rows(opened: Opened) -> list[str]:
    """Return the names in the table that are built, from top to bottom."""
    return opened.texts("tr.item td.c-task")


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_in_silence_and_asks_the_network_for_nothing(show: Show, name: str) -> None:
    opened = show(page_of(name))
    for button in opened.page.locator("tr.item button").all()[:3]:
        button.click()
    opened.page.keyboard.press("Escape")
    assert opened.noise == []
    assert opened.requests == [opened.page.url]


@pytest.mark.no_cover
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(show: Show, name: str, scheme: str) -> None:
    if not AXE.exists():
        cannot("axe-core")
    # The page's own policy would refuse axe's script, as it refuses every other.
    opened = show(page_of(name), color_scheme=scheme, bypass_csp=True)
    opened.page.evaluate(AXE.read_text("utf-8"))
    # The rest of what it looks for does not depend on the colours.
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    if name in {"empty", "failure"}:
        assert _violations(opened, rules) == []
    if name != "empty":  # with a row unfolded, which hides nothing else
        opened.page.locator("tr.item button").first.click()
        assert _violations(opened, rules) == []


def _violations(opened: Opened, rules: dict[str, Any]) -> list[Any]:
    found = opened.page.evaluate("rules => axe.run(rules)", rules)["violations"]
    return [(each["id"], [node["html"][:200] for node in each["nodes"][:3]]) for each in found]


def test_page_of_a_real_run(show: Show, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_parallel=1)
    shop = engine.dag("shop")

    @shop.task
    def orders() -> list[str]:
        return ["tea", "coffee"]

    @shop.task
    def prices() -> dict[str, float]:
        return {"tea": 2.5}

    @shop.task(deps=[orders, prices], retries=1)
    def revenue(orders: list[str], prices: dict[str, float]) -> float:
        return sum(prices[item] for item in orders)

    @shop.task(deps=[revenue])
    def publish(revenue: float) -> None: ...

    with ThreadPoolExecutor(1) as pool:  # Playwright's loop is at work in this thread
        run_id = pool.submit(asyncio.run, engine.run_once("shop")).result(30)
    opened = show(engine.report_html(run_id))
    assert rows(opened) == ["revenue", "orders", "prices", "publish"]
    opened.page.click(".node.FAILED")
    assert opened.texts("#detail .attempt b") == ["Attempt 1", "Attempt 2"]
    assert "KeyError: 'coffee'" in opened.page.inner_text("#detail")
    opened.page.locator(".lane", has_text="prices").click()
    assert "{'tea': 2.5}" in opened.page.inner_text("#detail")
    assert opened.noise == []


def test_clicking_a_node_shows_its_attempts_errors_and_waiting(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    opened.page.click(".node.FAILED")
    detail = opened.page.locator("#detail")
    assert detail.get_by_role("heading", level=2).inner_text() == "convert_currency"
    assert opened.texts("#detail .attempt b") == ["Attempt 1", "Attempt 2", "Attempt 3"]
    assert "KeyError: 'CHF'" in detail.inner_text()
    assert "Waited for a slot\n250 ms" in detail.inner_text()
    assert opened.texts("#detail .links >> nth=0 >> .to") == ["clean_orders", "fetch_rates"]
    assert [text.count("\n") for text in opened.texts("#detail .log")] == [0, 3]
    assert "jobs.orders: 18,000 orders converted" in detail.inner_text()  # the last is unfolded
    assert "converts 41,200 orders" not in detail.inner_text()
    detail.get_by_role("button", name="fetch_rates").click()
    assert "'USD': 0.92" in detail.inner_text()
    assert opened.page.locator(".edges path.lit").count() == 1


def test_released_and_stored_results_are_said_to_be_so(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    for name, words in (("clean_orders", "Released"), ("clean_customers", "In the store")):
        opened.page.get_by_role("row").get_by_role("button", name=name).click()
        assert words in opened.page.locator("#detail").inner_text()


def test_keyboard_walks_the_graph_opens_a_node_and_comes_back(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    opened.page.locator(".node[tabindex='0']").focus()
    opened.page.keyboard.press("ArrowRight")
    focused = "document.activeElement.querySelector('title').textContent"
    assert opened.page.evaluate(focused).startswith("clean_orders, succeeded")
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("#detail h2").inner_text() == "clean_orders"
    assert opened.page.evaluate("document.activeElement.id") == "detail"
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("#detail").is_hidden()
    assert opened.page.evaluate(focused).startswith("clean_orders, succeeded")
    assert opened.page.locator(".node[tabindex='0']").count() == 1


def test_zoom_and_drag_move_the_graph(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    svg = opened.page.locator(".canvas svg")

    def view() -> list[float]:
        return [float(part) for part in svg.get_attribute("viewBox").split()]

    whole = view()
    opened.page.click("[data-zoom=in]")
    zoomed = view()
    assert zoomed[2] == pytest.approx(whole[2] / 1.4)
    box = svg.bounding_box()
    opened.page.mouse.move(box["x"] + 300, box["y"] + 5)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 200, box["y"] + 5, steps=4)
    opened.page.mouse.up()
    assert view()[0] > zoomed[0] + 50
    opened.page.click("[data-zoom=fit]")
    assert view() == whole


def test_filters_by_text_and_by_status(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    assert rows(opened)[0] == "convert_currency"
    assert len(rows(opened)) == 14
    opened.page.fill("#search", "KEYERROR")
    assert rows(opened) == ["convert_currency"]
    assert opened.page.inner_text("#shown") == "1 of 14 shown"
    opened.page.fill("#search", "revenue")
    assert rows(opened) == ["revenue_by_day", "revenue_by_segment"]
    opened.page.fill("#search", "")
    opened.page.click("[data-filter=FAILED]")
    assert rows(opened) == ["convert_currency"]
    opened.page.click("[data-filter=SKIPPED]")
    assert len(rows(opened)) == 5
    assert opened.page.get_attribute("[data-filter=FAILED]", "aria-pressed") == "true"
    opened.page.fill("#search", "no such task")
    assert rows(opened) == []
    assert opened.page.is_visible("text=No task matches the filter.")


def test_sorts_up_down_and_back_with_blanks_last(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    first = rows(opened)
    ran = opened.page.get_by_role("columnheader", name="Ran").get_by_role("button")
    ran.click()
    assert rows(opened)[:2] == ["clean_orders", "extract_customers"]
    assert rows(opened)[-1] == "notify_team"
    assert (
        opened.page.get_by_role("columnheader", name="Ran").get_attribute("aria-sort")
        == "ascending"
    )
    ran.click()
    assert rows(opened)[0] == "convert_currency"
    assert rows(opened)[-1] == "notify_team"
    ran.click()
    assert rows(opened) == first
    assert opened.page.locator("th[aria-sort]").count() == 0


def test_timeline_shows_waiting_running_retries_and_the_critical_path(show: Show) -> None:
    opened = show(report_html(reports.success()))
    lane = opened.page.locator(".lane", has_text="fetch_rates")
    assert lane.locator("rect.wait").count() == 3
    assert lane.locator("rect.FAILED").count() == 2
    assert lane.locator("rect.SUCCESS").count() == 1
    assert lane.locator(".gap").count() == 2
    critical = ["extract_inventory", "stock_levels", "reorder_report", "publish_dashboard"]
    assert opened.texts(".lane.critical .label") == [*critical, "notify_team"]
    assert opened.page.locator(".node.critical").count() == 5
    assert opened.page.locator(".edges path.critical").count() == 4
    lane.click()
    assert opened.page.locator("#detail h2").inner_text() == "fetch_rates"


def test_running_task_reaches_the_end_of_the_timeline(show: Show) -> None:
    opened = show(report_html(reports.running()))
    bar = opened.page.locator(".lane rect.RUNNING").bounding_box()
    lane = opened.page.locator(".lane svg.bars").first.bounding_box()
    assert bar["x"] + bar["width"] == pytest.approx(lane["x"] + lane["width"], abs=2)
    opened.page.click(".node.RUNNING")
    told = opened.page.inner_text("#detail")
    assert "Progress\n18,540 of 41,200 orders (45 %)" in told


def test_kept_tasks_are_marked_and_stay_out_of_the_timeline(show: Show) -> None:
    opened = show(report_html(reports.resumed()))
    assert opened.texts(".lane .label") == ["load"]
    assert "kept from the earlier run" in opened.texts("td.why")
    opened.page.get_by_role("row").get_by_role("button", name="extract").click()
    assert "kept from the run that this one resumes" in opened.page.inner_text("#detail")


def test_kept_tasks_are_dim_and_can_be_filtered(show: Show) -> None:
    page = show(report_html(reports.resumed())).page
    colour = "node => getComputedStyle(node).color"
    kept, ran = (page.locator("tr.item button", has_text=name) for name in ("extract", "load"))
    assert kept.evaluate(colour) != ran.evaluate(colour)
    assert page.locator(".node.kept").count() == 1
    page.click("[data-filter=kept]")
    assert page.locator("tr.item").count() == 1
    assert page.inner_text(".chip.extra") == "1 kept, 1 run"


def test_omitted_tasks_have_not_failed(show: Show) -> None:
    opened = show(page_of("omitted"))
    page = opened.page
    assert page.locator("#failures").count() == 0
    assert page.locator(".lane rect.FAILED").count() == 0
    assert page.locator(".lane rect.OMITTED").count() == 1
    assert opened.texts("tr.item.OMITTED td.why") == [
        "nothing new",
        "the task 'fetch' upstream of it was omitted",
    ]
    page.locator(".node.OMITTED").nth(1).click()
    assert "Why it was omitted" in page.inner_text("#detail")
    assert "Status\nomitted" in page.inner_text("#detail")
    page.click("[data-filter=OMITTED]")
    assert rows(opened) == ["fetch", "load"]


def test_siblings_are_one_box_that_leads_to_each(show: Show) -> None:
    opened = show(page_of("fan"))
    page = opened.page
    assert opened.texts(".node .name") == ["list", "page_* x 200", "clean_* x 200", "join"]
    page.locator(".node").nth(1).click()
    assert page.inner_text("#detail h2") == "page_* x 200"
    assert "retries\n2" in page.inner_text("#detail")
    assert opened.texts("#detail .to")[:3] == ["page_9", "page_7", "page_0"]
    assert "and 140 more" in page.inner_text("#detail")
    assert page.locator(".edges path.lit").count() == 2
    page.locator("#detail .to").nth(1).click()
    assert page.inner_text("#detail h2") == "page_7"
    assert page.locator(".node.lit .name").text_content() == "page_* x 200"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.box") == "1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h2") == "clean_* x 200"
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail h2") == "join"
    assert opened.noise == []


def test_long_timeline_opens_at_failures_and_the_critical_path(show: Show) -> None:
    opened = show(page_of("fan"))
    page = opened.page
    assert opened.texts(".lane .label") == ["list", "page_0", "page_9", "clean_0", "join"]
    page.click("[data-rows=critical]")
    assert opened.texts(".lane .label") == ["list", "page_0", "clean_0", "join"]
    assert page.get_attribute("[data-rows=critical]", "aria-pressed") == "true"
    assert page.get_attribute("[data-rows=worst]", "aria-pressed") == "false"
    page.click("[data-rows=all]")
    page.wait_for_selector(".lane >> text=page_1")
    good = show(report_html(reports.fan()))
    assert good.texts(".lane .label") == ["list", "page_0", "clean_0", "join"]
    short = show(report_html(reports.fan(20)))
    assert len(short.texts(".lane .label")) == 42


def test_retried_tasks_can_be_filtered(show: Show) -> None:
    opened = show(page_of("fan"))
    opened.page.click("[data-filter=retried]")
    assert rows(opened) == ["page_7"]
    opened.page.click("[data-filter=FAILED]")
    assert rows(opened) == ["page_9", "page_7"]
    assert opened.texts(".chip.extra") == ["2 retries"]


def test_failed_part_of_the_bar_is_wide_enough_to_be_seen(show: Show) -> None:
    box = show(page_of("fan")).page.locator(".bar rect.FAILED").bounding_box()
    assert box["width"] > 8


def test_times_are_told_on_the_readers_clock_too(show: Show) -> None:
    page = show(page_of("failure"), timezone_id="Asia/Kolkata", locale="en-GB").page
    assert "2025-10-09 08:53:20 UTC (9 Oct 2025, 14:23:20 here)" in page.inner_text("dl.facts")
    page = show(page_of("failure"), timezone_id="UTC").page
    assert "here" not in page.inner_text("dl.facts")


def test_failure_shows_its_file_and_line_before_its_traceback(show: Show) -> None:
    page = show(page_of("failure")).page
    assert page.locator("#failures pre").is_hidden()
    shown = page.inner_text("#failures")
    assert "/srv/etl/jobs/orders.py:41\n" in shown
    assert 'return [row | {"eur": row["amount"]' in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_index_of_runs_leads_to_their_pages(show: Show, scheme: str) -> None:
    if not AXE.exists():
        cannot("axe-core")
    ends = (
        (RunStatus.SUCCESS, 5.0, True),
        (RunStatus.FAILED, 9.0, True),
        (RunStatus.RUNNING, None, False),
    )
    runs = [
        RunSummary(
            f"run{place}",
            "<b>d</b>",
            status,
            reports.START,
            end and reports.START + end,
            None,
            {},
            None,
            None,
            alive,
            {"SUCCESS": 2, "FAILED": 1},
        )
        for place, (status, end, alive) in enumerate(ends)
    ]
    html = index_html(runs, {run.run_id: f"{run.run_id}.html" for run in runs}, "runs.db")
    opened = show_index(show, html, color_scheme=scheme, bypass_csp=True)
    assert opened.texts("tbody td:nth-child(2)") == ["succeeded", "failed", "left behind"]
    assert opened.texts("tbody td:nth-child(4)") == ["5.00 s", "9.00 s", ""]
    assert opened.page.locator("a").first.get_attribute("href") == "run0.html"
    assert opened.texts("a") == ["<b>d</b>"] * 3
    opened.page.evaluate(AXE.read_text("utf-8"))
    assert _violations(opened, {}) == []


def show_index(show: Show, html: str, **options: Any) -> Opened:
    """Show a page that has no script, and so is ready at once."""
    return show(html.replace("<html ", "<html data-ready "), **options)


def test_five_thousand_tasks_stay_usable(show: Show) -> None:
    html = page_of("big")
    opened = show(html)
    assert len(html.encode()) < 3_000_000
    assert opened.page.locator("tr.item").count() < 120
    assert opened.page.locator(".lane").count() < 120
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 3_000

    opened.page.evaluate("document.querySelector('.rows').scrollTop = 1e9")
    last = list(reports.big()["tasks"])[-1]
    opened.page.wait_for_selector(f"tr.item >> text={last}")
    opened.page.fill("#search", "_49_99")
    assert rows(opened) == [last]
    opened.page.get_by_role("row").get_by_role("button", name=last).click()
    assert opened.page.locator("#detail h2").inner_text() == last
    assert opened.texts(".tag.near") == [last]
    assert opened.noise == []


def test_a_mark_of_a_big_graph_can_be_pointed_at_and_clicked(show: Show) -> None:
    report = reports.big(400)
    opened = show(report_html(report))
    place, name = 123, list(report["tasks"])[123]
    x, y = json.loads(opened.page.inner_text("#data"))["marks"][place]
    corner = opened.page.locator(".canvas svg").bounding_box()
    left, top, across, _ = map(float, opened.page.get_attribute(".canvas svg", "viewBox").split())
    scale = corner["width"] / across
    point = (corner["x"] + (x - left) * scale, corner["y"] + (y - top) * scale)
    opened.page.mouse.move(*point)
    opened.page.wait_for_selector(f".tag.near >> text={name}")
    opened.page.mouse.click(*point)
    assert opened.page.locator("#detail h2").inner_text() == name
    for _ in range(8):
        opened.page.click("[data-zoom=in]")
    opened.page.wait_for_selector(".tag:not(.near)")


def test_hostile_text_is_shown_and_never_acts(show: Show) -> None:  # V1
    report = reports.hostile()
    opened = show(report_html(report))
    page = opened.page
    assert rows(opened)[-1] == "toString"
    assert "<script>hacked=1</script>" in rows(opened)
    for name in opened.texts("tr.item td.c-task"):
        page.locator("tr.item", has_text=name).first.locator("button").click()
        assert page.locator("#detail h2").inner_text() == name
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img, iframe, object, embed, form, b[onload], u, s, q, i.x").count() == 0
    assert page.locator("script").count() == 2
    written = page.evaluate("document.documentElement.outerHTML")
    assert not set(written) & set("\x1b\x07\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert "\\u202egnp.exe\\u202c" in rows(opened)
    assert page.inner_text("h1") == '<b onload="hacked=5">\\u202edag</b> 🚀'
    assert opened.noise == []
    assert opened.requests == [page.url]


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """Listen on this machine, and note the path of whatever is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()
        thread.join(10)


def test_policy_of_the_page_refuses_whatever_is_added_to_it(  # V1
    show: Show, listener: tuple[str, list[str]]
) -> None:
    address, asked = listener
    opened = show(report_html(reports.single()))
    refused = opened.page.evaluate(
        """async address => {
            const refused = [];
            document.addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            const image = document.createElement("img");
            image.src = `${address}image`;
            document.body.append(script, image);
            document.body.setAttribute("onclick", "window.hacked = 2");
            document.body.click();
            document.body.setAttribute("style", "color: red");
            try { await fetch(`${address}fetch`); } catch { /* refused, as it should be */ }
            await new Promise(resolve => setTimeout(resolve));
            return refused;
        }""",
        address,
    )
    assert {
        "script-src-elem",
        "img-src",
        "script-src-attr",
        "style-src-attr",
        "connect-src",
    } <= set(refused)
    assert opened.page.evaluate("typeof hacked") == "undefined"
    assert asked == []
    # The listener does hear what a page without the policy asks for.
    free = show(report_html(reports.single()), bypass_csp=True)
    free.page.evaluate("address => fetch(`${address}fetch`)", address)
    assert asked == ["/fetch"]


@pytest.mark.parametrize("name", ["failure", "hostile", "big"])
def test_page_fits_a_phone(show: Show, name: str) -> None:
    opened = show(page_of(name), viewport={"width": 360, "height": 740})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360
    opened.page.locator("tr.item button").first.click()
    box = opened.page.locator("#detail").bounding_box()
    assert (box["x"], box["width"]) == (0, 360)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_scheme_is_dark(show: Show) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        opened = show(report_html(reports.single()), color_scheme=scheme)
        colour = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(int(part) for part in colour[4:-1].split(","))
    assert grounds["light"] > 600 > 200 > grounds["dark"]


def test_paper_shows_every_row_and_unfolded_failures(show: Show) -> None:
    opened = show(report_html(reports.big(600)))
    page = opened.page
    assert page.locator("tr.item").count() < 600
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("tr.item").count() == 600
    assert page.locator("#search").is_hidden()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("tr.item").count() < 600

    failed = show(report_html(reports.failure())).page
    failed.emulate_media(media="print")
    failed.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert failed.locator("#failures pre").is_visible()
    failed.evaluate("dispatchEvent(new Event('afterprint'))")
    assert failed.locator("#failures pre").is_hidden()


@pytest.mark.parametrize("report", [None, reports.failure(), reports.hostile()])
def test_picture_of_a_graph_stands_alone_as_an_image(show: Show, report: RunReport | None) -> None:
    # As an <img> nothing outside the file is read, and a broken one has no size.
    deps = reports.deps_of(report or reports.success())
    page = show(report_html(reports.single()), bypass_csp=True).page
    size = page.evaluate(
        """svg => new Promise((resolve, reject) => {
            const image = new Image();
            image.onload = () => resolve([image.naturalWidth, image.naturalHeight]);
            image.onerror = () => reject(new Error("not an image"));
            image.src = URL.createObjectURL(new Blob([svg], {type: "image/svg+xml"}));
        })""",
        dag_svg("daily_etl", deps, report),
    )
    assert min(size) > 30


def test_headings_stand_over_their_numbers(show: Show) -> None:
    page = show(report_html(reports.failure())).page
    edges = page.evaluate(
        """() => {
            const edge = (node, text) => {
                const range = document.createRange();
                range.selectNodeContents(text ?? node);
                return range.getBoundingClientRect().right;
            };
            const heads = [...document.querySelectorAll("th.number button")];
            const cells = [...document.querySelectorAll("tr.item td.number")];
            return heads.map((head, place) => [edge(head, head.firstChild), edge(cells[place])]);
        }"""
    )
    assert len(edges) == 4
    for heading, number in edges:
        assert heading == pytest.approx(number, abs=1.5)


def test_tracebacks_keep_their_marks_below_the_code(show: Show) -> None:
    page = show(report_html(reports.failure()), viewport={"width": 360, "height": 740}).page
    page.click("#failures summary")
    page.click(".node.FAILED")
    spaces = "node => getComputedStyle(node).whiteSpace"
    for place in ("#failures pre", "#detail details[open] pre"):
        assert page.locator(place).first.evaluate(spaces) == "pre"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.emulate_media(media="print")
    assert page.locator("#failures pre").evaluate(spaces) == "pre-wrap"
    page = show(report_html(reports.hostile())).page
    page.locator("#failures summary").first.click()
    assert page.locator("#failures pre").first.evaluate(spaces) == "pre-wrap"


def test_panel_of_a_mapped_task_lists_its_items_those_that_failed_first(show: Show) -> None:
    opened = show(page_of("mapped"))
    opened.page.get_by_role("button", name="fetch", exact=True).first.click()
    items = opened.page.locator("#detail details")
    assert items.locator("> summary").all_inner_texts() == [
        "200 items: 199 succeeded, 1 failed",
        "Log of item 1",
    ]
    assert items.locator("pre.log").inner_text().endswith("jobs.orders: page 1 is empty")
    lines = items.locator("p").all_inner_texts()
    assert len(lines) == 200
    assert lines[0].startswith("1")
    assert "KeyError: 'CHF'" in lines[0]
    assert "2 attempts" in lines[1]
    assert opened.page.locator(".lane").count() == 2  # one bar for all items


def test_first_line_leads_to_the_tasks_that_took_the_time(show: Show) -> None:
    opened = show(report_html(reports.failure()))
    line = opened.page.locator(".top .slow")
    assert line.inner_text().startswith("13.3 s: convert_currency 4.9, ")
    name = line.locator("button").first
    name.focus()
    name.press("Enter")
    assert opened.page.locator("#detail h2").inner_text() == "convert_currency"
    opened.page.keyboard.press("Escape")
    assert opened.page.evaluate("document.activeElement.textContent") == "convert_currency"


def test_waits_are_shown_by_what_was_waited_for(show: Show) -> None:
    waited = reports.attempt(1, 1, 5, 9) | {"slot_wait_s": 1.0, "limit_waits": {"api": 2.0}}
    tasks = {"a": reports.task([], waited, saving_s=0.5), "b": reports.task(["a"])}
    opened = show(report_html(reports.run("d", tasks, 10.0)))
    bar = opened.page.locator(".lane rect.wait").bounding_box()
    lane = opened.page.locator(".lane svg.bars").first.bounding_box()
    assert bar["width"] == pytest.approx(lane["width"] * 0.3, abs=2)
    opened.page.locator(".lane").first.click()
    terms = opened.texts("#detail dt")
    facts = dict(zip(terms, opened.texts("#detail dd"), strict=True))
    assert facts["Waited for a slot"] == "1.00 s"
    assert facts["Waited for limit api"] == "2.00 s"
    assert facts["Waited for a thread or the loop"] == "1.00 s"
    assert facts["Saving"] == "500 ms"
    assert facts["Ran"] == "4.00 s"
