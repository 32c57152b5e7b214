"""Every exception flowrun raises, in one tree; each class owns its message.

::

    FlowrunError
    ├── DefinitionError (ValueError)          a mistake in a declaration
    │   ├── TaskDefinitionError               one task's options or callable
    │   │   └── TaskTypeError (TypeError)     ... and it is of the wrong type
    │   └── GraphError                        one DAG's tasks do not fit together
    │       ├── MissingDependencyError
    │       ├── CrossDagDependencyError
    │       ├── AmbiguousDependencyError
    │       ├── CycleError
    │       ├── UnfilledParameterError
    │       ├── UnknownLimitError
    │       └── UnknownExecutorError
    ├── UnknownDagError (ValueError)          nothing is registered under that DAG
    ├── UnknownTaskError (ValueError)         a target or checkpoint that is not a task
    ├── UnknownRunError (KeyError, ValueError)
    ├── ContextError (TypeError)              the run's context does not fit
    ├── ParameterError (TypeError, ValueError)  a parameter of the run does not fit
    ├── OverrideError (TypeError, ValueError) what overrides a task for one run does not fit
    ├── EngineClosedError (RuntimeError)
    ├── WrongCallError (RuntimeError)         a method was called where another one is needed
    ├── NoCurrentAttemptError (RuntimeError)
    ├── ResumeError (RuntimeError)
    │   ├── RunAliveError                     that run has not ended yet, or the DAG runs already
    │   └── AlreadyResumedError               a later run has finished it
    ├── RunFailedError (RuntimeError)         a run with ``raise_on_failure=True`` has failed
    ├── RunCancelledError (asyncio.CancelledError)
    ├── TaskTimeoutError (TimeoutError)       an attempt took longer than its ``timeout_s``
    ├── AttemptCancelledError (RuntimeError)  ``raise_if_cancelled()`` in a cancelled task
    ├── NonRetryableError                     raised by a task: no more retries
    ├── RetryAfter                            raised by a task: retry, but not before then
    ├── SkipTask                              raised by a task that has nothing to do
    ├── ExecutorError (RuntimeError)          the pool, not the task, failed
    │   ├── NotPicklableError                 a value could not be sent to another process
    │   ├── ProcessDiedError                  a worker process was killed or exited
    │   └── RemoteTaskError                   a task's error that could not be pickled
    ├── ResultError (TypeError, ValueError)   a result and its serializer do not fit
    │   ├── ResultNotStorableError
    │   └── ResultNotReadableError
    └── StoreError (RuntimeError)             the state store failed
        ├── StoreFileError (ValueError)       foreign, newer, corrupt or unusable file
        ├── StoreBusyError (TimeoutError)     a lock was held for too long
        ├── StoreFullError                    no space left to write to
        ├── DamagedRecordError                a row does not match its checksum
        ├── RunLostError                      another process owns the run now
        └── ForkedStoreError                  the store was opened before a fork
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Self

    from flowrun.report import RunReport


def close_match(name: object, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest candidate, or an empty string."""
    if not isinstance(name, str):
        return ""
    import difflib  # noqa: PLC0415 - for errors only

    found = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


class FlowrunError(Exception):
    """The root of everything that flowrun raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the attributes; the constructor is not called again."""
        return _without_init, (type(self), *self.args), vars(self)


def _without_init(kind: type[FlowrunError], *args: object) -> FlowrunError:
    return kind.__new__(kind, *args)


class DefinitionError(FlowrunError, ValueError):
    """A declaration is wrong; nothing was registered or started."""


class TaskDefinitionError(DefinitionError):
    """One task's options or callable are not acceptable.

    Attributes:
        task_name: The task's name as far as it is known.
        dag_name: Its DAG, if it has one.
    """

    def __init__(self, task_name: object, dag_name: str | None, problem: str) -> None:
        self.task_name = task_name
        self.dag_name = dag_name
        self.problem = problem
        where = f"DAG {dag_name!r}" if dag_name is not None else "no DAG"
        super().__init__(f"task {_short(task_name)} ({where}): {problem}")


class TaskTypeError(TaskDefinitionError, TypeError):
    """An option or a callable is of the wrong type."""


class GraphError(DefinitionError):
    """The tasks of one DAG do not fit together; one error lists every problem.

    Attributes:
        dag_name: The DAG.
        problems: One line for each mistake: what, to which task, what to do.
    """

    def __init__(self, dag_name: str, problems: Sequence[str]) -> None:
        self.dag_name = dag_name
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            text = f"DAG {dag_name!r}: {self.problems[0]}"
        else:
            lines = "".join(f"\n  - {problem}" for problem in self.problems)
            text = f"DAG {dag_name!r} has {len(self.problems)} mistakes:{lines}"
        super().__init__(text)


class MissingDependencyError(GraphError):
    """A dependency names no task of any DAG."""


class CrossDagDependencyError(GraphError):
    """A dependency names a task of another DAG."""


class AmbiguousDependencyError(GraphError):
    """A callable registered more than once was named as a dependency."""


class CycleError(GraphError):
    """Tasks depend on each other in a circle."""


class UnfilledParameterError(GraphError):
    """Nothing fills a required parameter."""


class UnknownLimitError(GraphError):
    """A task uses a limit that the engine does not have, or more of one than there is."""


class UnknownExecutorError(GraphError):
    """A task names an executor that the engine does not have."""


class UnknownDagError(FlowrunError, ValueError):
    """No task is registered under that DAG name.

    Attributes:
        dag_name: The name.
        available: The DAGs that exist.
    """

    def __init__(
        self, dag_name: object, available: Sequence[str], unscoped: Sequence[str] = ()
    ) -> None:
        self.dag_name = dag_name
        self.available = tuple(available)
        self.unscoped = tuple(unscoped)
        names = ", ".join(repr(name) for name in self.available) or "none"
        text = f"unknown DAG {_short(dag_name)}; available DAGs: {names}."
        text += close_match(dag_name, self.available)
        if not isinstance(dag_name, str):
            text += " A DAG is given by its name, a str."
        if not self.available and not self.unscoped:
            text += " No task is registered yet: declare one with @engine.task(dag=...)."
        if self.unscoped:
            text += (
                f" These tasks belong to no DAG: {listed(self.unscoped)};"
                " give them dag=... to run them."
            )
        super().__init__(text)


class UnknownTaskError(FlowrunError, ValueError):
    """A target or a checkpoint is not a task of the DAG."""

    def __init__(self, dag_name: str | None, task_name: object, available: Iterable[str]) -> None:
        self.dag_name = dag_name
        self.task_name = task_name
        self.available = tuple(available)
        who = f"DAG {dag_name!r}" if dag_name is not None else "the registry, outside any DAG,"
        super().__init__(
            f"{who} has no task {_short(task_name)};"
            f" its tasks: {listed(self.available)}.{close_match(task_name, self.available)}"
        )


class UnknownRunError(FlowrunError, KeyError, ValueError):
    """The store has no run of that id (it may have been pruned)."""

    def __init__(self, run_id: object) -> None:
        self.run_id = run_id
        if hasattr(type(run_id), "__await__"):
            text = (
                f"{_short(run_id)} was not awaited, so it is not a run's id; write"
                " run_id = await engine.run_once(...)"
            )
        elif not isinstance(run_id, str):
            text = (
                f"no run {_short(run_id)}: a run's id is the str that run_once() returned, and"
                ' report["run_id"] in its report'
            )
        else:
            text = (
                f"no run {_short(run_id)} in the state store; it was never started here,"
                " or it was pruned. engine.list_runs() lists the runs."
            )
        super().__init__(text)

    def __str__(self) -> str:
        """Return the message itself (``KeyError`` would show its ``repr``)."""
        return str(self.args[0])


class ContextError(FlowrunError, TypeError):
    """The context given to a run is not a ``RunContext``, or a task needs one."""


class ParameterError(FlowrunError, TypeError, ValueError):
    """A parameter of a run is missing, unknown, or of the wrong type.

    Attributes:
        dag_name: The DAG.
        name: The parameter.
    """

    def __init__(self, dag_name: str, name: object, problem: str) -> None:
        self.dag_name = dag_name
        self.name = name
        super().__init__(f"DAG {dag_name!r}: the parameter {_short(name)} {problem}")


class OverrideError(FlowrunError, TypeError, ValueError):
    """What overrides a task for one run does not fit.

    Attributes:
        dag_name: The DAG.
        name: The task.
    """

    def __init__(self, dag_name: str, name: object, problem: str) -> None:
        self.dag_name = dag_name
        self.name = name
        super().__init__(f"DAG {dag_name!r}: the override of task {_short(name)} {problem}")


class EngineClosedError(FlowrunError, RuntimeError):
    """The engine was closed; build a new one."""

    def __init__(self, action: str = "run") -> None:
        self.action = action
        super().__init__(
            f"cannot {action}: this engine is closed."
            " Build a new one with build_default_engine(), or close it later."
        )


class WrongCallError(FlowrunError, RuntimeError):
    """A method was called where it cannot work; the message names the one that can."""


class NoCurrentAttemptError(FlowrunError, RuntimeError):
    """``current_attempt()`` was called outside a task."""

    def __init__(self) -> None:
        super().__init__(
            "current_attempt() works only inside a task that flowrun is running;"
            " a thread that the task started itself needs contextvars.copy_context()."
        )


class ResumeError(FlowrunError, RuntimeError):
    """A run cannot be resumed."""

    def __init__(self, run_id: str, problem: str, refused: str = "") -> None:
        self.run_id = run_id
        self.problem = problem
        super().__init__(f"{refused or f'cannot resume run {run_id!r}'}: {problem}")


class RunAliveError(ResumeError):
    """A run has not ended yet.

    It, or one that resumes it, is to be resumed; or a run of its DAG is to be started with
    ``if_running="refuse"``.

    Attributes:
        run_id: The run to be resumed, or the one that keeps the other from starting.
    """


def overlap(dag_name: str, run_id: str) -> RunAliveError:
    """Return the error of a run with ``if_running="refuse"``, while another one is alive."""
    problem = (
        f"its run {run_id!r} is still alive; wait for its end, or use if_running='start' to run"
        " both at once"
    )
    return RunAliveError(run_id, problem, f"DAG {dag_name!r} was not started")


class AlreadyResumedError(ResumeError):
    """A later run has already finished this one's tasks."""


class RunFailedError(FlowrunError, RuntimeError):
    """A run with ``raise_on_failure=True`` has failed.

    ``__cause__`` is the error of the task that failed first, if that was raised in this process or
    came over from another one.

    Attributes:
        report: The run's report, without results.
    """

    def __init__(self, report: RunReport) -> None:
        self.report = report
        failed = [name for name, task in report["tasks"].items() if task["status"] == "FAILED"]
        skipped = sum(task["status"] == "SKIPPED" for task in report["tasks"].values())
        text = f"run {report['run_id']!r} of DAG {report['dag_name']!r} failed"
        if report["error"] is not None:
            text += f" ({report['error']})"
        if failed:
            first = min(failed, key=lambda name: report["tasks"][name]["finished_at"] or 0.0)
            task = report["tasks"][first]
            line = ": ".join(filter(None, (task["error_type"], task["error_message"])))
            others = f", {len(failed) - 1} more failed" if len(failed) > 1 else ""
            others += f", {skipped} skipped" if skipped else ""
            text += f": task {first!r}: {line}{others}"
        super().__init__(text)


class RunCancelledError(FlowrunError, asyncio.CancelledError):
    """The run was cancelled by ``engine.cancel()`` or by closing the engine.

    It is an ``asyncio.CancelledError``, so code that handles cancellation handles it too.
    """

    def __init__(self, run_id: str, cause: str = "cancelled") -> None:
        self.run_id = run_id
        self.cause = cause
        super().__init__(f"run {run_id!r} was cancelled: {cause}")


class TaskTimeoutError(FlowrunError, TimeoutError):
    """An attempt took longer than its task's ``timeout_s``."""


class AttemptCancelledError(FlowrunError, RuntimeError):
    """``current_attempt().raise_if_cancelled()`` was called in a cancelled attempt."""


class NonRetryableError(FlowrunError):
    """Raise it from a task to fail without any further retry."""


class RetryAfter(FlowrunError):  # noqa: N818 - it asks for something, as HTTP's header does
    """Raise it from a task to be retried after so many seconds, as a server has asked for.

    It uses up one of the task's retries. It overrides ``retry_on`` and ``max_delay_s``.

    Args:
        delay_s: Seconds until the next attempt, 0 or more.
        message: Why, for the report.
        pause: Limits of the engine that no attempt may use before then.

    Raises:
        TypeError: ``delay_s`` is not a number, or ``pause`` is not a list of names.
        ValueError: ``delay_s`` is negative or not finite.

    Example:
        >>> raise RetryAfter(30, "429 from the API")
        Traceback (most recent call last):
        ...
        flowrun.errors.RetryAfter: 429 from the API (retry after 30 s)
    """

    def __init__(
        self, delay_s: float, message: str = "the task asked for it", *, pause: Iterable[str] = ()
    ) -> None:
        number: object = delay_s
        if isinstance(number, bool) or not isinstance(number, int | float):
            msg = f"RetryAfter takes seconds, not {number!r:.80}"
            raise TypeError(msg)
        if not 0 <= number < float("inf"):
            msg = f"RetryAfter takes seconds, 0 or more and finite, not {number!r}"
            raise ValueError(msg)
        if isinstance(pause, str):
            msg = f"pause takes a list of limits; write pause=[{pause!r}]"
            raise TypeError(msg)
        self.delay_s = float(number)
        self.message = message
        self.pause = tuple(pause)
        super().__init__(f"{message} (retry after {number:g} s)")


class SkipTask(FlowrunError):  # noqa: N818 - not an error: the task has nothing to do
    """Raise it from a task that has nothing to do in this run; the task ends as ``OMITTED``.

    What depends on it is omitted too, unless its ``trigger_rule`` says otherwise.

    Example:
        >>> raise SkipTask("nothing new today")
        Traceback (most recent call last):
        ...
        flowrun.errors.SkipTask: nothing new today
    """

    def __init__(self, message: str = "the task has nothing to do") -> None:
        super().__init__(message)


class ExecutorError(FlowrunError, RuntimeError):
    """The executor failed, not the task."""


class NotPicklableError(ExecutorError):
    """Something could not be sent to, or back from, another process."""


class ProcessDiedError(ExecutorError):
    """The process that ran the attempt was killed or exited on its own."""


class RemoteTaskError(ExecutorError):
    """A task's exception that could not be pickled; its text and traceback are kept.

    Attributes:
        type_name: The qualified name of the original exception's class.
    """

    def __init__(self, type_name: str, text: str) -> None:
        self.type_name = type_name
        self.text = text
        super().__init__(f"{type_name}: {text}")


class ResultError(FlowrunError, TypeError, ValueError):
    """A serializer cannot write or read a result."""


class ResultNotStorableError(ResultError):
    """The store cannot keep a task's result; the attempt has failed.

    A serializer raises it without ``run_id`` and ``task_name``; the store adds them.
    """

    def __init__(self, problem: str, run_id: str = "", task_name: str = "") -> None:
        self.problem = problem
        self.run_id = run_id
        self.task_name = task_name
        super().__init__(problem)


class ResultNotReadableError(ResultError):
    """The serializer cannot read a stored result."""


class StoreError(FlowrunError, RuntimeError):
    """The state store failed; everything that it had acknowledged is still there."""


def duplicate_run(run_id: str) -> StoreError:
    """Return the error of a new run that has an earlier one's id."""
    return StoreError(
        f"there is a run {run_id!r} already; SchedulerConfig.new_run_id must return an id that no"
        " run has"
    )


class StoreFileError(StoreError, ValueError):
    """The store cannot use the file, and has not changed it."""


class StoreBusyError(StoreError, TimeoutError):
    """Another process held the store's lock for longer than the store waits."""

    def __new__(cls, *args: object) -> Self:
        """Make one, also for a pickler that calls ``__new__`` by itself.

        It would find RuntimeError's first, which refuses to make an OSError.
        """
        return TimeoutError.__new__(cls, *args)


class StoreFullError(StoreError):
    """The disk that the store writes to is full."""


class DamagedRecordError(StoreError):
    """A row does not match its checksum: the file was damaged after it was written.

    Attributes:
        run_id: The run it belongs to.
        task_name: The task, or ``None`` for the run's own row.
        others: From a list of runs: the :class:`RunSummary` of those that are not damaged.
    """

    def __init__(self, run_id: str, task_name: str | None, problem: str) -> None:
        self.run_id = run_id
        self.task_name = task_name
        self.others: tuple[Any, ...] = ()
        self.problem = problem
        where = f"run {run_id!r}" + (f", task {task_name!r}" if task_name is not None else "")
        super().__init__(f"damaged record of {where}: {problem}")


class RunLostError(StoreError):
    """Another process owns the run now; nothing more may be written to it from here."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id!r} is no longer owned by this process: another one has"
            " recovered or resumed it, so this write was refused."
        )


class ForkedStoreError(StoreError):
    """The store was open in a parent process when this one was forked."""


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return quoted names separated by commas, cut short after ``most``."""
    text = ", ".join(repr(name) for name in names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text or "none"


def _short(value: object, most: int = 120) -> str:
    """Return a bounded ``repr``, so that hostile input cannot flood a message."""
    text = ascii(value) if not isinstance(value, str) or not value.isprintable() else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
