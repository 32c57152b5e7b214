"""The in-memory store: runs as long as the process lives, bounded in number."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, TypeAlias

from flowrun.errors import (
    AlreadyResumedError,
    RunAliveError,
    RunLostError,
    StoreError,
    UnknownRunError,
    duplicate_run,
    overlap,
)
from flowrun.forks import call_in_children
from flowrun.policy import check_int
from flowrun.state.protocol import ALL_RUNS, CachedResult, CacheEntry
from flowrun.state.records import CarriedResult, NoResult, TaskRecord, TaskStatus, items_by_task

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.state.protocol import Change, RunQuery
    from flowrun.state.run_records import RunRecord, RunSummary

    _Id: TypeAlias = tuple[str, int | None]

DEFAULT_MAX_FINISHED_RUNS = 1000
DEFAULT_KEEP_RESULTS_OF = 20


class InMemoryStateStore:
    """Keep runs in this process; fast, and gone with it. Safe to use from several threads.

    Args:
        max_finished_runs: How many finished runs are kept; the oldest are dropped beyond that,
            so that a service that runs for months does not grow. ``None``: all.
        keep_results_of: How many of the newest finished runs keep their results and log lines. In
            older runs the results show as released, and a resume runs their tasks again where it
            needs them. ``None``: all. Results in the cache are kept as long as their runs.

    Raises:
        TypeError: A bound is neither an integer nor ``None``.
        ValueError: A bound is negative.

    Example:
        >>> store = InMemoryStateStore(max_finished_runs=10, keep_results_of=None)
        >>> store.list_runs()
        []
    """

    blocking = False

    def __init__(
        self,
        *,
        max_finished_runs: int | None = DEFAULT_MAX_FINISHED_RUNS,
        keep_results_of: int | None = DEFAULT_KEEP_RESULTS_OF,
    ) -> None:
        bounds = {"max_finished_runs": max_finished_runs, "keep_results_of": keep_results_of}
        for name, bound in bounds.items():
            if bound is not None:
                check_int(name, bound, least=0, none="for no bound")
        self._max_finished_runs = max_finished_runs
        self._keep_results_of = keep_results_of
        self._start_over()
        # The tasks of a run, and their items, are in a dict of the store's own, which is replaced
        # entry by entry.
        self._runs: dict[str, RunRecord] = {}
        self._tasks: dict[str, dict[_Id, TaskRecord]] = {}
        self._finished: deque[str] = deque()
        self._cached: dict[str, tuple[CacheEntry, object]] = {}
        self._keys: dict[str, list[str]] = {}  # of the entries that a run has made
        call_in_children(self._start_over)

    def _start_over(self) -> None:
        """Begin with a lock of its own: a forked child has a copy of the runs."""
        self._lock = threading.Lock()

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run; see :meth:`StateStoreProtocol.create_run`."""
        tasks: dict[_Id, TaskRecord] = {(task.name, task.item): task for task in run.records}
        with self._lock:
            if run.run_id in self._runs:
                raise duplicate_run(run.run_id)
            if run.sole_of_dag:
                for other in self._runs.values():
                    if other.dag_name == run.dag_name and other.alive:
                        raise overlap(run.dag_name, other.run_id)
            if run.resumed_from is not None:
                self._check_ancestor(run, run.resumed_from)
                self._carry_over(tasks, run.resumed_from)
            self._tasks[run.run_id] = tasks  # first, as a fork may come between the two
            self._runs[run.run_id] = run._replace(tasks={}, items={})

    def save(self, changes: Sequence[Change]) -> None:
        """Keep changes; see :meth:`StateStoreProtocol.save`."""
        with self._lock:
            for run, _ in changes:
                kept = self._runs.get(run.run_id)
                if kept is None or kept.finished_at is not None:
                    raise RunLostError(run.run_id)
            for run, task in changes:
                if task is None:
                    self._end(run)
                    continue
                tasks, result = self._tasks[run.run_id], task.result
                if result is NoResult.STORED:
                    task = task._replace(result=tasks[task.name, task.item].result)  # noqa: PLW2901
                elif type(result) is CarriedResult:
                    task = self._with_result_of(task, result.run_id, result.item)  # noqa: PLW2901
                tasks[task.name, task.item] = task
                cache = task.cache
                if cache is not None and not cache.run_id and task.status is TaskStatus.SUCCESS:
                    self._add_to_cache(cache.key, run, task)

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a run as it now stands; see :meth:`StateStoreProtocol.load_run`."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                raise UnknownRunError(run_id)
            records = list(self._tasks[run_id].values())
        if not results:
            records = [_without(task, NoResult.STORED) for task in records]
        tasks = {task.name: task for task in records if task.item is None}
        return run._replace(tasks=tasks, items=items_by_task(records))

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return kept results; see :meth:`StateStoreProtocol.load_results`."""
        run = self.load_run(run_id, results=True)
        found: dict[str, object] = {}
        for name in task_names:
            task = run.tasks.get(name)
            if task is None:
                continue
            if task.items is not None:
                results = [item.result for item in run.items.get(name, ())]
                found[name] = [value for value in results if type(value) is not NoResult]
            elif type(task.result) is not NoResult:
                found[name] = task.result
        return found

    def list_runs(self, query: RunQuery = ALL_RUNS) -> list[RunSummary]:
        """Return the runs that match, newest first."""
        found: list[RunSummary] = []
        for run in self._newest_first(query.before):
            if query.dag_name not in (None, run.dag_name):
                continue
            if query.resumed_from not in (None, run.resumed_from):
                continue
            try:
                summary = self.load_run(run.run_id, results=True).summary()
            except UnknownRunError:
                continue  # another thread has pruned it
            if query.status not in (None, summary.status):
                continue
            found.append(summary)
            if len(found) == query.limit:
                break
        return found

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs; see :meth:`StateStoreProtocol.prune_runs`."""
        newer: dict[str, int] = {}
        doomed: list[str] = []
        with self._lock:
            for run in reversed(self._runs.values()):
                if run.finished_at is None:
                    continue
                newer[run.dag_name] = newer.get(run.dag_name, 0) + 1
                if keep_last is not None and newer[run.dag_name] <= keep_last:
                    continue
                if created_before is None or run.created_at < created_before:
                    doomed.append(run.run_id)
            for run_id in doomed:
                self._delete(run_id)
            self._finished = deque(run_id for run_id in self._finished if run_id in self._runs)
        return len(doomed)

    def find_cached(self, key: str, since: float) -> CachedResult | None:
        """Return the result of a key; see :meth:`CacheStoreProtocol.find_cached`."""
        found = self._cached.get(key)
        if found is None or found[0].finished_at < since:
            return None
        return CachedResult(found[0].run_id, found[1], found[1])

    def list_cached(
        self, dag_name: str | None = None, task_name: str | None = None
    ) -> list[CacheEntry]:
        """Return the entries of the cache, newest first."""
        with self._lock:
            found = self._entries(dag_name, task_name)
        return sorted(found.values(), key=lambda entry: -entry.finished_at)

    def clear_cached(self, dag_name: str | None = None, task_name: str | None = None) -> int:
        """Forget entries of the cache, and return how many."""
        with self._lock:
            doomed = self._entries(dag_name, task_name)
            for key in doomed:
                del self._cached[key]
        return len(doomed)

    def close(self) -> None:
        """Do nothing: the runs stay readable."""

    # All that follows is called with the lock held, except _newest_first.

    def _check_ancestor(self, run: RunRecord, ancestor_id: str) -> None:
        """Refuse a second heir at the same time, or at all (S5)."""
        ancestor = self._runs.get(ancestor_id)
        if ancestor is not None and ancestor.alive:
            raise RunAliveError(ancestor_id, "it is still running")
        family = {ancestor_id}
        for heir in self._runs.values():  # in the order of their creation
            if heir.resumed_from in family:
                family.add(heir.run_id)
                if heir.alive:
                    raise RunAliveError(ancestor_id, f"run {heir.run_id!r} is just resuming it")
                if run.sole_heir:
                    why = f"run {heir.run_id!r} has resumed it meanwhile"
                    raise AlreadyResumedError(ancestor_id, why)

    def _carry_over(self, tasks: dict[_Id, TaskRecord], ancestor_id: str) -> None:
        """Give tasks whose results the ancestor has those results."""
        for place, task in tasks.items():
            if task.result is NoResult.STORED:
                tasks[place] = self._with_result_of(task, ancestor_id, task.item)

    def _with_result_of(self, task: TaskRecord, run_id: str, item: int | None) -> TaskRecord:
        old = self._tasks.get(run_id, {}).get((task.name, item))
        if old is None or type(old.result) is NoResult:
            msg = (
                f"the result of task {task.label!r} in run {run_id!r} was dropped while a resume"
                " of that run was planned; resume it again"
            )
            raise StoreError(msg)
        return task._replace(result=old.result)

    def _end(self, run: RunRecord) -> None:
        self._runs[run.run_id] = run._replace(tasks={}, items={}, alive=False)
        finished, keep, most = self._finished, self._keep_results_of, self._max_finished_runs
        finished.append(run.run_id)
        if keep is not None and len(finished) > keep:
            tasks = self._tasks[finished[-1 - keep]]
            for name, task in tasks.items():
                tasks[name] = _without(task, NoResult.RELEASED).without_logs()
        while most is not None and len(finished) > most:
            self._delete(finished.popleft())

    def _entries(self, dag_name: str | None, task_name: str | None) -> dict[str, CacheEntry]:
        return {
            key: entry
            for key, (entry, _) in self._cached.items()
            if dag_name in (None, entry.dag_name) and task_name in (None, entry.task_name)
        }

    def _add_to_cache(self, key: str, run: RunRecord, task: TaskRecord) -> None:
        entry = CacheEntry(run.run_id, run.dag_name, task.name, task.finished_at or 0.0)
        self._cached[key] = entry, task.result
        self._keys.setdefault(run.run_id, []).append(key)

    def _delete(self, run_id: str) -> None:
        del self._runs[run_id], self._tasks[run_id]
        for key in self._keys.pop(run_id, ()):
            if key in self._cached and self._cached[key][0].run_id == run_id:
                del self._cached[key]

    def _newest_first(self, before: str | float | None) -> list[RunRecord]:
        with self._lock:
            runs = list(reversed(self._runs.values()))
        if before is None:
            return runs
        if isinstance(before, str):
            for place, run in enumerate(runs):
                if run.run_id == before:
                    return runs[place + 1 :]
            raise UnknownRunError(before)
        return [run for run in runs if run.created_at < before]


def _without(task: TaskRecord, stand_in: NoResult) -> TaskRecord:
    """Return a task without its result; as it is if it has none."""
    if task.status is not TaskStatus.SUCCESS or type(task.result) is NoResult:
        return task
    return task._replace(result=stand_in)


StateStore = InMemoryStateStore
"""The contract's other name for the in-memory store."""
