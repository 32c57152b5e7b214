"""What flowrun asks of a state store: seven synchronous methods.

A store keeps and returns records; the rules by which they change are not its business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.state.records import EncodedResult, TaskRecord
    from flowrun.state.run_records import RunRecord, RunStatus, RunSummary


class Change(NamedTuple):
    """One record that has changed since it was last saved.

    Attributes:
        run: The run it belongs to. Its ``tasks`` are current only in a change that ends the run.
        task: The task's record as it now is, or ``None`` when the run has ended: then ``run``
            is the whole record of the ended run.
    """

    run: RunRecord
    task: TaskRecord | None


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


ALL_RUNS = RunQuery()


class CacheEntry(NamedTuple):
    """One result that later runs may take.

    Attributes:
        run_id: The run that made it.
        dag_name: The DAG.
        task_name: The task.
        finished_at: When the task succeeded, in epoch seconds.
    """

    run_id: str
    dag_name: str
    task_name: str
    finished_at: float


class CachedResult(NamedTuple):
    """A result that was found in the cache.

    Attributes:
        run_id: The run that made it.
        value: The value.
        stored: What the store keeps of it.
    """

    run_id: str
    value: object
    stored: object


@runtime_checkable
class StateStoreProtocol(Protocol):
    """Keep runs; every method is synchronous.

    ``blocking`` says whether a call may wait for a disk or a network. If so, one thread of the
    engine's makes all writing calls, in batches, and flowrun acknowledges a success only when
    :meth:`save` has returned. If not, :meth:`save` is called on the event loop's thread. Reading
    calls come from any thread, several at once. Records are immutable: keep them as they are.
    """

    blocking: bool

    def create_run(self, run: RunRecord) -> None:
        """Keep a new run with all its tasks, owned by this process until it has finished.

        A task that is already SUCCESS was carried over from ``run.resumed_from``, with its items:
        where a ``result`` is ``NoResult.STORED`` the store takes the ancestor's stored one along.
        A dead ancestor is ended in the same step, as after a crash.

        Raises:
            RunAliveError: The ancestor is alive, or a run that resumed it, or one that resumed
                that, and so on; or ``run.sole_of_dag``, and any run of its DAG is alive.
            AlreadyResumedError: ``run.sole_heir``, and another run has resumed the ancestor.
            StoreError: The run could not be kept.
        """
        ...

    def save(self, changes: Sequence[Change]) -> None:
        """Keep all these changes, or none of them. A record given twice: the last one counts.

        A record whose ``result`` is ``NoResult.STORED`` leaves the stored result as it is; one
        with a ``CarriedResult`` gets a copy of that item's. An item has the name of its task and
        a number of its own.

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

        Of a mapped task: the list of the kept results of its items, in their order.

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


@runtime_checkable
class ByteStoreProtocol(StateStoreProtocol, Protocol):
    """A store that keeps results as bytes, which flowrun makes where the result was made."""

    def encode_result(self, value: object, *, run_id: str, task_name: str) -> EncodedResult:
        """Return the bytes of a result, checked by reading them back where that may fail.

        Called from any thread, several at once. The record that :meth:`save` then gets holds
        the ``EncodedResult``; a record with a plain value is encoded by :meth:`save` itself.

        Raises:
            ResultNotStorableError: The value would not come back as what it is.
        """
        ...


@runtime_checkable
class CacheStoreProtocol(StateStoreProtocol, Protocol):
    """A store with a cache between runs; with any other store all tasks run.

    Its entries are the successes whose record has a ``cache`` without a ``run_id``. An entry
    replaces the one of the same key, and ends with its run.
    """

    def find_cached(self, key: str, since: float) -> CachedResult | None:
        """Return the result of a key, if it was made at this epoch time or later.

        Called from any thread, several at once.

        Raises:
            ResultNotReadableError: A result was written by another serializer, or is broken.
            DamagedRecordError: The entry, or its result, does not match its checksum.
        """
        ...

    def list_cached(
        self, dag_name: str | None = None, task_name: str | None = None
    ) -> list[CacheEntry]:
        """Return the entries, newest first."""
        ...

    def clear_cached(self, dag_name: str | None = None, task_name: str | None = None) -> int:
        """Forget entries, and return how many; their runs stay as they are."""
        ...
