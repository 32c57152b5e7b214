"""State changes -> the store: in batches, off the event loop, acknowledged once durable.

What settles while one transaction is being written goes with the next one (group commit).
"""

from __future__ import annotations

import operator
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from flowrun.errors import DamagedRecordError, ResultNotStorableError, RunLostError
from flowrun.state.protocol import Change
from flowrun.state.records import NoResult

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence

    from flowrun.inbox import Inbox
    from flowrun.state.protocol import StateStoreProtocol
    from flowrun.state.records import RunRecord

T = TypeVar("T")
Acknowledgement: TypeAlias = "Callable[[Exception | None], object]"

_MOST_ENTRIES = 10_000
_LINGER_S = 0.01


class Receipt(NamedTuple):
    """What a run's inbox is told: call ``then`` with the error, or with ``None``."""

    then: Acknowledgement
    error: Exception | None


class _Entry(NamedTuple):
    changes: Sequence[Change]
    inbox: Inbox
    then: Acknowledgement
    silent: bool


_IS_SILENT = operator.attrgetter("silent")


class _Call(NamedTuple):
    function: Callable[[], Any]
    future: Future[Any]


class Journal:
    """Write what happens in all runs of an engine to its store.

    Args:
        store: The store; one that does not block is written to at once.
        log: Where it tells what could not be written.

    Attributes:
        live: The store shows the engine's own records, so that task changes need no write.
    """

    def __init__(self, store: StateStoreProtocol, log: logging.Logger) -> None:
        self.store = store
        self.live = bool(getattr(store, "live", False))
        self._log = log
        self._queue: queue.SimpleQueue[_Entry | _Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._debts: dict[str, list[Change]] = {}

    def submit(
        self,
        changes: Sequence[Change],
        inbox: Inbox,
        then: Acknowledgement,
        *,
        silent: bool = False,
    ) -> None:
        """Write changes together with whatever else is waiting.

        Args:
            changes: Snapshots; nobody changes them any more.
            inbox: Where the acknowledgement goes, as a :class:`Receipt`.
            then: What the receipt carries.
            silent: Acknowledge failures only.
        """
        entry = _Entry(changes, inbox, then, silent)
        if self.store.blocking:
            self._queue.put(entry)
            self._ensure_thread()
        else:
            self._save([entry])

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a store that blocks, after everything submitted before and off the loop."""
        future: Future[T] = Future()
        self._queue.put(_Call(function, future))
        self._ensure_thread()
        return future

    def owe(self, run: RunRecord) -> None:
        """Remember the end of a run that could not be written, to try again later."""
        changes = [Change(run, task.copy()) for task in run.tasks.values()]
        with self._lock:
            self._debts[run.run_id] = [*changes, Change(run, None)]

    def owed(self, run_id: str) -> RunRecord | None:
        """Return the record of a run whose end is still owed to the store."""
        changes = self._debts.get(run_id)
        return None if changes is None else changes[-1].run

    def pay(self) -> None:
        """Write what is still owed to the store, as far as it can be written now."""
        for run_id, changes in list(self._debts.items()):
            try:
                self.store.save(changes)
            except RunLostError:
                pass  # somebody else has ended it; there is nothing left to write
            except Exception as error:  # noqa: BLE001 - it stays owed, whatever the reason
                self._log.warning("run %r still cannot be saved: %s", run_id, error)
                continue
            with self._lock:
                self._debts.pop(run_id, None)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write everything that was submitted, then end the thread."""
        if self._debts:
            self.pay()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # Daemonic: a store that hangs must not keep the interpreter from ending.
                self._thread = threading.Thread(
                    target=self._work, name="flowrun-journal", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        waiting: list[_Entry] = []
        while True:
            item = self._queue.get()
            while True:
                if isinstance(item, _Entry):
                    waiting.append(item)
                else:
                    if waiting:
                        self._save(waiting)
                        waiting = []
                    if item is None:
                        return
                    _answer(item)
                    item = None  # let go of what was called
                if len(waiting) >= _MOST_ENTRIES:
                    break
                # What nobody waits for, such as a start, goes with what comes next if that is soon.
                patience_s = _LINGER_S if waiting and all(map(_IS_SILENT, waiting)) else 0.0
                try:
                    item = self._queue.get(timeout=patience_s)
                except queue.Empty:
                    break
            if waiting:
                self._save(waiting)
                waiting = []
            item = None

    def _save(self, entries: list[_Entry]) -> None:
        """Save all entries in one go; one that cannot be kept does not take the others along."""
        while entries:
            try:
                self.store.save([change for entry in entries for change in entry.changes])
            except ResultNotStorableError as error:
                refused = [entry for entry in entries if _is_about(entry, error)]
                failure: Exception = error
            except (DamagedRecordError, RunLostError) as error:
                refused = [
                    entry for entry in entries if entry.changes[0].run.run_id == error.run_id
                ]
                failure = error
            except Exception as error:  # noqa: BLE001 - any failure must reach its runs (R4)
                refused, failure = entries, error
            else:
                for entry in entries:
                    if not entry.silent:
                        entry.inbox.put(Receipt(entry.then, None))
                return
            refused = refused or entries
            for entry in refused:
                entry.inbox.put(Receipt(entry.then, failure))
            answered = {id(entry) for entry in refused}
            entries = [entry for entry in entries if id(entry) not in answered]


def _is_about(entry: _Entry, error: ResultNotStorableError) -> bool:
    return any(
        change.run.run_id == error.run_id
        and change.task is not None
        and change.task.name == error.task_name
        # The task's RUNNING row may be in the same batch; it is not what was refused.
        and not isinstance(change.task.result, NoResult)
        for change in entry.changes
    )


def _answer(call: _Call) -> None:
    if not call.future.set_running_or_notify_cancel():
        return
    try:
        result = call.function()
    except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
        call.future.set_exception(error)
    else:
        call.future.set_result(result)
