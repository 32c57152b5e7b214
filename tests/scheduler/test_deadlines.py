"""Deadlines on a virtual clock: on time, in order, one timer, nothing kept (A1)."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from flowrun import Engine, SchedulerConfig
from flowrun.config import Clock
from flowrun.scheduler.deadlines import Deadlines

from ..conftest import WAIT_S


class VirtualTimer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.live = True

    def cancel(self) -> None:
        self.live = False


class VirtualClock(Clock):
    """A clock that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[VirtualTimer] = []

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now

    def call_later(self, loop: Any, delay_s: float, callback: Callable[[], object]) -> VirtualTimer:
        assert delay_s >= 0
        timer = VirtualTimer(self.now + delay_s, callback)
        self.timers.append(timer)
        return timer

    def armed(self) -> list[float]:
        return sorted(timer.at for timer in self.timers if timer.live)

    def advance(self, to: float) -> None:
        """Move on, and call what is due on the way at its own moment."""
        for _ in range(10_000):
            due = [timer for timer in self.timers if timer.live and timer.at <= to]
            if not due:
                self.now = to
                return
            timer = min(due, key=lambda timer: timer.at)
            timer.live = False
            self.now = max(self.now, timer.at)
            timer.callback()
        pytest.fail("a timer is set again and again without getting anywhere")

    def fire_early(self) -> None:
        """Fire the next timer now, as a loop with a coarse clock may."""
        timer = min((timer for timer in self.timers if timer.live), key=lambda timer: timer.at)
        timer.live = False
        timer.callback()


class Item:
    def __init__(self, deadline: float, name: str = "", number: int = 0) -> None:
        self.deadline = deadline
        self.name = name
        self.number = number
        self.closed = False

    def due_at(self, now: float) -> float | None:
        return None if self.closed else self.deadline


class Watch:
    """Deadlines on a virtual clock, and what became due when."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.seen: list[tuple[float, str]] = []
        self.answers: dict[str, Callable[[], object]] = {}
        self.items: set[Item] = set()
        self.deadlines: Deadlines[Item] = Deadlines(None, self.clock, self.items, self.due)  # type: ignore[arg-type]

    def due(self, item: Item) -> None:
        self.seen.append((self.clock.now, item.name))
        item.closed = True
        self.answers.pop(item.name, lambda: None)()

    def add(self, due: float, name: str) -> Item:
        item = Item(due, name, len(self.items))
        self.items.add(item)
        self.deadlines.expect(due)
        return item


def test_item_is_due_at_its_deadline_and_not_before() -> None:
    watch = Watch()
    watch.add(10.0, "a")
    watch.clock.advance(9.999)
    assert watch.seen == []
    watch.clock.advance(100.0)
    assert watch.seen == [(10.0, "a")]
    assert watch.clock.armed() == []


def test_deadline_that_has_passed_already_is_due_at_once() -> None:
    watch = Watch()
    watch.clock.now = 50.0
    watch.add(10.0, "a")
    watch.clock.advance(50.0)
    assert watch.seen == [(50.0, "a")]


def test_closed_item_is_never_due() -> None:
    watch = Watch()
    first, _, last = (watch.add(due, name) for due, name in [(1.0, "a"), (2.0, "b"), (2.0, "c")])
    first.closed = last.closed = True
    watch.clock.advance(5.0)
    assert watch.seen == [(2.0, "b")]


def test_items_are_due_in_order_of_deadline_then_as_added() -> None:  # R6
    watch = Watch()
    for due, name in [(3.0, "late"), (1.0, "x"), (2.0, "p"), (1.0, "y"), (1.0, "z")]:
        watch.add(due, name)
    watch.clock.advance(10.0)
    assert watch.seen == [(1.0, "x"), (1.0, "y"), (1.0, "z"), (2.0, "p"), (3.0, "late")]


def test_there_is_one_timer_for_the_earliest() -> None:
    watch = Watch()
    for due in (50.0, 80.0, 20.0, 60.0, 10.0, 10.0):
        watch.add(due, str(due))
        assert len(watch.clock.armed()) == 1
    assert watch.clock.armed() == [10.0]
    assert len(watch.clock.timers) == 3  # set anew only for an earlier deadline


def test_item_whose_deadline_has_moved_meanwhile_is_looked_at_again() -> None:  # A1
    watch = Watch()
    item = watch.add(10.0, "a")
    watch.clock.advance(9.0)
    item.deadline = 25.0  # its thread has begun it only now
    watch.clock.advance(24.0)
    assert watch.seen == []
    watch.clock.advance(30.0)
    assert watch.seen == [(25.0, "a")]


def test_item_that_is_closed_after_its_deadline_has_moved_is_not_due() -> None:
    watch = Watch()
    item = watch.add(10.0, "a")
    item.deadline = 25.0
    watch.clock.advance(11.0)
    item.closed = True
    watch.clock.advance(30.0)
    assert watch.seen == []
    assert watch.clock.armed() == []


def test_item_that_another_one_has_closed_at_its_end_is_not_due() -> None:
    watch = Watch()
    last = Item(10.0, "b", 1)
    watch.answers["a"] = lambda: setattr(last, "closed", True)
    watch.items.add(last)
    watch.add(10.0, "a").number = 0
    watch.clock.advance(20.0)
    assert watch.seen == [(10.0, "a")]


def test_timer_that_fires_early_calls_nothing_and_is_set_again() -> None:
    watch = Watch()
    watch.add(10.0, "a")
    watch.clock.now = 9.99
    watch.clock.fire_early()
    assert watch.seen == []
    assert watch.clock.armed() == [10.0]
    watch.clock.advance(10.0)
    assert watch.seen == [(10.0, "a")]


def test_callback_may_add_an_item() -> None:
    watch = Watch()
    watch.answers["a"] = lambda: watch.add(30.0, "b")
    watch.add(10.0, "a")
    watch.clock.advance(40.0)
    assert watch.seen == [(10.0, "a"), (30.0, "b")]


def test_later_deadline_is_kept_although_a_callback_has_added_an_even_later_one() -> None:
    # The timer for what a callback added must not hide an earlier deadline.
    watch = Watch()
    watch.answers["expires"] = lambda: watch.add(100.0, "launched")
    watch.add(10.0, "expires")
    watch.add(20.0, "waits")
    watch.clock.advance(200.0)
    assert watch.seen == [(10.0, "expires"), (20.0, "waits"), (100.0, "launched")]


def test_items_that_have_ended_are_not_kept_until_their_deadline() -> None:
    watch = Watch()
    watch.add(1000.0, "kept")
    ended: list[weakref.ref[Item]] = []
    for _ in range(500):
        item = watch.add(1000.0, "ended")
        ended.append(weakref.ref(item))
        watch.items.discard(item)
    del item
    gc.collect()
    assert not any(reference() for reference in ended)
    watch.clock.advance(2000.0)
    assert watch.seen == [(1000.0, "kept")]


def test_many_items_with_deadlines_of_their_own_are_looked_at_together() -> None:  # G2
    watch = Watch()
    for number in range(5000):
        watch.add(1.0 + number * 1e-6, str(number))
    watch.clock.advance(10.0)
    assert [name for _, name in watch.seen] == [str(number) for number in range(5000)]
    # Each look goes through all of them; they are not as many as the deadlines are.
    assert len(watch.clock.timers) < 20
    assert max(now - 1.0 - int(name) * 1e-6 for now, name in watch.seen) < 0.01


def test_nothing_is_due_after_closing() -> None:
    watch = Watch()
    watch.deadlines.close()  # nothing to close yet
    watch.add(10.0, "a")
    watch.deadlines.close()
    assert watch.clock.armed() == []
    watch.clock.advance(20.0)
    assert watch.seen == []


def test_callback_may_close_in_the_middle_of_a_round() -> None:
    watch = Watch()
    watch.answers["a"] = watch.deadlines.close
    watch.add(10.0, "a")
    watch.add(10.0, "b")
    watch.clock.advance(20.0)
    assert watch.seen == [(10.0, "a")]
    assert watch.clock.armed() == []


async def test_deadlines_on_a_real_loop() -> None:
    clock = Clock()
    rung = asyncio.Event()
    names: list[str] = []

    def due(item: Item) -> None:
        item.closed = True
        names.append(item.name)
        if item.name == "b":
            rung.set()

    items: list[Item] = []
    deadlines: Deadlines[Item] = Deadlines(asyncio.get_running_loop(), clock, items, due)
    start = clock.monotonic()
    for item in (Item(start + 0.02, "b"), Item(start + 0.01, "a")):
        items.append(item)
        deadlines.expect(item.deadline)
    await asyncio.wait_for(rung.wait(), WAIT_S)
    assert names == ["a", "b"]
    assert clock.monotonic() - start >= 0.02
    deadlines.close()


async def test_time_before_an_async_task_waits_counts(
    make_engine: Callable[..., Engine],
) -> None:  # A1
    clock = VirtualClock()
    engine = make_engine(config=SchedulerConfig(clock=clock))
    waits = asyncio.Event()

    @engine.task(dag="d", timeout_s=6)
    async def works_then_waits() -> None:
        clock.now += 5
        asyncio.get_running_loop().call_soon(waits.set)
        await asyncio.Event().wait()

    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(waits.wait(), WAIT_S)
    assert clock.armed() == [6]
    clock.advance(6)
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["works_then_waits"]["reason"] == "TIMEOUT"
