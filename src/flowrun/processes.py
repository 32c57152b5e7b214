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
from multiprocessing.process import parent_process
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flowrun.errors import ExecutorError, NotPicklableError, ProcessDiedError, RemoteTaskError
from flowrun.failure import encodable, error_line, error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess, SpawnProcess

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_GRACE_S = 2.0
_EXIT_WAIT_S = 1.0
_READY = b"ready"
_numbers = itertools.count(1)
# multiprocessing polls all children whenever it starts one. Two threads that read one child's
# exit status at once get it once: the other one would report a made-up exit code.
_CHILDREN_LOCK = threading.Lock()


class ProcessFuture(Future[T]):
    """The future of a call in a process of its own; cancelling it kills the process.

    A killed call counts as cancelled, once its process is gone: ``cancelled()`` is then true,
    ``result()`` raises ``CancelledError``, and only then are the callbacks run.
    """

    def __init__(self, payload: bytes, grace_s: float) -> None:
        super().__init__()
        self._payload = payload
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._process: SpawnProcess | ForkServerProcess | None = None
        self._kill_timer: threading.Timer | None = None
        self._killed = False
        self._settled = False

    def cancel(self) -> bool:
        """Withdraw the call, or kill its process; return at once whether that will happen.

        The process group gets SIGTERM, and SIGKILL when it is still there after ``grace_s``.
        """
        if super().cancel():
            self._payload = b""
            return True
        return self.kill(self._grace_s)

    def kill(self, grace_s: float = 0.0) -> bool:
        """Kill the process of a running call; return whether there is one to kill.

        Args:
            grace_s: Time for it to end by itself; without any it gets SIGKILL at once.
        """
        with self._lock:
            if self._settled or not self.running():
                return False
            hasten = not grace_s
            if self._killed and not hasten:
                return True
            self._killed = True
            if self._process is not None:
                self._begin_kill(self._process, grace_s)
            return True

    def cancelled(self) -> bool:
        """Return whether the call was withdrawn or its process was killed on request."""
        return super().cancelled() or (self._killed and self.done())

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised; see ``concurrent.futures.Future``.

        Raises:
            CancelledError: The call was withdrawn or killed.
        """
        error = super().exception(timeout)
        if isinstance(error, CancelledError) and self._killed:
            raise error
        return error
