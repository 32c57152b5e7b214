"""Start runs: the one way of ``run_once``, ``run_subgraph`` and ``resume``."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from flowrun.context import CURRENT
from flowrun.scheduler.checks import checked_metadata, checked_run_id
from flowrun.scheduler.nesting import Nesting, end_with
from flowrun.scheduler.options import check_options
from flowrun.scheduler.run import Run
from flowrun.state import RunRecord, TaskRecord
from flowrun.state.journal import store_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrun.context import Attempt, RunContext
    from flowrun.graph import Graph
    from flowrun.scheduler.lifecycle import Lifecycle
    from flowrun.scheduler.options import RunOptions
    from flowrun.scheduler.services import Services
    from flowrun.state import StateStoreProtocol


class Starter:
    """Create the runs of one engine and carry them out."""

    def __init__(
        self, store: StateStoreProtocol, services: Services, lifecycle: Lifecycle, nesting: Nesting
    ) -> None:
        self.store = store
        self.services = services
        self.lifecycle = lifecycle
        self._nesting = nesting

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
        )

    async def execute(
        self,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        options: RunOptions,
        values: Mapping[str, object] | None = None,
    ) -> str:
        """Create a run, carry it out, and return its id; :meth:`new_record` has checked it."""
        self.lifecycle.end_lost()
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            caller, is_cancelled_with = self._caller(loop)
            if caller is not None:
                record = record._replace(started_by=caller.run_id)
            limits = self._nesting.enter(caller, stack)
            fails_fast = options.get("fail_fast", False)
            run = Run(
                self.services, graph, record, context, limits, values or {}, fails_fast=fails_fast
            )
            stack.enter_context(self.lifecycle.alive(run, loop))
            if caller is not None and not is_cancelled_with:
                end_with(caller, run.request_cancel, stack)
            await run.create(partial(self._create, record))
            await run.execute(options.get("timeout_s"))
        return record.run_id

    def _create(self, record: RunRecord) -> None:
        """Create a run in the store; report its errors as a store's errors."""
        try:
            self.store.create_run(record)
        except Exception as error:
            clear = store_error(error, record, "created")
            if clear is error:
                raise
            raise clear from error

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
