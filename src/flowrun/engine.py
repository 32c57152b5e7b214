"""``Engine``, the facade, and ``build_default_engine``, which picks its parts."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from flowrun import render
from flowrun.config import SchedulerConfig, checked_limits
from flowrun.dag_scope import DagScope
from flowrun.errors import UnknownRunError, listed
from flowrun.registry import Declaring, TaskRegistry
from flowrun.report import RunReport, build_report
from flowrun.scheduler.checks import check_parts, checked_store
from flowrun.scheduler.parts import Parts
from flowrun.scheduler.starting import require_no_loop
from flowrun.state import InMemoryStateStore

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from flowrun.config import Limit
    from flowrun.context import RunContext
    from flowrun.graph import Graph
    from flowrun.hooks import RunHook
    from flowrun.registry import TemplateOptions
    from flowrun.render import GraphStyle
    from flowrun.scheduler import ResumePlan, RunHandle, RunOptions
    from flowrun.state import RunSummary, StateStoreProtocol

_DEFAULT_LIST_LIMIT = 100


def build_default_engine(  # noqa: PLR0913 - the contract's parameters and their extensions
    executor: Executor | None = None,
    max_workers: int = 8,
    max_parallel: int = 4,
    logger: logging.Logger | None = None,
    hooks: Sequence[RunHook] | None = None,
    state_store: StateStoreProtocol | None = None,
    *,
    executors: Mapping[str, Executor] | None = None,
    limits: Mapping[str, int | Limit] | None = None,
    registry: TaskRegistry | None = None,
    redact: Callable[[str], str] | None = None,
    config: SchedulerConfig | None = None,
) -> Engine:
    """Build an engine with sensible parts.

    Args:
        executor: Where sync tasks run, if not on the engine's threads; never shut down by it.
        max_workers: The most worker threads of the engine.
        max_parallel: Tasks that run at the same time, over all runs of the engine; 1 or more.
        logger: Used by every part in place of the ``flowrun`` loggers.
        hooks: Handlers of the runs' events.
        state_store: Where runs are kept; in memory by default.
        executors: Further executors, by the name that ``@task(executor=...)`` uses.
        limits: What tasks with ``uses=[...]`` share, by name: how many at once, or a ``Limit``.
        registry: The tasks; a new registry by default.
        redact: Takes every error text before it is stored or shown; returns what may be seen.
        config: Finer settings, but for ``max_parallel``.

    Raises:
        ValueError: A number is below 1.
        TypeError: An executor, hook, limit or store is not one.

    Example:
        >>> with build_default_engine(max_parallel=2) as engine:
        ...     @engine.task(dag="hello")
        ...     def greet() -> str:
        ...         return "hello"
        ...     report = engine.run("hello")
        >>> report["tasks"]["greet"]["result"]
        'hello'
    """
    check_parts(registry, config, logger, redact)
    config = dataclasses.replace(config or SchedulerConfig(), max_parallel=max_parallel)
    parts = Parts(
        registry=TaskRegistry() if registry is None else registry,
        store=checked_store(InMemoryStateStore() if state_store is None else state_store),
        max_workers=max_workers,
        executor=executor,
        executors=executors or {},
        hooks=hooks or (),
        logger=logger,
        redact=redact,
        config=config,
        limits=checked_limits(limits),
    )
    return Engine(parts)


class Engine(Declaring):
    """Declare tasks, run DAGs, read reports. Made by :func:`build_default_engine`.

    An engine may be used from several event loops in several threads at once.
    """

    def __init__(self, parts: Parts) -> None:
        self.registry = parts.registry
        self._parts = parts
        parts.report = self.get_run_report

    def _registry_for(self, what: str, options: TemplateOptions) -> TaskRegistry:  # noqa: ARG002
        self.require_open(f"register a {what}")
        return self.registry

    def dag(self, dag_name: str) -> DagScope:
        """Return the scope of one DAG, so that its name need not be repeated.

        Raises:
            DefinitionError: A DAG cannot have that name.
        """
        return DagScope(self, dag_name)

    @property
    def hooks(self) -> tuple[RunHook, ...]:
        """The hooks that are called, in their order."""
        return self._parts.services.hooks.hooks

    def add_hook(self, hook: RunHook) -> None:
        """Add a hook for the runs that start from now on.

        Raises:
            TypeError: It has no handler, or is a class.
        """
        self._parts.services.hooks.add([hook])

    async def run_once(
        self,
        dag_name: str,
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> str:
        """Run a DAG and return the run's id, whether its tasks succeeded or not.

        Args:
            dag_name: The DAG.
            context: Passed to every task with a ``RunContext`` parameter.
            **options: See :class:`RunOptions`.

        Raises:
            ValueError: The DAG is unknown or has mistakes; nothing was started.
            ParameterError: A parameter is missing, unknown, or of the wrong type.
            OverrideError: An override is of no task, or does not fit.
            ContextError: The context is not a ``RunContext``, or one is needed.
            EngineClosedError: The engine is closed.
            asyncio.CancelledError: The run was cancelled; it has ended.
            StoreError: The store failed; the run has ended.
        """
        self.require_open("run a DAG")
        return await self._parts.starter.run(self.graph(dag_name), context, options)

    def run(
        self,
        dag_name: str,
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> RunReport:
        """Run a DAG from code that is not async, and return the run's report.

        It takes what :meth:`run_once` takes and uses ``asyncio.run``: Ctrl-C ends the run and
        raises ``KeyboardInterrupt``.

        Raises:
            WrongCallError: An event loop runs here already.
        """
        require_no_loop(dag_name)
        return self.get_run_report(asyncio.run(self.run_once(dag_name, context, **options)))

    def start(
        self,
        dag_name: str,
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> RunHandle:
        """Start a run on the event loop that runs here, and return its handle at once.

        It takes what :meth:`run_once` takes.

        Raises:
            WrongCallError: No event loop runs here, or a task calls.
        """
        self.require_open("start a run")
        return self._parts.starter.start(self.graph(dag_name), context, options)

    async def run_subgraph(
        self,
        dag_name: str,
        targets: Sequence[str],
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> str:
        """Run these tasks and everything they depend on; return the run's id.

        Takes what :meth:`run_once` takes, and ``targets``: names of tasks, or decorated callables.

        Raises:
            UnknownTaskError: A target is not a task of the DAG.
            ValueError: The DAG is unknown or has mistakes, or there is no target.
        """
        self.require_open("run a sub-graph")
        graph = self._parts.graphs.subgraph(dag_name, targets)
        return await self._parts.starter.run(graph, context, options)

    async def resume(
        self,
        run_id: str,
        from_tasks: Sequence[str] | None = None,
        context: RunContext[Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> str:
        """Finish an ended run in a new run, which keeps what succeeded; return the new run's id.

        See :meth:`plan_resume`, also for what it raises.

        Args:
            run_id: The run to resume. If it was resumed before, the new run continues the last
                of those runs.
            from_tasks: Run these again, and everything that depends on them.
            context: As for :meth:`run_once`.
            **options: See :class:`RunOptions`.
        """
        self.require_open("resume a run")
        return await self._parts.resumer.resume(run_id, from_tasks, context, options)

    def plan_resume(
        self,
        run_id: str,
        from_tasks: Sequence[str] | None = None,
        *,
        params: Mapping[str, object] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> ResumePlan:
        """Return what :meth:`resume` would do with each task, keep or run, and why.

        Raises:
            UnknownRunError: There is no such run.
            UnknownTaskError: One of ``from_tasks`` is not a task of it.
            RunAliveError: It, or a run that resumes it, is still alive.
            AlreadyResumedError: A later run has finished it.
        """
        return self._parts.resumer.plan(run_id, from_tasks, params, overrides).tasks

    def cancel(self, run_id: str) -> bool:
        """Cancel a run of this engine, from any thread; return whether it was alive.

        The code that awaits the run gets a ``RunCancelledError`` once the run has ended.

        Raises:
            UnknownRunError: The engine and its store have no such run.
        """
        if not isinstance(run_id, str):
            raise UnknownRunError(run_id)
        alive = self._parts.lifecycle.find(run_id)
        if alive is None:
            self._parts.store.load_run(run_id, results=False)
            return False
        alive[0].request_cancel("engine.cancel() was called")
        return True

    def validate(self, dag_name: str) -> None:
        """Check a DAG without running it.

        Raises:
            UnknownDagError: There is no such DAG.
            GraphError: Every mistake in it.
        """
        self.graph(dag_name)

    def list_dags(self) -> list[str]:
        """Return the names of all DAGs, as first declared."""
        return self.registry.list_dags()

    def list_tasks(self, dag_name: str) -> list[str]:
        """Return the names of a DAG's tasks, in topological order.

        Raises:
            UnknownDagError: There is no such DAG.
            GraphError: The DAG has mistakes.
        """
        return list(self.graph(dag_name).names)

    def display_dag(
        self,
        dag_name: str,
        *,
        style: GraphStyle = "tree",
        run_id: str | None = None,
        ascii_only: bool = False,
    ) -> str:
        """Return a picture of a DAG in text.

        Args:
            dag_name: The DAG.
            style: ``"tree"`` for people, ``"mermaid"`` or ``"dot"`` for programs that draw.
            run_id: Show this run's statuses and durations on the nodes.
            ascii_only: Draw a tree of ASCII characters alone.

        Raises:
            UnknownDagError: There is no such DAG.
            UnknownRunError: There is no such run.
            ValueError: The style is unknown.
        """
        report = None if run_id is None else self.get_run_report(run_id, results=False)
        if report is not None and report["targets"] is not None:
            deps = {name: task["deps"] for name, task in report["tasks"].items()}
            teardowns = None
        else:
            graph = self.graph(dag_name)
            deps, teardowns = graph.deps(), graph.teardowns.names
        return render.graph_text(
            dag_name, deps, style=style, report=report, teardowns=teardowns, ascii_only=ascii_only
        )

    def get_run_report(self, run_id: str, *, results: bool = True) -> RunReport:
        """Return the report of a run; see :class:`flowrun.report.RunReport`.

        Args:
            run_id: The run.
            results: ``False`` leaves the results in the store, so that none is decoded.

        Raises:
            UnknownRunError: There is no such run.
        """
        report = build_report(self._parts.history.load(run_id, results=results))
        return cast("RunReport", render.ShownReport(report))

    def explain(self, run_id: str, task: str | None = None) -> render.Explanation:
        """Return where the time of a run, or of one of its tasks, went: parts, a text to print."""
        return render.explain(self.get_run_report(run_id, results=False), task)

    def report_text(self, run_id: str, *, width: int = 80) -> str:
        """Return the report of a run as a plain table of ``width`` columns, without results."""
        report = self.get_run_report(run_id, results=False)
        return render.report_table(report, width=width, usual=_usual_s(self._parts, report))

    def report_html(self, run_id: str) -> str:
        """Return the report of a run as one self-contained HTML page.

        Of each result in a SQLite store it reads only the beginning, and decodes no pickle.
        """
        peek = getattr(self._parts.store, "stored_results", None)
        report = self.get_run_report(run_id, results=peek is None)
        stored = None if peek is None else render.stored_previews(report, peek)
        return render.report_html(report, stored=stored, usual=_usual_s(self._parts, report))

    def list_runs(
        self,
        dag_name: str | None = None,
        status: str | None = None,
        limit: int | None = _DEFAULT_LIST_LIMIT,
        before: str | float | None = None,
    ) -> list[RunSummary]:
        """Return runs, newest first, without their tasks and results.

        Args:
            dag_name: Only runs of this DAG.
            status: Only runs of this status.
            limit: The most runs to return; ``None`` for all.
            before: Only runs older than this run id, or created before this epoch time.

        Raises:
            ValueError: The status is unknown, or the limit is below 1.
            UnknownRunError: ``before`` is an unknown run id.
        """
        return self._parts.history.list_runs(dag_name, status, limit, before)

    def prune_runs(self, *, keep_last: int | None = None, older_than_s: float | None = None) -> int:
        """Delete finished runs and free their space; return how many were deleted.

        Thousands of runs take a while; on an event loop call it with ``asyncio.to_thread``.

        Args:
            keep_last: Keep this many of the newest finished runs of each DAG.
            older_than_s: Delete only runs created longer ago than this many seconds.

        Raises:
            TypeError: ``keep_last`` is not an ``int``.
            ValueError: Neither is given, or one is negative.
        """
        return self._parts.history.prune(keep_last, older_than_s)

    def close(self, *, drain: bool = False) -> None:
        """Cancel the runs that are alive, wait for them, and release threads and journal.

        Called on the event loop of a run, it cannot wait for that run, which ends when the loop
        goes on; ``async with engine`` and ``await engine.aclose()`` do wait. Nor does it wait
        for a run whose loop has stopped, as after a Ctrl-C in ``run_until_complete``.
        Reports can still be read, and closing twice is fine.

        Args:
            drain: ``True`` lets the runs end, however long they take. Meanwhile only their tasks
                can start others.

        Raises:
            WrongCallError: A task closes the engine with ``drain=True``.
        """
        self._parts.lifecycle.close(drain=drain)

    async def aclose(self, *, drain: bool = False, timeout_s: float | None = None) -> None:
        """Close the engine, and wait for its runs without blocking the event loop.

        Args:
            drain: As for :meth:`close`.
            timeout_s: With ``drain``, the seconds after which runs that still go on are cancelled.
        """
        await self._parts.lifecycle.aclose(drain=drain, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        """Return the engine; leaving closes it."""
        self.require_open("enter it")
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the engine; leaving closes it."""
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        """Close the engine."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show its DAGs."""
        state = "closed" if self._parts.lifecycle.is_closed else "open"
        return f"<Engine {state}, DAGs: {listed(self.list_dags())}>"

    def require_open(self, action: str) -> None:
        """Refuse to do something once the engine is closed.

        Raises:
            EngineClosedError: It is closed.
        """
        self._parts.lifecycle.require_open(action)

    def graph(self, dag_name: str) -> Graph:
        """Return the validated graph of a DAG; built once, until the registry changes."""
        return self._parts.graphs.get(dag_name)


def _usual_s(parts: Parts, report: RunReport) -> float | None:
    """Return what the runs of the report's DAG usually take."""
    return render.usual_s(report, parts.history.last_successes(report["dag_name"]))
