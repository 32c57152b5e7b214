"""Resume a run: find it in the store, plan what to do, load the results that are needed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun.errors import ResumeError, listed
from flowrun.graph import override
from flowrun.scheduler.expander import Earlier, Inherited
from flowrun.scheduler.options import refreshed
from flowrun.scheduler.parameters import checked_params
from flowrun.scheduler.resume_plan import (
    ResumePlan,
    find_resumable,
    first_run_id,
    inputs_to_load,
    plan_resume,
    take_over,
)
from flowrun.state import RunStatus

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence

    from flowrun.context import RunContext
    from flowrun.graph import Graph, Graphs
    from flowrun.scheduler.options import RunOptions
    from flowrun.scheduler.starting import Starter
    from flowrun.state import RunRecord


class PlannedResume(NamedTuple):
    """The graph of the new run, the run to resume, what to do, and what the caller gave."""

    graph: Graph
    old: RunRecord
    tasks: ResumePlan
    params: dict[str, object]
    named: tuple[str, ...]


class Resumer:
    """Resume the runs of one engine's store."""

    def __init__(self, starter: Starter, graphs: Graphs, log: logging.Logger) -> None:
        self._starter = starter
        self._store = starter.store
        self._services = starter.services
        self._lifecycle = starter.lifecycle
        self._graphs = graphs
        self._log = log

    def plan(
        self,
        run_id: str,
        from_tasks: Sequence[str] | None,
        params: Mapping[str, object] | None,
        overrides: Mapping[str, object] | None,
    ) -> PlannedResume:
        """Return the graph of the new run, the run to resume, and what to do."""
        self._lifecycle.end_lost()
        self._services.journal.save_unsaved()  # the run may be one whose end was not written
        old = find_resumable(self._store, run_id, last=not from_tasks)
        graph = self._graphs.get(old.dag_name)
        if old.targets is not None:
            targets = [name for name in old.targets if name in graph.index]
            if not targets:
                problem = f"none of its targets {listed(old.targets)} is in the DAG any more"
                raise ResumeError(old.run_id, problem)
            graph = graph.subgraph(targets)
        names: list[str] = []
        if from_tasks:
            names = self._graphs.task_names(graph, from_tasks, "from_tasks")
        find = getattr(self._store, "unreadable_results", None)
        unreadable = () if find is None else find(old.run_id)
        graph = override(graph, overrides)
        new_params = checked_params(graph, params, old.params)
        plan = plan_resume(graph, old, names, new_params, unreadable)
        return PlannedResume(graph, old, plan, new_params, tuple(names))

    async def resume(
        self,
        run_id: str,
        from_tasks: Sequence[str] | None,
        context: RunContext[Any] | None,
        options: RunOptions,
    ) -> str:
        """Carry out a new run that takes over from an old one; return the new run's id."""
        params, overrides = options.get("params"), options.get("overrides")
        planned = partial(self.plan, run_id, from_tasks, params, overrides)
        graph, old, plan, new_params, named = await self._off_loop(planned)
        self._warn_of_abandoned(old)
        options = {**options, "params": new_params}
        if named:  # who asks for them to run again wants nothing from the cache
            again = graph.descendants(map(graph.number, named))
            fresh = again.union(refreshed(graph, options))
            options["refresh"] = [graph.names[number] for number in fresh]
        if options.get("metadata") is None:
            options["metadata"] = old.metadata
        record = self._starter.new_record(graph, context, options)
        record = take_over(record, graph, old, plan)
        record = record._replace(
            named=named,
            sole_heir=not from_tasks and old.status is not RunStatus.SUCCESS,
            first_run_id=await self._off_loop(partial(first_run_id, self._store, old)),
        )
        values: dict[str, object] = {}
        # A mapped task without items had not begun, or there was nothing to map over.
        items = {
            name: Earlier(old.run_id, each)
            for name in plan.keeps_items
            if (each := old.items.get(name))
        }
        wanted = inputs_to_load(graph, old, plan)
        if wanted:
            values = await self._off_loop(partial(self._store.load_results, old.run_id, wanted))
        inherited = Inherited(values, items)
        return await self._starter.execute(graph, record, context, options, inherited)

    async def _off_loop(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - its result
        if not self._store.blocking:
            return function()
        return await self._services.journal.call_from_loop(function)

    def _warn_of_abandoned(self, old: RunRecord) -> None:
        for attempt in list(self._services.abandoned):
            if attempt.seen.run_id == old.run_id:
                self._log.warning(
                    "task %r of run %r was abandoned and still runs, beside the run that resumes"
                    " it",
                    attempt.spec.name,
                    old.run_id,
                    extra={"run_id": old.run_id, "dag": old.dag_name, "task": attempt.spec.name},
                )
