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
        words: What a shell offers for its value.
    """

    name: str
    help: str
    settings: dict[str, Any]
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


def _place(metavar: str, text: str, **settings: object) -> Argument:
    """Return an argument that is known by its place; ``MODULE:ENGINE`` is read to ``engine``."""
    name = metavar.rpartition(":")[2].lower()
    return Argument(name, text, {"metavar": metavar, **settings})


def _value(name: str, metavar: str, text: str, **settings: object) -> Argument:
    return Argument(name, text, {"metavar": metavar, **settings})


def _flag(name: str, text: str, **settings: object) -> Argument:
    return Argument(name, text, {"action": "store_true", **settings})


def _duration(name: str, text: str, dest: str) -> tuple[Argument, Argument]:
    """Return an option, and its former name."""
    example = "90 (seconds), 30m, 12h, 7d"
    option = _value(name, "DURATION", f"{text}: {example}", type=_seconds, dest=dest)
    former = {**option.settings, "default": argparse.SUPPRESS}
    return option, Argument(f"{name}-s", argparse.SUPPRESS, former)


def _number(least: int, text: str) -> int:
    if int(text) < least:
        msg = f"{text} is less than {least}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        msg = f"{text!r} is not a duration like 90 (seconds), 30m, 12h or 7d"
        raise argparse.ArgumentTypeError(msg)
    return float(found[1]) * _UNITS[found[2]]


def _status(text: str) -> RunStatus:
    """Read a status by its word, or as a report names it."""
    word = text.upper()
    if word not in {"SUCCEEDED", *RunStatus}:
        msg = f"{text!r} is none of {', '.join(_STATUSES)}"
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


_STATUSES = ("succeeded", "failed", "running")
_STYLES = ("tree", "mermaid", "dot")
_ACTIONS = ("ls", "clear")
_MORE = "may be given more than once"
_RUN_HELP = f"a run's id, or its first characters, or {LATEST!r}: the newest run"

# Without a default, which would hide the same option before the command.
_TRACEBACK = _flag("--traceback", "show where an error came from", default=argparse.SUPPRESS)
_JSON = _flag("--json", "print JSON for a script")
_PROGRESS = (
    _flag("--progress", "show on standard error what runs, as by default", default=True),
    _flag("--no-progress", "do not show it", action="store_false", dest="progress"),
)
_ENGINE = _place(
    "MODULE:ENGINE", "where the engine is: a module and a name in it, like jobs.daily:engine"
)
_DAG = _place("DAG", "the name of a DAG; 'flowrun list MODULE:ENGINE' lists them")
_DB = _place("DB", "the file of a SqliteStateStore, like runs.db", type=Path)
_RUN = _place("RUN", f"{_RUN_HELP} that no other run started")
_OF_DAG = _value("--dag", "DAG", f"with {LATEST!r}: only runs of this DAG")
_ONE_TASK = (_DB, _RUN, _place("TASK", "the name of a task of that run"), _OF_DAG)
_LIMIT = _value("--limit", "N", "at most so many (20)", type=partial(_number, 1), default=20)
_GIVEN = (
    _value(
        "--param",
        "NAME=VALUE",
        f"a parameter of the run, like day=2013-02-08; {_MORE}",
        action="append",
        type=_pair,
    ),
    _value(
        "--context",
        "MODULE:FACTORY",
        "a function that is given the run's parameters as a dict and returns its RunContext, or"
        " a context manager of one, like jobs.daily:make_context",
    ),
    _value(
        "--metadata",
        "NAME=VALUE",
        f"a text to keep with the run and show in its report; {_MORE}",
        action="append",
        type=_pair,
    ),
    _value(
        "--refresh", "TASK", f"run this task although it is in the cache; {_MORE}", action="append"
    ),
    _flag("--refresh-all", "take nothing from the cache"),
)

COMMANDS = {
    "run": Command(
        engine_commands.run_dag,
        "run a DAG and print its report",
        (
            _ENGINE,
            _DAG,
            *_duration("--timeout", "end the run when it has taken so long", "timeout_s"),
            _value(
                "--target", "TASK", f"only this task and what leads to it; {_MORE}", action="append"
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
            _place("RUN", f"{_RUN_HELP} that can be resumed"),
            _value(
                "--from",
                "TASK",
                f"run this task again, and all that depends on it; {_MORE}",
                action="append",
                dest="from_tasks",
            ),
            *_GIVEN,
            _OF_DAG,
            _flag("--dry-run", "print what would run and what would be kept, and why; run nothing"),
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
            Argument(
                "--style",
                "a tree to read, or the language of Mermaid or of Graphviz",
                {"choices": _STYLES, "default": "tree"},
                _STYLES,
            ),
        ),
    ),
    "validate": Command(
        engine_commands.validate_dags,
        "check DAGs without running them",
        (_ENGINE, _place("DAG", "names of DAGs to check; all by default", nargs="*"), _JSON),
    ),
    "runs": Command(
        file_commands.list_runs,
        "list the runs in a SQLite file, newest first",
        (
            _DB,
            _value("--dag", "DAG", "only runs of this DAG"),
            Argument(
                "--status",
                f"only runs that stand so: {', '.join(_STATUSES)}",
                {"metavar": "STATUS", "type": _status},
                _STATUSES,
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
            _place("RUN", f"{_RUN.help}, as by default", nargs="?"),
            _OF_DAG,
            _value(
                "--html",
                "PATH",
                "write a page to this .html file; without RUN, write an index of the newest runs"
                " and their pages to this folder",
                type=Path,
            ),
            _LIMIT._replace(help="with --html and without RUN: so many runs (20)"),
            _flag("--failed", "only what has failed"),
            _JSON,
        ),
    ),
    "explain": Command(
        file_commands.show_explanation,
        "say where the time of a run went, and why tasks did not run or ran again",
        (
            _DB,
            _place("RUN", f"{_RUN.help}, as by default", nargs="?"),
            _place("TASK", "only this task of that run", nargs="?"),
            _OF_DAG,
            _JSON,
        ),
    ),
    "error": Command(file_commands.show_error, "print the whole error of a task", _ONE_TASK),
    "result": Command(
        file_commands.show_result,
        "print the result of a task, if it is kept as JSON",
        (*_ONE_TASK, _JSON._replace(help="print the JSON that is kept")),
    ),
    "logs": Command(
        file_commands.show_logs,
        "print what was logged in the attempts of a task",
        (*_ONE_TASK, _JSON),
    ),
    "prune": Command(
        file_commands.prune_runs,
        "delete old finished runs from a SQLite file",
        (
            _DB,
            _value("--keep-last", "N", "keep the N newest of each DAG", type=partial(_number, 0)),
            *_duration("--older-than", "delete only runs that started so long ago", "older_than_s"),
            _JSON,
        ),
    ),
    "cache": Command(
        file_commands.manage_cache,
        "list, or forget, the results in a SQLite file that later runs may take",
        (
            Argument(
                "action",
                "ls lists them, clear forgets them",
                {"choices": _ACTIONS, "metavar": "ACTION"},
                _ACTIONS,
            ),
            _DB,
            _value("--dag", "DAG", "only results of this DAG"),
            _value("--task", "TASK", "only results of tasks of this name"),
            _JSON,
        ),
    ),
    "completion": Command(
        print_completion,
        "print a completion script for a shell",
        (Argument("shell", "the shell that is to read it", {"choices": SHELLS}, SHELLS),),
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
        for argument in (*command.arguments, _TRACEBACK):
            one.add_argument(argument.name, help=argument.help, **argument.settings)
    return parser
