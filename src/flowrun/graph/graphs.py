"""The graphs of a registry's DAGs, each built once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from flowrun.errors import DefinitionError, TaskTypeError, UnknownDagError, listed
from flowrun.graph.graph import Graph

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection

    from flowrun.config import Limit
    from flowrun.registry import TaskRegistry


class Graphs:
    """Build the graph of a DAG when it is first needed, and again when the registry has changed.

    Args:
        registry: The tasks.
        executors: Names of the executors that tasks may use.
        limits: The limits that tasks may use.
        log: Receives a warning about tasks that belong to no DAG.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        executors: Collection[str],
        limits: Mapping[str, Limit],
        log: logging.Logger,
    ) -> None:
        self._registry = registry
        self._executors = executors
        self._limits = limits
        self._log = log
        self._built: dict[str, tuple[int, Graph]] = {}
        self._warned_at = -1

    def get(self, dag_name: str) -> Graph:
        """Return the validated graph of a DAG."""
        version = self._registry.version
        built = self._built.get(dag_name) if isinstance(dag_name, str) else None
        if built is None or built[0] != version:
            specs = self._registry.specs(self._registered_as(dag_name, version))
            graph = Graph.build(dag_name, specs, self._registry, self._executors, self._limits)
            built = version, graph
            self._built[dag_name] = built
        return built[1]

    def subgraph(self, dag_name: str, targets: object) -> Graph:
        """Return the graph of these tasks, and of everything they depend on."""
        graph = self.get(dag_name)
        names = self.task_names(graph, targets, "targets")
        if not names:
            msg = (
                f"DAG {dag_name!r}: targets is empty, so there is nothing to run; name at least"
                f" one of {listed(graph.names)}, or use run_once() for the whole DAG"
            )
            raise DefinitionError(msg)
        return graph.subgraph(names)

    def _registered_as(self, dag_name: object, version: int) -> str | None:
        """Return the DAG, or ``None`` if the tasks of the only DAG were declared without one."""
        dags = self._registry.list_dags()
        unscoped = self._registry.list_tasks(None)
        if isinstance(dag_name, str) and dag_name in dags:
            if unscoped and self._warned_at != version:
                self._warned_at = version
                self._log.warning(
                    "these tasks belong to no DAG and are never run: %s; give them dag=...",
                    listed(unscoped),
                )
            return dag_name
        if unscoped and not dags and isinstance(dag_name, str) and dag_name:
            return None
        raise UnknownDagError(dag_name, dags, unscoped)

    def task_names(self, graph: Graph, tasks: object, what: str) -> list[str]:
        """Return the names of tasks that a caller has given by name or as callables."""
        if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
            problem = f"{what} must be a list of tasks, not {tasks!r:.80}; write {what}=[...]"
            raise TaskTypeError(what, graph.dag_name, problem)
        names: dict[str, None] = {}
        for task in cast("Iterable[object]", tasks):
            name = task
            if not isinstance(task, str) and callable(task):
                here = [home for _, home in self._registry.homes(task) if home in graph.index]
                if len(here) == 1:
                    name = here[0]
            names[graph.names[graph.number(name)]] = None
        return list(names)
