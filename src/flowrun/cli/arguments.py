"""The table of commands, and the parser that is made of it."""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun import __version__
from flowrun.cli import engine_commands, file_commands
from flowrun.cli.completion import SHELLS, script
from flowrun.cli.engine_commands import SUCCESS
from flowrun.cli.latest import LATEST
from flowrun.state import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.cli.output import Output


class Argument(NamedTuple):
    """One argument or option of a command.

    Attributes:
        name: As it is typed, or where it stands by its place: the attribute that it is read to.
        help: What it is.
        settings: Those of ``ArgumentParser.add_argument``.
        exclusive: Whether it cannot be given together with another exclusive one.
    """

    name: str
    help: str
    settings: dict[str, Any]
    exclusive: bool = False

    @property
    def takes_value(self) -> bool:
        """Whether it is an option that another word follows."""
        is_option = self.name.startswith("-")
        return is_option and self.settings.get("action", "append") == "append"


class Command(NamedTuple):
    """One command: the function that runs it, what it does, and what can be typed after it."""

    run: Callable[[argparse.Namespace, Output], int]
    help: str
    arguments: tuple[Argument, ...]


def _argument(name: str, text: str, **settings: object) -> Argument:
    return Argument(name, text, settings)


def _number(least: int, text: str) -> int:
    if int(text) < least:
        msg = f"{text} is less than {least}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seconds(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        msg = f"{text} is not a number of seconds, 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return float(text)


def print_completion(options: argparse.Namespace, output: Output) -> int:
    """``flowrun completion``."""
    output.say(script(COMMANDS, options.shell))
    return SUCCESS


# Without a default, which would hide the same option before the command.
_TRACEBACK = _argument(
    "--traceback",
    "show the whole traceback of an error",
    action="store_true",
    default=argparse.SUPPRESS,
)
_JSON = _argument("--json", "print JSON for a script", action="store_true")
_PROGRESS = (
    _argument(
        "--progress",
        "show what runs on standard error, as by default",
        action="store_true",
        default=True,
    ),
    _argument("--no-progress", "do not show it", action="store_false", dest="progress"),
)
_ENGINE = _argument(
    "engine",
    "where the engine is: a module and a name in it, like jobs.daily:engine",
    metavar="MODULE:ENGINE",
)
_DAG = _argument("dag", "the name of a DAG; 'flowrun list MODULE:ENGINE' lists them", metavar="DAG")
_DB = _argument("db", "the file of a SqliteStateStore, like runs.db", metavar="DB", type=Path)
_OF_DAG = _argument("--dag", f"with {LATEST!r}: only runs of this DAG", metavar="DAG")

COMMANDS = {
    "run": Command(
        engine_commands.run_dag,
        "run a DAG and print its report",
        (
            _ENGINE,
            _DAG,
            _argument("--timeout-s", "end the run after it", type=float, metavar="SECONDS"),
            _argument("--target", "only what leads to it", action="append", metavar="TASK"),
            *_PROGRESS,
            _JSON,
        ),
    ),
    "resume": Command(
        engine_commands.resume_run,
        "finish what a run left undone",
        (
            _ENGINE,
            _argument(
                "run",
                f"a run's id, or {LATEST!r}: the newest run that can be resumed",
                metavar="RUN",
            ),
            _argument("--from", "run it again", action="append", dest="from_tasks", metavar="TASK"),
            _OF_DAG,
            _argument("--dry-run", "only print what would run, and why", action="store_true"),
            *_PROGRESS,
            _JSON,
        ),
    ),
    "list": Command(engine_commands.list_dags, "list DAGs and their tasks", (_ENGINE, _JSON)),
    "show": Command(
        engine_commands.show_dag,
        "draw a DAG",
        (
            _ENGINE,
            _DAG,
            _argument("--style", "how", choices=["tree", "mermaid", "dot"], default="tree"),
        ),
    ),
    "validate": Command(
        engine_commands.validate_dags,
        "check DAGs without running them",
        (
            _ENGINE,
            _argument("dag", "names of DAGs; all by default", metavar="DAG", nargs="*"),
            _JSON,
        ),
    ),
    "runs": Command(
        file_commands.list_runs,
        "list the runs in a SQLite file, newest first",
        (
            _DB,
            _argument("--dag", "only runs of this DAG", metavar="DAG"),
            _argument("--status", "only these", choices=[status.value for status in RunStatus]),
            _argument(
                "--limit", "at most N (20)", type=partial(_number, 1), default=20, metavar="N"
            ),
            _JSON,
        ),
    ),
    "report": Command(
        file_commands.show_report,
        "print the report of a run in a SQLite file",
        (
            _DB,
            _argument(
                "run",
                f"a run's id, or {LATEST!r}: the newest run that was not started inside another"
                " one",
                metavar="RUN",
            ),
            _OF_DAG,
            Argument(
                "--html",
                "write a page to this file",
                {"type": Path, "metavar": "FILE"},
                exclusive=True,
            ),
            _JSON._replace(exclusive=True),
        ),
    ),
    "prune": Command(
        file_commands.prune_runs,
        "delete old finished runs from a SQLite file",
        (
            _DB,
            _argument(
                "--keep-last", "keep N runs of each DAG", type=partial(_number, 0), metavar="N"
            ),
            _argument("--older-than-s", "only older ones", type=_seconds, metavar="SECONDS"),
            _JSON,
        ),
    ),
    "completion": Command(
        print_completion,
        "print a completion script for a shell",
        (_argument("shell", "the shell that is to read it", choices=SHELLS),),
    ),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="flowrun",
        description="Run DAGs and look at their runs.",
        epilog="Exit codes: 0 success, 1 the run failed, a DAG is not valid, or a disk or store"
        " failed, 2 wrong use, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"flowrun {__version__}")
    parser.add_argument(_TRACEBACK.name, help=_TRACEBACK.help, action="store_true")
    added = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = added.add_parser(name, help=command.help, description=command.help)
        one.set_defaults(command=command.run, name=name)
        is_choice = any(argument.exclusive for argument in command.arguments)
        choice = one.add_mutually_exclusive_group() if is_choice else one
        for argument in (*command.arguments, _TRACEBACK):
            place = choice if argument.exclusive else one
            place.add_argument(argument.name, help=argument.help, **argument.settings)
    return parser
