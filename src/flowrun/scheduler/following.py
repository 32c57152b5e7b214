"""Worker threads go on by themselves: the way to the event loop and back takes its time."""

from __future__ import annotations

import sys
from collections import deque
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flowrun.executors import Job
from flowrun.registry import is_awaitable
from flowrun.scheduler.inputs import UNCHANGING
from flowrun.scheduler.ledger import wait_for
from flowrun.scheduler.saving import Unsaved

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowrun.executors import WorkerThreads
    from flowrun.graph import Graph
    from flowrun.scheduler.attempt import Invocation
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.ledger import Ledger
    from flowrun.scheduler.saving import Writer
    from flowrun.scheduler.slots import Lane
    from flowrun.state import TaskRecord
    from flowrun.state.protocol import Success


class Foreman(Protocol):
    """Who launches a run's attempts; called in worker threads."""

    def prepare(self, number: int, attempt: int) -> Invocation:
        """Make a task's attempt of that number."""
        ...

    def succeed(self, number: int, now: float, value: object) -> None:
        """Record a success, and settle its task; the ledger's lock is held."""

    def started(self, task: TaskRecord) -> None:
        """Tell of an attempt that has begun; the ledger's lock is held."""

    def watch(self, due: float) -> None:
        """See to it that an attempt is looked at when its time is up."""

    def broke(self, ended: Invocation | None, error: BaseException) -> None:
        """Something went wrong in flowrun itself; called on the event loop."""


class Seat(Job):
    """A slot and a call for a thread, which runs what is to be run in that slot.

    It comes with an attempt, but the attempt is begun by whichever thread is free first.
    """

    __slots__ = ()

    def __init__(self, pool: WorkerThreads, following: Following) -> None:
        super().__init__(pool, partial(following.work, self), partial(following.withdrawn, self))


class Following:
    """Run attempts in threads, which go on to the next one when they have ended one.

    A thread that has ended an attempt well records that itself, and takes what is to be launched
    next in the same slot. It leaves that to the event loop where the outcome is one to judge,
    where somebody else waits for the slot or the thread, where the next task is not one for it,
    and where an end that the loop has not heard of may have made an earlier task ready: the
    order of launches stays as it would be (R6).

    Where the store has to be written to, threads save successes together, and only then they
    count (S1), for the order of launches, too; see :class:`~flowrun.scheduler.saving.Unsaved`.

    Args:
        graph: The graph.
        ledger: The run's books; their lock guards all that is here, too.
        lane: The run's way to the slots.
        pool: The engine's own threads, if there are such.
        loop: The run's event loop.
        inbox: Where that is told what threads have done.
        foreman: Who launches.
        monotonic: The time.
        offset: What makes epoch seconds of it.
        late: Called with an attempt that has ended after it was abandoned.
        quiet: Whether the foreman need not be told of what begins.
        writer: Makes successes durable; ``None`` where they are as soon as they are recorded.

    Attributes:
        active: Attempts that were launched and have not ended, in threads or elsewhere.
    """

    __slots__ = (
        "_asyncs",
        "_foreman",
        "_free_slots",
        "_graph",
        "_handed",
        "_horizon",
        "_inbox",
        "_lane",
        "_late",
        "_line",
        "_lock",
        "_loop",
        "_monotonic",
        "_offset",
        "_pool",
        "_quiet",
        "_ready",
        "_seats",
        "_specs",
        "_stopped",
        "_tasks",
        "_unheard",
        "_unsaved",
        "active",
    )

    def __init__(  # noqa: PLR0913 - it works for a run, and needs what that has
        self,
        graph: Graph,
        ledger: Ledger,
        lane: Lane,
        pool: WorkerThreads | None,
        loop: asyncio.AbstractEventLoop,
        inbox: Inbox,
        foreman: Foreman,
        *,
        monotonic: Callable[[], float],
        offset: float,
        late: Callable[[Invocation], object],
        quiet: bool,
        writer: Writer | None,
    ) -> None:
        self._graph = graph
        self._specs = graph.specs
        self._asyncs = graph.is_async
        self._lock = ledger.lock
        self._ready = ledger.ready
        self._tasks = ledger.tasks
        self._lane = lane
        self._line = lane.line
        self._quiet = quiet
        self._pool = pool
        self._loop = loop
        self._inbox = inbox
        self._foreman = foreman
        self._monotonic = monotonic
        self._offset = offset
        self._late = late
        self._stopped = False
        self._handed: deque[Invocation] = deque()  # they have a slot, and wait for a thread
        self._seats: set[Seat] = set()  # those that no thread has taken
        self._free_slots = 0  # of threads that have found nothing more to run
        self._unheard = 0  # ends that the loop is to judge, and has not heard of
        self._horizon: int = sys.maxsize  # the first task that one of them may have made ready
        self._unsaved = None if writer is None else Unsaved(writer, self._lock, loop, inbox)
        self.active: set[Invocation] = set()

    @property
    def unsettled(self) -> bool:
        """Whether something that has ended has still to be saved, or to be settled."""
        return self._unsaved is not None and self._unsaved.unsettled

    # On the event loop.

    def hand(self, invocation: Invocation) -> None:
        """Have a thread run an attempt, for which a slot was taken.

        Raises:
            RuntimeError: There is no thread for it, and it will not be run.
        """
        assert self._pool is not None  # noqa: S101 - it is one of this pool's attempts
        seat = Seat(self._pool, self)
        invocation.withdraw = self._withdraw
        with self._lock:
            self.active.add(invocation)
            self._handed.append(invocation)
            self._seats.add(seat)
        try:
            self._pool.enqueue(seat)
        except RuntimeError:
            with self._lock:
                self._seats.discard(seat)
                if invocation in self._handed:
                    self._handed.remove(invocation)
                    raise
                self._free_slots += 1  # another thread has taken it

    def collect(self) -> int:
        """Return the number of slots that threads have left since the last time."""
        with self._lock:
            slots, self._free_slots = self._free_slots, 0
        return slots

    def heard(self, ended: Invocation) -> None:
        """The loop knows of an end: what has become ready by it is no secret any more."""
        if ended.unheard:
            with self._lock:
                self._unheard -= 1
                if not self._unheard:
                    self._horizon = sys.maxsize

    def _saver_broke(self, ended: Invocation, error: BaseException) -> None:
        """Something went wrong in the thread that saved; what it was to save is seen to."""
        assert self._unsaved is not None  # noqa: S101 - it has saved
        self._unsaved.saving = False
        self._foreman.broke(ended, error)

    def stop(self) -> None:
        """Let threads begin nothing more."""
        with self._lock:
            self._stopped = True

    def leave(self) -> None:
        """Nothing is active any more: send no thread. The lane gives the slots back."""
        self._stopped = True
        with self._lock:
            seats, self._seats = self._seats, set()
        for seat in seats:
            seat.cancel()

    def _withdraw(self, invocation: Invocation) -> bool:
        """Take back an attempt that no thread has begun; return whether it will not run."""
        with self._lock:
            if invocation not in self._handed:
                return False
            self._handed.remove(invocation)
        invocation.keeps_slot = True  # that stays with a seat
        invocation.error = CancelledError()
        self._inbox.put(invocation)
        return True

    # In any thread.

    def withdrawn(self, seat: Seat) -> None:
        """The pool is shut down, and no thread will come for a seat."""
        with self._lock:
            self._seats.discard(seat)
            invocation = self._handed.pop() if len(self._handed) > len(self._seats) else None
            if invocation is None:
                self._free_slots += 1
        if invocation is None:
            self.wake()
        else:
            invocation.error = CancelledError()
            self._inbox.put(invocation)

    def wake(self) -> None:
        """Have the loop look what there is to launch, or whether the run is over."""
        self._inbox.wake()

    def work(self, seat: Seat) -> None:
        """Run what is to be run, as long as there is something."""
        ended: Invocation | None = None
        try:
            invocation = self._first(seat)
            while invocation is not None:
                ended, invocation = invocation, None
                try:
                    ended.run_in()
                except BaseException as error:  # noqa: BLE001 - of its inputs; it must not hang
                    ended.error = error
                if not ended.claim_end():
                    # It was given up, and the slot and the thread with it.
                    self._late(ended)
                    return
                invocation = self._next(ended)
        except BaseException as error:  # noqa: BLE001 - it ends the run (R4), and no thread
            self._inbox.put(partial(self._foreman.broke, ended, error))

    def _first(self, seat: Seat) -> Invocation | None:
        """Return what a thread begins with that has come for a seat."""
        with self._lock:
            self._seats.discard(seat)
            invocation = None if self._stopped else self._picked(self._monotonic(), seat)
            if invocation is None:
                self._free_slots += 1
        if invocation is None:
            self.wake()
        return invocation

    def _next(self, ended: Invocation) -> Invocation | None:
        """Settle an attempt, or leave that to the loop; return what its thread goes on with."""
        begins = instant = self._monotonic()
        value = ended.value
        if not ended.ok or (id(type(value)) not in UNCHANGING and is_awaitable(value)):
            with self._lock:
                self._note_unheard(ended)
            self._inbox.put(ended)
            return None
        invocation, wakes, group, unsaved = None, False, None, self._unsaved
        if not self._lock.acquire(blocking=False):
            wait_for(self._lock)
            begins = self._monotonic()  # what it goes on with may have become ready meanwhile
        try:
            settles = not (self._stopped or ended.stopped) and self._settles(ended, instant)
            if not settles:
                self._note_unheard(ended)
            elif unsaved is not None:
                if not unsaved.saving and self._has_to_save(unsaved):
                    group = unsaved.take()
                else:
                    unsaved.leave()
            if group is None:
                invocation = self._what_follows(ended, begins)
                wakes = settles and self._loop_is_needed(invocation)
        finally:
            self._lock.release()
        if unsaved is not None and group is not None:
            invocation, wakes = self._save_and_go_on(ended, unsaved, group)
        if not settles:
            ended.keeps_slot = invocation is not None
            put = self._inbox.put if invocation is None else self._inbox.put_unhurried
            put(ended)
        elif wakes:
            self._call_loop(invocation)
        return invocation

    def _settles(self, ended: Invocation, instant: float) -> bool:
        """Record a success, or keep it to be saved; return whether it is for threads to do so.

        The lock is held.
        """
        number, now, unsaved = ended.number, instant + self._offset, self._unsaved
        if unsaved is not None and not unsaved.add((number, now, ended.value)):
            return False
        self._tasks[number].started_at = (ended.started or 0.0) + self._offset
        ended.closed = True
        ended.attempt.ended = True
        if unsaved is None:
            self._foreman.succeed(number, now, ended.value)
        self.active.discard(ended)
        return True

    def _has_to_save(self, unsaved: Unsaved) -> bool:
        """Return whether there are many to save, or nothing else to do; the lock is held."""
        ready = self._ready
        nothing_to_run = not (self._handed or ready.ordered or ready.late)
        return (nothing_to_run or unsaved.many) and self._may_go_on()

    def _save_and_go_on(
        self, ended: Invocation, unsaved: Unsaved, group: list[Success]
    ) -> tuple[Invocation | None, bool]:
        """Save successes as long as there is nothing else to do.

        Returns:
            What the thread goes on with, and whether the loop has to look.
        """
        try:
            while True:
                saved = unsaved.save(group)
                if not self._lock.acquire(blocking=False):
                    wait_for(self._lock)
                try:
                    if saved:
                        unsaved.settle(group)
                    if self._stopped or not (unsaved and self._has_to_save(unsaved)):
                        unsaved.saving = False
                        invocation = self._what_follows(ended, self._monotonic())
                        return invocation, self._loop_is_needed(invocation)
                    group = unsaved.take()
                finally:
                    self._lock.release()
        except BaseException as error:  # noqa: BLE001 - it ends the run (R4), which is not over before
            self._inbox.put(partial(self._saver_broke, ended, error))
            return None, False

    def _call_loop(self, follows: Invocation | None) -> None:
        """Have the loop look; what a thread that leaves has not saved, it takes over."""
        unsaved = self._unsaved
        if follows is None and unsaved and not unsaved.saving:
            self._inbox.put(unsaved.hand_over)
        else:
            self.wake()

    def _what_follows(self, ended: Invocation, instant: float) -> Invocation | None:
        """Return what the thread goes on with in the same slot, if anything; the lock is held."""
        if self._stopped or ended.stopped or not self._may_go_on():
            return None
        return self._picked(instant, ended.job)

    def _loop_is_needed(self, follows: Invocation | None) -> bool:
        """Return whether the loop has to look; without a follower the slot is free now."""
        if follows is None:
            self._free_slots += 1
            return True
        return self._loop_has_to_launch()

    def _note_unheard(self, ended: Invocation) -> None:
        """Remember what the loop may make ready when it hears of an end; the lock is held."""
        ended.unheard = True
        self._unheard += 1
        opens = ended.number  # a retry
        if ended.ok:
            children = self._graph.children[ended.number]
            opens = children[0] if children else sys.maxsize
        self._horizon = min(self._horizon, opens)

    def _may_go_on(self) -> bool:
        """Return whether nobody else waits for the slot or the thread; the lock is held."""
        pool = self._pool
        return (
            not (self._line and self._lane.others_wait)
            and pool is not None
            and pool.waiting_calls <= len(self._seats)
            and not self._loop.is_closed()
        )

    def _picked(self, instant: float, job: Job | None) -> Invocation | None:
        """Return what is to be run next in a slot that there is; the lock is held.

        Args:
            instant: When, on the monotonic clock.
            job: What the thread does that runs it, by which that thread can be given up (A3).
        """
        if self._handed:
            invocation = self._handed.popleft()
            invocation.job = job
            return invocation
        ready = self._ready
        if not (ready.ordered or ready.late):
            return None
        number = ready.first()
        spec = self._specs[number]
        if self._asyncs[number] or number >= self._horizon or spec.executor is not None:
            return None
        ready.pop()
        task = self._tasks[number]
        now = instant + self._offset
        task.start(now, now if task.ready_at is None else task.ready_at)
        if not self._quiet:
            self._foreman.started(task)
        invocation = self._foreman.prepare(number, task.attempt)
        invocation.job = job
        if spec.timeout_s is not None:
            instant = self._monotonic()  # what came before may have taken its time (A1)
            invocation.attempt.deadline = instant + spec.timeout_s
        invocation.started = instant
        self.active.add(invocation)
        if spec.timeout_s is not None:
            self._foreman.watch(instant + spec.timeout_s)
        return invocation

    def _loop_has_to_launch(self) -> bool:
        """Return whether there is more to launch than threads come for; the lock is held."""
        ready = self._ready
        if not (ready.ordered or ready.late) or not self._lane.may_take:
            return False
        return len(self._seats) < len(ready) or self._asyncs[ready.first()]
