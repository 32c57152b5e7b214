"""Read the runs of an engine, alive or in the store, and delete old ones."""

from __future__ import annotations

import contextvars
from functools import partial
from typing import TYPE_CHECKING

from flowrun.errors import DamagedRecordError, UnknownRunError, listed
from flowrun.scheduler.notifier import Notifier
from flowrun.state import Reason, RunQuery, RunStatus, TaskStatus, items_by_task

if TYPE_CHECKING:
    from flowrun.scheduler.lifecycle import Lifecycle
    from flowrun.scheduler.services import Services
    from flowrun.state import RunRecord, RunSummary, StateStoreProtocol, TaskRecord

_FEW = 11
"""So many runs say how long a run usually takes."""


class History:
    """The runs of one engine's store."""

    def __init__(self, store: StateStoreProtocol, services: Services, lifecycle: Lifecycle) -> None:
        self._store = store
        self._services = services
        self._lifecycle = lifecycle

    def load(self, run_id: str, *, results: bool) -> RunRecord:
        """Return the current record of a run."""
        if not isinstance(run_id, str):
            raise UnknownRunError(run_id)
        self._lifecycle.end_lost()
        unsaved = self._services.journal.unsaved(run_id)
        if unsaved is not None:
            return unsaved
        alive = self._lifecycle.find(run_id)
        running = [] if alive is None else alive[0].running()
        run = self._store.load_run(run_id, results=results)
        # The store learns of a start when the attempt has run for a while, and of what happens
        # inside the attempt when that has ended.
        tasks, items = dict(run.tasks), dict(run.items)
        for task in running:
            if task.item is None and _knows_more(task, tasks[task.name]):
                tasks[task.name] = task
        for name, started in items_by_task(running).items():
            known = {item.item: item for item in started}
            for kept in items.get(name, ()):
                if kept.item not in known or not _knows_more(known[kept.item], kept):
                    known[kept.item] = kept
            items[name] = sorted(known.values(), key=lambda item: item.item or 0)
        return run._replace(tasks=tasks, items=items)

    def list_runs(
        self,
        dag_name: str | None,
        status: str | None,
        limit: int | None,
        before: str | float | None,
    ) -> list[RunSummary]:
        """Return runs, newest first; see ``Engine.list_runs``."""
        if limit is not None and limit < 1:
            msg = f"limit must be 1 or more, or None for all runs, not {limit}"
            raise ValueError(msg)
        if not (before is None or isinstance(before, str | float | int)):
            raise UnknownRunError(before)
        if not (dag_name is None or isinstance(dag_name, str)):
            msg = f"dag_name must be the name of a DAG or None, not {dag_name!r:.80}"
            raise TypeError(msg)
        if status not in (None, *RunStatus):
            known = listed([str(each) for each in RunStatus])
            msg = f"status must be one of {known}, or None, not {status!r:.80}"
            raise ValueError(msg)
        wanted = None if status is None else RunStatus(status)
        self._lifecycle.end_lost()
        self._services.journal.save_unsaved()
        return self._store.list_runs(RunQuery(dag_name, wanted, None, limit, before))

    def last_successes(self, dag_name: str) -> list[RunSummary]:
        """Return the newest successful runs of a DAG, those with damage left out."""
        try:
            return self.list_runs(dag_name, RunStatus.SUCCESS, _FEW, None)
        except DamagedRecordError as error:
            return list(error.others)

    def prune(self, keep_last: int | None, older_than_s: float | None) -> int:
        """Delete finished runs; see ``Engine.prune_runs``."""
        if keep_last is None and older_than_s is None:
            msg = "say what to delete: prune_runs(keep_last=...), prune_runs(older_than_s=...)"
            raise ValueError(msg)
        if keep_last is not None and type(keep_last) is not int:
            msg = f"keep_last must be a whole number of runs, not {keep_last!r:.80}"
            raise TypeError(msg)
        if (keep_last or 0) < 0 or not (older_than_s or 0) >= 0:
            msg = "keep_last and older_than_s must be 0 or more"
            raise ValueError(msg)
        now = self._services.config.clock.time()
        created_before = None if older_than_s is None else now - older_than_s
        prune = partial(self._store.prune_runs, keep_last=keep_last, created_before=created_before)
        return self._services.journal.call(prune)

    def report_recovered(self) -> None:
        """Call the hooks for the runs that opening the store has ended (D3)."""
        recovered: list[RunRecord] = getattr(self._store, "recovered", [])
        for run in recovered:
            channel = self._services.hooks.channel(contextvars.copy_context(), lambda: None)
            ended = [task for task in run.tasks.values() if task.reason is Reason.OWNER_DIED]
            Notifier(run, channel, self._services.log).run_aborted(ended, run)
        recovered.clear()


def _knows_more(task: TaskRecord, kept: TaskRecord) -> bool:
    """Return whether the record of a task that runs says more than the one in the store."""
    if kept.status is TaskStatus.PENDING:
        return True
    is_same = (kept.status, kept.attempt) == (task.status, task.attempt)
    return is_same and task.notes is not None
