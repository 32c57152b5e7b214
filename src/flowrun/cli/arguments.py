"""The table of commands, and the parser that is made of it."""

from __future__ import annotations

import argparse
import re
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
    from collections.abc import Callable, Sequence

    from flowrun.cli.output import Output

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Argument(NamedTuple):
    """One argument or option of a command.

    Attributes:
        name: As it is typed, or where it stands by its place: the attribute that it is read to.
        help: What it is.
        settings: Those of ``ArgumentParser.add_argument``.
        exclusive: Whether it cannot be given together with another exclusive one.
        words: What a shell offers for its value; its choices by default.
    """

    name: str
    help: str
    settings: dict[str, Any]
    exclusive: bool = False
    words: Sequence[str] = ()

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


def _argument(name: str, text: str, words: Sequence[str] = (), **settings: Any) -> Argument:  # noqa: ANN401 - as argparse's own
    return Argument(name, text, settings, words=words or settings.get("choices", ()))


def _number(least: int, text: str) -> int:
    if int(text) < least:
        msg = f"{text} is less than {least}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        msg = f"{text!r} is not a duration like 90 (seconds), 30m, 12h or 7d"
        raise argparse.ArgumentTypeError(msg)
    return float(found[1]) * _UNITS[found[2]]


def _status(text: str) -> RunStatus:
    """Read a status by its word, or as a report names it."""
    word = text.upper()
    if word not in {"SUCCEEDED", *RunStatus}:
        msg = f"{text!r} is none of succeeded, failed, running"
        raise argparse.ArgumentTypeError(msg)
    return RunStatus.SUCCESS if word == "SUCCEEDED" else RunStatus(word)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        msg = f"{text!r} is not NAME=VALUE"
        raise argparse.ArgumentTypeError(msg)
    return name, value


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
        "show on standard error what runs, as by default",
        action="store_true",
        default=True,
    ),
    _argument(
        "--no-progress",
        "do not show on standard error what runs",
        action="store_false",
        dest="progress",
    ),
)
_ENGINE = _argument(
    "engine",
    "where the engine is: a module and a name in it, like jobs.daily:engine",
    metavar="MODULE:ENGINE",
)
_DAG = _argument("dag", "the name of a DAG; 'flowrun list MODULE:ENGINE' lists them", metavar="DAG")
_GIVEN = (
    _argument(
        "--param",
        "a parameter of the run, like day=2013-02-08; may be given more than once",
        action="append",
        type=_pair,
        metavar="NAME=VALUE",
    ),
    _argument(
        "--context",
        "a function that is given the run's parameters as a dict and returns its RunContext, or"
        " a context manager of one, like jobs.daily:make_context",
        metavar="MODULE:FACTORY",
    ),
    _argument(
        "--metadata",
        "a text to keep with the run and show in its report; may be given more than once",
        action="append",
        type=_pair,
        metavar="NAME=VALUE",
    ),
)
_LIMIT = _argument(
    "--limit", "at most so many (20)", type=partial(_number, 1), default=20, metavar="N"
)
_DB = _argument("db", "the file of a SqliteStateStore, like runs.db", metavar="DB", type=Path)
_OF_DAG = _argument("--dag", f"with {LATEST!r}: only runs of this DAG", metavar="DAG")
_RUN_HELP = f"a run's id, or its first characters, or {LATEST!r}: the newest run"
_RUN = _argument("run", f"{_RUN_HELP} that no other run started", metavar="RUN")
_TASK = _argument("task", "the name of a task of that run", metavar="TASK")

COMMANDS = {
    "run": Command(
        engine_commands.run_dag,
        "run a DAG and print its report",
        (
            _ENGINE,
            _DAG,
            _argument(
                "--timeout",
                "end the run when it has taken so long: 90 (seconds), 30m, 12h, 7d",
                type=_duration,
                dest="timeout_s",
                metavar="DURATION",
            ),
            _argument("--timeout-s", argparse.SUPPRESS, type=_duration, default=argparse.SUPPRESS),
            _argument(
                "--target",
                "run only this task and what it depends on; may be given more than once",
                action="append",
                metavar="TASK",
            ),
            *_GIVEN,
            *_PROGRESS,
            _JSON,
        ),
    ),
    "resume": Command(
        engine_commands.resume_run,
        "finish what a run left undone",
        (
            _ENGINE,
            _argument("run", f"{_RUN_HELP} that can be resumed", metavar="RUN"),
            _argument(
                "--from",
                "run this task again, and all that depends on it; may be given more than once",
                action="append",
                dest="from_tasks",
                metavar="TASK",
            ),
            *_GIVEN,
            _OF_DAG,
            _argument(
                "--dry-run",
                "print which tasks would run and which would be kept, and why; run nothing",
                action="store_true",
            ),
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
            _argument(
                "--style",
                "a tree to read, or the language of Mermaid or of Graphviz",
                choices=["tree", "mermaid", "dot"],
                default="tree",
            ),
        ),
    ),
    "validate": Command(
        engine_commands.validate_dags,
        "check DAGs without running them",
        (
            _ENGINE,
            _argument(
                "dag", "the names of the DAGs to check; all by default", metavar="DAG", nargs="*"
            ),
            _JSON,
        ),
    ),
    "runs": Command(
        file_commands.list_runs,
        "list the runs in a SQLite file, newest first",
        (
            _DB,
            _argument("--dag", "only runs of this DAG", metavar="DAG"),
            _argument(
                "--status",
                "only runs that ended so, or have not ended",
                type=_status,
                words=("succeeded", "failed", "running"),
                metavar="STATUS",
            ),
            _LIMIT,
            _JSON,
        ),
    ),
    "report": Command(
        file_commands.show_report,
        "print the report of a run in a SQLite file",
        (
            _DB,
            _RUN._replace(
                help=f"{_RUN.help}, as by default",
                settings={**_RUN.settings, "nargs": "?"},
            ),
            _OF_DAG,
            Argument(
                "--html",
                "write a page to this file; without RUN, write an index of the newest runs and"
                " their pages to this folder",
                {"type": Path, "metavar": "PATH"},
                exclusive=True,
            ),
            _LIMIT._replace(help="with --html and without RUN: so many runs (20)"),
            _argument("--failed", "only what has failed", action="store_true"),
            _JSON._replace(exclusive=True),
        ),
    ),
    "error": Command(
        file_commands.show_error,
        "print the whole error of a task",
        (_DB, _RUN, _TASK, _OF_DAG),
    ),
    "result": Command(
        file_commands.show_result,
        "print the result of a task, if it is kept as JSON",
        (
            _DB,
            _RUN,
            _TASK,
            _OF_DAG,
            _JSON._replace(help="print the JSON that is kept"),
        ),
    ),
    "prune": Command(
        file_commands.prune_runs,
        "delete old finished runs from a SQLite file",
        (
            _DB,
            _argument(
                "--keep-last",
                "keep the N newest runs of each DAG",
                type=partial(_number, 0),
                metavar="N",
            ),
            _argument(
                "--older-than",
                "delete only runs that started so long ago: 90 (seconds), 30m, 12h, 7d",
                type=_duration,
                dest="older_than_s",
                metavar="DURATION",
            ),
            _argument(
                "--older-than-s", argparse.SUPPRESS, type=_duration, default=argparse.SUPPRESS
            ),
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
