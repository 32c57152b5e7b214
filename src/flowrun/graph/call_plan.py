"""The arguments of a task's call: planned once per task, built once per attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from flowrun.registry import UPSTREAM, Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

T = TypeVar("T")


class CallPlan:
    """Build the arguments of one task's calls from its dependencies' results.

    Attributes:
        gives_any: Whether a call has any argument.
        only_upstream: Whether ``upstream`` is the only argument.
    """

    __slots__ = ("_by_name", "_extra", "_used", "gives_any", "only_upstream")

    def __init__(
        self,
        used: tuple[int, ...] | None,
        by_name: tuple[tuple[str, int], ...],
        extra: _Extra | None,
    ) -> None:
        self._used = used
        self._by_name = by_name
        self._extra = extra
        self.gives_any = bool(by_name) or extra is not None
        self.only_upstream = extra is not None and extra.only_upstream

    def passed_on(self, dependencies: Sequence[T]) -> Sequence[T]:
        """Return those dependencies whose results are passed on; the others are order only."""
        return dependencies if self._used is None else [dependencies[place] for place in self._used]

    def arguments(
        self, names: Sequence[str], values: Sequence[object], context: object
    ) -> Arguments:
        """Return the positional and the keyword arguments of a call; do not change them.

        Args:
            names: The dependencies, in the order that the plan was made for.
            values: Their results.
            context: The run's context, or ``None``.
        """
        keywords = {name: values[place] for name, place in self._by_name}
        if self._extra is None:
            return (), keywords
        return self._extra.positional(names, values, context, keywords), keywords


class _Extra:
    """The rarer part of a plan: context, ``upstream``, arguments by position.

    Attributes:
        only_upstream: Whether ``upstream`` is the only argument.
    """

    __slots__ = ("_places", "_signature", "only_upstream")

    def __init__(self, signature: Signature, places: tuple[int | None, ...]) -> None:
        self._signature = signature
        self._places = places
        self.only_upstream = signature.wants_upstream and not (
            signature.context_parameter or signature.by_position
        )

    def positional(
        self,
        names: Sequence[str],
        values: Sequence[object],
        context: object,
        keywords: dict[str, object],
    ) -> tuple[object, ...]:
        """Add to the keyword arguments, and return the positional ones."""
        signature = self._signature
        name = signature.context_parameter
        if name is not None and not (context is None and signature.context_has_default):
            keywords[name] = context
        if signature.wants_upstream:
            keywords[UPSTREAM] = dict(zip(names, values, strict=True))
        if not signature.by_position:
            return ()
        return self._moved(values, keywords)

    def _moved(self, values: Sequence[object], keywords: dict[str, object]) -> tuple[object, ...]:
        """Return the arguments by position; gaps before the last one get their default."""
        signature = self._signature
        arguments: list[object] = []
        filled = 0
        for name, default, place in zip(
            signature.by_position, signature.positional_defaults, self._places, strict=True
        ):
            if place is not None:
                arguments.append(values[place])
                filled = len(arguments)
            elif name in keywords and name in (signature.context_parameter, UPSTREAM):
                arguments.append(keywords.pop(name))
                filled = len(arguments)
            else:
                arguments.append(default)
        return tuple(arguments[:filled])


_NO_PLAN = CallPlan((), (), None)
_UPSTREAM_ONLY = CallPlan(None, (), _Extra(Signature(is_async=False, wants_upstream=True), ()))


def plan_without_dependencies(signature: Signature) -> CallPlan | None:
    """Return the plan of a signature for which the dependencies do not matter, if it is one."""
    if signature.takes_nothing:
        return _NO_PLAN
    if signature.wants_upstream and not (signature.by_position or signature.context_parameter):
        return _UPSTREAM_ONLY
    return None


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
    fixed = plan_without_dependencies(signature)
    if fixed is not None:
        return fixed
    if signature.wants_upstream:
        used, places = None, dict[str, int]()
    else:
        places = _places(signature, tuple(dependency_names))
        used = tuple(sorted(places.values()))
    positions = tuple([places.pop(name, None) for name in signature.by_position])
    extra = None
    if signature.context_parameter or signature.wants_upstream or positions:
        extra = _Extra(signature, positions)
    return CallPlan(used, tuple(places.items()), extra)


def lost_results(signature: Signature, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the dependencies whose results go to no parameter of a call."""
    if signature.wants_upstream:
        return ()
    placed = _places(signature, names).values()
    return tuple([name for place, name in enumerate(names) if place not in placed])


def _places(signature: Signature, names: tuple[str, ...]) -> dict[str, int]:
    """Return the position of each parameter's value in the results."""
    at = {name: place for place, name in enumerate(names)}
    places = {name: at[name] for name in (*signature.required, *signature.optional) if name in at}
    if signature.accepts_any_keyword:
        for name, place in at.items():
            if name not in signature.bound and name != signature.context_parameter:
                places.setdefault(name, place)
    return places
