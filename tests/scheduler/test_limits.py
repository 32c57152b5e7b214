"""Slots: the longest waiting holder first, nothing lost, nothing given out twice (R3)."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrun.scheduler.limits import Limits, SharedLimits

from ..conftest import WAIT_S


def test_free_slots_are_granted_at_once_and_no_more_than_there_are() -> None:  # R3
    limits = Limits(3)
    assert limits.exchange("a", 0, 2) == {"a": 2}
    assert limits.exchange("b", 0, 2) == {"b": 1}
    assert limits.exchange("c", 0, 1) == {}
    assert (limits.free, limits.held) == (0, {"a": 2, "b": 1})


def test_holder_that_has_waited_longest_is_first_and_then_last() -> None:  # R3
    limits = Limits(1)
    assert limits.exchange("a", 0, 1) == {"a": 1}
    assert limits.exchange("b", 0, 2) == {}
    assert limits.exchange("c", 0, 1) == {}
    assert limits.exchange("a", 1, 1) == {"b": 1}
    assert limits.exchange("b", 1, 1) == {"c": 1}
    assert limits.exchange("c", 1, 0) == {"a": 1}
    assert limits.exchange("a", 1, 0) == {"b": 1}


def test_holder_that_asks_again_keeps_its_place() -> None:  # R3
    limits = Limits(1)
    limits.exchange("a", 0, 1)
    limits.exchange("b", 0, 1)
    limits.exchange("c", 0, 1)
    limits.exchange("b", 0, 5)
    assert limits.exchange("a", 1, 0) == {"b": 1}


def test_holder_that_wants_nothing_any_more_waits_no_longer() -> None:
    limits = Limits(1)
    limits.exchange("a", 0, 1)
    limits.exchange("b", 0, 1)
    limits.exchange("b", 0, 0)
    assert limits.exchange("a", 1, 0) == {}
    assert limits.free == 1


def test_holder_that_leaves_gives_back_what_it_has_and_what_is_on_its_way() -> None:  # R3
    limits = Limits(2)
    limits.exchange("a", 0, 2)
    limits.exchange("b", 0, 1)
    assert limits.exchange("a", 1, 0) == {"b": 1}
    assert limits.leave("b") == {}  # before it has read of its slot
    assert limits.leave("b") == {}
    assert limits.free == 1
    assert limits.exchange("c", 0, 2) == {"c": 1}
    assert limits.leave("a") == {"c": 1}


def test_more_than_is_held_cannot_be_released() -> None:
    limits = Limits(2)
    limits.exchange("a", 0, 1)
    with pytest.raises(ValueError, match="more than it holds"):
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
    limits = Limits(capacity)
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
        assert not (limits.free and limits.waiting)  # nobody waits beside a free slot


class Holder:
    def __init__(self, *, is_closed: bool = False) -> None:
        self.is_closed = is_closed
        self.granted = 0
        self.got = threading.Event()

    def grant(self, count: int) -> bool:
        self.granted += count
        self.got.set()
        return not self.is_closed


def test_grant_that_nobody_takes_goes_to_the_next_one() -> None:  # R3
    limits = SharedLimits(1)
    first, closed, last = Holder(), Holder(is_closed=True), Holder()
    assert limits.exchange(first, 0, 1) == 1
    assert limits.exchange(closed, 0, 1) == 0
    assert limits.exchange(last, 0, 1) == 0
    assert limits.exchange(first, 1, 0) == 0
    assert (closed.granted, last.granted) == (1, 1)


def test_threads_share_slots_without_losing_any() -> None:  # R3 R5
    limits = SharedLimits(2)
    running, most = [0], [0]
    guard = threading.Lock()

    def work() -> None:
        holder = Holder()
        for _ in range(50):
            granted = limits.exchange(holder, 0, 1)
            if not granted:
                assert holder.got.wait(WAIT_S)
                holder.got.clear()
            with guard:
                running[0] += 1
                most[0] = max(most[0], running[0])
            with guard:
                running[0] -= 1
            assert limits.exchange(holder, 1, 0) == 0
        limits.leave(holder)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert most[0] <= 2
    assert limits.exchange(Holder(), 0, 5) == 2
