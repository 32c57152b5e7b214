"""How a task is called with the results of its dependencies: settled once, applied per attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from flowrun.registry import UPSTREAM, Signature

if TYPE_CHECKING:
    from collections.abc import Sequence

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]

T = TypeVar("T")


class CallPlan:
    """How one task is called with its dependencies' results: made once, applied per attempt.

    Attributes:
        gives_any: Whether a call has any argument at all.
        only_upstream: Whether all that a call has is ``upstream``.
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
    """The rarer part of a plan: context, ``upstream``, positional-only parameters.

    Attributes:
        only_upstream: Whether there is nothing but ``upstream``.
    """

    __slots__ = ("_places", "_signature", "only_upstream")

    def __init__(self, signature: Signature, places: tuple[int | None, ...]) -> None:
        self._signature = signature
        self._places = places
        self.only_upstream = signature.wants_upstream and not (
            signature.context_parameter or signature.positional_only
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
        if not signature.positional_only:
            return ()
        return self._moved(values, keywords)

    def _moved(self, values: Sequence[object], keywords: dict[str, object]) -> tuple[object, ...]:
        """Return the positional-only arguments; gaps before the last one get their default."""
        signature = self._signature
        arguments: list[object] = []
        filled = 0
        for name, default, place in zip(
            signature.positional_only, signature.positional_defaults, self._places, strict=True
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
    """Return the plan that holds whatever the dependencies are, if there is one."""
    if signature.takes_nothing:
        return _NO_PLAN
    if signature.wants_upstream and not (signature.positional_only or signature.context_parameter):
        return _UPSTREAM_ONLY
    return None


def plan_call(signature: Signature, dependency_names: Sequence[str]) -> CallPlan:
    """Settle which dependency's result goes where.

    With ``upstream`` all results go into that one parameter. Without, each goes to the
    parameter of its name; to ``**kwargs`` if there is no such parameter; else the dependency
    is order only. A name that a template or a partial has bound stays as it was bound.

    Args:
        signature: How the callable wants to be called.
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
    by_position = tuple([places.pop(name, None) for name in signature.positional_only])
    extra = None
    if signature.context_parameter or signature.wants_upstream or by_position:
        extra = _Extra(signature, by_position)
    return CallPlan(used, tuple(places.items()), extra)


def _places(signature: Signature, names: tuple[str, ...]) -> dict[str, int]:
    """Return where in the results each parameter finds its value."""
    at = {name: place for place, name in enumerate(names)}
    places = {name: at[name] for name in (*signature.required, *signature.optional) if name in at}
    if signature.accepts_any_keyword:
        for name, place in at.items():
            if name not in signature.bound and name != signature.context_parameter:
                places.setdefault(name, place)
    return places
