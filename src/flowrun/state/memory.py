"""The in-memory store: runs as long as the process lives, bounded in number."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from flowrun.errors import AlreadyResumedError, RunAliveError, UnknownRunError, duplicate_run
from flowrun.state.records import NoResult, RunRecord

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from flowrun.state.protocol import Change, RunQuery
    from flowrun.state.records import RunSummary

DEFAULT_MAX_FINISHED_RUNS = 1000


class InMemoryStateStore:
    """Keep runs in this process; fast, and gone with it.

    It holds the engine's own records, so that nothing is copied while a run goes on; whoever
    loads a run gets a snapshot. Safe to use from several threads.

    Args:
        max_finished_runs: The oldest finished runs are dropped beyond this many, so that a
            service that runs for months does not grow; ``None`` for no bound.

    Raises:
        ValueError: The bound is negative.

    Example:
        >>> store = InMemoryStateStore(max_finished_runs=10)
        >>> store.blocking
        False
    """

    blocking = False
    live = True

    def __init__(self, *, max_finished_runs: int | None = DEFAULT_MAX_FINISHED_RUNS) -> None:
        if max_finished_runs is not None and max_finished_runs < 0:
            msg = f"max_finished_runs must be 0 or more, or None, not {max_finished_runs}"
            raise ValueError(msg)
        self._max_finished_runs = max_finished_runs
        self._lock = threading.Lock()
        self._runs: dict[str, RunRecord] = {}
        self._finished: deque[str] = deque()
        self._heirs: dict[str, list[str]] = {}

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run; see :meth:`StateStoreProtocol.create_run`."""
        with self._lock:
            if run.run_id in self._runs:
                raise duplicate_run(run.run_id)
            if run.resumed_from is not None:
                self._check_ancestor(run, run.resumed_from)
                self._heirs.setdefault(run.resumed_from, []).append(run.run_id)
            self._runs[run.run_id] = run

    def save(self, changes: Sequence[Change]) -> None:
        """Note the end of runs; the records themselves are already here."""
        for run, task in changes:
            if task is None:
                with self._lock:
                    self._finished.append(run.run_id)
                    self._drop_oldest()

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a snapshot of a run; see :meth:`StateStoreProtocol.load_run`."""
        with self._lock:
            run = self._runs.get(run_id)
        if run is None:
            raise UnknownRunError(run_id)
        # While another thread works on it: its end is read before its tasks, children before what
        # they depend on, so that nothing is seen without what had come before it.
        ended = run.end
        tasks = {name: task.copy() for name, task in reversed(run.tasks.items())}
        twin = RunRecord(
            run.run_id,
            run.dag_name,
            run.created_at,
            dict(reversed(tasks.items())),
            metadata=run.metadata,
            resumed_from=run.resumed_from,
            targets=run.targets,
        )
        twin.inputs = run.inputs
        twin.finished_at, twin.error, twin.alive = ended
        if not results:
            for task in twin.tasks.values():
                if type(task.result) is not NoResult:
                    task.result = NoResult.STORED
        return twin

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return kept results; see :meth:`StateStoreProtocol.load_results`."""
        tasks = self.load_run(run_id, results=True).tasks
        found = {name: tasks[name].result for name in task_names if name in tasks}
        return {name: value for name, value in found.items() if type(value) is not NoResult}

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return the runs that match, newest first."""
        found: list[RunSummary] = []
        for run in self._newest_first(query.before):
            if query.dag_name not in (None, run.dag_name):
                continue
            if query.resumed_from not in (None, run.resumed_from):
                continue
            summary = run.summary()
            if query.status not in (None, summary.status):
                continue
            found.append(summary)
            if len(found) == query.limit:
                break
        return found

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs; see :meth:`StateStoreProtocol.prune_runs`."""
        kept: dict[str, int] = {}
        doomed: list[str] = []
        for run in self._newest_first(None):
            if run.finished_at is None:
                continue
            kept[run.dag_name] = kept.get(run.dag_name, 0) + 1
            if keep_last is not None and kept[run.dag_name] <= keep_last:
                continue
            if created_before is None or run.created_at < created_before:
                doomed.append(run.run_id)
        with self._lock:
            deleted = sum(self._delete(run_id) for run_id in doomed)
            self._finished = deque(run_id for run_id in self._finished if run_id in self._runs)
        return deleted

    def close(self) -> None:
        """Do nothing: the runs stay readable."""

    def _check_ancestor(self, run: RunRecord, ancestor_id: str) -> None:
        """Refuse a second heir at the same time, or at all (S5); the lock is held."""
        ancestor = self._runs.get(ancestor_id)
        if ancestor is not None and ancestor.alive:
            raise RunAliveError(ancestor_id, "it is still running")
        heirs = list(self._heirs.get(ancestor_id, ()))
        for heir_id in heirs:  # and theirs, which are added on the way
            heirs += self._heirs.get(heir_id, ())
            heir = self._runs.get(heir_id)
            if heir is not None and heir.alive:
                raise RunAliveError(ancestor_id, f"run {heir_id!r} is just resuming it")
            if run.sole_heir:
                raise AlreadyResumedError(ancestor_id, f"run {heir_id!r} has resumed it meanwhile")

    def _newest_first(self, before: str | float | None) -> Iterator[RunRecord]:
        with self._lock:
            runs = list(reversed(self._runs.values()))
        if before is None:
            return iter(runs)
        if isinstance(before, str):
            for place, run in enumerate(runs):
                if run.run_id == before:
                    return iter(runs[place + 1 :])
            raise UnknownRunError(before)
        return (run for run in runs if run.created_at < before)

    def _drop_oldest(self) -> None:
        if self._max_finished_runs is not None:
            while len(self._finished) > self._max_finished_runs:
                self._delete(self._finished.popleft())

    def _delete(self, run_id: str) -> int:
        run = self._runs.pop(run_id, None)
        if run is None:
            return 0  # somebody else was faster
        self._heirs.pop(run_id, None)
        if run.resumed_from in self._heirs:
            self._heirs[run.resumed_from].remove(run_id)
        return 1


StateStore = InMemoryStateStore
"""The contract's other name for the in-memory store."""
