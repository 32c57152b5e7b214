"""The values that stand for tasks' results in one run, made ready before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from flowrun.errors import NonRetryableError, OverrideError, ResultNotStorableError
from flowrun.scheduler.branches import chosen
from flowrun.scheduler.results import read_once_problem
from flowrun.state import NoResult

if TYPE_CHECKING:
    from flowrun.graph import Graph
    from flowrun.state import RunRecord, StateStoreProtocol


class StandIn(NamedTuple):
    """A value that stands for a task's result.

    Attributes:
        value: The value, for its consumers.
        stored: What the store keeps of it.
        follows: Of a branch, the children that it chooses.
    """

    value: object
    stored: object
    follows: frozenset[int] | None = None


def stand_ins(graph: Graph, record: RunRecord, store: StateStoreProtocol) -> dict[int, StandIn]:
    """Return what stands for the results of the tasks that a value overrides, by task.

    Raises:
        OverrideError: A value cannot be a result.
    """
    return {
        number: _stand_in(graph, number, value, record, store)
        for number, value in graph.values.items()
    }


def _stand_in(
    graph: Graph, number: int, value: object, record: RunRecord, store: StateStoreProtocol
) -> StandIn:
    spec, follows = graph.specs[number], None
    encode: Any = getattr(store, "encode_result", None)
    try:
        problem = read_once_problem(value)
        if problem is not None:
            raise NonRetryableError(problem)  # noqa: TRY301 - as an attempt with that result has it
        if spec.is_branch:
            value, follows = chosen(graph, number, value)
        stored: object = value if spec.retain_result else NoResult.RELEASED
        if spec.retain_result and encode is not None:
            stored = encode(value, run_id=record.run_id, task_name=spec.name)
    except (NonRetryableError, ResultNotStorableError) as error:
        raise OverrideError(graph.dag_name, spec.name, f"cannot be a result: {error}") from error
    return StandIn(value, stored, follows)
