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


ACTIVE = frozenset((Phase.STARTING, Phase.RUNNING, Phase.EXPIRING, Phase.STOPPING))
"""An attempt of the unit runs, and holds a slot."""

COMMITTING = frozenset((Phase.SAVING, Phase.FAILING, Phase.SKIPPING, Phase.OMITTING))
"""The unit's outcome waits for the store."""

IDLE = frozenset((Phase.WAITING, Phase.READY, Phase.DELAYED))
"""The unit has no attempt now, and its next one has not begun."""

_WAITING, _READY, _DONE = Phase.WAITING, Phase.READY, Phase.DONE


class Unit:
    """One unit of a run.

    Attributes:
        number: Its place in the order of starts.
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
    """

    __slots__ = (
        "bad",
        "consumers",
        "delay_s",
        "follows",
        "is_overdue",
        "is_start_saved",
        "is_teardown",
        "line",
        "number",
        "omitted",
        "pending",
        "phase",
        "ready_at",
        "record",
        "rule",
        "started_at",
        "timeout",
        "unmet",
        "value",
    )

    def __init__(
        self, number: int, record: TaskRecord, rule: TriggerRule, unmet: int, consumers: int
    ) -> None:
        self.number = number
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


class UnitTable:
    """All units of a run.

    Args:
        graph: The graph; a unit's number is its task's.
        record: The run as it was created; tasks that are already SUCCESS were carried over.
        values: Results of carried-over tasks, by name, that tasks of this run are given.
        needs: What each unit needs at once to start, by number.

    Attributes:
        units: By number.
        ready: The ranks of READY units, a heap for each kind of needs: the higher priority first,
            then the lower number.
        is_ready_changed: Whether units became ready since the limits were asked.
        active: Units whose attempt runs, by number.
        open: Number of units that are not DONE.
        committing: Number of units whose outcome waits for the store.
        changed: Records to be saved, in order.
        outcomes: Units that wait for ``changed`` to be saved.
    """

    __slots__ = (
        "_at_rank",
        "_graph",
        "_rank",
        "_waiting",
        "active",
        "changed",
        "committing",
        "is_ready_changed",
        "needs",
        "open",
        "outcomes",
        "ready",
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
        self.ready: dict[Needs, list[int]] = {}
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
        self._at_rank: Sequence[int] = self._rank
        if graph.has_priorities:
            self._at_rank = sorted(self._rank, key=lambda each: -graph.specs[each].priority)
            self._rank = sorted(self._rank, key=self._at_rank.__getitem__)
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

    def make_ready(self, unit: Unit, now: float) -> None:
        """Queue a unit to be started; ``now`` in epoch seconds."""
        unit.phase = _READY
        unit.ready_at = now
        number = unit.number
        queue = self.ready.get(self.needs[number])
        if queue is None:
            queue = self.ready[self.needs[number]] = []
        heappush(queue, self._rank[number])
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
        found = [self.units[self._at_rank[rank]] for rank in ranks]
        for unit in found:
            self.active[unit.number] = unit
        return found

    def clear_ready(self, *, spares_teardowns: bool) -> None:
        """Start nothing more, but for teardowns that are spared: what is READY waits."""
        queues, self.ready = self.ready, {}
        self.is_ready_changed = True
        for queue in queues.values():
            for rank in queue:
                unit = self.units[self._at_rank[rank]]
                unit.phase = _WAITING
                if unit.is_teardown and spares_teardowns:
                    self.make_ready(unit, unit.ready_at)

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
        units = self.units
        for number in self._graph.parents[unit.number]:
            parent = units[number]
            parent.consumers -= 1
            if not parent.consumers and parent.phase is _DONE:  # else still to be reported
                parent.value = DROPPED
        if not unit.consumers:
            unit.value = DROPPED
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
        return {unit.record.name: unit.record for unit in self.units}

    def check(self) -> None:
        """Check what must hold whenever nobody is changing anything.

        Raises:
            AssertionError: It does not; the message names the unit.
        """
        phases = [unit.phase for unit in self.units]
        require(sum(phase is not _DONE for phase in phases) == self.open, "open units")
        require(sum(phase in COMMITTING for phase in phases) == self.committing, "commits")
        ready = sorted(unit.number for unit in self.units if unit.phase is _READY)
        queued = sorted(self._at_rank[rank] for queue in self.ready.values() for rank in queue)
        require(ready == queued, f"READY are {ready}, queued {queued}")
        for unit in self.units:
            story = f"task {unit.record.name!r} in phase {unit.phase.name}"
            require((unit.phase in ACTIVE) == (unit.number in self.active), story)
            require((unit.phase in COMMITTING) == (unit.pending is not None), story)
            require(unit.record.status in _STATUSES[unit.phase], story)
            parents = self._graph.parents[unit.number]
            waits = (*parents, *self._graph.teardowns.waits.get(unit.number, ()))
            unmet = sum(self.units[each].phase is not _DONE for each in waits)
            require(unit.unmet == unmet, story)
            judged = self._graph.teardowns.setups.get(unit.number, parents)
            ended = [self.units[each] for each in judged if self.units[each].phase is _DONE]
            done = [each.record.status for each in ended]
            require(unit.omitted == done.count(TaskStatus.OMITTED), story)
            require(unit.bad == len(done) - done.count(TaskStatus.SUCCESS) - unit.omitted, story)
            if unit.phase in ACTIVE or unit.phase is _READY:
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
    Phase.READY: _PENDING,
    Phase.DELAYED: _PENDING,
    Phase.STARTING: _RUNNING,
    Phase.SKIPPING: _PENDING,
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
