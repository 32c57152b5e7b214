"""What all runs of one engine share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from flowrun.config import SchedulerConfig
    from flowrun.hooks import HookDispatcher
    from flowrun.state.journal import Journal


@dataclass(frozen=True)
class Services:
    """What all runs of one engine share.

    Attributes:
        pools: Executors by name, the engine's own or handed-in one under ``None``; each with
            its kind (see :meth:`PoolAttempt.start`).
        encoders: Where large results of async tasks are encoded.
        abandoned: Attempts that were given up and whose code still runs.
    """

    config: SchedulerConfig
    journal: Journal
    hooks: HookDispatcher
    pools: Mapping[str | None, tuple[Executor, str]]
    encoders: Executor
    log: logging.Logger
    redact: Callable[[str], str] | None
    abandoned: set[Any] = field(default_factory=set[Any])
