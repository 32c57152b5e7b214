"""The command line: run and look, from a terminal or a script.

Exit codes: 0 success, 1 the run failed (or a check did), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import math
import os
import shutil
import sys
import traceback
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrun import __version__
from flowrun.cli import completion
from flowrun.cli.signals import INTERRUPTED, until_interrupted
from flowrun.engine import Engine
from flowrun.errors import (
    DamagedRecordError,
    FlowrunError,
    GraphError,
    RunCancelledError,
    RunLostError,
    StoreBusyError,
    StoreFullError,
    UnknownDagError,
)
from flowrun.escape import columns, padded
from flowrun.render import ProgressHook, for_terminal, report_html, report_table, stored_previews
from flowrun.report import build_report
from flowrun.scheduler.teller import TASK_FAILED
from flowrun.state import RunQuery, RunStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from flowrun.report import RunReport
    from flowrun.state import RunSummary, SqliteStateStore

SUCCESS, FAILED, USAGE = 0, 1, 2
LATEST = "latest"
_USUAL_WIDTH = 80
_NOT_ASCII = "✔✘⊘▶○├─└│…"


_FAILURES = (GraphError, RunCancelledError, RunLostError, StoreBusyError, StoreFullError)


class UsageError(FlowrunError):
    """The command was not used as it should be."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # whoever took the place of a stream may lack it
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has gone (``| head``); nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    except (FlowrunError, RunCancelledError, OSError, ValueError) as error:
        if options.traceback:
            traceback.print_exc()
        print(f"flowrun: {for_terminal(str(error))}", file=sys.stderr)
        return FAILED if isinstance(error, _FAILURES) else USAGE


def make_parser() -> argparse.ArgumentParser:  # noqa: PLR0915 - a list of commands
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="flowrun",
        description="Run DAGs and look at their runs.",
        epilog="Exit codes: 0 success, 1 the run failed or a DAG is not valid, 2 wrong use,"
        " 130 interrupted.",
    )
    told = {"action": "store_true", "help": "show the whole traceback of an error"}
    parser.add_argument("--traceback", **told)  # type: ignore[arg-type]
    parser.add_argument("--version", action="version", version=f"flowrun {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=function)
        # Here too; without a default, which would hide the one before the command.
        added.add_argument("--traceback", default=argparse.SUPPRESS, **told)  # type: ignore[arg-type]
        return added

    def engine(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "engine", metavar="MODULE:ENGINE", help="where the engine is, like jobs.daily:engine"
        )

    def as_json(added: argparse.ArgumentParser) -> None:
        added.add_argument("--json", action="store_true", help="print JSON for a script")

    run = command("run", run_dag, "run a DAG and print its report")
    engine(run)
    run.add_argument("dag", metavar="DAG")
    run.add_argument("--timeout-s", type=float, metavar="SECONDS", help="end the run after it")
    run.add_argument("--target", action="append", metavar="TASK", help="only what leads to it")
    _progress(run)
    as_json(run)

    resume = command("resume", resume_run, "finish what a run left undone")
    engine(resume)
    resume.add_argument("run", metavar="RUN", help=f"a run's id, or {LATEST!r}")
    resume.add_argument(
        "--from", action="append", dest="from_tasks", metavar="TASK", help="run it again"
    )
    resume.add_argument("--dry-run", action="store_true", help="only say what would run, and why")
    _progress(resume)
    as_json(resume)

    listing = command("list", list_dags, "list DAGs and their tasks")
    engine(listing)
    as_json(listing)

    show = command("show", show_dag, "draw a DAG")
    engine(show)
    show.add_argument("dag", metavar="DAG")
    show.add_argument("--style", choices=["tree", "mermaid", "dot"], default="tree")

    validate = command("validate", validate_dags, "check DAGs without running them")
    engine(validate)
    validate.add_argument("dag", metavar="DAG", nargs="*", help="all of them by default")
    as_json(validate)

    runs = command("runs", list_runs, "list the runs in a SQLite file, newest first")
    runs.add_argument("db", metavar="DB", type=Path)
    runs.add_argument("--dag", help="only runs of this DAG")
    runs.add_argument("--status", choices=[status.value for status in RunStatus])
    runs.add_argument("--limit", type=_number(1), default=20, metavar="N", help="at most N (20)")
    as_json(runs)

    report = command("report", show_report, "print the report of a run in a SQLite file")
    report.add_argument("db", metavar="DB", type=Path)
    report.add_argument("run", metavar="RUN", help=f"a run's id, or {LATEST!r}")
    kind = report.add_mutually_exclusive_group()
    kind.add_argument("--html", metavar="FILE", type=Path, help="write a page to this file")
    kind.add_argument("--json", action="store_true", help="print JSON for a script")

    prune = command("prune", prune_runs, "delete old finished runs from a SQLite file")
    prune.add_argument("db", metavar="DB", type=Path)
    prune.add_argument("--keep-last", type=_number(0), metavar="N", help="keep N runs of each DAG")
    prune.add_argument("--older-than-s", type=_seconds, metavar="SECONDS", help="only older ones")
    as_json(prune)

    complete = command("completion", print_completion, "print a completion script for a shell")
    complete.add_argument("shell", choices=completion.SHELLS)
    return parser


def _number(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is not smaller."""

    def number(text: str) -> int:
        if int(text) < least:
            msg = f"{text} is less than {least}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return number


def _seconds(text: str) -> float:
    """Read a time that can have passed."""
    if not 0 <= float(text) < math.inf:
        msg = f"{text} is no number of seconds, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return float(text)


def _progress(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show what runs on standard error",
    )


# Commands on an engine.


def run_dag(options: argparse.Namespace) -> int:
    """``flowrun run``."""
    engine = load_engine(options.engine)
    if options.target:
        work = engine.run_subgraph(options.dag, options.target, timeout_s=options.timeout_s)
    else:
        work = engine.run_once(options.dag, timeout_s=options.timeout_s)
    return _execute(engine, work, options)


def resume_run(options: argparse.Namespace) -> int:
    """``flowrun resume``."""
    engine = load_engine(options.engine)
    run_id = options.run
    if run_id == LATEST:
        run_id = _latest(engine.list_runs(limit=1), "the engine's store")
    if not options.dry_run:
        return _execute(engine, engine.resume(run_id, options.from_tasks), options)
    plan = engine.plan_resume(run_id, options.from_tasks)
    if options.json:
        tasks = {name: task._asdict() for name, task in plan.tasks.items()}
        _print_json({**plan._asdict(), "tasks": tasks})
        return SUCCESS
    rows: list[tuple[str, str, str]] = [
        (task.action, for_terminal(name), task.why) for name, task in plan.tasks.items()
    ]
    rows += [("drop", for_terminal(name), "no longer in the DAG") for name in plan.dropped]
    width = max((columns(name) for _, name, _ in rows), default=0)
    for action, name, why in rows:
        print(f"{action:4}  {padded(name, width)}  {for_terminal(why)}")
    return SUCCESS


def list_dags(options: argparse.Namespace) -> int:
    """``flowrun list``."""
    engine = load_engine(options.engine)
    dags: dict[str, list[str]] = {}
    problems: list[GraphError] = []
    for dag in engine.list_dags():
        try:
            dags[dag] = engine.list_tasks(dag)
        except GraphError as error:
            problems.append(error)
    if options.json:
        _print_json(dags)
    else:
        for dag, tasks in dags.items():
            print(f"{for_terminal(dag)}: {for_terminal(', '.join(tasks))}")
    for problem in problems:
        print(f"flowrun: {for_terminal(str(problem), multiline=True)}", file=sys.stderr)
    return FAILED if problems else SUCCESS


def show_dag(options: argparse.Namespace) -> int:
    """``flowrun show``."""
    engine = load_engine(options.engine)
    print(engine.display_dag(options.dag, style=options.style, ascii_only=_is_ascii_only()))
    return SUCCESS


def validate_dags(options: argparse.Namespace) -> int:
    """``flowrun validate``."""
    engine = load_engine(options.engine)
    problems: dict[str, str | None] = {}
    for dag in options.dag or engine.list_dags():
        try:
            engine.validate(dag)
        except UnknownDagError:
            raise  # that is wrong use
        except ValueError as error:
            problems[dag] = str(error)
        else:
            problems[dag] = None
    if options.json:
        _print_json(problems)
    else:
        for dag, problem in problems.items():
            fine = f"fine, {len(engine.list_tasks(dag))} task(s)" if problem is None else problem
            print(f"{for_terminal(dag)}: {for_terminal(fine, multiline=True)}")
    return FAILED if any(problems.values()) else SUCCESS


def load_engine(place: str) -> Engine:
    """Import ``MODULE:ENGINE`` and return the engine.

    Raises:
        UsageError: There is no such module, or no engine under that name.
    """
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        msg = f"{place!r} is not MODULE:ENGINE; write it like jobs.daily:engine"
        raise UsageError(msg)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        msg = f"cannot import {module_name!r}: {error}"
        raise UsageError(msg) from error
    except Exception as error:  # what a module does while it is imported may raise anything
        msg = f"cannot import {module_name!r}: {type(error).__name__}: {error}"
        raise UsageError(msg) from error
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if not isinstance(found, Engine) and callable(found):
        try:
            found = found()
        except Exception as error:
            msg = f"{place!r} made no Engine: {type(error).__name__}: {error}"
            raise UsageError(msg) from error
    if not isinstance(found, Engine):
        msg = f"{place!r} is no flowrun Engine (or a function that returns one)"
        raise UsageError(msg)
    return found


def _execute(engine: Engine, work: Awaitable[str], options: argparse.Namespace) -> int:
    """Await a run with its progress shown and signals obeyed; print its report."""
    if options.progress:
        engine.add_hook(ProgressHook())
        if logging.lastResort is not None:
            # Where nobody has set up logging, a failure would be said twice.
            logging.lastResort.addFilter(lambda record: record.msg != TASK_FAILED)
    run_id = asyncio.run(until_interrupted(engine, work))
    report = engine.get_run_report(run_id, results=False)
    if options.json:
        _print_json(report)
    else:
        _print_table(report)
    return SUCCESS if report["status"] == "SUCCESS" else FAILED


# Commands on a SQLite file.


def list_runs(options: argparse.Namespace) -> int:
    """``flowrun runs``."""
    status = None if options.status is None else RunStatus(options.status)
    damaged: DamagedRecordError | None = None
    with closing(open_file(options.db)) as store:
        try:
            runs = store.list_runs(RunQuery(options.dag, status, None, options.limit, None))
        except DamagedRecordError as error:
            runs, damaged = list(error.others), error
    if options.json:
        _print_json([run._asdict() for run in runs])
    else:
        for run in runs:
            print(_run_line(run))
        if not runs and damaged is None:
            print("no runs")
    if damaged is not None:
        raise damaged
    return SUCCESS


def show_report(options: argparse.Namespace) -> int:
    """``flowrun report``."""
    with closing(open_file(options.db)) as store:
        run_id = options.run
        if run_id == LATEST:
            run_id = _latest(store.list_runs(RunQuery(limit=1)), repr(str(options.db)))
        report = build_report(store.load_run(run_id, results=False))
        stored = stored_previews(report, store.stored_results) if options.html else {}
    if options.html is not None:
        options.html.write_text(report_html(report, stored=stored), encoding="utf-8")
        print(options.html)
    elif options.json:
        _print_json(report)
    else:
        _print_table(report)
    return _code_of(report)


def prune_runs(options: argparse.Namespace) -> int:
    """``flowrun prune``."""
    if options.keep_last is None and options.older_than_s is None:
        msg = "say what to delete: --keep-last N, --older-than-s SECONDS"
        raise UsageError(msg)
    before = None
    if options.older_than_s is not None:
        before = datetime.now(tz=UTC).timestamp() - options.older_than_s
    from flowrun.state import SqliteStateStore  # noqa: PLC0415 - loads sqlite3

    if not options.db.is_file():
        msg = f"there is no file {str(options.db)!r}"
        raise UsageError(msg)
    with closing(SqliteStateStore(options.db)) as store:
        deleted = store.prune_runs(keep_last=options.keep_last, created_before=before)
    if options.json:
        _print_json({"deleted": deleted})
    else:
        print(f"{deleted} run(s) deleted")
    return SUCCESS


def _latest(runs: Sequence[RunSummary], place: str) -> str:
    """Return the id of the latest run, of a list that begins with it.

    Raises:
        UsageError: There is none.
    """
    if not runs:
        msg = f"there is no latest run: {place} has no runs yet"
        raise UsageError(msg)
    return runs[0].run_id


def open_file(path: Path) -> SqliteStateStore:
    """Open a store to read from, while somebody else may write to it.

    Raises:
        UsageError: There is no such file.
    """
    from flowrun.state import SqliteStateStore  # noqa: PLC0415 - loads sqlite3

    if not path.is_file():
        msg = f"there is no file {str(path)!r}"
        raise UsageError(msg)
    return SqliteStateStore.open_readonly(path)


def print_completion(options: argparse.Namespace) -> int:
    """``flowrun completion``."""
    print(completion.script(make_parser(), options.shell))
    return SUCCESS


def _code_of(report: RunReport) -> int:
    return FAILED if report["status"] == "FAILED" else SUCCESS


def _run_line(run: RunSummary) -> str:
    started = datetime.fromtimestamp(run.created_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    took = "" if run.finished_at is None else f"{run.finished_at - run.created_at:.1f} s"
    counts = ", ".join(f"{number} {status.lower()}" for status, number in run.task_counts.items())
    return for_terminal(
        f"{run.run_id}  {started}  {run.status.value:7}  {took:>9}  {run.dag_name}  {counts}"
    )


def _print_table(report: RunReport) -> None:
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else _USUAL_WIDTH
    print(report_table(report, wide, ascii_only=_is_ascii_only()))


def _is_ascii_only() -> bool:
    """Return whether standard output cannot show the signs and lines of tables and trees."""
    try:
        _NOT_ASCII.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))
