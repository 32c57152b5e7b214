"""The parser of the command line."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from flowrun import __version__
from flowrun.cli.completion import SHELLS
from flowrun.cli.latest import LATEST
from flowrun.state import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ENGINE_HELP = "where the engine is: a module and a name in it, like jobs.daily:engine"
_DAG_HELP = "the name of a DAG; 'flowrun list MODULE:ENGINE' lists them"
_DB_HELP = "the file of a SqliteStateStore, like runs.db"


class _Commands:
    """Adds commands to a parser, each with the options that all of them have."""

    def __init__(
        self, parser: argparse.ArgumentParser, handlers: Mapping[str, Callable[..., int]]
    ) -> None:
        self._handlers = handlers
        self._added = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
        add_traceback(parser, default=False)

    def add(self, name: str, text: str) -> argparse.ArgumentParser:
        added = self._added.add_parser(name, help=text, description=text)
        added.set_defaults(command=self._handlers[name], name=name)
        # Without a default, which would hide the option before the command.
        add_traceback(added, default=argparse.SUPPRESS)
        return added


def make_parser(handlers: Mapping[str, Callable[..., int]]) -> argparse.ArgumentParser:
    """Return the parser of all commands.

    Args:
        handlers: The function of each command, by the command's name.
    """
    parser = argparse.ArgumentParser(
        prog="flowrun",
        description="Run DAGs and look at their runs.",
        epilog="Exit codes: 0 success, 1 the run failed, a DAG is not valid, or a disk or store"
        " failed, 2 wrong use, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"flowrun {__version__}")
    commands = _Commands(parser, handlers)
    _add_engine_commands(commands)
    _add_file_commands(commands)
    complete = commands.add("completion", "print a completion script for a shell")
    complete.add_argument("shell", choices=SHELLS)
    return parser


def _add_engine_commands(commands: _Commands) -> None:
    run = commands.add("run", "run a DAG and print its report")
    _add_engine(run)
    run.add_argument("dag", metavar="DAG", help=_DAG_HELP)
    run.add_argument("--timeout-s", type=float, metavar="SECONDS", help="end the run after it")
    run.add_argument("--target", action="append", metavar="TASK", help="only what leads to it")
    _add_progress(run)
    _add_json(run)

    resume = commands.add("resume", "finish what a run left undone")
    _add_engine(resume)
    text = f"a run's id, or {LATEST!r}: the newest run that can be resumed"
    resume.add_argument("run", metavar="RUN", help=text)
    resume.add_argument(
        "--from", action="append", dest="from_tasks", metavar="TASK", help="run it again"
    )
    resume.add_argument("--dag", metavar="DAG", help=f"with {LATEST!r}: only runs of this DAG")
    resume.add_argument("--dry-run", action="store_true", help="only print what would run, and why")
    _add_progress(resume)
    _add_json(resume)

    listing = commands.add("list", "list DAGs and their tasks")
    _add_engine(listing)
    _add_json(listing)

    show = commands.add("show", "draw a DAG")
    _add_engine(show)
    show.add_argument("dag", metavar="DAG", help=_DAG_HELP)
    show.add_argument("--style", choices=["tree", "mermaid", "dot"], default="tree")

    validate = commands.add("validate", "check DAGs without running them")
    _add_engine(validate)
    validate.add_argument("dag", metavar="DAG", nargs="*", help="names of DAGs; all by default")
    _add_json(validate)


def _add_file_commands(commands: _Commands) -> None:
    runs = commands.add("runs", "list the runs in a SQLite file, newest first")
    _add_db(runs)
    runs.add_argument("--dag", metavar="DAG", help="only runs of this DAG")
    runs.add_argument("--status", choices=[status.value for status in RunStatus])
    runs.add_argument("--limit", type=_number(1), default=20, metavar="N", help="at most N (20)")
    _add_json(runs)

    report = commands.add("report", "print the report of a run in a SQLite file")
    _add_db(report)
    text = f"a run's id, or {LATEST!r}: the newest run that was not started inside another one"
    report.add_argument("run", metavar="RUN", help=text)
    report.add_argument("--dag", metavar="DAG", help=f"with {LATEST!r}: only runs of this DAG")
    kind = report.add_mutually_exclusive_group()
    kind.add_argument("--html", metavar="FILE", type=Path, help="write a page to this file")
    _add_json(kind)

    prune = commands.add("prune", "delete old finished runs from a SQLite file")
    _add_db(prune)
    prune.add_argument("--keep-last", type=_number(0), metavar="N", help="keep N runs of each DAG")
    prune.add_argument("--older-than-s", type=_seconds, metavar="SECONDS", help="only older ones")
    _add_json(prune)


def add_traceback(parser: argparse.ArgumentParser, default: object) -> None:
    """Add the option that shows where an error came from."""
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=default,
        help="show the whole traceback of an error",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", metavar="MODULE:ENGINE", help=_ENGINE_HELP)


def _add_db(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("db", metavar="DB", type=Path, help=_DB_HELP)


def _add_json(parser: argparse._ActionsContainer) -> None:  # pyright: ignore[reportPrivateUsage]
    parser.add_argument("--json", action="store_true", help="print JSON for a script")


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show what runs on standard error",
    )


def _number(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers that are not smaller."""

    def number(text: str) -> int:
        if int(text) < least:
            msg = f"{text} is less than {least}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return number


def _seconds(text: str) -> float:
    """Read a time that can have passed."""
    if not 0 <= float(text) < math.inf:
        msg = f"{text} is not a number of seconds, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return float(text)
