"""The command line: ``main`` runs one command and turns its outcome into an exit code.

Exit codes: 0 success, 1 the run failed (or a check, a disk or a store did), 2 wrong use, 130
interrupted.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from flowrun.cli.arguments import make_parser
from flowrun.cli.engine_commands import FAILED, SUCCESS
from flowrun.cli.output import Output, complain, notify
from flowrun.cli.signals import INTERRUPTED, RunLoop, leave_process
from flowrun.errors import (
    ContextError,
    FlowrunError,
    GraphError,
    RunCancelledError,
    StoreError,
    StoreFileError,
    UnknownRunError,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

USAGE = 2
# Errors of the operating system about a path that the user has typed.
_WRONG_PATH = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_SQLITE_CORRUPT = 11
# Of these the exit code is the run's, also if its report could not be printed.
_CODE_OF_A_RUN = ("run", "resume")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process by default. Without
            them the command owns the process, and may end it where tasks or threads remain.
    """
    output, loop = Output(), RunLoop()
    options: argparse.Namespace | None = None
    try:
        options = make_parser().parse_args(arguments)
        options.run_loop = loop
        code = _run(options, output)
    finally:
        lost = output.finish()
        if arguments is not None:
            loop.release()
    if lost is not None:
        complain(f"cannot write to standard output: {lost}")
        if code == SUCCESS and options.name not in _CODE_OF_A_RUN:
            code = FAILED
    if arguments is None:
        leave_process(code, loop)
    return code


def _run(options: argparse.Namespace, output: Output) -> int:
    """Run the command; its errors become text on standard error and an exit code."""
    try:
        return int(options.command(options, output))
    except KeyboardInterrupt:
        notify("interrupted")
        return INTERRUPTED
    except (FlowrunError, RunCancelledError, OSError, ValueError) as error:
        if options.traceback:  # which ends with the error's own text
            traceback.print_exc()
        else:
            complain(_text(error))
        return _code(error)


def _text(error: BaseException) -> str:
    """Return the text of an error, with a remedy for the command line."""
    if isinstance(error, UnknownRunError):
        return (
            f"no run {error.run_id!r} in the state store; it was never started here, or it was"
            " pruned. 'flowrun runs DB' lists the runs of a file."
        )
    if isinstance(error, ContextError):
        return (
            f"{error}. On the command line name a function that makes it: --context MODULE:FACTORY"
        )
    return str(error)


def _code(error: BaseException) -> int:
    """Tell wrong use from a failure of the DAG, the run, the store or the disk."""
    if isinstance(error, StoreFileError):
        damaged = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF == _SQLITE_CORRUPT
        return FAILED if damaged else USAGE
    if isinstance(error, GraphError | RunCancelledError | StoreError):
        return FAILED
    if isinstance(error, OSError) and not isinstance(error, _WRONG_PATH):
        return FAILED
    return USAGE
