"""Specs -> graph: what is resolved, in which order, and every mistake at once (G1-G4)."""

from __future__ import annotations

import functools
import graphlib
import inspect
import random
from enum import StrEnum
from itertools import pairwise
from typing import Any, ForwardRef

import pytest

from flowrun import TaskRegistry
from flowrun.errors import (
    AmbiguousDependencyError,
    CrossDagDependencyError,
    CycleError,
    GraphError,
    MissingDependencyError,
    UnfilledParameterError,
    UnknownTaskError,
)
from flowrun.graph.graph import Graph


def build(registry: TaskRegistry, dag: str = "d") -> Graph:
    return Graph.build(dag, registry.specs(dag), registry)


def declared(shape: dict[str, list[Any]], dag: str = "d") -> TaskRegistry:
    registry = TaskRegistry()
    for name, deps in shape.items():
        registry.register(lambda: None, name=name, dag=dag, deps=deps)
    return registry


def test_order_is_by_depth_then_as_declared() -> None:  # R6
    shape = {"join": ["x", "y"], "b": [], "y": ["a"], "x": ["b"], "a": []}
    graph = build(declared(shape))
    assert graph.names == ("b", "a", "y", "x", "join")
    assert graph.deps() == {"b": [], "a": [], "y": ["a"], "x": ["b"], "join": ["x", "y"]}
    assert graph.children == ((3,), (2,), (4,), (4,), ())
    assert len(graph) == 5


@pytest.mark.parametrize("wide", range(12))
def test_parents_and_children_are_numbers_in_order(wide: int) -> None:
    names = [f"t{number}" for number in range(wide)]
    backwards = names[::-1]
    shape: dict[str, list[Any]] = {
        "first": [],
        **{name: ["first"] for name in names},
        "last": backwards,
    }
    graph = build(declared(shape))
    if wide:
        assert graph.names == ("first", *names, "last")
        assert graph.children[0] == tuple(range(1, wide + 1))
        assert graph.parents[-1] == tuple(range(wide, 0, -1))
    assert graph.dependency_names[-1] == tuple(backwards)
    assert graph.children[-1] == ()


def test_names_of_dependencies_are_plain_strings() -> None:
    class Name(StrEnum):
        EXTRACT = "extract"

    graph = build(declared({"extract": [], "load": [Name.EXTRACT]}))
    assert graph.deps() == {"extract": [], "load": ["extract"]}
    assert type(graph.dependency_names[1][0]) is str


def test_dependency_that_cannot_be_hashed() -> None:
    class Extract:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return self is other

        def __call__(self) -> int:
            return 1

    extract = Extract()
    registry = declared({"load": [extract]})
    registry.register(extract, name="extract", dag="d")
    assert build(registry).deps() == {"extract": [], "load": ["extract"]}


def test_every_mistake_is_in_one_error() -> None:  # G1
    registry = declared({"a": ["missing"], "b": ["gone"]})
    registry.register(lambda nothing: None, name="c", dag="d")
    with pytest.raises(GraphError) as caught:
        build(registry)
    text = str(caught.value)
    assert "DAG 'd' has 3 mistakes" in text
    for part in ("'a'", "'missing'", "'b'", "'gone'", "'c'", "'nothing'"):
        assert part in text
    assert len(caught.value.problems) == 3


def test_many_mistakes_are_cut_short() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        build(declared({f"t{number}": ["nowhere"] for number in range(50)}))
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 30 more"


def test_missing_dependency_suggests() -> None:
    with pytest.raises(MissingDependencyError, match="Did you mean 'extract'"):
        build(declared({"extract": [], "load": ["extrcat"]}))


def test_missing_dependency_that_belongs_to_no_dag() -> None:
    registry = declared({"load": ["extract"]})
    registry.register(lambda: None, name="extract")
    with pytest.raises(MissingDependencyError, match="belongs to no DAG: give it dag='d'"):
        build(registry)


def test_cross_dag_dependency_by_name_and_by_callable() -> None:
    def elsewhere() -> None:
        return None

    registry = declared({"a": ["other"], "b": [elsewhere]})
    registry.register(lambda: None, name="other", dag="e")
    registry.register(elsewhere, name="far", dag="e")
    with pytest.raises(CrossDagDependencyError) as caught:
        build(registry)
    assert "'a' depends on 'other', a cross-DAG dependency" in caught.value.problems[0]
    assert "'b' depends on 'far', a cross-DAG dependency" in caught.value.problems[1]
    homeless = declared({"b": [elsewhere]})
    homeless.register(elsewhere, name="far")
    with pytest.raises(CrossDagDependencyError, match="belongs to no DAG"):
        build(homeless)


def test_callables_as_dependencies() -> None:
    def once() -> None:
        return None

    def twice() -> None:
        return None

    registry = declared({"x": [once]})
    registry.register(once, name="y", dag="d")
    assert build(registry).deps() == {"y": [], "x": ["y"]}
    registry = declared({"x": [twice]})
    registry.register(twice, name="p", dag="d")
    registry.register(twice, name="q", dag="d")
    with pytest.raises(AmbiguousDependencyError, match="registered as 'p', 'q'; name the one"):
        build(registry)
    with pytest.raises(MissingDependencyError, match="which is not registered as a task"):
        build(declared({"x": [once]}))
    registry = declared({})
    template = registry.task_template(once, dag="d")
    registry.register(twice, name="p", dag="d", deps=[template])
    with pytest.raises(MissingDependencyError, match=r"depends on a template, .* its bind\(\)"):
        build(registry)
    registry = declared({"x": [once, "y"]})
    registry.register(once, name="y", dag="d")
    with pytest.raises(GraphError, match="lists dependency 'y' twice"):
        build(registry)


def test_required_parameters_are_dependencies_whatever_the_order() -> None:  # G4
    registry = TaskRegistry()
    registry.register(lambda b, a: None, name="c", dag="d", deps=["a"])
    registry.register(lambda: None, name="a", dag="d")
    registry.register(lambda a=1: None, name="b", dag="d")
    assert build(registry).deps() == {"a": [], "b": [], "c": ["a", "b"]}


def test_parameter_that_nothing_fills() -> None:  # G4
    registry = declared({"extract": []})
    registry.register(lambda extrct: None, name="load", dag="d")
    with pytest.raises(UnfilledParameterError, match="'extrct', which nothing fills.*'extract'"):
        build(registry)
    registry = declared({"extract": []})
    registry.register(lambda upstream, extract: None, name="load", dag="d", deps=["extract"])
    with pytest.raises(UnfilledParameterError, match=r"read upstream\['extract'\]"):
        build(registry)


def test_cycle_is_printed_whole() -> None:  # G1
    shape: dict[str, list[Any]] = {
        "transform": ["extract"],
        "extract": ["load"],
        "load": ["transform"],
        "after": ["load"],
        "root": [],
    }
    with pytest.raises(CycleError) as caught:
        build(declared(shape))
    (problem,) = caught.value.problems
    path = problem.split(": ")[1].split(";")[0].split(" -> ")
    assert path[0] == path[-1]
    assert sorted(path[1:]) == ["extract", "load", "transform"]
    for child, parent in zip(path[1:], path, strict=False):
        assert parent in shape[child]  # data flows along the arrows
    registry = TaskRegistry()
    registry.register(lambda me: None, name="me", dag="d")
    with pytest.raises(CycleError, match="me -> me"):
        build(registry)


def test_every_cycle_is_told_beside_every_other_mistake() -> None:  # G1
    shape: dict[str, list[Any]] = {
        "a": ["b", "d"],
        "b": ["a"],
        "c": ["a"],
        "d": ["b"],  # shares b -> a with the first
        "x": ["y"],
        "y": ["x", "root"],
        "root": [],
    }
    with pytest.raises(CycleError) as caught:
        build(declared(shape))
    told = sorted(
        frozenset(problem.split(": ")[1].split(";")[0].split(" -> "))
        for problem in caught.value.problems
    )
    assert set(told) == {
        frozenset("ab"),
        frozenset("abd"),
        frozenset("xy"),
    }
    with pytest.raises(GraphError) as mixed:
        build(declared({**shape, "w": ["nobody"]}))
    assert len(mixed.value.problems) == 4
    assert "nobody" in mixed.value.problems[0]


def test_cycles_of_any_graph_are_real_ones() -> None:  # G1
    chance = random.Random(20_261_129)
    for _ in range(400):
        number = chance.randint(2, 8)
        shape: dict[str, list[Any]] = {
            f"t{i}": [f"t{j}" for j in range(number) if j != i and chance.random() < 0.3]
            for i in range(number)
        }
        order = graphlib.TopologicalSorter(shape)
        try:
            order.prepare()
        except graphlib.CycleError:
            pass
        else:
            assert len(build(declared(shape))) == number
            continue
        with pytest.raises(CycleError) as caught:
            build(declared(shape))
        rest = {name: set(parents) for name, parents in shape.items()}
        for problem in caught.value.problems:
            if "more cycles" in problem:
                continue
            path = problem.split(": ")[-1].split(";")[0].split(" -> ")
            assert path[0] == path[-1]
            for parent, child in pairwise(path):
                assert parent in shape[child]
            rest[path[-1]].discard(path[-2])
        if len(caught.value.problems) < 20:  # all were told: without those edges there is none
            graphlib.TopologicalSorter(rest).prepare()


def test_more_cycles_than_can_be_told() -> None:  # G1 G2
    number = 2_000
    shape: dict[str, list[Any]] = {f"t{i}": [f"t{i ^ 1}"] for i in range(number)}
    with pytest.raises(CycleError) as caught:
        build(declared(shape))
    assert len(caught.value.problems) == 20
    assert caught.value.problems[-1] == "there are more cycles than these"


@pytest.mark.no_cover
def test_long_cycle_needs_no_recursion() -> None:  # G2
    number = 20_000
    shape: dict[str, list[Any]] = {f"t{i}": [f"t{(i + 1) % number}"] for i in range(number)}
    with pytest.raises(CycleError):
        build(declared(shape))


@pytest.mark.once
@pytest.mark.no_cover
@pytest.mark.parametrize("shape", ["fan-in", "fan-out"])
def test_wide_graphs(shape: str) -> None:  # G2
    number = 100_000
    names = [f"t{i}" for i in range(number)]
    deps: dict[str, list[Any]] = {name: [] for name in names}
    if shape == "fan-in":
        deps["last"] = names
    else:
        deps = {"first": [], **{name: ["first"] for name in names}}
    graph = build(declared(deps))
    assert len(graph) == number + 1
    assert len(graph.descendants([0])) == (2 if shape == "fan-in" else number + 1)


def test_subgraph_and_numbers() -> None:
    graph = build(declared({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": []}))
    part = graph.subgraph(["c", "b"])
    assert part.names == ("a", "b", "c")
    assert part.targets == ("c", "b")
    assert part.deps() == {"a": [], "b": ["a"], "c": ["a"]}
    assert sorted(graph.descendants([graph.number("a")])) == [0, 2, 3, 4]
    with pytest.raises(UnknownTaskError, match="has no task 'x'"):
        graph.subgraph(["x"])
    with pytest.raises(UnknownTaskError):
        graph.number(7)


def test_wrapper_around_a_task_names_that_task() -> None:  # I1
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    registry = TaskRegistry()

    @logged
    @registry.task(dag="d")
    def extract() -> int:
        return 1

    registry.register(lambda upstream: upstream, name="load", dag="d", deps=[extract])
    assert build(registry).deps() == {"extract": [], "load": ["extract"]}
    registry.register(
        lambda upstream: upstream, name="twice", dag="d", deps=[extract, extract.__wrapped__]
    )
    with pytest.raises(GraphError, match="'twice' lists dependency 'extract' twice"):
        build(registry)


@pytest.mark.parametrize(
    ("function", "lost"),
    [
        (lambda *tables: tables, "'a', 'b'"),
        (lambda a, *tables: a, "'b'"),
        (print, "'a', 'b'"),
    ],
)
def test_results_that_star_arguments_would_lose_are_refused(function: Any, lost: str) -> None:
    registry = declared({"a": [], "b": []})
    registry.register(function, name="merge", dag="d", deps=["a", "b"])
    with pytest.raises(UnfilledParameterError, match=f"'merge' has .args.*{lost} would be lost"):
        build(registry)
    with pytest.raises(UnfilledParameterError, match="declare a parameter 'upstream'"):
        build(registry)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, *tables: a,
        lambda *tables, **more: more,
        lambda upstream, *tables: upstream,
        functools.partial(print, "done"),
    ],
)
def test_star_arguments_that_lose_nothing_are_accepted(function: Any) -> None:
    registry = declared({"a": [], "b": []})
    registry.register(function, name="merge", dag="d", deps=["a", "b"])
    assert build(registry).deps()["merge"] == ["a", "b"]


def test_star_arguments_without_dependencies_are_accepted() -> None:
    registry = TaskRegistry()
    registry.register(lambda *tables: tables, name="merge", dag="d")
    assert build(registry).names == ("merge",)


@pytest.mark.parametrize(
    "annotation", ["Ctx[int]", "Ctx", "typing.Ctx | None", "Optional[Ctx[int]]", ForwardRef("Ctx")]
)
def test_annotation_that_cannot_be_resolved_is_named(annotation: object) -> None:
    def load(first: object, ctx: object) -> None: ...

    load.__annotations__["ctx"] = annotation
    registry = declared({"first": []})
    registry.register(load, name="load", dag="d")
    with pytest.raises(UnfilledParameterError) as caught:
        build(registry)
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
    assert f"its annotation {text!r} cannot be resolved at run time" in str(caught.value)
    assert "import it outside 'if TYPE_CHECKING:'" in str(caught.value)


def test_parameter_that_only_a_partial_takes_has_no_annotation_to_name() -> None:
    class Odd:
        __signature__ = inspect.Signature(
            [inspect.Parameter("nothing", inspect.Parameter.KEYWORD_ONLY)]
        )

        def __call__(self, **more: object) -> None: ...

    registry = TaskRegistry()
    registry.register(Odd(), name="load", dag="d")
    with pytest.raises(UnfilledParameterError, match="annotate it as RunContext"):
        build(registry)
