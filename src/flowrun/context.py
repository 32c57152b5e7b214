"""What a task can read, the run's context and its own attempt, and what it says of the latter."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast

from flowrun.errors import AttemptCancelledError, NoCurrentAttemptError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flowrun.executors.attempt_logs import AttemptLogs

T = TypeVar("T")


class RunContext(Generic[T]):
    """The dependencies of one run (settings, clients), for every task that wants them.

    A task receives it in a parameter annotated with ``RunContext[...]``. Attributes of the
    wrapped object, or the keys of a wrapped mapping, are attributes of the context.

    Args:
        deps: The object for the tasks, such as a frozen dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     source: str
        >>> context = RunContext(Settings(source="orders.csv"))
        >>> context.source
        'orders.csv'
        >>> context
        RunContext[Settings]
    """

    __slots__ = ("deps",)

    deps: T
    """The wrapped object itself."""

    def __init__(self, deps: T) -> None:
        self.deps = deps

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - stands for whatever T has
        """Read an attribute of the wrapped object, or a key of the wrapped mapping."""
        # Copying and unpickling look attributes up before ``deps`` exists.
        if name == "deps" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        deps: object = self.deps
        if not isinstance(deps, Mapping):
            return getattr(deps, name)
        keys = cast("Mapping[object, object]", deps)
        if name in keys:
            return keys[name]
        try:
            return getattr(keys, name)
        except AttributeError:
            known = listed(sorted(key for key in keys if isinstance(key, str)))
        # Keys only: values may be secret (promise V2).
        msg = f"the run's context has no key {name!r}; its keys: {known}"
        raise AttributeError(msg)

    def __repr__(self) -> str:
        """Name the type only: what it holds may be secret (promise V2)."""
        return f"RunContext[{type(self.deps).__name__}]"

    def __eq__(self, other: object) -> bool:
        """Compare by what is wrapped."""
        if not isinstance(other, RunContext):
            return NotImplemented
        return bool(self.deps == cast("RunContext[object]", other).deps)

    def __hash__(self) -> int:
        """Hash by what is wrapped."""
        return hash(self.deps)


class Progress(NamedTuple):
    """How far an attempt has come.

    Attributes:
        done: How much is done.
        total: How much there is to do; ``None`` if that is not known.
        unit: What is counted, such as ``"rows"``.
    """

    done: float
    total: float | None = None
    unit: str = ""


class LogLine(NamedTuple):
    """What one call of the standard logging has emitted.

    Attributes:
        at: When, in epoch seconds.
        level: The name of its level.
        logger: The name of its logger.
        text: The message, and the traceback if it has one.
    """

    at: float
    level: str
    logger: str
    text: str


class AttemptNotes(NamedTuple):
    """What is kept of the inside of an attempt.

    Attributes:
        progress: What it has said last of its progress.
        logs: What was logged in it, the oldest first.
        logs_cut: How many older lines were left out.
    """

    progress: Progress | None = None
    logs: tuple[LogLine, ...] = ()
    logs_cut: int = 0

    def without_logs(self) -> AttemptNotes:
        """Return the notes with all their log lines left out."""
        return self._replace(logs=(), logs_cut=self.logs_cut + len(self.logs))


class Attempt:
    """One call of one task, as the task itself sees it.

    Attributes:
        run_id: The run it belongs to.
        dag_name: The run's DAG.
        task_name: The task.
        attempt: 1 for the first call, 2 for its first retry.
        deadline: When it times out, on the run's monotonic clock; ``None`` if it has no timeout,
            or its code has not started.
        ended: Whether its outcome is settled; abandoned code may still see the attempt.
        first_run_id: The run that its chain of resumes began with; ``None`` if that is this run.
        upstream: Names of the dependencies, and what has become of them; ``None``: all succeeded.
        item: Of an item of a mapped task its number; ``None`` for a task.
        item_key: What the task's ``map_key`` returned for the item.
        was_asked_for: Whether :func:`current_attempt` has returned it.
        last_progress: What :meth:`progress` was given last.
        logs: Where its log lines are collected, if the engine keeps them.
        on_progress: Notifies the run of new progress, for hooks and handles.
        is_progress_told: Whether the run will look at ``last_progress`` after this moment.
    """

    # Defaults of the class: most attempts are never cancelled.
    _cancel_cause: str | None = None
    _listeners: ClassVar[dict[Callable[[str], object], None]] = {}
    _monotonic: Callable[[], float] = staticmethod(time.monotonic)
    deadline: float | None = None
    ended = False
    first_run_id: str | None = None
    upstream: tuple[Sequence[str], Sequence[str] | None] = ((), None)
    item: int | None = None
    item_key: str | None = None
    was_asked_for = False
    last_progress: Progress | None = None
    logs: AttemptLogs | None = None
    on_progress: Callable[[Attempt], object] | None = None
    is_progress_told = False

    def __init__(  # noqa: PLR0913 - plain facts of one attempt
        self,
        run_id: str,
        dag_name: str,
        task_name: str,
        attempt: int,
        deadline: float | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self.run_id = run_id
        self.dag_name = dag_name
        self.task_name = task_name
        self.attempt = attempt
        if deadline is not None:
            self.deadline = deadline
        if monotonic is not None:
            self._monotonic = monotonic

    @property
    def label(self) -> str:
        """The task's name, with the number of the item if it is one of a mapped task."""
        return self.task_name if self.item is None else f"{self.task_name}[{self.item}]"

    @property
    def cancelled(self) -> bool:
        """Whether it should stop, because of its timeout or of its run's end."""
        return self._cancel_cause is not None

    @property
    def time_left_s(self) -> float | None:
        """Seconds until its timeout, never below 0; ``None`` when it has no timeout."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self._monotonic())

    @property
    def upstream_status(self) -> dict[str, str]:
        """What has become of each dependency, by name.

        ``"SUCCESS"``, and with another trigger rule than ``all_success`` also ``"FAILED"``,
        ``"SKIPPED"`` or ``"OMITTED"``.
        """
        names, statuses = self.upstream
        if statuses is None:
            return dict.fromkeys(names, "SUCCESS")
        return dict(zip(names, statuses, strict=True))

    @property
    def idempotency_key(self) -> str:
        """A key for systems that refuse a repeated write: all retries and resumes have the same.

        It is made of the first run of the chain of resumes, and the task; of an item also of its
        ``map_key``, or else of its number.
        """
        name = self.label if self.item_key is None else f"{self.task_name}[{self.item_key}]"
        return f"{self.first_run_id or self.run_id}/{name}"

    @property
    def attempt_key(self) -> str:
        """A key that no other attempt has."""
        return f"{self.run_id}/{self.label}/{self.attempt}"

    def raise_if_cancelled(self) -> None:
        """Raise an ``AttemptCancelledError`` with the cause if the attempt should stop."""
        if self._cancel_cause is not None:
            msg = f"task {self.label!r}, attempt {self.attempt}: {self._cancel_cause}"
            raise AttemptCancelledError(msg)

    def progress(self, done: float, total: float | None = None, unit: str = "") -> None:
        """Say how far the attempt has come; hooks, reports and handles show the last value.

        It may be called as often as you like, from every thread that carries the context.

        Args:
            done: How much is done, 0 or more.
            total: How much there is to do, if that is known.
            unit: What is counted, such as ``"rows"``.

        Raises:
            TypeError: A value is of the wrong type.
            ValueError: A number is negative or not finite.
        """
        if not isinstance(unit, str):
            msg = f"the unit of progress() must be a str, such as 'rows', not {unit!r:.80}"
            raise TypeError(msg)
        total = None if total is None else _checked("total", total)
        self.take_progress(Progress(_checked("done", done), total, unit))

    def take_progress(self, progress: Progress) -> None:
        """Set what the code has said of its progress; only flowrun calls this."""
        # One immutable value, set by one statement: other threads read it without a lock.
        self.last_progress = progress
        if self.on_progress is not None and not self.is_progress_told:
            self.is_progress_told = True
            self.on_progress(self)

    def tell(self, cause: str) -> None:
        """Cancel the attempt; only flowrun calls this."""
        self._cancel_cause = cause
        for listener in list(self._listeners):
            listener(cause)

    def listen(self, listener: Callable[[str], object]) -> None:
        """Call ``listener`` with the cause when the attempt is cancelled, or at once if it was.

        The cancelling thread calls it, perhaps twice. Only flowrun calls this method.
        """
        # A lock would stay taken in a child that is forked meanwhile; each of these is atomic.
        self.__dict__.setdefault("_listeners", {})[listener] = None
        if self._cancel_cause is not None:
            listener(self._cancel_cause)

    def listen_no_more(self, listener: Callable[[str], object]) -> None:
        """Undo :meth:`listen`."""
        self._listeners.pop(listener, None)

    def __repr__(self) -> str:
        """Show which attempt it is."""
        return f"<Attempt {self.attempt} of {self.label!r} in run {self.run_id!r}>"


def _checked(name: str, number: float) -> float:
    try:
        is_right = isfinite(number) and number >= 0
    except (TypeError, OverflowError):
        msg = f"{name} of progress() must be a number, not {number!r:.80}"
        raise TypeError(msg) from None
    if not is_right:
        msg = f"{name} of progress() must be finite and 0 or more, not {number!r}"
        raise ValueError(msg)
    return number if type(number) is int else float(number)  # it may be a number of numpy's


CURRENT: contextvars.ContextVar[Attempt] = contextvars.ContextVar("flowrun_current_attempt")


def current_attempt() -> Attempt:
    """Return the attempt that is running the calling code, in async and sync tasks alike.

    A sync task cannot be stopped from outside, but it can check ``cancelled`` and stop itself.

    Raises:
        NoCurrentAttemptError: The caller is not inside a task.

    Example:
        >>> current_attempt()
        Traceback (most recent call last):
        ...
        flowrun.errors.NoCurrentAttemptError: current_attempt() works only inside a task that \
flowrun is running; a thread that the task started itself needs contextvars.copy_context().
    """
    attempt = CURRENT.get(None)
    if attempt is None:
        raise NoCurrentAttemptError
    attempt.was_asked_for = True
    return attempt
