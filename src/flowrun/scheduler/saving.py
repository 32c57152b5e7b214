"""Successes that worker threads put together and save; only then they count (S1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    import threading
    from collections.abc import Sequence

    from flowrun.scheduler.inbox import Inbox
    from flowrun.state.protocol import Success

_MANY = 128
_WAIT_S = 0.002


class Writer(Protocol):
    """What makes successes durable, where the store is one that has to be written to."""

    def may_save(self, number: int) -> bool:
        """Return whether threads may save a task's success, which they do soon if they may."""
        ...

    def save(self, ended: Sequence[Success]) -> bool:
        """Save successes in the thread that calls, if that can be done at once.

        Returns:
            Whether they were saved.
        """
        ...

    def settle(self, ended: Sequence[Success]) -> BaseException | None:
        """Settle successes that are saved; the ledger's lock is held.

        Returns:
            What went wrong with one of them, if anything did; the others are settled.
        """
        ...

    def take_over(self, ended: Sequence[Success]) -> None:
        """Save and settle successes; called on the event loop."""


class Unsaved:
    """What has succeeded in worker threads, and is not saved yet.

    Successes are put together until there are many, or until a thread finds nothing else to do;
    that thread saves them, one thread at a time. What none has saved after a few milliseconds the
    event loop takes over.

    Args:
        writer: Makes them durable.
        lock: The ledger's.
        loop: The run's event loop.
        inbox: Where that is told what it is to do.

    Attributes:
        saving: Whether a thread saves; it has a slot.
    """

    __slots__ = (
        "_awaited",
        "_group",
        "_inbox",
        "_lock",
        "_loop",
        "_unsettled",
        "_writer",
        "saving",
    )

    def __init__(
        self,
        writer: Writer,
        lock: threading.Lock,
        loop: asyncio.AbstractEventLoop,
        inbox: Inbox,
    ) -> None:
        self._writer = writer
        self._lock = lock
        self._loop = loop
        self._inbox = inbox
        self._group: list[Success] = []
        self._awaited: list[Success] | None = None  # the group that the loop looks after
        self._unsettled = 0  # these, and what a thread saves, or the loop is to take over
        self.saving = False

    @property
    def unsettled(self) -> bool:
        """Whether something has still to be saved, or to be settled."""
        return self._unsettled > 0 or self.saving

    # With the lock held.

    def __bool__(self) -> bool:
        """Return whether there is something that nobody saves yet."""
        return bool(self._group)

    @property
    def many(self) -> bool:
        """Whether there are so many that somebody has to save them before going on."""
        return len(self._group) >= _MANY

    def add(self, success: Success) -> bool:
        """Add a success; return ``False`` if it is not for threads to save."""
        if not self._writer.may_save(success[0]):
            return False
        self._unsettled += 1
        self._group.append(success)
        return True

    def take(self) -> list[Success]:
        """Return what there is, for the thread that calls to save it."""
        self.saving = True
        group, self._group = self._group, []
        return group

    def leave(self) -> None:
        """Leave what there is to threads that come later, and to the loop."""
        if self._awaited is not self._group:
            self._awaited = self._group
            self._inbox.put_unhurried(partial(self._look_soon, self._group))

    def settle(self, group: list[Success]) -> None:
        """Let the children of what was saved come.

        Raises:
            BaseException: Something went wrong with one of them; the others are settled.
        """
        broken = self._writer.settle(group)
        self._forget(group)
        if broken is not None:
            raise broken

    # In the thread that saves.

    def save(self, group: list[Success]) -> bool:
        """Save what was taken, or leave that to the loop; return whether it was saved.

        Without the lock: the loop must not wait for a disk.
        """
        saved = False
        try:
            saved = self._writer.save(group)
        finally:
            if not saved:
                self._inbox.put(partial(self._take_over, group))
        return saved

    # On the event loop.

    def hand_over(self) -> None:
        """Take over what no thread saves."""
        with self._lock:
            group, self._group = self._group, []
        self._take_over(group)

    def _look_soon(self, group: list[Success]) -> None:
        """See to it that successes do not wait long for more of them."""
        if self._group is group:
            step = partial(self._inbox.put, partial(self._look_again, group))
            self._loop.call_later(_WAIT_S, step)

    def _look_again(self, group: list[Success]) -> None:
        if self._group is group:
            self.hand_over()

    def _take_over(self, group: list[Success]) -> None:
        try:
            self._writer.take_over(group)
        finally:
            with self._lock:
                self._forget(group)

    def _forget(self, group: list[Success]) -> None:
        self._unsettled -= len(group)
        group.clear()  # whoever still knows the list keeps no result alive (I2)
