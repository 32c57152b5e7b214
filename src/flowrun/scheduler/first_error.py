"""The exception of the task that failed first, for ``raise_on_failure=True``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.state import Reason

if TYPE_CHECKING:
    from flowrun.state import TaskRecord


class FirstError:
    """Keep the exceptions of one run until it is known which of them is the first final one.

    A run has one only if its caller wants it: an exception keeps the locals of its frames alive.

    Attributes:
        first: The exception of the task that failed first.
    """

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self._is_known = False
        self._noted: dict[str, tuple[int, BaseException]] = {}

    def note(self, label: str, attempt: int, error: BaseException) -> None:
        """Note the error of an attempt, from any thread; of one attempt the first counts.

        An attempt that timed out is cancelled, and then raises a second one.
        """
        noted = self._noted.get(label)
        if noted is None or noted[0] != attempt:
            self._noted[label] = attempt, error

    def failed(self, task: TaskRecord) -> None:
        """A task, or an item of a mapped one, has failed for good."""
        if task.reason in (Reason.ERROR, Reason.TIMEOUT) and not self._is_known:
            self._is_known = True
            self.first = self._noted.get(task.label, (0, None))[1]
