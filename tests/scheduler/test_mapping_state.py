"""Mapped tasks in the pure run state: random graphs, outcomes and orders of what happens."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowrun.graph import Graph
from flowrun.registry import TaskRegistry
from flowrun.scheduler.limits import Amounts, Needs
from flowrun.scheduler.messages import (
    Element,
    Event,
    Expand,
    Expanded,
    Failed,
    Failure,
    Finish,
    Instruction,
    Report,
    Save,
    Saved,
    Start,
    Started,
    Stop,
    StopAnswer,
    StopAnswered,
    StopRequested,
    Succeeded,
)
from flowrun.scheduler.run_settings import RunSettings
from flowrun.scheduler.run_state import RunState
from flowrun.scheduler.units import Phase, Unit
from flowrun.state import NoResult, Reason, RunRecord, TaskRecord, TaskStatus

EXAMPLES = int(os.environ.get("FLOWRUN_MODEL_EXAMPLES", "150"))
NEEDS: Needs = (("", 1),)
WRONG = Failure("ValueError: x", "ValueError: x")
AGAIN = Failure("OSError: x", "OSError: x", retryable=True)
NOTHING = Failure("nothing new", "nothing new", omits=True)
UNEQUAL = Failure("unequal", "unequal")

Choose = Callable[[int], int]


async def body(upstream: dict[str, Any]) -> None:
    del upstream


def make_graph(choose: Choose) -> Graph:
    """Choose a graph in which some tasks are mapped."""
    registry = TaskRegistry()
    for number in range(1 + choose(7)):
        deps = sorted({choose(number) for _ in range(choose(4))}) if number else []
        options: dict[str, Any] = {}
        if deps and choose(3):
            over = deps if not choose(4) else [deps[choose(len(deps))]]
            options = {
                "map_over": [f"t{each}" for each in over],
                "max_items": (None, None, 1, 2)[choose(4)],
                "map_errors": ("fail", "fail", "collect")[choose(3)],
            }
        registry.task(
            f"t{number}",
            dag="d",
            deps=[f"t{each}" for each in deps],
            retries=2,
            timeout_s=None,
            priority=(0, 0, 0, 1)[choose(4)],
            retain_result=bool(choose(4)),
            **options,
        )(body)
    return Graph.build("d", registry.specs("d"), registry)


class Play:
    """One run with all that is outside of it, which happens in any order."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.graph = make_graph(choose)
        self.slots = 1 + choose(4)
        self.used = 0
        pairs = zip(self.graph.names, self.graph.dependency_names, strict=True)
        record = RunRecord("r", "d", 0.0, {name: TaskRecord(name, deps) for name, deps in pairs})
        self.state = RunState(
            self.graph,
            record,
            {},
            [NEEDS] * len(self.graph),
            self.exchange,
            lambda _names, _until: (),
            RunSettings(
                offset=0.0,
                cancel_grace_s=math.inf,
                thread_grace_s=math.inf,
                reports_successes=bool(choose(2)),
                save_starts_after_s=None,
                fails_fast=not choose(4),
                validates=True,
            ),
        )
        self.saves: deque[Save] = deque()
        self.expands: list[Expand] = []
        self.running: dict[int, int] = {}
        self.told: set[int] = set()
        self.elements: dict[int, int] = {}  # of tasks that are mapped over whole results
        self.reported: list[tuple[str, str]] = []
        self.end: Finish | None = None

    def exchange(self, released: Amounts, wanted: Amounts, now: float) -> tuple[Amounts, float]:
        del now
        self.used -= sum(released.values())
        given = min(self.slots - self.used, wanted.get(NEEDS, 0))
        self.used += given
        return ({NEEDS: given} if given else {}), math.inf

    def play(self) -> None:
        self.carry_out(self.state.begin(0.0))
        for _ in range(3_000):
            if self.end is not None:
                return
            steps: list[Callable[[], list[Event]]] = []
            steps += [self.answer_save] if self.saves else []
            steps += [self.expanded] if self.expands else []
            steps += [self.ended] if self.running else []
            assert steps, "the run waits for nothing"
            steps += [self.stop] if not self.choose(40) else []
            events = steps[self.choose(len(steps))]()
            while events:
                events = self.carry_out(self.state.apply(events, 0.0))
        pytest.fail("the run does not end")

    # -- what happens --------------------------------------------------------------------------

    def answer_save(self) -> list[Event]:
        return [Saved(self.saves.popleft().units)]

    def stop(self) -> list[Event]:
        return [StopRequested(Reason.RUN_CANCELLED, "enough")]

    def expanded(self) -> list[Event]:
        expand = self.expands.pop(self.choose(len(self.expands)))
        values: Sequence[Any] = expand.values
        numbers = expand.numbers
        if numbers is None:
            lengths = {len(value) for value in values}
            if len(lengths) > 1:
                return [Expanded(expand.unit, (), UNEQUAL)]
            values = values[0] if len(values) == 1 else list(zip(*values, strict=True))
            numbers = range(len(values))
            self.elements[expand.unit] = len(values)
        pairs = zip(numbers, values, strict=True)
        return [Expanded(expand.unit, [Element(number, value, None) for number, value in pairs])]

    def ended(self) -> list[Event]:
        unit = list(self.running)[self.choose(len(self.running))]
        attempt = self.running.pop(unit)
        events: list[Event] = [Started(unit, attempt, 0.0)]
        how = self.choose(8)
        if unit in self.told:
            return [*events, Failed(unit, attempt, 0.0, WRONG)]
        if how < 2:
            retryable = how == 1 and attempt < 3
            return [*events, Failed(unit, attempt, 0.0, AGAIN if retryable else WRONG)]
        if how == 2:
            return [*events, Failed(unit, attempt, 0.0, NOTHING)]
        one = self.state.table.units[unit]
        value: object = (one.record.label, attempt)
        if one.owner is None:
            value = [(one.record.label, place) for place in range(self.choose(4))]
        return [*events, Succeeded(unit, attempt, 0.0, 0.0, value, value)]

    # -- what follows --------------------------------------------------------------------------

    def carry_out(self, instructions: Sequence[Instruction]) -> list[Event]:
        answers: list[Event] = []
        for instruction in instructions:
            match instruction:
                case Start(unit=number, attempt=attempt):
                    self.check_start(self.state.table.units[number])
                    self.running[number] = attempt
                case Expand():
                    self.expands.append(instruction)
                case Save():
                    self.saves.append(instruction)
                case Stop(units=units):
                    self.told.update(units)
                    answers += [
                        StopAnswered(each, self.running[each], StopAnswer.WILLING, None)
                        for each in units
                        if each in self.running
                    ]
                case Report(subject=subject, record=record):
                    self.reported.append((subject.name, record.label))
                case Finish():
                    self.end = instruction
        return answers

    def check_start(self, unit: Unit) -> None:
        assert unit.number not in self.running
        assert len(self.running) < self.slots
        table = self.state.table
        for number in self.graph.parents[unit.task]:
            parent = table.units[number]
            follows = unit.owner is not None and unit.owner.source is parent.map
            if unit.owner is not None and follows and parent.map is not None:
                of_same = [
                    each for each in parent.map.items if each.record.item == unit.record.item
                ]
                assert [each.record.status for each in of_same] == [TaskStatus.SUCCESS]
                assert unit.element == of_same[0].value
                continue
            assert parent.record.status is TaskStatus.SUCCESS
            if parent.map is not None:
                items = sorted(parent.map.items, key=lambda each: each.record.item or 0)
                assert len(self.state.value(number)) == sum(  # type: ignore[arg-type]
                    each.record.status is TaskStatus.SUCCESS for each in items
                )
        if unit.owner is not None and unit.owner.spec.max_items is not None:
            active = [each for each in unit.owner.items if each.number in self.running]
            assert len(active) < unit.owner.spec.max_items

    def check(self) -> None:
        assert self.end is not None
        assert not self.running
        assert self.used == 0 or self.state.stopping is not None
        record = self.end.record
        kinds = ("SUCCESS", "FAILURE", "SKIP", "OMIT")
        ends = [label for kind, label in self.reported if kind in kinds]
        told = self.state.settings.reports_successes
        ended = [each for each in record.records if told or each.status is not TaskStatus.SUCCESS]
        assert sorted(ends) == sorted(each.label for each in ended)
        for unit in self.state.table.units:
            assert unit.phase is Phase.DONE
            assert unit.value is NoResult.RELEASED
        for number in self.graph.map_sources:
            self.check_map(self.state.table.units[number], record)

    def check_map(self, unit: Unit, run: RunRecord) -> None:
        task, items = unit.record, run.items.get(unit.record.name, [])
        each = unit.map
        if each is None or task.items is None:
            assert not items
            return
        assert [item.item for item in items] == sorted(item.item or 0 for item in items)
        assert task.items == len(items)
        statuses = {
            item.status
            for item in items
            if not (each.spec.collects and item.reason is Reason.ERROR)
        }
        whole = each.failure is None and self.state.stopping is None
        if TaskStatus.FAILED in statuses or each.failure is not None:
            assert task.status is TaskStatus.FAILED
        elif TaskStatus.SKIPPED in statuses:
            assert task.status is TaskStatus.SKIPPED
        elif whole:
            assert task.status is TaskStatus.SUCCESS
            assert task.result in (NoResult.ITEMS, NoResult.RELEASED)
        if whole and each.source is None:
            assert len(items) == self.elements[unit.number]
        elif whole and each.source is not None:
            collects = each.source.spec.collects
            followed = [
                item.record.item
                for item in each.source.items
                if not (collects and item.record.status is TaskStatus.FAILED)
            ]
            assert sorted(item.item or 0 for item in items) == sorted(x or 0 for x in followed)


@pytest.mark.timeout(600)  # what it finds is made small first, which takes long
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_mapped_tasks_do_what_the_rules_say(data: st.DataObject) -> None:
    def choose(count: int) -> int:
        return data.draw(st.integers(0, count - 1)) if count > 1 else 0

    play = Play(choose)
    play.play()
    play.check()


def test_items_that_end_after_the_elements_have_failed_have_no_successors() -> None:
    play = Play(lambda count: 0)
    registry = TaskRegistry()
    registry.task("a", dag="d")(body)
    registry.task("b", dag="d", deps=["a"], map_over="a", timeout_s=None)(body)
    registry.task("c", dag="d", deps=["b"], map_over="b", timeout_s=None)(body)
    play.graph = Graph.build("d", registry.specs("d"), registry)
    pairs = zip(play.graph.names, play.graph.dependency_names, strict=True)
    record = RunRecord("r", "d", 0.0, {name: TaskRecord(name, deps) for name, deps in pairs})
    going_on = dataclasses.replace(play.state.settings, fails_fast=False)
    about = (play.exchange, lambda _names, _until: (), going_on)
    play.state = state = RunState(play.graph, record, {}, [NEEDS] * 3, *about)
    play.slots = 3
    play.carry_out(state.begin(0.0))
    play.running.clear()
    play.carry_out(state.apply([Succeeded(0, 1, 0.0, 0.0, [1, 2], [1, 2])], 0.0))
    play.carry_out(state.apply(play.answer_save(), 0.0))
    play.carry_out(state.apply(play.expanded(), 0.0))
    first, second = play.running
    play.running.clear()
    play.carry_out(state.apply([Succeeded(first, 1, 0.0, 0.0, "x", "x")], 0.0))
    while play.saves:
        play.carry_out(state.apply(play.answer_save(), 0.0))
    (expand,) = play.expands
    play.carry_out(state.apply([Expanded(expand.unit, (), UNEQUAL)], 0.0))
    play.carry_out(state.apply([Succeeded(second, 1, 0.0, 0.0, "y", "y")], 0.0))
    while play.saves:
        play.carry_out(state.apply(play.answer_save(), 0.0))
    assert play.end is not None
    ends = {name: str(task.status) for name, task in play.end.record.tasks.items()}
    assert ends == {"a": "SUCCESS", "b": "SUCCESS", "c": "FAILED"}
    assert play.end.record.items["c"] == []
