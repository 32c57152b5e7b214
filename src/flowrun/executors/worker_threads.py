"""Worker threads that can be abandoned; to everybody else a ``concurrent.futures.Executor``.

Made on demand, reused, daemonic: a hung task costs the pool no worker and never keeps the
interpreter from ending. What a task is, and when its time is up, is not known here.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from flowrun.executors.worker_jobs import Job, WorkerFuture
from flowrun.forks import call_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_IDLE_S = 60.0
_FEW_CANCELLED = 64
_LOG = logging.getLogger("flowrun.executors")
_numbers = itertools.count(1)


_here = threading.local()  # of which pool the thread is


class _Worker:
    """One thread of a pool, as the pool knows it; guarded by the pool's lock.

    Attributes:
        job: What it runs.
        gate: A lock, held while there is no reason for the thread to come to the queue.
        counts: Whether it is one of the pool's threads still.
        called: Whether it is on its way to the queue.
        thread: The thread itself.
    """

    __slots__ = ("called", "counts", "gate", "job", "thread")

    def __init__(self) -> None:
        self.job: Job | None = None
        self.gate = threading.Lock()
        self.gate.acquire()
        self.counts = True
        self.called = True
        self.thread = threading.current_thread()


class WorkerThreads(Executor):
    """A pool of daemonic threads, at most ``max_workers`` of them that were not abandoned.

    Unlike the threads of ``ThreadPoolExecutor`` they are not waited for when the interpreter
    ends: shut the pool down, or use it in a ``with`` block, to have everything done.

    Args:
        max_workers: 1 or more.
        idle_s: A thread ends after so many seconds without work, so that a service shrinks
            again after a burst.

    Raises:
        ValueError: ``max_workers`` is below 1 or not an ``int``, or ``idle_s`` is not above 0.

    Example:
        >>> with WorkerThreads(2) as pool:
        ...     pool.submit(pow, 2, 10).result()
        1024
    """

    def __init__(self, max_workers: int, *, idle_s: float = DEFAULT_IDLE_S) -> None:
        number: object = max_workers
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            msg = f"max_workers must be an int of 1 or more, not {number!r}"
            raise ValueError(msg)
        if not 0 < idle_s <= threading.TIMEOUT_MAX:
            msg = f"idle_s must be a number of seconds above 0, not {idle_s!r}"
            raise ValueError(msg)
        self._limit = number  # and what was lent
        self._lent = 0
        self._idle_s = idle_s
        self._closed = False
        self._start_anew()
        call_in_children(self.forget_threads)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: deque[Job] = deque()
        self._cancelled = 0  # of the jobs, at most
        self._spare = self._limit  # threads that may be started; below 0, some have to end
        self._calling = False  # a thread is on its way to the queue
        self._live: set[_Worker] = set()
        self._idle: list[_Worker] = []  # the last one in is called first, so that others end
        self._abandoned: set[_Worker] = set()
        self._left: list[threading.Thread] = []  # threads that were about to end

    def forget_threads(self) -> None:
        """Begin with no thread and no work: called in a forked child, which has neither."""
        for worker in self._live | self._abandoned:
            # The one that has forked may come back, as if it had been abandoned.
            worker.counts = False  # pragma: no cover - forked children leave no coverage behind
        self._start_anew()

    @property
    def live_threads(self) -> int:
        """Number of threads that were not abandoned."""
        return self._limit - self._spare

    @property
    def abandoned_threads(self) -> int:
        """Number of threads that were abandoned and still run."""
        return len(self._abandoned)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> WorkerFuture[T]:
        """Have a thread call the function.

        Raises:
            RuntimeError: The pool was shut down, or the system gives it no thread at all.
        """
        future: WorkerFuture[T] = WorkerFuture()
        future.job = Job(self, partial(_run, future, fn, args, kwargs), future.withdraw)
        self.enqueue(future.job)
        return future

    def enqueue(self, job: Job) -> None:
        """Have a thread do a job; the pool ignores the outcome.

        Raises:
            RuntimeError: The pool was shut down, or the system gives it no thread at all.
        """
        with self._lock:
            if self._closed:
                msg = "cannot submit: these worker threads were shut down"
                raise RuntimeError(msg)
            self._jobs.append(job)
            if not self._calling and (self._idle or self._spare > 0):
                try:
                    self._call_thread()
                except RuntimeError:
                    self._jobs.remove(job)
                    raise

    def abandon(self, job: Job) -> bool:
        """Give up the thread that runs a call; see :meth:`Job.abandon`."""
        with self._lock:
            worker = next((one for one in self._live if one.job is job), None)
            if worker is None or job.ended:
                return False
            self._uncount(worker)
            self._abandoned.add(worker)
            self._call_thread_if_needed()
            self._changed.notify_all()
            return True

    def note_cancelled(self) -> None:
        """Forget cancelled jobs once they are most of the queue."""
        with self._lock:
            self._cancelled += 1
            if self._cancelled > _FEW_CANCELLED and self._cancelled * 2 > len(self._jobs):
                # All at once, so that one costs the same however long the queue is.
                self._jobs = deque(job for job in self._jobs if not job.is_taken)
                self._cancelled = 0

    @property
    def runs_caller(self) -> bool:
        """Whether the calling thread is one of the pool's."""
        return getattr(_here, "pool", None) is self

    def lend(self) -> None:
        """Allow one thread more, while one of them waits for work that needs a thread itself."""
        with self._lock:
            self._lent += 1
            self._limit += 1
            self._spare += 1
            self._call_thread_if_needed()

    def give_back(self) -> None:
        """End what one :meth:`lend` has allowed.

        Raises:
            RuntimeError: There was no :meth:`lend` before it.
        """
        with self._lock:
            if not self._lent:
                msg = "give_back() without a lend() before it"
                raise RuntimeError(msg)
            self._lent -= 1
            self._limit -= 1
            self._spare -= 1
            if self._spare < 0 and self._idle:
                self._idle.pop().gate.release()  # it finds that it is one too many

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the stdlib's signature
        """Take no more work; wait for what was taken, but never for abandoned threads."""
        withdrawn: list[Job] = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                withdrawn.extend(self._jobs)
                self._jobs.clear()
            while self._idle:
                self._idle.pop().gate.release()
        for job in withdrawn:
            calls = job.take()
            if calls is not None:
                _, withdraw = calls
                withdraw()
        if wait:
            self._wait_until_left()

    def _wait_until_left(self) -> None:
        me = threading.current_thread()

        def only_me() -> bool:
            others = [worker for worker in self._live if worker.thread is not me]
            return not others and self.live_threads == len(self._live)

        with self._changed:
            self._changed.wait_for(only_me)
            left = [thread for thread in self._left if thread is not me]
        for thread in left:
            thread.join()  # it runs no more jobs

    def _call_thread(self) -> None:
        """Have one thread come to the queue, if there is one; the lock is held.

        Only one is on its way at a time; it calls the next one if there is more to do. So a
        burst of short jobs wakes few threads, and who submits them starts no more than one.
        """
        if self._idle:
            worker = self._idle[-1]
            worker.called = self._calling = True
            del self._idle[-1]  # no call up to here: a KeyboardInterrupt would lose the worker
            worker.gate.release()
        elif self._spare > 0:
            thread = threading.Thread(
                target=self._work, name=f"flowrun-worker-{next(_numbers)}", daemon=True
            )
            self._spare -= 1
            self._calling = True
            try:
                thread.start()
            except RuntimeError:
                self._spare += 1
                self._calling = False
                if not self._live:
                    raise

    def _call_thread_if_needed(self) -> None:
        """Have a thread come if there is work for it; the lock is held."""
        if self._jobs and not self._calling:
            try:
                self._call_thread()
            except RuntimeError as error:
                _LOG.warning("queued calls have to wait for a thread: %s", error)

    def _work(self) -> None:
        """Run jobs in this thread until there are none for long, or it is one too many."""
        _here.pool = self
        worker = _Worker()
        with self._lock:
            self._live.add(worker)
        while self._next_job(worker):
            if worker.job is not None:
                _do(worker.job)
            elif not worker.gate.acquire(timeout=self._idle_s) and self._leave_idle(worker):
                return

    def _next_job(self, worker: _Worker) -> bool:
        """Give the worker its next job, or none for now; return whether it stays at all."""
        with self._lock:
            worker.job = None  # an idle thread keeps nothing of its last call alive
            if worker.called:
                worker.called = self._calling = False
            if not worker.counts:
                self._rejoin(worker)
            if self._spare < 0 or (self._closed and not self._jobs):
                self._leave(worker)
                return False
            if not self._jobs:
                self._idle.append(worker)
                return True
            worker.job = self._jobs.popleft()
            if self._jobs and (self._idle or self._spare > 0):
                self._call_thread_if_needed()
            return True

    def _rejoin(self, worker: _Worker) -> None:
        """Count a worker again whose abandoned call has ended; the lock is held.

        It leaves again if there is no room for it.
        """
        self._abandoned.discard(worker)
        self._live.add(worker)
        worker.counts = True
        self._spare -= 1

    def _leave_idle(self, worker: _Worker) -> bool:
        """Leave after a long time without work, unless it was called just now."""
        with self._lock:
            idle = worker in self._idle
            if idle:
                self._idle.remove(worker)
                self._leave(worker)
        # Otherwise the thread that called the worker opens its gate, or has done so.
        return idle or not worker.gate.acquire()

    def _leave(self, worker: _Worker) -> None:
        """Let a worker go; the lock is held."""
        self._uncount(worker)
        self._left = [thread for thread in self._left if thread.is_alive()]
        # A thread that forks becomes the main thread of its child. From Python 3.14 on, is_alive()
        # blocks forever once that thread has ended.
        self._left += {worker.thread} - {threading.main_thread()}
        self._call_thread_if_needed()
        self._changed.notify_all()

    def _uncount(self, worker: _Worker) -> None:
        worker.counts = False
        self._live.discard(worker)
        self._spare += 1


def _do(job: Job) -> None:
    calls = job.take()
    if calls is None:
        return  # it was cancelled
    call, _ = calls
    del calls, _
    try:
        call()
    except BaseException:  # noqa: BLE001 - it must not end this thread
        # A callback's SystemExit, or a future that other code has completed.
        _LOG.exception("a call's result could not be handed over")
    finally:
        job.ended = True
        del job, call  # nothing that the caller might want to be rid of


def _run(
    future: WorkerFuture[T],
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    try:
        if future.set_running_or_notify_cancel():
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - the future carries whatever it was
                future.set_exception(error)
            else:
                future.set_result(result)
    finally:
        # The error's traceback holds this frame: leave nothing in it that holds the error.
        del future, function, args, kwargs
