"""The rules of mapped tasks: items, which come into being during a run.

A mapped task is a unit without an attempt of its own::

    WAITING -> EXPANDING (its elements are asked for) -> MAPPING (its items run) -> an outcome

Each item is a unit like a task, with its own attempts and its own outcome. The mapped task ends
when all its items have: it is FAILED if an item is, else SKIPPED if one is, else SUCCESS.

A task that is mapped over a mapped one goes depth first: it starts together with that one, and gets
an item whenever one of that one's items has ended. This is the only case in which a unit begins
before all that it depends on has ended.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

from flowrun.scheduler.attempt_rules import look_up, make_ready
from flowrun.scheduler.messages import Expand, Report, Subject
from flowrun.scheduler.units import DROPPED, Phase, Unit
from flowrun.state import NoResult, Reason, TaskRecord, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.registry import MapSpec
    from flowrun.scheduler.messages import Element, Expanded, Failure
    from flowrun.scheduler.run_state import RunState
    from flowrun.state import RunRecord

_COLLECTED = (Reason.ERROR, Reason.TIMEOUT)


class ItemMap:
    """The items of one mapped task in one run.

    Args:
        unit: The mapped task.
        source: The items that it follows one by one; ``None`` if it is mapped over whole results.
        spec: How it is mapped.

    Attributes:
        successors: The mapped tasks that follow its items one by one.
        items: Its items, in the order in which they came into being.
        ended: Those that have ended, in that order.
        open: How many have not ended.
        asked: How many elements were asked for, and have not come.
        fed: How many of the source's ended items it has taken.
        is_complete: Whether it will get no more items.
        failure: Why there can be no more.
        rank: The rank of its items; those of tasks that follow one another item by item come before
            the rest of the first one's, so that single items go through to the end.
        backlog: Items that wait because of ``max_items``.
        in_flight: Items that were made ready and have not ended.
    """

    __slots__ = (
        "asked",
        "backlog",
        "ended",
        "failure",
        "fed",
        "in_flight",
        "is_complete",
        "items",
        "open",
        "rank",
        "source",
        "spec",
        "successors",
        "unit",
    )

    def __init__(self, unit: Unit, source: ItemMap | None, spec: MapSpec, rank: float) -> None:
        self.unit = unit
        self.rank = rank
        self.source = source
        self.spec = spec
        self.successors: list[ItemMap] = []
        self.items: list[Unit] = []
        self.ended: list[Unit] = []
        self.open = self.asked = self.fed = self.in_flight = 0
        self.is_complete = False
        self.failure: Failure | None = None
        self.backlog: deque[Unit] = deque()

    def records(self) -> list[TaskRecord]:
        """Return the records of the items, in the order of their numbers."""
        return sorted([item.record for item in self.items], key=_number_of)

    def drop_values(self) -> None:
        """No consumer needs the items' values any more."""
        for item in self.items:
            item.value = DROPPED


def _number_of(record: TaskRecord) -> int:
    return record.item or 0


def is_collected(spec: MapSpec, record: TaskRecord) -> bool:
    """Return whether the failure of an item counts for nothing."""
    return spec.collects and record.reason in _COLLECTED


# -- from the source to items ------------------------------------------------------------------


def begin(run: RunState, unit: Unit) -> None:
    """Begin a mapped task whose sources have results, or, depth first, the items of its source."""
    table, spec = run.table, run.graph.specs[unit.task].mapping
    assert spec is not None  # noqa: S101 - as it is in map_sources
    sources = run.graph.map_sources[unit.task]
    source = table.maps.get(sources[0]) if len(sources) == 1 else None
    unit.ready_at = run.epoch
    rank: float = table.rank_of(unit.task)
    if source is not None and table.is_of_same_priority(unit.task, source.unit.task):
        rank = source.rank - (source.rank - math.ceil(source.rank) + 1) / 2
    each = unit.map = table.maps[unit.task] = ItemMap(unit, source, spec, rank)
    if source is not None:
        source.successors.append(each)
        _open(run, each, 0)
        table.unfed[unit.number] = each
        return
    unit.phase = Phase.EXPANDING
    values = [table.units[number].value for number in sources]
    run.out.append(Expand(unit.number, None, values, is_needed=unit.consumers > 0))


def restore(run: RunState, record: RunRecord, values: Mapping[str, object]) -> None:
    """Give the mapped tasks that a resume has kept their items, for those that follow them."""
    for name, items in record.items.items():
        unit = run.table.units[run.graph.index[name]]
        spec = run.graph.specs[unit.task].mapping
        if spec is not None:  # else it is mapped no more
            _restore(run, ItemMap(unit, None, spec, 0), items, values.get(name))


def _restore(run: RunState, each: ItemMap, records: Sequence[TaskRecord], values: object) -> None:
    each.unit.map = run.table.maps[each.unit.task] = each
    each.is_complete = True
    left = iter(cast("list[object]", values) if isinstance(values, list) else ())
    for record in records:
        value: object = DROPPED
        if record.result is NoResult.STORED:
            value = next(left, DROPPED)
        item = run.table.add_item(each, record)
        item.phase = Phase.DONE
        item.value = value
        each.ended.append(item)


def _open(run: RunState, each: ItemMap, items: int) -> None:
    """The mapped task has started."""
    unit = each.unit
    unit.phase = Phase.MAPPING
    unit.record = unit.record.expand(run.epoch, unit.ready_at, items)
    run.table.changed.append(unit.record)
    if run.settings.reports_starts:
        run.out.append(Report(Subject.START, unit.record))
    for number in run.graph.children[unit.task]:
        _begin_early(run, run.table.units[number])


def _begin_early(run: RunState, unit: Unit) -> None:
    """Begin a mapped task that waits for nothing but the items that it follows."""
    if unit.phase is not Phase.WAITING or unit.unmet != 1 or unit.bad or unit.omitted:
        return
    if unit.number in run.settings.stand_ins:
        return
    sources = run.graph.map_sources.get(unit.task, ())
    source = run.table.maps.get(sources[0]) if len(sources) == 1 else None
    if source is not None and source.unit.phase is Phase.MAPPING:
        begin(run, unit)


def parent_ended(run: RunState, parent: Unit) -> None:
    """A task has ended, on which mapped ones may depend."""
    for number in run.graph.children[parent.number]:
        child = run.table.units[number]
        if child.map is not None:
            conclude(run, child.map)
        elif run.stopping is None:
            _begin_early(run, child)


def feed(run: RunState) -> None:
    """Go on with those mapped tasks that follow items which have ended."""
    table = run.table
    while table.unfed:
        for number in list(table.unfed):
            _feed(run, table.unfed.pop(number))


def _feed(run: RunState, each: ItemMap) -> None:
    source, unit = each.source, each.unit
    if source is None or unit.phase is not Phase.MAPPING or each.is_complete:
        return
    new = source.ended[each.fed :]
    each.fed = len(source.ended)
    followed: list[Unit] = []
    for item in new:
        record = item.record
        if record.status is TaskStatus.SUCCESS:
            followed.append(item)
        elif record.status is TaskStatus.OMITTED:
            why = f"the item {record.label!r} upstream of it was omitted"
            run.omit(_new_item(run, each, record.item, None), Reason.UPSTREAM_OMITTED, why)
        elif not is_collected(source.spec, record):
            why = f"the item {record.label!r} upstream of it failed"
            run.skip([_new_item(run, each, record.item, None)], Reason.UPSTREAM_FAILED, why)
    if followed:
        each.asked += len(followed)
        indexes = [item.record.item or 0 for item in followed]
        values = [item.value for item in followed]
        run.out.append(Expand(unit.number, indexes, values, is_needed=unit.consumers > 0))
    conclude(run, each)


def book_expanded(run: RunState, event: Expanded) -> None:
    """The elements of a mapped task are known, or it is known why there are none."""
    unit = run.table.units[event.unit]
    each = unit.map
    if each is None or unit.phase not in (Phase.EXPANDING, Phase.MAPPING) or run.stopping:
        return  # it was skipped meanwhile, or will be
    if unit.phase is Phase.EXPANDING:
        _open(run, each, len(event.elements))
    if each.source is not None:
        each.asked -= len(event.elements)
    if event.failure is not None:
        each.failure, each.is_complete = event.failure, True
    else:
        for element in event.elements:
            _add(run, each, element)
        each.is_complete = each.source is None
    conclude(run, each)


def _new_item(run: RunState, each: ItemMap, number: int | None, key: object) -> Unit:
    task = each.unit.record
    each.open += 1
    record = TaskRecord(task.name, task.deps, item=number, key=key, why_run=task.why_run)
    return run.table.add_item(each, record)


def _add(run: RunState, each: ItemMap, element: Element) -> None:
    """Make an item of an element; one that an earlier run has done has ended at once."""
    if element.kept is not None:
        kept = element.kept.without_entry()._replace(why_run=None)
        item = run.table.add_item(each, kept)
        item.phase, item.value = Phase.DONE, element.result
        run.table.changed.append(kept)
        each.ended.append(item)
        _tell_successors(run, each)
        return
    item = _new_item(run, each, element.number, element.key)
    item.element = element.value
    each.backlog.append(item)
    _release(run, each)


def _release(run: RunState, each: ItemMap) -> None:
    """Make items ready, as far as ``max_items`` allows."""
    most = each.spec.max_items
    while each.backlog and (most is None or each.in_flight < most):
        each.in_flight += 1
        item = each.backlog.popleft()
        if item.task in run.settings.cached:
            look_up(run, item)
        else:
            make_ready(run, item)


def _tell_successors(run: RunState, each: ItemMap) -> None:
    for successor in each.successors:
        run.table.unfed[successor.unit.number] = successor


# -- from items to the task's outcome --------------------------------------------------------


def item_ended(run: RunState, item: Unit) -> None:
    """The outcome of an item is committed."""
    each = item.owner
    assert each is not None  # noqa: S101 - it is an item
    each.open -= 1
    each.ended.append(item)
    item.element = DROPPED
    if item.record.attempt or item.record.status is TaskStatus.SUCCESS:  # from the cache
        each.in_flight -= 1
    if not (each.unit.consumers or run.settings.reports_successes):
        item.value = DROPPED
    if run.stopping is None:
        _release(run, each)
        _tell_successors(run, each)
        record = item.record
        is_failed = record.status is TaskStatus.FAILED
        if is_failed and run.settings.fails_fast and not is_collected(each.spec, record):
            run.stop(Reason.FAIL_FAST, f"the item {record.label!r} failed")
    conclude(run, each)


def conclude(run: RunState, each: ItemMap) -> None:
    """End a mapped task if all its items have ended, and there will be no more."""
    unit = each.unit
    if unit.phase is not Phase.MAPPING or each.open:
        return
    if run.stopping is None and not _has_all(each):
        return
    outcome = _outcome(run, each)
    unit.line = outcome.line
    status, record = outcome.record.status, outcome.record
    if status is TaskStatus.SUCCESS:
        if run.settings.reports_successes or _has_whole_consumers(run.graph, unit):
            succeeded = [item for item in each.items if item.record.status is TaskStatus.SUCCESS]
            succeeded.sort(key=lambda item: _number_of(item.record))
            unit.value = [item.value for item in succeeded]
        run.table.commit(unit, Phase.SAVING, record)
    else:
        failed = status is TaskStatus.FAILED
        run.table.commit(unit, Phase.FAILING if failed else Phase.SKIPPING, record)


def _has_all(each: ItemMap) -> bool:
    source = each.source
    if each.is_complete or source is None:
        return each.is_complete
    return source.unit.phase is Phase.DONE and each.fed == len(source.ended) and not each.asked


def _has_whole_consumers(graph: Graph, unit: Unit) -> bool:
    """Return whether a task needs the list of the items' results, and not only single ones."""
    own = (unit.task,)
    return any(graph.map_sources.get(child) != own for child in graph.children[unit.task])


class _Outcome(NamedTuple):
    record: TaskRecord
    line: str


def _outcome(run: RunState, each: ItemMap) -> _Outcome:
    """Return how a mapped task ends; its error is that of the first item that has failed."""
    unit, now = each.unit, run.epoch
    if each.failure is not None:
        failed = unit.record._replace(items=len(each.items))
        return _Outcome(failed.fail(now, each.failure.text, Reason.ERROR), each.failure.line)
    records = each.records()
    worst = _first(records, TaskStatus.FAILED, each.spec) or _first(records, TaskStatus.SKIPPED)
    gathered = unit.record.gather
    if worst is not None:
        record = gathered(worst.status, records, now, NoResult.ABSENT)
        lines = {item.record.item: item.line for item in each.items if item.line}
        line = f"item {worst.item}: {lines.get(worst.item, worst.error or '')}"
        return _Outcome(record._replace(error=worst.error, reason=worst.reason), line)
    source = None if each.source is None else each.source.unit.record
    if source is not None and source.status in (TaskStatus.FAILED, TaskStatus.SKIPPED):
        # What it is mapped over was no sequence, say: none of its items stands for that.
        ended = "failed" if source.status is TaskStatus.FAILED else "was skipped"
        why = f"the task {source.name!r} upstream of it {ended}"
        record = gathered(TaskStatus.SKIPPED, records, now, NoResult.ABSENT)
        reason = Reason.UPSTREAM_FAILED
        return _Outcome(record._replace(error=f"{reason}: {why}", reason=reason), "")
    if run.stopping is not None and not _has_all(each):
        record = gathered(TaskStatus.SKIPPED, records, now, NoResult.ABSENT)
        return _Outcome(record._replace(error=run.why_it_stops, reason=run.stopping), "")
    keeps = run.graph.specs[unit.task].retain_result
    result = NoResult.ITEMS if keeps else NoResult.RELEASED
    return _Outcome(gathered(TaskStatus.SUCCESS, records, now, result), "")


def _first(
    records: Sequence[TaskRecord], status: TaskStatus, spec: MapSpec | None = None
) -> TaskRecord | None:
    for record in records:
        if record.status is status and (spec is None or not is_collected(spec, record)):
            return record
    return None
