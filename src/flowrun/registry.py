"""What tasks there are: ``TaskSpec``, ``TaskRegistry``, the ``task`` decorator, templates."""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, Unpack, overload

from flowrun.errors import (
    DefinitionError,
    TaskDefinitionError,
    TaskTypeError,
    close_match,
)
from flowrun.policy import NO_RETRIES, RetryPolicy
from flowrun.signature import inspect_callable, validate_name

if TYPE_CHECKING:
    from flowrun.signature import Signature

DEFAULT_TIMEOUT_S = 30.0

TaskFunction: TypeAlias = Callable[..., Any]
Dependency: TypeAlias = str | TaskFunction
F = TypeVar("F", bound=TaskFunction)


class TaskOptions(TypedDict, total=False):
    """Every option of a task; templates take the same.

    Attributes:
        name: The task's name; the function's name by default.
        dag: The DAG it belongs to.
        deps: Names of tasks, or decorated callables, that must succeed first.
        timeout_s: Seconds that one attempt may take, 30 by default; ``None`` for no limit.
        retries: Further attempts after a failure: an ``int`` or a ``RetryPolicy``.
        retain_result: ``False`` lets the result go once every consumer has ended.
        executor: Name of one of the engine's ``executors``; only for sync callables.
    """

    name: str | None
    dag: str | None
    deps: Iterable[Dependency]
    timeout_s: float | None
    retries: int | RetryPolicy
    retain_result: bool
    executor: str | None


class TemplateOptions(TypedDict, total=False):
    """The options of a template: a task's, without the name."""

    dag: str | None
    deps: Iterable[Dependency]
    timeout_s: float | None
    retries: int | RetryPolicy
    retain_result: bool
    executor: str | None


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

    @property
    def retries(self) -> int:
        """Number of further attempts after the first."""
        return self.retry.retries


_ACTIVE: contextvars.ContextVar[TaskRegistry] = contextvars.ContextVar("flowrun_active_registry")


class TaskRegistry:
    """Hold declared tasks by DAG; safe to use from several threads.

    Example:
        >>> registry = TaskRegistry()
        >>> token = registry.activate()
        >>> @task(dag="daily")
        ... def extract():
        ...     return [1, 2]
        >>> TaskRegistry.deactivate(token)
        >>> registry.list_tasks("daily")
        ['extract']
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dags: dict[str | None, dict[str, TaskSpec]] = {}
        self._homes: dict[object, list[tuple[str | None, str]]] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """A number that grows with every registration."""
        return self._version

    def activate(self) -> contextvars.Token[TaskRegistry]:
        """Make this the registry that a bare ``@task`` registers with; return its token."""
        return _ACTIVE.set(self)

    @staticmethod
    def deactivate(token: contextvars.Token[TaskRegistry]) -> None:
        """Undo the ``activate()`` that returned ``token``."""
        _ACTIVE.reset(token)

    def list_dags(self) -> list[str]:
        """Return the names of the DAGs, as first declared."""
        with self._lock:
            return [dag for dag in self._dags if dag is not None]

    def list_tasks(self, dag: str | None = None) -> list[str]:
        """Return the names of a DAG's tasks (of those without a DAG), as declared."""
        with self._lock:
            return list(self._dags.get(dag, ()))

    def specs(self, dag: str | None) -> tuple[TaskSpec, ...]:
        """Return a DAG's tasks, as declared."""
        with self._lock:
            return tuple(self._dags.get(dag, {}).values())

    def homes(self, function: TaskFunction) -> list[tuple[str | None, str]]:
        """Return every ``(dag, name)`` under which a callable is registered."""
        with self._lock:
            return list(self._homes.get(_identity(function), ()))

    def dags_with(self, name: str) -> list[str]:
        """Return the DAGs that have a task of this name."""
        with self._lock:
            return [dag for dag, tasks in self._dags.items() if dag is not None and name in tasks]

    def register(
        self,
        function: TaskFunction,
        *,
        bound: Mapping[str, object] | None = None,
        **options: Unpack[TaskOptions],
    ) -> TaskFunction:
        """Declare one task and return what was registered.

        Args:
            function: The callable.
            bound: Parameters that a template has already filled; the registered callable is
                then a ``functools.partial``.
            **options: See :class:`TaskOptions`.

        Raises:
            TaskDefinitionError: An option or the callable cannot be right; nothing was
                registered.
        """
        spec = _make_spec(function, bound, options)
        with self._lock:
            tasks = self._dags.get(spec.dag)
            if tasks is not None and spec.name in tasks:
                problem = "a task of that name is already registered; choose another name=..."
                raise TaskDefinitionError(spec.name, spec.dag, problem)
            if tasks is None:
                tasks = self._dags[spec.dag] = {}
            tasks[spec.name] = spec
            self._homes.setdefault(_identity(spec.function), []).append((spec.dag, spec.name))
            self._version += 1
        return spec.function

    @overload
    def task(self, function: F, /) -> F: ...
    @overload
    def task(
        self, task_name: str | None = None, /, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...
    def task(
        self, function_or_name: F | str | None = None, /, **options: Unpack[TaskOptions]
    ) -> F | Callable[[F], F]:
        """Register a task: ``@registry.task``, ``@registry.task(...)`` or with a name first.

        Raises:
            TaskDefinitionError: See :meth:`register`.
        """
        return decorate(self, function_or_name, options)

    @overload
    def task_template(
        self, function: TaskFunction, /, **options: Unpack[TemplateOptions]
    ) -> TaskTemplate: ...
    @overload
    def task_template(
        self, /, **options: Unpack[TemplateOptions]
    ) -> Callable[[TaskFunction], TaskTemplate]: ...
    def task_template(
        self, function: TaskFunction | None = None, /, **options: Unpack[TemplateOptions]
    ) -> TaskTemplate | Callable[[TaskFunction], TaskTemplate]:
        """Make a template of a callable: registered once for each ``bind``.

        Raises:
            TaskDefinitionError: The callable cannot be a task, or an option is unknown.
        """
        if function is None:
            return functools.partial(TaskTemplate, self, options=options)
        return TaskTemplate(self, function, options)


class TaskTemplate:
    """A callable from which tasks are made that differ in some of its parameters.

    Example:
        >>> registry = TaskRegistry()
        >>> def fetch(*, table: str) -> str:
        ...     return f"rows of {table}"
        >>> template = registry.task_template(fetch, dag="daily")
        >>> users = template.bind("fetch_users", table="users")
        >>> users()
        'rows of users'
    """

    def __init__(
        self, registry: TaskRegistry, function: TaskFunction, options: TemplateOptions
    ) -> None:
        name = dict(options).get("name")
        if name is not None:
            problem = "a template has no name of its own; each bind(name, ...) gives one"
            raise TaskDefinitionError(name, options.get("dag"), problem)
        _check_options(callable_name(function), options)
        deps = options.get("deps")
        if isinstance(deps, Iterator):  # the first bind would use it up, and the next have none
            options = {**options, "deps": tuple(deps)}
        inspect_callable(
            function, task_name=callable_name(function), dag_name=options.get("dag"), bound={}
        )
        self._registry = registry
        self._options = options
        self.function = function

    def bind(self, name: str, /, **parameters: object) -> TaskFunction:
        """Register one task with these parameters filled; return its callable.

        Args:
            name: The task's name.
            **parameters: Arguments of the template's function.

        Raises:
            TaskDefinitionError: The name or a parameter cannot be right.
        """
        options: TaskOptions = {"name": name, **self._options}
        return self._registry.register(self.function, bound=parameters, **options)

    def with_options(self, **options: Unpack[TemplateOptions]) -> TaskTemplate:
        """Return a template with some options replaced, for tasks that need other ones."""
        return TaskTemplate(self._registry, self.function, {**self._options, **options})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the function's own
        """Call the template's function itself."""
        return self.function(*args, **kwargs)


@overload
def task(function: F, /, *, registry: TaskRegistry | None = None) -> F: ...
@overload
def task(
    task_name: str | None = None,
    /,
    *,
    registry: TaskRegistry | None = None,
    **options: Unpack[TaskOptions],
) -> Callable[[F], F]: ...
def task(
    function_or_name: F | str | None = None,
    /,
    *,
    registry: TaskRegistry | None = None,
    **options: Unpack[TaskOptions],
) -> F | Callable[[F], F]:
    """Register a task with ``registry``, or with the one that is activated.

    Works as ``@task``, ``@task(...)`` and ``@task("name", ...)``. The decorated function is
    returned as it was.

    Args:
        function_or_name: The function (bare form), or the task's name.
        registry: Where to register.
        **options: See :class:`TaskOptions`.

    Raises:
        DefinitionError: No registry was given and none is active.
        TaskDefinitionError: An option or the callable cannot be right.
    """
    return decorate(_chosen(registry, "task"), function_or_name, options)


@overload
def task_template(
    function: TaskFunction,
    /,
    *,
    registry: TaskRegistry | None = None,
    **options: Unpack[TemplateOptions],
) -> TaskTemplate: ...
@overload
def task_template(
    *, registry: TaskRegistry | None = None, **options: Unpack[TemplateOptions]
) -> Callable[[TaskFunction], TaskTemplate]: ...
def task_template(
    function: TaskFunction | None = None,
    /,
    *,
    registry: TaskRegistry | None = None,
    **options: Unpack[TemplateOptions],
) -> TaskTemplate | Callable[[TaskFunction], TaskTemplate]:
    """Make a template that registers with ``registry``, or with the one that is activated.

    Raises:
        DefinitionError: No registry was given and none is active.
        TaskDefinitionError: The callable cannot be a task, or an option is unknown.
    """
    chosen = _chosen(registry, "task_template")
    if function is None:
        return chosen.task_template(**options)
    return chosen.task_template(function, **options)


def decorate(
    registry: TaskRegistry, function_or_name: F | str | None, options: TaskOptions
) -> F | Callable[[F], F]:
    """Serve the three forms of a task decorator for ``registry``."""
    if function_or_name is None or isinstance(function_or_name, str):
        if isinstance(function_or_name, str):
            if options.get("name") is not None:
                problem = "the name was given twice, as the first argument and as name=..."
                raise TaskDefinitionError(function_or_name, options.get("dag"), problem)
            options = {**options, "name": function_or_name}
        _check_options(options.get("name"), options)

        def register(function: F) -> F:
            registry.register(function, **options)
            return function

        return register
    registry.register(function_or_name, **options)
    return function_or_name


def callable_name(function: object) -> str:
    """Return the name that a task of this callable has when none is given."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _chosen(registry: TaskRegistry | None, what: str) -> TaskRegistry:
    chosen = registry if registry is not None else _ACTIVE.get(None)
    if chosen is None:
        msg = (
            f"@{what} does not know where to register: use @engine.{what}(...), pass"
            f" @{what}(registry=...), or call registry.activate() before"
        )
        raise DefinitionError(msg)
    if not isinstance(chosen, TaskRegistry):
        msg = f"registry= takes a TaskRegistry, not {type(chosen).__name__}"
        raise TypeError(msg)
    return chosen


def _identity(function: TaskFunction) -> object:
    """Return a key under which a callable is found again, also when it cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function


_OPTION_NAMES = frozenset(TaskOptions.__annotations__)


def _check_options(name: object, options: Mapping[str, object]) -> None:
    for option in options:
        if option not in _OPTION_NAMES:
            problem = (
                f"unknown option {option!r}; a task takes {', '.join(sorted(_OPTION_NAMES))}."
                f"{close_match(option, _OPTION_NAMES)}"
            )
            raise TaskTypeError(name, _dag_or_none(options.get("dag")), problem)


def _dag_or_none(dag: object) -> str | None:
    return dag if isinstance(dag, str) else None


def _make_spec(
    function: TaskFunction, bound: Mapping[str, object] | None, options: TaskOptions
) -> TaskSpec:
    dag = options.get("dag")
    name = options.get("name")
    _check_options(name, options)
    if name is None:
        name = callable_name(function)
    if dag is not None:
        validate_name(dag, what="DAG", task_name=name)
    validate_name(name, what="task", dag_name=dag)
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
        problem = f"retain_result must be True or False, not {retain_result!r}"
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
    )


def _checked_deps(
    name: str, dag: str | None, deps: Iterable[Dependency], function: TaskFunction
) -> tuple[Dependency, ...]:
    if isinstance(deps, str | bytes | Mapping) or not isinstance(deps, Iterable):
        problem = f"deps must be a list of task names or tasks, not {deps!r:.80}; write deps=[...]"
        raise TaskTypeError(name, dag, problem)
    # Names as plain strings, so that nothing else of an enumeration's member gets further.
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
            label, key = callable_name(dependency), (_identity(dependency), False)
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
