"""The elements of mapped tasks, and which of their items an earlier run has done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from flowrun.errors import NonRetryableError, ResultNotStorableError
from flowrun.failure import described
from flowrun.scheduler.messages import Element, Expanded, Failure
from flowrun.state import CarriedResult, NoResult, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.graph import Graph
    from flowrun.registry import MapSpec
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.messages import Expand
    from flowrun.scheduler.services import Services
    from flowrun.state import RunRecord, TaskRecord

_DONE = (TaskStatus.SUCCESS, TaskStatus.OMITTED)
_CHOSEN = "key:"


class Earlier(NamedTuple):
    """The items of a mapped task in the run that a resume continues.

    Attributes:
        run_id: That run.
        items: They, without results.
    """

    run_id: str
    items: Sequence[TaskRecord]


class Inherited(NamedTuple):
    """What a run gets from the one that it resumes.

    Attributes:
        values: Results of tasks that it keeps, by name, as far as others need them.
        items: The items that it may keep of mapped tasks that run, by task.
    """

    values: Mapping[str, object]
    items: Mapping[str, Earlier]


NOTHING_INHERITED = Inherited({}, {})


class Expander:
    """Find the elements of the mapped tasks of one run.

    Args:
        services: What the engine's runs share.
        graph: The graph.
        record: The run.
        inbox: Where the answers go.
        earlier: The items that the run may keep, by task.
    """

    def __init__(
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        inbox: Inbox,
        earlier: Mapping[str, Earlier],
    ) -> None:
        self._graph = graph
        self._record = record
        self._inbox = inbox
        self._earlier = {name: _Kept(each) for name, each in earlier.items()}
        self._store = services.journal.store
        self._encode: Any = getattr(self._store, "encode_result", None)
        self._encoders = services.encoders
        self._redact = services.redact
        self._seen: dict[int, dict[object, int]] = {}

    def expand(self, expand: Expand) -> None:
        """Find the elements that are asked for, in a thread if that may take time."""
        task = self._graph.names[expand.unit]
        mapping = self._graph.specs[expand.unit].mapping
        assert mapping is not None  # noqa: S101 - the state asks for mapped tasks only
        if self._encode is None and mapping.key is None and task not in self._earlier:
            self._expand(expand, task, mapping)
        else:
            self._encoders.submit(self._expand, expand, task, mapping)

    def _expand(self, expand: Expand, task: str, mapping: MapSpec) -> None:
        try:
            event = Expanded(expand.unit, self._elements(expand, task, mapping))
        except BaseException as error:  # noqa: BLE001 - of the user's values, and of the user's key
            event = Expanded(expand.unit, (), Failure(*described(error, self._redact)))
        self._inbox.put(event)

    def _elements(self, expand: Expand, task: str, mapping: MapSpec) -> list[Element]:
        values, numbers = expand.values, expand.numbers
        if numbers is None:
            sources = [self._graph.names[each] for each in self._graph.map_sources[expand.unit]]
            values = _elements_of(dict(zip(sources, expand.values, strict=True)))
            numbers = range(len(values))
        found = [
            Element(number, value, self._key(expand.unit, number, value, mapping))
            for number, value in zip(numbers, values, strict=True)
        ]
        kept = self._earlier.get(task)
        if kept is None:
            return found
        results = self._results(task, kept) if expand.is_needed else {}
        by_key, is_needed = mapping.key is not None, expand.is_needed
        return [kept.matched(each, results, by_key=by_key, is_needed=is_needed) for each in found]

    def _key(self, unit: int, number: int, value: object, mapping: MapSpec) -> object:
        """Return what an element is known by in another run; ``None`` if by nothing.

        Raises:
            NonRetryableError: ``map_key`` returned something else, or the same for two elements.
        """
        if mapping.key is not None:
            several = len(mapping.over) > 1
            key = mapping.key(*cast("tuple[object, ...]", value)) if several else mapping.key(value)
            if type(key) not in (str, int):
                msg = f"map_key must return a str or an int, not {key!r:.80} (for item {number})"
                raise NonRetryableError(msg)
            other = self._seen.setdefault(unit, {}).setdefault(key, number)
            if other != number:
                msg = (
                    f"map_key returned {key!r:.80} for the items {other} and {number}; it must tell"
                    " elements apart"
                )
                raise NonRetryableError(msg)
            return f"{_CHOSEN}{key!r}"
        if self._encode is None:
            return (value,)
        try:
            stored = self._encode(value, run_id=self._record.run_id, task_name="element")
        except ResultNotStorableError:
            return None  # so its item runs again
        from hashlib import sha256  # noqa: PLC0415 - for mapped tasks only

        return f"sha256:{sha256(stored.serializer.encode() + stored.data).hexdigest()}"

    def _results(self, task: str, kept: _Kept) -> dict[int, object]:
        """Return the results of the items of the earlier run, by their numbers there."""
        run_id = kept.earlier.run_id
        results = cast("list[object]", self._store.load_results(run_id, [task])[task])
        having = [item.item for item in kept.earlier.items if item.result is NoResult.STORED]
        return dict(zip(cast("list[int]", having), results, strict=True))


class _Kept:
    """The items of an earlier run, and which of them is that of an element."""

    def __init__(self, earlier: Earlier) -> None:
        self.earlier = earlier
        done = [item for item in earlier.items if item.status in _DONE and item.key is not None]
        self._by_number = {item.item: item for item in done}
        self._by_key: dict[object, TaskRecord] = {
            item.key: item
            for item in done
            if isinstance(item.key, str) and item.key.startswith(_CHOSEN)
        }

    def matched(
        self,
        element: Element,
        results: Mapping[int, object],
        *,
        by_key: bool,
        is_needed: bool,
    ) -> Element:
        """Return the element with the item that it had in the earlier run, if that is done."""
        number, key = element.number, element.key
        old = self._by_key.get(key) if by_key else self._by_number.get(number)
        if old is None or old.item is None or not (by_key or _is_same(old.key, key)):
            return element
        result = old.result
        if result is NoResult.STORED:
            result = CarriedResult(self.earlier.run_id, old.item)
        elif old.status is TaskStatus.SUCCESS and is_needed:
            return element  # its result was released, and is made again
        record = old._replace(item=number, key=key, result=result)
        return element._replace(kept=record, result=results.get(old.item, NoResult.RELEASED))


def _is_same(old: object, new: object) -> bool:
    """Return whether two keys are of the same element: digests, or in memory elements in tuples."""
    if not isinstance(old, tuple) or not isinstance(new, tuple):
        return isinstance(old, str) and old == new
    (before,), (now,) = cast("tuple[object]", old), cast("tuple[object]", new)
    if before is now:
        return True
    import pickle  # noqa: PLC0415 - for resumes in memory only

    try:
        return pickle.dumps(before) == pickle.dumps(now)
    except Exception:  # noqa: BLE001 - whatever a value of the user's raises
        return False


def _elements_of(sources: Mapping[str, object]) -> list[object]:
    """Return the elements of one source, or tuples of those of several.

    Raises:
        NonRetryableError: A source is no sequence, or they are of unequal length.
    """
    lists = [_listed(name, value) for name, value in sources.items()]
    if len(lists) == 1:
        return lists[0]
    lengths = {name: len(each) for name, each in zip(sources, lists, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        msg = f"map_over needs sources of equal length, and {told}"
        raise NonRetryableError(msg)
    return list(zip(*lists, strict=True))


def _listed(name: str, value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[object, object]", value).items())
    if isinstance(value, list | tuple):
        return list(cast("Sequence[object]", value))
    msg = (
        f"map_over takes a list, a tuple or a dict, and {name!r} returned a {type(value).__name__};"
        " have it return a list"
    )
    raise NonRetryableError(msg)
