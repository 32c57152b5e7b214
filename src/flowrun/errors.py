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
    │       └── UnknownExecutorError
    ├── UnknownDagError (ValueError)          nothing is registered under that DAG
    ├── UnknownTaskError (ValueError)         a target or checkpoint that is no task
    ├── UnknownRunError (KeyError, ValueError)
    ├── ContextError (TypeError)              the run's context does not fit
    ├── EngineClosedError (RuntimeError)
    ├── NoCurrentAttemptError (RuntimeError)
    ├── ResumeError (RuntimeError)
    │   ├── RunAliveError                     somebody is still working on that run
    │   └── AlreadyResumedError               a later run has finished it
    ├── RunCancelledError (asyncio.CancelledError)
    ├── TaskTimeoutError (TimeoutError)       an attempt outlived its ``timeout_s``
    ├── AttemptCancelledError (RuntimeError)  ``raise_if_cancelled()`` in a told task
    ├── NonRetryableError                     raised by a task: no more retries
    ├── ExecutorError (RuntimeError)          the pool, not the task, failed
    │   ├── NotPicklableError                 what could not cross to another process
    │   ├── ProcessDiedError                  a worker process was killed or exited
    │   └── RemoteTaskError                   a task's error that could not travel whole
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


def close_match(name: object, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest candidate, or an empty string."""
    if not isinstance(name, str):
        return ""
    import difflib  # noqa: PLC0415 - for errors only

    found = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


class FlowrunError(Exception):
    """The root of everything that flowrun raises on purpose."""


class DefinitionError(FlowrunError, ValueError):
    """A declaration cannot be right; nothing was registered or started."""


class TaskDefinitionError(DefinitionError):
    """One task's options or callable are not acceptable.

    Attributes:
        task_name: The task's name as far as it is known.
        dag_name: Its DAG, or ``None`` when it belongs to none.
    """

    def __init__(self, task_name: object, dag_name: str | None, problem: str) -> None:
        self.task_name = task_name
        self.dag_name = dag_name
        self.problem = problem
        where = f"DAG {dag_name!r}" if dag_name is not None else "no DAG"
        super().__init__(f"task {_short(task_name)} ({where}): {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.task_name, self.dag_name, self.problem)


class TaskTypeError(TaskDefinitionError, TypeError):
    """What was given is of a type that cannot be used there."""


class GraphError(DefinitionError):
    """The tasks of one DAG do not fit together.

    Raised with every problem found in the DAG at once.

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

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.dag_name, self.problems)


class MissingDependencyError(GraphError):
    """A dependency names no task of any DAG."""


class CrossDagDependencyError(GraphError):
    """A dependency names a task of another DAG."""


class AmbiguousDependencyError(GraphError):
    """A callable registered more than once was named as a dependency."""


class CycleError(GraphError):
    """Tasks depend on each other in a circle."""


class UnfilledParameterError(GraphError):
    """A required parameter has nothing that could fill it."""


class UnknownExecutorError(GraphError):
    """A task asks for an executor that the engine was not given."""


class UnknownDagError(FlowrunError, ValueError):
    """No task is registered under that DAG name.

    Attributes:
        dag_name: What was asked for.
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
        if not self.available and not self.unscoped:
            text += " No task is registered yet: declare one with @engine.task(dag=...)."
        if self.unscoped:
            text += (
                f" These tasks belong to no DAG: {listed(self.unscoped)};"
                " give them dag=... if they should."
            )
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.dag_name, self.available, self.unscoped)


class UnknownTaskError(FlowrunError, ValueError):
    """A target or a checkpoint is not a task of the DAG (or of the run)."""

    def __init__(self, dag_name: str, task_name: object, available: Iterable[str]) -> None:
        self.dag_name = dag_name
        self.task_name = task_name
        self.available = tuple(available)
        super().__init__(
            f"DAG {dag_name!r} has no task {_short(task_name)};"
            f" its tasks: {listed(self.available)}.{close_match(task_name, self.available)}"
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.dag_name, self.task_name, self.available)


class UnknownRunError(FlowrunError, KeyError, ValueError):
    """The store has no run of that id (it may have been pruned)."""

    def __init__(self, run_id: object) -> None:
        self.run_id = run_id
        if hasattr(type(run_id), "__await__"):
            text = (
                f"{_short(run_id)} is not a run's id but a call that nobody has awaited; write"
                " run_id = await engine.run_once(...)"
            )
        else:
            text = (
                f"no run {_short(run_id)} in the state store; it was never started here,"
                " or it was pruned. engine.list_runs() lists what there is."
            )
        super().__init__(text)

    def __str__(self) -> str:
        """Return the message itself (``KeyError`` would show its ``repr``)."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.run_id,)


class ContextError(FlowrunError, TypeError):
    """The context given to a run is not a ``RunContext``, or a task needs one."""


class EngineClosedError(FlowrunError, RuntimeError):
    """The engine was closed; build a new one."""

    def __init__(self, action: str = "run") -> None:
        self.action = action
        super().__init__(
            f"cannot {action}: this engine is closed."
            " Build a new one with build_default_engine(), or close it later."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.action,)


class NoCurrentAttemptError(FlowrunError, RuntimeError):
    """``current_attempt()`` was called outside a task."""

    def __init__(self) -> None:
        super().__init__(
            "current_attempt() works only inside a task that flowrun is running;"
            " a thread that the task started itself needs contextvars.copy_context()."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild without arguments."""
        return type(self), ()


class ResumeError(FlowrunError, RuntimeError):
    """A run cannot be resumed as it stands."""

    def __init__(self, run_id: str, problem: str) -> None:
        self.run_id = run_id
        self.problem = problem
        super().__init__(f"cannot resume run {run_id!r}: {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.run_id, self.problem)


class RunAliveError(ResumeError):
    """The run, or one that resumes it, is still being worked on."""


class AlreadyResumedError(ResumeError):
    """A later run has already finished what this one left."""


class RunCancelledError(FlowrunError, asyncio.CancelledError):
    """The run was cancelled by ``engine.cancel()`` or by closing the engine.

    It is an ``asyncio.CancelledError`` too, so that code written for cancellation
    treats both alike.
    """

    def __init__(self, run_id: str, cause: str = "cancelled") -> None:
        self.run_id = run_id
        self.cause = cause
        super().__init__(f"run {run_id!r} was cancelled: {cause}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.run_id, self.cause)


class TaskTimeoutError(FlowrunError, TimeoutError):
    """An attempt outlived its task's ``timeout_s``."""


class AttemptCancelledError(FlowrunError, RuntimeError):
    """``current_attempt().raise_if_cancelled()`` found that it should stop."""


class NonRetryableError(FlowrunError):
    """Raise it from a task to fail without any further retry."""


class ExecutorError(FlowrunError, RuntimeError):
    """The executor that should have run the attempt failed, not the task."""


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

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.type_name, self.text)


class ResultError(FlowrunError, TypeError, ValueError):
    """A result and the serializer that should keep or read it do not fit."""


class ResultNotStorableError(ResultError):
    """A task's result cannot be kept by the store; the attempt has failed.

    A serializer raises it with the place and the problem alone; the store adds which
    run and task it was about.

    Attributes:
        run_id: The run, once the store has said so.
        task_name: The task, once the store has said so.
    """

    def __init__(self, problem: str, run_id: str = "", task_name: str = "") -> None:
        self.problem = problem
        self.run_id = run_id
        self.task_name = task_name
        super().__init__(problem)

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.problem, self.run_id, self.task_name)


class ResultNotReadableError(ResultError):
    """A stored result cannot be read back with the serializer at hand."""


class StoreError(FlowrunError, RuntimeError):
    """The state store failed; what it acknowledged before is still there."""


def duplicate_run(run_id: str) -> StoreError:
    """Return the error of a new run that has an earlier one's id."""
    return StoreError(
        f"there is a run {run_id!r} already; new_run_id of the SchedulerConfig has to make an id"
        " that no run has yet"
    )


class StoreFileError(StoreError, ValueError):
    """The file is not one that this store can use; it was left as it was."""


class StoreBusyError(StoreError, TimeoutError):
    """Somebody else held the store's lock for longer than the wait allows."""

    def __new__(cls, *args: object) -> Self:
        """Make one; said here for picklers that look for ``__new__``, as a cluster's may do.

        The first that they would find is RuntimeError's, which refuses to make an OSError.
        """
        return TimeoutError.__new__(cls, *args)


class StoreFullError(StoreError):
    """There is no space left where the store writes."""


class DamagedRecordError(StoreError):
    """A row does not match its checksum: the file was damaged after it was written.

    Attributes:
        run_id: The run it belongs to.
        task_name: The task, or ``None`` for the run's own row.
        others: Where a list of runs was asked for: the :class:`RunSummary` of those that are not
            damaged.
    """

    def __init__(self, run_id: str, task_name: str | None, problem: str) -> None:
        self.run_id = run_id
        self.task_name = task_name
        self.others: tuple[Any, ...] = ()
        self.problem = problem
        where = f"run {run_id!r}" + (f", task {task_name!r}" if task_name is not None else "")
        super().__init__(f"damaged record of {where}: {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.run_id, self.task_name, self.problem), {"others": self.others}


class RunLostError(StoreError):
    """Another process owns the run now; nothing more may be written to it from here."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(
            f"run {run_id!r} is no longer owned by this process: another one has"
            " recovered or resumed it, and what was about to be written was refused."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the constructor's own arguments, so that pickling keeps them."""
        return type(self), (self.run_id,)


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
