"""The options of one task, their checks, and the ``TaskSpec`` made from them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, cast

from flowrun.errors import TaskDefinitionError, TaskTypeError, close_match
from flowrun.policy import NO_RETRIES, RetryPolicy, check_int, checked_retries, checked_timeout
from flowrun.registry.caching import Cache, checked_cache
from flowrun.registry.map_spec import checked_mapping
from flowrun.registry.names import validate_name
from flowrun.registry.signature import UPSTREAM, inspect_callable

if TYPE_CHECKING:
    from flowrun.registry.map_spec import MapKey, MapSpec
    from flowrun.registry.signature import Signature

DEFAULT_TIMEOUT_S = 30.0

TaskFunction: TypeAlias = Callable[..., Any]
Dependency: TypeAlias = str | TaskFunction


class TriggerRule(StrEnum):
    """When a task runs, once all its dependencies have ended; the names are Airflow's.

    A dependency is bad if it FAILED or was SKIPPED. Only ``all_success`` decides as soon as one is
    bad. An unmet ``one_failed`` omits the task; any other unmet rule skips it if a dependency is
    bad, else omits it.
    """

    ALL_SUCCESS = "all_success"
    ALL_DONE = "all_done"
    ONE_SUCCESS = "one_success"
    ONE_FAILED = "one_failed"
    NONE_FAILED = "none_failed"
    NONE_FAILED_MIN_ONE_SUCCESS = "none_failed_min_one_success"


class TemplateOptions(TypedDict, total=False):
    """The options of a template.

    Attributes:
        dag: The DAG that its tasks belong to.
        deps: Names of tasks, or decorated callables, that must succeed first; ``None`` for none.
        teardown_of: Tasks, as in ``deps``, that have set up what this one tears down. It runs once
            all tasks with one of them in their ``deps``, and its own ``deps``, have ended, however
            they have ended; also when the run is stopped.
        timeout_s: Seconds that one attempt may take, 30 by default; ``None`` for no limit.
        retries: Further attempts after a failure: an ``int`` or a ``RetryPolicy``.
        retain_result: ``False`` releases the result once every consumer has ended.
        executor: Name of one of the engine's ``executors``; only for sync callables.
        copy_inputs: ``True`` gives every attempt a deep copy of the results that it consumes,
            for a task that changes its inputs in place. By default they are passed by reference.
        priority: Among tasks that are ready, those of higher priority start first; 0 by default.
        trigger_rule: What must have become of its dependencies for the task to run; see
            ``TriggerRule``. By default all must have succeeded.
        replace: ``True`` takes the place of a task of that name; ``False``, the default, refuses
            a name that is taken.
        uses: The engine's limits that every attempt uses: their names, or a dict of names and
            weights.
        cache: Takes the result of an earlier run while it holds; see ``Cache``. By default none.
        map_over: A dependency, or several of equal length: the task runs once for each element of
            its result, a list, a tuple or a dict (an element is then a pair), and what depends on
            the task is given the list of what these items have returned.
        max_items: How many items of the task run at once at most; no bound of its own by default.
        map_errors: ``"collect"``: the task succeeds whatever has become of its items, and leaves
            out those that have failed. ``"fail"``, the default: it fails if an item does.
        map_key: A function that returns a ``str`` or an ``int`` which identifies an element, so
            that a resume knows it again wherever it stands. By default an element is the same if
            its place and its stored form are.
    """

    dag: str | None
    deps: Iterable[Dependency] | None
    teardown_of: Iterable[Dependency] | None
    timeout_s: float | None
    retries: int | RetryPolicy
    retain_result: bool
    executor: str | None
    copy_inputs: bool
    priority: int
    trigger_rule: str
    replace: bool
    uses: Iterable[str] | Mapping[str, int] | None
    cache: Cache | None
    map_over: Dependency | Iterable[Dependency] | None
    max_items: int | None
    map_errors: str
    map_key: MapKey | None


class TaskOptions(TemplateOptions, total=False):
    """The options of a task: a template's, and a name.

    Attributes:
        name: The task's name; the function's name by default.
    """

    name: str | None


@dataclass(frozen=True, slots=True, eq=False)
class TaskSpec:
    """One declared task; see :class:`TaskOptions` for what its options mean.

    Attributes:
        function: The callable as it was declared.
        deps: Dependencies as declared: names or callables.
        signature: How results and context are injected.
        source: The source of the function itself; only of a task with a cache.
        mapping: How it is mapped; ``None`` if it is not.
    """

    name: str
    function: TaskFunction
    dag: str | None
    deps: tuple[Dependency, ...]
    timeout_s: float | None
    retry: RetryPolicy
    retain_result: bool
    executor: str | None
    signature: Signature
    copy_inputs: bool = False
    priority: int = 0
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS
    is_branch: bool = False
    uses: tuple[tuple[str, int], ...] = ()
    cache: Cache | None = None
    source: str = ""
    mapping: MapSpec | None = None
    teardown_of: tuple[Dependency, ...] = ()

    @property
    def retries(self) -> int:
        """Number of further attempts after the first."""
        return self.retry.retries


def callable_name(function: object) -> str:
    """Return the name that a task of this callable has when none is given."""
    function = bare_callable(function)
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def bare_callable(function: object) -> object:
    """Return what a callable is a ``functools.partial`` of, or itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def identity(function: TaskFunction) -> object:
    """Return a key to look a callable up by, also when it cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function


_OPTION_NAMES = frozenset(TaskOptions.__annotations__)


def check_options(name: object, options: Mapping[str, object]) -> None:
    """Check the names of options."""
    for option in options:
        if option not in _OPTION_NAMES:
            dag = options.get("dag")
            problem = (
                f"unknown option {option!r}; a task takes {', '.join(sorted(_OPTION_NAMES))}."
                f"{close_match(option, _OPTION_NAMES)}"
            )
            raise TaskTypeError(name, dag if isinstance(dag, str) else None, problem)


def make_spec(
    function: TaskFunction,
    bound: Mapping[str, object] | None,
    options: TaskOptions,
    *,
    is_branch: bool = False,
) -> TaskSpec:
    """Check a declaration and return its ``TaskSpec``."""
    name, dag = options.get("name"), options.get("dag")
    check_options(name, options)
    if name is None:
        name = callable_name(function)
    if dag is not None:
        validate_name(dag, what="DAG", task_name=name)
    validate_name(name, what="task", dag_name=dag)
    if name == UPSTREAM:
        problem = (
            f"{UPSTREAM!r} is the parameter that receives all results, so no task can have that"
            " name; choose another name=..."
        )
        raise TaskDefinitionError(name, dag, problem)
    signature = inspect_callable(function, task_name=name, dag_name=dag, bound=bound or {})
    deps = _checked_deps(name, dag, options.get("deps"), function)
    setups = _checked_deps(name, dag, options.get("teardown_of"), function, "teardown_of")
    try:
        _check_teardown(setups, options, is_branch=is_branch)
        _checked_flag("replace", options.get("replace", False))
        retains = _checked_flag("retain_result", options.get("retain_result", True))
        cache, source = checked_cache(
            options.get("cache"),
            bare_callable(function),
            signature.context_parameter,
            retains=retains,
        )
        rule = _checked_rule(options.get("trigger_rule", TriggerRule.ALL_SUCCESS))
        is_all_success = rule is TriggerRule.ALL_SUCCESS
        return TaskSpec(
            name,
            functools.partial(function, **bound) if bound else function,
            dag,
            deps,
            checked_timeout(options.get("timeout_s", DEFAULT_TIMEOUT_S)),
            checked_retries(options.get("retries", NO_RETRIES)),
            retains,
            _checked_executor(options.get("executor"), signature),
            signature,
            _checked_flag("copy_inputs", options.get("copy_inputs", False)),
            check_int("priority", options.get("priority", 0)),
            rule,
            is_branch,
            _checked_uses(options.get("uses")),
            cache,
            source,
            checked_mapping(options, is_branch=is_branch, is_all_success=is_all_success),
            setups,
        )
    except TypeError as error:
        raise TaskTypeError(name, dag, str(error)) from None
    except ValueError as error:
        raise TaskDefinitionError(name, dag, str(error)) from None


def _checked_flag(option: str, value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"{option} must be True or False, not {value!r:.80}"
        raise TypeError(msg)
    return value


def _checked_uses(uses: object) -> tuple[tuple[str, int], ...]:
    if uses is None:
        return ()
    if isinstance(uses, str | bytes) or not isinstance(uses, Iterable):
        msg = (
            f"uses must be a list of names of limits, or a dict of weights, not {uses!r:.80};"
            ' write uses=["api"]'
        )
        raise TypeError(msg)
    given = dict.fromkeys(cast("Iterable[object]", uses), 1)
    weights: Mapping[object, object] = given
    if isinstance(uses, Mapping):
        weights = cast("Mapping[object, object]", uses)
    found: dict[str, int] = {}
    for name, weight in weights.items():
        if not isinstance(name, str):
            msg = f"uses takes names of limits, not {name!r:.80}"
            raise TypeError(msg)
        found[name] = check_int(f"the weight of {name!r} in uses", weight, least=1)
    return tuple(sorted(found.items()))


def _checked_rule(value: object) -> TriggerRule:
    rules = [str(rule) for rule in TriggerRule]
    if not isinstance(value, str):
        msg = f"trigger_rule must be one of {', '.join(rules)}, not {value!r:.80}"
        raise TypeError(msg)
    if value not in rules:
        msg = f"unknown trigger_rule {value!r:.80}; choose one of {', '.join(rules)}."
        raise ValueError(msg + close_match(value, rules))
    return TriggerRule(value)


def _checked_executor(executor: object, signature: Signature) -> str | None:
    if executor is None:
        return None
    if not isinstance(executor, str):
        msg = f"executor= takes the name of an executor, not {type(executor).__name__}"
        raise TypeError(msg)
    if signature.is_async:
        msg = "async tasks run on the event loop; executor= is for sync callables"
        raise ValueError(msg)
    return executor


def _check_teardown(
    setups: tuple[Dependency, ...], options: TaskOptions, *, is_branch: bool
) -> None:
    if options.get("teardown_of") is None:
        return
    if not setups:
        msg = "teardown_of is empty, a teardown of nothing; name the tasks that it tears down"
        raise ValueError(msg)
    if options.get("map_over") is not None:
        msg = "a mapped task cannot be a teardown; it is given all results of what it tears down"
        raise ValueError(msg)
    if is_branch:
        msg = "a branch cannot be a teardown; remove teardown_of, or declare it with task()"
        raise ValueError(msg)
    if options.get("trigger_rule", TriggerRule.ALL_SUCCESS) != TriggerRule.ALL_SUCCESS:
        msg = "a teardown has a rule of its own; remove trigger_rule or teardown_of"
        raise ValueError(msg)


def _checked_deps(
    name: str,
    dag: str | None,
    deps: Iterable[Dependency] | None,
    function: TaskFunction,
    option: str = "deps",
) -> tuple[Dependency, ...]:
    if deps is None:
        return ()
    if isinstance(deps, str | bytes | Mapping) or not isinstance(deps, Iterable):
        problem = (
            f"{option} must be a list of task names or tasks, not {deps!r:.80}; write"
            f" {option}=[...]"
        )
        raise TaskTypeError(name, dag, problem)
    # Plain strings: of a member of an enumeration only its text is kept.
    found = tuple([str.__str__(each) if isinstance(each, str) else each for each in deps])
    seen: set[object] = set()
    for dependency in found:
        key: object
        if isinstance(dependency, str):
            label, key = repr(dependency), dependency
        elif callable(dependency):
            label, key = callable_name(dependency), identity(dependency)
        else:
            problem = (
                f"a dependency is a task's name or a decorated callable, not {dependency!r:.80}"
            )
            raise TaskTypeError(name, dag, problem)
        if key in seen:
            problem = f"dependency {label} is listed twice; list it once"
            raise TaskDefinitionError(name, dag, problem)
        if dependency == name or dependency is function:
            problem = f"it depends on itself; remove it from its own {option}"
            raise TaskDefinitionError(name, dag, problem)
        seen.add(key)
    return found
