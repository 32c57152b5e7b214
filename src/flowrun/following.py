"""Worker threads go on by themselves: the way to the event loop and back takes its time."""

from __future__ import annotations

import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

from flowrun.callables import is_awaitable
from flowrun.inputs import UNCHANGING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flowrun.attempt import Invocation
    from flowrun.graph import Graph
    from flowrun.inputs import Inputs
    from flowrun.ledger import Ledger
    from flowrun.slots import Lane
    from flowrun.state.records import TaskRecord
    from flowrun.workers import WorkerThreads

_MOST_STAGED = 128
_SHORT_S = 0.001


class Writer(Protocol):
    """What threads write by themselves, where the store is one that has to be written to."""

    def note(self, task: TaskRecord) -> None:
        """An attempt begins in this thread."""

    def save(self, ended: Invocation, now: float) -> bool:
        """Save a success in this thread, if that can be done at once; return whether it was."""
        ...


class Following:
    """What a worker thread may go on with when the task that it ran has ended.

    That is a task that was staged for it, or the only child of the one that has ended. The loop
    hears of both together, and does all the rest. It is asked first after a task that took
    long, where that costs nothing, where somebody else waits for the slot or the thread, and
    where an end that the loop has not heard of may have made an earlier task ready: the order
    of launches stays as it would be (R6).

    Args:
        graph: The graph.
        ledger: The run's books.
        inputs: What tasks are given.
        lane: The run's way to the slots.
        pool: The engine's own threads, if there are such.
        loop: The run's event loop.
        prepare: Makes a task's attempt of that number.
        now: Epoch seconds.
        writer: Writes what threads have to write; ``None`` where the store needs no writing.

    Attributes:
        staged: Attempts that wait for a thread; it takes them from the left.
        last_staged: The last task that was staged.
    """

    __slots__ = (
        "_ends",
        "_graph",
        "_horizon",
        "_inputs",
        "_lane",
        "_ledger",
        "_lock",
        "_loop",
        "_now",
        "_pool",
        "_prepare",
        "_stopped",
        "_unheard",
        "_writer",
        "last_staged",
        "staged",
    )

    def __init__(  # noqa: PLR0913 - it works for a run, and needs what that has
        self,
        graph: Graph,
        ledger: Ledger,
        inputs: Inputs,
        lane: Lane,
        pool: WorkerThreads | None,
        loop: asyncio.AbstractEventLoop,
        *,
        prepare: Callable[[int, int], Invocation],
        now: Callable[[], float],
        writer: Writer | None,
    ) -> None:
        self._graph = graph
        self._ledger = ledger
        self._inputs = inputs
        self._lane = lane
        self._pool = pool
        self._loop = loop
        self._prepare = prepare
        self._now = now
        self._writer = writer
        self._lock = threading.Lock()
        self._stopped = False
        self._ends = 0
        self._unheard = 0  # ends that the loop has not heard of
        self._horizon: int = sys.maxsize  # the first task that one of them may have made ready
        self.staged: deque[Invocation] = deque()
        self.last_staged = -1

    def stage(self) -> None:
        """Prepare sync tasks that have no slot yet, for a thread that ends a short one."""
        ready, staged = self._ledger.ready, self.staged
        if self._pool is None or len(staged) > _MOST_STAGED // 2:
            return
        specs, asyncs = self._graph.specs, self._graph.is_async
        while ready and len(staged) < _MOST_STAGED:
            number = ready.first()
            if asyncs[number] or specs[number].executor is not None:
                return
            # In this order: a thread that ends meanwhile must not find it nowhere, and go on
            # with a later one.
            staged.append(self._prepare(number, self._ledger.tasks[number].attempt + 1))
            self.last_staged = ready.pop()

    def unstage(self) -> None:
        """Put back what no thread has taken; other tasks are to come first."""
        while (invocation := self.take()) is not None:
            self._ledger.ready.push(invocation.number)

    def take(self) -> Invocation | None:
        """Take the first staged attempt, if there is one left: several threads do so."""
        with self._lock:
            return self.staged.popleft() if self.staged else None

    def stop(self) -> None:
        """Let threads go on with nothing more."""
        with self._lock:
            self._stopped = True
            self.staged.clear()

    def next_of(self, ended: Invocation) -> Invocation | None:
        """Say what a thread goes on with, in the slot of an attempt that has just ended.

        Called in that thread.
        """
        children = self._graph.children[ended.number] if ended.ok else ()
        staged = self.staged
        with self._lock:
            before = self._horizon
            ended.unheard = True
            self._unheard += 1
            self._ends = ends = self._ends + 1
            if children:
                self._horizon = min(before, children[0])
            now = self._now()
            if not self._may_go_on(ended):
                return None
            if not staged:
                invocation = None
                if not self._only_child_is_next(children, before):
                    return None
            elif staged[0].number >= self._horizon or self._comes_before(staged[0].number):
                return None
            else:
                invocation = staged.popleft()
        if invocation is None:
            invocation = self._go_on_with_child(ended, children, now, before, ends)
        if invocation is not None:
            task = self._ledger.tasks[invocation.number]
            task.start(now, now if task.ready_at is None else task.ready_at)
            if self._writer is not None:
                self._writer.note(task)
            invocation.follow(ended)
        return invocation

    def heard(self, ended: Invocation) -> None:
        """The loop knows of an end: what has become ready by it is no secret any more."""
        if ended.unheard:
            with self._lock:
                self._unheard -= 1
                if not self._unheard:
                    self._horizon = sys.maxsize

    def _may_go_on(self, ended: Invocation) -> bool:
        pool = self._pool
        return (
            not self._stopped
            and not ended.stopped
            and ended.ok
            and ended.runs_for_s < _SHORT_S
            and not self._lane.others_wait
            and pool is not None
            and not pool.waiting_calls
            and not is_awaitable(ended.value)
            and not self._loop.is_closed()
        )

    def _only_child_is_next(self, children: tuple[int, ...], horizon: int) -> bool:
        """Return whether a single task waits for this one only, and is the next of all."""
        # A result has to be released before a child may start (I2); of what a store has been
        # given the loop lets go after that child.
        if len(children) != 1 or (self._writer is None and self._ledger.lets_go):
            return False
        (child,) = children
        return not (
            self._graph.is_async[child]
            or self._graph.specs[child].executor is not None
            or not self._ledger.waits_for_one(child)
            or child >= horizon
            or self._comes_before(child)
        )

    def _go_on_with_child(
        self, ended: Invocation, children: tuple[int, ...], now: float, horizon: int, ends: int
    ) -> Invocation | None:
        """Record a success, in the store first (S1), and go on with the only child."""
        # Not under the lock: the loop must not wait for a disk.
        if self._writer is not None and not self._writer.save(ended, now):
            return None
        with self._lock:
            # What was true may have changed meanwhile.
            goes_on = (
                self._ends == ends
                and not self._stopped
                and not ended.stopped
                and not self.staged
                and self._only_child_is_next(children, horizon)
            )
            task = self._ledger.tasks[ended.number]
            task.succeed(now, ended.value)
            ended.recorded = True
            if type(ended.value) not in UNCHANGING:
                self._inputs.may_change = True
            if not goes_on:
                return None
            self._horizon = horizon
            (child,) = children
            return self._prepare(child, self._ledger.tasks[child].attempt + 1)

    def _comes_before(self, number: int) -> bool:
        """Return whether a task is ready that is to be launched before this one."""
        try:
            return self._ledger.ready.first() < number
        except IndexError:  # none, or the loop has just taken it
            return False
