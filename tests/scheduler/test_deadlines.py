"""Deadlines: time goes in, what is due and the next deadline come out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flowrun.scheduler.deadlines import Deadlines, Wait


def test_what_is_added_is_due_at_its_time_and_not_before() -> None:
    deadlines = Deadlines(lambda _: True)
    assert deadlines.next() is None
    deadlines.add_timeout(0.0, 5.0, 1, 1)
    deadlines.add(3.0, Wait.DELAY, 2, 1)
    assert deadlines.next() == 3.0
    assert list(deadlines.pop_due(2.9)) == []
    assert list(deadlines.pop_due(3.0)) == [(3.0, Wait.DELAY, 2, 1)]
    assert deadlines.next() == 5.0
    assert list(deadlines.pop_due(9.0)) == [(5.0, Wait.TIMEOUT, 1, 1)]
    assert deadlines.next() is None


def test_what_ended_before_its_time_is_neither_next_nor_due() -> None:
    ended = {1, 3}
    deadlines = Deadlines(lambda deadline: deadline[2] not in ended)
    for unit in (1, 2, 3):
        deadlines.add_timeout(0.0, 5.0, unit, 1)
        deadlines.add(float(unit), Wait.PATIENCE, unit, 1)
    assert deadlines.next() == 2.0
    assert [deadline[2] for deadline in deadlines.pop_due(10.0)] == [2, 2]


def test_what_ended_is_dropped_as_soon_as_it_is_first() -> None:  # G2
    ended: set[int] = set()
    deadlines = Deadlines(lambda deadline: deadline[2] not in ended)
    for unit in range(1000):
        deadlines.add_timeout(0.0, 30.0, unit, 1)
        ended.add(unit)
        assert deadlines.next() is None


ITEMS = st.lists(
    st.tuples(st.sampled_from([1.0, 2.5, 30.0]), st.booleans(), st.booleans()), max_size=40
)


@given(ITEMS, st.floats(0, 60))
def test_next_is_the_earliest_that_matters_and_due_is_all_up_to_now(
    items: list[tuple[float, bool, bool]], now: float
) -> None:
    current: dict[int, float] = {}
    deadlines = Deadlines(lambda deadline: deadline[2] in current)
    for unit, (duration_s, usual, matters) in enumerate(items):
        begun = float(unit) / 10
        if matters:
            current[unit] = begun + duration_s
        if usual:
            deadlines.add_timeout(begun, duration_s, unit, 1)
        else:
            deadlines.add(begun + duration_s, Wait.DELAY, unit, 1)
    assert deadlines.next() == min(current.values(), default=None)
    due = list(deadlines.pop_due(now))
    assert [deadline[0] for deadline in due] == sorted(deadline[0] for deadline in due)
    assert {deadline[2] for deadline in due} == {
        unit for unit, time in current.items() if time <= now
    }
    later = [time for time in current.values() if time > now]
    assert deadlines.next() == min(later, default=None)
