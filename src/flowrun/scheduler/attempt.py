"""One attempt from the run's side: what every kind of attempt has in common.

What its outcome means is decided in ``run_state.py``, also if it comes after the attempt was given
up.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from flowrun.context import AttemptNotes
from flowrun.errors import NonRetryableError, ResultNotStorableError, RetryAfter, SkipTask
from flowrun.failure import described, encodable, redacted
from flowrun.policy import leaves
from flowrun.scheduler.messages import CodeEnded, Failed, Failure, Started, Succeeded
from flowrun.scheduler.results import read_once_problem

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Callable

    from flowrun.context import Attempt, Progress, RunContext
    from flowrun.graph import Arguments
    from flowrun.registry import TaskSpec
    from flowrun.scheduler.first_error import FirstError
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.messages import StopAnswer
    from flowrun.scheduler.services import Services


NO_ARGUMENTS: Arguments = ((), {})


Report: TypeAlias = "Callable[[RunningAttempt, Succeeded | Failed], object]"


class AttemptServices:
    """What the attempts of one run need.

    Args:
        services: What the engine's runs share.
        context: What the caller of the run gave to all its tasks; never copied.
        run_id: The run.
        inbox: Where other threads leave messages for the run.
        began: Takes the event of code that has begun, on the loop.
        report: Takes an attempt and its outcome, on the loop.
        await_on_loop: Takes an attempt and what its code has returned, to be awaited there.
        chosen: Given the unit of a branch and what it has returned, returns the names and the
            numbers of the children that it chooses.
        errors: Keeps the first exception, for ``raise_on_failure``.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - wired in one place
        self,
        services: Services,
        context: RunContext[Any] | None,
        run_id: str,
        inbox: Inbox,
        began: Callable[[Started], object],
        report: Report,
        await_on_loop: Callable[[RunningAttempt, object], object],
        chosen: Callable[[int, object], tuple[list[str], frozenset[int]]],
        errors: FirstError | None,
    ) -> None:
        self.loop = inbox.loop
        self.context = context
        self.post = inbox.put
        self.post_quietly = inbox.put_quietly
        self.began = began
        self.report = report
        self.await_on_loop = await_on_loop
        self.chosen = chosen
        self.errors = errors
        self.config = services.config
        self.monotonic = services.config.clock.monotonic
        self.encoders = services.encoders
        self.redact = services.redact
        self.abandoned = services.abandoned
        self.log = services.log
        self._run_id = run_id
        self._encode: Any = getattr(services.journal.store, "encode_result", None)
        self._is_small: Callable[[object], bool] | None = None
        if self._encode is not None:
            from flowrun.state import serializers  # noqa: PLC0415 - for stores of bytes

            serializer = getattr(services.journal.store, "serializer", None)
            is_own = type(serializer).__module__.startswith("flowrun.")
            self._is_small = serializers.is_small if is_own else _is_never_small

    def encode(self, value: object, task_name: str) -> object:
        """Return what the store keeps of a value.

        Raises:
            ResultNotStorableError: It cannot keep it.
        """
        if self._encode is None:
            return value
        return self._encode(value, run_id=self._run_id, task_name=task_name)

    def is_encoded_at_once(self, value: object) -> bool:
        """Return whether encoding a value takes no noticeable time."""
        return self._is_small is None or self._is_small(value)


def _is_never_small(value: object) -> bool:
    """Say that a user's own serializer may take its time, whatever the value."""
    del value
    return False


class RunningAttempt(ABC):
    """One attempt that was started. Its run gets its outcome once, also if it was given up.

    Attributes:
        unit: The unit's number.
        spec: The task.
        seen: What the task itself sees of its attempt.
        started_at: When its code began, on the monotonic clock; ``None`` before.
        ended_at: When its code has returned.
        has_ended: Whether its code has ended.
        is_overdue: Whether its time was up once, while its result was being encoded.
        task: What runs it on the loop, if anything does.
        crash: An error inside flowrun that has ended it.
    """

    __slots__ = (
        "arguments",
        "context",
        "crash",
        "ended_at",
        "has_ended",
        "is_overdue",
        "seen",
        "services",
        "spec",
        "started_at",
        "task",
        "unit",
    )

    def __init__(  # noqa: PLR0913 - made in one place, once per attempt
        self,
        unit: int,
        spec: TaskSpec,
        seen: Attempt,
        arguments: Arguments,
        context: contextvars.Context,
        services: AttemptServices,
    ) -> None:
        self.unit = unit
        self.spec = spec
        self.seen = seen
        self.arguments = arguments
        self.context = context
        self.services = services
        self.started_at: float | None = None
        self.ended_at = 0.0
        self.has_ended = self.is_overdue = False
        self.task: asyncio.Task[None] | None = None
        self.crash: BaseException | None = None

    @property
    def waits_in_pool(self) -> bool:
        """Whether a foreign pool has it and has not begun it, as far as that says."""
        return False

    @property
    def can_go_on(self) -> bool:
        """Whether code that was given up can ever run again."""
        return not self.has_ended

    @abstractmethod
    def stop(self, cause: str) -> StopAnswer:
        """Tell the code to stop, and return what it can do about it."""
        ...

    @abstractmethod
    def give_up(self) -> bool:
        """Go on without it; return ``False`` if its code never began, and never will."""
        ...

    # -- what comes of it ----------------------------------------------------------------------

    def call_arguments(self) -> Arguments:
        """Return what the code is called with, copied if the task asks for that (S4)."""
        args, kwargs = self.arguments
        if self.spec.copy_inputs:
            context = self.services.context
            return copy.deepcopy((args, dict(kwargs)), {id(context): context})
        return args, kwargs

    def start_clock(self) -> Started:
        """The code begins now: so does its time (A1); return the event that says so."""
        self.started_at = started_at = self.services.monotonic()
        timeout_s = self.spec.timeout_s
        if timeout_s is not None:
            self.seen.deadline = started_at + timeout_s
        return Started(self.unit, self.seen.attempt, started_at)

    def encode_later(self, value: object) -> bool:
        """Return whether a result takes time to encode; if so, the slot is free meanwhile."""
        if self.services.is_encoded_at_once(value) or not self.spec.retain_result:
            return False
        self.services.post(CodeEnded(self.unit, self.seen.attempt))
        return True

    def outcome(self, value: object) -> Succeeded | Failed:
        """Return the event of code that has returned a value, which may take time to encode."""
        try:
            problem = read_once_problem(value)
            if problem is not None:
                return self.failed(NonRetryableError(problem))
            stored, follows = value, None
            if self.spec.is_branch:
                stored, follows = self.services.chosen(self.unit, value)
                value = stored
            if self.spec.retain_result:
                stored = self.services.encode(value, self.spec.name)
        except (ResultNotStorableError, NonRetryableError) as error:
            return self.failed(error)
        except BaseException as error:  # noqa: BLE001 - flowrun's own (R4)
            return self.crashed(error)
        number = self.seen.attempt
        times = (self.started_at, self.ended_at)
        return Succeeded(self.unit, number, *times, value, stored, follows, self.notes())

    def failed(self, error: BaseException, text: str | None = None) -> Failed:
        """Return the event of code that has raised an error."""
        try:
            failure = self.failure(error, text)
        except BaseException as wrong:  # noqa: BLE001 - flowrun's own (R4)
            return self.crashed(wrong)
        return Failed(self.unit, self.seen.attempt, self.started_at, failure, self.notes())

    def notes(self) -> AttemptNotes | None:
        """Return what is kept of the inside of the attempt so far, from any thread."""
        seen = self.seen
        if seen.logs is None:
            said = seen.last_progress
            return None if said is None else AttemptNotes(shown(said, self.services.redact))
        return seen.logs.notes(shown(seen.last_progress, self.services.redact))

    def failure(self, error: BaseException, text: str | None = None) -> Failure:
        """Return what is known of an error, and what the retry policy says of it."""
        services, policy, attempt = self.services, self.spec.retry, self.seen.attempt
        if services.errors is not None:
            services.errors.note(self.seen.label, attempt, error)
        whole, line = described(error, services.redact, text)
        notes: list[str] = []
        retryable = policy.allows(error, attempt, notes.append)
        delay_s = 0.0
        if retryable:
            delay_s = policy.delay_before(attempt, services.config.chance(), error, notes.append)
        if isinstance(error, SkipTask):
            whole = line.removeprefix("SkipTask: ")
        interrupts = any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves(error))
        omits = isinstance(error, SkipTask)
        pauses: tuple[str, ...] = ()
        if isinstance(error, RetryAfter):
            delay_s, pauses = error.delay_s, error.pause
        note = " ".join(notes)
        return Failure(whole, line, retryable, delay_s, note, interrupts, omits, pauses)

    def crashed(self, error: BaseException) -> Failed:
        """Flowrun itself has failed: end this attempt, and the run (R4)."""
        self.crash = error
        name = type(error).__qualname__
        return Failed(self.unit, self.seen.attempt, self.started_at, Failure(name, name))

    def deliver(self, event: Succeeded | Failed) -> None:
        """Send the outcome to the run's loop, from any thread."""
        self.seen.ended = True
        if not self.services.post(partial(self.services.report, self, event)):
            self.ended_late()  # the loop is closed

    def ended_late(self) -> None:
        """The code has ended after the attempt was given up; called from any thread."""
        self.services.abandoned.discard(self)
        seen = self.seen
        self.services.log.warning(
            "task %r attempt %d ended after it was abandoned; its result is not recorded",
            seen.task_name,
            seen.attempt,
            extra={"run_id": seen.run_id, "dag": seen.dag_name, "task": seen.task_name},
        )


def shown(said: Progress | None, redact: Callable[[str], str] | None) -> Progress | None:
    """Return what is shown and kept of an attempt's progress."""
    if said is None or not said.unit:
        return said
    return said._replace(unit=encodable(redacted(said.unit, redact)))
