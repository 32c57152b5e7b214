"""A graph -> where to draw it: layers from left to right, with few crossings.

The layered method of Sugiyama, Tagawa and Toda: longest-path layers, helper points where an
edge passes a layer, median sweeps against crossings, then exact least squares for heights.
Nothing recurses, and the effort for each step has a bound, so that 5,000 tasks stay usable.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SWEEP_EFFORT = 300_000
_MOST_SWEEPS = 24
_PATIENCE = 4
_SWAP_LIMIT = 1_500
_SWAP_ROUNDS = 8
_ALIGN_ROUNDS = 12
_PASSAGE_HEIGHT = 10.0
_STRAIGHTNESS = {0: 1.0, 1: 2.0, 2: 24.0}
"""How hard an edge pulls, by how many of its ends are helper points: long edges run straight."""


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
    rows = _ordered(mesh)
    heights = _heights(mesh, rows, spacing)
    spans, width = _columns(mesh, rows, heights, widths, spacing)
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

    def helpers(self, left: int, right: int) -> int:
        """Return how many of two points are helpers."""
        return (left >= self.nodes) + (right >= self.nodes)


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
        if mesh.size <= _SWAP_LIMIT:
            _swap_neighbours(mesh, rows)
        found = _crossings(mesh, rows)
        stale += 1
        if found < fewest:
            best, fewest, stale = [list(row) for row in rows], found, 0
    return best


def _sweep(mesh: _Mesh, rows: list[list[int]], *, forward: bool) -> None:
    """Sort each layer by the median place of its neighbours in the layer before it."""
    neighbours = mesh.before if forward else mesh.after
    place = _places(rows)
    for row in rows if forward else reversed(rows):
        keys = {
            point: _median([place[other] for other in neighbours[point]], place[point])
            for point in row
        }
        row.sort(key=keys.__getitem__)
        for position, point in enumerate(row):
            place[point] = position


def _median(places: list[int], default: int) -> float:
    if not places:
        return default
    places.sort()
    middle = len(places) // 2
    if len(places) % 2:
        return places[middle]
    return (places[middle - 1] + places[middle]) / 2


def _swap_neighbours(mesh: _Mesh, rows: list[list[int]]) -> None:
    """Swap two that stand next to each other wherever that takes a crossing away."""
    place = _places(rows)
    for _ in range(_SWAP_ROUNDS):
        swapped = False
        for row in rows:
            for upper in range(len(row) - 1):
                first, second = row[upper], row[upper + 1]
                gain = 0
                for side in (mesh.before, mesh.after):
                    one = sorted(place[other] for other in side[first])
                    two = sorted(place[other] for other in side[second])
                    gain += _inversions(one, two) - _inversions(two, one)
                if gain > 0:
                    row[upper], row[upper + 1] = second, first
                    place[first], place[second] = upper + 1, upper
                    swapped = True
        if not swapped:
            return


def _inversions(upper: list[int], lower: list[int]) -> int:
    """Count the crossings of edges from two points to sorted places, the first one above."""
    return sum(len(upper) - bisect_right(upper, place) for place in lower)


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


def _heights(mesh: _Mesh, rows: list[list[int]], spacing: Spacing) -> list[float]:
    """Return each point's middle: near its neighbours, in order, and never too close."""
    heights = [0.0] * mesh.size
    folded = [_folds(mesh, row, spacing) for row in rows]
    for lines in folded:
        offsets = _offsets(mesh, lines, spacing)
        for line, offset in zip(lines, offsets, strict=True):
            for point in line:
                heights[point] = offset - offsets[-1] / 2
    for turn in range(_ALIGN_ROUNDS):
        forward = turn % 2 == 0
        last = turn >= _ALIGN_ROUNDS - 2
        for lines in folded if forward else reversed(folded):
            sides = (mesh.before, mesh.after) if last else (mesh.before if forward else mesh.after,)
            wishes = [_wish(mesh, line, sides, heights) for line in lines]
            fitted = _fitted(wishes, _offsets(mesh, lines, spacing))
            for line, height in zip(lines, fitted, strict=True):
                for point in line:
                    heights[point] = height
    return heights


def _folds(mesh: _Mesh, row: list[int], spacing: Spacing) -> list[list[int]]:
    """Cut a layer into lines of one point each, or of several when it is too high."""
    columns = _column_count(mesh, row, spacing)
    return [row[start : start + columns] for start in range(0, len(row), columns)]


def _column_count(mesh: _Mesh, row: list[int], spacing: Spacing) -> int:
    nodes = sum(point < mesh.nodes for point in row)
    return 1 if nodes <= spacing.most_rows else -(-len(row) // spacing.most_rows)


def _offsets(mesh: _Mesh, lines: list[list[int]], spacing: Spacing) -> list[float]:
    """Return how far each line must at least be below the first one."""
    offsets: list[float] = []
    total, above = 0.0, 0.0
    for line in lines:
        is_node = any(point < mesh.nodes for point in line)
        room = (spacing.height + spacing.row_gap if is_node else _PASSAGE_HEIGHT) / 2
        if offsets:
            total += above + room
        above = room
        offsets.append(total)
    return offsets


def _wish(
    mesh: _Mesh, line: list[int], sides: Iterable[list[list[int]]], heights: list[float]
) -> tuple[float, float]:
    """Return where a line would like to be, and how much."""
    total = weight = 0.0
    for side in sides:
        for point in line:
            for other in side[point]:
                pull = _STRAIGHTNESS[mesh.helpers(point, other)]
                total += pull * heights[other]
                weight += pull
    if not weight:
        return heights[line[0]], 0.1
    return total / weight, weight


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
    rows: list[list[int]],
    heights: list[float],
    widths: Sequence[float],
    spacing: Spacing,
) -> tuple[list[Span], float]:
    """Return the place of each point, and the width of the whole drawing."""
    spans = [Span(0.0, 0.0, 0.0)] * mesh.size
    left = 0.0
    for row in rows:
        columns = _column_count(mesh, row, spacing)
        widest = max((widths[point] for point in row if point < mesh.nodes), default=0.0)
        step = widest + spacing.layer_gap / 2
        right = left + step * (columns - 1) + widest
        for position, point in enumerate(row):
            if point < mesh.nodes:
                start = left + step * (position % columns)
                spans[point] = Span(start, start + widths[point], heights[point])
            else:
                spans[point] = Span(left, right, heights[point])
        left = right + spacing.layer_gap
    return spans, max(left - spacing.layer_gap, 0.0)
