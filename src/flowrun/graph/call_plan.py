"""The arguments of a task's call: planned once per task, built once per attempt."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from flowrun.registry import UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.registry import Signature

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

T = TypeVar("T")


class Missing(Enum):
    """Stands for the result of a dependency that has not succeeded."""

    MISSING = 0


MISSING = Missing.MISSING
NO_PARAMS: Mapping[str, object] = {}


class CallPlan:
    """Build the arguments of one task's calls from its dependencies' results.

    Attributes:
        gives_any: Whether a call has any argument.
        only_upstream: Whether ``upstream`` is the only argument.
    """

    __slots__ = ("_by_name", "_by_position", "_signature", "gives_any", "only_upstream")

    def __init__(
        self,
        signature: Signature,
        by_name: tuple[tuple[str, int], ...],
        by_position: tuple[int | None, ...],
    ) -> None:
        self._signature = signature
        self._by_name = by_name
        self._by_position = by_position
        others = bool(by_name or by_position or signature.context_parameter or signature.params)
        self.only_upstream = signature.wants_upstream and not others
        self.gives_any = others or self.only_upstream

    def passed_on(self, dependencies: Sequence[T]) -> Sequence[T]:
        """Return those dependencies whose results are passed on; the others are order only."""
        if self._signature.wants_upstream:
            return dependencies
        places = {place for _, place in self._by_name}.union(self._by_position) - {None}
        return [each for place, each in enumerate(dependencies) if place in places]

    def arguments(
        self,
        names: Sequence[str],
        values: Sequence[object],
        context: object,
        params: Mapping[str, object] = NO_PARAMS,
    ) -> Arguments:
        """Return the positional and the keyword arguments of a call; do not change them.

        Args:
            names: The dependencies, in the order that the plan was made for.
            values: Their results; ``MISSING`` for one that has none.
            context: The run's context, or ``None``.
            params: Those of the run's parameters that the task is given.
        """
        signature = self._signature
        keywords = {
            name: values[place] for name, place in self._by_name if values[place] is not MISSING
        }
        keywords.update(params)
        parameter = signature.context_parameter
        if parameter is not None and not (context is None and signature.context_has_default):
            keywords[parameter] = context
        if signature.wants_upstream:
            pairs = zip(names, values, strict=True)
            keywords[UPSTREAM] = {name: value for name, value in pairs if value is not MISSING}
        return (self._positional(values, keywords) if self._by_position else ()), keywords

    def _positional(
        self, values: Sequence[object], keywords: dict[str, object]
    ) -> tuple[object, ...]:
        """Return the arguments by position; gaps before the last one get their default."""
        signature = self._signature
        arguments: list[object] = []
        filled = 0
        for name, default, place in zip(
            signature.by_position, signature.positional_defaults, self._by_position, strict=True
        ):
            if place is not None and values[place] is not MISSING:
                arguments.append(values[place])
            elif name in keywords:  # the context, ``upstream``, or a parameter of the run
                arguments.append(keywords.pop(name))
            else:
                arguments.append(default)
                continue
            filled = len(arguments)
        return tuple(arguments[:filled])


def plan_call(signature: Signature, dependency_names: Sequence[str]) -> CallPlan:
    """Decide which dependency's result goes to which parameter.

    With ``upstream`` all results go into that one parameter. Without, each goes to the
    parameter of its name; to ``**kwargs`` if there is no such parameter; else the dependency
    is order only. A name that a template or a partial has bound stays as it was bound.

    Args:
        signature: The callable's parameters.
        dependency_names: All its dependencies, in the order in which results will be given.

    Example:
        >>> from flowrun.registry import inspect_callable
        >>> def total(orders, refunds): ...
        >>> signature = inspect_callable(total, task_name="total", dag_name=None)
        >>> names = ["refunds", "orders"]
        >>> plan_call(signature, names).arguments(names, [2, 10], None)
        ((), {'orders': 10, 'refunds': 2})
    """
    places: dict[str, int] = {}
    if signature.takes_named_results:
        at = {name: place for place, name in enumerate(dependency_names)}
        parameters = (*signature.required, *signature.optional)
        places = {name: at[name] for name in parameters if name in at}
        if signature.accepts_any_keyword:
            taken = {*signature.bound, signature.context_parameter}
            taken.update(each.name for each in signature.params)
            for name, place in at.items():
                if name not in taken:
                    places.setdefault(name, place)
    by_position = tuple([places.pop(name, None) for name in signature.by_position])
    return CallPlan(signature, tuple(places.items()), by_position)
