"""The graphs that every candidate runs, and what their tasks compute; standard library only.

Peers import this module in environments of their own, so it imports nothing of flowrun.
"""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Edges: TypeAlias = dict[str, tuple[str, ...]]
"""Task -> what it depends on, declared parents first."""

SIZES = (100, 1_000, 10_000, 100_000)
_MODULUS = 1_000_003
_SEED = 20_130_208
_PARENTS = 3


def add(values: Iterable[int]) -> int:
    """Do a task's work: so little that what is measured is the way around it."""
    return (1 + sum(values)) % _MODULUS


def expected(edges: Edges) -> dict[str, int]:
    """Return every task's result; parents stand before their children in ``edges``."""
    results: dict[str, int] = {}
    for name, parents in edges.items():
        results[name] = add([results[parent] for parent in parents])
    return results


def digest(results: Mapping[str, int]) -> int:
    """Return a number that two sets of results share only if they are the same."""
    return zlib.crc32(repr(sorted(results.items())).encode())


def chain(size: int) -> Edges:
    """Return tasks one after the other."""
    names = _names(size)
    return {name: (names[number - 1],) if number else () for number, name in enumerate(names)}


def fan(size: int) -> Edges:
    """Return one task, all but two tasks that need it, and one that needs all of those."""
    first, *middle, last = _names(size)
    return {first: (), **dict.fromkeys(middle, (first,)), last: tuple(middle)}


def grid(size: int) -> Edges:
    """Return layers as wide as there are layers; each task needs three of the layer before."""
    names = _names(size)
    width = max(_PARENTS, round(size**0.5))
    edges: Edges = {}
    for number, name in enumerate(names):
        layer, column = divmod(number, width)
        above = [(layer - 1) * width + (column + shift) % width for shift in (-1, 0, 1)]
        edges[name] = tuple(names[parent] for parent in above) if layer else ()
    return edges


def scattered(size: int) -> Edges:
    """Return tasks that need one to five, on average three, of all those before them."""
    names = _names(size)
    chance = random.Random(_SEED)
    edges: Edges = {}
    for number, name in enumerate(names):
        count = min(number, chance.randint(1, 2 * _PARENTS - 1))
        edges[name] = tuple(names[parent] for parent in chance.sample(range(number), count))
    return edges


def _names(size: int) -> list[str]:
    return [f"t{number}" for number in range(size)]


SHAPES: dict[str, Callable[[int], Edges]] = {
    "chain": chain,
    "fan": fan,
    "grid": grid,
    "random": scattered,
}
WIDE = ("fan", "grid", "random")

TEN: Edges = {
    "orders": (),
    "people": (),
    "prices": (),
    "clean_orders": ("orders",),
    "clean_people": ("people",),
    "clean_prices": ("prices",),
    "joined": ("clean_orders", "clean_people", "clean_prices"),
    "totals": ("joined",),
    "averages": ("joined",),
    "report": ("totals", "averages"),
}
"""Ten tasks as a small pipeline has them."""
