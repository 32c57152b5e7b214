"""Slots: the longest waiting holder first, nothing lost, nothing given out twice (R3)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.config import Limit, Rate
from flowrun.scheduler.limits import SLOT, Amounts, Limits, Needs, RunLimits, SharedLimits

from ..conftest import WAIT_S

ONE: Needs = ((SLOT, 1),)
API: Needs = ((SLOT, 1), ("api", 1))
HEAVY: Needs = ((SLOT, 1), ("api", 3))


class Slots:
    """Limits of slots alone, by count."""

    def __init__(self, capacity: int) -> None:
        self.limits: Limits[str] = Limits(capacity)

    def exchange(self, holder: str, released: int, wanted: int) -> dict[str, int]:
        granted = self.limits.exchange(holder, amounts(released), amounts(wanted), 0.0)
        return {each: slots[ONE] for each, slots in granted.items()}

    def leave(self, holder: str) -> dict[str, int]:
        return {each: slots[ONE] for each, slots in self.limits.leave(holder, 0.0).items()}

    @property
    def free(self) -> int:
        return self.limits.free[SLOT]

    @property
    def held(self) -> dict[str, int]:
        return {holder: held[SLOT] for holder, held in self.limits.held.items() if held.get(SLOT)}


def amounts(count: int) -> dict[Needs, int]:
    return {ONE: count} if count else {}


def test_free_slots_are_granted_at_once_and_no_more_than_there_are() -> None:  # R3
    limits = Slots(3)
    assert limits.exchange("a", 0, 2) == {"a": 2}
    assert limits.exchange("b", 0, 2) == {"b": 1}
    assert limits.exchange("c", 0, 1) == {}
    assert (limits.free, limits.held) == (0, {"a": 2, "b": 1})


def test_holder_that_has_waited_longest_is_first_and_then_last() -> None:  # R3
    limits = Slots(1)
    assert limits.exchange("a", 0, 1) == {"a": 1}
    assert limits.exchange("b", 0, 2) == {}
    assert limits.exchange("c", 0, 1) == {}
    assert limits.exchange("a", 1, 1) == {"b": 1}
    assert limits.exchange("b", 1, 1) == {"c": 1}
    assert limits.exchange("c", 1, 0) == {"a": 1}
    assert limits.exchange("a", 1, 0) == {"b": 1}


def test_holder_that_asks_again_keeps_its_place() -> None:  # R3
    limits = Slots(1)
    limits.exchange("a", 0, 1)
    limits.exchange("b", 0, 1)
    limits.exchange("c", 0, 1)
    limits.exchange("b", 0, 5)
    assert limits.exchange("a", 1, 0) == {"b": 1}


def test_holder_that_wants_nothing_any_more_waits_no_longer() -> None:
    limits = Slots(1)
    limits.exchange("a", 0, 1)
    limits.exchange("b", 0, 1)
    limits.exchange("b", 0, 0)
    assert limits.exchange("a", 1, 0) == {}
    assert limits.free == 1


def test_holder_that_leaves_gives_back_what_it_has_and_what_is_on_its_way() -> None:  # R3
    limits = Slots(2)
    limits.exchange("a", 0, 2)
    limits.exchange("b", 0, 1)
    assert limits.exchange("a", 1, 0) == {"b": 1}
    assert limits.leave("b") == {}  # before it has read of its slot
    assert limits.leave("b") == {}
    assert limits.free == 1
    assert limits.exchange("c", 0, 2) == {"c": 1}
    assert limits.leave("a") == {"c": 1}


def test_more_than_is_held_cannot_be_released() -> None:
    limits = Slots(2)
    limits.exchange("a", 0, 1)
    with pytest.raises(ValueError, match="of which it holds too little"):
        limits.exchange("a", 2, 0)
    assert (limits.free, limits.held) == (1, {"a": 1})


STEPS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.integers(0, 4), st.booleans()),
    max_size=60,
)


@given(st.integers(1, 4), STEPS)
def test_slots_are_never_lost_nor_given_out_twice(  # R3
    capacity: int, steps: list[tuple[str, int, int, bool]]
) -> None:
    limits = Slots(capacity)
    held: dict[Hashable, int] = dict.fromkeys("abcd", 0)
    for holder, released, wanted, leaves in steps:
        if leaves:
            held[holder] = 0
            granted = limits.leave(holder)
        else:
            possible = min(released, held[holder])
            held[holder] -= possible
            granted = limits.exchange(holder, possible, wanted)
        for each, count in granted.items():
            assert count > 0
            held[each] += count
        assert sum(held.values()) + limits.free == capacity
        assert {name: count for name, count in limits.held.items() if count} == {
            name: count for name, count in held.items() if count
        }
        assert not (limits.free and limits.limits.waiting)  # nobody waits beside a free slot


class Holder:
    def __init__(self, *, is_closed: bool = False) -> None:
        self.is_closed = is_closed
        self.granted = 0
        self.ask_again_at: list[float] = []
        self.got = threading.Event()

    def grant(self, slots: Amounts, ask_again_at: float) -> bool:
        self.granted += slots.get(ONE, 0)
        self.ask_again_at.append(ask_again_at)
        if slots:
            self.got.set()
        return not self.is_closed


def exchanged(limits: SharedLimits, holder: Holder, released: int, wanted: int) -> int:
    granted, _ = limits.exchange(holder, amounts(released), amounts(wanted), 0.0)
    return granted.get(ONE, 0)


def test_grant_that_nobody_takes_goes_to_the_next_one() -> None:  # R3
    limits = SharedLimits(1)
    first, closed, last = Holder(), Holder(is_closed=True), Holder()
    assert exchanged(limits, first, 0, 1) == 1
    assert exchanged(limits, closed, 0, 1) == 0
    assert exchanged(limits, last, 0, 1) == 0
    assert exchanged(limits, first, 1, 0) == 0
    assert (closed.granted, last.granted) == (1, 1)


def test_threads_share_slots_without_losing_any() -> None:  # R3 R5
    limits = SharedLimits(2)
    running, most = [0], [0]
    guard = threading.Lock()

    def work() -> None:
        holder = Holder()
        for _ in range(50):
            granted = exchanged(limits, holder, 0, 1)
            if not granted:
                assert holder.got.wait(WAIT_S)
                holder.got.clear()
            with guard:
                running[0] += 1
                most[0] = max(most[0], running[0])
            with guard:
                running[0] -= 1
            assert exchanged(limits, holder, 1, 0) == 0
        limits.leave(holder, 0.0)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert most[0] <= 2
    assert exchanged(limits, Holder(), 0, 5) == 2


# -- named limits ---------------------------------------------------------------------------------


def test_unit_gets_its_slot_and_its_limit_at_once_or_nothing() -> None:
    limits: Limits[str] = Limits(3, {"api": Limit(1)})
    assert limits.exchange("a", {}, {API: 2}, 0.0) == {"a": {API: 1}}
    assert limits.free == {SLOT: 2, "api": 0}  # nothing is held while it waits
    assert limits.exchange("b", {}, {API: 1, ONE: 1}, 0.0) == {"b": {ONE: 1}}
    assert limits.exchange("a", {API: 1}, {API: 1}, 0.0) == {"a": {API: 1}}
    assert limits.exchange("a", {API: 1}, {}, 0.0) == {"b": {API: 1}}


def test_heavy_unit_is_not_starved_by_light_ones() -> None:
    limits: Limits[str] = Limits(10, {"api": Limit(3)})
    assert limits.exchange("light", {}, {API: 5}, 0.0) == {"light": {API: 3}}
    assert limits.exchange("heavy", {}, {HEAVY: 1}, 0.0) == {}
    assert limits.exchange("light", {API: 1}, {API: 5, ONE: 1}, 0.0) == {"light": {API: 1, ONE: 1}}
    granted = [limits.exchange("light", {API: 1}, {API: 9}, 0.0) for _ in range(3)]
    assert granted == [{}, {}, {"heavy": {HEAVY: 1}}]
    assert limits.exchange("heavy", {HEAVY: 1}, {}, 0.0) == {"light": {API: 3}}


def test_rate_opens_when_its_time_has_come() -> None:
    limits: Limits[str] = Limits(10, {"api": Limit(rate=Rate(2, per_s=1.0))})
    assert limits.exchange("a", {}, {API: 3}, 10.0) == {"a": {API: 2}}
    assert limits.exchange("a", {}, {API: 1}, 10.5) == {}
    assert limits.wake_at == {"a": 11.0}
    assert limits.exchange("a", {}, {API: 1}, 11.0) == {"a": {API: 1}}
    assert limits.wake_at == {}


def test_pause_holds_a_limit_for_everybody_and_the_latest_counts() -> None:
    limits: Limits[str] = Limits(10, {"api": Limit(5)})
    limits.pause(["api"], 20.0)
    limits.pause(["api"], 15.0)
    assert limits.exchange("a", {}, {API: 1, ONE: 1}, 10.0) == {"a": {ONE: 1}}
    assert limits.wake_at == {"a": 20.0}
    assert limits.exchange("a", {}, {API: 1}, 20.0) == {"a": {API: 1}}


def test_run_inside_a_task_uses_what_that_holds_and_asks_for_rates_again() -> None:
    named = {"api": Limit(1, rate=Rate(2, per_s=1.0)), "other": Limit(1)}
    limits = SharedLimits(1, named)
    outer, inner = Holder(), Holder()
    view = RunLimits(limits)
    needs = view.needs([("api", 1)])
    assert limits.exchange(outer, {}, {needs: 1}, 0.0)[0] == {needs: 1}
    limits.add_slot("inside")
    nested = RunLimits(limits, "inside", {"api": 1})
    inside = nested.needs([("api", 1), ("other", 1)])
    assert inside == (("inside", 1), ("api", 0), ("other", 1))
    assert limits.exchange(inner, {}, {inside: 2}, 0.0)[0] == {inside: 1}  # one at a time
    assert limits.exchange(inner, {inside: 1}, {inside: 1}, 0.0) == ({}, 1.0)
    assert limits.exchange(inner, {}, {inside: 1}, 1.0)[0] == {inside: 1}
    limits.leave(inner, 1.0)
    limits.remove_slot("inside")


def test_who_waits_for_a_time_is_told_once_when_to_ask_again() -> None:
    limits = SharedLimits(5, {"api": Limit(5)})
    waits, other = Holder(), Holder()
    limits.pause(["api"], 9.0)
    assert limits.exchange(waits, {}, {API: 1}, 1.0) == ({}, 9.0)
    limits.pause(["api"], 12.0)
    for _ in range(2):
        limits.exchange(other, {}, {ONE: 1}, 2.0)
    assert waits.ask_again_at == [12.0]
    assert limits.exchange(waits, {}, {API: 1}, 12.0)[0] == {API: 1}


KINDS = (ONE, API, HEAVY, ((SLOT, 1), ("rated", 1)))
MANY = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.lists(st.integers(0, 2), min_size=4, max_size=4),
        st.lists(st.integers(0, 3), min_size=4, max_size=4),
        st.sampled_from(["ask", "ask", "ask", "leave", "pause", "wait"]),
    ),
    max_size=40,
)


@given(st.integers(1, 4), MANY)
def test_nothing_is_held_beyond_a_limit_and_nobody_waits_without_a_reason(
    capacity: int, steps: list[tuple[str, list[int], list[int], str]]
) -> None:
    named = {"api": Limit(3), "rated": Limit(2, rate=Rate(2, per_s=1.0))}
    limits: Limits[str] = Limits(capacity, named)
    held: dict[str, Counter[Needs]] = {holder: Counter() for holder in "abc"}
    now, paused_until, starts = 0.0, 0.0, list[float]()
    for holder, releases, wants, what in steps:
        granted: dict[str, Amounts] = {}
        if what == "leave":
            held[holder].clear()
            granted = limits.leave(holder, now)
        elif what == "pause":
            paused_until = max(paused_until, now + 0.4)
            limits.pause(["api"], now + 0.4)
        elif what == "wait":
            now += 0.3
        else:
            released = {
                needs: min(count, held[holder][needs])
                for needs, count in zip(KINDS, releases, strict=True)
                if min(count, held[holder][needs])
            }
            held[holder] -= Counter(released)
            wanted = {needs: count for needs, count in zip(KINDS, wants, strict=True) if count}
            granted = limits.exchange(holder, released, wanted, now)
        for each, slots in granted.items():
            held[each] += Counter(slots)
            starts += [now] * slots.get(KINDS[3], 0)
            assert now >= paused_until or not (slots.get(API) or slots.get(HEAVY))
        used: Counter[str] = Counter()
        for units in held.values():
            for needs, count in units.items():
                for name, weight in needs:
                    used[name] += weight * count
        most = {SLOT: capacity, "api": 3, "rated": 2}
        assert {name: limits.free[name] + used[name] for name in most} == most
        assert all(free >= 0 for free in limits.free.values())
        assert all(late - early >= 1.0 for early, late in zip(starts, starts[2:], strict=False))
        if what == "ask" and limits.free[SLOT]:
            waiting = {needs for wanted in limits.waiting.values() for needs in wanted}
            assert ONE not in waiting  # a plain unit waits for a slot alone


def test_units_wait_for_the_limit_that_is_lacking_else_for_a_slot() -> None:  # V3
    limits: Limits[str] = Limits(2, {"api": Limit(3), "crm": Limit(rate=Rate(1, per_s=10.0))})
    crm: Needs = ((SLOT, 1), ("crm", 1))
    limits.exchange("a", {}, {HEAVY: 1, ONE: 1}, 0.0)
    limits.exchange("b", {}, {API: 1}, 1.0)
    assert limits.waited("b", API, 3.0) == {"api": 2.0}
    limits.exchange("a", {HEAVY: 1}, {ONE: 1, HEAVY: 1}, 4.0)
    assert limits.waited("b", API, 9.0) == {"api": 3.0}, "until it was granted"
    assert limits.waited("a", HEAVY, 6.0) == {"api": 2.0}
    limits.exchange("b", {API: 1}, {}, 7.0)
    assert limits.waited("a", ONE, 9.0) == {}
    assert limits.waited("a", HEAVY, 9.0) == {"api": 3.0}, "it waits for a slot since"
    limits.leave("a", 10.0)
    assert limits.waited("a", HEAVY, 20.0) == {}
    limits.exchange("b", {}, {HEAVY: 2}, 10.0)
    limits.leave("b", 10.5)
    assert limits.waited("b", HEAVY, 20.0) == {}
    limits.exchange("c", {}, {crm: 2}, 11.0)
    assert limits.waited("c", crm, 14.0) == {"crm": 3.0}
    limits.pause(["crm"], 30.0)
    limits.exchange("c", {}, {}, 15.0)
    assert limits.waited("c", crm, 99.0) == {"crm": 4.0}, "it wants no more"


def test_light_unit_waits_for_the_limit_that_is_kept_for_a_heavy_one() -> None:  # V3
    limits: Limits[str] = Limits(9, {"api": Limit(3)})
    limits.exchange("a", {}, {API: 1}, 0.0)
    limits.exchange("b", {}, {HEAVY: 1}, 0.0)
    limits.exchange("c", {}, {API: 1}, 1.0)
    assert limits.waited("c", API, 3.0) == {"api": 2.0}
    limits.exchange("a", {API: 1}, {}, 4.0)
    limits.exchange("b", {HEAVY: 1}, {}, 6.0)
    assert limits.waited("b", HEAVY, 9.0) == {"api": 4.0}
    assert limits.waited("c", API, 9.0) == {"api": 5.0}
