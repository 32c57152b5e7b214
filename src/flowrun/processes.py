"""An executor that runs every call in a fresh process, and can really kill it.

For code that may hang for good or crash its interpreter. It knows calls, not tasks.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import multiprocessing.util  # noqa: F401 - its exit handler has to be registered before ours
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from multiprocessing import connection, forkserver
from multiprocessing.process import parent_process
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from flowrun.errors import ExecutorError, NotPicklableError, ProcessDiedError, RemoteTaskError
from flowrun.failure import encodable, error_line, error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

    Context: TypeAlias = SpawnContext | ForkServerContext

P = ParamSpec("P")
T = TypeVar("T")
StartMethod: TypeAlias = Literal["forkserver", "spawn"]

DEFAULT_GRACE_S = 2.0
_LINGER_S = 1.0
_READY = b"ready"
_GUARD_HINT = (
    " before the call began; the process imports the main module anew, which must be"
    " possible: keep what it runs under `if __name__ == '__main__':`"
)
_numbers = itertools.count(1)


class _Children:
    """Access to the children of this process, by one thread at a time.

    multiprocessing polls all children whenever it starts one, and an exit status can be read
    only once: of two threads that do it at the same time one would get a made-up exit code.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def start(self, process: BaseProcess) -> None:
        with self.lock:
            process.start()

    def exit_code(self, process: BaseProcess) -> int | None:
        with self.lock:
            return process.exitcode

    def exit_code_within(self, process: BaseProcess, timeout_s: float) -> int | None:
        """Return the exit code once the process has ended, ``None`` if it takes longer."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while (code := self.exit_code(process)) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            # The sentinel tells at once, as a rule. But a grandchild may have inherited it and
            # keep it open, or the process may have closed it early: then we have to look.
            if connection.wait([process.sentinel], min(left_s, 50 * pause_s)):
                time.sleep(min(left_s, pause_s))
            pause_s = min(2 * pause_s, 0.01)
        return code


_children = _Children()


class ProcessFuture(Future[T]):
    """The future of a call in a process of its own; cancelling it kills the process.

    A killed call counts as cancelled once its process is gone, and not before: then
    ``cancelled()`` is true, ``result()`` raises ``CancelledError``, and the callbacks are run.
    """

    def __init__(self, executor: ProcessPerAttemptExecutor, payload: bytes, grace_s: float) -> None:
        super().__init__()
        self._executor = executor
        self._payload = payload
        self._environment = dict(os.environ)
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._timer: threading.Timer | None = None
        self._killed = False
        self._settled = False

    def cancel(self) -> bool:
        """Withdraw the call, or kill its process; return at once whether that will happen.

        The process and its group get SIGTERM, and SIGKILL if it is still there after the
        executor's ``grace_s``.
        """
        return self._end(self._grace_s)

    def kill(self) -> bool:
        """Do as :meth:`cancel` does, but with SIGKILL at once."""
        return self._end(0.0)

    def cancelled(self) -> bool:
        """Return whether the call was withdrawn, or killed by :meth:`cancel` or :meth:`kill`."""
        return super().cancelled() or (self._killed and self.done())

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, if it did; see ``concurrent.futures.Future``.

        Raises:
            CancelledError: The call was withdrawn or killed.
        """
        error = super().exception(timeout)
        if self._killed and error is not None:
            raise error
        return error

    def run(self, context: Context) -> None:
        """Run the call; called by the executor, in a thread that has nothing else to do."""
        if not self.set_running_or_notify_cancel():
            return
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._outcome(context)
        except BaseException as raised:  # noqa: BLE001 - the future carries whatever it was
            error = raised
        with self._lock:
            self._settled = True  # from here on it is too late to kill
            if self._killed:
                error = CancelledError()
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)
            del error  # its traceback holds this frame

    def _end(self, grace_s: float) -> bool:
        if super().cancel():
            if self._executor.withdraw(self):
                self._payload = b""
                self.set_running_or_notify_cancel()  # tells those who wait
            return True
        with self._lock:
            if self._settled or self.done():
                return False
            if not self._killed or not grace_s:
                self._killed = True
                self._signal(grace_s)
            return True

    def _signal(self, grace_s: float) -> None:
        """Tell the process, if there is one yet, to end; the lock is held."""
        if self._process is None:
            return
        if grace_s:
            _send_signal(self._process, force=False)
            self._timer = threading.Timer(grace_s, self.kill)
            self._timer.daemon = True
            self._timer.name = "flowrun-process-killer"
            with contextlib.suppress(RuntimeError):
                self._timer.start()
                return
            self._timer = None  # the system gives no thread to wait with
        _send_signal(self._process, force=True)

    def _outcome(self, context: Context) -> object:
        """Return what the call returned, or raise what it raised, when its process is gone."""
        pipe, self._process = self._started(context)
        if self._process is None:
            raise CancelledError
        process = self._process
        ready, data = False, None
        try:
            with self._lock:
                if self._killed:  # while it was being started
                    self._signal(self._grace_s)
            with pipe, contextlib.suppress(EOFError, OSError):
                ready = pipe.recv_bytes() == _READY
                pipe.send(self._environment)
                pipe.send_bytes(self._payload)
                self._payload = b""
                data = pipe.recv_bytes()
        finally:
            code, lingered = self._reaped(process)
        if data is not None:
            return _unpacked(data)
        raise ProcessDiedError(_how_it_died(code, ready=ready, lingered=lingered))
