"""The commands that work on a SQLite file of runs: runs, report, prune."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flowrun.cli.engine_commands import FAILED, SUCCESS
from flowrun.cli.latest import LATEST, latest_in_file
from flowrun.cli.loading import UsageError
from flowrun.errors import DamagedRecordError
from flowrun.escape import for_terminal
from flowrun.render import report_html, stored_previews
from flowrun.report import build_report
from flowrun.state import RunQuery, RunStatus

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from flowrun.cli.output import Output
    from flowrun.state import RunSummary, SqliteStateStore


def list_runs(options: argparse.Namespace, output: Output) -> int:
    """``flowrun runs``."""
    status = None if options.status is None else RunStatus(options.status)
    damaged: DamagedRecordError | None = None
    with closing(_open_to_read(options.db)) as store:
        try:
            runs = store.list_runs(RunQuery(options.dag, status, None, options.limit, None))
        except DamagedRecordError as error:
            runs, damaged = list(error.others), error
    if options.json:
        output.say_json([run._asdict() for run in runs])
    else:
        for run in runs:
            output.say(_run_line(run))
        if not runs and damaged is None:
            output.say("no runs")
    if damaged is not None:
        raise damaged
    return SUCCESS


def show_report(options: argparse.Namespace, output: Output) -> int:
    """``flowrun report``."""
    if options.dag is not None and options.run != LATEST:
        msg = f"--dag chooses among runs, so it goes with {LATEST!r}; leave one of them out"
        raise UsageError(msg)
    with closing(_open_to_read(options.db)) as store:
        run_id = options.run
        if run_id == LATEST:
            run_id = latest_in_file(store, options.dag)
        report = build_report(store.load_run(run_id, results=False))
        stored = stored_previews(report, store.stored_results) if options.html else {}
    if options.html is not None:
        options.html.write_text(report_html(report, stored=stored), encoding="utf-8")
        output.say(for_terminal(str(options.html)))
    elif options.json:
        output.say_json(report)
    else:
        output.say_report(report)
    return FAILED if report["status"] == "FAILED" else SUCCESS


def prune_runs(options: argparse.Namespace, output: Output) -> int:
    """``flowrun prune``."""
    if options.keep_last is None and options.older_than_s is None:
        msg = "say what to delete: --keep-last N, --older-than-s SECONDS"
        raise UsageError(msg)
    before = None
    if options.older_than_s is not None:
        before = datetime.now(tz=UTC).timestamp() - options.older_than_s
    from flowrun.state import SqliteStateStore  # noqa: PLC0415 - loads sqlite3

    _check_exists(options.db)
    with closing(SqliteStateStore(options.db)) as store:
        deleted = store.prune_runs(keep_last=options.keep_last, created_before=before)
    if options.json:
        output.say_json({"deleted": deleted})
    else:
        output.say(f"{deleted} run(s) deleted")
    return SUCCESS


def _open_to_read(path: Path) -> SqliteStateStore:
    """Open a store for reading; another process may write to it meanwhile.

    Raises:
        UsageError: There is no such file.
    """
    from flowrun.state import SqliteStateStore  # noqa: PLC0415 - loads sqlite3

    _check_exists(path)
    return SqliteStateStore.open_readonly(path)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        msg = f"there is no file {str(path)!r}"
        raise UsageError(msg)


def _run_line(run: RunSummary) -> str:
    started = datetime.fromtimestamp(run.created_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    took = "" if run.finished_at is None else f"{run.finished_at - run.created_at:.1f} s"
    counts = ", ".join(f"{number} {status.lower()}" for status, number in run.task_counts.items())
    return for_terminal(
        f"{run.run_id}  {started}  {run.status.value:7}  {took:>9}  {run.dag_name}  {counts}"
    )
