"""Tasks that have begun, as long as nothing has been written of that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.inbox import Inbox
    from flowrun.state.records import RunRecord, TaskRecord

_A_WHILE_S = 0.01


class Starts(NamedTuple):
    """Whose starts are noted.

    Attributes:
        run: The run.
        inbox: Where a failure is told.
        failed: What it is told with.
    """

    run: RunRecord
    inbox: Inbox
    failed: Callable[[Exception | None], object]


class StartNotes(dict["TaskRecord", Starts]):
    """Starts, by task: most tasks end soon, and then only their ends are written.

    Any thread adds and takes out; who takes one out, by an atomic pop, does with it what is to
    be done.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: frozenset[TaskRecord] = frozenset()
        self._looked_at = 0.0
        self._due: list[TaskRecord] = []

    def find_due(self) -> bool:
        """Find those whose ends have not come for a while; return whether there are any.

        They are the ones that stood here the last time, which was a while ago.
        """
        if not self:
            self._before, self._due = frozenset(), []  # it keeps nothing of an ended run alive
            return False
        now = time.monotonic()
        if now >= self._looked_at + _A_WHILE_S:
            self._looked_at = now
            noted = self.copy()  # others go on adding and taking out
            self._due = [task for task in noted if task in self._before]
            self._before = frozenset(noted)
        return bool(self._due)

    def take_due(self) -> list[tuple[TaskRecord, Starts]]:
        """Take out those that were found, unless their ends have come meanwhile."""
        due, self._due = self._due, []
        found = [(task, self.pop(task, None)) for task in due]
        return [(task, starts) for task, starts in found if starts is not None]
