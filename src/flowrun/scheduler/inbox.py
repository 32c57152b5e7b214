"""What other threads send to a run: many messages, one wake-up of its event loop."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Inbox:
    """Messages for one run, left by any thread, taken on the run's event loop.

    Args:
        loop: The event loop.
        wake: Called on it when there are messages to take.
    """

    __slots__ = ("_is_awake", "_messages", "_wake", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object]) -> None:
        self.loop = loop
        self._wake = wake
        self._messages: deque[object] = deque()
        self._is_awake = False

    def put(self, message: object) -> bool:
        """Leave a message and wake the loop; return ``False`` if the loop is closed."""
        self._messages.append(message)
        # The flag is read after the message was left, and take() resets it before it reads the
        # messages: so a message that finds the flag set is read by the wake-up on its way.
        if self._is_awake:
            return not self.loop.is_closed()
        self._is_awake = True
        try:
            self.loop.call_soon_threadsafe(self._wake)
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
