"""How a run ends when a step of it has failed, and its state can no longer be trusted (R4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.errors import FlowrunError
from flowrun.failure import error_line
from flowrun.state import Reason, TaskStatus

if TYPE_CHECKING:
    from flowrun.scheduler.run_state import RunState
    from flowrun.state import RunRecord, TaskRecord


def ended_as_it_stands(
    state: RunState, run: RunRecord, reason: Reason, cause: str
) -> tuple[RunRecord, list[TaskRecord]]:
    """Return the record of a run as ended, and those of the tasks that end by this."""
    now = max(run.created_at, state.epoch)
    text = f"{reason}: {cause}"
    changed: list[TaskRecord] = []

    def ended(task: TaskRecord) -> TaskRecord:
        if task.status is TaskStatus.RUNNING:
            task = task.fail(now, text, reason)
        elif task.status is TaskStatus.PENDING:
            task = task.skip(now, reason, text)
        else:
            return task
        changed.append(task)
        return task

    items = {name: [*map(ended, items)] for name, items in state.table.items().items()}
    tasks = {name: ended(task) for name, task in state.records().items()}
    return run.finish(now, text, tasks)._replace(items=items), changed


def reason_of(error: BaseException) -> Reason:
    """Return why a run ends by an error from outside its tasks."""
    return Reason.RUN_CANCELLED if isinstance(error, KeyboardInterrupt) else Reason.RUN_BROKEN


def clear_error(error: BaseException, record: RunRecord) -> BaseException:
    """Return the error that a run raises which another error has ended."""
    if isinstance(error, FlowrunError | KeyboardInterrupt):
        return error
    clear = FlowrunError(
        f"run {record.run_id!r} of DAG {record.dag_name!r} ended because of an error inside"
        f" flowrun: {error_line(error)}"
    )
    clear.__cause__ = error
    return clear
