"""Pass the progress of running attempts on to hooks and handles."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flowrun.scheduler.attempt import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.context import Attempt, Progress
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.services import Services

EVERY_S = 0.1
"""An attempt may say more in this time; only the last of it is reported."""


class LiveProgress:
    """Collect what attempts say in any thread, and report it on the run's loop.

    Args:
        services: What the engine's runs share.
        inbox: Where other threads leave messages for the run.
        tell: Takes an attempt, the time in epoch seconds and the progress, on the loop. Returns
            ``False`` if it wants them once more, a moment later.
    """

    def __init__(
        self, services: Services, inbox: Inbox, tell: Callable[[Attempt, float, Progress], bool]
    ) -> None:
        self._clock = services.config.clock
        self._redact = services.redact
        self._inbox = inbox
        self._tell = tell
        self._said: dict[Attempt, None] = {}

    def said(self, attempt: Attempt) -> None:
        """An attempt has said something, in any thread."""
        self._inbox.put(partial(self._take, attempt))

    def _take(self, attempt: Attempt) -> None:
        if not self._said:
            # By the inbox: there an error of a listener ends the run, and not the loop's timer.
            later = partial(self._inbox.put, self._tell_all)
            self._clock.call_later(self._inbox.loop, EVERY_S, later)
        self._said[attempt] = None

    def _tell_all(self) -> None:
        attempts, self._said = self._said, {}
        for attempt in attempts:
            # Before the value is read: what is said after this moment is a message of its own.
            attempt.is_progress_told = False
            progress = shown(attempt.last_progress, self._redact)
            if attempt.ended or progress is None:
                continue
            if not self._tell(attempt, self._clock.time(), progress):
                self._take(attempt)
