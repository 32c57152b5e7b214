"""What runs in a fresh process of a ``ProcessPerAttemptExecutor``."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from functools import partial
from multiprocessing import connection
from multiprocessing.process import parent_process
from typing import TYPE_CHECKING

from flowrun.errors import NotPicklableError, RemoteTaskError
from flowrun.executors.remote_call import PackedCall
from flowrun.failure import encodable, error_line, error_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from typing import Any, TypeAlias

    from flowrun.context import Attempt

    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection

        Pipe: TypeAlias = PipeConnection[Any, Any]
    else:
        from multiprocessing.connection import Connection

        Pipe: TypeAlias = Connection[Any, Any]

READY = b"ready"
"""What it sends first."""

BEGIN = b"begin"
"""What it sends before the code of a task begins, and what it then waits for."""


PROGRESS = b"progress"
"""What stands before each progress of a task that it sends."""

_PROGRESS_EVERY_S = 0.1


class _Progress:
    """Send what a task says of its progress, from whichever thread it does."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._next_at = 0.0

    def said(self, attempt: Attempt) -> None:
        """Send it, unless another one was sent a moment ago; the last one comes with the reply."""
        attempt.is_progress_told = False
        if time.monotonic() < self._next_at or not self._lock.acquire(blocking=False):
            return
        self._next_at = time.monotonic() + _PROGRESS_EVERY_S
        with contextlib.suppress(OSError):  # in a child that the task has forked
            self._pipe.send_bytes(PROGRESS + pickle.dumps(attempt.last_progress))
        self._lock.release()

    def end(self) -> None:
        """Send no more."""
        self._lock.acquire()


def serve(pipe: Pipe) -> None:
    """Run one call: the main function of a process."""
    _settle_in(pipe)
    with pipe, contextlib.suppress(EOFError, OSError):  # the parent has dropped the call
        pipe.send_bytes(READY)
        # A fork server has the environment of its own start.
        environment = pipe.recv()
        os.environ.clear()
        os.environ.update(environment)
        progress = _Progress(pipe)
        reply = _reply_to(pipe.recv_bytes(), partial(_ask_to_begin, pipe), progress.said)
        progress.end()
        pipe.send_bytes(reply)


def _ask_to_begin(pipe: Pipe) -> None:
    pipe.send_bytes(BEGIN)
    pipe.recv_bytes()  # it raises EOFError if the code is not to begin


def _settle_in(pipe: Pipe) -> None:
    """Make this process one that can be killed with all that it starts."""
    if sys.platform != "win32":  # pragma: no branch - the tests run on Linux
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # What it forks must not hold the pipe open: its end means that this process has died.
        os.register_at_fork(after_in_child=pipe.close)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    parent = parent_process()
    assert parent is not None  # noqa: S101 - this is a child
    _die_with(parent)


if sys.platform == "linux":

    def _die_with(parent: BaseProcess) -> None:
        """Have the kernel kill this process group when the other end of a pipe is closed.

        A thread that waits for it could not act while the call holds the interpreter's lock,
        and would make of every ``os.fork()`` in the call one of a process with threads.
        """
        import fcntl  # noqa: PLC0415 - there is none on Windows

        file = parent.sentinel
        fcntl.fcntl(file, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_ASYNC)
        if connection.wait([file], 0):  # pragma: no cover - it died while this was set up
            os.killpg(0, signal.SIGKILL)

else:  # pragma: no cover - the tests run on Linux

    def _die_with(parent: BaseProcess) -> None:
        """Have a thread kill this process group when the parent process has ended."""

        def watch() -> None:
            connection.wait([parent.sentinel])
            if sys.platform != "win32":
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, name="flowrun-parent-watch", daemon=True).start()


def _reply_to(
    payload: bytes,
    ask_to_begin: Callable[[], object],
    on_progress: Callable[[Attempt], object],
) -> bytes:
    """Run a call and return what is to be sent back."""
    try:
        function, args, kwargs = pickle.loads(payload)  # noqa: S301 - written by our parent
    except BaseException as error:  # noqa: BLE001 - unpickling may raise anything
        return _refusal("the call could not be unpickled in its process", error)
    if type(function) is PackedCall:
        function.before_code, function.on_progress = ask_to_begin, on_progress
    try:
        value = function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - everything is the call's own failure
        return pickle.dumps((False, _portable(error), error_text(error)))
    try:
        return pickle.dumps((True, value, ""), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - a value's own methods may raise anything
        name = type(value).__qualname__
        return _refusal(f"the result ({name}) could not be pickled to be sent back", error)


def _refusal(problem: str, error: BaseException) -> bytes:
    text = f"{problem}: {error_line(error)}"
    return pickle.dumps((False, NotPicklableError(text), ""))


def _portable(error: BaseException) -> BaseException:
    """Return the error if it survives a round trip through pickle, or a stand-in for it."""
    with contextlib.suppress(BaseException):
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - our own bytes
            return error
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return RemoteTaskError(encodable(name), error_line(error))
