"""Runs that the tests of stores keep, and short ways to change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flowrun.state import Change, NoResult, Reason, RunRecord, TaskRecord


def make_run(run_id: str = "r1", dag: str = "d", created_at: float = 1.0, **more: Any) -> RunRecord:
    """Return a new run of ``a`` and ``b``, which depends on it."""
    tasks = {"a": TaskRecord("a"), "b": TaskRecord("b", ("a",))}
    return RunRecord(run_id, dag, created_at, tasks, **more)


def running(task: TaskRecord, at: float = 2.0) -> TaskRecord:
    return task.start(at, at)


def succeeded(task: TaskRecord, result: object = None, at: float = 3.0) -> TaskRecord:
    return running(task, at - 1).succeed(at, result)


def failed(task: TaskRecord, error: str = "boom", at: float = 3.0) -> TaskRecord:
    return running(task, at - 1).fail(at, error, Reason.ERROR)


def save(store: Any, run: RunRecord, *tasks: TaskRecord) -> RunRecord:
    """Save tasks of a run and return the run with them."""
    store.save([Change(run, task) for task in tasks])
    return run._replace(tasks={**run.tasks, **{task.name: task for task in tasks}})


def finish(
    store: Any, run: RunRecord, result: object = 7, *, fail: bool = False, at: float = 9.0
) -> RunRecord:
    """End a run and all of its tasks, in one batch, and return it as it has ended."""
    tasks = dict(run.tasks)
    for name, task in run.tasks.items():
        begun = running(task, at - 1) if task.status == "PENDING" else task
        if begun.status == "RUNNING":
            tasks[name] = (
                begun.fail(at, "boom", Reason.ERROR) if fail else begun.succeed(at, result)
            )
    ended = run.finish(at, "why" if fail else None, tasks)
    store.save([*(Change(ended, task) for task in tasks.values()), Change(ended, None)])
    return ended


def without_results(run: RunRecord) -> RunRecord:
    """Return a run as a store shows it when nobody asks for results."""
    tasks = {
        name: task if isinstance(task.result, NoResult) else task._replace(result=NoResult.STORED)
        for name, task in run.tasks.items()
    }
    return run._replace(tasks=tasks)


def merged(
    run: RunRecord, kept: Mapping[str, TaskRecord], tasks: Iterable[TaskRecord]
) -> RunRecord:
    """Return a run with these tasks; where a result is STORED it is the kept one."""
    new = {
        task.name: task._replace(result=kept[task.name].result)
        if task.result is NoResult.STORED
        else task
        for task in tasks
    }
    return run._replace(tasks={**run.tasks, **new})
