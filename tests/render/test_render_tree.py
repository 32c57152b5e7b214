"""A graph as a tree."""

from __future__ import annotations

import time

import pytest

from flowrun.escape import columns
from flowrun.render import tree

from ..browser import reports

ETL = {
    "extract_orders": [],
    "extract_users": [],
    "clean": ["extract_orders"],
    "join": ["clean", "extract_users"],
    "load": ["join"],
    "audit": ["extract_orders", "join"],
}


def test_shared_task_stands_once_in_full_and_is_marked_elsewhere() -> None:
    assert tree("daily_etl", ETL) == (
        "daily_etl\n"
        "├─ extract_orders\n"
        "│  ├─ clean\n"
        "│  │  └─ join\n"
        "│  │     ├─ load\n"
        "│  │     └─ audit\n"
        "│  └─ audit (see above)\n"
        "└─ extract_users\n"
        "   └─ join (see above)"
    )


def test_ascii_fallback_holds_nothing_else() -> None:
    shown = tree("é", {"a": [], "名": ["a"], "c": ["a"]}, ascii_only=True)
    assert shown == "\\xe9\n`- a\n   |- \\u540d\n   `- c"


def test_width_cuts_lines() -> None:
    shown = tree("daily_etl", ETL, width=16)
    assert max(map(columns, shown.split("\n"))) == 16
    assert "├─ extract_orde…" in shown
    assert "|- extract_or..." in tree("daily_etl", ETL, width=16, ascii_only=True)


def test_run_adds_sign_duration_and_attempts() -> None:
    report = reports.failure()
    shown = tree("daily_etl", reports.deps_of(report), report=report)
    assert "✘ convert_currency  4.85 s, 3 attempts" in shown
    assert "⊘ notify_team\n" in shown
    assert "✘ convert_currency (see above)" in shown
    plain = tree("daily_etl", reports.deps_of(report), report=report, ascii_only=True)
    assert "[FAILED] convert_currency  4.85 s, 3 attempts" in plain
    assert plain.isascii()


def test_task_that_the_run_did_not_have_is_shown_bare() -> None:
    shown = tree("d", {"greet": [], "new": ["greet"]}, report=reports.single())
    assert shown == "d\n└─ ✔ greet  3 ms\n   └─ new"


def test_graph_without_tasks() -> None:
    assert tree("d", {}) == "d\n└─ (no tasks)"


def test_dependency_outside_the_graph_and_named_twice() -> None:
    assert tree("d", {"a": ["elsewhere"], "b": ["a", "a"]}) == "d\n└─ a\n   └─ b"


def test_hostile_names_cannot_write_to_the_screen() -> None:  # V1
    report = reports.hostile()
    shown = tree(report["dag_name"], reports.deps_of(report), report=report)
    assert not set(shown) & set("\x1b\x07\u202e\u202c")
    assert "\\u202egnp.exe\\u202c" in shown


@pytest.mark.slow
def test_long_chain_goes_on_in_sections_and_stays_linear() -> None:  # G2
    shown = tree("d", reports.chain(100_000))
    assert len(shown) < 100_000 * 60
    assert "t19 (continued below)\n" in shown
    assert "\n\nt19 (continued)\n└─ t20\n" in shown
    assert shown.count("\n") < 120_000


@pytest.mark.parametrize("wide", [60, 120])
def test_lines_never_outnumber_tasks_and_edges(wide: int) -> None:
    layers = [[f"t{layer}_{column}" for column in range(wide)] for layer in range(3)]
    deps = {
        name: layers[place - 1] if place else []
        for place, layer in enumerate(layers)
        for name in layer
    }
    started = time.process_time()
    lines = tree("d", deps).split("\n")
    assert len(lines) <= 1 + len(deps) + sum(map(len, deps.values()))
    assert time.process_time() - started < 5
