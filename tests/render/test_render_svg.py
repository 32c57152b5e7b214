"""A graph as a picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from flowrun.render import dag_svg
from flowrun.render.languages import LIGHT
from flowrun.render.svg import MOST_LABELLED, draw, graph_css
from flowrun.render.wording import SIGNS

from ..browser import reports

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def nodes(root: ET.Element) -> list[ET.Element]:
    return [each for each in root.iter(f"{SVG}g") if each.get("class", "").startswith("node")]


def test_picture_of_a_dag_names_every_task() -> None:
    root = parsed(dag_svg("etl", {"extract": [], "load": ["extract"]}))
    assert (root.get("role"), root.get("aria-label")) == ("img", "etl: 2 tasks")
    assert not any({"tabindex", "role"} & set(node.attrib) for node in nodes(root))
    assert [node.findtext(f"{SVG}title") for node in nodes(root)] == ["extract", "load"]
    assert [node.get("class") for node in nodes(root)] == ["node PLAIN", "node PLAIN"]


def test_picture_of_a_run_tells_status_by_shape_and_word() -> None:
    report = reports.failure()
    root = parsed(dag_svg("daily_etl", reports.deps_of(report), report))
    titles = [node.findtext(f"{SVG}title") for node in nodes(root)]
    assert "convert_currency, failed, 4.85 s · 3 attempts" in titles
    assert "notify_team, skipped" in titles
    signs = {use.get("href") for use in root.iter(f"{SVG}use")}
    assert signs == {"#flowrun-SUCCESS", "#flowrun-FAILED", "#flowrun-SKIPPED"}
    shapes = {symbol.get("id"): ET.tostring(symbol) for symbol in root.iter(f"{SVG}symbol")}
    assert len(set(shapes.values())) == len(SIGNS)


def test_critical_path_is_marked_on_its_nodes_and_edges() -> None:
    report = reports.success()
    path = ["extract_inventory", "stock_levels", "reorder_report"]
    svg = draw("d", reports.deps_of(report), report, critical=path).svg
    assert svg.count('class="node SUCCESS critical"') == 3
    assert svg.count('<path class="critical"') == 2
    assert "on the critical path" in svg


def test_long_name_is_cut_in_its_box_and_whole_in_its_title() -> None:
    name, wide = "transform_" * 9, "名前" * 30
    root = parsed(dag_svg("d", {name: [], wide: []}))
    for node, text in zip(nodes(root), (name, wide), strict=True):
        assert node.findtext(f"{SVG}title") == text
        shown = node.findtext(f"{SVG}text")
        assert shown.endswith("…")
        assert text.startswith(shown[:-1])
        assert float(node.find(f"{SVG}rect").get("width")) < 280


def test_big_graph_is_drawn_as_marks_with_their_places() -> None:
    report = reports.big(600)
    picture = draw("d", reports.deps_of(report), report)
    assert len(picture.marks) == len(set(picture.marks)) == 600
    assert "<text" not in picture.svg
    assert draw("d", reports.deps_of(reports.big(MOST_LABELLED))).marks is None
    bare = parsed(dag_svg("d", {"t" * (place + 1): [] for place in range(MOST_LABELLED + 1)}))
    assert bare.find(f"{SVG}g[@class='PENDING']") is not None


def test_failures_lie_on_top_of_a_big_graph_and_the_critical_path_shows() -> None:
    report = reports.big(2_700)
    first = next(iter(report["tasks"]))
    second = next(name for name, each in report["tasks"].items() if first in each["deps"])
    svg = draw("d", reports.deps_of(report), report, critical=[first, second]).svg
    assert svg.index('<g class="FAILED">') > svg.index('<g class="SKIPPED">')
    critical = re.search(r'class="edges critical" d="([^"]*)"', svg)[1]
    assert critical.count("M") == 1


def test_long_edge_runs_level_past_the_boxes_between() -> None:
    root = parsed(dag_svg("d", {"a": [], "b": ["a"], "c": ["b"], "d": ["a", "c"]}))
    edge = root.find(f".//{SVG}path[@data-from='0'][@data-to='3']")
    assert edge.get("d").count("H") >= 2


@pytest.mark.parametrize("report", [None, reports.hostile()])
def test_hostile_names_make_no_element_and_no_entity(report) -> None:  # V1
    hostile = reports.hostile()
    svg = dag_svg(hostile["dag_name"], reports.deps_of(hostile), report)
    root = parsed(svg)
    known = "svg style rect defs symbol g path circle marker title text use"
    assert {each.tag for each in root.iter()} <= {SVG + name for name in known.split()}
    assert not set(svg) & set("\x1b\u202e\u202c")
    assert nodes(root)[0].findtext(f"{SVG}title").startswith("<script>hacked=1</script>")
    assert not any(key.startswith("on") for each in root.iter() for key in each.attrib)


def test_graph_without_tasks_is_a_picture_too() -> None:
    assert parsed(dag_svg("d", {})).get("aria-label") == "d: 0 tasks"


def luminance(colour: str) -> float:
    """Return the relative luminance that WCAG 2 defines."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    lower, higher = sorted((luminance(one), luminance(two)))
    return (higher + 0.05) / (lower + 0.05)


def test_colours_can_be_read_on_their_grounds_in_light_and_dark() -> None:
    themes = re.findall(r"\.flowrun\{([^}]*)\}", graph_css())
    assert len(themes) == 2
    for theme in themes:
        colours = dict(pair.strip("-").split(":") for pair in theme.split(";"))
        for ink, grounds in {
            "ok": ("paper", "ok-soft"),
            "bad": ("paper", "bad-soft"),
            "run": ("paper", "run-soft"),
            "off": ("paper", "off-soft"),
            "ink": ("paper", "ok-soft", "bad-soft", "run-soft", "off-soft"),
            "muted": ("paper", "ok-soft", "bad-soft", "run-soft", "off-soft"),
        }.items():
            for ground in grounds:
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for ink, ground in LIGHT.values():
        assert contrast(ink, ground) >= 4.5
