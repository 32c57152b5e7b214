"""What other threads tell a loop: every message, in order, with few wake-ups (R5)."""

from __future__ import annotations

import asyncio
import threading

import pytest

from flowrun.scheduler.inbox import Inbox

from ..conftest import WAIT_S


async def test_messages_of_one_wake_up_are_handled_in_order_and_closed_by_one_round() -> None:
    events: list[object] = []
    ended = asyncio.Event()

    def finish_round() -> None:
        events.append("round")
        ended.set()

    inbox = Inbox(asyncio.get_running_loop(), events.append, finish_round)
    assert all(inbox.put(number) for number in range(5))
    assert events == []  # only on the loop, at its next turn
    await asyncio.wait_for(ended.wait(), WAIT_S)
    assert events == [0, 1, 2, 3, 4, "round"]


async def test_message_of_a_handler_belongs_to_the_same_round() -> None:
    events: list[object] = []
    ended = asyncio.Event()

    def handle(message: object) -> None:
        events.append(message)
        if message == "first":
            assert inbox.put("second")

    def finish_round() -> None:
        events.append("round")
        if "second" in events:
            ended.set()

    inbox = Inbox(asyncio.get_running_loop(), handle, finish_round)
    inbox.put("first")
    await asyncio.wait_for(ended.wait(), WAIT_S)
    assert events[:3] == ["first", "second", "round"]
    assert events.count("second") == 1


async def test_loop_is_woken_again_after_a_round() -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    inbox = Inbox(asyncio.get_running_loop(), heard.put_nowait, lambda: None)
    for number in range(3):
        assert inbox.put(number)
        assert await asyncio.wait_for(heard.get(), WAIT_S) == number


async def test_many_threads_lose_no_message_and_keep_their_own_order() -> None:  # R5
    threads, each = 8, 2000
    heard: list[tuple[int, int]] = []
    in_loop: set[int] = set()
    complete = asyncio.Event()

    def handle(message: object) -> None:
        assert isinstance(message, tuple)
        heard.append(message)
        in_loop.add(threading.get_ident())
        if len(heard) == threads * each:
            complete.set()

    inbox = Inbox(asyncio.get_running_loop(), handle, lambda: None)
    start = threading.Barrier(threads)

    def tell(number: int) -> None:
        start.wait(WAIT_S)
        for message in range(each):
            if (number + message) % 3:
                inbox.put_unhurried((number, message))
            else:
                assert inbox.put((number, message))

    tellers = [threading.Thread(target=tell, args=(number,)) for number in range(threads)]
    for teller in tellers:
        teller.start()
    await asyncio.wait_for(complete.wait(), WAIT_S)
    for teller in tellers:
        teller.join(WAIT_S)
    assert len(heard) == threads * each
    for number in range(threads):
        assert [message for teller, message in heard if teller == number] == list(range(each))
    assert in_loop == {threading.get_ident()}


async def test_loop_looks_by_itself_for_what_need_not_be_read_at_once() -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    inbox = Inbox(loop, heard.put_nowait, lambda: None)
    woken: list[object] = []
    wake = loop.call_soon_threadsafe

    def call_soon_threadsafe(*args: object) -> object:
        woken.append(args)
        return wake(*args)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign, assignment]
    for number in range(100):
        inbox.put_unhurried(number)
        assert await asyncio.wait_for(heard.get(), WAIT_S) == number
    unhurried = len(woken)
    inbox.put("at once")
    assert await asyncio.wait_for(heard.get(), WAIT_S) == "at once"
    assert len(woken) == unhurried + 1
    # A busy machine may let it miss a turn; then it is woken again.
    assert 1 <= unhurried < 100
    inbox.put_unhurried("last")
    assert await asyncio.wait_for(heard.get(), WAIT_S) == "last"


@pytest.mark.parametrize("woken", [False, True])
def test_nobody_reads_what_is_put_once_the_loop_is_closed(woken: bool) -> None:  # R5
    loop = asyncio.new_event_loop()
    heard: list[object] = []
    inbox = Inbox(loop, heard.append, lambda: None)
    if woken:  # its wake-up was on the way when the loop was closed
        assert inbox.put("lost")
    loop.close()
    # Every sender is told, not only the first one: a slot that is passed on must not vanish.
    assert [inbox.put(number) for number in range(3)] == [False, False, False]
    inbox.put_unhurried("nobody")
    assert heard == []
