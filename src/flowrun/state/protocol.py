"""What flowrun asks of a state store: seven synchronous methods.

A store keeps and returns records; the rules by which they change are not its business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.state.records import RunRecord, RunStatus, RunSummary, TaskRecord


class Change(NamedTuple):
    """One record that has changed since it was last saved.

    Attributes:
        run: The run it belongs to.
        task: The task's record as it now is, or ``None`` when the run's own fields
            (``finished_at``, ``error``) have changed.
    """

    run: RunRecord
    task: TaskRecord | None


Success: TypeAlias = "tuple[int, float, object]"
"""A task's place in its run, when it ended, and what it returned."""


class Successes(NamedTuple):
    """Tasks of a run that have succeeded at their first attempt.

    What most changes are, with no object made for each.

    Attributes:
        run: The run.
        tasks: All its tasks in their order; those that have succeeded are still RUNNING in it,
            and nobody changes them before this has been saved.
        ended: What they have come to; each result is kept.
    """

    run: RunRecord
    tasks: Sequence[TaskRecord]
    ended: Sequence[Success]

    def changes(self) -> list[Change]:
        """Return the same as changes."""
        run, tasks, ended = self
        return [Change(run, succeeded(tasks[number], now, value)) for number, now, value in ended]


def succeeded(task: TaskRecord, now: float, result: object) -> TaskRecord:
    """Return a snapshot of a task that is RUNNING, as it is when it has succeeded."""
    snapshot = task.copy()
    snapshot.succeed(now, result)
    return snapshot


class RunQuery(NamedTuple):
    """Which runs to list, newest first.

    Attributes:
        dag_name: Only runs of this DAG.
        status: Only runs of this status.
        resumed_from: Only runs that resumed this one directly.
        limit: At most so many; ``None`` for all.
        before: Only runs older than this run id, or created before this epoch time.
    """

    dag_name: str | None = None
    status: RunStatus | None = None
    resumed_from: str | None = None
    limit: int | None = None
    before: str | float | None = None


class StateStoreProtocol(Protocol):
    """Keep runs; every method is synchronous, and called from one thread at a time or many.

    ``blocking`` says whether a call may wait for a disk or a network. If so, flowrun writes
    in batches from a thread of its own, or where there is only one thing to write from the
    thread that has run the task, never from two at once, and acknowledges a success only when
    :meth:`save` has returned. If not, :meth:`save` is called at once on the event loop's thread.
    """

    blocking: bool

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run with all its tasks, owned by this process until it has finished.

        A task that is already SUCCESS was carried over from ``run.resumed_from``: where its
        ``result`` is ``NoResult.STORED`` the store takes the ancestor's stored result along.
        A dead ancestor is ended in the same step, as after a crash.

        Raises:
            RunAliveError: The ancestor is alive, or a run that resumed it, or one that resumed
                that, and so on.
            AlreadyResumedError: ``run.sole_heir``, and another run has resumed the ancestor.
            StoreError: The run could not be kept.
        """
        ...

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none of them. A record given twice: the last one counts.

        A record whose ``result`` is ``NoResult.STORED`` leaves the stored result as it is.

        A change without a task ends the run: the run's ``finished_at`` is set, its owner lets
        it go.

        Raises:
            ResultNotStorableError: A result does not fit the serializer; nothing was kept.
            RunLostError: The run is not this process's any more; nothing was kept.
            StoreError: The changes could not be kept.
        """
        ...

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        """Return a run as last saved; without ``results`` a kept result is ``STORED``.

        Raises:
            UnknownRunError: There is no such run.
            DamagedRecordError: A row of it does not match its checksum.
        """
        ...

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        """Return the kept results of these tasks; those without one are left out.

        Raises:
            UnknownRunError: There is no such run.
            ResultNotReadableError: A result was written by another serializer, or is broken.
        """
        ...

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        """Return the runs that match, newest first."""
        ...

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        """Delete finished runs and return how many.

        Args:
            keep_last: Keep this many of the newest finished runs of each DAG.
            created_before: Delete only runs created before this epoch time.
        """
        ...

    def close(self) -> None:
        """Give up every resource; closing twice is fine."""
        ...


class QuickStore(Protocol):
    """What a store of flowrun's own can do besides; no other store need have it."""

    def save_all(self, changes: Sequence[Change], successes: Sequence[Successes]) -> None:
        """Keep changes and successes as :meth:`StateStoreProtocol.save` keeps changes.

        The successes come after the changes.
        """
        ...

    def save_in_thread(self, successes: Successes) -> bool:
        """Save successes as :meth:`save_all` would, if all have short results.

        Returns:
            Whether it was saved; if not, nothing was, and :meth:`save_all` finds out why.
        """
        ...

    def save_on_loop(self, successes: Successes) -> bool:
        """Save a few successes in a thread that must not wait.

        It waits for nobody's lock, and for the disk only where the store promises to survive
        power loss.

        Returns:
            Whether they were saved; if not, nothing was, and :meth:`save_all` finds out why.
        """
        ...
