"""``DagScope``: one DAG of an engine, so that its name need not be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from flowrun.errors import DefinitionError, FlowrunError
from flowrun.registry import TaskFunction, decorate, validate_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from flowrun.context import RunContext
    from flowrun.engine import Engine
    from flowrun.registry import TaskOptions, TaskTemplate, TemplateOptions
    from flowrun.render import GraphStyle

F = TypeVar("F", bound=TaskFunction)


class DagScope:
    """One DAG of an engine; made by :meth:`Engine.dag`.

    Attributes:
        name: The DAG's name.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        validate_name(name, what="DAG")
        self._engine = engine
        self.name = name

    @overload
    def task(self, function: F, /) -> F: ...
    @overload
    def task(
        self, task_name: str | None = None, /, **options: Unpack[TaskOptions]
    ) -> Callable[[F], F]: ...
    def task(
        self, function_or_name: F | str | None = None, /, **options: Unpack[TaskOptions]
    ) -> F | Callable[[F], F]:
        """Register a task of this DAG: ``@etl.task``, ``@etl.task(...)`` or with a name first.

        Raises:
            TaskDefinitionError: An option or the callable is wrong.
        """
        self._engine.require_open("register a task")
        self._check_dag(options.get("dag"))
        return decorate(self._engine.registry, function_or_name, {**options, "dag": self.name})

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
        """Make a template whose tasks belong to this DAG; see :meth:`Engine.task_template`."""
        self._check_dag(options.get("dag"))
        scoped: TemplateOptions = {**options, "dag": self.name}
        if function is None:
            return self._engine.task_template(**scoped)
        return self._engine.task_template(function, **scoped)

    async def run_once(
        self,
        context: RunContext[Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Run the DAG; see :meth:`Engine.run_once`."""
        return await self._engine.run_once(
            self.name, context, timeout_s=timeout_s, metadata=metadata
        )

    async def run_subgraph(
        self,
        targets: Sequence[str],
        context: RunContext[Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Run these tasks and what they depend on; see :meth:`Engine.run_subgraph`."""
        return await self._engine.run_subgraph(
            self.name, targets, context, timeout_s=timeout_s, metadata=metadata
        )

    def validate(self) -> None:
        """Check the DAG without running it; see :meth:`Engine.validate`."""
        self._engine.validate(self.name)

    def display(self, *, style: GraphStyle = "tree", run_id: str | None = None) -> str:
        """Return a picture of the DAG in text; see :meth:`Engine.display_dag`."""
        return self._engine.display_dag(self.name, style=style, run_id=run_id)

    def list_tasks(self) -> list[str]:
        """Return the names of the DAG's tasks; see :meth:`Engine.list_tasks`."""
        return self._engine.list_tasks(self.name)

    def __repr__(self) -> str:
        """Show its name."""
        return f"<DagScope {self.name!r}>"

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, str]:
        """Return the DAG's tree and picture for a notebook, or the mistakes in the DAG."""
        from flowrun.render import chosen, shown_dag  # noqa: PLC0415 - drawing is for notebooks

        try:
            bundle = shown_dag(self.name, self._engine.graph(self.name).deps())
        except FlowrunError as error:
            bundle = {"text/plain": f"{self!r}: {error}"}
        return chosen(bundle, include, exclude)

    def _check_dag(self, dag: object) -> None:
        if dag is not None and dag != self.name:
            msg = (
                f"dag={dag!r}: this scope registers in {self.name!r}; leave dag= out, or use"
                " engine.task"
            )
            raise DefinitionError(msg)
