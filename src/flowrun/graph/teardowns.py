"""Which tasks of a graph tear down what others have set up, and what they wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Teardowns(NamedTuple):
    """The teardowns of one graph; tasks are given by number.

    Attributes:
        names: By the name of each teardown, those of its setups: what it tears down.
        setups: The setups of each teardown.
        of: The teardowns of each setup.
        waits: What each teardown waits for beside its dependencies: what depends on its setups.
        waiting: By task, the teardowns that wait for it like that.
    """

    names: Mapping[str, tuple[str, ...]] = {}
    setups: Mapping[int, frozenset[int]] = {}
    of: Mapping[int, tuple[int, ...]] = {}
    waits: Mapping[int, tuple[int, ...]] = {}
    waiting: Mapping[int, tuple[int, ...]] = {}


NO_TEARDOWNS = Teardowns()


def find_teardowns(
    names: Mapping[str, tuple[str, ...]],
    index: Mapping[str, int],
    parents: Sequence[Sequence[int]],
    children: Sequence[Sequence[int]],
) -> Teardowns:
    """Return the teardowns of a graph, given the names of their setups."""
    if not names:
        return NO_TEARDOWNS
    setups = {index[name]: frozenset(map(index.__getitem__, names[name])) for name in names}
    of: dict[int, tuple[int, ...]] = {}
    waits: dict[int, tuple[int, ...]] = {}
    waiting: dict[int, tuple[int, ...]] = {}
    for teardown, found in setups.items():
        users: set[int] = set()
        for setup in found:
            of[setup] = (*of.get(setup, ()), teardown)
            users.update(each for each in children[setup] if setup not in setups.get(each, ()))
        waits[teardown] = tuple(sorted(users.difference(parents[teardown])))
        for user in waits[teardown]:
            waiting[user] = (*waiting.get(user, ()), teardown)
    return Teardowns(names, setups, of, waits, waiting)


def with_waits(
    names: Sequence[str],
    dependency_names: Sequence[tuple[str, ...]],
    setups: Mapping[str, tuple[str, ...]],
) -> Sequence[tuple[str, ...]]:
    """Return what each task comes after: its dependencies, and what a teardown waits for."""
    if not setups:
        return dependency_names
    users: dict[str, list[str]] = {setup: [] for found in setups.values() for setup in found}
    for name, needed in zip(names, dependency_names, strict=True):
        for each in needed:
            if each in users and each not in setups.get(name, ()):
                users[each].append(name)
    return [
        tuple(dict.fromkeys([*needed, *(user for each in setups[name] for user in users[each])]))
        if name in setups
        else needed
        for name, needed in zip(names, dependency_names, strict=True)
    ]
