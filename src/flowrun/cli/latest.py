"""``latest`` instead of a run's id: the newest run that a command can use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.cli.loading import UsageError
from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    RunAliveError,
    UnknownDagError,
    UnknownTaskError,
)
from flowrun.state import RunQuery, RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flowrun.engine import Engine
    from flowrun.scheduler import ResumePlan
    from flowrun.state import RunSummary, SqliteStateStore

LATEST = "latest"
_PAGE = 50


def latest_in_file(store: SqliteStateStore, dag: str | None) -> str:
    """Return the id of the newest run in a file; runs started inside other runs do not count.

    Raises:
        UsageError: There is none.
    """

    def page(before: str | None) -> Sequence[RunSummary]:
        return store.list_runs(RunQuery(dag, None, None, _PAGE, before))

    for run in _newest_first(page):
        return run.run_id
    msg = f"there is no latest run: {str(store.path)!r} has no runs{_of(dag)} yet"
    raise UsageError(msg)


def latest_to_resume(
    engine: Engine, place: str, dag: str | None, from_tasks: Sequence[str] | None
) -> str:
    """Return the id of the newest run in which a resume would run something.

    Args:
        engine: Whose runs.
        place: The engine, as the command line names it.
        dag: Only runs of this DAG.
        from_tasks: Tasks that the resume is to run again; they make a run that has succeeded
            one that can be resumed.

    Raises:
        UsageError: There is none.
        UnknownDagError: ... because their DAGs are not the engine's.
        UnknownTaskError: ... because their DAGs do not have these tasks.
    """

    def page(before: str | None) -> Sequence[RunSummary]:
        return engine.list_runs(dag, None, _PAGE, before)

    seen = 0
    unknown: UnknownDagError | UnknownTaskError | None = None
    for run in _newest_first(page):
        seen += 1
        if run.alive or (run.status is RunStatus.SUCCESS and not from_tasks):
            continue
        try:
            plan = engine.plan_resume(run.run_id, from_tasks)
        except (AlreadyResumedError, RunAliveError):
            continue
        except (UnknownDagError, UnknownTaskError) as error:
            unknown = unknown or error
            continue
        if plan.to_run:
            return run.run_id
    if unknown is not None:
        raise unknown
    if not seen:
        msg = f"there is no latest run: the engine's store has no runs{_of(dag)} yet"
        raise UsageError(msg)
    msg = f"no run{_of(dag)} can be resumed: nothing is left to run. {_run_again(place, 'RUN')}"
    raise UsageError(msg)


def check_left_to_run(plan: ResumePlan, place: str) -> None:
    """Refuse a resume in which nothing would run.

    Raises:
        UsageError: Every task of the run has succeeded.
    """
    if not plan.to_run:
        msg = (
            f"run {plan.run_id!r} of DAG {plan.dag_name!r} has nothing left to run: all its tasks"
            f" have succeeded. {_run_again(place, plan.run_id)}"
        )
        raise UsageError(msg)


def already_resumed(place: str, run_id: str) -> UsageError:
    """Return the error for a run that a later run has finished."""
    return UsageError(
        f"run {run_id!r} cannot be resumed: a run that resumed it has finished it."
        f" {_run_again(place, run_id)}"
    )


def _run_again(place: str, run_id: str) -> str:
    return f"To run tasks again, name them: flowrun resume {place} {run_id} --from TASK"


def _newest_first(
    page: Callable[[str | None], Sequence[RunSummary]],
) -> Iterator[RunSummary]:
    """Yield the runs that nobody started inside another run; damaged ones are left out."""
    before: str | None = None
    while True:
        try:
            runs: Sequence[RunSummary] = page(before)
        except DamagedRecordError as error:
            runs = error.others
            if not runs:
                raise
        if not runs:
            return
        for run in runs:
            if getattr(run, "started_by", None) is None:
                yield run
        before = runs[-1].run_id


def _of(dag: str | None) -> str:
    return "" if dag is None else f" of DAG {dag!r}"
