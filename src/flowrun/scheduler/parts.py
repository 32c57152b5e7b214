"""The parts of an engine, wired together; a forked child gets new ones."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flowrun.executors import InheritedPool, WorkerThreads
from flowrun.forks import call_in_children
from flowrun.graph import Graphs
from flowrun.hooks import HookDispatcher
from flowrun.scheduler.checks import with_kind
from flowrun.scheduler.history import History
from flowrun.scheduler.lifecycle import Lifecycle
from flowrun.scheduler.limits import SharedLimits
from flowrun.scheduler.nesting import Nesting
from flowrun.scheduler.resuming import Resumer
from flowrun.scheduler.services import Services
from flowrun.scheduler.starting import Starter
from flowrun.state.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from flowrun.config import Limit, SchedulerConfig
    from flowrun.hooks import RunHook
    from flowrun.registry import TaskRegistry
    from flowrun.report import RunReport
    from flowrun.state import StateStoreProtocol

_HOOK_THREADS = 32
_LOST_IN_CHILDREN = ("thread", "process")
"""Kinds of pools whose workers a forked child does not have, nor ever gets."""


class Parts:
    """The parts of one engine.

    Args:
        registry: The tasks.
        store: Where runs are kept.
        max_workers: How many threads the engine has for tasks, if it is given no ``executor``.
        executor: Where sync tasks run instead.
        executors: Further executors, by name.
        hooks: Handlers of the runs' events.
        logger: Used by every part in place of the ``flowrun`` loggers.
        redact: What error texts go through.
        config: The finer settings.
        limits: The named limits.

    Attributes:
        report: Returns the report of a run; the engine sets it.
    """

    def __init__(  # noqa: PLR0913 - everything an engine is wired of
        self,
        *,
        registry: TaskRegistry,
        store: StateStoreProtocol,
        max_workers: int,
        executor: Executor | None,
        executors: Mapping[str, Executor],
        hooks: Sequence[RunHook],
        logger: logging.Logger | None,
        redact: Callable[[str], str] | None,
        config: SchedulerConfig,
        limits: Mapping[str, Limit],
    ) -> None:
        self.report: Callable[[str], RunReport] | None = None
        self.registry = registry
        self.store = store
        self._max_workers = max_workers
        self._pools: dict[str | None, tuple[Executor, str]] = {}
        if executor is not None:
            self._pools[None] = with_kind("executor", executor)
        self._pools.update({name: with_kind(name, pool) for name, pool in executors.items()})
        self._logger = logger
        self._redact = redact
        self._config = config
        self._limits = limits
        self.graphs = Graphs(registry, list(executors), limits, self._log("engine"))
        self._wire(hooks)
        call_in_children(self._start_over)
        self.history.report_recovered()

    def _read_report(self, run_id: str) -> RunReport:
        assert self.report is not None  # noqa: S101 - the engine sets it
        return self.report(run_id)

    def _log(self, part: str) -> logging.Logger:
        return self._logger or logging.getLogger(f"flowrun.{part}")

    def _wire(self, hooks: Sequence[RunHook]) -> None:
        """Make the parts that have locks, threads or runs."""
        config, redact, log = self._config, self._redact, self._log
        hook_threads = WorkerThreads(_HOOK_THREADS)
        workers = None if None in self._pools else WorkerThreads(self._max_workers)
        pools = self._pools if workers is None else {None: (workers, "thread"), **self._pools}
        self.services = Services(
            config=config,
            journal=Journal(self.store, log("journal"), redact),
            hooks=HookDispatcher(hooks, hook_threads, config.hook_timeout_s, log("hooks"), redact),
            pools=pools,
            encoders=hook_threads,
            log=log("scheduler"),
            redact=redact,
        )
        owned = (hook_threads,) if workers is None else (workers, hook_threads)
        self.lifecycle = Lifecycle(self.services, owned, log("engine"))
        limits = SharedLimits(config.max_parallel, self._limits)
        nesting = Nesting(limits, workers, hook_threads)
        starter = self.starter = Starter(
            self.store, self.services, self.lifecycle, nesting, self._read_report
        )
        self.resumer = Resumer(starter, self.graphs, log("engine"))
        self.history = History(self.store, self.services, self.lifecycle)

    def _start_over(self) -> None:
        """Forget, in a forked child, the runs: they, their slots and threads are the parent's."""
        parents = self.lifecycle
        if parents.has_run:
            self._pools = {
                name: (InheritedPool(pool), "other") if kind in _LOST_IN_CHILDREN else (pool, kind)
                for name, (pool, kind) in self._pools.items()
            }
        self._wire(self.services.hooks.hooks)
        self.lifecycle.is_closed = parents.is_closed
