"""What other threads send to a run: many messages, one wake-up of its event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.state.journal import Answer


class Inbox:
    """Messages for one run, left by any thread, taken on the run's event loop.

    Args:
        loop: The event loop.
        wake: Called on it when there are messages to take.
    """

    __slots__ = ("_is_awake", "_loop", "_messages", "_wake")

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self._loop = loop
        self._wake = wake
        self._messages: deque[object] = deque()
        self._is_awake = False

    def put(self, message: object) -> bool:
        """Leave a message and wake the loop; return ``False`` if the loop is closed."""
        self._messages.append(message)
        # The flag is read after the message was left, and take() resets it before it reads the
        # messages: so a message that finds the flag set is read by the wake-up on its way.
        if self._is_awake:
            return not self._loop.is_closed()
        self._is_awake = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def put_quietly(self, message: object) -> None:
        """Leave a message that is early enough at the loop's next wake-up."""
        self._messages.append(message)

    def take(self) -> list[object]:
        """Remove and return all messages, the oldest first."""
        self._is_awake = False
        messages = self._messages
        # Bounded: threads may go on putting more meanwhile.
        return [messages.popleft() for _ in range(len(messages))]


async def wait_for_answer(answer: Answer[Any]) -> None:
    """Wait on an event loop until another thread has answered."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()
    answer.add_done_callback(partial(_wake_up, loop, answered))
    await answered


def _wake_up(loop: asyncio.AbstractEventLoop, answered: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_settle, answered)


def _settle(answered: asyncio.Future[None]) -> None:
    # It may be cancelled at this moment: asyncio's handler of SIGINT does that between two lines.
    with contextlib.suppress(asyncio.InvalidStateError):
        if not answered.done():
            answered.set_result(None)
