"""How far a run has come: unmet parents, waiting consumers, what is settled.

Counts only; nothing here launches, saves or tells. Each task is touched when it becomes ready
and when it settles, each edge once. The event loop and worker threads keep these books together.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING

from flowrun.state import NoResult, TaskStatus

if TYPE_CHECKING:
    from flowrun.graph import Graph
    from flowrun.state import RunRecord


_PAUSE_S = 0.0001
_LONGEST_PAUSE_S = 0.002

_retains = attrgetter("retain_result")


def wait_for(lock: threading.Lock) -> None:
    """Take a ledger's lock that another thread holds.

    Threads that wait inside a lock are handed it while somebody else has the interpreter, who
    must then wait for them in turn: with short tasks, one switch of threads for each, and it
    never ends. Who gives the interpreter away instead finds the lock free when it has it back;
    and who does not, is one too many for what there is to do, and comes back later.
    """
    pause_s = 0.0
    while True:
        time.sleep(pause_s)  # to give the interpreter away, and then to keep away from it
        if lock.acquire(blocking=False):
            return
        pause_s = min(2 * pause_s + _PAUSE_S, _LONGEST_PAUSE_S)


class Ready:
    """Tasks that could be launched; the first in topological order leaves first.

    Tasks mostly become ready in that order, so that a heap is needed for the others only.

    Attributes:
        ordered: Numbers that came in ascending order.
        late: A heap of those that came when a higher one had come before.
    """

    __slots__ = ("late", "ordered")

    def __init__(self) -> None:
        self.ordered: deque[int] = deque()
        self.late: list[int] = []

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.ordered or self.late)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.ordered) + len(self.late)

    def push(self, number: int) -> None:
        """Add a task."""
        ordered = self.ordered
        if not ordered or number > ordered[-1]:
            ordered.append(number)
        else:
            heappush(self.late, number)

    def first(self) -> int:
        """Return the first one; there has to be one."""
        late, ordered = self.late, self.ordered
        return late[0] if late and (not ordered or late[0] < ordered[0]) else ordered[0]

    def pop(self) -> int:
        """Take the first one out; there has to be one."""
        late, ordered = self.late, self.ordered
        if late and (not ordered or late[0] < ordered[0]):
            return heappop(late)
        return ordered.popleft()

    def clear(self) -> None:
        """Take all of them out."""
        self.ordered.clear()
        self.late.clear()


class Ledger:
    """The books of one run.

    Attributes:
        lock: Held by whoever reads or changes them, while worker threads may do so too. What
            takes it by itself says nothing of it.
        tasks: The task records, by the graph's numbers.
        ready: Tasks that could be launched.
        open: Number of tasks that have not settled.
        retains_all: Whether no result is released after its last consumer.
        lets_go: Whether results are released, or left to the store, after their last consumer.
    """

    __slots__ = (
        "_consumers",
        "_graph",
        "_live",
        "_resumed",
        "_settled",
        "_unmet",
        "lets_go",
        "lock",
        "open",
        "ready",
        "retains_all",
        "tasks",
    )

    def __init__(self, graph: Graph, record: RunRecord, *, live: bool) -> None:
        self.lock = threading.Lock()
        self._graph = graph
        self._live = live
        self._resumed = record.resumed_from is not None
        self.tasks = list(record.tasks.values())
        self.ready = Ready()
        self.open = len(graph)
        self._unmet = list(map(len, graph.parents))
        self.retains_all = all(map(_retains, graph.specs))
        self.lets_go = not live or not self.retains_all
        self._consumers = list(map(len, graph.children)) if self.lets_go else []
        self._settled = bytearray(len(graph))

    def begin(self, now: float) -> None:
        """Settle what was carried over from an earlier run, and find what is ready."""
        kept: list[int] = []
        if self._resumed:
            succeeded = TaskStatus.SUCCESS
            kept = [number for number, task in enumerate(self.tasks) if task.status is succeeded]
        self.open -= len(kept)
        for number in kept:
            self._settled[number] = True
            for child in self._graph.children[number]:
                self._unmet[child] -= 1
            # It will not ask for its own inputs any more.
            if self.lets_go:
                for parent in self._graph.parents[number]:
                    self._consumers[parent] -= 1
        number = -1
        with contextlib.suppress(ValueError):  # there are no more
            while True:
                number = self._unmet.index(0, number + 1)
                if not self._settled[number]:
                    self.tasks[number].ready_at = now
                    self.ready.push(number)

    def make_ready(self, number: int, now: float) -> None:
        """A task can be launched (again)."""
        with self.lock:
            self.tasks[number].ready_at = now
            self.ready.push(number)

    def succeeded(self, number: int, now: float, opens: bool) -> None:  # noqa: FBT001 - for every task
        """A task has succeeded: settle it, and let its children come; the lock is held.

        Args:
            number: The task.
            now: When its children can start.
            opens: Whether they still may.
        """
        settled = self._settled
        settled[number] = True
        self.open -= 1
        if self.lets_go:
            self._let_inputs_go(number)
        if not opens:
            return
        unmet, ordered, late = self._unmet, self.ready.ordered, self.ready.late
        for child in self._graph.children[number]:
            left = unmet[child] = unmet[child] - 1
            if not left and not settled[child]:
                self.tasks[child].ready_at = now
                if not ordered or child > ordered[-1]:  # as Ready.push() has it
                    ordered.append(child)
                else:
                    heappush(late, child)

    def settle(self, number: int) -> None:
        """A task has ended for good, but not well."""
        with self.lock:
            self._settled[number] = True
            self.open -= 1
            if self.lets_go:
                self._let_inputs_go(number)

    def _let_inputs_go(self, number: int) -> None:
        """Let results go that nobody waits for any more (I2)."""
        consumers = self._consumers
        for parent in self._graph.parents[number]:
            consumers[parent] -= 1
            if not consumers[parent]:
                self._let_go(parent)
        if not consumers[number]:
            self._let_go(number)

    def descendants_to_skip(self, number: int) -> list[int]:
        """Claim every unsettled task that needs this one, in topological order.

        They count as settled from now on, so that another failure does not claim them again;
        :meth:`settle` follows for each.
        """
        found: list[int] = []
        stack = [number]
        with self.lock:
            while stack:
                for child in self._graph.children[stack.pop()]:
                    if not self._settled[child]:
                        self._settled[child] = True
                        found.append(child)
                        stack.append(child)
        found.sort()
        return found

    def never_started(self) -> list[int]:
        """Claim every task that has not been started, in topological order.

        Also one that was claimed before: where skipping it went wrong, it still is PENDING.
        """
        found = [
            number for number, task in enumerate(self.tasks) if task.status is TaskStatus.PENDING
        ]
        for number in found:
            self._settled[number] = True
        return found

    def halfway(self) -> list[int]:
        """Return tasks that are RUNNING, at the end: only when settling them went wrong."""
        return [
            number for number, task in enumerate(self.tasks) if task.status is TaskStatus.RUNNING
        ]

    def _let_go(self, number: int) -> None:
        task = self.tasks[number]
        if task.status is not TaskStatus.SUCCESS or type(task.result) is NoResult:
            return
        if not self.retains_all and not self._graph.specs[number].retain_result:
            task.release()
        elif not self._live:
            task.result = NoResult.STORED  # the store has it, and this run is done with it
