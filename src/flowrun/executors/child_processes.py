"""The processes of an executor as the operating system sees them: start, exit code, signals."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import connection, forkserver
from typing import TYPE_CHECKING, TypeAlias

from flowrun.errors import ExecutorError
from flowrun.executors.process_child import serve
from flowrun.failure import error_line
from flowrun.forks import call_in_children

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import SpawnContext
    from multiprocessing.process import BaseProcess

    from flowrun.executors.process_child import Pipe

    if sys.platform == "win32":
        Context: TypeAlias = SpawnContext
    else:
        from multiprocessing.context import ForkServerContext

        Context: TypeAlias = SpawnContext | ForkServerContext

_GUARD_HINT = (
    " A new process imports the main module again, which must be possible: in a script, put what"
    ' it runs under `if __name__ == "__main__":`'
)
_SIGKILL = 9
_numbers = itertools.count(1)


class Children:
    """Give one thread at a time access to the children of this process.

    multiprocessing polls all children whenever it starts one, and an exit status can be read only
    once: of two threads that poll at the same time, one would get a wrong exit code.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Make a new lock: in a forked child no thread releases the parent's."""
        self._lock = threading.Lock()

    def start(self, process: BaseProcess) -> None:
        """Start a process."""
        with self._lock:
            process.start()

    def close(self, process: BaseProcess) -> None:
        """Release the resources of a process that has ended."""
        with self._lock:
            process.close()

    def exit_code(self, process: BaseProcess) -> int | None:
        """Return the exit code of a process; ``None`` while it runs."""
        with self._lock:
            return process.exitcode

    def exit_code_within(self, process: BaseProcess, timeout_s: float) -> int | None:
        """Return the exit code once the process has ended, ``None`` if it takes longer."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while (code := self.exit_code(process)) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            # The sentinel usually wakes us at once. But a grandchild may have inherited it and
            # keep it open, or the process may have closed it early: then we have to poll.
            if connection.wait([process.sentinel], min(left_s, 50 * pause_s)):
                # The descriptor is closed, so a wait for it returns at once. No other event
                # announces the end of a process.
                time.sleep(min(left_s, pause_s))
            pause_s = min(2 * pause_s, 0.01)
        return code


children = Children()
"""The children of this process, with one lock for all."""
call_in_children(children.forget)


def context_of(start_method: str | None) -> Context:
    """Return the context that makes processes, by a method that is safe beside threads."""
    method = start_method or ("forkserver" if sys.platform == "linux" else "spawn")
    available = multiprocessing.get_all_start_methods()
    if method == "fork":
        msg = "start_method 'fork' is refused: a fork of a process with threads may hang for good"
        raise ValueError(msg)
    if method not in {"forkserver", "spawn"} or method not in available:
        msg = f"start_method {method!r} is not available here; use 'spawn'"
        raise ValueError(msg)
    if sys.platform != "win32" and method == "forkserver":
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def preload_modules(names: Sequence[str]) -> None:
    """Make the fork server import more modules, if it does not run yet."""
    # There is no public way to read the list of modules, only to replace it.
    server: object = getattr(forkserver, "_forkserver", None)
    known: list[str] = getattr(server, "_preload_modules", ["__main__"])
    forkserver.set_forkserver_preload(list(dict.fromkeys((*known, *names))))


def started(context: Context) -> tuple[Pipe, BaseProcess]:
    """Start a process and return it with our end of the pipe to it."""
    pauses_s = [0.05, 0.2]
    while True:
        try:
            return _started_at_once(context)
        except (ConnectionError, EOFError) as error:
            # The fork server has died; multiprocessing starts another at the next attempt.
            if not pauses_s:
                msg = (
                    f"the fork server does not run ({error_line(error)}); see its standard error:"
                    " it imports the main module and those named as preload. In a script, put what"
                    ' it runs under `if __name__ == "__main__":`'
                )
                raise ExecutorError(msg) from error
            time.sleep(pauses_s.pop(0))  # no event announces that a fork server can start again
        except Exception as error:
            if isinstance(error, ChildProcessError) and context.get_start_method() != "spawn":
                # The fork server is a child of the process of which this one is a fork.
                context = multiprocessing.get_context("spawn")
                continue
            msg = f"no process could be started: {error_line(error)}"
            raise ExecutorError(msg) from error


def _started_at_once(context: Context) -> tuple[Pipe, BaseProcess]:
    ours, theirs = context.Pipe()
    try:
        with theirs:
            name = f"flowrun-process-{next(_numbers)}"
            process = context.Process(target=serve, args=(theirs,), name=name)
            children.start(process)
    except BaseException:
        ours.close()
        raise
    return ours, process


def send_signal(process: BaseProcess, *, force: bool) -> None:
    """Send SIGTERM or SIGKILL to the process and its group."""
    if sys.platform == "win32":  # pragma: no cover - the tests run on Linux
        process.kill() if force else process.terminate()
    else:
        number = signal.SIGKILL if force else signal.SIGTERM
        pid = process.pid
        assert pid is not None  # noqa: S101 - it was started
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:  # it has not made its group yet
                os.kill(pid, number)


def end_group(process: BaseProcess) -> None:
    """Kill the processes that a process has left in its group at its end."""
    if sys.platform != "win32":  # pragma: no branch - the tests run on Linux
        pid = process.pid
        assert pid is not None  # noqa: S101 - it was started
        # The system does not reuse its number while the group exists, and later only after all
        # other numbers.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def how_it_died(code: int | None, *, ready: bool) -> str:
    """Say why a process sent nothing back.

    ``code`` is ``None`` if it would not end and was killed; ``ready`` says if the call had begun.
    """
    if code is None:
        return "the process closed its pipe without a result and did not end; it was killed"
    if code < 0:
        text = f"the process was killed by signal {_signal_name(-code)} ({-code})"
        if -code == _SIGKILL:
            text += ", not by flowrun; the system does so when it is out of memory"
        return text
    if ready:
        return f"the process exited with code {code} without a result"
    return f"the process exited with code {code} before the call began." + _GUARD_HINT


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        return "of real time"
