"""The options of one task, their checks, and the ``TaskSpec`` made from them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from flowrun.errors import TaskDefinitionError, TaskTypeError, close_match
from flowrun.policy import NO_RETRIES, RetryPolicy
from flowrun.registry.names import validate_name
from flowrun.registry.signature import UPSTREAM, inspect_callable

if TYPE_CHECKING:
    from flowrun.registry.signature import Signature

DEFAULT_TIMEOUT_S = 30.0

TaskFunction: TypeAlias = Callable[..., Any]
Dependency: TypeAlias = str | TaskFunction


class TemplateOptions(TypedDict, total=False):
    """The options of a template.

    Attributes:
        dag: The DAG that its tasks belong to.
        deps: Names of tasks, or decorated callables, that must succeed first; ``None`` for none.
        timeout_s: Seconds that one attempt may take, 30 by default; ``None`` for no limit.
        retries: Further attempts after a failure: an ``int`` or a ``RetryPolicy``.
        retain_result: ``False`` releases the result once every consumer has ended.
        executor: Name of one of the engine's ``executors``; only for sync callables.
        copy_inputs: ``True`` gives every attempt a deep copy of the results that it consumes,
            for a task that changes its inputs in place. By default they are passed by reference.
    """

    dag: str | None
    deps: Iterable[Dependency] | None
    timeout_s: float | None
    retries: int | RetryPolicy
    retain_result: bool
    executor: str | None
    copy_inputs: bool


class TaskOptions(TemplateOptions, total=False):
    """The options of a task: a template's, and a name.

    Attributes:
        name: The task's name; the function's name by default.
    """

    name: str | None


@dataclass(frozen=True, slots=True, eq=False)
class TaskSpec:
    """One declared task; immutable.

    Attributes:
        name: Unique inside its DAG.
        function: The callable as it was declared.
        dag: Its DAG, or ``None``.
        deps: Dependencies as declared: names or callables.
        timeout_s: Seconds for one attempt, or ``None``.
        retry: Its retry policy.
        retain_result: Whether the result is kept after its consumers have ended.
        executor: Name of an executor, or ``None`` for the engine's own.
        signature: How results and context are injected.
        copy_inputs: Whether an attempt gets a deep copy of the results that it consumes.
    """

    name: str
    function: TaskFunction
    dag: str | None
    deps: tuple[Dependency, ...]
    timeout_s: float | None
    retry: RetryPolicy
    retain_result: bool
    executor: str | None
    signature: Signature
    copy_inputs: bool = False

    @property
    def retries(self) -> int:
        """Number of further attempts after the first."""
        return self.retry.retries


def callable_name(function: object) -> str:
    """Return the name that a task of this callable has when none is given."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def identity(function: TaskFunction) -> object:
    """Return a key to look a callable up by, also when it cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function


_OPTION_NAMES = frozenset(TaskOptions.__annotations__)


def check_options(name: object, options: Mapping[str, object]) -> None:
    """Check the names of options.

    Raises:
        TaskTypeError: A task has no such option.
    """
    for option in options:
        if option not in _OPTION_NAMES:
            problem = (
                f"unknown option {option!r}; a task takes {', '.join(sorted(_OPTION_NAMES))}."
                f"{close_match(option, _OPTION_NAMES)}"
            )
            raise TaskTypeError(name, _dag_or_none(options.get("dag")), problem)


def _dag_or_none(dag: object) -> str | None:
    return dag if isinstance(dag, str) else None


def make_spec(
    function: TaskFunction, bound: Mapping[str, object] | None, options: TaskOptions
) -> TaskSpec:
    """Check a declaration and return its ``TaskSpec``.

    Args:
        function: The callable.
        bound: The parameters that a template has bound.
        options: The task's options.

    Raises:
        TaskDefinitionError: An option or the callable is wrong.
    """
    dag = options.get("dag")
    name = options.get("name")
    check_options(name, options)
    if name is None:
        name = callable_name(function)
    if dag is not None:
        validate_name(dag, what="DAG", task_name=name)
    validate_name(name, what="task", dag_name=dag)
    if name == UPSTREAM:
        problem = (
            f"{UPSTREAM!r} is the parameter that receives all results, so no task can have that"
            " name; choose another name=..."
        )
        raise TaskDefinitionError(name, dag, problem)
    signature = inspect_callable(function, task_name=name, dag_name=dag, bound=bound or {})
    executor = options.get("executor")
    if executor is not None:
        if not isinstance(executor, str):
            problem = f"executor= takes the name of an executor, not {type(executor).__name__}"
            raise TaskTypeError(name, dag, problem)
        if signature.is_async:
            problem = "async tasks run on the event loop; executor= is for sync callables"
            raise TaskDefinitionError(name, dag, problem)
    retain_result = options.get("retain_result", True)
    if not isinstance(retain_result, bool):
        problem = f"retain_result must be True or False, not {retain_result!r:.80}"
        raise TaskTypeError(name, dag, problem)
    copy_inputs = options.get("copy_inputs", False)
    if not isinstance(copy_inputs, bool):
        problem = f"copy_inputs must be True or False, not {copy_inputs!r:.80}"
        raise TaskTypeError(name, dag, problem)
    return TaskSpec(
        name,
        functools.partial(function, **bound) if bound else function,
        dag,
        _checked_deps(name, dag, options.get("deps", ()), function),
        _checked_timeout(name, dag, options.get("timeout_s", DEFAULT_TIMEOUT_S)),
        _checked_retries(name, dag, options.get("retries", NO_RETRIES)),
        retain_result,
        executor,
        signature,
        copy_inputs,
    )


def _checked_deps(
    name: str, dag: str | None, deps: Iterable[Dependency] | None, function: TaskFunction
) -> tuple[Dependency, ...]:
    if deps is None:
        return ()
    if isinstance(deps, str | bytes | Mapping) or not isinstance(deps, Iterable):
        problem = f"deps must be a list of task names or tasks, not {deps!r:.80}; write deps=[...]"
        raise TaskTypeError(name, dag, problem)
    # Plain strings: of a member of an enumeration only its text is kept.
    found = tuple(
        [
            str.__str__(each) if isinstance(each, str) and type(each) is not str else each
            for each in deps
        ]
    )
    seen: set[object] = set()
    for dependency in found:
        key: tuple[object, bool]
        if isinstance(dependency, str):
            label, key = repr(dependency), (dependency, True)
        elif callable(dependency):
            label, key = callable_name(dependency), (identity(dependency), False)
        else:
            problem = (
                f"a dependency is a task's name or a decorated callable, not {dependency!r:.80}"
            )
            raise TaskTypeError(name, dag, problem)
        if key in seen:
            problem = f"dependency {label} is listed twice; list it once"
            raise TaskDefinitionError(name, dag, problem)
        if dependency == name or dependency is function:
            problem = "it depends on itself; remove it from its own deps"
            raise TaskDefinitionError(name, dag, problem)
        seen.add(key)
    return found


def _checked_timeout(name: str, dag: str | None, timeout_s: object) -> float | None:
    if timeout_s is None:
        return None
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        problem = f"timeout_s must be seconds or None, not {timeout_s!r:.80}"
        raise TaskTypeError(name, dag, problem)
    if not 0 < timeout_s <= sys.float_info.max:  # also refuses NaN, and an int beyond floats
        problem = (
            f"timeout_s must be finite and above 0, not {timeout_s!r}; use None for no timeout"
        )
        raise TaskDefinitionError(name, dag, problem)
    return float(timeout_s)


def _checked_retries(name: str, dag: str | None, retries: object) -> RetryPolicy:
    if isinstance(retries, RetryPolicy):
        return retries
    if isinstance(retries, bool) or not isinstance(retries, int):
        problem = f"retries must be an int or a RetryPolicy, not {retries!r:.80}"
        raise TaskTypeError(name, dag, problem)
    if retries < 0:
        problem = f"retries must be 0 or more, not {retries}"
        raise TaskDefinitionError(name, dag, problem)
    return RetryPolicy(retries) if retries else NO_RETRIES
