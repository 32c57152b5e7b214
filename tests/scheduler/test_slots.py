"""``max_parallel`` for all runs of an engine: never exceeded, never lost, fair (R3, R5)."""

from __future__ import annotations

import threading

import pytest

from flowrun.scheduler.slots import Lane, Slots

from ..conftest import WAIT_S


class Runner:
    """A lane and what it was granted."""

    def __init__(self, slots: Slots) -> None:
        self.granted = threading.Semaphore(0)
        self.grants = 0
        self.lane = Lane(slots, self.grant)

    def grant(self) -> None:
        self.grants += 1
        self.granted.release()


def test_slots_are_taken_until_none_is_free() -> None:
    slots = Slots(2)
    runner = Runner(slots)
    assert [runner.lane.take() for _ in range(3)] == [True, True, False]
    assert slots.free == 0
    assert not runner.lane.may_take
    runner.lane.give_back()
    assert runner.grants == 0  # it has not waited for itself
    assert runner.lane.may_take
    assert runner.lane.take()
    runner.lane.give_back()
    runner.lane.give_back()
    assert slots.free == 2


def test_lane_stands_in_line_once_however_often_it_asks() -> None:
    slots = Slots(1)
    holder, asker = Runner(slots), Runner(slots)
    assert holder.lane.take()
    assert [asker.lane.take() for _ in range(5)] == [False] * 5
    holder.lane.give_back()
    assert asker.grants == 1
    asker.lane.give_back()
    assert (asker.grants, slots.free) == (1, 1)


def test_who_has_waited_longest_is_next() -> None:  # R3
    slots = Slots(1)
    holder, *waiting = (Runner(slots) for _ in range(5))
    assert holder.lane.take()
    for runner in waiting:
        assert not runner.lane.take()
    giver = holder
    for turn, runner in enumerate(waiting):
        assert [other.grants for other in waiting] == [1] * turn + [0] * (4 - turn)
        giver.lane.give_back()
        giver = runner
    assert [other.grants for other in waiting] == [1] * 4


def test_slot_is_kept_while_nobody_waits() -> None:
    slots = Slots(1)
    runner = Runner(slots)
    assert runner.lane.take()
    assert all(runner.lane.renew() for _ in range(10))
    assert (slots.free, runner.grants) == (0, 0)


def test_lane_that_waits_for_one_more_keeps_what_it_has() -> None:
    slots = Slots(2)
    holder, runner = Runner(slots), Runner(slots)
    assert holder.lane.take()
    assert runner.lane.take()
    assert not runner.lane.take()
    assert not runner.lane.may_take
    assert runner.lane.renew()  # nobody but itself waits
    holder.lane.give_back()
    assert runner.grants == 1
    assert not runner.lane.may_take


def test_long_run_lets_another_in_after_one_task() -> None:  # R3
    slots = Slots(1)
    long, short = Runner(slots), Runner(slots)
    assert long.lane.take()
    assert not short.lane.take()
    assert not long.lane.renew()
    assert short.grants == 1
    # Both have more to do: from here on they take turns.
    for _ in range(3):
        assert not short.lane.renew()
        assert not long.lane.renew()
    assert (long.grants, short.grants) == (3, 4)


def test_lane_with_several_slots_gives_only_as_many_as_are_asked_for() -> None:  # R3
    slots = Slots(3)
    wide, other = Runner(slots), Runner(slots)
    assert all(wide.lane.take() for _ in range(3))
    assert not other.lane.take()
    assert not wide.lane.renew()
    assert other.grants == 1
    assert not other.lane.take()
    assert not wide.lane.take()  # already in line, behind nobody but itself ... and other
    wide.lane.give_back()
    assert (wide.grants, other.grants) == (1, 1)


def test_who_has_left_is_granted_nothing() -> None:
    slots = Slots(1)
    holder, gone, next_one = Runner(slots), Runner(slots), Runner(slots)
    assert holder.lane.take()
    assert not gone.lane.take()
    assert not next_one.lane.take()
    gone.lane.leave()
    gone.lane.leave()
    holder.lane.leave()  # it stands in no line
    holder.lane.give_back()
    assert (gone.grants, next_one.grants) == (0, 1)
    next_one.lane.give_back()
    assert gone.lane.take()


@pytest.mark.parametrize("capacity", [1, 3])
def test_many_threads_never_hold_more_than_there_are_and_lose_none(capacity: int) -> None:  # R3 R5
    slots = Slots(capacity)
    lock = threading.Lock()
    inside = most = 0
    done: list[int] = []
    problems: list[str] = []
    start = threading.Barrier(6)

    def work(number: int, tasks: int) -> None:
        nonlocal inside, most
        runner = Runner(slots)
        start.wait(WAIT_S)
        holding = False
        for _ in range(tasks):
            holding = runner.lane.renew() if holding else runner.lane.take()
            if not holding and not runner.granted.acquire(timeout=WAIT_S):
                problems.append(f"lane {number} was forgotten")
                return
            holding = True
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1
        runner.lane.give_back()
        with lock:
            done.append(number)

    threads = [threading.Thread(target=work, args=(number, 500)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert problems == []
    assert sorted(done) == list(range(6))
    assert 1 <= most <= capacity
    assert (slots.free, len(slots.queue)) == (capacity, 0)


def test_newcomer_is_served_while_a_busy_lane_never_stops() -> None:  # R3
    slots = Slots(1)
    busy, newcomer = Runner(slots), Runner(slots)
    assert busy.lane.take()
    stop = threading.Event()
    failed: list[str] = []

    def churn() -> None:
        while not stop.is_set():
            if not busy.lane.renew() and not busy.granted.acquire(timeout=WAIT_S):
                failed.append("the busy lane was forgotten")
                return
        busy.lane.give_back()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(50):
            assert newcomer.lane.take() or newcomer.granted.acquire(timeout=WAIT_S)
            newcomer.lane.give_back()
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert failed == []
    assert slots.free == 1
