"""A state store as somebody else might write it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from flowrun import Change, RunQuery, RunRecord, RunSummary, TaskRecord
from flowrun.errors import ResultNotStorableError, UnknownRunError
from flowrun.state import NoResult


class ThirdPartyStore:
    """Keeps records in dictionaries, behind a lock; ``before`` may fail or wait."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.blocking = blocking
        self.lock = threading.Lock()
        self.runs: dict[str, RunRecord] = {}
        self.tasks: dict[str, dict[str, TaskRecord]] = {}
        self.saved: list[list[tuple[str | None, str]]] = []
        self.before: Callable[[str], object] = lambda what: None

    def create_run(self, run: RunRecord) -> None:
        self.before("create_run")
        with self.lock:
            self.runs[run.run_id] = run
            self.tasks[run.run_id] = dict(run.tasks)
            for name, task in run.tasks.items():
                if task.result is NoResult.STORED and run.resumed_from is not None:
                    kept = self.tasks[run.resumed_from][name].result
                    self.tasks[run.run_id][name] = task._replace(result=kept)

    def save(self, changes: Sequence[Change]) -> None:
        # The start of what runs for long is saved, too; when, depends on the machine.
        is_start = all(task is not None and task.status == "RUNNING" for _, task in changes)
        self.before("save starts" if is_start else "save")
        for run, task in changes:
            if task is not None and isinstance(task.result, threading.Event):
                problem = "result: threading.Event"
                raise ResultNotStorableError(problem, run.run_id, task.name)
        with self.lock:
            self.saved.append(
                [(t and t.name, "end" if t is None else t.status.value) for _, t in changes]
            )
            for run, task in changes:
                if task is None:
                    self.runs[run.run_id] = run
                    continue
                tasks = self.tasks[run.run_id]
                kept = tasks[task.name].result
                is_stored = task.result is NoResult.STORED
                tasks[task.name] = task._replace(result=kept) if is_stored else task

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        with self.lock:
            if run_id not in self.runs:
                raise UnknownRunError(run_id)
            return self.runs[run_id]._replace(tasks=dict(self.tasks[run_id]))

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        return {name: self.tasks[run_id][name].result for name in task_names}

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        with self.lock:
            ids = list(reversed(self.runs))
        runs = [self.load_run(run_id, results=False).summary() for run_id in ids]
        return [run for run in runs if query.resumed_from in (None, run.resumed_from)]

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        return 0

    def close(self) -> None:
        pass
