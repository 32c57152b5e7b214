"""Launch what is ready: async tasks on the event loop, sync ones in threads or elsewhere.

Everything here happens on the run's event loop, but for what is said to be called in threads.
What a task's end means is not decided here.
"""

from __future__ import annotations

import asyncio
from functools import partial
from heapq import heappop
from inspect import CO_COROUTINE
from sys import getrefcount
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol
from weakref import getweakrefcount

from flowrun.context import CURRENT, Attempt
from flowrun.errors import ExecutorError, FlowrunError
from flowrun.executors import WorkerThreads
from flowrun.failure import error_line
from flowrun.registry import UPSTREAM
from flowrun.scheduler.attempt import Invocation, made_coroutine, pool_name
from flowrun.scheduler.deadlines import Deadlines
from flowrun.scheduler.following import Following
from flowrun.scheduler.inputs import NO_ARGUMENTS, UNCHANGING, frozen
from flowrun.scheduler.slots import Lane

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Collection, Mapping
    from concurrent.futures import Executor

    from flowrun.config import Clock
    from flowrun.graph import Graph
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.inputs import Inputs
    from flowrun.scheduler.ledger import Ledger
    from flowrun.scheduler.saving import Writer
    from flowrun.scheduler.slots import Slots
    from flowrun.state import RunRecord, TaskRecord

P = ParamSpec("P")

_SLICE_S = 0.01
_NOTHING = object()
_set_current = CURRENT.set


def _references_of_one_variable() -> int:
    variable = object()
    return getrefcount(variable)


_UNKNOWN_TO_OTHERS = _references_of_one_variable()
"""References to an object that one variable refers to.

That of the call that counts them is among them up to Python 3.13, and not from 3.14 on.
"""


class Settler(Protocol):
    """What a launcher tells of the attempts that it has launched."""

    def launched(self, task: TaskRecord) -> None:
        """An attempt begins, or is handed to an executor."""

    def started(self, task: TaskRecord) -> None:
        """An attempt begins in a worker thread, which calls this; the ledger's lock is held."""

    def succeed(self, number: int, now: float, value: object) -> None:
        """Record a success in whatever thread; the ledger's lock is held."""

    def ended(self, invocation: Invocation) -> None:
        """Its code has ended, in whatever way; the launcher still counts it as active."""

    def ended_well(self, number: int, now: float, value: object) -> None:
        """A task has returned at its first step; there was no need for an invocation."""

    def ended_late(self, invocation: Invocation) -> None:
        """The code of an abandoned attempt has ended; told from any thread."""

    def due(self, invocation: Invocation) -> None:
        """A deadline was reached."""

    def progressed(self) -> None:
        """It may have been the last one."""

    def broke(self, error: BaseException, *, elsewhere: bool = False) -> None:
        """Something went wrong in flowrun itself, on the event loop or in another thread."""


class Launcher:
    """Launch the ready tasks of one run, as far as there are slots.

    Args:
        graph: The graph.
        record: The run.
        ledger: Its books.
        inputs: What its tasks are given.
        slots: What it shares with other runs.
        pools: Executors by name; see :class:`~flowrun.scheduler.old_run.Services`.
        clock: The time.
        offset: What makes epoch seconds of the monotonic clock's.
        inbox: Where other threads leave what they have to tell; this handles none of it.
        base: The context in which tasks begin.
        settler: Told what happens.
        quiet: Whether the settler need not be told of launches.
        quiet_success: Whether nobody wants to hear of successes.
        live: Whether a success is durable as soon as it is recorded.
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
        quiet_success: bool,
        live: bool,
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
        self._live = live
        self._quiet_success = quiet_success
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(slots, self._granted)
        self._line = self._lane.line
        self._held = 0  # slots that its own tasks have left
        self._granted_slots = 0  # slots that are meant for its next task, and not passed on
        self._only_async = all(graph.is_async)  # then no thread reads or changes the books
        # Under the lock: a thread must not tell of a later task before (R6).
        self._tells_in_order = not (quiet or self._only_async)
        self._open = False
        self._stopped = False
        self._pumping = False
        self._calling = False  # a carrier was made and has not begun
        self._alone = self._loop.get_task_factory() is not None
        own = pools[None][0]
        self._following = Following(
            graph,
            ledger,
            self._lane,
            own if isinstance(own, WorkerThreads) else None,
            self._loop,
            inbox,
            self,
            monotonic=clock.monotonic,
            offset=offset,
            late=settler.ended_late,
            quiet=quiet,
            writer=writer,
        )
        self._active = self._following.active
        self._deadlines = Deadlines(self._loop, clock, self._active, settler.due)
        self.started, self.succeed = settler.started, settler.succeed
        self._instant = 0.0  # the latest reading of the clock
        self._slice_end = 0.0

    @property
    def active(self) -> Collection[Invocation]:
        """Attempts that were launched and have not ended."""
        return self._active

    @property
    def unsettled(self) -> bool:
        """Whether threads have something to save, or to settle."""
        return self._following.unsettled

    def begin(self) -> None:
        """Launch from now on."""
        self._open = True

    def stop(self) -> None:
        """Launch nothing more."""
        self._stopped = True
        self._following.stop()
        with self._ledger.lock:
            self._ledger.ready.clear()

    def leave(self) -> None:
        """Nothing is active any more: give back what others may use."""
        self._open = False
        self._stopped = True
        self._deadlines.close()
        self._following.leave()
        self._held = self._granted_slots = 0
        self._lane.leave()

    def pump(self) -> None:
        """Launch what is ready while there are slots; a carrier has to run async tasks."""
        if self._pumping or not self._open:
            return
        self._pumping = True
        self._slice_end = 0.0
        self._collect()
        try:
            waits_for_a_carrier = self._next(carry=False) is not None
        finally:
            self._pumping = False
        if waits_for_a_carrier and not self._calling:
            self._calling = True
            # In this way also where a task factory takes no context.
            carrier = self._base.copy().run(self._loop.create_task, self._carry())
            carrier.add_done_callback(self._carrier_gone)

    def take_back(self, invocation: Invocation) -> None:
        """Take an attempt off the books; its slot is free for the next one."""
        if not invocation.keeps_slot:
            self._held += 1
        invocation.closed = True
        invocation.attempt.ended = True
        self._active.discard(invocation)

    def look_again(self, invocation: Invocation) -> None:
        """See to the deadline of an attempt that goes on on the loop.

        Its time may have been found to be up when only its thread had ended.
        """
        due = invocation.due_at(self._monotonic())
        if due is not None:
            self._deadlines.expect(due)

    def heard(self, ended: Invocation) -> None:
        """The loop knows that an attempt has ended in its thread."""
        self._following.heard(ended)

    # For worker threads.

    def prepare(self, number: int, attempt: int) -> Invocation:
        """Bind a sync task's attempt to what it is given; in any thread."""
        record, spec, inputs = self._record, self._graph.specs[number], self._inputs
        invocation = Invocation(
            number,
            spec,
            Attempt(record.run_id, record.dag_name, spec.name, attempt),
            inputs.arguments(number),
            self._base.copy(),
            self._clock,
        )
        # What can be changed is kept as it is, for a retry or a resume (S4).
        if inputs.may_change and attempt == 1:
            changeable = inputs.changeable(number)
            if changeable:
                invocation.inputs = changeable
        return invocation

    def watch(self, due: float) -> None:
        """See to it that an attempt is looked at when its time is up; in any thread."""
        if due < self._deadlines.armed_for:
            self._inbox.put(partial(self._deadlines.expect, due))

    def broke(self, ended: Invocation | None, error: BaseException) -> None:
        """Something went wrong in a thread, though not in a task."""
        if ended is None or not ended.abandoned:  # its slot was left when it was given up
            self._held += 1
        if ended is not None:
            self._active.discard(ended)
        self._settler.broke(error, elsewhere=True)

    def _collect(self) -> None:
        """Take over the slots that threads have left."""
        self._held += self._following.collect()

    # Slots.

    def _granted(self) -> None:
        if not self._inbox.put(self._take_grant):
            self._lane.give_back()

    def _take_grant(self) -> None:
        if self._open:  # otherwise the lane has given it back when it left
            self._granted_slots += 1

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

    def _next(self, *, carry: bool) -> int | None:  # noqa: C901, PLR0912 - the steps under one lock stay in sight
        """Launch what is ready, up to the first async task.

        Args:
            carry: Whether the caller carries async tasks; if not they are left alone.

        Returns:
            That task, with a slot for it, which is kept if the caller does not carry it; or
            ``None`` if there is none to launch, no slot for it, or the loop is to have a turn.
        """
        ready, lock, asyncs = self._ledger.ready, self._ledger.lock, self._graph.is_async
        while True:
            if not ready:
                self._give_slots_back()
                # A thread may have made some ready, and have told nobody: it saw no slot free.
                if not ready:
                    return None
            if self._instant > self._slice_end and self._slice_is_over():
                return None
            with lock:
                number = ready.first() if ready else -1
            # Kept for the carrier: one that found no slot would end, and be made anew.
            keeps = not carry and number >= 0 and asyncs[number]
            if keeps and self._granted_slots:
                return number
            if self._held > 0 and not self._line:
                self._held -= 1  # in the place of the one that has just ended
            elif not self._slot():
                return None
            if keeps:
                self._granted_slots += 1
                return number
            with lock:
                number = ready.pop() if ready else -1
                if number >= 0 and asyncs[number] and not carry:
                    ready.push(number)  # threads have taken those before it
                    number = -1
                elif number >= 0 and self._tells_in_order:
                    self._launch(number)
            if number < 0:
                self._held += 1  # threads were faster
            elif not asyncs[number]:
                self._launch_elsewhere(number)
            else:
                return number

    def _slice_is_over(self) -> bool:
        """Return whether the loop must have a turn now, and see to it that it goes on after.

        Tasks that end at once are run without a turn of the loop in between; now and then it
        must have one, for timers, cancellations and everybody else.
        """
        if not self._slice_end:
            self._slice_end = self._monotonic() + _SLICE_S
            return False
        self._inbox.put(_nothing)
        return True

    # Sync tasks.

    def _launch_elsewhere(self, number: int) -> None:
        """Launch a sync task, in the slot that was taken for it."""
        if not self._tells_in_order:
            self._launch(number)
        try:
            invocation = self.prepare(number, self._tasks[number].attempt)
        except BaseException:
            self._held += 1
            raise
        self._hand_over(invocation)

    def _launch(self, number: int) -> None:
        task = self._tasks[number]
        self._instant = instant = self._monotonic()
        now = instant + self._offset
        try:
            task.start(now, now if task.ready_at is None else task.ready_at)
            self._settler.launched(task)
        except BaseException:
            self._held += 1
            raise

    def _hand_over(self, invocation: Invocation) -> None:
        """Hand a sync task to its executor."""
        executor = invocation.spec.executor
        pool, kind = self._pools[executor]
        try:
            if executor is None and isinstance(pool, WorkerThreads):
                self._following.hand(invocation)
            else:
                invocation.start_sync(pool, kind, self._inbox, self._settler.ended_late)
                self._active.add(invocation)
        except BaseException as error:  # noqa: BLE001 - a pool may refuse in any way
            invocation.error = _refused(error, executor)
            self._settler.ended(invocation)
            return
        timeout_s = invocation.spec.timeout_s
        if timeout_s is not None:
            self._deadlines.expect(self._instant + timeout_s)

    # Async tasks.

    async def _carry(self) -> None:  # noqa: C901, PLR0912, PLR0915 - the way of every async task, in one piece
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
        graph, ledger, inputs, settler = self._graph, self._ledger, self._inputs, self._settler
        specs, tasks, parents, plans = graph.specs, self._tasks, graph.parents, graph.plans
        ordered, late = ledger.ready.ordered, ledger.ready.late
        line, lane, only_async = self._line, self._lane, self._only_async
        active, deadlines = self._active, self._deadlines
        run_id, dag_name = self._record.run_id, self._record.dag_name
        monotonic, offset, quiet = self._monotonic, self._offset, self._quiet
        told = self._tells_in_order
        # Where nothing else reads or changes the books there is no need of their lock.
        unshared = only_async and self._live
        succeed = settler.succeed if unshared else settler.ended_well
        carrier: Any = asyncio.current_task()
        name, cancelling = None, 0
        if not self._alone:  # with a factory it may be of any kind
            carrier.remove_done_callback(self._carrier_gone)  # it has begun, and will say so itself
            name, cancelling = carrier.get_name(), carrier.cancelling()
        weak_references, references = getweakrefcount(carrier), getrefcount(carrier)
        # Where success need not be told of either, there is nothing to it but the books.
        quick = unshared and self._quiet_success
        copy = self._base.copy
        attempt: Attempt | None = None
        number: int | None = None
        args: Any
        keywords: Any
        upstream: Any = None
        parent: Any
        context: Any
        coroutine: Any
        value: object
        failure: BaseException | None
        instant = 0.0
        goes_on = True
        while goes_on:
            invocation: Invocation | None = None
            try:
                if number is None:
                    self._instant = instant
                    number = self._next(carry=True)
                    if number is None:
                        break
                    instant = monotonic()
                spec, task = specs[number], tasks[number]
                if not told:
                    now = instant + offset
                    ready_at = task.ready_at
                    task.start(now, now if ready_at is None else ready_at)
                    if not quiet:
                        settler.launched(task)
                if plans[number].only_upstream and not inputs.may_change:
                    # As inputs.arguments() has it.
                    upstream = {}
                    for each in parents[number]:
                        parent = tasks[each]
                        upstream[parent.name] = parent.result
                    args, keywords, parent = (), None, None
                else:
                    args, keywords = inputs.arguments(number)
                    if inputs.may_change and task.attempt == 1 and self._keep_inputs(number):
                        instant = monotonic()
                        task.started_at = instant + offset
                if attempt is None:
                    attempt = Attempt(run_id, dag_name, task.name, task.attempt)
                else:  # nobody knows it: it serves once more
                    attempt.task_name = task.name
                    attempt.attempt = task.attempt
                timeout_s = spec.timeout_s
                if timeout_s is None:
                    attempt.deadline = None
                else:
                    instant = monotonic()  # what came before may have taken its time (A1)
                    attempt.deadline = instant + timeout_s
                context = copy()
                context.run(_set_current, attempt)
                value = failure = coroutine = None
                awaited: Any = _NOTHING
                try:
                    function: Any = spec.function
                    if type(function) is FunctionType and function.__code__.co_flags & CO_COROUTINE:
                        # This runs no code of it yet.
                        if keywords is None:
                            coroutine = function(upstream=upstream)
                        else:
                            coroutine = function(*args, **keywords)
                    else:
                        if keywords is None:
                            keywords = {UPSTREAM: upstream}
                        coroutine = context.run(made_coroutine, function, args, keywords)
                    awaited = context.run(coroutine.send, None)
                except StopIteration as end:
                    if coroutine is None:
                        failure = end
                    else:
                        value = end.value
                except BaseException as error:  # noqa: BLE001 - the task's failure (A5)
                    failure = error
                args = keywords = upstream = None  # who is suspended keeps nothing of them alive
                ended_well = awaited is _NOTHING and failure is None
                if not ended_well:
                    invocation = Invocation(
                        number, spec, attempt, NO_ARGUMENTS, context, self._clock
                    )
                    invocation.started = instant
                    invocation.error, failure = failure, None
                    context = None
                    if awaited is not _NOTHING:
                        invocation.go_on(coroutine, awaited)
                        invocation.task, coroutine, awaited = carrier, None, None
                        active.add(invocation)
                        due, attempt = attempt.deadline, None
                        if due is not None and due < deadlines.armed_for:
                            self._guarded(deadlines.expect, due)
                        # If a carrier is on its way already, that will do.
                        if (
                            (ordered or late)
                            and not self._calling
                            and (self._held or self._granted_slots or lane.may_take)
                        ):
                            self._guarded(self.pump)
                        await invocation.rest()
                        instant = monotonic()
                        self._slice_end = instant + _SLICE_S
                        invocation.task = None
                        if invocation.closed:
                            settler.ended_late(invocation)
                            number = None
                            break
                        if invocation.ok and not (invocation.timed_out or self._stopped):
                            ended_well, value, attempt = True, invocation.value, invocation.attempt
                            active.discard(invocation)
                            invocation.closed = True
                            invocation = None
                else:
                    instant = monotonic()
                if ended_well:
                    assert attempt is not None  # noqa: S101 - it has ended
                    context = None
                    if attempt.was_asked_for or getrefcount(attempt) != _UNKNOWN_TO_OTHERS:
                        attempt.ended = True
                        attempt = None
                    if quick and not inputs.may_change and id(type(value)) in UNCHANGING:
                        # As the settler's succeed() has it.
                        now = instant + offset
                        task.succeed(now, value)
                        ledger.succeeded(number, now, not self._stopped)
                    else:
                        succeed(number, instant + offset, value)
                    value = None
                    # What follows in its slot, if that is plain to see.
                    if only_async and (ordered or late) and not line and instant <= self._slice_end:
                        if not late or (ordered and ordered[0] < late[0]):
                            number = ordered.popleft()
                        else:
                            number = heappop(late)
                    else:
                        number = None
                        self._held += 1
                        if self._stopped or not ledger.open:
                            settler.progressed()
                else:
                    assert invocation is not None  # noqa: S101 - see above
                    settler.ended(invocation)
                    number = attempt = None
            except GeneratorExit:
                raise  # the loop was closed under it
            except BaseException as error:  # noqa: BLE001 - by design: see _guarded
                if number is not None and not (invocation and invocation.closed):
                    self._held += 1
                    active.discard(invocation)
                number = None
                settler.broke(error)
            # A cancellation that the code took back is still to come, before Python 3.13; who
            # waits for the asyncio task's end waits for the end of that code. There is no
            # public way to see either.
            goes_on = not (
                self._alone
                or getrefcount(carrier) != references
                or getweakrefcount(carrier) != weak_references
                or carrier._must_cancel  # noqa: SLF001
                or carrier._callbacks is not None  # noqa: SLF001
                or carrier.get_name() != name
                or carrier.cancelling() != cancelling
            )
        if number is not None:
            with ledger.lock:
                ledger.ready.push(number)
            self._held += 1
        self._guarded(self.pump)

    def _keep_inputs(self, number: int) -> bool:
        """Keep what a first attempt may change; return whether that has taken its time."""
        changeable = self._inputs.changeable(number)
        if changeable:
            self._inputs.keep(number, frozen(changeable))
        return bool(changeable)

    def _carrier_gone(self, _: asyncio.Task[None]) -> None:
        """Somebody has cancelled a carrier before it began."""
        self._calling = False
        self._guarded(self.pump)

    def _guarded(self, step: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Take one step; an error in flowrun itself ends the run, it never hangs it (R4)."""
        try:
            step(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - by design: see above
            self._settler.broke(error)


def _nothing() -> None:
    """Wake the loop and do no more."""


def _refused(error: BaseException, executor: str | None) -> BaseException:
    if isinstance(error, FlowrunError | KeyboardInterrupt):
        return error
    clear = ExecutorError(f"{pool_name(executor)} did not take the task: {error_line(error)}")
    clear.__cause__ = error
    return clear
