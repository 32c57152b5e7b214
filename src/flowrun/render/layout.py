"""A graph -> where to draw it: layers from left to right, with few crossings.

The layered method of Sugiyama, Tagawa and Toda: longest-path layers, helper points where an
edge passes a layer, sweeps against crossings, then exact least squares for heights.
Nothing recurses, and the effort for each step has a bound, so that 5,000 tasks stay usable.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    _Lines: TypeAlias = list[list[int]]

_SWEEP_EFFORT = 300_000
_MOST_SWEEPS = 24
_PATIENCE = 4
_ALIGN_ROUNDS = 12
_PASSAGE_HEIGHT = 10.0
_STRAIGHTNESS = {2: 1.0, 1: 2.0, 0: 24.0}
"""How hard an edge pulls, by how many of its ends are nodes: long edges run straight."""


class Spacing(NamedTuple):
    """Distances of a drawing.

    Attributes:
        height: Of every node.
        row_gap: Between nodes of a layer.
        layer_gap: Between layers, where edges bend.
        most_rows: Rows of a layer before it is folded into several columns.
    """

    height: float
    row_gap: float
    layer_gap: float
    most_rows: int


class Span(NamedTuple):
    """A stretch at one height: a node's place, or an edge's way straight through a layer."""

    left: float
    right: float
    y: float


class Route(NamedTuple):
    """One edge: its ends and the layers it passes."""

    source: int
    target: int
    through: tuple[Span, ...]


class Layout(NamedTuple):
    """A drawing's coordinates; a node's ``y`` is its middle.

    Attributes:
        nodes: The place of each node.
        layers: The layer of each node, 0 at the left.
        routes: One for each edge.
    """

    nodes: list[Span]
    layers: list[int]
    routes: list[Route]
    width: float
    height: float


def lay_out(parents: Sequence[Sequence[int]], widths: Sequence[float], spacing: Spacing) -> Layout:
    """Return coordinates for a graph whose nodes are numbered in topological order.

    Args:
        parents: The parents of each node; every parent has a smaller number.
        widths: The width of each node.
        spacing: Distances.
    """
    layers = _layers_of(parents)
    mesh = _Mesh(parents, layers)
    folded = [mesh.folded(row, spacing.most_rows) for row in _ordered(mesh)]
    heights = _heights(mesh, folded, spacing)
    spans, width = _columns(mesh, folded, heights, widths, spacing)
    highest = min((span.y for span in spans), default=0.0) - spacing.height / 2
    spans = [Span(span.left, span.right, span.y - highest) for span in spans]
    height = max((span.y for span in spans), default=0.0) + spacing.height / 2
    routes = [
        Route(source, target, tuple(spans[point] for point in through))
        for source, target, through in mesh.routes
    ]
    return Layout(spans[: len(parents)], layers, routes, width, height)


def _layers_of(parents: Sequence[Sequence[int]]) -> list[int]:
    """Put each node after its parents, then as near to its children as shortens its edges."""
    children: list[list[int]] = [[] for _ in parents]
    layers: list[int] = []
    for node, above in enumerate(parents):
        layers.append(max((layers[parent] + 1 for parent in above), default=0))
        for parent in above:
            children[parent].append(node)
    for node in range(len(parents) - 1, -1, -1):
        below = children[node]
        if len(below) > len(parents[node]):
            layers[node] = min(layers[child] for child in below) - 1
    return layers


class _Mesh:
    """The nodes, and the helper points that long edges pass, as neighbours layer by layer.

    Edges from one node share their helper points: they leave it as one line that branches.
    """

    def __init__(self, parents: Sequence[Sequence[int]], layers: Sequence[int]) -> None:
        self.nodes = len(parents)
        self.layer = list(layers)
        self.before: list[list[int]] = [[] for _ in parents]
        self.after: list[list[int]] = [[] for _ in parents]
        self.routes: list[tuple[int, int, tuple[int, ...]]] = []
        # Without a limit, n edges over n layers would need n * n points; the longest edges
        # beyond it are drawn as one curve each.
        self._points_left = 4 * self.nodes + 2_000
        shared: dict[int, list[int]] = {}
        edges = [
            (layers[node] - layers[parent], parent, node)
            for node, above in enumerate(parents)
            for parent in above
        ]
        for length, source, target in sorted(edges):
            self._add(source, target, length, shared.setdefault(source, []))
        self.size = len(self.layer)

    def _add(self, source: int, target: int, length: int, points: list[int]) -> None:
        missing = length - 1 - len(points)
        if missing > self._points_left:
            self.routes.append((source, target, ()))
            return
        while len(points) < length - 1:
            point = len(self.layer)
            self.layer.append(self.layer[source] + len(points) + 1)
            self.before.append([])
            self.after.append([])
            self._join(points[-1] if points else source, point)
            points.append(point)
            self._points_left -= 1
        through = tuple(points[: length - 1])
        self._join(through[-1] if through else source, target)
        self.routes.append((source, target, through))

    def _join(self, left: int, right: int) -> None:
        self.after[left].append(right)
        self.before[right].append(left)

    def is_node(self, point: int) -> bool:
        return point < self.nodes

    def folded(self, row: list[int], most_rows: int) -> _Lines:
        """Cut a layer into lines of one point each, or of several when it is too high."""
        nodes = sum(map(self.is_node, row))
        columns = 1 if nodes <= most_rows else -(-len(row) // most_rows)
        return [row[start : start + columns] for start in range(0, len(row), columns)]


def _ordered(mesh: _Mesh) -> list[list[int]]:
    """Return the points of each layer from top to bottom, with few crossings."""
    rows: list[list[int]] = [[] for _ in range(max(mesh.layer, default=-1) + 1)]
    for point in range(mesh.size):
        rows[mesh.layer[point]].append(point)
    effort = mesh.size + sum(map(len, mesh.after))
    sweeps = min(_MOST_SWEEPS, max(_PATIENCE, _SWEEP_EFFORT // max(effort, 1)))
    best, fewest = [list(row) for row in rows], _crossings(mesh, rows)
    stale = 0
    for sweep in range(sweeps):
        if not fewest or stale >= _PATIENCE:
            break
        _sweep(mesh, rows, forward=sweep % 2 == 0)
        found = _crossings(mesh, rows)
        stale += 1
        if found < fewest:
            best, fewest, stale = [list(row) for row in rows], found, 0
    return best


def _sweep(mesh: _Mesh, rows: list[list[int]], *, forward: bool) -> None:
    """Sort each layer by the mean place of its neighbours in the layer before it."""
    neighbours = mesh.before if forward else mesh.after
    place = _places(rows)
    for row in rows if forward else reversed(rows):
        keys = {point: _mean(place, neighbours[point], place[point]) for point in row}
        row.sort(key=keys.__getitem__)
        for position, point in enumerate(row):
            place[point] = position


def _mean(place: dict[int, int], points: list[int], default: float) -> float:
    return sum(map(place.__getitem__, points)) / len(points) if points else default


def _crossings(mesh: _Mesh, rows: list[list[int]]) -> int:
    place = _places(rows)
    total = 0
    for row in rows:
        seen: list[int] = []
        for point in row:
            ends = [place[other] for other in mesh.after[point]]
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _places(rows: list[list[int]]) -> dict[int, int]:
    return {point: position for row in rows for position, point in enumerate(row)}


def _heights(mesh: _Mesh, layers: list[_Lines], spacing: Spacing) -> list[float]:
    """Return each point's middle: near its neighbours, in order, and never too close."""
    heights = [0.0] * mesh.size
    offsets = [_offsets(mesh, lines, spacing) for lines in layers]
    for turn in range(_ALIGN_ROUNDS):
        steps = list(zip(layers, offsets, strict=True))
        for lines, least in steps if turn % 2 == 0 else reversed(steps):
            wishes = [_wish(mesh, line, heights) for line in lines]
            for line, height in zip(lines, _fitted(wishes, least), strict=True):
                for point in line:
                    heights[point] = height
    return heights


def _offsets(mesh: _Mesh, lines: _Lines, spacing: Spacing) -> list[float]:
    """Return how far each line must at least be below the first one."""
    full = spacing.height + spacing.row_gap
    rooms = [full if any(map(mesh.is_node, line)) else _PASSAGE_HEIGHT for line in lines]
    return [0.0, *accumulate((one + two) / 2 for one, two in pairwise(rooms))]


def _wish(mesh: _Mesh, line: list[int], heights: list[float]) -> tuple[float, float]:
    """Return where a line would like to be, and how much."""
    total = weight = 0.0
    for point in line:
        for other in chain(mesh.before[point], mesh.after[point]):
            pull = _STRAIGHTNESS[mesh.is_node(point) + mesh.is_node(other)]
            total += pull * heights[other]
            weight += pull
    return (total / weight, weight) if weight else (heights[line[0]], 0.1)


def _fitted(wishes: list[tuple[float, float]], offsets: list[float]) -> list[float]:
    """Return the heights nearest to the wishes (least squares) that keep the distances.

    Pool adjacent violators: exact, and linear in the number of lines.
    """
    blocks: list[tuple[float, float, int]] = []
    for (wish, weight), offset in zip(wishes, offsets, strict=True):
        mean, mass, count = wish - offset, weight, 1
        while blocks and blocks[-1][0] >= mean:
            other, other_mass, other_count = blocks.pop()
            mean = (mean * mass + other * other_mass) / (mass + other_mass)
            mass += other_mass
            count += other_count
        blocks.append((mean, mass, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _columns(
    mesh: _Mesh,
    layers: list[_Lines],
    heights: list[float],
    widths: Sequence[float],
    spacing: Spacing,
) -> tuple[list[Span], float]:
    """Return the place of each point, and the width of the whole drawing."""
    spans = [Span(0.0, 0.0, 0.0)] * mesh.size
    left = 0.0
    for lines in layers:
        widest = max(widths[point] for line in lines for point in line if mesh.is_node(point))
        step = widest + spacing.layer_gap / 2
        right = left + step * (len(lines[0]) - 1) + widest
        for line in lines:
            for column, point in enumerate(line):
                start = left + step * column if mesh.is_node(point) else left
                end = start + widths[point] if mesh.is_node(point) else right
                spans[point] = Span(start, end, heights[point])
        left = right + spacing.layer_gap
    return spans, max(left - spacing.layer_gap, 0.0)
