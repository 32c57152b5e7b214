"""What a run writes to the store, and what comes of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flowrun.errors import ResultNotStorableError
from flowrun.failure import described
from flowrun.scheduler.messages import Refusal, Saved
from flowrun.state import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.scheduler.first_error import FirstError
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.messages import Finish, Save
    from flowrun.scheduler.run_state import RunState
    from flowrun.scheduler.services import Services
    from flowrun.state import RunRecord
    from flowrun.state.journal import Errors


class Recorder:
    """Write the changes of one run through the engine's journal.

    Args:
        services: What the engine's runs share.
        record: The run.
        state: The run's state, which knows its units.
        inbox: Where the journal's thread leaves messages for the run.
        saved: Takes the answer to a ``Save``, on the loop, and the store's error if it has failed.
        ended: Takes the error of the run's end, on the loop; ``None`` if it was saved.
        errors: Keeps the first exception, for ``raise_on_failure``.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        services: Services,
        record: RunRecord,
        state: RunState,
        inbox: Inbox,
        saved: Callable[[Saved, BaseException | None], object],
        ended: Callable[[BaseException | None], object],
        errors: FirstError | None,
    ) -> None:
        self._journal = services.journal
        self._blocks = services.journal.store.blocking
        self._redact = services.redact
        self._record = record
        self._units = state.table.units
        self._inbox = inbox
        self._saved = saved
        self._ended = ended
        self._errors = errors

    def save(self, save: Save) -> None:
        """Save records; the answer comes at once if the store does not block."""
        changes = [Change(self._record, record) for record in save.records]
        answer = self._save_answered if not self._blocks else self._post_save_answered
        self._journal.submit(changes, partial(answer, save))

    def _post_save_answered(self, save: Save, errors: Errors) -> None:
        message = partial(self._save_answered, save, errors)
        self._inbox.put(Saved(save.units) if errors is None else message)

    def _save_answered(self, save: Save, errors: Errors) -> None:
        """Tell the run which records the store did not keep, and why."""
        if errors is None:
            self._saved(Saved(save.units), None)
            return
        numbers = {self._units[unit].record.label: unit for unit in save.units}
        refusals: dict[int, Refusal] = {}
        broken: Exception | None = None
        for record, error in zip(save.records, errors, strict=True):
            if error is None:
                continue
            unit = numbers.get(record.label, -1)  # a record that is no outcome belongs to no unit
            of_result = unit >= 0 and isinstance(error, ResultNotStorableError)
            if self._errors is not None:
                self._errors.note(record.label, record.attempt, error)
            refusals[unit] = Refusal(*described(error, self._redact), of_result)
            if not of_result:
                broken = broken or error
        self._saved(Saved(save.units, refusals), broken)

    def finish(self, finish: Finish) -> None:
        """Save the end of the run."""
        run = finish.record
        changes = [*(Change(run, record) for record in finish.records), Change(run, None)]
        answer = self._end_answered if not self._blocks else self._post_end_answered
        self._journal.submit(changes, partial(answer, run))

    def _post_end_answered(self, run: RunRecord, errors: Errors) -> None:
        is_heard = self._inbox.put(partial(self._end_answered, run, errors))
        if errors is not None and not is_heard:  # pragma: no cover - its loop is closed
            self._journal.keep_unsaved(run)

    def _end_answered(self, run: RunRecord, errors: Errors) -> None:
        if errors is not None:
            self._journal.keep_unsaved(run)
        self._ended(None if errors is None else next(filter(None, errors)))
