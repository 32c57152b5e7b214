"""What is known of a run, and the only rules by which it may change.

Pure state: no clock, no lock, no store. Points in time are epoch seconds (float, UTC).
"""

from __future__ import annotations

from collections import Counter
from enum import Enum, StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class TaskStatus(StrEnum):
    """Where a task of a run stands; equal to its own string."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class RunStatus(StrEnum):
    """Where a whole run stands; equal to its own string."""

    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


class Reason(StrEnum):
    """Why a task is FAILED or SKIPPED."""

    ERROR = "ERROR"
    TIMEOUT = "TIMEOUT"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"
    RUN_CANCELLED = "RUN_CANCELLED"
    RUN_TIMED_OUT = "RUN_TIMED_OUT"
    RUN_BROKEN = "RUN_BROKEN"
    OWNER_DIED = "OWNER_DIED"


class NoResult(Enum):
    """What stands in a record's ``result`` when the value itself does not (I2).

    ``ABSENT``: the task has not succeeded. ``RELEASED``: it has, and its result was let go
    (``retain_result=False``). ``STORED``: the store has it, this record does not.
    """

    ABSENT = "absent"
    RELEASED = "released"
    STORED = "stored"


class AttemptRecord(NamedTuple):
    """The trace of one attempt that ended (A6).

    Attributes:
        number: 1 for the first.
        ready_at: When it could have started (its parents done, its delay over).
        started_at: When its code started.
        finished_at: When it ended or was given up.
        error: Its error with traceback; ``None`` when it succeeded.
        reason: Why it failed.
        abandoned: Its thread, or its task on the loop, went on after it was given up.
    """

    number: int
    ready_at: float | None
    started_at: float | None
    finished_at: float | None
    error: str | None
    reason: Reason | None
    abandoned: bool


class TransitionError(RuntimeError):
    """A change that the state machine does not allow: a mistake inside flowrun."""


# Looked up for every task: a global name costs less than an attribute of an enum.
_PENDING, _RUNNING, _SUCCESS = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCESS
_ABSENT = NoResult.ABSENT
_status_of = attrgetter("status")


class TaskRecord:
    """One task of one run.

    ``PENDING -> RUNNING -> SUCCESS``, ``RUNNING -> FAILED (-> PENDING)``,
    ``PENDING -> SKIPPED``, and ``RUNNING -> PENDING`` where the attempt's code never began;
    every other change is a :class:`TransitionError`.

    Attributes:
        name: The task.
        deps: Its dependencies in this run, in declared order.
        status: Where it stands.
        attempt: Number of its last attempt, 0 before the first.
        ready_at: When that attempt could have started.
        started_at: When that attempt's code started.
        finished_at: When the task ended.
        error: Error text with traceback of the last attempt, or why it was skipped.
        reason: Why it is FAILED or SKIPPED.
        abandoned: Whether its last attempt went on unseen after it was given up.
        result: The value, or a :class:`NoResult`.
        earlier: The attempts before the last one.
    """

    __slots__ = (
        "abandoned",
        "attempt",
        "deps",
        "earlier",
        "error",
        "finished_at",
        "name",
        "ready_at",
        "reason",
        "result",
        "started_at",
        "status",
    )

    def __init__(self, name: str, deps: tuple[str, ...] = ()) -> None:
        self.name = name
        self.deps = deps
        self.status = _PENDING
        self.attempt = 0
        self.ready_at: float | None = None
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.error: str | None = None
        self.reason: Reason | None = None
        self.abandoned = False
        self.result: object = _ABSENT
        self.earlier: tuple[AttemptRecord, ...] = ()

    def start(self, now: float, ready_at: float) -> None:
        """PENDING -> RUNNING: the next attempt begins."""
        if self.status is not _PENDING:
            self._refuse("start")
        self.ready_at = ready_at
        self.started_at = now
        if self.attempt:
            # A retry's record shows its own attempt; the one before stands in ``earlier``.
            self.error = None
            self.reason = None
            self.finished_at = None
            self.abandoned = False
        self.attempt += 1
        self.status = _RUNNING  # last: another thread may be copying it, status first

    def withdraw(self) -> None:
        """RUNNING -> PENDING: the attempt is none, for its code has not begun and never will."""
        if self.status is not _RUNNING:
            self._refuse("withdraw")
        self.attempt -= 1
        self.started_at = None
        self.status = _PENDING

    def succeed(self, now: float, result: object) -> None:
        """RUNNING -> SUCCESS."""
        if self.status is not _RUNNING:
            self._refuse("succeed")
        self.finished_at = now
        self.result = result
        self.status = _SUCCESS

    def fail(self, now: float, error: str, reason: Reason, *, abandoned: bool = False) -> None:
        """RUNNING -> FAILED."""
        if self.status is not TaskStatus.RUNNING:
            self._refuse("fail")
        self.finished_at = now
        self.error = error
        self.reason = reason
        self.abandoned = abandoned
        self.status = TaskStatus.FAILED

    def amend(self, error: str) -> None:
        """Say more about a failure than was known when it was recorded."""
        if self.status is not TaskStatus.FAILED:
            self._refuse("amend")
        self.error = error

    def retry(self) -> None:
        """FAILED -> PENDING: another attempt will follow."""
        if self.status is not TaskStatus.FAILED:
            self._refuse("retry")
        self.earlier = (*self.earlier, self._last_attempt())
        self.status = TaskStatus.PENDING

    def skip(self, now: float, reason: Reason, why: str) -> None:
        """PENDING -> SKIPPED: it will not run (again)."""
        if self.status is not TaskStatus.PENDING:
            self._refuse("skip")
        self.finished_at = now
        self.reason = reason
        self.error = why
        self.status = TaskStatus.SKIPPED

    def release(self) -> None:
        """Let the result go; the task stays SUCCESS."""
        if self.status is not TaskStatus.SUCCESS:
            self._refuse("release")
        self.result = NoResult.RELEASED

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """Every attempt that has ended, the first one first."""
        if self.attempt > len(self.earlier) and self.status in (
            TaskStatus.SUCCESS,
            TaskStatus.FAILED,
        ):
            return (*self.earlier, self._last_attempt())
        return self.earlier

    def copy(self) -> TaskRecord:
        """Return a snapshot that later changes do not touch (the result is shared)."""
        twin = TaskRecord.__new__(TaskRecord)  # every field is set below
        twin.status = self.status
        twin.name = self.name
        twin.deps = self.deps
        twin.attempt = self.attempt
        twin.ready_at = self.ready_at
        twin.started_at = self.started_at
        twin.finished_at = self.finished_at
        twin.error = self.error
        twin.reason = self.reason
        twin.abandoned = self.abandoned
        twin.result = self.result
        twin.earlier = self.earlier
        return twin

    def _last_attempt(self) -> AttemptRecord:
        return AttemptRecord(
            self.attempt,
            self.ready_at,
            self.started_at,
            self.finished_at,
            self.error,
            self.reason,
            self.abandoned,
        )

    def _refuse(self, change: str) -> NoReturn:
        msg = f"task {self.name!r} cannot {change} while it is {self.status}"
        raise TransitionError(msg)

    def __repr__(self) -> str:
        """Show name and status; never the result, which may be large or secret."""
        return f"<TaskRecord {self.name!r} {self.status} attempt={self.attempt}>"


Preserved: TypeAlias = "Mapping[str, Callable[[], object]]"
"""Results of dependencies as they once were, by their names; each call makes one anew."""


class RunRecord:
    """One run of a DAG, or of a part of it.

    Attributes:
        run_id: Its id.
        dag_name: The DAG.
        created_at: When it was created.
        finished_at: When it ended; ``None`` while it has not.
        error: What ended the run from outside its tasks (cancelled, timed out, broken).
        metadata: What the caller gave to ``run_once(metadata=...)``; JSON values.
        resumed_from: The run it continues.
        sole_heir: Whether no other run may have resumed that one (a plain resume: it would
            repeat what the other has done).
        targets: The targets of a sub-graph run; ``None`` for a whole DAG.
        tasks: Its tasks by name, in topological order.
        inputs: What failed tasks had been given and might have changed, by their names; only
            in a store that holds the records themselves.
        alive: Whether somebody is still working on it (not only that it has not ended).
    """

    __slots__ = (
        "alive",
        "created_at",
        "dag_name",
        "error",
        "finished_at",
        "inputs",
        "metadata",
        "resumed_from",
        "run_id",
        "sole_heir",
        "targets",
        "tasks",
    )

    def __init__(  # noqa: PLR0913 - a record is made of its fields
        self,
        run_id: str,
        dag_name: str,
        created_at: float,
        tasks: Mapping[str, TaskRecord],
        *,
        metadata: Mapping[str, object] | None = None,
        resumed_from: str | None = None,
        targets: tuple[str, ...] | None = None,
    ) -> None:
        self.run_id = run_id
        self.dag_name = dag_name
        self.created_at = created_at
        self.tasks = dict(tasks)
        self.inputs: dict[str, Preserved] = {}
        self.metadata: dict[str, object] = dict(metadata or {})
        self.resumed_from = resumed_from
        self.targets = targets
        self.finished_at: float | None = None
        self.error: str | None = None
        self.alive = True
        self.sole_heir = False

    @property
    def status(self) -> RunStatus:
        """The run's status, derived from its tasks."""
        return run_status(map(_status_of, self.tasks.values()))

    @property
    def end(self) -> tuple[float | None, str | None, bool]:
        """``finished_at``, ``error`` and ``alive``, as they belong together.

        Another thread may be ending it just now. Whoever reads its tasks after this finds them
        as they are in the end, if it has ended.
        """
        alive, finished_at = self.alive, self.finished_at
        return (None, None, alive) if finished_at is None else (finished_at, self.error, False)

    def task_counts(self) -> Counter[TaskStatus]:
        """Return the number of tasks by status."""
        return Counter(map(_status_of, self.tasks.values()))

    def finish(self, now: float, error: str | None = None) -> None:
        """Mark the run as ended; every task must have ended before."""
        if self.finished_at is not None:
            msg = f"run {self.run_id!r} has already finished"
            raise TransitionError(msg)
        self.error = error
        self.finished_at = now
        self.alive = False

    def summary(self) -> RunSummary:
        """Return what a list of runs shows of this one."""
        finished_at, error, alive = self.end  # before its tasks: see there
        counts = self.task_counts()
        return RunSummary(
            self.run_id,
            self.dag_name,
            run_status(counts),
            self.created_at,
            finished_at,
            error,
            dict(self.metadata),
            self.resumed_from,
            self.targets,
            alive,
            {str(status): number for status, number in counts.items()},
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


def run_status(statuses: Iterable[str]) -> RunStatus:
    """Apply the contract's rule: FAILED, else SUCCESS, else RUNNING.

    FAILED if any task is FAILED or SKIPPED; SUCCESS if all are SUCCESS; RUNNING otherwise.
    """
    seen = set(statuses)
    if TaskStatus.FAILED in seen or TaskStatus.SKIPPED in seen:
        return RunStatus.FAILED
    if seen <= {TaskStatus.SUCCESS}:
        return RunStatus.SUCCESS
    return RunStatus.RUNNING
