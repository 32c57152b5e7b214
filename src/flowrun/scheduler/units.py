"""The units of a run: their phases, their counts, what is ready, what is to be saved.

Pure bookkeeping: the rules that move a unit from phase to phase are in ``run_state.py`` and
``attempt_rules.py``.
"""

from __future__ import annotations

from enum import IntEnum
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from flowrun.registry import TriggerRule
from flowrun.scheduler.trigger_rules import Verdict, verdict
from flowrun.state import NoResult, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.scheduler.limits import Needs
    from flowrun.scheduler.mapping import ItemMap
    from flowrun.scheduler.messages import Failure
    from flowrun.state import RunRecord, TaskRecord

DROPPED = NoResult.RELEASED
"""Stands for a value that no consumer needs any more."""


class Phase(IntEnum):
    """Where a unit stands; ``run_state.py`` has the picture."""

    WAITING = 0
    READY = 1
    STARTING = 2
    RUNNING = 3
    EXPIRING = 4
    STOPPING = 5
    SAVING = 6
    DELAYED = 7
    LINGERING = 8
    FAILING = 9
    SKIPPING = 10
    OMITTING = 11
    DONE = 12
    EXPANDING = 13
    MAPPING = 14
    LOOKING_UP = 15


ACTIVE = frozenset((Phase.STARTING, Phase.RUNNING, Phase.EXPIRING, Phase.STOPPING))
"""An attempt of the unit runs, and holds a slot."""

COMMITTING = frozenset((Phase.SAVING, Phase.FAILING, Phase.SKIPPING, Phase.OMITTING))
"""The unit's outcome waits for the store."""

IDLE = frozenset((Phase.WAITING, Phase.READY, Phase.DELAYED, Phase.EXPANDING))
"""The unit has no attempt now, and its next one has not begun."""

_WAITING, _READY, _DONE = Phase.WAITING, Phase.READY, Phase.DONE


_NO_WAITS: Mapping[str, float] = {}


class Unit:
    """One unit of a run: a task, or an item of a mapped one.

    Attributes:
        number: Its place in the table.
        task: The number of its task.
        phase: Its phase.
        record: What is known of it and may be shown.
        rule: When it runs.
        is_teardown: Whether it tears down what some of its parents, its setups, have set up.
        unmet: Parents that are not DONE, and what a teardown waits for beside them.
        bad: Parents that are DONE and FAILED or SKIPPED; of a teardown only the setups count.
        omitted: Parents that are DONE and OMITTED; the same.
        consumers: Children that are not DONE.
        value: What it returned, until no consumer needs it.
        ready_at: When it became ready, in epoch seconds.
        started_at: When the code of its attempt began, on the monotonic clock, once known.
        pending: The record of its outcome, until that is committed.
        line: The line that reports its failure.
        delay_s: How long its next attempt waits.
        timeout: The failure of its attempt, once that was told that its time is up.
        is_overdue: Whether the result of its attempt is encoded in a second ``timeout_s``.
        is_start_saved: Whether the store has been given the start of its attempt.
        follows: Of a branch, the children that it has chosen.
        map: Of a mapped task that has begun, its items.
        owner: Of an item, the items that it is one of.
        element: Of an item, what it is given of the result that its task is mapped over.
        holds_slot: Whether its attempt holds its slot and its limits.
        waits_before: How long units of its kind had waited for limits when it became ready.
    """

    __slots__ = (
        "bad",
        "consumers",
        "delay_s",
        "element",
        "follows",
        "holds_slot",
        "is_overdue",
        "is_start_saved",
        "is_teardown",
        "line",
        "map",
        "number",
        "omitted",
        "owner",
        "pending",
        "phase",
        "ready_at",
        "record",
        "rule",
        "started_at",
        "task",
        "timeout",
        "unmet",
        "value",
        "waits_before",
    )

    def __init__(
        self, number: int, record: TaskRecord, rule: TriggerRule, unmet: int, consumers: int
    ) -> None:
        self.number = self.task = number
        self.rule = rule
        self.is_teardown = False
        self.phase = _WAITING
        self.record = record
        self.unmet = unmet
        self.bad = self.omitted = 0
        self.consumers = consumers
        self.value: object = DROPPED
        self.ready_at = 0.0
        self.started_at: float | None = None
        self.pending: TaskRecord | None = None
        self.line = ""
        self.delay_s = 0.0
        self.timeout: Failure | None = None
        self.is_overdue = self.is_start_saved = False
        self.follows: frozenset[int] | None = None
        self.map: ItemMap | None = None
        self.owner: ItemMap | None = None
        self.element: object = DROPPED
        self.holds_slot = False
        self.waits_before: Mapping[str, float] = _NO_WAITS

    def drop_value(self) -> None:
        """No consumer needs its value any more, nor those of its items."""
        self.value = DROPPED
        if self.map is not None:
            self.map.drop_values()


class UnitTable:
    """All units of a run.

    Args:
        graph: The graph; a unit's number is its task's.
        record: The run as it was created; tasks that are already SUCCESS were carried over.
        values: Results of carried-over tasks, by name, that tasks of this run are given.
        needs: What each unit needs at once to start, by number.

    Attributes:
        units: By number: the tasks, then the items that have come into being.
        maps: The items of mapped tasks that have begun, by task.
        unfed: Mapped tasks that follow items of which some have just ended, by number.
        ready: The ranks and numbers of READY units, a heap for each kind of needs: the higher
            priority first, then the task that comes first, then the lower number.
        is_ready_changed: Whether units became ready since the limits were asked.
        active: Units whose attempt runs, by number.
        open: Number of units that are not DONE.
        committing: Number of units whose outcome waits for the store.
        changed: Records to be saved, in order.
        outcomes: Units that wait for ``changed`` to be saved.
    """

    __slots__ = (
        "_graph",
        "_rank",
        "_waiting",
        "active",
        "changed",
        "committing",
        "is_ready_changed",
        "maps",
        "needs",
        "open",
        "outcomes",
        "ready",
        "unfed",
        "units",
    )

    def __init__(
        self,
        graph: Graph,
        record: RunRecord,
        values: Mapping[str, object],
        needs: Sequence[Needs],
    ) -> None:
        self._graph = graph
        self._waiting = graph.teardowns.waiting
        self.needs = needs
        self.ready: dict[Needs, list[tuple[float, int]]] = {}
        self.maps: dict[int, ItemMap] = {}
        self.unfed: dict[int, ItemMap] = {}
        self.is_ready_changed = False
        self.active: dict[int, Unit] = {}
        self.committing = 0
        self.changed: list[TaskRecord] = []
        self.outcomes: list[int] = []
        self.units = [
            Unit(number, record.tasks[spec.name], spec.trigger_rule, len(parents), len(children))
            for number, (spec, parents, children) in enumerate(
                zip(graph.specs, graph.parents, graph.children, strict=True)
            )
        ]
        self._rank: Sequence[int] = range(len(self.units))
        if graph.has_priorities:
            at_rank = sorted(self._rank, key=lambda each: -graph.specs[each].priority)
            self._rank = sorted(self._rank, key=at_rank.__getitem__)
        for number, waits in graph.teardowns.waits.items():
            self.units[number].is_teardown = True
            self.units[number].unmet += len(waits)
        self.open = len(self.units)
        for unit in self.units:
            if unit.record.status in (TaskStatus.SUCCESS, TaskStatus.OMITTED):
                self._carry_over(unit, values.get(unit.record.name, DROPPED))

    def _carry_over(self, unit: Unit, value: object) -> None:
        """Count a task that a resume keeps as DONE."""
        unit.phase = _DONE
        unit.value = value
        self.open -= 1
        self._tell_children(unit)
        for number in self._graph.parents[unit.number]:
            self.units[number].consumers -= 1

    def _tell_children(self, unit: Unit) -> list[Unit]:
        """Count a unit as an ended parent; return the children that have no other left."""
        status, units = unit.record.status, self.units
        found: list[Unit] = []
        for number in self._graph.children[unit.number]:
            child = units[number]
            child.unmet -= 1
            if status is not TaskStatus.SUCCESS:
                setups = self._graph.teardowns.setups.get(number)
                if setups is not None and unit.number not in setups:
                    pass  # that it has ended is enough
                elif status is TaskStatus.OMITTED:
                    child.omitted += 1
                else:
                    child.bad += 1
            if not child.unmet and child.phase is _WAITING:
                found.append(child)
        if self._waiting:
            for number in self._waiting.get(unit.number, ()):
                units[number].unmet -= 1
                if not units[number].unmet and units[number].phase is _WAITING:
                    found.append(units[number])
        return found

    def add_item(self, owner: ItemMap, record: TaskRecord) -> Unit:
        """Return a new unit for an item; it is open unless its record has ended."""
        item = Unit(len(self.units), record, TriggerRule.ALL_SUCCESS, 0, 0)
        item.task, item.owner = owner.unit.task, owner
        self.units.append(item)
        owner.items.append(item)
        if record.status is TaskStatus.PENDING:
            self.open += 1
        return item

    def rank_of(self, task: int) -> int:
        """Return the place of a task in the order of starts."""
        return self._rank[task]

    def is_of_same_priority(self, task: int, other: int) -> bool:
        """Return whether two tasks have the same priority."""
        specs = self._graph.specs
        return specs[task].priority == specs[other].priority

    def make_ready(self, unit: Unit, now: float) -> None:
        """Queue a unit to be started; ``now`` in epoch seconds."""
        unit.phase = _READY
        unit.ready_at = now
        needs = self.needs[unit.task]
        queue = self.ready.get(needs)
        if queue is None:
            queue = self.ready[needs] = []
        rank = self._rank[unit.task] if unit.owner is None else unit.owner.rank
        heappush(queue, (rank, unit.number))
        self.is_ready_changed = True

    def wanted(self) -> dict[Needs, int]:
        """Return how many ready units of each kind there are, those with the first one first."""
        found = {needs: len(queue) for needs, queue in self.ready.items() if queue}
        if len(found) > 1:
            return dict(sorted(found.items(), key=lambda item: self.ready[item[0]][0]))
        return found

    def pop_ready(self, slots: Mapping[Needs, int]) -> list[Unit]:
        """Remove and return the ready units that start first, so many of each kind."""
        ranks = [heappop(self.ready[needs]) for needs, count in slots.items() for _ in range(count)]
        if len(slots) > 1:
            ranks.sort()
        found = [self.units[number] for _, number in ranks]
        for unit in found:
            self.active[unit.number] = unit
            unit.holds_slot = True
        return found

    def clear_ready(self, *, spares_teardowns: bool) -> list[Unit]:
        """Start nothing more, but for spared teardowns; return what was READY and now waits."""
        queues, self.ready = self.ready, {}
        self.is_ready_changed = True
        cleared: list[Unit] = []
        for queue in queues.values():
            for _, number in queue:
                unit = self.units[number]
                unit.phase = _WAITING
                if unit.is_teardown and spares_teardowns:
                    self.make_ready(unit, unit.ready_at)
                else:
                    cleared.append(unit)
        return cleared

    def commit(self, unit: Unit, phase: Phase, record: TaskRecord) -> None:
        """Have an outcome saved; it counts once the store has answered."""
        unit.phase = phase
        unit.pending = record
        self.committing += 1
        self.changed.append(record)
        self.outcomes.append(unit.number)

    def settle(self, unit: Unit) -> list[Unit]:
        """An outcome is committed: the unit is DONE, and needs its parents' values no more.

        Returns:
            The units that waited for this one last.
        """
        unit.record = unit.pending or unit.record
        unit.pending = None
        unit.phase = _DONE
        self.open -= 1
        self.committing -= 1
        if unit.owner is not None:
            return []
        units = self.units
        for number in self._graph.parents[unit.number]:
            parent = units[number]
            parent.consumers -= 1
            if not parent.consumers and parent.phase is _DONE:  # else still to be reported
                parent.drop_value()
        if not unit.consumers:
            unit.drop_value()
        return self._tell_children(unit)

    def waiting_descendants(self, unit: Unit) -> list[Unit]:
        """Return the units that need this one's success, directly or not, in order."""
        found: dict[int, Unit] = {}
        stack = [unit.number]
        while stack:
            for number in self._graph.children[stack.pop()]:
                child = self.units[number]
                needs_it = child.rule is TriggerRule.ALL_SUCCESS and not child.is_teardown
                if needs_it and child.phase is _WAITING and number not in found:
                    found[number] = child
                    stack.append(number)
        return [found[number] for number in sorted(found)]

    def records(self) -> dict[str, TaskRecord]:
        """Return the records of all tasks, in order."""
        return {unit.record.name: unit.record for unit in self.units[: len(self._graph)]}

    def running(self) -> list[Unit]:
        """Return what runs, mapped tasks included."""
        maps = [each.unit for each in self.maps.copy().values()]
        return [*self.active.copy().values(), *(one for one in maps if one.phase is Phase.MAPPING)]

    def items(self) -> dict[str, list[TaskRecord]]:
        """Return the records of all items, by task."""
        return {each.unit.record.name: each.records() for each in self.maps.copy().values()}

    def check(self) -> None:
        """Check what must hold between two changes.

        Raises:
            AssertionError: It does not; the message names the unit.
        """
        phases = [unit.phase for unit in self.units]
        require(sum(phase is not _DONE for phase in phases) == self.open, "open units")
        require(sum(phase in COMMITTING for phase in phases) == self.committing, "commits")
        ready = sorted(unit.number for unit in self.units if unit.phase is _READY)
        queued = sorted(number for queue in self.ready.values() for _, number in queue)
        require(ready == queued, f"READY are {ready}, queued {queued}")
        for unit in self.units:
            story = f"task {unit.record.label!r} in phase {unit.phase.name}"
            require((unit.phase in ACTIVE) == (unit.number in self.active), story)
            require((unit.phase in COMMITTING) == (unit.pending is not None), story)
            require(unit.record.status in _STATUSES[unit.phase], story)
            if unit.owner is not None:
                of_task = unit.owner.unit
                wanted = of_task.consumers > 0 or of_task.phase is not _DONE
                require(unit.value is DROPPED or wanted, story)
                continue
            parents = self._graph.parents[unit.number]
            waits = (*parents, *self._graph.teardowns.waits.get(unit.number, ()))
            unmet = sum(self.units[each].phase is not _DONE for each in waits)
            require(unit.unmet == unmet, story)
            judged = self._graph.teardowns.setups.get(unit.number, parents)
            ended = [self.units[each] for each in judged if self.units[each].phase is _DONE]
            done = [each.record.status for each in ended]
            require(unit.omitted == done.count(TaskStatus.OMITTED), story)
            require(unit.bad == len(done) - done.count(TaskStatus.SUCCESS) - unit.omitted, story)
            if unit.phase in ACTIVE or unit.phase in (_READY, Phase.LOOKING_UP):
                runs = verdict(unit.rule, len(parents), unit.bad, unit.omitted) is Verdict.RUN
                require(runs and not unit.unmet, story)
            children = [self.units[each] for each in self._graph.children[unit.number]]
            left = sum(child.phase is not _DONE for child in children)
            require(unit.consumers == left, story)
            require(
                unit.value is DROPPED or unit.consumers > 0 or unit.phase is Phase.SAVING, story
            )


def require(holds: bool, story: str) -> None:  # noqa: FBT001 - it reads as a sentence
    """Raise ``AssertionError`` with a story if something does not hold."""
    if not holds:
        raise AssertionError(story)


_PENDING = frozenset((TaskStatus.PENDING,))
_RUNNING = frozenset((TaskStatus.RUNNING,))
_STATUSES = {
    Phase.WAITING: _PENDING,
    Phase.LOOKING_UP: _PENDING,
    Phase.READY: _PENDING,
    Phase.DELAYED: _PENDING,
    Phase.STARTING: _RUNNING,
    Phase.EXPANDING: _PENDING,
    Phase.MAPPING: _RUNNING,
    Phase.SKIPPING: _PENDING | _RUNNING,
    Phase.OMITTING: _PENDING | _RUNNING,
    Phase.RUNNING: _RUNNING,
    Phase.EXPIRING: _RUNNING,
    Phase.STOPPING: _RUNNING,
    Phase.SAVING: _PENDING | _RUNNING,
    Phase.LINGERING: frozenset((TaskStatus.FAILED,)),
    Phase.FAILING: frozenset((TaskStatus.RUNNING, TaskStatus.FAILED)),
    Phase.DONE: frozenset(
        (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.OMITTED)
    ),
}
