"""The system's clocks, and timers on an event loop."""

from __future__ import annotations

import asyncio
import time

from flowrun.clock import Clock

from .conftest import WAIT_S


def test_time_is_epoch_seconds_and_monotonic_never_goes_back() -> None:
    clock = Clock()
    before = time.time()
    assert before <= clock.time() <= time.time()
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[0] <= time.monotonic()


async def test_timer_calls_back_on_the_loop_after_its_delay() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    rung = loop.create_future()
    start = clock.monotonic()
    clock.call_later(loop, 0.02, lambda: rung.set_result(asyncio.get_running_loop()))
    assert await asyncio.wait_for(rung, WAIT_S) is loop
    # A loop may fire a timer early by the resolution of its clock.
    assert clock.monotonic() - start >= 0.02 - 2 * time.get_clock_info("monotonic").resolution


async def test_cancelled_timer_does_not_call_back() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    rung: list[str] = []
    last = asyncio.Event()
    clock.call_later(loop, 0.001, lambda: rung.append("cancelled")).cancel()
    clock.call_later(loop, 0.005, last.set)  # due after it: the loop has passed its moment
    await asyncio.wait_for(last.wait(), WAIT_S)
    assert rung == []
