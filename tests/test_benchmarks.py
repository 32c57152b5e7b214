"""The benchmarks compare like with like: every floor and every candidate does the same work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # the benchmarks are no part of what is installed

from benchmarks import candidates, floors, shapes  # noqa: E402

SIZE = 50
RUNS = [kind for kind in floors.KINDS if kind not in {"build", "ten"}]


@pytest.fixture(autouse=True)
def _folder_for_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("side", [floors, candidates], ids=["floor", "flowrun"])
def test_every_side_gets_the_same_results(side, kind: str, shape: str) -> None:
    edges = shapes.SHAPES[shape](SIZE)
    seconds, results = side.KINDS[kind](edges, 4)
    assert seconds > 0
    assert results == shapes.expected(edges)


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("side", [floors, candidates], ids=["floor", "flowrun"])
def test_every_side_builds_all_tasks(side, shape: str) -> None:
    edges = shapes.SHAPES[shape](SIZE)
    assert side.KINDS["build"](edges, 4)[1].keys() == edges.keys()


@pytest.mark.parametrize("side", [floors, candidates], ids=["floor", "flowrun"])
def test_every_side_runs_the_same_ten_tasks(side) -> None:
    assert side.KINDS["ten"](shapes.TEN, 4)[1] == shapes.expected(shapes.TEN)


def test_floors_and_flowrun_are_measured_in_the_same_things() -> None:
    assert floors.KINDS.keys() == candidates.KINDS.keys() - {"inline"}


@pytest.mark.parametrize("size", [1, 2, 3, SIZE, 1_000])
@pytest.mark.parametrize("shape", ["chain", "grid", "random"])
def test_a_shape_has_as_many_tasks_as_asked_for_parents_first(shape: str, size: int) -> None:
    edges = shapes.SHAPES[shape](size)
    assert len(edges) == size
    assert edges == shapes.SHAPES[shape](size), "the same each time"
    seen: set[str] = set()
    for name, parents in edges.items():
        assert set(parents) <= seen
        assert len(set(parents)) == len(parents)
        seen.add(name)


def test_the_random_shape_has_about_three_parents_each() -> None:
    edges = shapes.SHAPES["random"](10_000)
    assert 2.9 < sum(map(len, edges.values())) / len(edges) < 3.1
