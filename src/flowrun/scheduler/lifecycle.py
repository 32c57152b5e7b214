"""Which runs of an engine are alive, and how the engine closes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING

from flowrun.context import CURRENT
from flowrun.errors import EngineClosedError, WrongCallError, overlap
from flowrun.executors.attempt_logs import kept_logs
from flowrun.scheduler.checks import check_drain_timeout

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Generator

    from flowrun.executors import WorkerThreads
    from flowrun.scheduler.run import Run
    from flowrun.scheduler.services import Services
    from flowrun.state import RunRecord

_STANDSTILL_S = 1.0
_CLOSE_JOURNAL_S = 30.0


class Lifecycle:
    """The runs of one engine, from their first moment until the engine has been released.

    Args:
        services: What the runs share; the journal is closed with the engine.
        threads: Worker threads that the engine owns, shut down with it.
        log: Where it reports what still runs when the engine is closed.

    Attributes:
        is_closed: Whether the engine is closed.
        has_run: Whether a run was started.
    """

    def __init__(
        self, services: Services, threads: tuple[WorkerThreads, ...], log: logging.Logger
    ) -> None:
        self._services = services
        self._threads = threads
        self._log = log
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._alive: dict[str, tuple[Run, asyncio.AbstractEventLoop]] = {}
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._releases = threading.Lock()
        self._is_released = False
        self._is_draining = False
        self.is_closed = False
        self.has_run = False

    def require_open(self, action: str) -> None:
        """Refuse to do something once the engine is closed.

        Runs that may end while it closes may start others inside their tasks.

        Raises:
            EngineClosedError: It is closed.
        """
        if self.is_closed and not (self._is_draining and self._is_inside_run()):
            raise EngineClosedError(action)

    def find(self, run_id: str) -> tuple[Run, asyncio.AbstractEventLoop] | None:
        """Return a run that is alive, with its loop."""
        with self._lock:
            return self._alive.get(run_id)

    @contextlib.contextmanager
    def alive(self, run: Run, loop: asyncio.AbstractEventLoop) -> Generator[None, None, None]:
        """Keep a run among those that are alive.

        Raises:
            EngineClosedError: The engine is closed.
            RunAliveError: It must be the only run of its DAG, and this engine has another one. The
                store knows of those of other engines, but not of one that it has yet to create.
        """
        run_id = run.record.run_id
        waits = self.has_run = True
        self.require_open("run a DAG")
        try:
            with self._lock:
                self.require_open("run a DAG")
                self._refuse_overlap(run.record)
                self._alive[run_id] = (run, loop)
            with kept_logs(wanted=self._services.config.keep_logs):
                yield
        except BaseException as error:
            # The loop went on no more, and perhaps the interpreter is ending; or a bare
            # KeyboardInterrupt came out. After every other error the run has ended.
            if isinstance(error, GeneratorExit):
                waits = False
                run.end_lost(at_exit=True)
            else:
                run.end_lost(error)
            raise
        finally:
            self._leave(run_id, waits=waits)

    def _refuse_overlap(self, record: RunRecord) -> None:
        dag_name = record.dag_name
        for run_id, (run, _) in self._alive.items() if record.sole_of_dag else ():
            if run.record.dag_name == dag_name:
                raise overlap(dag_name, run_id)

    def end_lost(self) -> None:
        """End the runs whose loop was closed under them, so that they hold nothing up."""
        with self._lock:
            lost = [run for run, loop in self._alive.values() if loop.is_closed()]
            for run in lost:  # so that only this thread ends it
                del self._alive[run.record.run_id]
        abandoned = self._services.abandoned
        abandoned.difference_update([each for each in abandoned.copy() if not each.can_go_on])
        # Not under the lock: what ends a run may drop its coroutine, which leaves by _leave().
        for run in lost:
            run.end_lost()
            run.awaiter.close()
        if lost:
            with self._lock:  # not the condition, whose own lines can be interrupted
                self._idle.notify_all()

    # -- closing -----------------------------------------------------------------------------------

    def close(self, *, drain: bool) -> None:
        """Close the engine; see :meth:`Engine.close`."""
        here = running_loop()
        self._shut(drain=drain)
        with self._lock:
            while drain and self._is_any_running(here):
                self._idle.wait(_STANDSTILL_S)  # a loop that stops sends no notification
            self._idle.wait_for(
                lambda: all(loop is here for loop in self._loops()), self._close_wait_s()
            )
            if self._loops():
                return  # the last of them releases
        self._release()

    async def aclose(self, *, drain: bool, timeout_s: float | None) -> None:
        """Do as :meth:`close`, without blocking the event loop."""
        check_drain_timeout(timeout_s, drain=drain)
        self._shut(drain=drain)
        over = asyncio.Event()
        waits = (asyncio.get_running_loop(), over)
        with self._lock:
            self._waiting.append(waits)
            if not self._loops():
                over.set()
        try:
            if drain:
                await self._drain(over, inf if timeout_s is None else timeout_s)
            with self._lock:
                wait_s = self._close_wait_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await over.wait()
        finally:
            with self._lock:
                if waits in self._waiting:
                    self._waiting.remove(waits)
                is_left = bool(self._loops())  # then the last run releases
            if not is_left:
                await self._release_off_loop()

    async def _drain(self, over: asyncio.Event, timeout_s: float) -> None:
        """Wait for the runs to end; cancel those that have not ended after so long."""
        now = asyncio.get_running_loop().time
        due = now() + timeout_s
        while not over.is_set() and now() < due and self._is_any_running():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_STANDSTILL_S, due - now())):
                    await over.wait()
        if not over.is_set():
            self._shut(drain=False)

    def _shut(self, *, drain: bool) -> None:
        """Start nothing more; cancel the runs that are alive, unless they may end."""
        if drain and self._is_inside_run():
            msg = "close(drain=True) inside a task would wait for that task; close() cancels it"
            raise WrongCallError(msg)
        self.end_lost()
        with self._lock:
            self.is_closed = True
            self._is_draining = drain
            runs = [] if drain else list(self._alive.values())
        for run, _ in runs:
            run.request_cancel("the engine was closed")

    def _is_inside_run(self) -> bool:
        """Return whether a task of a run that is alive calls."""
        attempt = CURRENT.get(None)
        return attempt is not None and not attempt.ended and attempt.run_id in self._alive

    def _is_any_running(self, here: asyncio.AbstractEventLoop | None = None) -> bool:
        """Return whether the loop of a run that is alive runs, other than this one."""
        return any(loop.is_running() for loop in self._loops() if loop is not here)

    def _leave(self, run_id: str, *, waits: bool) -> None:
        with self._lock:
            self._alive.pop(run_id, None)
            self._idle.notify_all()
            if not self.is_closed or self._loops():
                return
            waiting, self._waiting = self._waiting, []
        is_told = False
        for loop, over in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(over.set)
                is_told = True
        if not is_told:
            self._release(waits=waits)

    def _loops(self) -> list[asyncio.AbstractEventLoop]:
        """Return the loops of the runs that are alive; the lock is held."""
        return [loop for _, loop in self._alive.values() if not loop.is_closed()]

    def _close_wait_s(self) -> float | None:
        """Return how long to wait for them, their teardowns included; the lock is held."""
        if not any(loop.is_running() for loop in self._loops()):
            return _STANDSTILL_S
        config = self._services.config
        longest_s = max(run.graph.teardowns_take_s for run, _ in self._alive.values())
        wait_s = config.cancel_grace_s + config.hook_timeout_s + 10.0 + longest_s
        return wait_s if wait_s < inf else None

    # -- releasing -----------------------------------------------------------------------------

    def _release(self, *, waits: bool = True) -> None:
        """Release what the engine owns, once; a second caller waits for the first.

        Args:
            waits: Whether to wait for its threads. When the interpreter ends they stand still.
        """
        if not self._releases.acquire(blocking=waits):
            return  # pragma: no cover - the interpreter ends while another thread releases
        try:
            if not self._is_released:
                self._is_released = True
                self._log_abandoned()
                try:
                    self._services.journal.close(_CLOSE_JOURNAL_S if waits else 0.0)
                finally:
                    for threads in self._threads:
                        threads.shutdown(wait=waits)
                    self._log.debug("engine closed")
        finally:
            self._releases.release()

    async def _release_off_loop(self) -> None:
        """Release as :meth:`_release`, with the wait in a thread of its own."""
        done: Future[None] = Future()
        thread = threading.Thread(
            target=_settle, args=(done, self._release), name="flowrun-closing"
        )
        try:
            thread.start()
        except RuntimeError:  # the system has no thread for it
            _settle(done, self._release)
        await asyncio.shield(asyncio.wrap_future(done))
        if thread.ident is not None:
            thread.join()  # it has nothing more to do

    def _log_abandoned(self) -> None:
        for attempt in list(self._services.abandoned):
            self._log.warning(
                "engine closed while task %r of run %r, abandoned earlier, still runs",
                attempt.spec.name,
                attempt.seen.run_id,
                extra={"run_id": attempt.seen.run_id, "dag": attempt.seen.dag_name},
            )


def _settle(future: Future[None], function: Callable[[], object]) -> None:
    """Call a function, and put what comes of it into a future."""
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - the awaiting code gets it
        future.set_exception(error)
    else:
        future.set_result(None)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
