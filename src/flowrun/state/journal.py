"""The one writer: every change of an engine's runs goes through this thread to the store.

What is submitted while one batch is being written goes with the next one (group commit). A
store that does not block needs no thread: the submitting thread calls it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from flowrun.errors import (
    DamagedRecordError,
    FlowrunError,
    RunLostError,
    StoreError,
)
from flowrun.failure import error_line, redacted
from flowrun.state.protocol import Change

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence

    from flowrun.state.protocol import StateStoreProtocol
    from flowrun.state.run_records import RunRecord

T = TypeVar("T")

Errors: TypeAlias = "list[Exception | None] | None"
"""Why changes were not kept, one entry for each of them; ``None`` if all were."""

_Queue: TypeAlias = "queue.SimpleQueue[_Entry | _Call | None]"

_MOST_CHANGES = 1000
_CLOSE_S = 30.0


class _Entry(NamedTuple):
    changes: Sequence[Change]
    reply: Callable[[Errors], object]


class _Call(NamedTuple):
    function: Callable[[], Any]
    reply: Callable[[Any, BaseException | None], object]

    def make(self) -> None:
        result = reason = None
        try:
            result = self.function()
        except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
            reason = error
        self.reply(result, reason)


class Journal:
    """Write what happens in all runs of an engine to its store.

    Args:
        store: The store.
        log: Where it reports what could not be written.
        redact: What errors go through before that.
    """

    def __init__(
        self,
        store: StateStoreProtocol,
        log: logging.Logger,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.store = store
        self._log = log
        self._redact = redact
        self._queue: _Queue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._unsaved: dict[str, RunRecord] = {}

    def submit(self, changes: Sequence[Change], reply: Callable[[Errors], object]) -> None:
        """Write changes, after everything that was submitted before.

        Args:
            changes: Records as they now are.
            reply: Called once they are written, or cannot be: in the journal's thread, or
                before this returns if the store does not block.

        Raises:
            StoreError: The system gives no thread.
        """
        if self.store.blocking:
            self._put(_Entry(changes, reply))
        else:
            reply(self._save(changes))

    def call(self, function: Callable[[], T]) -> T:
        """Call something that writes to the store, after everything submitted before.

        Raises:
            StoreError: The system gives no thread.
            BaseException: What the function has raised.
        """
        if not self.store.blocking or threading.current_thread() is self._thread:
            return function()
        # No future or event: a Ctrl-C here could leave the lock inside taken, and the journal's
        # thread would wait for that lock for good.
        answers: list[tuple[Any, BaseException | None]] = []
        is_answered = threading.Lock()
        is_answered.acquire()

        def answer(result: Any, error: BaseException | None) -> None:  # noqa: ANN401
            answers.append((result, error))
            is_answered.release()

        self._put(_Call(function, answer))
        is_answered.acquire()
        ((result, error),) = answers
        if error is not None:
            raise error
        return cast("T", result)

    def call_from_loop(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Do as :meth:`call`; the running event loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(result: Any, error: BaseException | None) -> None:  # noqa: ANN401
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, future, result, error)

        self._put(_Call(function, answer))
        return future

    # -- ends that could not be written ------------------------------------------------------

    def keep_unsaved(self, run: RunRecord) -> None:
        """Remember the end of a run that the store refused, to save it later."""
        with self._lock:
            self._unsaved[run.run_id] = run

    def unsaved(self, run_id: str) -> RunRecord | None:
        """Return a run whose end the store has not got yet."""
        return self._unsaved.get(run_id)

    def save_unsaved(self) -> None:
        """Write the ends that the store refused before, as far as that is possible now."""
        if self._unsaved:
            self.call(self._save_unsaved)

    def _save_unsaved(self) -> None:
        for run_id, run in list(self._unsaved.items()):
            changes = [*(Change(run, task) for task in run.records), Change(run, None)]
            try:
                self.store.save(changes)
            except RunLostError:
                pass  # another process has ended it; there is nothing left to write
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - kept for the next time, whatever it was
                from flowrun.escape import for_terminal  # noqa: PLC0415 - for errors only

                line = for_terminal(redacted(error_line(error), self._redact))
                self._log.warning(
                    "run %r still cannot be saved: %s",
                    run_id,
                    line,
                    extra={"run_id": run_id, "dag": run.dag_name},
                )
                continue
            with self._lock:
                self._unsaved.pop(run_id, None)

    def close(self, timeout_s: float = _CLOSE_S) -> None:
        """Write everything that was submitted, then end the thread.

        Args:
            timeout_s: Seconds to wait for that; 0: do not wait.
        """
        if self._unsaved and timeout_s:
            self.save_unsaved()
        thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)

    # -- the thread ----------------------------------------------------------------------------

    def _put(self, item: _Entry | _Call) -> None:
        with self._lock:
            if self._thread is None:
                # Daemonic: a store that hangs must not keep the interpreter from ending.
                thread = threading.Thread(target=self._work, name="flowrun-journal", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    msg = f"no thread could be started to write with: {error_line(error)}"
                    raise StoreError(msg) from error
                self._thread = thread
            self._queue.put(item)

    def _work(self) -> None:
        try:
            while not (self._write_next() and self._may_end()):
                pass
        except BaseException:
            with self._lock:
                self._thread = None
            raise

    def _write_next(self) -> bool:
        """Write what has come, in one batch; return whether the journal was closed after it."""
        batch: list[_Entry] = []
        size = 0
        item = self._queue.get()
        while isinstance(item, _Entry):
            batch.append(item)
            size += len(item.changes)
            if size >= _MOST_CHANGES or self._queue.empty():
                self._write(batch)
                return False
            item = self._queue.get()
        self._write(batch)
        if item is None:
            return True
        item.make()
        return False

    def _may_end(self) -> bool:
        with self._lock:  # what was submitted meanwhile is still written
            if not self._queue.empty():
                return False
            self._thread = None
            return True

    def _write(self, entries: Sequence[_Entry]) -> None:
        changes = [change for entry in entries for change in entry.changes]
        errors = self._save(changes) if changes else None
        place = 0
        for entry in entries:
            end = place + len(entry.changes)
            own = None if errors is None else errors[place:end]
            entry.reply(own if own is not None and any(e is not None for e in own) else None)
            place = end

    def _save(self, changes: Sequence[Change]) -> Errors:
        """Save all changes at once; where that fails, find out which of them it is about."""
        try:
            self.store.save(changes)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not self.store.blocking:
                raise  # Ctrl-C on the run's own loop is no failure of the store
            failure = error
        else:
            return None
        is_about_one = not isinstance(failure, StoreError) or isinstance(
            failure, DamagedRecordError | RunLostError
        )
        if len(changes) == 1 or not is_about_one:
            return [store_error(failure, change.run, "saved") for change in changes]
        # A run must not suffer for what another one wants to be kept (R5), nor a task for
        # another one's result.
        errors: list[Exception | None] = [None] * len(changes)
        for places in _parts(changes):
            found = self._save([changes[each] for each in places])
            for place, reason in zip(places, found or [None] * len(places), strict=True):
                errors[place] = reason
        return errors


def _parts(changes: Sequence[Change]) -> list[list[int]]:
    """Return the places of each run's changes, or each place if they are all of one run."""
    runs: dict[str, list[int]] = {}
    for place, change in enumerate(changes):
        runs.setdefault(change.run.run_id, []).append(place)
    return list(runs.values()) if len(runs) > 1 else [[place] for place in range(len(changes))]


def store_error(failure: BaseException, run: RunRecord, done: str) -> Exception:
    """Return an error that says which run the store failed with.

    Args:
        failure: What the store has raised.
        run: The run.
        done: What could not be done with it: ``"saved"`` or ``"created"``.
    """
    if isinstance(failure, FlowrunError):
        return failure
    clear = StoreError(
        f"run {run.run_id!r} of DAG {run.dag_name!r} could not be {done}: the state store failed"
        f" with {error_line(failure)}"
    )
    clear.__cause__ = failure
    return clear


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    # It may be cancelled at this moment: asyncio's handler of SIGINT does that between two lines.
    with contextlib.suppress(asyncio.InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
