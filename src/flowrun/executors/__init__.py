"""Where sync code runs: worker threads, one process per attempt, calls to other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports
from flowrun.executors.inherited_pool import InheritedPool
from flowrun.executors.worker_jobs import Job, WorkerFuture
from flowrun.executors.worker_threads import WorkerThreads

if TYPE_CHECKING:
    from flowrun.executors.process_per_attempt import ProcessPerAttemptExecutor

__all__ = ["InheritedPool", "Job", "ProcessPerAttemptExecutor", "WorkerFuture", "WorkerThreads"]

# It loads multiprocessing, which few programs need.
__getattr__ = lazy_exports(
    __name__, {"flowrun.executors.process_per_attempt": ("ProcessPerAttemptExecutor",)}
)
