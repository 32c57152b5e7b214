"""One attempt from the run's side: what every kind of attempt has in common.

An attempt ends exactly once for its run: with the event of its outcome, or because it was
given up. What an outcome means is decided in ``run_state.py``.
"""

from __future__ import annotations

import copy
import csv
import functools
import itertools
import types
from abc import ABC, abstractmethod
from asyncio import isfuture
from collections.abc import Coroutine
from dataclasses import dataclass
from inspect import CO_ITERABLE_COROUTINE
from typing import TYPE_CHECKING, Any, cast

from flowrun.errors import FlowrunError, NonRetryableError, ResultNotStorableError
from flowrun.failure import described
from flowrun.policy import leaves
from flowrun.scheduler.messages import EndedLate, Failed, Failure, StopAnswer, Succeeded

if TYPE_CHECKING:
    import asyncio
    import contextvars
    import logging
    from collections.abc import Callable
    from concurrent.futures import Executor

    from flowrun.config import SchedulerConfig
    from flowrun.context import Attempt, RunContext
    from flowrun.graph import Arguments
    from flowrun.registry import TaskSpec


NO_ARGUMENTS: Arguments = ((), {})


@dataclass(slots=True)
class AttemptServices:
    """What the attempts of one run need.

    Attributes:
        loop: The run's event loop.
        config: Its clock and its chance.
        context: What the caller of the run gave to all its tasks; never copied.
        post: Leaves a message in the run's inbox, from any thread.
        post_quietly: The same for a message that need not wake the loop.
        report: Takes the event of an outcome, on the loop.
        encode: Makes of a value what the store keeps; ``None`` if that is the value itself.
        is_small: Returns whether encoding a value takes no noticeable time; ``None`` if nothing is
            encoded.
        encoders: Where large results of async tasks are encoded.
        redact: The user's function that hides secrets in texts.
        abandoned: Attempts of the engine that were given up and whose code still runs.
        log: Where late ends are reported.
        broke: Ends the run with an error inside flowrun; called on the loop.
    """

    loop: asyncio.AbstractEventLoop
    config: SchedulerConfig
    context: RunContext[Any] | None
    post: Callable[[object], object]
    post_quietly: Callable[[object], object]
    report: Callable[[Succeeded | Failed], object]
    encode: Callable[[object, str], object] | None
    is_small: Callable[[object], bool] | None
    encoders: Executor
    redact: Callable[[str], str] | None
    abandoned: set[RunningAttempt]
    log: logging.Logger
    broke: Callable[[BaseException], object]


class RunningAttempt(ABC):
    """One attempt that was started.

    Attributes:
        unit: The unit's number.
        spec: The task.
        seen: What the task itself sees of its attempt.
        started_at: When its code began, on the monotonic clock; ``None`` before.
        has_ended: Whether its code has ended.
    """

    __slots__ = (
        "arguments",
        "context",
        "has_ended",
        "seen",
        "services",
        "spec",
        "started_at",
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
        self.has_ended = False

    @property
    def waits_in_pool(self) -> bool:
        """Whether a foreign pool has it and has not begun it, as far as that says."""
        return False

    @property
    def can_go_on(self) -> bool:
        """Whether code that was given up can ever run again."""
        return True

    def is_lost(self) -> bool:
        """Return whether it has ended without its outcome; then none will come any more."""
        return False

    @abstractmethod
    def stop(self, cause: str) -> StopAnswer:
        """Tell the code to stop, and return what it can do about it."""
        ...

    @abstractmethod
    def give_up(self) -> bool:
        """Go on without it; return ``False`` if its outcome came first."""
        ...

    # -- what comes of it ----------------------------------------------------------------------

    def call_arguments(self) -> Arguments:
        """Return what the code is called with, copied if the task asks for that (S4)."""
        args, kwargs = self.arguments
        if self.spec.copy_inputs:
            context = self.services.context
            return copy.deepcopy((args, dict(kwargs)), {id(context): context})
        return args, kwargs

    def start_clock(self) -> None:
        """The code begins now: so does its time (A1)."""
        self.started_at = started_at = self.services.config.clock.monotonic()
        timeout_s = self.spec.timeout_s
        if timeout_s is not None:
            self.seen.deadline = started_at + timeout_s

    def outcome(self, value: object, ended_at: float) -> Succeeded | Failed:
        """Return the event of code that has returned a value, which may take time to encode."""
        problem = read_once_problem(value)
        if problem is not None:
            return self.failed(NonRetryableError(problem), ended_at)
        stored = value
        if self.services.encode is not None and self.spec.retain_result:
            try:
                stored = self.services.encode(value, self.spec.name)
            except ResultNotStorableError as error:
                return self.failed(error, ended_at)
        return Succeeded(self.unit, self.seen.attempt, self.started_at, ended_at, value, stored)

    def failed(self, error: BaseException, ended_at: float, text: str | None = None) -> Failed:
        """Return the event of code that has raised an error."""
        failure = self.failure(error, text)
        return Failed(self.unit, self.seen.attempt, self.started_at, ended_at, failure)

    def failure(self, error: BaseException, text: str | None = None) -> Failure:
        """Return what is known of an error, and what the retry policy says of it."""
        services, policy, attempt = self.services, self.spec.retry, self.seen.attempt
        whole, line = described(error, services.redact, text)
        notes: list[str] = []
        retryable = policy.allows(error, attempt, notes.append)
        delay_s = policy.delay_before(attempt, services.config.chance()) if retryable else 0.0
        interrupts = any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves(error))
        return Failure(whole, line, retryable, delay_s, " ".join(notes), interrupts)

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
        self.services.post(EndedLate(self.unit, seen.attempt))

    def crashed(self, error: BaseException) -> None:
        """Flowrun itself has failed in a thread: end the run, and this attempt of it (R4)."""
        services = self.services
        services.post(functools.partial(services.broke, error))
        failure = Failure(f"{type(error).__qualname__}", f"{type(error).__qualname__}")
        services.post(Failed(self.unit, self.seen.attempt, None, self.started_at or 0.0, failure))


# -- what may be a result ---------------------------------------------------------------------

_EMPTY: dict[Any, Any] = {}
_REVERSED: tuple[Any, ...] = ([], _EMPTY, _EMPTY.values(), _EMPTY.items())
_READ_ONCE: tuple[Any, ...] = (
    types.GeneratorType,
    types.AsyncGeneratorType,
    map,
    zip,
    filter,
    enumerate,
    reversed,
    *(type(reversed(each)) for each in _REVERSED),
    type(csv.reader(())),
    *(kind for kind in vars(itertools).values() if hasattr(kind, "__next__")),
)


def read_once_problem(value: object) -> str | None:
    """Return why a value cannot be a result because it can be read only once (I3)."""
    kind = type(value)
    if kind not in _READ_ONCE_IDS:
        return None
    return (
        f"the task returned a {kind.__name__}, which can be read only once: a second consumer, a"
        " retry or a resume would get nothing. Return a list instead: list(...)"
    )


class _Identities:
    """Membership by identity: the type of a user's value may have an ``__eq__`` of its own."""

    def __init__(self, kinds: tuple[Any, ...]) -> None:
        self._ids = frozenset(map(id, kinds))

    def __contains__(self, kind: type) -> bool:
        return id(kind) in self._ids


_READ_ONCE_IDS = _Identities(_READ_ONCE)
_PLAIN = _Identities((int, str, float, bool, bytes, list, dict, tuple, set, type(None)))


def is_to_be_awaited(value: object) -> bool:
    """Return whether a returned value is awaited: a coroutine, or one of asyncio's futures (I3)."""
    kind = type(value)
    if kind in _PLAIN:
        return False
    if kind is types.CoroutineType:
        return True
    if kind is types.GeneratorType:  # perhaps one that types.coroutine has marked
        code = cast("types.GeneratorType[Any, Any, Any]", value).gi_code
        return bool(code.co_flags & CO_ITERABLE_COROUTINE)
    try:
        return issubclass(kind, Coroutine) or bool(isfuture(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a class of the user's may raise anything when asked
        return False


def close_unawaited(value: object) -> None:
    """Close a coroutine that nobody will await, so that Python does not warn of it."""
    if type(value) is types.CoroutineType:
        cast("Coroutine[Any, Any, object]", value).close()


def internal_error(error: BaseException, run_id: str, dag_name: str, line: str) -> FlowrunError:
    """Return an error that says that flowrun itself has failed."""
    clear = FlowrunError(
        f"run {run_id!r} of DAG {dag_name!r} ended because of an error inside flowrun: {line}"
    )
    clear.__cause__ = error
    return clear
