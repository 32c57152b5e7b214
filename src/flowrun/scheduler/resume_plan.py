"""Which run a resume continues, which results it keeps, and which tasks it runs."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Literal, NamedTuple

from flowrun.errors import (
    AlreadyResumedError,
    DamagedRecordError,
    RunAliveError,
    UnknownRunError,
)
from flowrun.graph import NO_PARAMS
from flowrun.scheduler.parameters import replaced_param
from flowrun.state import NoResult, RunQuery, RunStatus, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.state import RunRecord, RunSummary, StateStoreProtocol, TaskRecord


class PlannedTask(NamedTuple):
    """What a resume does with one task, and why."""

    action: Literal["keep", "run"]
    why: str


class ResumePlan(NamedTuple):
    """What resuming a run would do.

    Attributes:
        run_id: The run to continue: the given one, or the last of the plain resumes that
            followed it, so that no task is done twice.
        dag_name: The DAG.
        tasks: Every task of the new run, in topological order.
        dropped: Tasks of the old run that the DAG no longer has.
        keeps_items: The mapped tasks that run and keep those of their items that are done, as far
            as their elements are the same.
    """

    run_id: str
    dag_name: str
    tasks: dict[str, PlannedTask]
    dropped: list[str]
    keeps_items: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return the plan as a table to read."""
        from flowrun.escape import columns, for_terminal, padded  # noqa: PLC0415 - to print it only

        rows = [("Plan", "Task", "Why")]
        rows += [(task.action, for_terminal(name), task.why) for name, task in self.tasks.items()]
        rows += [("drop", for_terminal(name), "no longer in the DAG") for name in self.dropped]
        width = max(columns(name) for _, name, _ in rows)
        return "\n".join(
            f"{action:4}  {padded(name, width)}  {for_terminal(why)}" for action, name, why in rows
        )

    @property
    def to_run(self) -> list[str]:
        """The tasks that would run, in topological order."""
        return [name for name, planned in self.tasks.items() if planned.action == "run"]


def find_resumable(store: StateStoreProtocol, run_id: object, *, last: bool) -> RunRecord:
    """Load a run that can be resumed, without results."""
    if not isinstance(run_id, str):
        raise UnknownRunError(run_id)
    run = store.load_run(run_id, results=False)
    _refuse_alive(run)
    if not last or run.status is RunStatus.SUCCESS:
        _refuse_alive_heirs(store, run)
        return run
    while successors := store.list_runs(RunQuery(resumed_from=run.run_id, limit=1)):
        run = store.load_run(successors[0].run_id, results=False)
        _refuse_alive(run)
    if run.run_id != run_id and run.status is RunStatus.SUCCESS:
        problem = (
            f"run {run.run_id!r} has already finished it; to run tasks again name them:"
            " resume(..., from_tasks=[...])"
        )
        raise AlreadyResumedError(run_id, problem)
    return run


def first_run_id(store: StateStoreProtocol, run: RunRecord) -> str:
    """Return the run that the chain of resumes began with (D9), as far as the store has it."""
    first, ancestor = run.run_id, run.resumed_from
    while ancestor is not None:
        first = ancestor
        try:
            ancestor = store.load_run(first, results=False).resumed_from
        except (DamagedRecordError, UnknownRunError):  # it may have been pruned
            break
    return first


def _refuse_alive(run: RunRecord | RunSummary) -> None:
    if run.alive:
        problem = "it is still running; wait for it, or cancel it first"
        raise RunAliveError(run.run_id, problem)


def _refuse_alive_heirs(store: StateStoreProtocol, run: RunRecord) -> None:
    """Refuse if a run that resumes this one is alive: both would run the same tasks (S5)."""
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
    params: Mapping[str, object] = NO_PARAMS,
    unreadable: Collection[str] = (),
) -> ResumePlan:
    """Decide per task whether its old result is kept or it runs again.

    Args:
        graph: The DAG as it is now, cut to the old run's targets.
        old: The old run; results need not be loaded.
        from_tasks: Tasks that run again together with everything that depends on them.
        params: The parameters of the new run.
        unreadable: Tasks whose results are kept, but cannot be read by the store.
    """
    checkpoints = {graph.number(name) for name in from_tasks or ()}
    again = graph.descendants(checkpoints)
    reasons: list[str | None] = []
    undone: set[int] = set()
    for number in range(len(graph)):
        if number in checkpoints:
            reasons.append("named to run again")
        elif number in again:
            reasons.append("depends on a task named to run again")
        else:
            reasons.append(_why_again(graph, number, old, reasons, undone, params))
    _add_makers(graph, old, reasons, unreadable)
    tasks = {
        name: PlannedTask("run", why) if why is not None else _kept(old.tasks[name])
        for name, why in zip(graph.names, reasons, strict=True)
    }
    dropped = [name for name in old.tasks if name not in graph.index]
    kept = frozenset(
        graph.names[number]
        for number in graph.map_sources
        if number not in again
        and _keeps_items(graph, number, old, reasons, undone, params, unreadable)
    )
    return ResumePlan(old.run_id, graph.dag_name, tasks, dropped, kept)


def _keeps_items(  # noqa: PLR0913 - what a plan is made of
    graph: Graph,
    number: int,
    old: RunRecord,
    reasons: Sequence[str | None],
    undone: Collection[int],
    params: Mapping[str, object],
    unreadable: Collection[str],
) -> bool:
    """Return whether a mapped task that runs may keep items.

    All else that it is given must be as it was. Each element of what it is mapped over is compared
    by itself.
    """
    before, name = old.tasks.get(graph.names[number]), graph.names[number]
    if reasons[number] is None or before is None or name in unreadable:
        return False
    if set(graph.dependency_names[number]) != set(before.deps) or _is_torn_down(graph, number, old):
        return False
    whole = set(graph.parents[number]).difference(graph.map_sources[number])
    if any(_runs_anew(reasons[parent]) and parent not in undone for parent in whole):
        return False
    return _why_given_anew(graph, number, old, params) is None


def take_over(record: RunRecord, graph: Graph, old: RunRecord, plan: ResumePlan) -> RunRecord:
    """Return a new run with the tasks that it keeps of the old one."""
    tasks = dict(record.tasks)
    items: dict[str, Sequence[TaskRecord]] = {}
    for number, name in enumerate(graph.names):
        action, why = plan.tasks[name]
        if action == "keep":
            deps = graph.dependency_names[number]
            tasks[name] = old.tasks[name].without_entry()._replace(deps=deps, why_run=None)
            if name in old.items:
                items[name] = [
                    item.without_entry()._replace(why_run=None) for item in old.items[name]
                ]
        else:
            tasks[name] = tasks[name]._replace(why_run=why)
    return record._replace(resumed_from=old.run_id, tasks=tasks, items=items)


def inputs_to_load(graph: Graph, old: RunRecord, plan: ResumePlan) -> list[str]:
    """Return the kept tasks whose results a task that runs needs."""
    tasks, names = plan.tasks, graph.names
    wanted: dict[str, None] = {}
    for number, name in enumerate(names):
        if tasks[name].action == "run":
            for parent in _inputs(graph, number):
                kept = old.tasks[names[parent]] if tasks[names[parent]].action == "keep" else None
                if kept is not None and kept.status is TaskStatus.SUCCESS:
                    wanted[names[parent]] = None
    return list(wanted)


def _kept(task: TaskRecord) -> PlannedTask:
    omitted = task.status is TaskStatus.OMITTED
    return PlannedTask("keep", "was omitted before" if omitted else "succeeded before")


_WORDS = {TaskStatus.FAILED: "had failed", TaskStatus.SKIPPED: "was skipped"}


def _why_again(  # noqa: PLR0913 - what a plan is made of
    graph: Graph,
    number: int,
    old: RunRecord,
    reasons: Sequence[str | None],
    undone: set[int],
    params: Mapping[str, object],
) -> str | None:
    """Return why a task runs again (S3), given the reasons of its parents; ``None`` to keep it.

    A parent that runs only to make a released result again (S2) has no reason yet: its new result
    counts as the old one. The old run may have ended before it did that. Then it has kept what had
    succeeded from the released result, by which such a parent, one of ``undone``, is known.
    """
    before = old.tasks.get(graph.names[number])
    if before is None:
        return "new in the DAG"
    changed = _why_changed(graph, number, before, old, reasons, undone, params)
    if before.status in (TaskStatus.SUCCESS, TaskStatus.OMITTED):
        return changed
    if changed is None:
        undone.add(number)
    return _WORDS.get(before.status, "had not ended")


def _why_changed(  # noqa: PLR0913 - what a plan is made of
    graph: Graph,
    number: int,
    before: TaskRecord,
    old: RunRecord,
    reasons: Sequence[str | None],
    undone: Collection[int],
    params: Mapping[str, object],
) -> str | None:
    if set(graph.dependency_names[number]) != set(before.deps):
        return "its dependencies have changed"
    if graph.teardowns.names.get(before.name, ()) != before.teardown_of:
        return "what it tears down has changed"
    # What a teardown waits for, but does not tear down, is no reason to tear down again.
    follows = before.status is TaskStatus.OMITTED or (
        before.status is TaskStatus.SUCCESS and number in graph.lenient
    )
    for parent in graph.teardowns.setups.get(number, graph.parents[number]):
        if reasons[parent] is not None and (follows or parent not in undone):
            return f"depends on {graph.names[parent]!r}, which runs again"
    return _why_given_anew(graph, number, old, params)


def _why_given_anew(
    graph: Graph, number: int, old: RunRecord, params: Mapping[str, object]
) -> str | None:
    """Return what the caller of either run gave to the task, and not to the other's."""
    if graph.names[number] in old.overridden:
        return "was overridden before"
    if graph.names[number] in graph.overridden:
        return "is overridden"
    replaced = replaced_param(graph, number, old.params, params)
    return None if replaced is None else f"its parameter {replaced!r} is replaced"


def _add_makers(
    graph: Graph, old: RunRecord, reasons: list[str | None], unreadable: Collection[str]
) -> None:
    """Also run the tasks whose results are gone and needed by a task that runs (S2).

    From the last task to the first, so that it follows a chain of any length.
    """
    # Numbers below 0, so that the heap has the last task on top.
    todo = [-number for number in range(len(reasons) - 1, -1, -1) if reasons[number] is not None]
    while todo:
        number = -heappop(todo)
        for parent, why in _gone(graph, number, old, reasons, unreadable):
            reasons[parent] = f"{why}, and {graph.names[number]!r} needs it"
            heappush(todo, -parent)
            for teardown in graph.teardowns.of.get(parent, ()):
                reasons[teardown] = (
                    reasons[teardown] or f"tears down {graph.names[parent]!r}, which runs again"
                )
                heappush(todo, -teardown)  # it may need another of its setups now


def _gone(
    graph: Graph,
    number: int,
    old: RunRecord,
    reasons: Sequence[str | None],
    unreadable: Collection[str],
) -> Iterator[tuple[int, str]]:
    """Yield what a task that runs again needs and the old run has no more, and why not.

    A teardown that failed tears down again what there was. One that runs because a setup of it
    does needs its other setups anew, too.
    """
    setups = graph.teardowns.setups.get(number, ())
    is_set_up_again = any(reasons[setup] is not None for setup in setups)
    inputs = set(_inputs(graph, number))
    for parent in graph.parents[number]:
        before = None if reasons[parent] is not None else old.tasks[graph.names[parent]]
        if before is None or before.status is TaskStatus.OMITTED:
            continue
        result, is_user = before.result, parent not in setups or is_set_up_again
        if is_user and _is_torn_down(graph, parent, old):
            yield parent, _TORN_DOWN
        elif parent not in inputs:
            continue
        elif result in (NoResult.RELEASED, NoResult.ABSENT) or _has_released(before, old):
            yield parent, _RELEASED
        elif before.name in unreadable:
            yield parent, "another serializer has written its result"


def _is_torn_down(graph: Graph, number: int, old: RunRecord) -> bool:
    """Return whether a teardown of what a task has set up has begun."""
    teardowns = [graph.names[each] for each in graph.teardowns.of.get(number, ())]
    return any(name in old.tasks and old.tasks[name].attempt > 0 for name in teardowns)


_RELEASED = "its result was released"
_TORN_DOWN = "it was torn down"


def _runs_anew(reason: str | None) -> bool:
    """Return whether a task runs for another reason than to make a released result again (S2)."""
    return reason is not None and not reason.startswith((_RELEASED, _TORN_DOWN))


def _has_released(task: TaskRecord, old: RunRecord) -> bool:
    """Return whether the result of any item is gone."""
    if task.result is not NoResult.ITEMS:
        return False
    done = [item for item in old.items.get(task.name, ()) if item.status is TaskStatus.SUCCESS]
    return any(item.result is NoResult.RELEASED for item in done)


def _inputs(graph: Graph, number: int) -> Sequence[int]:
    """Return the parents whose results the task needs: it is given them, or they are branches."""
    parents = graph.parents[number]
    given = graph.plans[number].passed_on(parents)
    branches = [each for each in parents if graph.specs[each].is_branch and each not in given]
    return [*given, *branches] if branches else given
