"""An executor that runs every call in a fresh process, and can really kill it.

For code that may hang for good or crash its interpreter. It knows calls, not tasks.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

from flowrun.errors import ExecutorError, NotPicklableError
from flowrun.executors.child_processes import (
    context_of,
    preload_modules,
)
from flowrun.executors.process_future import ProcessFuture
from flowrun.failure import error_line
from flowrun.forks import call_in_children

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


P = ParamSpec("P")
T = TypeVar("T")
StartMethod: TypeAlias = Literal["forkserver", "spawn"]

DEFAULT_GRACE_S = 2.0
_EXIT_WAIT_S = 1.0
_LOG = logging.getLogger("flowrun.executors")


class ProcessPerAttemptExecutor(Executor):
    """Run every call in a fresh process of its own, which can be killed at any time.

    Cancelling the future of a running call kills its process and everything in its process
    group. A call that crashes its process fails with ``ProcessDiedError``, and disturbs no
    other. Nothing is left behind: the group ends with the call, and if this process dies,
    all of them die at once.

    A process starts from a fork server or from scratch, never as a fork of this one. So it
    imports the main module anew, which has to be possible: a script keeps what it runs under
    ``if __name__ == "__main__":``. It has the current environment and working directory, no
    standard input, and no controlling terminal (Ctrl-C does not reach it).

    Args:
        max_workers: How many processes there are at once; further calls wait. The number of
            processors by default.
        start_method: ``"forkserver"`` (faster; the default on Linux) or ``"spawn"``.
        grace_s: Time between SIGTERM and SIGKILL for a process that is killed.
        preload: Modules that the fork server imports once, so that calls need not. They must
            not start threads. There is one fork server for the whole program: it has to be
            named before the first call, and is the same for all executors.

    Raises:
        ValueError: One of these is out of range, or the start method is not to be had.

    Example:
        >>> with ProcessPerAttemptExecutor(2) as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        start_method: StartMethod | None = None,
        grace_s: float = DEFAULT_GRACE_S,
        preload: Sequence[str] = (),
    ) -> None:
        number: object = (os.cpu_count() or 1) if max_workers is None else max_workers
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            msg = f"max_workers must be an int of 1 or more, not {number!r}"
            raise ValueError(msg)
        if not 0 <= grace_s <= threading.TIMEOUT_MAX:
            msg = f"grace_s must be a number of seconds of 0 or more, not {grace_s!r}"
            raise ValueError(msg)
        self._limit = number
        self._grace_s = grace_s
        self._context = context_of(start_method)
        self._closed = False
        self.forget_processes()
        if self._context.get_start_method() == "forkserver":
            preload_modules((__name__, *preload))
        _EXECUTORS.add(self)
        call_in_children(self.forget_processes)

    def forget_processes(self) -> None:
        """Begin with no process and no call: called in a forked child, which has neither."""
        self._lock = threading.Lock()
        self._queue: deque[ProcessFuture[Any]] = deque()
        self._running: set[ProcessFuture[Any]] = set()
        self._busy = 0  # threads that see calls through
        self._threads: list[threading.Thread] = []  # and those that are about to end

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> ProcessFuture[T]:
        """Have a fresh process call the function.

        Raises:
            NotPicklableError: The function or an argument cannot be sent to another process.
            ExecutorError: The executor was shut down, or the system gives it no thread: it has too
                few, or the interpreter is ending.
        """
        return self._submitted(_packed_call(fn, args, kwargs), _always)

    def submit_task(self, call: Callable[[], T], may_begin: Callable[[], bool]) -> ProcessFuture[T]:
        """Have a fresh process run the code of a task.

        Args:
            call: A :class:`~flowrun.executors.remote_call.PackedCall`.
            may_begin: Called in a thread of this process when all is ready for the code to
                begin; it never does if this returns ``False``.

        Raises:
            ExecutorError: The executor was shut down, or the system gives it no thread: it has too
                few, or the interpreter is ending.
        """
        return self._submitted(_packed_call(call, (), {}), may_begin)

    def _submitted(self, payload: bytes, may_begin: Callable[[], bool]) -> ProcessFuture[Any]:
        future: ProcessFuture[Any] = ProcessFuture(self, payload, self._grace_s, may_begin)
        with self._lock:
            if self._closed:
                msg = "cannot submit: this executor was shut down"
                raise ExecutorError(msg)
            self._queue.append(future)
            if self._busy < self._limit:
                self._start_thread(future)
        return future

    def withdraw(self, future: ProcessFuture[Any]) -> None:
        """Take a cancelled call out of the queue, if it is there."""
        with self._lock, contextlib.suppress(ValueError):
            self._queue.remove(future)

    def kill(self) -> None:
        """Take no more calls, cancel the queued ones, kill the running ones with SIGKILL.

        It does not wait; :meth:`shutdown` does.
        """
        with self._lock:
            self._closed = True
            futures = [*self._queue, *self._running]
        for future in futures:
            future.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the stdlib's signature
        """Take no more calls; wait for those that run or, unless cancelled, are queued."""
        with self._lock:
            self._closed = True
            queued = list(self._queue) if cancel_futures else []
        for future in queued:
            future.cancel()
        if wait:
            self.join()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait, a bounded time if so wanted, until no call runs or waits any more."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            threads = [one for one in self._threads if one is not threading.current_thread()]
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _start_thread(self, future: ProcessFuture[Any]) -> None:
        """Start a thread that sees calls through; the lock is held."""
        thread = threading.Thread(target=self._work, name="flowrun-process-keeper", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if not self._busy:
                self._queue.remove(future)
                msg = f"no thread could be started to look after the process: {error_line(error)}"
                raise ExecutorError(msg) from error
        else:
            self._busy += 1
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._busy -= 1
                    return
                future = self._queue.popleft()
                self._running.add(future)
            try:
                future.run(self._context)
            except BaseException:  # noqa: BLE001 - it must not end this thread
                # A callback's SystemExit, or a future that other code has completed.
                _LOG.exception("a call's result could not be handed over")
            finally:
                with self._lock:
                    self._running.discard(future)
                del future


def _always() -> bool:
    return True


def _packed_call(
    function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> bytes:
    try:
        return pickle.dumps((function, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        parts: list[tuple[str, object]] = [("the function", function)]
        parts += [(f"argument {number}", value) for number, value in enumerate(args)]
        parts += [(f"argument {name!r}", value) for name, value in kwargs.items()]
        label, value = next((part for part in parts if not _can_pickle(part[1])), parts[0])
        msg = (
            f"{label} ({type(value).__qualname__}) cannot be sent to another process:"
            f" {error_line(error)}; use a function at the top level of a module and plain data"
        )
        raise NotPicklableError(msg) from error


def _can_pickle(value: object) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except BaseException:  # noqa: BLE001 - a value's own methods may raise anything
        return False
    return True


_EXECUTORS: weakref.WeakSet[ProcessPerAttemptExecutor] = weakref.WeakSet()


def _kill_at_exit() -> None:
    """Kill what still runs: multiprocessing would wait for it, however long."""
    executors = list(_EXECUTORS)
    for executor in executors:
        executor.kill()
    for executor in executors:
        executor.join(_EXIT_WAIT_S)


# Handlers run last come, first served: multiprocessing's own was registered by its import.
atexit.register(_kill_at_exit)
