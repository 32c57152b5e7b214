"""Start runs: the one way of ``run_once``, ``start``, ``run_subgraph`` and ``resume``."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from flowrun.context import CURRENT
from flowrun.errors import RunFailedError, WrongCallError
from flowrun.graph import override
from flowrun.scheduler.checks import checked_metadata, checked_run_id
from flowrun.scheduler.expander import NOTHING_INHERITED
from flowrun.scheduler.handle import RunHandle
from flowrun.scheduler.lifecycle import running_loop
from flowrun.scheduler.nesting import Nesting, end_with
from flowrun.scheduler.options import check_options
from flowrun.scheduler.parameters import checked_params
from flowrun.scheduler.run import Run
from flowrun.scheduler.stand_ins import stand_ins
from flowrun.state import RunRecord, RunStatus, TaskRecord
from flowrun.state.journal import store_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from flowrun.context import Attempt, RunContext
    from flowrun.graph import Graph
    from flowrun.hooks import Event
    from flowrun.report import RunReport
    from flowrun.scheduler.expander import Inherited
    from flowrun.scheduler.lifecycle import Lifecycle
    from flowrun.scheduler.options import RunOptions
    from flowrun.scheduler.services import Services
    from flowrun.state import StateStoreProtocol


class Starter:
    """Create the runs of one engine and carry them out."""

    def __init__(
        self,
        store: StateStoreProtocol,
        services: Services,
        lifecycle: Lifecycle,
        nesting: Nesting,
        read_report: Callable[[str], RunReport],
    ) -> None:
        self.store = store
        self.services = services
        self.lifecycle = lifecycle
        self._nesting = nesting
        self._read_report = read_report

    def new_record(
        self, graph: Graph, context: RunContext[Any] | None, options: RunOptions
    ) -> RunRecord:
        """Check what a caller gave, and return the record of a run in which no task has started."""
        check_options(graph, context, options)
        names, config = graph.names, self.services.config
        return RunRecord(
            checked_run_id(config.new_run_id()),
            graph.dag_name,
            config.clock.time(),
            dict(zip(names, map(TaskRecord, names, graph.dependency_names), strict=True)),
            metadata=checked_metadata(options.get("metadata")),
            targets=graph.targets,
            sole_of_dag=options.get("if_running") == "refuse",
            params=checked_params(graph, options.get("params")),
            overridden=graph.overridden,
        )

    async def run(self, graph: Graph, context: RunContext[Any] | None, options: RunOptions) -> str:
        """Check what a caller gave, carry out a new run, and return its id."""
        graph = override(graph, options.get("overrides"))
        record = self.new_record(graph, context, options)
        return await self.execute(graph, record, context, options)

    async def execute(
        self,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        options: RunOptions,
        inherited: Inherited = NOTHING_INHERITED,
    ) -> str:
        """Create a run, carry it out, and return its id; :meth:`new_record` has checked it."""
        caller, is_cancelled_with = self._caller(asyncio.get_running_loop())
        if caller is not None:
            record = record._replace(started_by=caller.run_id)
        run, stack = self._begin(graph, record, context, options, inherited, caller=caller)
        if caller is not None and not is_cancelled_with:
            end_with(caller, run.request_cancel, stack)
        await self._carry_out(run, stack, options)
        return record.run_id

    def start(
        self, graph: Graph, context: RunContext[Any] | None, options: RunOptions
    ) -> RunHandle:
        """Have the running event loop carry out a new run; return its handle at once.

        Raises:
            WrongCallError: No event loop runs here, or a task calls.
        """
        graph = override(graph, options.get("overrides"))
        record = self.new_record(graph, context, options)
        dag = record.dag_name
        loop = running_loop()
        if loop is None:
            msg = (
                "start() needs a running event loop, and there is none here; from plain code write"
                f" report = engine.run({dag!r})"
            )
            raise WrongCallError(msg)
        if self._caller(loop)[0] is not None:
            msg = (
                "start() is refused inside a task, which could end before the run does; write"
                f" run_id = await engine.run_once({dag!r})"
            )
            raise WrongCallError(msg)
        handle = RunHandle(record, self.report, self.services.log, self.services.redact)
        about = (graph, record, context, options)
        run, stack = self._begin(*about, NOTHING_INHERITED, listener=handle.take)
        handle.begin(run, self._carry_out(run, stack, options), stack.close)
        return handle

    async def report(self, run_id: str) -> RunReport:
        """Return the report of a run; the event loop goes on meanwhile."""
        if not self.store.blocking:
            return self._read_report(run_id)
        return await asyncio.to_thread(self._read_report, run_id)

    def _begin(  # noqa: PLR0913 - what a run is made of
        self,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        options: RunOptions,
        inherited: Inherited,
        *,
        caller: Attempt | None = None,
        listener: Callable[[Event], object] | None = None,
    ) -> tuple[Run, contextlib.ExitStack]:
        """Return a run that counts as alive, and what is left when it has ended."""
        given = stand_ins(graph, record, self.store)
        self.lifecycle.end_lost()
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            uses = () if caller is None else self._uses(caller)
            limits = self._nesting.enter(caller, uses, stack)
            about = (self.services, graph, record, context, limits)
            run = Run(*about, inherited, options, listener, stand_ins=given)
            stack.enter_context(self.lifecycle.alive(run, loop))
            return run, stack.pop_all()

    async def _carry_out(self, run: Run, stack: contextlib.ExitStack, options: RunOptions) -> None:
        with stack:
            await run.create(partial(self._create, run.record))
            await run.execute(options.get("timeout_s"))
            is_failed = run.ended is not None and run.ended.status is RunStatus.FAILED
            if run.errors is not None and is_failed:
                raise RunFailedError(await self.report(run.record.run_id)) from run.errors.first

    def _create(self, record: RunRecord) -> None:
        """Create a run in the store; report its errors as a store's errors."""
        if record.sole_of_dag:  # the DAG's last run may be one whose end was not written
            self.services.journal.save_unsaved()
        try:
            self.store.create_run(record)
        except Exception as error:
            clear = store_error(error, record, "created")
            if clear is error:
                raise
            raise clear from error

    def _uses(self, caller: Attempt) -> tuple[tuple[str, int], ...]:
        """Return the limits that an attempt holds."""
        alive = self.lifecycle.find(caller.run_id)
        if alive is None:  # pragma: no cover - it has just ended
            return ()
        graph = alive[0].graph
        return graph.specs[graph.number(caller.task_name)].uses

    def _caller(self, loop: asyncio.AbstractEventLoop) -> tuple[Attempt | None, bool]:
        """Return the attempt of this engine that is calling, if there is one.

        The flag says whether asyncio cancels this call together with the attempt.
        """
        attempt = CURRENT.get(None)
        if attempt is None or attempt.ended:
            return None, False
        alive = self.lifecycle.find(attempt.run_id)
        if alive is None:
            return None, False
        run, home = alive
        return attempt, home is loop and run.graph.is_async[run.graph.number(attempt.task_name)]


def require_no_loop(dag_name: str) -> None:
    """Refuse ``engine.run`` where an event loop runs.

    Raises:
        WrongCallError: One runs here.
    """
    if running_loop() is not None:
        msg = (
            "engine.run() cannot work here, where an event loop runs already (in async code, in a"
            f" notebook); write run_id = await engine.run_once({dag_name!r}, ...)"
        )
        raise WrongCallError(msg)
