"""The commands that work on an engine: run, resume, list, show, validate."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from flowrun.cli.latest import LATEST, latest_to_resume, plan_for, run_again
from flowrun.cli.loading import UsageError, load_engine, opened_context
from flowrun.cli.output import complain, notify
from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    GraphError,
    UnknownDagError,
)
from flowrun.escape import for_terminal
from flowrun.render import ProgressHook, counted, usual_s
from flowrun.scheduler.notifier import TASK_FAILED, TASK_RETRIED
from flowrun.scheduler.parameters import all_params, checked_params
from flowrun.state import RunStatus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager

    from flowrun.cli.output import Output
    from flowrun.context import RunContext
    from flowrun.engine import Engine
    from flowrun.graph import Graph
    from flowrun.hooks import TaskFailureEvent

SUCCESS, FAILED = 0, 1
_LAST = 11
_SHOWN = (TASK_FAILED, TASK_RETRIED)
"""Log lines that say what the progress shows."""


def run_dag(options: argparse.Namespace, output: Output) -> int:
    """``flowrun run``."""
    engine = load_engine(options.engine)
    graph = engine.graph(options.dag)
    if options.target:
        graph = graph.subgraph(options.target)
    given = _given(options)
    with _opened_context(options, graph, {}) as context:

        def work() -> Awaitable[str]:
            more: dict[str, Any] = {"context": context, "timeout_s": options.timeout_s, **given}
            if options.target:
                return engine.run_subgraph(options.dag, options.target, **more)
            return engine.run_once(options.dag, **more)

        return _execute(engine, work, options, output)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line gives to a run beside its context."""
    return {
        "params": dict(options.param) if options.param else None,
        "metadata": dict(options.metadata) if options.metadata else None,
        "refresh": options.refresh_all or options.refresh or (),
    }


def _opened_context(
    options: argparse.Namespace, graph: Graph, kept: Mapping[str, object]
) -> AbstractContextManager[RunContext[Any] | None]:
    """Return the context that the command line names, made for the run's parameters."""
    if options.context is None:
        return nullcontext()
    params = checked_params(graph, dict(options.param or ()), kept)
    return opened_context(options.context, all_params(graph, params))


def resume_run(options: argparse.Namespace, output: Output) -> int:
    """``flowrun resume``."""
    check_latest(options)
    engine = load_engine(options.engine)
    given = _given(options)
    run_id = options.run
    if run_id == LATEST:
        run_id = latest_to_resume(
            engine, options.engine, options.dag, options.from_tasks, given["params"]
        )
    try:
        plan = plan_for(engine, run_id, options.from_tasks, given["params"])
    except AlreadyResumedError as error:
        msg = (
            f"run {error.run_id!r} cannot be resumed: a run that resumed it has finished it."
            f" {run_again(options.engine, error.run_id)}"
        )
        raise UsageError(msg) from error
    if options.dry_run and options.json:
        tasks = {name: task._asdict() for name, task in plan.tasks.items()}
        output.say_json({**plan._asdict(), "tasks": tasks})
        return SUCCESS
    if options.dry_run:
        output.say(str(plan))
        return SUCCESS
    if not plan.to_run:
        msg = (
            f"run {plan.run_id!r} of DAG {plan.dag_name!r} has nothing left to run: all its tasks"
            f" have succeeded. {run_again(options.engine, plan.run_id)}"
        )
        raise UsageError(msg)
    if options.run == LATEST:
        notify(for_terminal(f"resuming run {run_id} of DAG {plan.dag_name}"))
    kept = engine.get_run_report(plan.run_id, results=False)["params"]
    graph = engine.graph(plan.dag_name).subgraph(plan.tasks)
    with _opened_context(options, graph, kept) as context:

        def work() -> Awaitable[str]:
            return engine.resume(plan.run_id, options.from_tasks, context, **given)

        return _execute(engine, work, options, output)


def check_latest(options: argparse.Namespace) -> None:
    """Refuse a DAG beside the id of a run.

    Raises:
        UsageError: There are both.
    """
    if options.dag is not None and options.run not in {LATEST, None}:
        msg = f"--dag chooses among runs, so it goes with {LATEST!r}; leave one of them out"
        raise UsageError(msg)


def list_dags(options: argparse.Namespace, output: Output) -> int:
    """``flowrun list``."""
    engine = load_engine(options.engine)
    dags: dict[str, list[str]] = {}
    problems: list[GraphError] = []
    for dag in engine.list_dags():
        try:
            dags[dag] = engine.list_tasks(dag)
        except GraphError as error:
            problems.append(error)
    if options.json:
        output.say_json(dags)
    else:
        output.say_table(("DAG", "Tasks"), [(dag, ", ".join(tasks)) for dag, tasks in dags.items()])
    for problem in problems:
        complain(str(problem))
    return FAILED if problems else SUCCESS


def show_dag(options: argparse.Namespace, output: Output) -> int:
    """``flowrun show``."""
    engine = load_engine(options.engine)
    ascii_only = output.is_ascii_only
    output.say(engine.display_dag(options.dag, style=options.style, ascii_only=ascii_only))
    return SUCCESS


def validate_dags(options: argparse.Namespace, output: Output) -> int:
    """``flowrun validate``."""
    engine = load_engine(options.engine)
    problems: dict[str, str | None] = {}
    for dag in options.dag or engine.list_dags():
        try:
            engine.validate(dag)
        except UnknownDagError:
            raise  # the command line is wrong, not the DAG
        except ValueError as error:
            problems[dag] = str(error)
        else:
            problems[dag] = None
    if options.json:
        output.say_json(problems)
    else:
        for dag, problem in problems.items():
            text = problem or f"fine, {counted(len(engine.list_tasks(dag)), 'task')}"
            output.say(f"{for_terminal(dag)}: {for_terminal(text, multiline=True)}")
    return FAILED if any(problems.values()) else SUCCESS


class _BriefProgress(ProgressHook):
    """Leaves the error of a failure to the report, which is printed to the same terminal."""

    def on_task_failure(self, event: TaskFailureEvent) -> None:
        super().on_task_failure(event._replace(message="failed"))


def _execute(
    engine: Engine,
    work: Callable[[], Awaitable[str]],
    options: argparse.Namespace,
    output: Output,
) -> int:
    """Run with progress and signals, print the report, and return the run's exit code."""
    if options.progress and not any(isinstance(hook, ProgressHook) for hook in engine.hooks):
        says_all = options.json or not (sys.stdout.isatty() and sys.stderr.isatty())
        engine.add_hook((ProgressHook if says_all else _BriefProgress)(sys.stderr))
        if logging.lastResort is not None:
            # Without logging set up, each failure would be printed twice.
            logging.lastResort.addFilter(lambda record: record.msg not in _SHOWN)
    with options.run_loop as loop:
        run_id = loop.run(engine, work)
        report = engine.get_run_report(run_id, results=False)
        loop.exit_code = SUCCESS if report["status"] == "SUCCESS" else FAILED
        if options.json:
            output.say_json(report)
        else:
            try:
                last = engine.list_runs(report["dag_name"], RunStatus.SUCCESS, _LAST)
            except DamagedRecordError as error:
                last = list(error.others)
            output.say_report(report, usual_s(report, last))
        return int(loop.exit_code)
