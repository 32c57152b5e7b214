"""The commands that work on a SQLite file of runs: runs, report, error, result, logs, cache."""

from __future__ import annotations

import pprint
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from flowrun.cli.engine_commands import FAILED, SUCCESS, check_latest
from flowrun.cli.latest import LATEST, load_from_file
from flowrun.cli.loading import UsageError
from flowrun.cli.output import complain
from flowrun.errors import (
    DamagedRecordError,
    ResultNotReadableError,
    UnknownRunError,
    UnknownTaskError,
)
from flowrun.escape import for_terminal
from flowrun.render import (
    counted,
    duration_text,
    explain,
    index_html,
    log_text,
    params_text,
    report_html,
    stored_previews,
    summary_word,
    tally_text,
    time_text,
    usual_s,
)
from flowrun.report import build_report
from flowrun.state import JsonSerializer, RunQuery, RunStatus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from flowrun.cli.output import Output
    from flowrun.report import AttemptReport, RunReport
    from flowrun.state import RunSummary, SqliteStateStore

_OF_LOGS = ("attempt", "status", "logs", "logs_cut")
_MOST_LIKE_IT = 11
"""How many runs of a DAG show how long it usually takes."""


def list_runs(options: argparse.Namespace, output: Output) -> int:
    """``flowrun runs``."""
    with closing(_open_to_read(options.db)) as store:
        runs, damaged = _listed(store, RunQuery(options.dag, options.status, limit=options.limit))
    if options.json:
        output.say_json([run._asdict() for run in runs])
    elif runs:
        headings = ["Run", "Started", "Outcome", "Took", "DAG", "Tasks"]
        if any(run.params for run in runs):
            headings.append("Parameters")
        output.say_table(headings, [_row(run)[: len(headings)] for run in runs])
    elif damaged is None:
        output.say("no runs")
    if damaged is not None:
        raise damaged
    return SUCCESS


def _row(run: RunSummary) -> tuple[str, ...]:
    took = "" if run.finished_at is None else duration_text(run.finished_at - run.created_at)
    return (
        run.run_id,
        time_text(run.created_at).removesuffix(" UTC"),
        summary_word(run),
        took,
        run.dag_name,
        tally_text(run.task_counts),
        params_text(run.params),
    )


def show_report(options: argparse.Namespace, output: Output) -> int:
    """``flowrun report``."""
    check_latest(options)
    if options.json and options.html is not None:
        msg = "--json and --html are two ways to report; leave one of them out"
        raise UsageError(msg)
    if options.failed and options.html is not None:
        msg = (
            "--failed is for the table and for --json, and a page shows the failures first; leave"
            " one of --failed and --html out"
        )
        raise UsageError(msg)
    with closing(_open_to_read(options.db)) as store:
        if options.html is not None and options.run is None and options.html.suffix != ".html":
            return _write_pages(store, options, output)
        report = build_report(load_from_file(store, options.run or LATEST, options.dag))
        usual = _usual(store, report)
        if options.html is not None:
            page = options.html
            if page.is_dir():
                page /= _page_of(report["run_id"])
            _write_page(store, report, page)
            output.say(for_terminal(str(page)))
            return SUCCESS
    if options.json:
        if options.failed:
            tasks = {
                name: task for name, task in report["tasks"].items() if task["status"] == "FAILED"
            }
            report = {**report, "tasks": tasks}
        output.say_json(report)
    else:
        output.say_report(report, usual, failures_only=options.failed)
    return SUCCESS


def show_explanation(options: argparse.Namespace, output: Output) -> int:
    """``flowrun explain``."""
    check_latest(options)
    with closing(_open_to_read(options.db)) as store:
        report = build_report(load_from_file(store, options.run or LATEST, options.dag))
    explained = explain(report, options.task)
    if options.json:
        parts = [part._asdict() for part in explained.parts]
        output.say_json({**explained._asdict(), "line": explained.line, "parts": parts})
    else:
        output.say(str(explained))
    return SUCCESS


def _write_pages(store: SqliteStateStore, options: argparse.Namespace, output: Output) -> int:
    """Write an index of the newest runs and the page of each into a folder."""
    folder: Path = options.html
    runs, damaged = _listed(store, RunQuery(options.dag, limit=options.limit))
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        report = build_report(store.load_run(run.run_id, results=False))
        _write_page(store, report, folder / _page_of(run.run_id))
    pages = {run.run_id: quote(_page_of(run.run_id)) for run in runs}
    index = folder / "index.html"
    index.write_text(index_html(runs, pages, store.path.name), encoding="utf-8")
    output.say(for_terminal(str(index)))
    if damaged is not None:
        raise damaged
    return SUCCESS


def _write_page(store: SqliteStateStore, report: RunReport, path: Path) -> None:
    stored = stored_previews(report, store.stored_results)
    html = report_html(report, stored=stored, usual=_usual(store, report))
    path.write_text(html, encoding="utf-8")


def _page_of(run_id: str) -> str:
    """Return the name of a run's page; an id may hold whatever a file's name must not."""
    return f"{quote(run_id, safe='')}.html"


def _usual(store: SqliteStateStore, report: RunReport) -> float | None:
    query = RunQuery(report["dag_name"], RunStatus.SUCCESS, limit=_MOST_LIKE_IT)
    return usual_s(report, _listed(store, query)[0])


def show_error(options: argparse.Namespace, output: Output) -> int:
    """``flowrun error``."""
    check_latest(options)
    with closing(_open_to_read(options.db)) as store:
        run = load_from_file(store, options.run, options.dag)
    task = run.tasks.get(options.task)
    if task is None:
        raise UnknownTaskError(run.dag_name, options.task, run.tasks)
    errors = [attempt.error for attempt in task.attempts if attempt.error is not None]
    error = task.error or (errors[-1] if errors else None)
    if error is None:
        complain(f"task {task.name!r} of run {run.run_id!r} has no error")
        return FAILED
    output.say(for_terminal(error, multiline=True))
    return SUCCESS


def show_result(options: argparse.Namespace, output: Output) -> int:
    """``flowrun result``."""
    check_latest(options)
    with closing(_open_to_read(options.db)) as store:
        run = load_from_file(store, options.run, options.dag)
        if options.task not in run.tasks:
            raise UnknownTaskError(run.dag_name, options.task, run.tasks)
        try:
            _, size, _ = store.stored_result(run.run_id, options.task, 0)
        except UnknownRunError:
            complain(f"task {options.task!r} of run {run.run_id!r} has no result in the file")
            return FAILED
        serializer, size, data = store.stored_result(run.run_id, options.task, size)
    if serializer != JsonSerializer().name:
        complain(
            f"the result of task {options.task!r} is kept by the serializer {serializer!r}"
            f" ({counted(size, 'byte')}), and only JSON is read here; read it in Python, with"
            " engine.get_run_report"
        )
        return FAILED
    if options.json:
        output.say(data.decode())
        return SUCCESS
    try:
        value = JsonSerializer().deserialize(data)
    except ResultNotReadableError as error:
        complain(f"{error}; to print its JSON text add --json")
        return FAILED
    output.say(for_terminal(pprint.pformat(value), multiline=True))
    return SUCCESS


def show_logs(options: argparse.Namespace, output: Output) -> int:
    """``flowrun logs``."""
    check_latest(options)
    with closing(_open_to_read(options.db)) as store:
        run = load_from_file(store, options.run, options.dag)
    if options.task not in run.tasks:
        raise UnknownTaskError(run.dag_name, options.task, run.tasks)
    task = build_report(run)["tasks"][options.task]
    attempts: list[tuple[int | None, AttemptReport]] = [(None, one) for one in task["attempts"]]
    for each in task["items"] or ():
        attempts += [(each["item"], one) for one in each["attempts"]]
    if options.json:
        output.say_json(
            [
                {"item": item, **{key: value for key, value in one.items() if key in _OF_LOGS}}
                for item, one in attempts
            ]
        )
        return SUCCESS
    if not any(attempt["logs"] for _, attempt in attempts):
        complain(
            f"nothing is kept of what task {options.task!r} of run {run.run_id!r} has logged; an"
            " engine keeps it with config=SchedulerConfig(keep_logs=True)"
        )
        return FAILED
    for item, attempt in attempts:
        if len(attempts) > 1:
            of_item = "" if item is None else f"item {item}, "
            output.say(f"{of_item}attempt {attempt['attempt']}:")
        if attempt["logs"]:
            output.say(for_terminal(log_text(attempt), multiline=True))
    return SUCCESS


def prune_runs(options: argparse.Namespace, output: Output) -> int:
    """``flowrun prune``."""
    if options.keep_last is None and options.older_than_s is None:
        msg = "say what to delete: --keep-last N, --older-than DURATION"
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
        output.say(f"{counted(deleted, 'run')} deleted")
    return SUCCESS


def manage_cache(options: argparse.Namespace, output: Output) -> int:
    """``flowrun cache``."""
    return (_clear_cache if options.action == "clear" else _list_cache)(options, output)


def _list_cache(options: argparse.Namespace, output: Output) -> int:
    with closing(_open_to_read(options.db)) as store:
        entries = store.list_cached(options.dag, options.task)
    if options.json:
        output.say_json([entry._asdict() for entry in entries])
    elif entries:
        rows = [
            (time_text(made_at).removesuffix(" UTC"), dag, task, run_id)
            for run_id, dag, task, made_at in entries
        ]
        output.say_table(("Made", "DAG", "Task", "Run"), rows)
    else:
        output.say("no results")
    return SUCCESS


def _clear_cache(options: argparse.Namespace, output: Output) -> int:
    from flowrun.state import SqliteStateStore  # noqa: PLC0415 - loads sqlite3

    _check_exists(options.db)
    with closing(SqliteStateStore(options.db)) as store:
        cleared = store.clear_cached(options.dag, options.task)
    if options.json:
        output.say_json({"cleared": cleared})
    else:
        output.say(f"{counted(cleared, 'result')} cleared from the cache")
    return SUCCESS


def _listed(
    store: SqliteStateStore, query: RunQuery
) -> tuple[Sequence[RunSummary], DamagedRecordError | None]:
    """Return the runs that are not damaged, and the error of those that are."""
    try:
        return store.list_runs(query), None
    except DamagedRecordError as error:
        return error.others, error


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
