"""Look tasks up in the cache between runs: their keys, and what the store has under them.

A key stands for all that a result depends on. It is made of the stored form of each, in a
thread, as that takes time for large inputs and calls a function of the user's.
"""

from __future__ import annotations

import functools
import json
import pickle
from hashlib import sha256
from math import inf
from typing import TYPE_CHECKING, Any

from flowrun.failure import error_line, redacted
from flowrun.registry import TriggerRule, stored_param
from flowrun.scheduler.branches import chosen
from flowrun.scheduler.messages import LookedUp
from flowrun.scheduler.parameters import task_params
from flowrun.scheduler.stand_ins import StandIn
from flowrun.scheduler.units import DROPPED
from flowrun.state import Cached, EncodedResult, JsonSerializer

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Sequence

    from flowrun.context import RunContext
    from flowrun.executors import WorkerFuture
    from flowrun.graph import Graph
    from flowrun.registry import TaskSpec
    from flowrun.scheduler.inbox import Inbox
    from flowrun.scheduler.messages import LookUp
    from flowrun.scheduler.run_state import RunState
    from flowrun.scheduler.services import Services
    from flowrun.state import RunRecord

_FORMAT = "1"
"""Part of every key: another one makes all entries old."""
_JSON = JsonSerializer()


class LookUps:
    """Look the tasks of one run up.

    Args:
        services: What the engine's runs share.
        graph: The graph.
        record: The run.
        context: What the caller gave for tasks that ask for a ``RunContext``.
        variables: The context variables of the run's caller.
        state: The run's state, which has the inputs of each unit.
        inbox: Where the answers go.
    """

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        services: Services,
        graph: Graph,
        record: RunRecord,
        context: RunContext[Any] | None,
        variables: contextvars.Context,
        state: RunState,
        inbox: Inbox,
    ) -> None:
        self._threads: Any = services.encoders
        self._store: Any = services.journal.store
        self._encode: Any = getattr(self._store, "encode_result", None)
        self._now = services.config.clock.time
        self._redact = services.redact
        self._graph = graph
        self._record = record
        self._context = context
        self._variables = variables
        self._units = state.table.units
        self._post = inbox.put
        self._calls: set[WorkerFuture[None]] = set()

    def begin(self, look_up: LookUp) -> list[LookedUp]:
        """Begin to look a unit up; return the answer if there is one already."""
        work = functools.partial(self._work, look_up, self._inputs(look_up.unit))
        try:
            call = self._threads.submit(self._variables.copy().run, work)
        except RuntimeError as error:  # the system has no thread for it
            return [self._unusable(look_up.unit, error)]
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return []

    def abandon(self) -> None:
        """Wait for no answer any more."""
        for call in self._calls.copy():
            if not call.cancel():
                call.abandon()

    def _inputs(self, number: int) -> list[tuple[str, object]]:
        """Return what the unit depends on, each with a name; on the loop."""
        graph, unit = self._graph, self._units[number]
        spec, parents = graph.specs[unit.task], graph.parents[unit.task]
        sources = () if unit.owner is None else graph.map_sources[unit.task]
        found: list[tuple[str, object]] = [("element", unit.element)] if sources else []
        for parent in graph.plans[unit.task].passed_on(parents):
            if parent in sources:
                continue  # an item is given an element of it
            given = self._units[parent]
            is_encoded = type(given.record.result) is EncodedResult
            value = given.record.result if is_encoded else given.value
            found.append((graph.names[parent], value))
        if spec.trigger_rule is not TriggerRule.ALL_SUCCESS:
            found += [("", str(self._units[parent].record.status)) for parent in parents]
        return found

    # -- in a thread -------------------------------------------------------------------------------

    def _work(self, look_up: LookUp, inputs: Sequence[tuple[str, object]]) -> None:
        number = look_up.unit
        try:
            mine = Cached(self._key(self._units[number].task, inputs))
        except BaseException as error:  # noqa: BLE001 - a key function, or a value's own code
            self._post(self._unusable(number, error))
            return
        try:
            answer = LookedUp(number, mine) if look_up.is_fresh else self._found(number, mine)
        except BaseException as error:  # noqa: BLE001 - the task can run, whatever it is
            answer = self._unusable(number, error, mine)
        self._post(answer)

    def _unusable(
        self, number: int, error: BaseException, cached: Cached | None = None
    ) -> LookedUp:
        line = redacted(error_line(error), self._redact)
        return LookedUp(number, cached, None, f"it runs, as the cache cannot be used: {line}")

    def _found(self, number: int, mine: Cached) -> LookedUp:
        task = self._units[number].task
        spec = self._graph.specs[task]
        assert spec.cache is not None  # noqa: S101 - only such are looked up
        ttl_s = spec.cache.ttl_s
        found = self._store.find_cached(mine.key, -inf if ttl_s is None else self._now() - ttl_s)
        if found is None:
            return LookedUp(number, mine)
        follows = chosen(self._graph, task, found.value)[1] if spec.is_branch else None
        stands = StandIn(found.value, found.stored, follows)
        return LookedUp(number, Cached(mine.key, found.run_id), stands)

    def _key(self, number: int, inputs: Sequence[tuple[str, object]]) -> str:
        """Return what stands for all that the result of a unit depends on."""
        graph, spec = self._graph, self._graph.specs[number]
        assert spec.cache is not None  # noqa: S101 - only such are looked up
        params = task_params(graph, number, self._record.params)
        parts = [
            *(_FORMAT, graph.dag_name, spec.name, spec.cache.version, spec.source),
            {name: stored_param(value) for name, value in params.items()},
            [digest(bound) for bound in _bound(spec)],
            [(name, self._input_digest(spec, value)) for name, value in inputs],
        ]
        if spec.cache.key is not None:
            parts.append(digest(spec.cache.key(self._context)))
        return _hashed(json.dumps(parts, sort_keys=True).encode())

    def _input_digest(self, spec: TaskSpec, value: object) -> str:
        if value is DROPPED:  # its task has not succeeded
            return ""
        if type(value) is not EncodedResult and self._encode is None:
            return digest(value)
        encoded: Any = value
        if type(value) is not EncodedResult:
            encoded = self._encode(value, run_id=self._record.run_id, task_name=spec.name)
        return _hashed(encoded.serializer.encode(), encoded.data)


def _bound(spec: TaskSpec) -> list[object]:
    """Return what a template or partials have bound, and the function's defaults."""
    found: list[object] = []
    function: Any = spec.function
    while isinstance(function, functools.partial):
        found.append((function.args, sorted(function.keywords.items())))
        function = function.func
    return [*found, function.__defaults__, function.__kwdefaults__]


def digest(value: object) -> str:
    """Return what stands for a value: a hash of it as JSON, or else as a pickle.

    Raises:
        Exception: It can be neither.
    """
    try:
        return _hashed(b"json", _JSON.serialize(value))
    except Exception:  # noqa: BLE001 - a value's own code may raise anything
        return _hashed(b"pickle", pickle.dumps(value, protocol=5))


def _hashed(*parts: bytes) -> str:
    hashed = sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.hexdigest()
