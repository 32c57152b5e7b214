"""The inbox: nothing is lost, the order is kept, and many messages cost one wake-up."""

from __future__ import annotations

import asyncio
import threading

from flowrun.scheduler.inbox import Inbox

from ..conftest import WAIT_S


async def test_messages_are_taken_in_order_and_wake_the_loop_once() -> None:
    taken: list[list[object]] = []
    woken = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        taken.append(inbox.take())
        woken.set()

    inbox = Inbox(loop, wake)

    def put() -> None:
        for number in range(5):
            assert inbox.put(number)

    # The loop does not turn meanwhile, so that all five find it not yet awake.
    thread = threading.Thread(target=put)
    thread.start()
    thread.join(WAIT_S)
    await asyncio.wait_for(woken.wait(), WAIT_S)
    await asyncio.sleep(0)
    assert taken == [[0, 1, 2, 3, 4]]


async def test_quiet_message_waits_for_the_next_one() -> None:
    taken: list[object] = []
    woken = asyncio.Event()

    def wake() -> None:
        taken.extend(inbox.take())
        woken.set()

    inbox = Inbox(asyncio.get_running_loop(), wake)
    inbox.put_quietly("quiet")
    for _ in range(3):
        await asyncio.sleep(0)
    assert not taken
    inbox.put("loud")
    await asyncio.wait_for(woken.wait(), WAIT_S)
    assert taken == ["quiet", "loud"]


async def test_many_threads_lose_no_message_and_keep_their_own_order() -> None:  # R5
    taken: list[tuple[int, int]] = []
    all_taken = asyncio.Event()

    def wake() -> None:
        taken.extend(inbox.take())  # type: ignore[arg-type]
        if len(taken) == 8 * 500:
            all_taken.set()

    inbox = Inbox(asyncio.get_running_loop(), wake)

    def put(thread: int) -> None:
        for number in range(500):
            inbox.put((thread, number))

    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.wait_for(all_taken.wait(), WAIT_S)
    for thread in threads:
        thread.join(WAIT_S)
    for number in range(8):
        assert [each for thread, each in taken if thread == number] == list(range(500))


def test_message_for_a_closed_loop_is_refused_once_and_ever_after() -> None:
    loop = asyncio.new_event_loop()
    inbox = Inbox(loop, lambda: None)
    loop.close()
    assert not inbox.put("first")
    assert not inbox.put("second")
    assert inbox.take() == ["first", "second"]


def test_loop_that_was_closed_before_it_took_its_messages() -> None:
    loop = asyncio.new_event_loop()
    inbox = Inbox(loop, lambda: None)
    assert inbox.put("first")
    loop.close()
    assert not inbox.put("second")
