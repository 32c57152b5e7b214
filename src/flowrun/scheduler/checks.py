"""What is handed to an engine or a run, checked before anything starts."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import TYPE_CHECKING

from flowrun.context import RunContext
from flowrun.errors import ContextError, DefinitionError, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from flowrun.graph import Graph
    from flowrun.state import StateStoreProtocol


_LONGEST_RUN_ID = 200


def checked_store(store: StateStoreProtocol) -> StateStoreProtocol:
    """Return the store if it can be one.

    Raises:
        TypeError: It lacks methods of the protocol.
    """
    missing = [
        name
        for name in ("blocking", "create_run", "save", "load_run", "load_results", "list_runs")
        if not hasattr(store, name)
    ]
    if isinstance(store, type):
        msg = f"state_store= takes a store, not the class {store.__name__}: make one of it"
        raise TypeError(msg)
    if missing:
        msg = (
            f"state_store= takes a StateStoreProtocol; {type(store).__name__} lacks"
            f" {', '.join(missing)}"
        )
        if isinstance(store, str | PathLike):
            msg = f"state_store= takes a StateStoreProtocol: SqliteStateStore({str(store)!r})"
        raise TypeError(msg)
    return store


def check_kinds(**parts: tuple[object, type]) -> None:
    """Refuse what is not of the type that it should be of; ``None`` stands for a default.

    Args:
        **parts: By its parameter's name, what was given and the type.

    Raises:
        TypeError: It is not; the message names the parameter.
    """
    for name, (value, kind) in parts.items():
        if value is not None and not isinstance(value, kind):
            msg = f"{name}= takes a {kind.__name__}, not {value!r:.80}"
            raise TypeError(msg)


def check_logger(logger: object) -> None:
    """Refuse what cannot be written to like a logger of the standard library.

    Raises:
        TypeError: It cannot.
    """
    if logger is not None and not callable(getattr(logger, "isEnabledFor", None)):
        msg = f"logger= takes a logging.Logger, not {logger!r:.80}"
        raise TypeError(msg)


def checked_redact(redact: Callable[[str], str] | None) -> Callable[[str], str] | None:
    """Return the function if it can be called.

    Raises:
        TypeError: It cannot.
    """
    if redact is not None and not callable(redact):
        msg = f"redact= takes a function from text to text, not {redact!r:.80}"
        raise TypeError(msg)
    return redact


def checked_run_id(run_id: object) -> str:
    """Return a new run's id if it can be one.

    Raises:
        TypeError: It is no text.
        DefinitionError: It is empty, too long, or cannot be stored or shown.
    """
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
    """Return the executor with the way in which calls are handed to it."""
    if not callable(getattr(pool, "submit", None)) or isinstance(pool, type):
        msg = f"executor {name!r} must be a concurrent.futures.Executor, not {pool!r}"
        raise TypeError(msg)
    assert pool is not None  # noqa: S101 - it has a submit method
    if isinstance(pool, ThreadPoolExecutor):
        return pool, "thread"
    # Asked by name: importing them here would load multiprocessing for everybody.
    for module, name_of_class, kind in (
        ("concurrent.futures.process", "ProcessPoolExecutor", "process"),
        ("flowrun.executors.process_per_attempt", "ProcessPerAttemptExecutor", "fresh process"),
    ):
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(pool, getattr(loaded, name_of_class)):
            return pool, kind
    return pool, "other"


def check_context(graph: Graph, context: object) -> None:
    """Refuse a context that is none, and none where one is needed.

    Raises:
        ContextError: Names the DAG and the tasks.
    """
    if context is None:
        if graph.context_tasks:
            msg = (
                f"DAG {graph.dag_name!r}: task(s) {listed(graph.context_tasks)} ask for a"
                " RunContext, and none was given; pass context=RunContext(...)"
            )
            raise ContextError(msg)
    elif not isinstance(context, RunContext):
        msg = (
            f"DAG {graph.dag_name!r}: context must be a RunContext, not"
            f" {type(context).__name__}; wrap it: context=RunContext(...)"
        )
        raise ContextError(msg)


def check_run_timeout(graph: Graph, timeout_s: object) -> None:
    """Refuse a deadline that cannot be kept.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite, or not above 0.
    """
    if timeout_s is None:
        return
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        msg = f"DAG {graph.dag_name!r}: timeout_s must be seconds or None, not {timeout_s!r:.80}"
        raise TypeError(msg)
    if not math.isfinite(timeout_s) or timeout_s <= 0:
        msg = (
            f"DAG {graph.dag_name!r}: timeout_s must be finite and above 0, not {timeout_s!r};"
            " use None for no limit"
        )
        raise ValueError(msg)


def checked_metadata(metadata: Mapping[str, object] | None) -> dict[str, object]:
    """Return the metadata if it survives JSON unchanged.

    Raises:
        DefinitionError: It does not.
    """
    if metadata is None:
        return {}
    import json  # noqa: PLC0415 - only for those who use metadata

    try:
        plain = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"metadata must be a mapping of JSON values: {error}"
        raise DefinitionError(msg) from error
    if plain != dict(metadata):
        msg = "metadata must be a mapping of JSON values that come back as they were"
        raise DefinitionError(msg)
    return dict(plain)
