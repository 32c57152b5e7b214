"""What a resumed run keeps of the old one, and what it runs: one plan, decided in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from flowrun.state.records import NoResult, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from flowrun.graph import Graph
    from flowrun.state.records import RunRecord, TaskRecord


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


def plan_resume(graph: Graph, old: RunRecord, from_tasks: Sequence[str] | None) -> ResumePlan:
    """Decide per task whether its old result is kept or it runs again.

    Args:
        graph: The DAG as it is now, cut to the old run's targets.
        old: The old run; results need not be loaded.
        from_tasks: Tasks that run again together with everything that depends on them.

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
        reasons.append(why)
    _add_makers(graph, old, reasons)
    tasks = {
        name: PlannedTask("keep", "succeeded before") if why is None else PlannedTask("run", why)
        for name, why in zip(graph.names, reasons, strict=True)
    }
    dropped = [name for name in old.tasks if name not in graph.index]
    return ResumePlan(old.run_id, graph.dag_name, tasks, dropped)


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


def _add_makers(graph: Graph, old: RunRecord, reasons: list[str | None]) -> None:
    """A task that must run needs its inputs: who made one that is gone runs again too (S2).

    From the last task to the first, so that one pass follows a chain of any length.
    """
    for number in range(len(reasons) - 1, -1, -1):
        if reasons[number] is None:
            continue
        for parent in _inputs(graph, number):
            if reasons[parent] is None:
                name = graph.names[parent]
                if any(old.tasks[name].result is gone for gone in _GONE):
                    reasons[parent] = (
                        f"its result was released, and {graph.names[number]!r} needs it"
                    )


_GONE: Collection[object] = (NoResult.RELEASED, NoResult.ABSENT)


def _inputs(graph: Graph, number: int) -> Sequence[int]:
    """Return the parents whose results are given to the task, not only waited for."""
    parents = graph.parents[number]
    return graph.plans[number].passed_on(parents)
