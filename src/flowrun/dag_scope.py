"""``DagScope``: one DAG of an engine, so that its name need not be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from flowrun.errors import DefinitionError, FlowrunError
from flowrun.registry import Declaring, validate_name

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.context import RunContext
    from flowrun.engine import Engine
    from flowrun.registry import TaskRegistry, TemplateOptions
    from flowrun.render import GraphStyle
    from flowrun.report import RunReport
    from flowrun.scheduler import RunHandle, RunOptions


class DagScope(Declaring):
    """One DAG of an engine; made by :meth:`Engine.dag`.

    Attributes:
        name: The DAG's name.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        validate_name(name, what="DAG")
        self._engine = engine
        self.name = name

    def _registry_for(self, what: str, options: TemplateOptions) -> TaskRegistry:
        self._engine.require_open(f"register a {what}")
        dag = options.get("dag")
        if dag is not None and dag != self.name:
            msg = (
                f"dag={dag!r}: this scope registers in {self.name!r}; leave dag= out, or use"
                " engine.task"
            )
            raise DefinitionError(msg)
        options["dag"] = self.name
        return self._engine.registry

    async def run_once(
        self, context: RunContext[Any] | None = None, **options: Unpack[RunOptions]
    ) -> str:
        """Run the DAG; see :meth:`Engine.run_once`."""
        return await self._engine.run_once(self.name, context, **options)

    def run(
        self, context: RunContext[Any] | None = None, **options: Unpack[RunOptions]
    ) -> RunReport:
        """Run the DAG from code that is not async; see :meth:`Engine.run`."""
        return self._engine.run(self.name, context, **options)

    def start(
        self, context: RunContext[Any] | None = None, **options: Unpack[RunOptions]
    ) -> RunHandle:
        """Start a run of the DAG; see :meth:`Engine.start`."""
        return self._engine.start(self.name, context, **options)

    async def run_subgraph(
        self,
        targets: Sequence[str],
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> str:
        """Run these tasks and what they depend on; see :meth:`Engine.run_subgraph`."""
        return await self._engine.run_subgraph(self.name, targets, context, **options)

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
            graph = self._engine.graph(self.name)
            bundle = shown_dag(self.name, graph.deps(), graph.teardowns.names)
        except FlowrunError as error:
            bundle = {"text/plain": f"{self!r}: {error}"}
        return chosen(bundle, include, exclude)
