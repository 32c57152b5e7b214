"""One call of a task in another process; a reply never breaks the pool that transports it."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun.context import CURRENT, Attempt, AttemptNotes
from flowrun.errors import NotPicklableError, RemoteTaskError
from flowrun.executors.attempt_logs import AttemptLogs, kept_logs
from flowrun.executors.parent_watch import end_with_parent
from flowrun.failure import encodable, error_line, error_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Facts(NamedTuple):
    """The ids of an attempt, its time limit, what has become of its dependencies, and logging."""

    run_id: str
    dag_name: str
    task_name: str
    attempt: int
    timeout_s: float | None
    upstream: tuple[Sequence[str], Sequence[str] | None] = ((), None)
    first_run_id: str | None = None
    item: int | None = None
    item_key: str | None = None
    keeps_logs: bool = False


class Reply(NamedTuple):
    """How a call ended on the other side.

    Attributes:
        value: What the task returned.
        error: What it raised; a ``RemoteTaskError`` if that cannot be pickled.
        text: The error's text with its traceback, ``None`` after a success.
        duration_s: How long the code ran there.
        notes: What is kept of its inside, not redacted.
    """

    value: object
    error: BaseException | None
    text: str | None
    duration_s: float
    notes: AttemptNotes | None = None


class RemoteCall:
    """A call for an executor whose workers are other processes.

    The executor pickles it in its own way: a cluster's client may send functions by value.
    """

    __slots__ = ("args", "facts", "function", "kwargs")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        facts: Facts,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.facts = facts

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the constructor's arguments."""
        return RemoteCall, (self.function, self.args, dict(self.kwargs), self.facts)

    def __call__(self, on_progress: Callable[[Attempt], object] | None = None) -> Reply:
        """Run the task here and return how it ended; never raise the task's error.

        Args:
            on_progress: Called when it has said how far it has come.
        """
        started = time.monotonic()
        facts = self.facts
        deadline = None if facts.timeout_s is None else started + facts.timeout_s
        attempt = Attempt(*facts[:4], deadline)
        attempt.upstream, attempt.first_run_id = facts.upstream, facts.first_run_id
        attempt.item, attempt.item_key = facts.item, facts.item_key
        attempt.on_progress = on_progress
        logs = attempt.logs = AttemptLogs(is_whole=True) if facts.keeps_logs else None
        token = CURRENT.set(attempt)
        value = failure = text = None
        try:
            with kept_logs(wanted=facts.keeps_logs):
                value = self.function(*self.args, **self.kwargs)
        except BaseException as error:  # noqa: BLE001 - everything is the task's own failure (A5)
            text = error_text(error)  # before the error is stripped of its traceback
            failure = _portable(error)
        finally:
            CURRENT.reset(token)
        duration_s, progress = time.monotonic() - started, attempt.last_progress
        notes = None if progress is None else AttemptNotes(progress)
        if logs is not None:
            notes = logs.notes(progress)
        return Reply(value, failure, text, duration_s, notes)


class PackedCall:
    """A call for a process pool of this machine, pickled here.

    A pool breaks for good if its worker cannot unpickle a call, or its parent a result; bytes
    always arrive.

    Attributes:
        before_code: Called just before the task's code begins, which it does not if this raises.
        on_progress: Called when it has said how far it has come.

    Raises:
        NotPicklableError: The message names what could not be pickled, and why.
    """

    __slots__ = ("before_code", "on_progress", "payload")

    def __init__(self, call: RemoteCall) -> None:
        self.before_code: Callable[[], object] | None = None
        self.on_progress: Callable[[Attempt], object] | None = None
        try:
            self.payload = pickle.dumps(call, pickle.HIGHEST_PROTOCOL)
        except KeyboardInterrupt:  # the user's, not the value's
            raise
        except BaseException as error:
            raise _blame(call, error) from error

    def __call__(self) -> bytes:
        """Unpack, run, and pack the reply."""
        end_with_parent()
        try:
            call = pickle.loads(self.payload)  # noqa: S301 - written by our own parent process
        except BaseException as error:  # noqa: BLE001 - a broken argument must not kill us
            problem = (
                "the task or its arguments could not be unpickled in the worker process"
                f" ({error_line(error)}); define them at the top level of an importable module"
            )
            return _packed(Reply(None, NotPicklableError(problem), problem, 0.0))
        if self.before_code is not None:
            self.before_code()
        return _packed(call(self.on_progress))


def unpacked(data: bytes) -> Reply:
    """Return the reply that a :class:`PackedCall` sent."""
    try:
        reply = pickle.loads(data)  # noqa: S301 - written by a worker process of ours
    except BaseException as error:  # noqa: BLE001 - a value's own __setstate__ may raise anything
        problem = (
            f"the task's result came back but could not be unpickled ({error_line(error)});"
            " return plain data"
        )
        return Reply(None, NotPicklableError(problem), problem, 0.0)
    if not isinstance(reply, Reply):  # a pool has mixed up its results
        problem = f"the worker process sent {type(reply).__name__}, not a reply"
        return Reply(None, NotPicklableError(problem), problem, 0.0)
    return reply


def _packed(reply: Reply) -> bytes:
    try:
        return pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001 - a value's own __reduce__ may raise anything
        problem = (
            f"the task's result ({type(reply.value).__qualname__}) could not be pickled to be"
            f" sent back: {error_line(error)}; return plain data"
        )
        refusal = NotPicklableError(problem)
        return pickle.dumps(Reply(None, refusal, problem, reply.duration_s, reply.notes))


def _portable(error: BaseException) -> BaseException:
    """Return the error if it survives a round trip through pickle, else a replacement."""
    try:
        twin = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        if type(twin) is type(error):
            # The traceback stays behind; its text travels in the reply.
            return error.with_traceback(None)
    except BaseException:  # noqa: BLE001, S110 - any failure means: it cannot be pickled
        pass
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return RemoteTaskError(encodable(name), error_line(error))


def _blame(call: RemoteCall, error: BaseException) -> NotPicklableError:
    """Say which part could not be pickled."""
    parts: list[tuple[str, object]] = [("its function", call.function)]
    parts += [(f"argument {number}", value) for number, value in enumerate(call.args)]
    parts += [(f"argument {name!r}", value) for name, value in call.kwargs.items()]
    for label, value in parts:
        try:
            pickle.dumps(value)
        except BaseException as cause:  # noqa: BLE001 - see PackedCall
            return NotPicklableError(
                f"task {call.facts.task_name!r} runs in another process, but {label}"
                f" ({type(value).__qualname__}) cannot be pickled: {error_line(cause)};"
                " use a function at the top level of a module and plain data"
            )
    name = call.facts.task_name
    return NotPicklableError(f"task {name!r} cannot be pickled: {error_line(error)}")
