"""What waits to be saved, which of it an error is about, and what its runs are told."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from flowrun.errors import (
    DamagedRecordError,
    FlowrunError,
    ResultNotStorableError,
    RunLostError,
    StoreError,
)
from flowrun.failure import error_line
from flowrun.state.protocol import Successes
from flowrun.state.records import NoResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrun.scheduler.inbox import Inbox
    from flowrun.state.protocol import Change, Success
    from flowrun.state.records import RunRecord

Acknowledgement: TypeAlias = "Callable[[Exception | None], object]"
SuccessesSaved: TypeAlias = "Callable[[Sequence[Success], Exception | None], object]"


class Receipt(NamedTuple):
    """What a run's inbox is told: call each of ``thens`` with the error, or with ``None``."""

    thens: list[Acknowledgement]
    error: Exception | None


class Entry(NamedTuple):
    """Changes that somebody waits for, or nobody."""

    changes: Sequence[Change]
    inbox: Inbox
    then: Acknowledgement
    silent: bool


class Group(NamedTuple):
    """Successes of one run, each of which can be refused by itself."""

    successes: Successes
    inbox: Inbox
    then: SuccessesSaved


def changes_of(entry: Entry | Group) -> Sequence[Change]:
    """Return what is to be saved, as any store takes it."""
    return entry.changes if isinstance(entry, Entry) else entry.successes.changes()


def run_of(entry: Entry | Group) -> RunRecord:
    """Return the run that an entry is about."""
    return entry.changes[0].run if isinstance(entry, Entry) else entry.successes.run


def receipts_of(
    entries: Sequence[Entry | Group], error: Exception | None
) -> list[tuple[Inbox, Receipt]]:
    """Return the acknowledgement of entries: one message for each inbox."""
    told: dict[Inbox, list[Acknowledgement]] = {}
    for entry in entries:
        if isinstance(entry, Group):
            then: Acknowledgement = partial(entry.then, entry.successes.ended)
        elif error is None and entry.silent:
            continue
        else:
            then = entry.then
        told.setdefault(entry.inbox, []).append(then)
    return [(inbox, Receipt(thens, error)) for inbox, thens in told.items()]


def parted(entry: Entry | Group, error: ResultNotStorableError) -> list[Entry | Group]:
    """Return an entry, without the success that was refused and with that beside it."""
    if isinstance(entry, Entry) or entry.successes.run.run_id != error.run_id:
        return [entry]
    run, tasks, ended = entry.successes
    others = [each for each in ended if tasks[each[0]].name != error.task_name]
    refused = [each for each in ended if tasks[each[0]].name == error.task_name]
    return [
        entry._replace(successes=Successes(run, tasks, part)) for part in (others, refused) if part
    ]


def by_run(entries: Sequence[Entry | Group]) -> list[list[Entry | Group]]:
    """Return the entries of each run, in their order."""
    runs: dict[str, list[Entry | Group]] = {}
    for entry in entries:
        runs.setdefault(run_of(entry).run_id, []).append(entry)
    return list(runs.values())


def said(failure: BaseException, run: RunRecord, done: str = "saved") -> Exception:
    """Return what a run is told of a failure: one that says that it was the store's.

    Args:
        failure: What the store has raised.
        run: Of which run it is.
        done: What could not be done with it.
    """
    if isinstance(failure, FlowrunError):
        return failure
    clear = StoreError(
        f"run {run.run_id!r} of DAG {run.dag_name!r} could not be {done}: the state store failed"
        f" with {error_line(failure)}"
    )
    clear.__cause__ = failure
    return clear


def is_about(entry: Entry | Group, failure: BaseException) -> bool:
    """Return whether an error names an entry as the one that it is about."""
    if isinstance(failure, DamagedRecordError | RunLostError):
        return run_of(entry).run_id == failure.run_id
    if not isinstance(failure, ResultNotStorableError):
        return False
    if isinstance(entry, Group):
        run, tasks, ended = entry.successes
        return run.run_id == failure.run_id and tasks[ended[0][0]].name == failure.task_name
    return any(
        change.run.run_id == failure.run_id
        and change.task is not None
        and change.task.name == failure.task_name
        # The task's RUNNING row may be in the same batch; it is not what was refused.
        and type(change.task.result) is not NoResult
        for change in entry.changes
    )
