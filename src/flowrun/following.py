"""Worker threads go on by themselves: the way to the event loop and back takes its time."""

from __future__ import annotations

import sys
import time
from collections import deque
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Protocol

from flowrun.callables import is_awaitable
from flowrun.inputs import UNCHANGING
from flowrun.workers import Job

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowrun.attempt import Invocation
    from flowrun.graph import Graph
    from flowrun.inbox import Inbox
    from flowrun.ledger import Ledger
    from flowrun.slots import Lane
    from flowrun.state.records import TaskRecord
    from flowrun.workers import WorkerThreads

_PATIENCE = 20


class Writer(Protocol):
    """What threads write by themselves, where the store is one that has to be written to."""

    def save(self, ended: Invocation, now: float) -> bool:
        """Save a success in this thread, if that can be done at once; return whether it was."""
        ...


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

    A thread that has ended an attempt well records that itself, unless the store has to be
    written to, and takes what is to be launched next in the same slot. It leaves that to the
    event loop where the outcome is one to judge, where somebody else waits for the slot or the
    thread, where the next task is not one for it, and where an end that the loop has not heard
    of may have made an earlier task ready: the order of launches stays as it would be (R6).

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
        writer: Writes what threads have to write; ``None`` where the store needs no writing.

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
        "_ledger",
        "_left",
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
        "_writer",
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
        self._ledger = ledger
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
        self._writer = writer
        self._stopped = False
        self._left = False
        self._handed: deque[Invocation] = deque()  # they have a slot, and wait for a thread
        self._seats: set[Seat] = set()  # those that no thread has taken
        self._free_slots = 0  # of threads that have found nothing more to run
        self._unheard = 0  # ends that the loop is to judge, and has not heard of
        self._horizon: int = sys.maxsize  # the first task that one of them may have made ready
        self.active: set[Invocation] = set()

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

    def stop(self) -> None:
        """Let threads begin nothing more."""
        with self._lock:
            self._stopped = True

    def leave(self) -> int:
        """Nothing is active any more: send no thread; return the number of slots it had."""
        self._stopped = True
        with self._lock:
            self._left = True
            seats, self._seats = self._seats, set()
            slots, self._free_slots = self._free_slots, 0
        return slots + sum([seat.cancel() for seat in seats])

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
            left = self._left
            invocation = self._handed.pop() if len(self._handed) > len(self._seats) else None
            if invocation is None and not left:
                self._free_slots += 1
        if left:
            self._lane.give_back()
        elif invocation is None:
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
            left = self._left
            if left:
                invocation = None
            else:
                invocation = None if self._stopped else self._picked(self._monotonic(), seat)
                if invocation is None:
                    self._free_slots += 1
        if invocation is None:
            if left:
                self._lane.give_back()
            self.wake()
        return invocation

    def _next(self, ended: Invocation) -> Invocation | None:
        """Settle an attempt, or leave that to the loop; return what its thread goes on with."""
        begins = instant = self._monotonic()
        value, writer = ended.value, self._writer
        if not ended.ok or (type(value) not in UNCHANGING and is_awaitable(value)):
            with self._lock:
                self._note_unheard(ended)
            self._inbox.put(ended)
            return None
        saved = writer is None
        if writer is not None and self._only_child_is_next(ended):
            # Not under the lock: the loop must not wait for a disk.
            saved = writer.save(ended, instant + self._offset)
            begins = self._monotonic()  # that has taken its time
        if not self._lock.acquire(blocking=False):
            self._wait_for_lock()
        try:
            settles = saved and not (self._stopped or ended.stopped)
            if settles:
                self._settle(ended, instant + self._offset)
            else:
                self._note_unheard(ended)
            invocation = self._what_follows(ended, begins)
            wakes = settles and self._loop_is_needed(invocation)
        finally:
            self._lock.release()
        if not settles:
            if writer is not None and saved:
                self._tasks[ended.number].succeed(instant + self._offset, value)
                ended.recorded = True
            if invocation is None:
                self._inbox.put(ended)
            else:
                ended.keeps_slot = True
                self._inbox.put_unhurried(ended)
        elif wakes:
            self.wake()
        return invocation

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

    def _wait_for_lock(self) -> None:
        """Take the lock that another thread holds.

        Threads that wait inside a lock are handed it while somebody else has the interpreter, who
        must then wait for them in turn: with short tasks, one switch of threads for each. Who
        gives the interpreter away instead, has it back after its switch interval, and finds the
        lock free. Should the holder itself wait for something, the lock is waited for after all.
        """
        for _ in range(_PATIENCE):
            time.sleep(0)  # only gives the interpreter away
            if self._lock.acquire(blocking=False):
                return
        self._lock.acquire()

    def _settle(self, ended: Invocation, now: float) -> None:
        """Record a success; the lock is held."""
        number = ended.number
        self._tasks[number].started_at = (ended.started or 0.0) + self._offset
        ended.closed = True
        ended.attempt.ended = True
        self._foreman.succeed(number, now, ended.value)
        self.active.discard(ended)

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

    def _only_child_is_next(self, ended: Invocation) -> bool:
        """Return whether a single task waits for this one only, and is the next of all."""
        children = self._graph.children[ended.number]
        if len(children) != 1:
            return False
        (child,) = children
        if self._asyncs[child] or self._specs[child].executor is not None:
            return False
        with self._lock:
            return (
                not self._handed
                and child < self._horizon
                and self._ledger.waits_for_one(child)
                and not (self._ready and self._ready.first() < child)
            )
