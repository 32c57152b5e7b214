"""The one writer: every change of an engine's runs goes through this thread to the store.

What is submitted while one batch is being written goes with the next one (group commit). A
store that does not block needs no thread: it is called at once, by whoever submits.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

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
    from flowrun.state.records import RunRecord

T = TypeVar("T")

Errors: TypeAlias = "list[Exception | None] | None"
"""Why changes were not kept, one entry for each of them; ``None`` if all were."""

_MOST_CHANGES = 1000
_CLOSE_S = 30.0


class _Entry(NamedTuple):
    changes: Sequence[Change]
    reply: Callable[[Errors], object]


class Answer(Generic[T]):
    """What comes of a call in the journal's thread.

    No ``concurrent.futures.Future``: a ``KeyboardInterrupt`` in whoever waits for one may leave
    its lock taken, and the journal's thread would wait for that lock for good.

    Args:
        function: The call.
    """

    __slots__ = ("_callbacks", "_error", "_function", "_is_open", "_value", "is_done")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._is_open = threading.Lock()
        self._is_open.acquire()
        self._callbacks: deque[Callable[[], object]] = deque()
        self._value: T | None = None
        self._error: BaseException | None = None
        self.is_done = False

    def give(self) -> None:
        """Make the call, in the journal's thread."""
        function, self._function = self._function, None
        assert function is not None  # noqa: S101 - it is called once
        try:
            self._value = function()
        except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
            self._error = error
        self.is_done = True
        self._is_open.release()
        self._call_back()

    def result(self, timeout_s: float = -1) -> T:
        """Wait for the answer, and return what the call has returned.

        Raises:
            TimeoutError: It has not ended in time.
            BaseException: What it has raised.
        """
        if not self.is_done and not self._is_open.acquire(timeout=timeout_s):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def add_done_callback(self, callback: Callable[[], object]) -> None:
        """Have something called once the call has ended, in whichever thread; it must not raise."""
        self._callbacks.append(callback)
        if self.is_done:
            self._call_back()

    def _call_back(self) -> None:
        while True:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # the thread that adds one and the journal's both look
                return
            callback()


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
        self._queue: queue.SimpleQueue[_Entry | Answer[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._ending: threading.Thread | None = None
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

    def call(self, function: Callable[[], T]) -> Answer[T]:
        """Call something that writes to the store, after everything submitted before.

        Raises:
            StoreError: The system gives no thread.
        """
        answer = Answer(function)
        if self.store.blocking:
            self._put(answer)
        else:
            answer.give()
        return answer

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
        if self._unsaved and threading.current_thread() is not self._thread:
            self.call(self._save_unsaved).result()
        elif self._unsaved:
            self._save_unsaved()

    def _save_unsaved(self) -> None:
        for run_id, run in list(self._unsaved.items()):
            changes = [*(Change(run, task) for task in run.tasks.values()), Change(run, None)]
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
        with self._lock:
            thread, self._thread = self._thread, None
            ending, self._queue = self._queue, queue.SimpleQueue()
            self._ending = thread
        if thread is not None:
            ending.put(None)
            thread.join(timeout_s)

    # -- the thread ----------------------------------------------------------------------------

    def _put(self, item: _Entry | Answer[Any]) -> None:
        # Not is_alive(): a KeyboardInterrupt in it may have Python take the thread for dead.
        if self._thread is None or self._process != os.getpid():
            self._start_thread()
        self._queue.put(item)

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None or self._process != os.getpid():
                is_wanted = [True]
                # Daemonic: a store that hangs must not keep the interpreter from ending.
                thread = threading.Thread(
                    target=self._run,
                    args=(self._queue, self._ending, is_wanted),
                    name="flowrun-journal",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    msg = f"no thread could be started to write with: {error_line(error)}"
                    raise StoreError(msg) from error
                except BaseException:
                    is_wanted.clear()  # a KeyboardInterrupt: the thread may run all the same
                    raise
                self._thread, self._process = thread, os.getpid()

    def _run(
        self,
        items: queue.SimpleQueue[_Entry | Answer[Any] | None],
        before: threading.Thread | None,
        is_wanted: list[bool],
    ) -> None:
        with self._lock:
            if not is_wanted:  # pragma: no cover - a Ctrl-C came while it was started
                return
        try:
            self._write_all(items, before)
        finally:
            if self._thread is threading.current_thread():
                self._thread = None

    def _write_all(
        self, items: queue.SimpleQueue[_Entry | Answer[Any] | None], before: threading.Thread | None
    ) -> None:
        if before is not None:
            before.join()  # there is one writer, also while the journal is closed and used again
        item: _Entry | Answer[Any] | None
        entries: list[_Entry] = []
        while True:
            item = items.get()
            size = 0
            while isinstance(item, _Entry):
                entries.append(item)
                size += len(item.changes)
                item = None
                if size >= _MOST_CHANGES:
                    break
                try:
                    item = items.get_nowait()
                except queue.Empty:
                    break
            else:
                self._write(entries)
                entries = []
                if item is None:
                    return
                item.give()
            self._write(entries)
            # Keep no result alive while waiting (I2).
            entries, item = [], None

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
