"""Declaring tasks: the three forms, templates, and everything that is refused."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from flowrun import RetryPolicy, TaskRegistry, task, task_template
from flowrun.errors import DefinitionError, TaskDefinitionError, TaskTypeError


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
    with pytest.raises(DefinitionError, match="@task does not know where to register"):
        task(work)
    with pytest.raises(DefinitionError, match="@task_template does not know"):
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
    assert template(table="x", limit=2) == "x 2"
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


def test_registries_nest() -> None:
    outer, inner = TaskRegistry(), TaskRegistry()
    first = outer.activate()
    second = inner.activate()
    task(work)
    TaskRegistry.deactivate(second)
    task("again")(work)
    TaskRegistry.deactivate(first)
    assert (inner.list_tasks(), outer.list_tasks()) == (["work"], ["again"])
