"""``TaskRegistry``, and the decorators that register with the active one."""

from __future__ import annotations

import contextvars
import inspect
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from flowrun.errors import DefinitionError, TaskDefinitionError, TaskTypeError, UnknownTaskError
from flowrun.forks import call_in_children
from flowrun.registry.declaring import Declaring, TaskTemplate
from flowrun.registry.task_spec import (
    TaskFunction,
    TaskOptions,
    TaskSpec,
    TemplateOptions,
    bare_callable,
    identity,
    make_spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_log = logging.getLogger("flowrun.registry")

F = TypeVar("F", bound=TaskFunction)

_ACTIVE: contextvars.ContextVar[TaskRegistry] = contextvars.ContextVar("flowrun_active_registry")


class TaskRegistry(Declaring):
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
        self._homes: dict[object, dict[tuple[str | None, str], None]] = {}
        self._version = 0

    def _start_over(self) -> None:
        """Begin with a lock of its own: a forked child has a copy of the tasks."""
        self._lock = threading.Lock()

    def _registry_for(self, what: str, options: TemplateOptions) -> TaskRegistry:  # noqa: ARG002
        return self

    @property
    def version(self) -> int:
        """A number that grows with every change."""
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

    def dags_with(self, name: str) -> list[str | None]:
        """Return the DAGs that have a task of this name; ``None`` stands for no DAG."""
        with self._lock:
            return [dag for dag, tasks in self._dags.items() if name in tasks]

    def register(
        self,
        function: TaskFunction,
        *,
        bound: Mapping[str, object] | None = None,
        is_branch: bool = False,
        **options: Unpack[TaskOptions],
    ) -> TaskFunction:
        """Declare one task and return what was registered.

        Args:
            function: The callable.
            bound: Parameters that a template fills; the registered callable is then a
                ``functools.partial``.
            is_branch: Whether the callable chooses which of the tasks after it run.
            **options: See :class:`TaskOptions`.

        Raises:
            TaskDefinitionError: An option or the callable is wrong; nothing was registered.
        """
        if isinstance(function, TaskTemplate):
            problem = "a template is not a task; register its tasks with template.bind(name, ...)"
            raise TaskTypeError(options.get("name"), options.get("dag"), problem)
        spec = make_spec(function, bound, options, is_branch=is_branch)
        home = (spec.dag, spec.name)
        with self._lock:
            old = self._dags.get(spec.dag, {}).get(spec.name)
            if old is not None and not options.get("replace"):
                if not _is_declared_again(old, spec):
                    raise TaskDefinitionError(spec.name, spec.dag, _name_taken(spec, options))
                text = "task %r of DAG %r was declared again and replaces the one that it was"
                _log.info(text, spec.name, spec.dag, extra={"dag": spec.dag, "task": spec.name})
            self._dags.setdefault(spec.dag, {})[spec.name] = spec
            # A callable that is replaced keeps its home, as others may name it in ``deps``: a
            # notebook's cell is run again, and the cells below it are not.
            if old is not None and identity(old.function) is not old.function:
                self._homes.pop(identity(old.function), None)  # known by its id, which ends with it
            self._homes.setdefault(identity(spec.function), {})[home] = None
            self._version += 1
        return spec.function

    def unregister(self, name: str, dag: str | None = None) -> None:
        """Remove a task; runs that have begun keep it.

        Raises:
            UnknownTaskError: There is no such task.
        """
        with self._lock:
            tasks = self._dags.get(dag, {})
            if name not in tasks:
                raise UnknownTaskError(dag, name, tasks)
            del tasks[name]
            if not tasks:
                del self._dags[dag]
            for key, homes in list(self._homes.items()):
                homes.pop((dag, name), None)
                if not homes:
                    del self._homes[key]
            self._version += 1


def _is_declared_again(old: TaskSpec, new: TaskSpec) -> bool:
    """Return whether a notebook's cell, or a line at a prompt, declares its own function again."""
    if not hasattr(sys, "ps1"):  # set in a REPL, in IPython and in a notebook
        return False
    was, now = bare_callable(old.function), bare_callable(new.function)
    names = [getattr(now, name, None) for name in ("__module__", "__qualname__")]
    return (
        names[0] == "__main__"
        and names == [getattr(was, name, None) for name in ("__module__", "__qualname__")]
        and new.name != "<lambda>"
    )


def _name_taken(spec: TaskSpec, options: TaskOptions) -> str:
    if options.get("name") is not None:
        remedy = "choose another name=..."
    elif spec.name == "<lambda>":
        remedy = 'lambdas share that name, so give each its own: task("name", ...)(lambda: ...)'
    else:
        remedy = (
            f"this one got the name of its callable; give it its own: name={spec.name + '_2'!r}"
        )
    taken = "a task of that name is already registered"
    return f"{taken}; {remedy}, or take its place with replace=True"


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
    function_or_name: Any = None, /, *, registry: TaskRegistry | None = None, **options: Any
) -> Any:
    """Register a task with ``registry``, or with the one that is activated.

    Works as ``@task``, ``@task(...)`` and ``@task("name", ...)``; see :meth:`TaskRegistry.task`.

    Raises:
        DefinitionError: No registry was given and none is active.
        TaskDefinitionError: An option or the callable is wrong.
    """
    return _chosen(registry, "task").task(function_or_name, **options)


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
    function: Any = None, /, *, registry: TaskRegistry | None = None, **options: Any
) -> Any:
    """Make a template that registers with ``registry``, or with the one that is activated.

    Raises:
        DefinitionError: No registry was given and none is active.
        TaskDefinitionError: The callable cannot be a task, or an option is unknown.
    """
    return _chosen(registry, "task_template").task_template(function, **options)


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
