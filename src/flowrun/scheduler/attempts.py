"""The attempts of one run: looked up in the cache before, started, told to stop, given up."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from flowrun.context import Attempt
from flowrun.errors import (
    ExecutorError,
    FlowrunError,
    TaskTimeoutError,
)
from flowrun.executors import WorkerThreads
from flowrun.executors.attempt_logs import AttemptLogs
from flowrun.failure import error_line
from flowrun.graph import MISSING, NO_PARAMS
from flowrun.registry import UPSTREAM
from flowrun.scheduler.async_attempt import AsyncAttempt
from flowrun.scheduler.attempt import NO_ARGUMENTS, AttemptServices
from flowrun.scheduler.branches import chosen
from flowrun.scheduler.live_progress import LiveProgress
from flowrun.scheduler.messages import Failed, Failure, LookUp, Stop, StopAnswer, StopAnswered
from flowrun.scheduler.parameters import task_params
from flowrun.scheduler.results import close_unawaited
from flowrun.scheduler.sync_attempt import PoolAttempt, ThreadAttempt, pool_name
from flowrun.scheduler.units import DROPPED

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Sequence

    from flowrun.context import RunContext
    from flowrun.graph import Arguments, Graph
    from flowrun.scheduler.attempt import Report, RunningAttempt
    from flowrun.scheduler.first_error import FirstError
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.look_ups import LookUps
    from flowrun.scheduler.messages import Event, GiveUp, LookedUp, Start, Started
    from flowrun.scheduler.notifier import Notifier
    from flowrun.scheduler.run_state import RunState
    from flowrun.scheduler.services import Services
    from flowrun.scheduler.units import Unit
    from flowrun.state import RunRecord, TaskRecord

_NEVER_BEGUN = Failure("", "")


class Attempts:
    """Start the attempts of one run, and tell them to stop.

    Args:
        services: What the engine's runs share.
        graph: The graph.
        record: The run.
        context: What the caller gave for tasks that ask for a ``RunContext``.
        variables: The context variables of the run's caller.
        state: The run's state, which knows what has become of each unit.
        inbox: Where other threads leave messages for the run.
        began: Takes the event of code that has begun, on the loop.
        report: Takes an attempt and its outcome, on the loop.
        errors: Keeps the first exception, for ``raise_on_failure``.
        notifier: Takes the progress of attempts, for hooks and handles.

    Attributes:
        running: Attempts that the run counts on, by unit.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - wired in one place
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        variables: contextvars.Context,
        state: RunState,
        inbox: Inbox,
        began: Callable[[Started], object],
        report: Report,
        errors: FirstError | None,
        notifier: Notifier,
    ) -> None:
        self.running: dict[int, RunningAttempt] = {}
        self._graph = graph
        self._record = record
        self._context = context
        self._variables = variables
        self._state = state
        self._report = report
        self._live: LiveProgress | None = None
        if notifier.reports_progress:
            self._live = LiveProgress(services, inbox, notifier.progressed)
        self._keeps_logs = services.config.keep_logs
        self._redact = services.redact
        self._pools = services.pools
        self._look_ups: LookUps | None = None
        self._about_look_ups = (services, graph, record, context, variables, state, inbox)
        self._monotonic = services.config.clock.monotonic
        self._services = AttemptServices(
            services,
            context,
            record.run_id,
            inbox,
            began,
            report,
            self._await_on_loop,
            partial(chosen, graph),
            errors,
        )

    def carry_out(self, instruction: LookUp | Stop | GiveUp) -> Sequence[Event]:
        """Carry out an instruction; return what has come of it so far."""
        if isinstance(instruction, LookUp):
            return self._look_up(instruction)
        if isinstance(instruction, Stop):
            return self._stop(instruction)
        return self._give_up(instruction)

    def _look_up(self, look_up: LookUp) -> list[LookedUp]:
        if self._look_ups is None:
            from flowrun.scheduler.look_ups import LookUps  # noqa: PLC0415 - for caches only

            self._look_ups = LookUps(*self._about_look_ups)
        return self._look_ups.begin(look_up)

    def end_look_ups(self) -> None:
        """Wait for no answer of the cache any more: the run has ended."""
        if self._look_ups is not None:
            self._look_ups.abandon()

    def start(self, start: Start) -> None:
        """Start an attempt."""
        number, unit = start.unit, self._state.table.units[start.unit]
        task, spec = unit.task, self._graph.specs[unit.task]
        run, services = self._record, self._services
        seen = Attempt(
            run.run_id, run.dag_name, spec.name, start.attempt, monotonic=self._monotonic
        )
        if run.first_run_id is not None:
            seen.first_run_id = run.first_run_id
        names = self._graph.dependency_names[task]
        if names:
            statuses = self._upstream_statuses(task) if task in self._graph.lenient else None
            seen.upstream = (names, statuses)
        if unit.owner is not None:
            seen.item, key = unit.record.item, unit.record.key
            if spec.mapping is not None and spec.mapping.key is not None:
                seen.item_key = str(key).partition(":")[2]
        if self._live is not None:
            seen.on_progress = self._live.said
        if self._keeps_logs:
            seen.logs = AttemptLogs(self._redact)
        arguments, variables = self._arguments(unit), self._variables.copy()
        if self._graph.is_async[task]:
            on_loop = AsyncAttempt(number, spec, seen, arguments, variables, services)
            self.running[number] = on_loop
            on_loop.start()
            return
        pool, kind = self._pools[spec.executor]
        is_own = spec.executor is None and isinstance(pool, WorkerThreads)
        made = ThreadAttempt if is_own else PoolAttempt
        attempt = made(number, spec, seen, arguments, variables, services)
        self.running[number] = attempt
        try:
            attempt.start(pool, kind)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - an executor may refuse in any way
            attempt.started_at = None
            self._report(attempt, attempt.failed(_refusal(error, spec.executor)))

    def _upstream_statuses(self, number: int) -> list[str]:
        units = self._state.table.units
        return [str(units[parent].record.status) for parent in self._graph.parents[number]]

    def _arguments(self, unit: Unit) -> Arguments:
        """Return what a task is called with; its parents have values."""
        graph, number = self._graph, unit.task
        plan = graph.plans[number]
        if not plan.gives_any:
            return NO_ARGUMENTS
        names = graph.dependency_names[number]
        params = NO_PARAMS
        if graph.with_params:
            params = task_params(graph, number, self._record.params)
        values = [self._state.value(parent) for parent in graph.parents[number]]
        if unit.owner is not None:
            self._put_elements(values, unit)
        if number in graph.lenient:
            values = [MISSING if value is DROPPED else value for value in values]
            return plan.arguments(names, values, self._context, params)
        if plan.only_upstream:
            return (), {UPSTREAM: dict(zip(names, values, strict=True))}
        return plan.arguments(names, values, self._context, params)

    def _put_elements(self, values: list[object], unit: Unit) -> None:
        """Put the element of an item in the place of what its task is mapped over."""
        sources, parents = self._graph.map_sources[unit.task], self._graph.parents[unit.task]
        elements: Sequence[object] = (unit.element,)
        if len(sources) > 1:
            elements = cast("tuple[object, ...]", unit.element)
        for source, element in zip(sources, elements, strict=True):
            values[parents.index(source)] = element

    def _await_on_loop(self, old: RunningAttempt, value: object) -> None:
        """Await, on the loop, what a sync callable has returned (I3)."""
        if self.running.get(old.unit) is not old or old.seen.cancelled:
            close_unawaited(value)  # it was told to stop meanwhile
            self._report(old, old.failed(asyncio.CancelledError()))
            return
        attempt = AsyncAttempt(
            old.unit, old.spec, old.seen, NO_ARGUMENTS, old.context.copy(), old.services
        )
        attempt.started_at = old.started_at
        self.running[old.unit] = attempt
        attempt.start(value)

    def remove(self, attempt: RunningAttempt) -> bool:
        """Forget an attempt that has ended; return ``False`` if it was given up before."""
        if self.running.get(attempt.unit) is not attempt:
            return False
        del self.running[attempt.unit]
        return True

    def _stop(self, stop: Stop) -> list[StopAnswered]:
        """Tell attempts to stop; return their answers."""
        attempts = [self.running[unit] for unit in stop.units if unit in self.running]
        # First what waits in a pool: it would begin as soon as something else there has ended.
        attempts.sort(key=lambda each: (not each.waits_in_pool, each.unit))
        answers: list[StopAnswered] = []
        for attempt in attempts:
            number, spec = attempt.seen.attempt, attempt.spec
            answer = attempt.stop(stop.cause or f"it timed out after {spec.timeout_s:g} s")
            timeout = None
            if not stop.cause and (answer is not StopAnswer.ENDED or attempt.is_overdue):
                timeout = self._timeout_failure(attempt)
            attempt.is_overdue = answer is StopAnswer.ENDED
            if answer is StopAnswer.WITHDRAWN:
                del self.running[attempt.unit]
            notes = attempt.notes()
            answers.append(StopAnswered(attempt.unit, number, answer, timeout, notes))
        return answers

    def _timeout_failure(self, attempt: RunningAttempt) -> Failure:
        spec = attempt.spec
        error = TaskTimeoutError(
            f"task {attempt.seen.label!r} of DAG {self._record.dag_name!r} timed out: attempt"
            f" {attempt.seen.attempt} took longer than timeout_s={spec.timeout_s:g}. Give the task"
            " more time with timeout_s=..., or no limit with timeout_s=None."
        )
        return attempt.failure(error, f"TaskTimeoutError: {error}")

    def _give_up(self, instruction: GiveUp) -> list[Failed]:
        """Go on without an attempt; return its outcome if no other one will ever come."""
        attempt = self.running.pop(instruction.unit, None)
        if attempt is None or attempt.give_up():
            return []
        return [Failed(attempt.unit, attempt.seen.attempt, None, _NEVER_BEGUN)]

    def noted(self, units: Sequence[Unit]) -> list[TaskRecord]:
        """Return the records of units that run, with what is known inside; from any thread."""
        attempts = self.running.copy()
        records: list[TaskRecord] = []
        for unit in units:
            record, attempt = unit.record, attempts.get(unit.number)
            notes = None if attempt is None else attempt.notes()
            records.append(record if notes is None else record._replace(notes=notes))
        return records

    def leave(self, cause: str) -> list[asyncio.Task[None]]:
        """Stop and give up all attempts; return what still runs on the loop."""
        self.end_look_ups()
        attempts = list(self.running.values())
        self.running.clear()
        for attempt in attempts:
            with contextlib.suppress(BaseException):
                if attempt.stop(cause) is StopAnswer.WITHDRAWN:
                    continue
            with contextlib.suppress(BaseException):
                attempt.give_up()
        return [attempt.task for attempt in attempts if attempt.task is not None]


def _refusal(error: BaseException, executor: str | None) -> FlowrunError:
    """Return the error of an executor that did not take a task."""
    if isinstance(error, FlowrunError):
        return error
    clear = ExecutorError(f"{pool_name(executor)} did not take the task: {error_line(error)}")
    clear.__cause__ = error
    return clear
