"""The decorators ``task`` and ``task_template``, and the templates that they make."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn, TypeVar, Unpack, cast, overload

from flowrun.errors import TaskDefinitionError
from flowrun.registry.signature import bind_positions, inspect_callable
from flowrun.registry.task_spec import (
    TaskFunction,
    TaskOptions,
    TemplateOptions,
    callable_name,
    check_options,
)

if TYPE_CHECKING:
    from flowrun.registry.task_registry import TaskRegistry

F = TypeVar("F", bound=TaskFunction)


class Declaring(ABC):
    """The decorators that a registry, an engine and the scope of a DAG have in common."""

    @abstractmethod
    def _registry_for(self, what: str, options: TemplateOptions) -> TaskRegistry:
        """Return where to register a task or template; may complete its options."""
        ...

    @overload
    def task(self, function: F, /) -> F: ...
    @overload
    def task(
        self, task_name: str | None = None, /, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...
    def task(
        self, function_or_name: F | str | None = None, /, **options: Unpack[TaskOptions]
    ) -> F | Callable[[F], F]:
        """Register a task: ``@engine.task``, ``@engine.task(...)`` or with a name first.

        The decorated function is returned as it was.

        Args:
            function_or_name: The function (bare form), or the task's name.
            **options: See :class:`flowrun.registry.task_spec.TaskOptions`.

        Raises:
            TaskDefinitionError: An option or the callable is wrong.
        """
        return self._decorate(function_or_name, options, is_branch=False)

    @overload
    def branch(self, function: F, /) -> F: ...
    @overload
    def branch(
        self, task_name: str | None = None, /, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...
    def branch(
        self, function_or_name: F | str | None = None, /, **options: Unpack[TaskOptions]
    ) -> F | Callable[[F], F]:
        """Register a task that chooses which of the tasks that depend on it run.

        It returns a task, a list of tasks, or ``None`` for none of them, by name or as the
        decorated callable. The tasks that it does not choose end as ``OMITTED``. Use it as
        :meth:`task`.

        Raises:
            TaskDefinitionError: An option or the callable is wrong.
        """
        return self._decorate(function_or_name, options, is_branch=True)

    def _decorate(
        self, function_or_name: F | str | None, options: TaskOptions, *, is_branch: bool
    ) -> F | Callable[[F], F]:
        registry = self._registry_for("task", options)
        if function_or_name is not None and not isinstance(function_or_name, str):
            registry.register(function_or_name, is_branch=is_branch, **options)
            return function_or_name
        if function_or_name is not None:
            if options.get("name") is not None:
                problem = "the name was given twice, as the first argument and as name=..."
                raise TaskDefinitionError(function_or_name, options.get("dag"), problem)
            options["name"] = function_or_name
        check_options(options.get("name"), options)

        def register(function: F) -> F:
            registry.register(function, is_branch=is_branch, **options)
            return function

        return register

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
        """Make a template; each ``bind(name, **parameters)`` of it registers a task.

        Raises:
            TaskDefinitionError: An option or the callable is wrong.
        """
        registry = self._registry_for("template", options)
        _check_template_options(options)
        template = functools.partial(TaskTemplate, registry, options)
        return template if function is None else template(function)


class TaskTemplate:
    """Make several tasks from one callable that differ in some of its parameters.

    Example:
        >>> from flowrun import TaskRegistry
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
        self, registry: TaskRegistry, options: TemplateOptions, function: TaskFunction
    ) -> None:
        for name in ("deps", "teardown_of"):
            given = options.get(name)
            if isinstance(given, Iterator):  # the first bind would use it up
                options = cast("TemplateOptions", {**options, name: tuple(given)})
        inspect_callable(function, task_name=callable_name(function), dag_name=options.get("dag"))
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
        _check_template_options(options)
        return TaskTemplate(self._registry, {**self._options, **options}, self.function)

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


def _check_template_options(options: TemplateOptions) -> None:
    name = dict(options).get("name")
    if name is not None:
        problem = "a template has no name of its own; each bind(name, ...) gives one"
        raise TaskDefinitionError(name, options.get("dag"), problem)
    check_options("template", options)
