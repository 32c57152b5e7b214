"""State changes -> the store: in batches, off the event loop, acknowledged once durable.

What settles while one transaction is being written goes with the next one (group commit).
Where there is nothing to wait for, the way to another thread and back would take longer than
the transaction. So whoever has only a few small successes to save may do it where it is: see
:meth:`Journal.save_in_thread` and :meth:`Journal.save_on_loop`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from flowrun.errors import ResultNotStorableError, RunLostError, StoreError
from flowrun.failure import error_line, redacted
from flowrun.state.entries import (
    Entry,
    Group,
    by_run,
    changes_of,
    is_about,
    parted,
    receipts_of,
    run_of,
    said,
)
from flowrun.state.locks import is_held
from flowrun.state.pace import Pace
from flowrun.state.protocol import Change, Successes
from flowrun.state.records import TaskRecord
from flowrun.state.starts import StartNotes

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence

    from flowrun.scheduler.inbox import Inbox
    from flowrun.state.entries import Acknowledgement, Receipt, SuccessesSaved
    from flowrun.state.protocol import QuickStore, StateStoreProtocol
    from flowrun.state.records import RunRecord
    from flowrun.state.starts import Starts

T = TypeVar("T")

_MOST_CHANGES = 1000
_LINGER_S = 0.01


class _Call(NamedTuple):
    function: Callable[[], Any]
    future: Future[Any]


_Item: TypeAlias = "Entry | Group | _Call | None"

# The thread is at work, or waits for a short time, or for as long as nobody rings.
_AWAKE, _DOZING, _ASLEEP = range(3)


class Journal:
    """Write what happens in all runs of an engine to its store.

    Args:
        store: The store; one that does not block is written to at once.
        log: Where it tells what could not be written.
        redact: What errors are to go through before that.

    Attributes:
        live: The store shows the engine's own records, so that task changes need no write.
    """

    def __init__(
        self,
        store: StateStoreProtocol,
        log: logging.Logger,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.store = store
        self.live = bool(getattr(store, "live", False))
        self._log = log
        self._redact = redact
        # Asked of the class: what stands in for a store, and hands on what it has not itself,
        # is to see what is saved.
        self._may_be_quick = hasattr(type(store), "quick")
        self._pace = Pace()
        self._items: deque[_Item] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._starts = StartNotes()
        self._state = _ASLEEP
        self._saving = threading.RLock()  # who is called with it may pay what is owed
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._debts: dict[str, list[Change]] = {}

    @property
    def _quick(self) -> QuickStore | None:
        """What the store can do besides, as things are: a test may have replaced its methods."""
        return cast("Any", self.store).quick if self._may_be_quick else None

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
        entry = Entry(changes, inbox, then, silent)
        if self.store.blocking:
            self._put(entry)
        else:
            _tell(self._save([entry]))

    def submit_successes(self, successes: Successes, inbox: Inbox, then: SuccessesSaved) -> None:
        """Write successes, to a store that blocks.

        Args:
            successes: What has succeeded.
            inbox: Where the acknowledgements go.
            then: What they carry, with those of them that each is about.
        """
        self._put(Group(successes, inbox, then))

    def note_start(self, task: TaskRecord, starts: Starts) -> None:
        """Write that a task's first attempt has begun, unless its end is written soon.

        Most tasks end before that, and then only their ends are written. The store is one that
        blocks.

        Args:
            task: The run's own record of the task.
            starts: Of which run it is.
        """
        self._starts[task] = starts
        if self._state is _ASLEEP:
            self._ring(_DOZING)  # it is to look after a while, and keeps nobody from saving

    def drop_start(self, task: TaskRecord) -> None:
        """Whatever else will be written of a task, its start need not be any more."""
        self._starts.pop(task, None)

    def save_in_thread(self, successes: Successes) -> bool:
        """Save successes in the thread that calls, if nobody else is saving or waits for it.

        Whoever has only these to save need not wait for another thread's turn. Nothing may have
        been submitted before of the same tasks.

        Returns:
            Whether they were saved; if not, submit them.
        """
        if self._state is _AWAKE or self._items or not self._saving.acquire(blocking=False):
            return False
        try:
            quick = self._quick
            if quick is None:
                self.store.save(successes.changes())
            elif not quick.save_in_thread(successes):
                quick.save_all((), (successes,))
        except BaseException:  # noqa: BLE001 - who submits them next is told why
            return False
        finally:
            self._saving.release()
        return True

    def save_on_loop(self, successes: Successes) -> bool:
        """Save a few small successes on the event loop's own thread, if that takes no time.

        Only a store that offers it, which then waits for nobody; only if nobody else is saving
        or waits for it; and only while that is quick (see :class:`~flowrun.state.pace.Pace`).

        Returns:
            Whether they were saved; if not, submit them.
        """
        quick, saving = self._quick, self._saving
        if quick is None or self._state is _AWAKE or self._items or is_held(saving):
            return False
        began = time.monotonic()
        if began < self._pace.not_before:
            return False
        try:
            return saving.acquire(blocking=False) and quick.save_on_loop(successes)
        except Exception:  # noqa: BLE001 - who submits them next is told why
            return False
        finally:
            if is_held(saving):
                saving.release()
                self._pace.took(began, time.monotonic(), len(successes.ended))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Call a store that blocks, after everything submitted before and off the loop."""
        future: Future[T] = Future()
        self._put(_Call(function, future))
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
        """Write what is still owed to the store, as far as it can be written now.

        It may wait for the store, and for whoever is saving.
        """
        for run_id, changes in list(self._debts.items()):
            try:
                with self._saving:
                    self.store.save(changes)
            except RunLostError:
                pass  # somebody else has ended it; there is nothing left to write
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - it stays owed, whatever the reason
                from flowrun.escape import for_terminal  # noqa: PLC0415 - for errors only

                told = for_terminal(redacted(error_line(error), self._redact))
                self._log.warning("run %r still cannot be saved: %s", run_id, told)
                continue
            with self._lock:
                self._debts.pop(run_id, None)

    def close(self, timeout_s: float = 30.0) -> None:
        """Write everything that was submitted, then end the thread.

        Args:
            timeout_s: How long to wait for that; 0: not at all, and what is owed is not tried.
        """
        if self._debts and timeout_s:
            self.pay()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._items.append(None)
            self._bell.put(None)
            thread.join(timeout_s)

    def _put(self, item: _Item) -> None:
        if self._state is not _AWAKE:
            self._have_thread()  # before there is anything that another one would do later
        self._items.append(item)
        # Whoever goes to sleep looks once more after having said so: one of both sees the other.
        if self._state is not _AWAKE:
            self._ring(_AWAKE)

    def _ring(self, state: int) -> None:
        """Have the thread come."""
        self._have_thread()
        self._state = state  # so that nobody rings again before it has come
        self._bell.put(None)

    def _have_thread(self) -> None:
        """See to it that there is a thread.

        Raises:
            RuntimeError: There is none, and the system gives none.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # Daemonic: a store that hangs must not keep the interpreter from ending.
                thread = threading.Thread(target=self._run, name="flowrun-journal", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        try:
            self._work()
        finally:
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = None  # it is alive still, but takes nothing more
            self._state = _ASLEEP
            if self._items:  # they came while it was ending: another one takes them
                self._ring(_AWAKE)

    def _work(self) -> None:
        items = self._items
        waiting: list[Entry | Group] = []
        self._state = _AWAKE
        while True:
            size = 0
            urgent = lingered = False
            self._sleep()
            while True:
                while items and size < _MOST_CHANGES:
                    item = items.popleft()
                    if isinstance(item, Entry | Group):
                        waiting.append(item)
                        if isinstance(item, Group):
                            urgent = True
                            size += len(item.successes.ended)
                        else:
                            urgent = urgent or not item.silent
                            size += 1
                        continue
                    with self._saving:
                        receipts = self._save(waiting)
                    _tell(receipts)
                    waiting, receipts = [], []
                    if item is None:
                        return
                    self._answer(item)
                    item = None  # let go of what was called
                # What nobody waits for goes with what comes next, if that is soon.
                if urgent or lingered or not waiting:
                    break
                lingered = True
                self._doze()
            with self._saving:  # so that no end gets in between a start and its being written
                if self._starts.find_due():
                    waiting.extend(self._due_starts())
                receipts = self._save(waiting)
            # Whoever is told may have the next one to save, before this thread has its turn again.
            self._state = _DOZING
            _tell(receipts)
            waiting, receipts, item = [], [], None  # it keeps no result alive while it waits (I2)

    def _answer(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            with self._saving:  # a store of somebody else's is not called twice at once
                result = call.function()
        except BaseException as error:  # noqa: BLE001 - the caller gets whatever it was
            self._state = _DOZING
            call.future.set_exception(error)
        else:
            self._state = _DOZING  # as for a receipt
            call.future.set_result(result)

    def _sleep(self) -> None:
        """Wait until there is something to do; for as long as it takes if there is no start."""
        self._doze()
        while not (self._items or self._starts.find_due()):
            if not self._starts:
                self._state = _ASLEEP
                with contextlib.suppress(queue.Empty):
                    self._bell.get(block=not (self._items or self._starts))
            # Meanwhile it keeps nobody from saving.
            self._doze()

    def _doze(self) -> None:
        """Wait for an item, for a short time."""
        self._state = _DOZING
        if not self._items:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=_LINGER_S)
        self._state = _AWAKE

    def _due_starts(self) -> list[Entry]:
        """Take out the starts that are to be written; nobody else is saving meanwhile."""
        return [
            Entry([Change(starts.run, _begun(task))], starts.inbox, starts.failed, silent=True)
            for task, starts in self._starts.take_due()
        ]

    def _save(self, entries: list[Entry | Group]) -> list[tuple[Inbox, Receipt]]:
        """Save all entries in one go; one that cannot be kept does not take the others along.

        Returns:
            What is to be told.
        """
        receipts: list[tuple[Inbox, Receipt]] = []
        while entries:
            try:
                self._write(entries)
            except BaseException as error:  # noqa: BLE001 - any failure must reach its runs (R4)
                failure = error
            else:
                return receipts + receipts_of(entries, None)
            if isinstance(failure, ResultNotStorableError):
                entries = [part for entry in entries for part in parted(entry, failure)]
            refused = [entry for entry in entries if is_about(entry, failure)]
            if not refused and not isinstance(failure, StoreError):
                # It is about one of them, and who knows about which: a run must not suffer for
                # what another one wants to be kept (R5).
                runs = by_run(entries)
                if len(runs) > 1:
                    return receipts + [each for run in runs for each in self._save(run)]
            refused = refused or entries
            receipts += receipts_of(refused, said(failure, run_of(refused[0])))
            answered = {id(entry) for entry in refused}
            entries = [entry for entry in entries if id(entry) not in answered]
        return receipts

    def _write(self, entries: Sequence[Entry | Group]) -> None:
        """Hand entries to the store, in the form that it takes."""
        quick = self._quick
        if quick is None:
            self.store.save([change for entry in entries for change in changes_of(entry)])
            return
        changes = [c for entry in entries if isinstance(entry, Entry) for c in entry.changes]
        successes = [entry.successes for entry in entries if isinstance(entry, Group)]
        quick.save_all(changes, successes)


def _begun(task: TaskRecord) -> TaskRecord:
    """Return what is known of a task of which only that it has begun is."""
    started_at = task.started_at or 0.0
    snapshot = TaskRecord(task.name, task.deps)
    snapshot.start(started_at, started_at if task.ready_at is None else task.ready_at)
    return snapshot


def _tell(receipts: list[tuple[Inbox, Receipt]]) -> None:
    for inbox, receipt in receipts:
        inbox.put(receipt)
