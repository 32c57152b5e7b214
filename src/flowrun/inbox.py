"""What other threads tell an event loop: many messages, one wake-up."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


_MOST_IN_A_ROUND = 1000


class Inbox:
    """Messages for one run, put by any thread, handled on the run's event loop.

    Args:
        loop: The event loop.
        handle: Called on it with each message, in the order in which they were put.
        finish_round: Called on it after the messages of one wake-up.
    """

    __slots__ = ("_awake", "_finish_round", "_handle", "_loop", "_messages")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handle: Callable[[object], object],
        finish_round: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._handle = handle
        self._finish_round = finish_round
        self._messages: deque[object] = deque()
        self._awake = False

    def put(self, message: object) -> bool:
        """Leave a message; return ``False`` if the loop is closed and nobody will read it."""
        self._messages.append(message)
        # A put between this check and the drain's reset is read by that drain: the message is
        # in the queue before the flag is looked at.
        if not self._awake:
            self._awake = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed
                return False
            return True
        # Woken already, unless the loop was closed before it got there.
        return not self._loop.is_closed()

    def _drain(self) -> None:
        self._awake = False
        messages = self._messages
        # Whoever goes on putting more meanwhile must not keep the loop for itself.
        for _ in range(_MOST_IN_A_ROUND):
            if not messages:
                break
            self._handle(messages.popleft())
        self._finish_round()
        if messages and not self._awake:
            self._awake = True
            self._loop.call_soon(self._drain)
