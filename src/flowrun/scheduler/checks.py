"""Check what a caller gives to an engine or a run, before anything starts."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import TYPE_CHECKING

from flowrun.config import SchedulerConfig
from flowrun.context import RunContext
from flowrun.errors import ContextError, DefinitionError, listed
from flowrun.policy import checked_timeout
from flowrun.registry import TaskRegistry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from flowrun.graph import Graph
    from flowrun.state import StateStoreProtocol

_LONGEST_RUN_ID = 200


def check_parts(registry: object, config: object, logger: object, redact: object) -> None:
    """Refuse parts of an engine that are of the wrong type; ``None`` stands for a default."""
    for name, part, fits, kind in (
        ("registry", registry, isinstance(registry, TaskRegistry), "a TaskRegistry"),
        ("config", config, isinstance(config, SchedulerConfig), "a SchedulerConfig"),
        ("logger", logger, callable(getattr(logger, "isEnabledFor", None)), "a logging.Logger"),
        ("redact", redact, callable(redact), "a function from text to text"),
    ):
        if part is not None and not fits:
            msg = f"{name}= takes {kind}, not {part!r:.80}"
            raise TypeError(msg)


def checked_store(store: StateStoreProtocol) -> StateStoreProtocol:
    """Return the store, unless it lacks methods of the protocol."""
    methods = ("blocking", "create_run", "save", "load_run", "load_results", "list_runs")
    missing = [name for name in methods if not hasattr(store, name)]
    if isinstance(store, type):
        msg = f"state_store= takes a store, not the class {store.__name__}: make one of it"
    elif isinstance(store, str | PathLike):
        msg = f"state_store= takes a StateStoreProtocol: SqliteStateStore({str(store)!r})"
    elif missing:
        kind = type(store).__name__
        msg = f"state_store= takes a StateStoreProtocol; {kind} lacks {', '.join(missing)}"
    else:
        return store
    raise TypeError(msg)


def checked_run_id(run_id: object) -> str:
    """Return a new run's id, unless it cannot be stored or shown."""
    if not isinstance(run_id, str):
        msg = f"SchedulerConfig.new_run_id must return a str, not {type(run_id).__name__}"
        raise TypeError(msg)
    if not run_id.isprintable() or not 0 < len(run_id) <= _LONGEST_RUN_ID:
        msg = (
            f"SchedulerConfig.new_run_id must return 1 to {_LONGEST_RUN_ID} printable characters,"
            f" not {run_id!r:.80}"
        )
        raise DefinitionError(msg)
    return run_id


def with_kind(name: str, pool: Executor | None) -> tuple[Executor, str]:
    """Return an executor and its kind, which decides how calls are submitted to it."""
    if pool is None or isinstance(pool, type) or not callable(getattr(pool, "submit", None)):
        msg = f"executor {name!r} must be a concurrent.futures.Executor, not {pool!r}"
        raise TypeError(msg)
    if isinstance(pool, ThreadPoolExecutor):
        return pool, "thread"
    # Looked up by name: importing them here would load multiprocessing for everybody.
    for module, name_of_class, kind in (
        ("concurrent.futures.process", "ProcessPoolExecutor", "process"),
        ("flowrun.executors.process_per_attempt", "ProcessPerAttemptExecutor", "fresh process"),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(pool, getattr(loaded, name_of_class)):
            return pool, kind
    return pool, "other"


def check_context(graph: Graph, context: object) -> None:
    """Refuse what is not a ``RunContext``, and a missing one if a task needs it."""
    if context is None and graph.context_tasks:
        tasks = listed(graph.context_tasks)
        problem = f"task(s) {tasks} ask for a RunContext, and none was given; pass"
    elif context is not None and not isinstance(context, RunContext):
        problem = f"context must be a RunContext, not {type(context).__name__}; wrap it:"
    else:
        return
    msg = f"DAG {graph.dag_name!r}: {problem} context=RunContext(...)"
    raise ContextError(msg)


def check_run_timeout(graph: Graph, timeout_s: object) -> None:
    """Refuse a time limit that is not a number, not finite or not above 0."""
    try:
        checked_timeout(timeout_s)
    except (TypeError, ValueError) as error:
        msg = f"DAG {graph.dag_name!r}: {error}"
        raise type(error)(msg) from None


def check_drain_timeout(timeout_s: object, *, drain: bool) -> None:
    """Refuse a time limit that is no number, or that is given without ``drain=True``."""
    checked_timeout(timeout_s)
    if timeout_s is not None and not drain:
        msg = "timeout_s says how long runs may take to end; use it with drain=True"
        raise ValueError(msg)


def checked_metadata(metadata: Mapping[str, object] | None) -> dict[str, object]:
    """Return a copy of the metadata, unless JSON would change it."""
    if metadata is None:
        return {}
    import json  # noqa: PLC0415 - only for those who use metadata

    try:
        given = dict(metadata)
        plain: dict[str, object] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"metadata must be a mapping of JSON values: {error}"
        raise DefinitionError(msg) from error
    if plain != given:
        msg = "metadata must be a mapping of JSON values that come back as they were"
        raise DefinitionError(msg)
    return plain
