"""What is known of a whole run: an immutable value, and the line that a list shows of it."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from flowrun.state.records import TaskRecord, TaskStatus, TransitionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_status_of = attrgetter("status")


class RunStatus(StrEnum):
    """Where a whole run stands; equal to its own string."""

    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class RunRecord(NamedTuple):
    """One run of a DAG, or of a part of it; a value.

    Attributes:
        run_id: Its id.
        dag_name: The DAG.
        created_at: When it was created.
        tasks: Its tasks by name, in topological order; never changed in place.
        metadata: What the caller gave to ``run_once(metadata=...)``; JSON values.
        resumed_from: The run it continues.
        targets: The targets of a sub-graph run; ``None`` for a whole DAG.
        started_by: The run whose task or hook started this one.
        sole_heir: Whether no other run may have resumed ``resumed_from`` (a plain resume: it
            would repeat what the other has done).
        params: Its parameters; JSON values.
        overridden: By what a task was overridden in it: ``"value"`` or ``"function"``.
        sole_of_dag: Whether it must not start while another run of the DAG is alive.
        first_run_id: The run that the chain of resumes began with, while the run is carried out;
            no store keeps it.
        named: Tasks that a resume was told to run, whatever a branch has chosen; no store keeps it.
        items: The items of its mapped tasks that have records, by task, in their order.
        max_parallel: How many of its tasks could run at once.
        versions: Those of flowrun and of Python that created it.
        finished_at: When it ended; ``None`` while it has not.
        error: What ended the run from outside its tasks (cancelled, timed out, broken).
        alive: Whether a living process is working on it.
    """

    run_id: str
    dag_name: str
    created_at: float
    tasks: Mapping[str, TaskRecord]
    metadata: Mapping[str, object] = {}
    resumed_from: str | None = None
    targets: tuple[str, ...] | None = None
    started_by: str | None = None
    sole_heir: bool = False
    params: Mapping[str, object] = {}
    overridden: Mapping[str, str] = {}
    sole_of_dag: bool = False
    first_run_id: str | None = None
    max_parallel: int | None = None
    versions: Mapping[str, str] = {}
    named: tuple[str, ...] = ()
    finished_at: float | None = None
    error: str | None = None
    alive: bool = True
    items: Mapping[str, Sequence[TaskRecord]] = {}

    @property
    def records(self) -> list[TaskRecord]:
        """The records of all tasks and of their items."""
        return [*self.tasks.values(), *chain.from_iterable(self.items.values())]

    @property
    def status(self) -> RunStatus:
        """The run's status, derived from its tasks."""
        return run_status(map(_status_of, self.tasks.values()))

    def task_counts(self) -> Counter[TaskStatus]:
        """Return the number of tasks by status."""
        return Counter(map(_status_of, self.tasks.values()))

    def owed_teardowns(self) -> list[TaskRecord]:
        """Return the teardowns that have not succeeded though everything was set up for them."""
        return [
            task
            for task in self.tasks.values()
            if task.teardown_of
            and task.status not in (TaskStatus.SUCCESS, TaskStatus.OMITTED)
            and all(self.tasks[name].status is TaskStatus.SUCCESS for name in task.teardown_of)
        ]

    def finish(
        self, now: float, error: str | None = None, tasks: Mapping[str, TaskRecord] | None = None
    ) -> RunRecord:
        """Return the run as ended; every task must have ended before.

        Args:
            now: When.
            error: What ended it from outside its tasks.
            tasks: Its tasks as they have ended; those of this record by default.
        """
        if self.finished_at is not None:
            msg = f"run {self.run_id!r} has already finished"
            raise TransitionError(msg)
        return self._replace(
            finished_at=now, error=error, alive=False, tasks=self.tasks if tasks is None else tasks
        )

    def summary(self) -> RunSummary:
        """Return what a list of runs shows of this one."""
        counts = self.task_counts()
        return RunSummary(
            self.run_id,
            self.dag_name,
            run_status(counts),
            self.created_at,
            self.finished_at,
            self.error,
            dict(self.metadata),
            self.resumed_from,
            self.targets,
            self.alive,
            {str(status): number for status, number in counts.items()},
            self.started_by,
            dict(self.params),
        )

    def __repr__(self) -> str:
        """Show id and DAG."""
        return f"<RunRecord {self.run_id!r} of DAG {self.dag_name!r}>"


class RunSummary(NamedTuple):
    """One line in a list of runs; holds no task and no result.

    Attributes:
        status: ``SUCCESS``, ``FAILED`` or ``RUNNING``, by the same rule as in a report.
        alive: Whether a living process is working on it. A run that is ``RUNNING`` but not
            alive was left behind by a process that died.
        task_counts: Number of tasks by status, statuses with none left out.
        started_by: The run whose task or hook started this one.
        params: Its parameters.
    """

    run_id: str
    dag_name: str
    status: RunStatus
    created_at: float
    finished_at: float | None
    error: str | None
    metadata: dict[str, object]
    resumed_from: str | None
    targets: tuple[str, ...] | None
    alive: bool
    task_counts: dict[str, int]
    started_by: str | None = None
    params: Mapping[str, object] = {}


def run_status(statuses: Iterable[str]) -> RunStatus:
    """Apply the contract's rule: FAILED, else SUCCESS, else RUNNING.

    FAILED if any task is FAILED or SKIPPED; SUCCESS if all are SUCCESS; RUNNING otherwise. A task
    that is OMITTED counts as SUCCESS.
    """
    seen = set(statuses)
    if TaskStatus.FAILED in seen or TaskStatus.SKIPPED in seen:
        return RunStatus.FAILED
    if seen <= {TaskStatus.SUCCESS, TaskStatus.OMITTED}:
        return RunStatus.SUCCESS
    return RunStatus.RUNNING
