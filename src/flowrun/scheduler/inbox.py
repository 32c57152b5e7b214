"""What other threads tell an event loop: many messages, one wake-up."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


_MOST_IN_A_ROUND = 1000
_POLL_S = 0.002


class Inbox:
    """Messages for one run, put by any thread, handled on the run's event loop.

    Args:
        loop: The event loop.
        handle: Called on it with each message, in the order in which they were put.
        finish_round: Called on it after the messages of one wake-up.
    """

    __slots__ = ("_awake", "_finish_round", "_handle", "_loop", "_messages", "_polls", "_unhurried")

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
        self._polls = False  # the loop looks by itself, soon
        self._unhurried = False

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

    def wake(self) -> None:
        """Have the loop do what it does after messages, without one."""
        # Whoever has put something before this sees to it that it is read.
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._drain)

    def put_unhurried(self, message: object) -> None:
        """Leave a message that need not be read at once, because more will follow it.

        To be woken for each would take the loop, and the interpreter from the thread that goes
        on, more time than to look by itself every few milliseconds while there are such.
        """
        self._messages.append(message)
        self._unhurried = True
        # As in put(): whoever looks by itself says so before it looks.
        if not (self._awake or self._polls):
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._drain)

    def look_again(self) -> None:
        """Read what there is once more, on the loop."""
        self._loop.call_soon(self._drain)

    def _poll(self) -> None:
        self._polls = False
        if self._messages and not self._awake:
            self._drain()

    def _drain(self) -> None:
        self._awake = False
        if self._unhurried:
            self._unhurried = False
            if not self._polls:
                self._polls = True
                self._loop.call_later(_POLL_S, self._poll)
        messages = self._messages
        try:
            # Whoever goes on putting more meanwhile must not keep the loop for itself.
            for _ in range(_MOST_IN_A_ROUND):
                if not messages:
                    break
                self._handle(messages[0])
                messages.popleft()
            self._finish_round()
        except BaseException:  # Ctrl-C came in between: look once more, at this message, too
            self.look_again()
            raise
        if messages and not self._awake:
            self._awake = True
            self._loop.call_soon(self._drain)
