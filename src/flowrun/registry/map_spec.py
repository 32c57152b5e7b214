"""How a task is mapped over the elements of what it depends on, and the checks of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from flowrun.policy import check_int

if TYPE_CHECKING:
    from flowrun.registry.task_spec import Dependency

MapKey: TypeAlias = Callable[..., str | int]

_OPTIONS = ("max_items", "map_errors", "map_key")
_ERRORS = ("fail", "collect")


@dataclass(frozen=True, slots=True, eq=False)
class MapSpec:
    """How a task is mapped; see :class:`flowrun.registry.task_spec.TemplateOptions`.

    Attributes:
        over: The sources as declared: names or callables.
        max_items: How many items run at once at most; ``None``: no bound of its own.
        collects: Whether the task succeeds whatever has become of its items.
        key: Returns what identifies an element from one run to the next.
    """

    over: tuple[Dependency, ...]
    max_items: int | None = None
    collects: bool = False
    key: MapKey | None = None


def checked_mapping(
    options: Mapping[str, Any], *, is_branch: bool, is_all_success: bool
) -> MapSpec | None:
    """Return how a task of these options is mapped; ``None`` if it is not.

    Raises:
        TypeError: An option is of another type.
        ValueError: An option has no meaning, or not with the others.
    """
    over = _checked_over(options.get("map_over"))
    if over is None:
        for option in _OPTIONS:
            if options.get(option) is not None:
                msg = f"{option} is for mapped tasks; say over what: map_over=..."
                raise ValueError(msg)
        return None
    if is_branch:
        msg = "a branch chooses among tasks once, so it cannot be mapped; remove map_over"
        raise ValueError(msg)
    if not is_all_success:
        msg = (
            "a mapped task needs the results that it is mapped over, so its trigger_rule must be"
            " all_success; give the other rule to a task that depends on it"
        )
        raise ValueError(msg)
    errors = options.get("map_errors", "fail")
    if errors not in _ERRORS:
        msg = f"map_errors must be 'fail' or 'collect', not {errors!r:.80}"
        raise ValueError(msg)
    key = options.get("map_key")
    if key is not None and not callable(key):
        msg = f"map_key must be a function of the element, not {key!r:.80}"
        raise TypeError(msg)
    chosen = cast("MapKey | None", key)
    most = options.get("max_items")
    if most is not None:
        most = check_int("max_items", most, least=1, none="for no bound")
    return MapSpec(over, most, errors == "collect", chosen)


def _checked_over(value: object) -> tuple[Dependency, ...] | None:
    if value is None:
        return None
    given: list[object] = [value]
    if not isinstance(value, str) and not callable(value):
        if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
            msg = f"map_over takes a task, or a list of tasks, not {value!r:.80}"
            raise TypeError(msg)
        given = list(cast("Iterable[object]", value))
    found: list[Dependency] = []
    for each in given:
        if not isinstance(each, str) and not callable(each):
            msg = f"map_over takes names of tasks or decorated callables, not {each!r:.80}"
            raise TypeError(msg)
        found.append(str.__str__(each) if isinstance(each, str) else each)
    if not found:
        msg = "map_over is empty; name at least one task"
        raise ValueError(msg)
    return tuple(found)
