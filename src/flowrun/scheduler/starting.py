"""Start runs: the one way of ``run_once``, ``run_subgraph`` and ``resume``."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from flowrun.context import CURRENT
from flowrun.scheduler.checks import (
    check_context,
    check_run_timeout,
    checked_metadata,
    checked_run_id,
)
from flowrun.scheduler.nesting import Nesting, end_with
from flowrun.scheduler.parameters import checked_params
from flowrun.scheduler.run import Run
from flowrun.scheduler.stand_ins import stand_ins
from flowrun.state import RunRecord, TaskRecord
from flowrun.state.journal import store_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flowrun.context import Attempt, RunContext
    from flowrun.graph import Graph
    from flowrun.scheduler.lifecycle import Lifecycle
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
        self,
        graph: Graph,
        metadata: Mapping[str, object] | None,
        params: Mapping[str, object] | None = None,
    ) -> RunRecord:
        """Return the record of a new run, in which no task has started."""
        names, config = graph.names, self.services.config
        return RunRecord(
            checked_run_id(config.new_run_id()),
            graph.dag_name,
            config.clock.time(),
            dict(zip(names, map(TaskRecord, names, graph.dependency_names), strict=True)),
            metadata=checked_metadata(metadata),
            targets=graph.targets,
            params=checked_params(graph, params),
            overridden=graph.overridden,
        )

    async def execute(  # noqa: PLR0913 - the options of a run
        self,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        timeout_s: float | None,
        values: Mapping[str, object] | None = None,
        *,
        fail_fast: bool = False,
    ) -> str:
        """Create a run, carry it out, and return its id."""
        check_context(graph, context)
        check_run_timeout(graph, timeout_s)
        if not isinstance(fail_fast, bool):
            msg = f"fail_fast must be True or False, not {fail_fast!r:.80}"
            raise TypeError(msg)
        given = stand_ins(graph, record, self.store)
        self.lifecycle.end_lost()
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            caller, is_cancelled_with = self._caller(loop)
            if caller is not None:
                record = record._replace(started_by=caller.run_id)
            uses = () if caller is None else self._uses(caller)
            limits = self._nesting.enter(caller, uses, stack)
            run = Run(
                self.services,
                graph,
                record,
                context,
                limits,
                values or {},
                fails_fast=fail_fast,
                stand_ins=given,
            )
            stack.enter_context(self.lifecycle.alive(run, loop))
            if caller is not None and not is_cancelled_with:
                end_with(caller, run.request_cancel, stack)
            await run.create(partial(self._create, record))
            await run.execute(timeout_s)
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
