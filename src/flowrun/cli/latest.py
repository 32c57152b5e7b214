"""Which run is meant: by the start of its id, or by ``latest``, the newest that can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.cli.loading import UsageError
from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    ParameterError,
    RunAliveError,
    UnknownDagError,
    UnknownRunError,
    UnknownTaskError,
)
from flowrun.render import time_text
from flowrun.state import RunQuery, RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flowrun.engine import Engine
    from flowrun.scheduler import ResumePlan
    from flowrun.state import RunRecord, RunSummary, SqliteStateStore

LATEST = "latest"
_PAGE = 50
_MOST_NAMED = 8


def load_from_file(store: SqliteStateStore, run: str, dag: str | None) -> RunRecord:
    """Return the run that the command line means, without its results.

    Raises:
        UsageError: There is no latest run, or several ids begin so.
        UnknownRunError: There is no such run.
    """
    if run == LATEST:
        return store.load_run(latest_in_file(store, dag), results=False)
    try:
        return store.load_run(run, results=False)
    except UnknownRunError:
        runs = _newest_first(lambda before: store.list_runs(RunQuery(limit=_PAGE, before=before)))
        return store.load_run(_whole_id(runs, run), results=False)


def latest_in_file(store: SqliteStateStore, dag: str | None) -> str:
    """Return the id of the newest run in a file; runs started inside other runs do not count.

    Raises:
        UsageError: There is none.
    """
    for run in _newest_first(
        lambda before: store.list_runs(RunQuery(dag, limit=_PAGE, before=before))
    ):
        if run.started_by is None:
            return run.run_id
    msg = f"there is no latest run: {str(store.path)!r} has no runs{_of(dag)} yet"
    raise UsageError(msg)


def plan_for(
    engine: Engine,
    run: str,
    from_tasks: Sequence[str] | None,
    params: Mapping[str, object] | None = None,
) -> ResumePlan:
    """Return the plan for the run that the command line means, which is not ``latest``.

    Raises:
        UsageError: Several ids begin so.
        UnknownRunError: There is no such run.
    """
    try:
        return engine.plan_resume(run, from_tasks, params=params)
    except UnknownRunError:
        runs = _newest_first(lambda before: engine.list_runs(limit=_PAGE, before=before))
        return engine.plan_resume(_whole_id(runs, run), from_tasks, params=params)


def latest_to_resume(
    engine: Engine,
    place: str,
    dag: str | None,
    from_tasks: Sequence[str] | None,
    params: Mapping[str, object] | None = None,
) -> str:
    """Return the id of the newest run in which a resume would run something.

    Args:
        engine: Whose runs.
        place: The engine, as the command line names it.
        dag: Only runs of this DAG.
        from_tasks: Tasks that the resume is to run again; they make a run that has succeeded
            one that can be resumed.
        params: Parameters that it replaces; they do so, too.

    Raises:
        UsageError: There is none.
        UnknownDagError: ... because their DAGs are not the engine's.
        UnknownTaskError: ... because their DAGs do not have these tasks.
        ParameterError: ... or these parameters.
    """
    seen = 0
    unknown: UnknownDagError | UnknownTaskError | ParameterError | None = None
    for run in _newest_first(lambda before: engine.list_runs(dag, None, _PAGE, before)):
        if run.started_by is not None:
            continue
        seen += 1
        if run.alive or (run.status is RunStatus.SUCCESS and not (from_tasks or params)):
            continue
        try:
            plan = engine.plan_resume(run.run_id, from_tasks, params=params)
        except (AlreadyResumedError, RunAliveError):
            continue
        except (UnknownDagError, UnknownTaskError, ParameterError) as error:
            unknown = unknown or error
            continue
        if plan.to_run:
            return run.run_id
    if unknown is not None:
        raise unknown
    if not seen:
        msg = f"there is no latest run: the engine's store has no runs{_of(dag)} yet"
        raise UsageError(msg)
    msg = f"no run{_of(dag)} can be resumed: nothing is left to run. {run_again(place, 'RUN')}"
    raise UsageError(msg)


def run_again(place: str, run_id: str) -> str:
    """Say how to run tasks again that have succeeded."""
    return f"To run tasks again, name them: flowrun resume {place} {run_id} --from TASK"


def _whole_id(runs: Iterator[RunSummary], start: str) -> str:
    """Return the id of the only run whose id begins so."""
    found = [run for run in runs if run.run_id.startswith(start)]
    if not found:
        raise UnknownRunError(start)
    if len(found) == 1:
        return found[0].run_id
    lines = [
        f"  {run.run_id}  {time_text(run.created_at)}  {run.dag_name}"
        for run in found[:_MOST_NAMED]
    ]
    if len(found) > _MOST_NAMED:
        lines.append(f"  and {len(found) - _MOST_NAMED} more")
    msg = "\n".join([f"{len(found)} runs have ids that begin with {start!r}; type more:", *lines])
    raise UsageError(msg)


def _newest_first(
    page: Callable[[str | None], Sequence[RunSummary]],
) -> Iterator[RunSummary]:
    """Yield runs page by page; damaged ones are left out."""
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
        yield from runs
        before = runs[-1].run_id


def _of(dag: str | None) -> str:
    return "" if dag is None else f" of DAG {dag!r}"
