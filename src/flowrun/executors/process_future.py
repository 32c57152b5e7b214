"""One call in a process of its own: started, spoken to, killed, reaped."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from flowrun.errors import NotPicklableError, ProcessDiedError
from flowrun.executors.child_processes import (
    children,
    end_group,
    how_it_died,
    send_signal,
    started,
)
from flowrun.executors.process_child import BEGIN, PROGRESS, READY
from flowrun.failure import error_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from flowrun.executors.child_processes import Context
    from flowrun.executors.process_child import Pipe
    from flowrun.executors.process_per_attempt import ProcessPerAttemptExecutor


T = TypeVar("T")

_LINGER_S = 1.0


class ProcessFuture(Future[T]):
    """The future of a call in a process of its own; cancelling it kills the process.

    A killed call counts as cancelled once its process is gone, and not before: then
    ``cancelled()`` is true, ``result()`` raises ``CancelledError``, and the callbacks are run.

    Attributes:
        on_progress: Called, in a thread of this process, with what a task says of its progress.
    """

    # To the base class a running call is one that waits: that alone can still become cancelled.

    def __init__(
        self,
        executor: ProcessPerAttemptExecutor,
        payload: bytes,
        grace_s: float,
        may_begin: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._executor = executor
        self._payload = payload
        self._environment = dict(os.environ)
        self._grace_s = grace_s
        self._may_begin = may_begin
        self.on_progress: Callable[[Any], object] = bool  # which ignores it
        self._lock = threading.Lock()
        self._process: BaseProcess | None = None
        self._timer: threading.Timer | None = None
        self._is_running = False
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

    def running(self) -> bool:
        """Return whether the call has a process, or is about to get one."""
        return self._is_running and not self.done()

    def run(self, context: Context) -> None:
        """Run the call; called by the executor, in a thread that has nothing else to do."""
        with self._lock:
            if self._settled:
                return  # it was withdrawn
            self._is_running = True
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._outcome(context)
        except BaseException as raised:  # noqa: BLE001 - the future carries whatever it was
            error = raised
        with self._lock:
            self._settled = True  # from here on it is too late to kill
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        if self._killed:
            self._set_cancelled()
        elif error is None:
            self.set_result(value)
        else:
            self.set_exception(error)
        del error  # its traceback holds this frame

    def _end(self, grace_s: float) -> bool:
        with self._lock:
            if self._settled:
                return self.cancelled() and not self._killed
            if self._is_running:
                if not self._killed or not grace_s:
                    self._killed = True
                    self._signal(grace_s)
                return True
            self._settled = True
        self._executor.withdraw(self)
        self._payload = b""
        self._set_cancelled()
        return True

    def _set_cancelled(self) -> None:
        super().cancel()
        self.set_running_or_notify_cancel()  # tells those who wait

    def _signal(self, grace_s: float) -> None:
        """Tell the process, if there is one now, to end; the lock is held."""
        if self._process is None:
            return
        if grace_s:
            send_signal(self._process, force=False)
            timer = threading.Timer(grace_s, self.kill)
            timer.daemon = True
            timer.name = "flowrun-process-killer"
            # Where the system gives no thread to wait with, there is no grace.
            with contextlib.suppress(RuntimeError):
                timer.start()
                self._timer = timer
                return
        send_signal(self._process, force=True)

    def _outcome(self, context: Context) -> object:
        """Return what the call returned, or raise what it raised, once its process is gone."""
        pipe, process = started(context)
        with self._lock:
            self._process = process
            if self._killed:
                self._signal(0.0)
        try:
            ready, data = self._converse(pipe)
        finally:
            code = self._reap(process)
        if data is not None:
            return _unpacked(data)
        raise ProcessDiedError(how_it_died(code, ready=ready))

    def _converse(self, pipe: Pipe) -> tuple[bool, bytes | None]:
        """Return whether the process was ready for the call, and what it sent back, if it did."""
        ready = False
        with pipe, contextlib.suppress(EOFError, OSError):  # it has ended, or closed its pipe
            ready = pipe.recv_bytes() == READY
            pipe.send(self._environment)
            pipe.send_bytes(self._payload)
            self._payload = b""
            data = pipe.recv_bytes()
            if data == BEGIN:
                if self._killed or not self._may_begin():
                    return ready, None  # without an answer the code never begins
                pipe.send_bytes(BEGIN)
                data = pipe.recv_bytes()
                while data.startswith(PROGRESS):
                    # Plain numbers, written by a process of ours.
                    self.on_progress(pickle.loads(data.removeprefix(PROGRESS)))  # noqa: S301
                    data = pipe.recv_bytes()
            return ready, data
        return ready, None

    def _reap(self, process: BaseProcess) -> int | None:
        """Wait for the end of the process and all of its group.

        Returns:
            Its exit code; ``None`` if it would not end and was killed for that.
        """
        found = code = children.exit_code_within(process, max(self._grace_s, _LINGER_S))
        while code is None:
            with self._lock:
                send_signal(process, force=True)
            code = children.exit_code_within(process, _LINGER_S)
        with self._lock:
            self._process = None
        end_group(process)
        children.close(process)
        return found


def _unpacked(data: bytes) -> object:
    """Return what the call returned, or raise what it raised."""
    try:
        ok, value, text = pickle.loads(data)  # noqa: S301 - written by a process of ours
    except BaseException as error:
        msg = (
            f"the result came back but could not be unpickled: {error_line(error)};"
            " return plain data"
        )
        raise NotPicklableError(msg) from error
    if ok:
        return value
    if text:
        value.add_note("\nIn its process:\n" + text)
    raise value
