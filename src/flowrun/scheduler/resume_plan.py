"""Which run a resume goes on with, what it keeps of it, and what it runs: decided in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    RunAliveError,
    UnknownRunError,
)
from flowrun.state import NoResult, RunQuery, RunStatus, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.graph import Graph
    from flowrun.state import RunRecord, RunSummary, StateStoreProtocol, TaskRecord


class PlannedTask(NamedTuple):
    """What a resume does with one task, and why, in words."""

    action: Literal["keep", "run"]
    why: str


class ResumePlan(NamedTuple):
    """What resuming a run would do.

    Attributes:
        run_id: The run whose work is taken over. It is the one asked for, or the last of the
            plain resumes that followed it, so that nothing is done twice.
        dag_name: The DAG.
        tasks: Every task of the new run, in topological order.
        dropped: Tasks of the old run that the DAG no longer has.
    """

    run_id: str
    dag_name: str
    tasks: dict[str, PlannedTask]
    dropped: list[str]

    @property
    def to_run(self) -> list[str]:
        """The tasks that would run, in topological order."""
        return [name for name, planned in self.tasks.items() if planned.action == "run"]


def find_resumable(store: StateStoreProtocol, run_id: object, *, last: bool) -> RunRecord:
    """Load a run that can be resumed, without results.

    Args:
        store: Where it is.
        run_id: The run that was asked for.
        last: Whether to take the last of its plain successors instead, if it has any.

    Raises:
        UnknownRunError: There is no such run.
        RunAliveError: It, or a run that came of it by resuming, is still alive.
        AlreadyResumedError: A successor has finished it.
    """
    if not isinstance(run_id, str):
        raise UnknownRunError(run_id)
    run = store.load_run(run_id, results=False)
    _refuse_alive(run)
    if not last or run.status is RunStatus.SUCCESS:
        _refuse_alive_heirs(store, run)
        return run
    while True:
        successors = store.list_runs(RunQuery(resumed_from=run.run_id, limit=1))
        if not successors:
            break
        run = store.load_run(successors[0].run_id, results=False)
        _refuse_alive(run)
    if run.run_id != run_id and run.status is RunStatus.SUCCESS:
        problem = (
            f"run {run.run_id!r} has already finished it; to run tasks again name them:"
            " resume(..., from_tasks=[...])"
        )
        raise AlreadyResumedError(run_id, problem)
    return run


def _refuse_alive(run: RunRecord | RunSummary) -> None:
    if run.alive:
        problem = "it is still running; wait for it, or cancel it first"
        raise RunAliveError(run.run_id, problem)


def _refuse_alive_heirs(store: StateStoreProtocol, run: RunRecord) -> None:
    """Two runs must not work on the same tasks at once (S5), whoever resumed whom."""
    ancestors = [run.run_id]
    while ancestors:
        try:
            heirs: Sequence[RunSummary] = store.list_runs(RunQuery(resumed_from=ancestors.pop()))
        except DamagedRecordError as error:
            heirs = error.others  # the store itself looks once more when the run is created
        for heir in heirs:
            _refuse_alive(heir)
            ancestors.append(heir.run_id)


def plan_resume(
    graph: Graph,
    old: RunRecord,
    from_tasks: Sequence[str] | None,
    unreadable: Collection[str] = (),
) -> ResumePlan:
    """Decide per task whether its old result is kept or it runs again.

    Args:
        graph: The DAG as it is now, cut to the old run's targets.
        old: The old run; results need not be loaded.
        from_tasks: Tasks that run again together with everything that depends on them.
        unreadable: Tasks whose results are kept, but cannot be read by the store.

    Raises:
        UnknownTaskError: One of ``from_tasks`` is no task of the graph.
    """
    checkpoints = [graph.number(name) for name in from_tasks or ()]
    again = graph.descendants(checkpoints)
    chosen = set(checkpoints)
    reasons: list[str | None] = []
    for number, name in enumerate(graph.names):
        why: str | None = None
        if number in chosen:
            why = "named in from_tasks"
        elif number in again:
            why = "depends on a task named in from_tasks"
        else:
            why = _why_again(graph, number, old.tasks.get(name))
            if why is None:
                why = _why_outdated(graph, number, reasons)
        reasons.append(why)
    _add_makers(graph, old, reasons, unreadable)
    tasks = {
        name: PlannedTask("keep", "succeeded before") if why is None else PlannedTask("run", why)
        for name, why in zip(graph.names, reasons, strict=True)
    }
    dropped = [name for name in old.tasks if name not in graph.index]
    return ResumePlan(old.run_id, graph.dag_name, tasks, dropped)


def take_over(record: RunRecord, graph: Graph, old: RunRecord, plan: ResumePlan) -> RunRecord:
    """Return a new run with what it keeps of the old one."""
    tasks = dict(record.tasks)
    for number, name in enumerate(graph.names):
        if plan.tasks[name].action == "keep":
            tasks[name] = old.tasks[name]._replace(deps=graph.dependency_names[number])
    return record._replace(resumed_from=old.run_id, tasks=tasks)


def inputs_to_load(graph: Graph, plan: ResumePlan) -> list[str]:
    """Return the kept tasks whose results a task that runs will be given."""
    tasks, names = plan.tasks, graph.names
    wanted: dict[str, None] = {}
    for number, name in enumerate(names):
        if tasks[name].action == "run":
            for parent in _inputs(graph, number):
                if tasks[names[parent]].action == "keep":
                    wanted[names[parent]] = None
    return list(wanted)


def _why_again(graph: Graph, number: int, before: TaskRecord | None) -> str | None:
    if before is None:
        return "new in the DAG"
    if before.status is not TaskStatus.SUCCESS:
        return f"was {before.status}"
    now = {graph.names[parent] for parent in graph.parents[number]}
    if now != set(before.deps):
        return "its dependencies have changed"
    return None


def _why_outdated(graph: Graph, number: int, reasons: Sequence[str | None]) -> str | None:
    """A result that was made from what is made anew counts no more (S3).

    Its parents come before it, and those that run only so that a released result is there
    again (S2) have no reason yet: what they make counts as what they made before.
    """
    for parent in graph.parents[number]:
        if reasons[parent] is not None:
            return f"depends on {graph.names[parent]!r}, which runs again"
    return None


def _add_makers(
    graph: Graph, old: RunRecord, reasons: list[str | None], unreadable: Collection[str]
) -> None:
    """A task that must run needs its inputs: who made one that is gone runs again too (S2).

    From the last task to the first, so that one pass follows a chain of any length.
    """
    for number in range(len(reasons) - 1, -1, -1):
        if reasons[number] is None:
            continue
        for parent in _inputs(graph, number):
            if reasons[parent] is None:
                name, needs = graph.names[parent], f"and {graph.names[number]!r} needs it"
                if any(old.tasks[name].result is gone for gone in _GONE):
                    reasons[parent] = f"its result was released, {needs}"
                elif name in unreadable:
                    reasons[parent] = f"another serializer has written its result, {needs}"


_GONE: Collection[object] = (NoResult.RELEASED, NoResult.ABSENT)


def _inputs(graph: Graph, number: int) -> Sequence[int]:
    """Return the parents whose results are given to the task, not only waited for."""
    parents = graph.parents[number]
    return graph.plans[number].passed_on(parents)
