"""Declaring tasks: the three forms, templates, and everything that is refused."""

from __future__ import annotations

import functools
import logging
import math
import sys
from typing import Any

import pytest

from flowrun import RetryPolicy, RunContext, TaskRegistry, task, task_template
from flowrun.errors import DefinitionError, TaskDefinitionError, TaskTypeError, UnknownTaskError


def work() -> int:
    return 1


@pytest.fixture
def registry() -> TaskRegistry:
    return TaskRegistry()


def test_three_forms_and_the_function_stays_itself(registry: TaskRegistry) -> None:
    @task(registry=registry)
    def plain() -> int:
        return 1

    @task("named", registry=registry, dag="d")
    def second() -> int:
        return 2

    @task(name="third", registry=registry, dag="d", retries=RetryPolicy(2), timeout_s=None)
    def other() -> int:
        return 3

    registry.task(work)
    assert (plain(), second(), other()) == (1, 2, 3)
    assert registry.list_tasks() == ["plain", "work"]
    assert registry.list_tasks("d") == ["named", "third"]
    spec = registry.specs("d")[1]
    assert (spec.retries, spec.timeout_s, spec.retain_result) == (2, None, True)
    assert registry.specs("d")[0].timeout_s == 30.0


def test_default_names(registry: TaskRegistry) -> None:
    class Callable_:
        def __call__(self) -> None:
            return None

    registry.register(functools.partial(functools.partial(work)))
    registry.register(Callable_(), dag="d")
    assert registry.list_tasks() == ["work"]
    assert registry.list_tasks("d") == ["Callable_"]


def test_callable_that_cannot_be_hashed_is_found_again(registry: TaskRegistry) -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return self is other

        def __call__(self) -> None:
            return None

    odd = Odd()
    registry.register(odd, name="odd")
    assert registry.homes(odd) == [(None, "odd")]
    assert registry.homes(Odd()) == []


def test_no_registry_to_register_with() -> None:
    with pytest.raises(DefinitionError, match="@task has no registry"):
        task(work)
    with pytest.raises(DefinitionError, match="@task_template has no registry"):
        task_template(work)
    with pytest.raises(TypeError, match="registry= takes a TaskRegistry, not int"):
        task(registry=7)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"deps": "ab"}, TaskTypeError, r"deps must be a list .* write deps=\[...\]"),
        ({"deps": 7}, TaskTypeError, "deps must be a list"),
        ({"deps": {"a": 1}}, TaskTypeError, "deps must be a list"),
        ({"deps": [7]}, TaskTypeError, "a dependency is a task's name or a decorated callable"),
        ({"deps": ["a", "a"]}, TaskDefinitionError, "dependency 'a' is listed twice"),
        ({"deps": [len, len]}, TaskDefinitionError, "dependency len is listed twice"),
        ({"deps": ["t"]}, TaskDefinitionError, "it depends on itself"),
        ({"deps": [work]}, TaskDefinitionError, "it depends on itself"),
        ({"timeout_s": -1}, TaskDefinitionError, "timeout_s must be finite and above 0, not -1"),
        ({"timeout_s": 0}, TaskDefinitionError, "timeout_s must be finite and above 0"),
        ({"timeout_s": math.nan}, TaskDefinitionError, "timeout_s must be finite"),
        ({"timeout_s": math.inf}, TaskDefinitionError, "use None for no timeout"),
        ({"timeout_s": "1"}, TaskTypeError, "timeout_s must be seconds or None"),
        ({"timeout_s": True}, TaskTypeError, "timeout_s must be seconds or None"),
        ({"retries": -1}, TaskDefinitionError, "retries must be 0 or more, not -1"),
        ({"retries": 1.5}, TaskTypeError, "retries must be an int or a RetryPolicy"),
        ({"retries": True}, TaskTypeError, "retries must be an int or a RetryPolicy"),
        ({"retain_result": 1}, TaskTypeError, "retain_result must be True or False"),
        ({"copy_inputs": 1}, TaskTypeError, "copy_inputs must be True or False, not 1"),
        ({"name": "upstream"}, TaskDefinitionError, "'upstream' is the parameter that receives"),
        ({"executor": 7}, TaskTypeError, "executor= takes the name of an executor"),
        ({"retry": 1}, TaskTypeError, "unknown option 'retry'.*Did you mean 'retries'"),
        ({"name": ""}, TaskDefinitionError, "must not be empty"),
        ({"name": "x" * 201}, TaskDefinitionError, "may have 200 characters"),
        ({"name": 7}, TaskTypeError, "must be a str"),
        ({"dag": "a\nb"}, TaskDefinitionError, "control characters"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_registered(
    registry: TaskRegistry, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        registry.register(work, **{"name": "t", "dag": "d", **options})
    assert isinstance(caught.value, ValueError)
    assert registry.list_dags() == []
    assert registry.version == 0


def test_name_given_twice_and_name_taken(registry: TaskRegistry) -> None:
    with pytest.raises(TaskDefinitionError, match="the name was given twice"):
        registry.task("a", name="b")
    registry.register(work, name="a", dag="d")
    with pytest.raises(TaskDefinitionError, match="task 'a' .DAG 'd'.: a task of that name"):
        registry.register(len, name="a", dag="d")
    registry.register(work, name="a", dag="e")  # G3


def test_name_taken_by_a_default_name_gets_a_remedy_that_fits(registry: TaskRegistry) -> None:
    registry.register(lambda: 1, dag="d")
    with pytest.raises(TaskDefinitionError, match=r'give each its own: task\("name", ...\)'):
        registry.register(lambda: 2, dag="d")
    registry.register(work, dag="d")
    with pytest.raises(TaskDefinitionError, match=r"give it its own: name='work_2'"):
        registry.register(functools.partial(work), dag="d")


def test_no_dependencies_can_be_written_as_none(registry: TaskRegistry) -> None:
    registry.task("t", dag="d", deps=None)(work)
    registry.task_template(lambda table: table, dag="d", deps=None).bind("u", "users")
    assert [spec.deps for spec in registry.specs("d")] == [(), ()]


def test_inputs_are_copied_only_when_a_task_asks_for_it(registry: TaskRegistry) -> None:  # I4
    registry.register(work, name="a", dag="d")
    registry.register(work, name="b", dag="d", copy_inputs=True)
    assert [spec.copy_inputs for spec in registry.specs("d")] == [False, True]


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def test_wrapper_stands_for_the_task_that_it_wraps(registry: TaskRegistry) -> None:  # I1
    registry.register(work, name="inner", dag="d")
    outer = wrapped(wrapped(work))
    assert registry.homes(outer) == [("d", "inner")]
    registry.register(outer, name="outer", dag="d")  # from now on it is a task of its own
    assert registry.homes(outer) == [("d", "outer")]
    assert registry.homes(wrapped(outer)) == [("d", "outer")]
    assert registry.homes(wrapped(len)) == []
    assert registry.homes(staticmethod(work)) == [("d", "inner")]


def test_wrappers_in_a_circle_are_no_task(registry: TaskRegistry) -> None:
    first, second = wrapped(work), wrapped(work)
    first.__wrapped__, second.__wrapped__ = second, first
    assert registry.homes(first) == []


@pytest.mark.parametrize("wrong", [7, None, "text"])
def test_what_is_no_callable_is_refused(registry: TaskRegistry, wrong: Any) -> None:
    with pytest.raises(TaskTypeError):
        registry.register(wrong, name="t")


def test_wrong_option_of_a_decorator_is_told_before_it_is_applied(registry: TaskRegistry) -> None:
    with pytest.raises(TaskTypeError, match="unknown option 'dags'"):
        registry.task(dags="d")  # type: ignore[call-overload]


def test_templates(registry: TaskRegistry) -> None:
    def fetch(*, table: str, limit: int = 1) -> str:
        return f"{table} {limit}"

    template = task_template(fetch, registry=registry, dag="d", retries=1)
    users = template.bind("users", table="users")
    assert users() == "users 1"
    assert template.function(table="x", limit=2) == "x 2"
    template.with_options(deps=["users"], retries=0).bind("orders", table="orders")
    assert [(spec.name, spec.retries, spec.deps) for spec in registry.specs("d")] == [
        ("users", 1, ()),
        ("orders", 0, ("users",)),
    ]
    assert registry.homes(users) == [("d", "users")]

    @task_template(registry=registry)
    def other(*, table: str) -> str:
        return table

    other.bind("unscoped", table="x")
    assert registry.list_tasks() == ["unscoped"]


def test_dependencies_of_a_template_that_come_from_an_iterator_serve_every_bind(
    registry: TaskRegistry,
) -> None:
    def fetch(*, table: str) -> str:
        return table

    template = registry.task_template(fetch, dag="d", deps=iter(["a", "b"]))
    for name in ("users", "orders"):
        template.bind(name, table=name)
    assert [spec.deps for spec in registry.specs("d")] == [("a", "b"), ("a", "b")]


def test_wrong_templates_are_refused(registry: TaskRegistry) -> None:
    def fetch(*, table: str) -> str:
        return table

    with pytest.raises(TaskDefinitionError, match="a template has no name of its own"):
        registry.task_template(fetch, name="x")  # type: ignore[call-overload]
    with pytest.raises(TaskTypeError, match="unknown option 'retrys'"):
        registry.task_template(fetch, retrys=1)  # type: ignore[call-overload]
    with pytest.raises(TaskDefinitionError, match="tabel"):
        registry.task_template(fetch).bind("x", tabel="users")
    with pytest.raises(TaskTypeError):
        registry.task_template(7)  # type: ignore[call-overload]
    assert registry.version == 0


def test_unknown_option_of_a_template_is_named_before_there_is_a_function(
    registry: TaskRegistry,
) -> None:
    with pytest.raises(TaskTypeError, match="unknown option 'retry'.*Did you mean 'retries'"):
        registry.task_template(dag="d", retry=2)  # type: ignore[call-overload]
    with pytest.raises(TaskDefinitionError, match="a template has no name of its own"):
        registry.task_template(dag="d", name="x")  # type: ignore[call-overload]
    template = registry.task_template(work, dag="d")
    with pytest.raises(TaskTypeError, match="unknown option 'retry'"):
        template.with_options(retry=2)  # type: ignore[call-arg]


def test_template_is_neither_called_nor_a_task(registry: TaskRegistry) -> None:
    template = registry.task_template(work, dag="d")
    with pytest.raises(TypeError, match=r"template of 'work' is not callable; use \.bind\(name"):
        template(1)
    with pytest.raises(TaskTypeError, match=r"a template is not a task.*template\.bind"):
        registry.task("t", dag="d")(template)


class TestBindingByPosition:
    def test_arguments_fill_parameters_in_their_order(self, registry: TaskRegistry) -> None:
        def fetch(table: str, limit: int = 5, *, mode: str = "all") -> str:
            return f"{table} {limit} {mode}"

        template = registry.task_template(fetch, dag="d")
        assert template.bind("users", "users_table")() == "users_table 5 all"
        assert template.bind("orders", "orders_table", 7, mode="new")() == "orders_table 7 new"

    def test_context_and_upstream_are_left_out(self, registry: TaskRegistry) -> None:
        def fetch(context: RunContext[Any], upstream: Any, table: str) -> Any:
            return context, upstream, table

        task_function = registry.task_template(fetch, dag="d").bind("users", "users_table")
        assert task_function(context=1, upstream=2) == (1, 2, "users_table")
        (spec,) = registry.specs("d")
        assert spec.signature.context_parameter == "context"
        assert spec.signature.required == ()

    def test_positional_only_and_star_parameters(self, registry: TaskRegistry) -> None:
        def fetch(table: str, /, *columns: str) -> Any:
            return table, columns

        template = registry.task_template(fetch, dag="d")
        assert template.bind("users", "users_table")() == ("users_table", ())
        assert template.bind("ids", "users_table", "id", "key")() == ("users_table", ("id", "key"))

    def test_signature_that_cannot_be_read(self, registry: TaskRegistry) -> None:
        assert registry.task_template(max, dag="d").bind("most", 1, 2)() == 2

    @pytest.mark.parametrize(
        ("arguments", "parameters", "message"),
        [
            ((1, 2), {}, "got 2 arguments by position.*accepts 'table'; pass the others by name"),
            ((1,), {"table": 2}, "got the parameter 'table' by position and by name"),
            ((1,), {"tables": 2}, "unknown parameter 'tables'"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, registry: TaskRegistry, arguments: Any, parameters: Any, message: str
    ) -> None:
        def fetch(table: str, context: RunContext[Any], *, limit: int = 1) -> None: ...

        with pytest.raises(TaskDefinitionError, match=message):
            registry.task_template(fetch, dag="d").bind("t", *arguments, **parameters)
        assert registry.version == 0


def test_registries_nest() -> None:
    outer, inner = TaskRegistry(), TaskRegistry()
    first = outer.activate()
    second = inner.activate()
    task(work)
    TaskRegistry.deactivate(second)
    task("again")(work)
    TaskRegistry.deactivate(first)
    assert (inner.list_tasks(), outer.list_tasks()) == (["work"], ["again"])


def test_replace_takes_the_place_of_a_task(registry: TaskRegistry) -> None:
    registry.register(work, name="a", dag="d")
    registry.register(work, name="b", dag="d", deps=["a"])
    version = registry.version

    def other() -> int:
        return 2

    registry.task("a", dag="d", replace=True)(other)
    assert registry.list_tasks("d") == ["a", "b"]
    assert registry.specs("d")[0].function is other
    assert registry.version > version
    registry.register(other, name="a", dag="d", replace=True)
    registry.register(other, name="c", dag="d", replace=True)  # nothing is there to replace
    assert registry.homes(other) == [("d", "a"), ("d", "c")]


def test_what_is_replaced_still_names_the_task(registry: TaskRegistry) -> None:
    def other() -> int:
        return 2

    registry.register(work, name="a", dag="d")
    registry.register(other, name="a", dag="d", replace=True)
    assert registry.homes(work) == registry.homes(other) == [("d", "a")]


def test_callable_known_by_its_id_is_forgotten_with_its_task(registry: TaskRegistry) -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> None:
            return None

    odd = Odd()
    registry.register(odd, name="a", dag="d")
    registry.register(work, name="a", dag="d", replace=True)
    assert registry.homes(odd) == []
    assert registry.homes(work) == [("d", "a")]


def test_replace_is_a_flag_and_templates_take_it(registry: TaskRegistry) -> None:
    template = registry.task_template(lambda *, table: table, dag="d", replace=True)
    template.bind("a", table="x")
    template.bind("a", table="y")
    assert registry.specs("d")[0].function() == "y"
    with pytest.raises(TaskTypeError, match="replace must be True or False"):
        registry.register(work, replace="yes")  # type: ignore[arg-type]


def test_unregister_removes_a_task_and_an_empty_dag(registry: TaskRegistry) -> None:
    registry.register(work, name="a", dag="d")
    registry.register(work, name="b", dag="d")
    registry.register(work)
    version = registry.version
    registry.unregister("a", "d")
    assert registry.homes(work) == [("d", "b"), (None, "work")]
    assert registry.version > version
    registry.unregister("b", "d")
    assert registry.list_dags() == []
    registry.unregister("work")
    assert registry.homes(work) == []
    with pytest.raises(UnknownTaskError, match="DAG 'd' has no task 'a'"):
        registry.unregister("a", "d")
    with pytest.raises(UnknownTaskError, match="outside any DAG, has no task 'work'"):
        registry.unregister("work")


def declared(source: str, module: str = "__main__") -> Any:
    """Return the function of that name as a cell of a notebook declares it."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(f"def extract() -> object:\n    return {source}", namespace)
    return namespace["extract"]


def test_cell_that_is_run_again_replaces_its_task(
    registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    caplog.set_level(logging.INFO, "flowrun.registry")
    old = registry.task(dag="d")(declared("1"))
    registry.task(dag="d")(declared("2"))
    assert registry.specs("d")[0].function() == 2
    assert registry.homes(old) == [("d", "extract")]
    (line,) = caplog.messages
    assert line == "task 'extract' of DAG 'd' was declared again and replaces the one that it was"


def test_only_a_function_of_a_prompt_is_declared_again(
    registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    registry.register(declared("1"), dag="d")
    registry.register(declared("1", "a_module"), dag="e")
    for function, options in (
        (declared("2", "a_module"), {"dag": "e"}),
        (declared("2", "a_module"), {"dag": "d"}),
        (work, {"dag": "d", "name": "extract"}),
    ):
        with pytest.raises(TaskDefinitionError, match="already registered"):
            registry.register(function, **options)  # type: ignore[arg-type]
    monkeypatch.delattr(sys, "ps1")
    with pytest.raises(TaskDefinitionError, match="already registered"):
        registry.register(declared("2"), dag="d")
