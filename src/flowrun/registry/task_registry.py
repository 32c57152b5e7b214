"""``TaskRegistry``, the ``task`` decorator, and templates."""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn, TypeVar, Unpack, overload

from flowrun.errors import DefinitionError, TaskDefinitionError, TaskTypeError
from flowrun.forks import call_in_children
from flowrun.registry.signature import bind_positions, inspect_callable
from flowrun.registry.task_spec import (
    TaskFunction,
    TaskOptions,
    TaskSpec,
    TemplateOptions,
    callable_name,
    check_options,
    identity,
    make_spec,
)

F = TypeVar("F", bound=TaskFunction)

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
        self._start_over()
        call_in_children(self._start_over)
        self._dags: dict[str | None, dict[str, TaskSpec]] = {}
        self._homes: dict[object, list[tuple[str | None, str]]] = {}
        self._version = 0

    def _start_over(self) -> None:
        """Begin with a lock of its own: a forked child has a copy of the tasks."""
        self._lock = threading.Lock()

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
        """Return every ``(dag, name)`` under which a callable, or what it wraps, is registered.

        A wrapper that ``functools.wraps`` has put around a registered callable stands for it.
        """
        with self._lock:
            try:
                found = inspect.unwrap(function, stop=lambda each: identity(each) in self._homes)
            except ValueError:  # ``__wrapped__`` leads back to where it began
                found = function
            return list(self._homes.get(identity(found), ()))

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
            bound: Parameters that a template fills; the registered callable is then a
                ``functools.partial``.
            **options: See :class:`TaskOptions`.

        Raises:
            TaskDefinitionError: An option or the callable is wrong; nothing was registered.
        """
        if isinstance(function, TaskTemplate):
            problem = "a template is not a task; register its tasks with template.bind(name, ...)"
            raise TaskTypeError(options.get("name"), options.get("dag"), problem)
        spec = make_spec(function, bound, options)
        with self._lock:
            tasks = self._dags.get(spec.dag)
            if tasks is not None and spec.name in tasks:
                raise TaskDefinitionError(spec.name, spec.dag, _name_taken(spec, options))
            if tasks is None:
                tasks = self._dags[spec.dag] = {}
            tasks[spec.name] = spec
            self._homes.setdefault(identity(spec.function), []).append((spec.dag, spec.name))
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
            check_template_options(None, options)
            return functools.partial(TaskTemplate, self, options=options)
        return TaskTemplate(self, function, options)


def _name_taken(spec: TaskSpec, options: TaskOptions) -> str:
    if options.get("name") is not None:
        remedy = "choose another name=..."
    elif spec.name == "<lambda>":
        remedy = 'lambdas share that name, so give each its own: task("name", ...)(lambda: ...)'
    else:
        remedy = (
            f"this one got the name of its callable; give it its own: name={spec.name + '_2'!r}"
        )
    return f"a task of that name is already registered; {remedy}"


class TaskTemplate:
    """Make several tasks from one callable that differ in some of its parameters.

    Example:
        >>> registry = TaskRegistry()
        >>> def fetch(*, table: str) -> str:
        ...     return f"rows of {table}"
        >>> template = registry.task_template(fetch, dag="daily")
        >>> users = template.bind("fetch_users", table="users")
        >>> users()
        'rows of users'

    Attributes:
        function: The callable itself, for a test that calls it.
    """

    def __init__(
        self, registry: TaskRegistry, function: TaskFunction, options: TemplateOptions
    ) -> None:
        check_template_options(function, options)
        deps = options.get("deps")
        if isinstance(deps, Iterator):  # the first bind would use it up
            options = {**options, "deps": tuple(deps)}
        inspect_callable(
            function, task_name=callable_name(function), dag_name=options.get("dag"), bound={}
        )
        self._registry = registry
        self._options = options
        self.function = function

    def bind(self, name: str, /, *arguments: object, **parameters: object) -> TaskFunction:
        """Register one task with these parameters filled; return its callable.

        Args:
            name: The task's name.
            *arguments: Arguments of the template's function, in the order of its parameters;
                the one for the run's context and ``upstream`` are left out.
            **parameters: Arguments of the template's function by name.

        Raises:
            TaskDefinitionError: The name or a parameter is wrong.
        """
        options: TaskOptions = {"name": name, **self._options}
        function, bound = bind_positions(
            self.function, arguments, parameters, (name, options.get("dag"))
        )
        return self._registry.register(function, bound=bound, **options)

    def with_options(self, **options: Unpack[TemplateOptions]) -> TaskTemplate:
        """Return a template with some options replaced, for tasks that need other ones."""
        return TaskTemplate(self._registry, self.function, {**self._options, **options})

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:  # noqa: ARG002 - any call
        """Refuse to be called.

        Raises:
            TypeError: Always, with the remedy.
        """
        msg = (
            f"the template of {callable_name(self.function)!r} is not callable; use"
            " .bind(name, ...) to register a task, or .function(...) to call the function itself"
        )
        raise TypeError(msg)


def check_template_options(function: TaskFunction | None, options: TemplateOptions) -> None:
    """Check the names of a template's options.

    Raises:
        TaskDefinitionError: A template takes no name.
        TaskTypeError: There is no such option.
    """
    name = dict(options).get("name")
    if name is not None:
        problem = "a template has no name of its own; each bind(name, ...) gives one"
        raise TaskDefinitionError(name, options.get("dag"), problem)
    check_options("template" if function is None else callable_name(function), options)


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
        TaskDefinitionError: An option or the callable is wrong.
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
    """Implement the three forms of a task decorator for ``registry``."""
    if function_or_name is None or isinstance(function_or_name, str):
        if isinstance(function_or_name, str):
            if options.get("name") is not None:
                problem = "the name was given twice, as the first argument and as name=..."
                raise TaskDefinitionError(function_or_name, options.get("dag"), problem)
            options = {**options, "name": function_or_name}
        check_options(options.get("name"), options)

        def register(function: F) -> F:
            registry.register(function, **options)
            return function

        return register
    registry.register(function_or_name, **options)
    return function_or_name


def _chosen(registry: TaskRegistry | None, what: str) -> TaskRegistry:
    chosen = registry if registry is not None else _ACTIVE.get(None)
    if chosen is None:
        msg = (
            f"@{what} has no registry: use @engine.{what}(...), pass"
            f" @{what}(registry=...), or call registry.activate() before"
        )
        raise DefinitionError(msg)
    if not isinstance(chosen, TaskRegistry):
        msg = f"registry= takes a TaskRegistry, not {type(chosen).__name__}"
        raise TypeError(msg)
    return chosen
