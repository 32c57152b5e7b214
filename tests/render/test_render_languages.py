"""Graphs as Mermaid and Graphviz text, and the choice between the styles."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from flowrun.render import dot, graph_text, mermaid, tree

from ..browser import reports

DEPS = {"extract": [], "clean": ["extract", "extract", "elsewhere"], "load": ["clean"]}


def test_mermaid_lists_nodes_then_edges() -> None:
    assert mermaid("etl", DEPS).split("\n") == [
        "flowchart LR",
        "    accTitle: etl",
        '    t0["extract"]',
        '    t1["clean"]',
        '    t2["load"]',
        "    t0 --> t1",
        "    t1 --> t2",
    ]


def test_mermaid_of_a_run_carries_signs_durations_and_colours() -> None:
    report = reports.failure()
    lines = mermaid("daily_etl", reports.deps_of(report) | {"new": []}, report).split("\n")
    assert '    t6["✘ convert_currency<br/>4.85 s"]' in lines
    assert '    t13["⊘ notify_team"]' in lines
    assert '    t14["new"]' in lines
    assert "    class t6 failed" in lines
    assert "    class t9,t10,t12,t13 skipped" in lines


def test_hostile_names_stay_inside_their_mermaid_labels() -> None:  # V1
    report = reports.hostile()
    lines = mermaid(report["dag_name"], reports.deps_of(report), report).split("\n")
    shapes = (
        r'    t\d+\["[^"<>`\\]*(<br/>[^"<>`\\]*)?"\]',
        r"    t\d+ --> t\d+",
        r"    (classDef|class) [\w#:, ]+",
        r"    accTitle: [^\"<>`\\]*",
        "flowchart LR",
    )
    assert all(any(re.fullmatch(shape, line) for shape in shapes) for line in lines)
    assert len(lines) == 2 + 13 + 12 + 4


def test_dot_lists_nodes_then_edges() -> None:
    lines = dot("etl", DEPS).split("\n")
    assert lines[0] == "digraph flowrun {"
    assert lines[3:] == [
        '    t0 [label="extract"];',
        '    t1 [label="clean"];',
        '    t2 [label="load"];',
        "    t0 -> t1;",
        "    t1 -> t2;",
        "}",
    ]


def test_dot_of_a_run_carries_signs_durations_and_colours() -> None:
    report = reports.failure()
    shown = dot("daily_etl", reports.deps_of(report), report)
    assert 't6 [label="✘ convert_currency\\n4.85 s", color="#a83200"' in shown
    assert 't13 [label="⊘ notify_team", color="#5b6270"' in shown


def test_hostile_names_stay_inside_their_dot_labels() -> None:  # V1
    report = reports.hostile()
    for line in dot(report["dag_name"], reports.deps_of(report), report).split("\n"):
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "", line)
        assert re.fullmatch(r"[\w ,\[\]=;{}>-]*", outside), line


@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed here")
@pytest.mark.parametrize("report", [None, reports.hostile(), reports.failure()])
def test_graphviz_draws_it(report) -> None:
    deps = reports.deps_of(report or reports.hostile())
    drawn = subprocess.run(
        ["dot", "-Tsvg"],
        input=dot("<b>&lt; \\N", deps, report).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    picture = drawn.stdout.decode()
    assert picture.count('class="node"') == len(deps)
    assert "<script" not in picture
    assert drawn.stderr == b""


def test_style_picks_the_drawing() -> None:
    report = reports.single()
    deps = reports.deps_of(report)
    assert graph_text("d", deps, report=report) == tree("d", deps, report=report)
    assert graph_text("d", deps, ascii_only=True, width=5) == "d\n`-..."
    assert graph_text("d", deps, style="mermaid", report=report) == mermaid("d", deps, report)
    assert graph_text("d", deps, style="dot", report=report) == dot("d", deps, report)


def test_unknown_style_is_refused_with_the_likely_one() -> None:
    with pytest.raises(ValueError, match=r"'mermeid'.*'tree', 'mermaid', 'dot'.*mean 'mermaid'"):
        graph_text("d", {}, style="mermeid")  # type: ignore[arg-type]


def test_mermaid_says_when_it_passes_what_mermaid_draws() -> None:
    small = mermaid("d", {"a": [], **{f"t{place}": ["a"] for place in range(500)}})
    assert small.startswith("flowchart LR\n")
    wide = mermaid("d", {"a": [], **{f"t{place}": ["a"] for place in range(501)}})
    assert wide.startswith(
        "%% 501 edges: Mermaid draws 500 unless its maxEdges is higher\nflowchart LR\n"
    )
    long = mermaid("d", {f"{'x' * 150}{place}": [] for place in range(400)})
    first, second = long.split("\n")[:2]
    assert re.fullmatch(r"%% 6\d,\d{3} characters: Mermaid reads 50,000 unless .*", first)
    assert second == "flowchart LR"
