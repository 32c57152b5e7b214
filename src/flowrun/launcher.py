"""Launch what is ready: async tasks on the event loop, sync ones in threads or elsewhere.

Everything here happens on the run's event loop. What a task's end means is not decided here.
"""

from __future__ import annotations

import asyncio
from sys import getrefcount
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol
from weakref import getweakrefcount

from flowrun.attempt import Halfway, Invocation, first_step
from flowrun.context import Attempt
from flowrun.deadlines import Deadlines
from flowrun.errors import ExecutorError, FlowrunError
from flowrun.failure import error_line
from flowrun.following import Following
from flowrun.inputs import NO_ARGUMENTS, frozen
from flowrun.slots import Lane
from flowrun.workers import WorkerThreads

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Collection, Mapping
    from concurrent.futures import Executor

    from flowrun.clock import Clock
    from flowrun.following import Writer
    from flowrun.graph import Graph
    from flowrun.inbox import Inbox
    from flowrun.inputs import Inputs
    from flowrun.ledger import Ledger
    from flowrun.slots import Slots
    from flowrun.state.records import RunRecord, TaskRecord

P = ParamSpec("P")

_SLICE_S = 0.01


class Settler(Protocol):
    """What a launcher tells of the attempts that it has launched."""

    def launched(self, task: TaskRecord) -> None:
        """An attempt begins, or is handed to an executor."""

    def followed(self, task: TaskRecord) -> None:
        """An attempt has begun in a thread, which has noted that with the ``writer``."""

    def ended(self, invocation: Invocation) -> None:
        """Its code has ended, in whatever way; the launcher still counts it as active."""

    def ended_well(self, number: int, now: float, value: object) -> None:
        """A task has returned at its first step; there was no need for an invocation."""

    def ended_late(self, invocation: Invocation) -> None:
        """The code of an abandoned attempt has ended; told from any thread."""

    def due(self, invocation: Invocation) -> float | None:
        """A deadline was reached; return when to look again, or ``None``."""

    def progressed(self) -> None:
        """It may have been the last one."""

    def broke(self, error: Exception) -> None:
        """Something went wrong in flowrun itself."""


class Launcher:
    """Launch the ready tasks of one run, as far as there are slots.

    Args:
        graph: The graph.
        record: The run.
        ledger: Its books.
        inputs: What its tasks are given.
        slots: What it shares with other runs.
        pools: Executors by name; see :class:`~flowrun.scheduler.Services`.
        clock: The time.
        offset: What makes epoch seconds of the monotonic clock's.
        inbox: Where other threads leave what they have to tell; this handles none of it.
        base: The context in which tasks begin.
        settler: Told what happens.
        quiet: Whether the settler need not be told of launches.
        writer: What worker threads write to the store; ``None`` where they need not.
    """

    def __init__(  # noqa: PLR0913 - it is wired in one place, of a run's parts
        self,
        graph: Graph,
        record: RunRecord,
        ledger: Ledger,
        inputs: Inputs,
        slots: Slots,
        pools: Mapping[str | None, tuple[Executor, str]],
        *,
        clock: Clock,
        offset: float,
        inbox: Inbox,
        base: contextvars.Context,
        settler: Settler,
        quiet: bool,
        writer: Writer | None,
    ) -> None:
        self._graph = graph
        self._record = record
        self._ledger = ledger
        self._tasks = ledger.tasks
        self._inputs = inputs
        self._pools = pools
        self._clock = clock
        self._monotonic = clock.monotonic
        self._offset = offset
        self._inbox = inbox
        self._base = base
        self._settler = settler
        self._quiet = quiet
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(slots, self._granted)
        self._line = slots.queue  # who waits for a slot
        self._held = 0  # slots that its own tasks have left
        self._granted_slots = 0  # slots that are meant for its next task, and not passed on
        self._active: set[Invocation] = set()
        self._deadlines: Deadlines[Invocation] = Deadlines(self._loop, clock, settler.due)
        self._open = False
        self._stopped = False
        self._pumping = False
        self._calling = False  # a carrier was made and has not begun
        self._alone = self._loop.get_task_factory() is not None
        own = pools[None][0]
        self._following = Following(
            graph,
            ledger,
            inputs,
            self._lane,
            own if isinstance(own, WorkerThreads) else None,
            self._loop,
            prepare=self._prepare,
            now=self._now,
            writer=writer,
        )
        self._staged = self._following.staged
        self._instant = 0.0  # the latest reading of the clock
        self._slice_end = 0.0

    @property
    def active(self) -> Collection[Invocation]:
        """Attempts that were launched and have not ended."""
        return self._active

    def begin(self) -> None:
        """Launch from now on."""
        self._open = True

    def stop(self) -> None:
        """Launch nothing more."""
        self._stopped = True
        self._following.stop()
        self._ledger.ready.clear()

    def leave(self) -> None:
        """Nothing is active any more: give back what others may use."""
        self._open = False
        self._stopped = True
        self._deadlines.close()
        self._lane.leave()
        self._give_slots_back()

    def pump(self) -> None:
        """Launch what is ready while there are slots; a carrier has to run async tasks."""
        if self._pumping or not self._open:
            return
        self._pumping = True
        self._slice_end = 0.0
        try:
            waits_for_a_carrier = self._next(carry=False) is not None
        finally:
            self._pumping = False
        if waits_for_a_carrier and not self._calling:
            self._calling = True
            carrier = self._loop.create_task(self._carry())
            carrier.add_done_callback(self._carrier_gone)

    def take_back(self, invocation: Invocation) -> None:
        """Take an attempt off the books; its slot is free for the next one."""
        self._held += 1
        invocation.closed = True
        invocation.attempt.ended = True
        if invocation in self._active:
            self._active.remove(invocation)
            if invocation.spec.timeout_s is not None:
                self._deadlines.forget()

    def followed(self, ended: Invocation, invocation: Invocation) -> None:
        """A thread has gone on from one attempt to another."""
        self._ledger.claim(invocation.number)
        self._guarded(self._watch, invocation)
        self._guarded(self._settler.ended, ended)
        self._held -= 1
        self._settler.followed(self._tasks[invocation.number])

    def heard(self, ended: Invocation) -> None:
        """The loop knows that an attempt has ended in its thread."""
        self._following.heard(ended)

    # Slots.

    def _granted(self) -> None:
        if not self._inbox.put(self._take_grant):
            self._lane.give_back()

    def _take_grant(self) -> None:
        if self._open:
            self._granted_slots += 1
        else:
            self._lane.give_back()

    def _slot(self) -> bool:
        """Take a slot, one of its own first; without one it now stands in line."""
        if self._granted_slots:
            self._granted_slots -= 1
            return True
        while self._held > 0:
            self._held -= 1
            if not self._line or self._lane.renew():
                return True
        return self._lane.take()

    def _give_slots_back(self) -> None:
        unused = self._held + self._granted_slots
        self._held = self._granted_slots = 0
        for _ in range(unused):
            self._lane.give_back()

    # What is next.

    def _next(self, *, carry: bool) -> int | None:
        """Launch what is ready, up to the first async task.

        Args:
            carry: Whether the caller carries async tasks; if not they are left alone.

        Returns:
            That task, with a slot for it, which is kept if the caller does not carry it; or
            ``None`` if there is none to launch, no slot for it, or the loop is to have a turn.
        """
        ready, staged = self._ledger.ready, self._staged
        ordered, late, asyncs = ready.ordered, ready.late, self._graph.is_async
        if staged and ready and ready.first() < self._following.last_staged:
            self._following.unstage()
        while ordered or late or staged:
            if self._instant > self._slice_end and self._slice_is_over():
                return None
            # A thread may have taken what was staged: then there may be nothing left.
            if not (carry or staged) and (ordered or late) and asyncs[number := ready.first()]:
                # Kept for the carrier: one that found no slot would end, and be made anew.
                if not self._granted_slots:
                    if not self._slot():
                        return None
                    self._granted_slots += 1
                return number
            if self._held > 0 and not self._line:
                self._held -= 1  # in the place of the one that has just ended
            elif not self._slot():
                self._following.stage()
                return None
            if carry and not staged and (ordered or late) and asyncs[ready.first()]:
                return ready.pop()
            self._launch_elsewhere()
        self._give_slots_back()
        return None

    def _slice_is_over(self) -> bool:
        """Return whether the loop must have a turn now, and see to it that it goes on after.

        Tasks that end at once are run without a turn of the loop in between; now and then it
        must have one, for timers, cancellations and everybody else.
        """
        if not self._slice_end:
            self._slice_end = self._now() + _SLICE_S
            return False
        self._inbox.put(_nothing)
        return True

    def _now(self) -> float:
        return self._monotonic() + self._offset

    # Sync tasks.

    def _launch_elsewhere(self) -> None:
        """Launch the next sync task, in the slot that was taken for it."""
        try:
            invocation = self._following.take()
            if invocation is None:
                ready = self._ledger.ready
                if not ready or self._graph.is_async[ready.first()]:
                    self._held += 1  # threads were faster
                    return
                number = ready.pop()
                self._launch(number)
                invocation = self._prepare(number, self._tasks[number].attempt)
            else:
                self._launch(invocation.number)
        except BaseException:
            self._held += 1
            raise
        self._hand_over(invocation)

    def _launch(self, number: int) -> None:
        task = self._tasks[number]
        self._instant = now = self._now()
        task.start(now, now if task.ready_at is None else task.ready_at)
        self._settler.launched(task)

    def _prepare(self, number: int, attempt: int) -> Invocation:
        """Bind a sync task's attempt to what it is given."""
        record, spec = self._record, self._graph.specs[number]
        invocation = Invocation(
            number,
            spec,
            Attempt(record.run_id, record.dag_name, spec.name, attempt),
            self._inputs.arguments(number),
            self._base.copy(),
            self._clock,
        )
        # What can be changed is kept as it is, for a retry or a resume (S4).
        if self._inputs.may_change and attempt == 1:
            changeable = self._inputs.changeable(number)
            if changeable:
                invocation.inputs = changeable
        return invocation

    def _hand_over(self, invocation: Invocation) -> None:
        """Hand a sync task to its executor."""
        spec, late = invocation.spec, self._settler.ended_late
        pool, kind = self._pools[spec.executor]
        try:
            if isinstance(pool, WorkerThreads):
                invocation.start_in_thread(pool, self._inbox, late, self._following.next_of)
            else:
                invocation.start_sync(pool, kind, self._inbox, late)
        except Exception as error:  # noqa: BLE001 - a pool may refuse in any way
            invocation.error = _refused(error, spec.executor)
            self._settler.ended(invocation)
            return
        self._watch(invocation)

    def _watch(self, invocation: Invocation) -> None:
        self._active.add(invocation)
        timeout_s = invocation.spec.timeout_s
        if timeout_s is not None:
            started = invocation.started  # some of its time may be over already
            if started is None:
                started = self._monotonic()
            self._deadlines.add(started + timeout_s, invocation)

    # Async tasks.

    async def _carry(self) -> None:
        """Run ready async tasks one after another, inside one asyncio task.

        One asyncio task for each of them would cost more than all the rest. None may feel what
        ran before it: each has a context of its own, and as soon as anybody but the event loop
        knows the asyncio task, to cancel it later perhaps, or something was left on it, it
        carries no other. Nor does it where the user has set a task factory, which is to see
        them all.
        """
        if self._alone:  # it may be one that makes tasks which begin at once
            await asyncio.sleep(0)
        self._calling = False
        carrier = asyncio.current_task()
        assert carrier is not None  # noqa: S101 - this is one
        references, weak_references = getrefcount(carrier), getweakrefcount(carrier)
        marks = _marks(carrier)
        used = False
        while (
            not (used and self._alone)
            and getrefcount(carrier) == references
            and getweakrefcount(carrier) == weak_references
            and _marks(carrier) == marks
        ):
            used = True
            number = invocation = None
            try:
                number = self._next(carry=True)
                if number is None:
                    return
                invocation = self._step_here(number)
                if invocation is None:
                    number = None
                    self._held += 1
                    if self._stopped or not self._ledger.open:
                        self._settler.progressed()
                    continue
                if invocation.suspended:
                    invocation.task = carrier
                    self._suspended(invocation)
                    await invocation.rest()
                    self._slice_end = 0.0
                    if invocation.closed:
                        self._settler.ended_late(invocation)
                        return
                self._settler.ended(invocation)
            except Exception as error:  # noqa: BLE001 - by design: see _guarded
                if number is not None and not (invocation and invocation.closed):
                    self._held += 1
                self._settler.broke(error)

    def _step_here(self, number: int) -> Invocation | None:
        """Launch an async task, in the asyncio task that called; settle it if it ends well."""
        spec, task = self._graph.specs[number], self._tasks[number]
        instant = self._monotonic()
        now = instant + self._offset
        task.start(now, now if task.ready_at is None else task.ready_at)
        if not self._quiet:
            self._settler.launched(task)
        inputs = self._inputs
        arguments = inputs.arguments(number)
        if inputs.may_change and task.attempt == 1:
            changeable = inputs.changeable(number)
            if changeable:
                inputs.keep(number, frozen(changeable))
                instant = self._monotonic()
                task.started_at = instant + self._offset
        record, timeout_s = self._record, spec.timeout_s
        deadline = None if timeout_s is None else instant + timeout_s
        attempt = Attempt(record.run_id, record.dag_name, spec.name, task.attempt, deadline)
        context = self._base.copy()
        value = context.run(first_step, spec.function, arguments, attempt)
        if type(value) is Halfway:
            invocation = Invocation(number, spec, attempt, NO_ARGUMENTS, context, self._clock)
            invocation.go_on_from(value, instant)
            self._instant = self._now()
            return invocation
        attempt.ended = True
        self._instant = now = self._monotonic() + self._offset
        self._settler.ended_well(number, now, value)
        return None

    def _suspended(self, invocation: Invocation) -> None:
        """An async task has not ended at once: see what else can be launched meanwhile."""
        try:
            self._watch(invocation)
            if self._ledger.ready and (self._held or self._granted_slots or self._lane.may_take):
                self.pump()
        except Exception as error:  # noqa: BLE001 - by design: see _guarded
            self._settler.broke(error)

    def _carrier_gone(self, carrier: asyncio.Task[None]) -> None:
        if carrier.cancelled():  # by somebody else, and perhaps before it began
            self._calling = False
        self._guarded(self.pump)

    def _guarded(self, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Take one step; an error in flowrun itself ends the run, it never hangs it (R4)."""
        try:
            step(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - by design: see above
            self._settler.broke(error)


def _marks(carrier: Any) -> tuple[object, ...]:  # noqa: ANN401 - see below
    """Return what the code that an asyncio task runs can leave on it.

    A cancellation that it took back is still to come, before Python 3.13; who waits for the
    asyncio task's end waits for the end of that code. There is no public way to see either.
    """
    return (
        carrier.cancelling(),
        carrier.get_name(),
        carrier._must_cancel,  # noqa: SLF001
        carrier._callbacks,  # noqa: SLF001
    )


def _nothing() -> None:
    """Wake the loop and do no more."""


def _refused(error: Exception, executor: str | None) -> Exception:
    if isinstance(error, FlowrunError):
        return error
    name = f"executor {executor!r}" if executor else "the executor"
    clear = ExecutorError(f"{name} did not take the task: {error_line(error)}")
    clear.__cause__ = error
    return clear
