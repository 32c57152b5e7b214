"""``Engine``, ``DagScope`` and ``build_default_engine``: the parts picked and wired."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, cast, overload

from flowrun.config import SchedulerConfig
from flowrun.context import CURRENT, RunContext
from flowrun.dag_scope import DagScope
from flowrun.errors import (
    DefinitionError,
    ResumeError,
    TaskTypeError,
    UnknownDagError,
    UnknownRunError,
    listed,
)
from flowrun.executors import InheritedPool, WorkerThreads
from flowrun.forks import call_in_children
from flowrun.graph import Graph
from flowrun.hooks import HookDispatcher, RunHook, checked_hooks
from flowrun.registry import (
    TaskFunction,
    TaskOptions,
    TaskRegistry,
    TaskTemplate,
    TemplateOptions,
    decorate,
)
from flowrun.report import RunReport, build_report
from flowrun.scheduler.checks import (
    check_context,
    check_kinds,
    check_logger,
    check_run_timeout,
    checked_metadata,
    checked_redact,
    checked_run_id,
    checked_store,
    with_kind,
)
from flowrun.scheduler.inbox import wait_for_answer
from flowrun.scheduler.lifecycle import Lifecycle
from flowrun.scheduler.limits import SharedLimits
from flowrun.scheduler.nesting import Nesting, end_with
from flowrun.scheduler.notifier import Notifier
from flowrun.scheduler.resume_plan import (
    find_resumable,
    inputs_to_load,
    plan_resume,
    take_over,
)
from flowrun.scheduler.run import Run, Services
from flowrun.state import (
    InMemoryStateStore,
    RunQuery,
    RunRecord,
    RunStatus,
    TaskRecord,
    TaskStatus,
)
from flowrun.state.journal import Journal, store_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from types import TracebackType

    from flowrun.context import Attempt
    from flowrun.scheduler import ResumePlan
    from flowrun.state import RunSummary, StateStoreProtocol

F = TypeVar("F", bound=TaskFunction)
GraphStyle = Literal["tree", "mermaid", "dot"]

_HOOK_THREADS = 32
_DEFAULT_LIST_LIMIT = 100
_LOST_IN_CHILDREN = ("thread", "process")
"""Kinds of pools whose workers a forked child does not have, nor ever gets."""


def build_default_engine(  # noqa: PLR0913 - the contract's parameters and their extensions
    executor: Executor | None = None,
    max_workers: int = 8,
    max_parallel: int = 4,
    logger: logging.Logger | None = None,
    hooks: Sequence[RunHook] | None = None,
    state_store: StateStoreProtocol | None = None,
    *,
    executors: Mapping[str, Executor] | None = None,
    registry: TaskRegistry | None = None,
    redact: Callable[[str], str] | None = None,
    config: SchedulerConfig | None = None,
) -> Engine:
    """Build an engine with sensible parts.

    Args:
        executor: Where sync tasks run; never shut down by the engine. By default the engine
            has worker threads of its own.
        max_workers: How many of those threads there are at most.
        max_parallel: Tasks that run at the same time, over all runs of the engine; 1 or more.
        logger: Used by every part in place of the ``flowrun`` loggers.
        hooks: Handlers of the runs' events.
        state_store: Where runs are kept; in memory by default.
        executors: Further executors for sync tasks, by the name that ``@task(executor=...)``
            asks for; never shut down by the engine.
        registry: The tasks; a new, empty registry by default.
        redact: Is given every error text before it is stored, logged or shown to a hook, and
            returns what may be seen of it.
        config: Finer settings; its ``max_parallel`` is replaced by the one given here.

    Raises:
        ValueError: ``max_parallel`` or ``max_workers`` is below 1.
        TypeError: An executor, hook or store is not one.

    Example:
        >>> engine = build_default_engine(max_parallel=2)
        >>> @engine.task(dag="hello")
        ... def greet() -> str:
        ...     return "hello"
        >>> run_id = asyncio.run(engine.run_once("hello"))
        >>> engine.get_run_report(run_id)["tasks"]["greet"]["result"]
        'hello'
        >>> engine.close()
    """
    check_kinds(registry=(registry, TaskRegistry), config=(config, SchedulerConfig))
    check_logger(logger)
    settings = config or SchedulerConfig()
    return Engine(
        registry=TaskRegistry() if registry is None else registry,
        store=InMemoryStateStore() if state_store is None else state_store,
        executor=executor,
        max_workers=max_workers,
        executors=executors or {},
        hooks=hooks or (),
        logger=logger,
        redact=checked_redact(redact),
        config=dataclasses.replace(settings, max_parallel=max_parallel),
    )


class Engine:
    """Declare tasks, run DAGs, read what happened. Made by :func:`build_default_engine`.

    An engine may be used from several event loops in several threads at once.
    """

    def __init__(  # noqa: PLR0913 - everything it is wired of
        self,
        *,
        registry: TaskRegistry,
        store: StateStoreProtocol,
        executor: Executor | None,
        max_workers: int,
        executors: Mapping[str, Executor],
        hooks: Sequence[RunHook],
        logger: logging.Logger | None,
        redact: Callable[[str], str] | None,
        config: SchedulerConfig,
    ) -> None:
        self.registry = registry
        self._log = logger or logging.getLogger("flowrun.engine")
        self._logger = logger
        self._store = checked_store(store)
        self._config = config
        self._redact = redact
        self._max_workers = max_workers
        # Those that were handed in; without one the engine has worker threads of its own.
        self._pools: dict[str | None, tuple[Executor, str]] = {}
        if executor is not None:
            self._pools[None] = with_kind("executor", executor)
        self._pools.update({name: with_kind(name, pool) for name, pool in executors.items()})
        self._has_run = False
        self._wire(checked_hooks(hooks))
        self._graphs: dict[str, tuple[int, Graph]] = {}
        self._told_unscoped = -1
        call_in_children(self._start_over)
        self._report_recovered()

    def _wire(self, hooks: Sequence[RunHook]) -> None:
        """Make the parts that have locks, threads or runs."""
        logger, config = self._logger, self._config
        hook_threads = WorkerThreads(_HOOK_THREADS)
        workers = None if None in self._pools else WorkerThreads(self._max_workers)
        own: dict[str | None, tuple[Executor, str]] = {}
        if workers is not None:
            own[None] = (workers, "thread")
        self._services = Services(
            config=config,
            journal=Journal(
                self._store, logger or logging.getLogger("flowrun.journal"), self._redact
            ),
            hooks=HookDispatcher(
                hooks,
                hook_threads,
                config.hook_timeout_s,
                logger or logging.getLogger("flowrun.hooks"),
                self._redact,
            ),
            pools=own | self._pools,
            encoders=hook_threads,
            log=logger or logging.getLogger("flowrun.scheduler"),
            redact=self._redact,
        )
        self._nesting = Nesting(SharedLimits(config.max_parallel), workers, hook_threads)
        owned = (hook_threads,) if workers is None else (workers, hook_threads)
        self._lifecycle = Lifecycle(self._services, owned, self._log)

    def _start_over(self) -> None:
        """Forget, in a forked child, the runs: they, their slots and threads are the parent's."""
        is_closed = self._lifecycle.is_closed
        if self._has_run:
            self._pools = {
                name: (InheritedPool(pool) if kind in _LOST_IN_CHILDREN else pool, kind)
                for name, (pool, kind) in self._pools.items()
            }
        self._wire(self.hooks)
        self._lifecycle.is_closed = is_closed

    # -- declaring ------------------------------------------------------------------------

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
            **options: See :class:`flowrun.registry.task_registry.TaskOptions`.

        Raises:
            TaskDefinitionError: An option or the callable is wrong.
        """
        self.require_open("register a task")
        return decorate(self.registry, function_or_name, options)

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
        self.require_open("register a template")
        if function is None:
            return self.registry.task_template(**options)
        return self.registry.task_template(function, **options)

    def dag(self, dag_name: str) -> DagScope:
        """Return the scope of one DAG, so that its name need not be repeated.

        Raises:
            DefinitionError: A DAG cannot have that name.
        """
        return DagScope(self, dag_name)

    @property
    def hooks(self) -> tuple[RunHook, ...]:
        """The hooks that are called, in their order."""
        return self._services.hooks.hooks

    def add_hook(self, hook: RunHook) -> None:
        """Add a hook for the runs that start from now on.

        Raises:
            TypeError: It has no handler, or is a class.
        """
        for checked in checked_hooks([hook]):
            self._services.hooks.add(checked)

    # -- running --------------------------------------------------------------------------

    async def run_once(
        self,
        dag_name: str,
        context: RunContext[Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Run a DAG and return the run's id, whether its tasks succeeded or not.

        Args:
            dag_name: The DAG.
            context: Handed to every task that asks for a ``RunContext``.
            timeout_s: Seconds for the whole run. When they are over it is stopped, and its
                report says so.
            metadata: JSON values that are kept with the run and shown in its report.

        Raises:
            ValueError: The DAG is unknown or has mistakes; nothing was started.
            ContextError: The context is not a ``RunContext``, or one is needed.
            EngineClosedError: The engine is closed.
            asyncio.CancelledError: The run was cancelled; it has ended.
            StoreError: The store failed; the run has ended.
        """
        self.require_open("run a DAG")
        graph = self.graph(dag_name)
        record = self._new_record(graph, metadata)
        return await self._execute(graph, record, context, timeout_s)

    async def run_subgraph(
        self,
        dag_name: str,
        targets: Sequence[str],
        context: RunContext[Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Run these tasks and everything they depend on; return the run's id.

        Args:
            dag_name: The DAG.
            targets: Names of tasks, or decorated callables; at least one.
            context: See :meth:`run_once`, as for the rest.
            timeout_s: Seconds for the whole run.
            metadata: JSON values that are kept with the run.

        Raises:
            UnknownTaskError: A target is no task of the DAG.
            ValueError: The DAG is unknown or has mistakes, or there is no target.
        """
        self.require_open("run a sub-graph")
        graph = self.graph(dag_name)
        names = self._task_names(graph, targets, "targets")
        if not names:
            msg = (
                f"DAG {dag_name!r}: targets is empty, so there is nothing to run; name at least"
                f" one of {listed(graph.names)}, or use run_once() for the whole DAG"
            )
            raise DefinitionError(msg)
        graph = graph.subgraph(names)
        record = self._new_record(graph, metadata)
        return await self._execute(graph, record, context, timeout_s)

    async def resume(
        self,
        run_id: str,
        from_tasks: Sequence[str] | None = None,
        context: RunContext[Any] | None = None,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> str:
        """Start a new run that does what an ended one left undone; return the new run's id.

        What succeeded is kept, with its result. See :meth:`plan_resume`.

        Args:
            run_id: The run to resume. If it was resumed before, the work goes on where the
                last of those runs ended.
            from_tasks: Run these again, and everything that depends on them.
            context: See :meth:`run_once`, as for the rest.
            timeout_s: Seconds for the whole run.
            metadata: JSON values that are kept with the new run.

        Raises:
            UnknownRunError: There is no such run.
            UnknownTaskError: One of ``from_tasks`` is no task of it.
            RunAliveError: It, or a run that resumes it, is still alive.
            AlreadyResumedError: A later run has finished it.
        """
        self.require_open("resume a run")

        graph, old, plan = await self._off_loop(partial(self._plan, run_id, from_tasks))
        self._warn_of_abandoned(old)
        record = self._new_record(graph, old.metadata if metadata is None else metadata)
        record = take_over(record, graph, old, plan)
        record = record._replace(sole_heir=not from_tasks and old.status is not RunStatus.SUCCESS)
        values: dict[str, object] = {}
        wanted = inputs_to_load(graph, plan)
        if wanted:
            values = await self._off_loop(partial(self._store.load_results, old.run_id, wanted))
        return await self._execute(graph, record, context, timeout_s, values)

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

    def plan_resume(self, run_id: str, from_tasks: Sequence[str] | None = None) -> ResumePlan:
        """Say what :meth:`resume` would do, per task: keep or run, and why.

        Raises:
            UnknownRunError: There is no such run.
            UnknownTaskError: One of ``from_tasks`` is no task of it.
            RunAliveError: It, or a run that resumes it, is still alive.
            AlreadyResumedError: A later run has finished it.
        """
        return self._plan(run_id, from_tasks)[2]

    def cancel(self, run_id: str) -> bool:
        """Cancel a run of this engine, from any thread; return whether it was alive.

        The code that awaits the run gets a ``RunCancelledError`` once the run has ended.

        Raises:
            UnknownRunError: The engine and its store have no such run.
        """
        alive = self._lifecycle.find(run_id)
        if alive is None:
            self._store.load_run(run_id, results=False)
            return False
        alive[0].request_cancel("engine.cancel() was called")
        return True

    # -- looking --------------------------------------------------------------------------

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
            ascii_only: Draw a tree for screens that can show nothing else.

        Raises:
            UnknownDagError: There is no such DAG.
            UnknownRunError: There is no such run.
            ValueError: The style is unknown.
        """
        from flowrun import render  # noqa: PLC0415 - drawing is not needed to run

        report = None if run_id is None else self.get_run_report(run_id, results=False)
        if report is not None and report["targets"] is not None:
            deps = {name: task["deps"] for name, task in report["tasks"].items()}
        else:
            deps = self.graph(dag_name).deps()
        return render.graph_text(dag_name, deps, style=style, report=report, ascii_only=ascii_only)

    def get_run_report(self, run_id: str, *, results: bool = True) -> RunReport:
        """Return what is known of a run; see :class:`flowrun.report.RunReport`.

        Args:
            run_id: The run.
            results: ``False`` leaves the results in the store, so that none is decoded.

        Raises:
            UnknownRunError: There is no such run.
        """
        if not isinstance(run_id, str):
            raise UnknownRunError(run_id)
        self._lifecycle.end_lost()
        run = self._services.journal.unsaved(run_id)
        if run is None:
            alive = self._lifecycle.find(run_id)
            running = {} if alive is None else alive[0].running()
            run = self._store.load_run(run_id, results=results)
            # The store learns of a start when the attempt has run for a while.
            started = {
                name: task
                for name, task in running.items()
                if run.tasks[name].status is TaskStatus.PENDING
            }
            run = run._replace(tasks={**run.tasks, **started}) if started else run
        from flowrun.render import ShownReport  # noqa: PLC0415 - drawing is not needed to run

        return cast("RunReport", ShownReport(build_report(run)))

    def report_text(self, run_id: str, *, width: int = 80) -> str:
        """Return the report of a run as a plain table for people, without results.

        Args:
            run_id: The run.
            width: Columns that it may take.

        Raises:
            UnknownRunError: There is no such run.
        """
        from flowrun import render  # noqa: PLC0415 - drawing is not needed to run

        return render.report_table(self.get_run_report(run_id, results=False), width=width)

    def report_html(self, run_id: str) -> str:
        """Return the report of a run as one self-contained HTML page.

        Of what a SQLite store keeps only the beginning is read, and no pickle is decoded.

        Raises:
            UnknownRunError: There is no such run.
        """
        from flowrun import render  # noqa: PLC0415 - drawing is not needed to run

        peek = getattr(self._store, "stored_results", None)
        report = self.get_run_report(run_id, results=peek is None)
        stored = None if peek is None else render.stored_previews(report, peek)
        return render.report_html(report, stored=stored)

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
            limit: At most so many; ``None`` for all.
            before: Only runs older than this run id, or created before this epoch time.

        Raises:
            ValueError: The status or the limit cannot be right.
            UnknownRunError: ``before`` is the id of no run.
        """
        if limit is not None and limit < 1:
            msg = f"limit must be 1 or more, or None for all runs, not {limit}"
            raise ValueError(msg)
        wanted = None if status is None else RunStatus(status)
        self._lifecycle.end_lost()
        self._services.journal.save_unsaved()
        return self._store.list_runs(RunQuery(dag_name, wanted, None, limit, before))

    def prune_runs(self, *, keep_last: int | None = None, older_than_s: float | None = None) -> int:
        """Delete finished runs and give their space back; return how many were deleted.

        Thousands of them take a while; on an event loop call it by ``asyncio.to_thread``.

        Args:
            keep_last: Keep this many of the newest finished runs of each DAG.
            older_than_s: Delete only runs created longer ago than this many seconds.

        Raises:
            TypeError: ``keep_last`` is no whole number.
            ValueError: Neither is given, or one is negative.
        """
        if keep_last is None and older_than_s is None:
            msg = "say what to delete: prune_runs(keep_last=...), prune_runs(older_than_s=...)"
            raise ValueError(msg)
        if keep_last is not None and type(keep_last) is not int:
            msg = f"keep_last must be a whole number of runs, not {keep_last!r:.80}"
            raise TypeError(msg)
        if (keep_last or 0) < 0 or not (older_than_s or 0) >= 0:
            msg = "keep_last and older_than_s must be 0 or more"
            raise ValueError(msg)
        created_before = None if older_than_s is None else self._config.clock.time() - older_than_s
        prune = partial(self._store.prune_runs, keep_last=keep_last, created_before=created_before)
        return self._services.journal.call(prune).result()

    # -- closing --------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel the runs that are alive, wait for them, and give up what the engine owns.

        Called on the event loop of a run it cannot wait for that run; it then ends as the
        loop goes on. ``async with engine`` and ``await engine.aclose()`` do wait. So it is
        where a run's loop stands still, as after a Ctrl-C in ``run_until_complete``.
        Closing twice is fine. Reports can still be read.
        """
        self._lifecycle.close()

    async def aclose(self) -> None:
        """Close the engine, and wait for its runs without blocking the event loop."""
        await self._lifecycle.aclose()

    async def __aenter__(self) -> Self:
        """Return the engine; leaving closes it."""
        self.require_open("enter it")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        await self.aclose()

    def __repr__(self) -> str:
        """Show its DAGs."""
        state = "closed" if self._lifecycle.is_closed else "open"
        return f"<Engine {state}, DAGs: {listed(self.list_dags())}>"

    # -- inside ---------------------------------------------------------------------------

    def require_open(self, action: str) -> None:
        """Refuse to do something once the engine is closed.

        Raises:
            EngineClosedError: It is closed.
        """
        self._lifecycle.require_open(action)

    def graph(self, dag_name: str) -> Graph:
        """Return the validated graph of a DAG; built once, until the registry changes."""
        version = self.registry.version
        cached = self._graphs.get(dag_name) if isinstance(dag_name, str) else None
        if cached is not None and cached[0] == version:
            return cached[1]
        dags = self.registry.list_dags()
        unscoped = self.registry.list_tasks(None)
        if dag_name in dags:
            specs = self.registry.specs(dag_name)
            if unscoped and self._told_unscoped != version:
                self._told_unscoped = version
                self._log.warning(
                    "these tasks belong to no DAG and are never run: %s; give them dag=...",
                    listed(unscoped),
                )
        elif unscoped and not dags and isinstance(dag_name, str) and dag_name:
            specs = self.registry.specs(None)
        else:
            raise UnknownDagError(dag_name, dags, unscoped)
        names = [name for name in self._services.pools if name is not None]
        graph = Graph.build(dag_name, specs, self.registry, names)
        self._graphs[dag_name] = (version, graph)
        return graph

    def _task_names(self, graph: Graph, tasks: object, what: str) -> list[str]:
        if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable):
            problem = f"{what} must be a list of tasks, not {tasks!r:.80}; write {what}=[...]"
            raise TaskTypeError(what, graph.dag_name, problem)
        names: list[str] = []
        given = cast("Iterable[object]", tasks)
        for task in given:
            name = task
            if not isinstance(task, str) and callable(task):
                here = [home for _, home in self.registry.homes(task) if home in graph.index]
                if len(here) == 1:
                    name = here[0]
            known = graph.names[graph.number(name)]
            if known not in names:
                names.append(known)
        return names

    def _new_record(self, graph: Graph, metadata: Mapping[str, object] | None) -> RunRecord:
        names = graph.names
        tasks = dict(zip(names, map(TaskRecord, names, graph.dependency_names), strict=True))
        return RunRecord(
            checked_run_id(self._config.new_run_id()),
            graph.dag_name,
            self._config.clock.time(),
            tasks,
            metadata=checked_metadata(metadata),
            targets=graph.targets,
        )

    def _plan(
        self, run_id: str, from_tasks: Sequence[str] | None
    ) -> tuple[Graph, RunRecord, ResumePlan]:
        self._lifecycle.end_lost()
        self._services.journal.save_unsaved()  # the run may be one whose end was not written
        old = find_resumable(self._store, run_id, last=not from_tasks)
        graph = self.graph(old.dag_name)
        if old.targets is not None:
            targets = [name for name in old.targets if name in graph.index]
            if not targets:
                problem = f"none of its targets {listed(old.targets)} is in the DAG any more"
                raise ResumeError(old.run_id, problem)
            graph = graph.subgraph(targets)
        names = self._task_names(graph, from_tasks, "from_tasks") if from_tasks else None
        find = getattr(self._store, "unreadable_results", None)
        unreadable = () if find is None else find(old.run_id)
        return graph, old, plan_resume(graph, old, names, unreadable)

    async def _off_loop(self, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - its result
        if not self._store.blocking:
            return function()
        answer = self._services.journal.call(function)
        await wait_for_answer(answer)
        return answer.result()

    async def _execute(
        self,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        timeout_s: float | None,
        values: Mapping[str, object] | None = None,
    ) -> str:
        """Create a run and see it through: the one way of run_once, resume and run_subgraph."""
        check_context(graph, context)
        check_run_timeout(graph, timeout_s)
        self._lifecycle.end_lost()
        self._has_run = True
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            caller, is_cancelled_with = self._caller(loop)
            if caller is not None:
                record = record._replace(started_by=caller.run_id)
            limits = self._nesting.enter(caller, stack)
            run = Run(self._services, graph, record, context, limits, values or {})
            stack.enter_context(self._lifecycle.alive(run, loop))
            if caller is not None and not is_cancelled_with:
                end_with(caller, run.request_cancel, stack)
            await run.create(partial(self._create, record))
            await run.execute(timeout_s)
        return record.run_id

    def _report_recovered(self) -> None:
        """Call the hooks for the runs that opening the store has ended (D3)."""
        recovered: list[RunRecord] = getattr(self._store, "recovered", [])
        for run in recovered:
            channel = self._services.hooks.channel(contextvars.copy_context(), lambda: None)
            Notifier(run, channel, self._services.log).run_recovered()
        recovered.clear()

    def _create(self, record: RunRecord) -> None:
        """Have the store keep a new run; what it raises is reported as a store's error."""
        try:
            self._store.create_run(record)
        except Exception as error:
            clear = store_error(error, record, "created")
            if clear is error:
                raise
            raise clear from error

    def _caller(self, loop: asyncio.AbstractEventLoop) -> tuple[Attempt | None, bool]:
        """Return the attempt of this engine that is calling, if one is.

        And whether asyncio cancels what it awaits here when it is cancelled.
        """
        attempt = CURRENT.get(None)
        if attempt is None or attempt.ended:
            return None, False
        alive = self._lifecycle.find(attempt.run_id)
        if alive is None:
            return None, False
        run, home = alive
        return attempt, home is loop and run.graph.is_async[run.graph.number(attempt.task_name)]
