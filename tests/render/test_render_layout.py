"""Where the parts of a graph are drawn."""

from __future__ import annotations

import time
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrun.render import layout as module
from flowrun.render.layout import Layout, Spacing, lay_out

BOXES = Spacing(height=40, row_gap=10, layer_gap=50, most_rows=1_000)
FOLDED = BOXES._replace(most_rows=5)


@st.composite
def graphs(draw) -> list[list[int]]:
    size = draw(st.integers(0, 25))
    return [
        sorted(draw(st.sets(st.integers(0, node - 1), max_size=4))) if node else []
        for node in range(size)
    ]


def placed(parents: list[list[int]], spacing: Spacing = BOXES, width: float = 100) -> Layout:
    return lay_out(parents, [width] * len(parents), spacing)


def crossings(layout: Layout) -> int:
    """Count the crossings of edges between the same two layers."""
    ends = [
        (layout.layers[route.source], layout.nodes[route.source].y, layout.nodes[route.target].y)
        for route in layout.routes
        if not route.through
    ]
    return sum(
        one[0] == two[0] and (one[1] - two[1]) * (one[2] - two[2]) < 0
        for one, two in combinations(ends, 2)
    )


@settings(max_examples=80, deadline=None)
@given(graphs(), st.sampled_from([BOXES, FOLDED]))
def test_edges_run_to_the_right_and_nothing_overlaps(
    parents: list[list[int]], spacing: Spacing
) -> None:
    layout = placed(parents, spacing)
    assert len(layout.nodes) == len(layout.layers) == len(parents)
    edges = {(parent, node) for node, above in enumerate(parents) for parent in above}
    assert {(route.source, route.target) for route in layout.routes} == edges
    for route in layout.routes:
        assert layout.layers[route.source] < layout.layers[route.target]
        stations = [layout.nodes[route.source], *route.through, layout.nodes[route.target]]
        assert all(one.right < two.left for one, two in pairwise(stations))
        assert len(route.through) == layout.layers[route.target] - layout.layers[route.source] - 1
    for one, two in combinations(layout.nodes, 2):
        apart = one.right <= two.left or two.right <= one.left or abs(one.y - two.y) > 39.9
        assert apart, (one, two)
    for node in layout.nodes:
        assert 0 <= node.left < node.right <= layout.width
        assert 19.9 <= node.y <= layout.height - 19.9


@settings(max_examples=20, deadline=None)
@given(graphs())
def test_same_graph_is_always_drawn_the_same(parents: list[list[int]]) -> None:
    assert placed(parents) == placed(parents)


def test_empty_graph_has_no_width() -> None:
    layout = placed([])
    assert (layout.nodes, layout.routes, layout.width) == ([], [], 0)


def test_chain_is_a_straight_line() -> None:
    layout = placed([[], [0], [1], [2]])
    assert len({node.y for node in layout.nodes}) == 1
    assert layout.layers == [0, 1, 2, 3]


def test_crossings_that_can_be_avoided_are_avoided() -> None:
    assert crossings(placed([[], [], [], [2], [1], [0]])) == 0
    tree = [[], [0], [0], [0], [3], [2], [1], [3], [1], [2]]
    assert crossings(placed(tree)) == 0
    lattice = [[], [], [], [], [0, 1], [2, 3], [1, 2], [4, 6], [6, 5]]
    assert crossings(placed(lattice)) == 0


def test_entangled_graph_keeps_far_fewer_crossings_than_it_was_declared_with() -> None:
    size = 40
    parents: list[list[int]] = [[] for _ in range(size)]
    parents += [
        sorted({node * 7919 * 3 % size, (node * 7919 * 4 + 17) % size}) for node in range(size)
    ]
    edges = [(parent, node) for node, above in enumerate(parents) for parent in above]
    declared = sum((one[0] - two[0]) * (one[1] - two[1]) < 0 for one, two in combinations(edges, 2))
    assert crossings(placed(parents)) < declared / 2


def test_source_stands_next_to_the_task_that_needs_it() -> None:
    # 4 is needed at the very end only: at the left its edge would pass every layer.
    layout = placed([[], [0], [1], [2], [], [3, 4]])
    assert layout.layers[4] == 3


def test_long_edge_runs_level_through_the_layers_it_passes() -> None:
    layout = placed([[], [0], [1], [2], [3], [0, 4], [0, 5]])
    long = next(route for route in layout.routes if (route.source, route.target) == (0, 6))
    heights = [span.y for span in long.through]
    assert max(heights) - min(heights) < 5
    short = next(route for route in layout.routes if (route.source, route.target) == (0, 5))
    assert short.through == long.through[:4]  # one line that branches


def test_edges_beyond_the_budget_go_straight() -> None:
    size = 400
    parents = [[node - 1] if node else [] for node in range(size)]
    for node in range(2, size):
        parents[node] += range(0, node - 1, 9)
    layout = placed(parents)
    direct = [
        route
        for route in layout.routes
        if not route.through and layout.layers[route.target] - layout.layers[route.source] > 1
    ]
    assert direct
    assert all(route.through for route in layout.routes if _length(layout, route) == 2)


def _length(layout: Layout, route) -> int:
    return layout.layers[route.target] - layout.layers[route.source]


def test_high_layer_is_folded_into_columns() -> None:
    fan = [[], *[[0] for _ in range(23)], list(range(1, 24))]
    assert placed(fan).height > 23 * 40
    folded = placed(fan, FOLDED)
    assert folded.height <= 5 * 50
    assert len({node.left for node in folded.nodes[1:24]}) == 5


@pytest.mark.once
@pytest.mark.no_cover
@pytest.mark.parametrize(
    "parents",
    [
        [[node - 1] if node else [] for node in range(5_000)],
        [[], *[[0] for _ in range(4_998)], list(range(1, 4_999))],
        [
            [(node * 7919 + turn) % node for turn in range(3)] if node > 3 else []
            for node in range(5_000)
        ],
        [[node - 1] if node else [] for node in range(4_999)] + [list(range(4_999))],
        [
            list(range((node // 70 - 1) * 70, node // 70 * 70)) if node >= 70 else []
            for node in range(1_400)
        ],
    ],
    ids=["chain", "fan", "long edges", "all to the last", "dense"],
)
def test_five_thousand_tasks_are_placed_in_seconds(parents: list[list[int]]) -> None:
    started = time.process_time()
    layout = placed([sorted(set(above)) for above in parents], BOXES._replace(most_rows=90))
    assert len(layout.nodes) == len(parents)
    assert time.process_time() - started < 15


def test_few_sweeps_where_each_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(5))
    parents = [[], [], [], [], [], *[every] * 5]  # some crossings are left whatever is tried
    at_leisure = placed(parents, BOXES)
    monkeypatch.setattr(module, "_SWEEP_EFFORT", 1)
    in_haste = placed(parents, BOXES)
    assert len(in_haste.nodes) == 10
    assert crossings(in_haste) >= crossings(at_leisure) > 0
