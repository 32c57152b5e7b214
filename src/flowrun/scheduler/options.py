"""``RunOptions``: the options that every way to run takes, and their checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from flowrun.errors import close_match
from flowrun.scheduler.checks import check_context, check_run_timeout, checked_metadata

if TYPE_CHECKING:
    import logging
    from collections.abc import Collection, Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.state import StateStoreProtocol


class RunOptions(TypedDict, total=False):
    """The options that every way to run takes.

    Attributes:
        timeout_s: Seconds for the whole run. The engine then stops the run, and the report
            says so.
        fail_fast: ``True`` ends the run at the first final failure: what runs is cancelled,
            the rest is skipped, and the call returns.
        metadata: JSON values that are kept with the run and shown in its report. A resumed run
            has those of the old run by default.
        params: Values for the tasks' parameters that are annotated with ``Param``, also as text.
            They are kept with the run and shown: secrets belong in the context. A resumed run
            keeps those of the old run that it is not given. What reads a replaced one runs again,
            and what depends on that.
        overrides: By task, for this run alone, a callable in place of the task's function, or a
            value in place of its result. A resume runs again what was overridden in the old run
            or is in the new one, and what depends on that.
        raise_on_failure: ``True`` raises a ``RunFailedError`` once the run has ended, if it has
            failed. By default only the report says so.
        if_running: ``"refuse"`` raises a ``RunAliveError``, and starts nothing, while another run
            of the DAG is alive, in any process that uses the same store. ``"start"``, the
            default, runs both at once.
        refresh: Names of tasks that run although their result is in the cache, or ``True`` for
            all. What they return takes its place there.
    """

    timeout_s: float | None
    fail_fast: bool
    metadata: Mapping[str, object] | None
    params: Mapping[str, object] | None
    overrides: Mapping[str, object] | None
    raise_on_failure: bool
    if_running: Literal["start", "refuse"]
    refresh: bool | Sequence[str]


_NAMES = tuple(RunOptions.__annotations__)
_FLAGS = ("fail_fast", "raise_on_failure")


def check_options(graph: Graph, context: object, options: RunOptions) -> None:
    """Refuse options of a run that are unknown or wrong, before anything starts.

    Raises:
        ContextError: The context is not a ``RunContext``, or one is needed.
        TypeError: An option is unknown, or of the wrong type.
        UnknownTaskError: ``refresh`` names something else than tasks.
        ValueError: The metadata or the time limit is wrong.
    """
    given: Mapping[str, object] = {**options}
    for name in given:
        if name not in _NAMES:
            known = f"context, {', '.join(_NAMES)}"
            msg = f"unknown option {name!r} of a run; it takes {known}.{close_match(name, _NAMES)}"
            raise TypeError(msg)
    check_context(graph, context)
    check_run_timeout(graph, given.get("timeout_s"))
    checked_metadata(options.get("metadata"))
    refreshed(graph, options)
    for name in _FLAGS:
        if not isinstance(given.get(name, False), bool):
            msg = f"{name} must be True or False, not {given[name]!r:.80}"
            raise TypeError(msg)
    choice = given.get("if_running", "start")
    if choice not in ("start", "refuse"):
        msg = f"if_running must be 'start' or 'refuse', not {choice!r:.80}"
        raise ValueError(msg)


def refreshed(graph: Graph, options: RunOptions) -> Collection[int]:
    """Return the tasks that run although their result is in the cache.

    Raises:
        TypeError: They are given as something else than a list of names.
        UnknownTaskError: A name is of no task.
    """
    given: object = options.get("refresh", False)
    if isinstance(given, bool):
        return range(len(graph)) if given else ()
    if isinstance(given, str) or not isinstance(given, Iterable):
        msg = f"refresh must be True or a list of names of tasks, not {given!r:.80}"
        raise TypeError(msg)
    return {graph.number(name) for name in cast("Iterable[object]", given)}


def cached_tasks(
    graph: Graph, options: RunOptions, store: StateStoreProtocol, log: logging.Logger
) -> dict[int, bool]:
    """Return the tasks with a cache, and whether they have to run all the same."""
    if not graph.cached:
        return {}
    if not hasattr(store, "find_cached"):
        text = "DAG %r has tasks with a cache, and a %s keeps none: they run each time"
        log.warning(text, graph.dag_name, type(store).__name__, extra={"dag": graph.dag_name})
        return {}
    fresh = refreshed(graph, options)
    return {number: number in fresh for number in graph.cached}
