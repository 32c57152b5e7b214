"""How results and the run's context get into a callable (promises G4, I1, I3)."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
import typing
import unicodedata
import warnings
from typing import Annotated, Any, ForwardRef, Optional, Self, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowrun.context
from flowrun.context import RunContext
from flowrun.errors import TaskDefinitionError, TaskTypeError
from flowrun.graph.call_plan import plan_call
from flowrun.registry.names import validate_name
from flowrun.registry.positions import by_position
from flowrun.registry.signature import Signature, inspect_callable

if typing.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from flowrun.context import RunContext as HiddenContext

    AlsoHidden: typing.TypeAlias = RunContext[int]
    QuotedHidden = "flowrun.RunContext[int]"


class Deps:
    """What a run's context wraps in these tests."""


class Special(RunContext[Deps]):
    """A user's own kind of context."""


class TypeAliasType:
    """What a backport of Python 3.12's type aliases offers to Python 3.11."""

    def __init__(self, evaluate: Callable[[], object]) -> None:
        self._evaluate = evaluate

    @property
    def __value__(self) -> object:
        return self._evaluate()


Aliased = RunContext
TextAlias = "RunContext[Deps]"
context_module = flowrun.context


def read(function: object, **bound: object) -> Signature:
    return inspect_callable(function, task_name="load", dag_name="daily", bound=bound)


def called_with(
    function: Callable[..., object],
    results: dict[str, object] | None = None,
    context: object = None,
    bound: dict[str, object] | None = None,
) -> object:
    """Call a function as its task would be called."""
    results = results or {}
    plan = plan_call(read(function, **(bound or {})), list(results))
    args, kwargs = plan.arguments(list(results), list(results.values()), context)
    return functools.partial(function, **(bound or {}))(*args, **kwargs)


def annotated(annotation: object) -> Callable[..., object]:
    """Return a function whose parameter ``context`` has this annotation."""

    def load(rows: object, context: object) -> object:
        return rows, context

    load.__annotations__ = {"context": annotation, "return": object}
    return load


def defined(source: str, **names: object) -> Any:
    """Run source whose annotations are not postponed and return its ``load``."""
    scope: dict[str, object] = {"RunContext": RunContext, "Deps": Deps, **names}
    exec(compile(source, "<test>", "exec", dont_inherit=True), scope)
    return scope["load"]


class TestResults:
    def test_function_without_parameters_is_given_nothing(self) -> None:
        def load() -> None: ...

        plan = plan_call(read(load), ["extract", "transform"])
        assert plan.arguments(["extract", "transform"], [1, 2], RunContext(Deps())) == ((), {})
        assert list(plan.passed_on((7, 8))) == []

    def test_required_and_optional_parameters_are_told_apart(self) -> None:
        def load(a: int, b: int = 1, *, c: int, d: int = 2) -> None: ...

        found = read(load)
        assert found.required == ("a", "c")
        assert found.optional == ("b", "d")
        assert not found.is_async
        assert not found.accepts_any_keyword

    def test_results_go_to_the_parameters_of_their_name(self) -> None:
        def load(orders: object, refunds: object, *, rates: object = "default") -> object:
            return orders, refunds, rates

        assert called_with(load, {"refunds": 2, "orders": 1}) == (1, 2, "default")
        assert called_with(load, {"refunds": 2, "rates": 3, "orders": 1}) == (1, 2, 3)

    def test_dependency_without_a_parameter_is_order_only(self) -> None:
        def load(orders: object) -> object:
            return orders

        plan = plan_call(read(load), ["create_table", "orders"])
        assert plan.arguments(["create_table", "orders"], ["ignored", 1], None) == (
            (),
            {"orders": 1},
        )
        assert list(plan.passed_on((7, 8))) == [8]

    def test_none_is_a_result_like_any_other(self) -> None:  # I2
        assert called_with(lambda orders=5: orders, {"orders": None}) is None

    def test_upstream_gets_every_result_in_declared_order(self) -> None:
        def load(upstream: dict[str, object]) -> object:
            return list(upstream.items())

        assert read(load).wants_upstream
        assert called_with(load, {"b": 2, "a": 1, "not a name": 3}) == [
            ("b", 2),
            ("a", 1),
            ("not a name", 3),
        ]
        assert called_with(load) == []
        assert list(plan_call(read(load), ["b", "a"]).passed_on((7, 8))) == [7, 8]

    def test_upstream_disables_named_injection(self) -> None:
        def load(upstream: dict[str, object], a: object = "default", **more: object) -> object:
            return upstream, a, more

        assert called_with(load, {"a": 1, "b": 2}) == ({"a": 1, "b": 2}, "default", {})

    def test_upstream_can_have_a_default(self) -> None:
        assert called_with(lambda upstream=None: upstream, {"a": 1}) == {"a": 1}

    def test_task_named_upstream_fills_the_upstream_dict_too(self) -> None:
        assert called_with(lambda upstream: upstream, {"upstream": 1}) == {"upstream": 1}

    def test_any_keyword_gets_every_other_result(self) -> None:
        def load(a: object, **more: object) -> object:
            return a, more

        assert read(load).accepts_any_keyword
        assert called_with(load, {"b": 2, "a": 1, "with-dash": 3}) == (1, {"b": 2, "with-dash": 3})

    def test_variable_positional_parameters_are_given_nothing(self) -> None:
        def load(*args: object, a: object) -> object:
            return args, a

        assert called_with(load, {"args": 1, "a": 2}) == ((), 2)

    def test_positional_only_parameters_are_passed_by_position(self) -> None:
        def load(a: object, b: object, /, c: object) -> object:
            return a, b, c

        assert read(load).by_position == ("a", "b")
        assert called_with(load, {"c": 3, "b": 2, "a": 1}) == (1, 2, 3)

    def test_gap_before_a_positional_only_result_gets_its_default(self) -> None:
        def load(a: object = "A", b: object = "B", c: object = "C", /) -> object:
            return a, b, c

        assert called_with(load, {"b": 2}) == ("A", 2, "C")
        assert called_with(load) == ("A", "B", "C")
        assert plan_call(read(load), ["b"]).arguments(["b"], [2], None) == (("A", 2), {})

    def test_positional_only_upstream_and_context_are_passed_by_position(self) -> None:
        def load(upstream: object, context: RunContext[Deps], /, **more: object) -> object:
            return upstream, context, more

        context = RunContext(Deps())
        assert called_with(load, {"a": 1}, context) == ({"a": 1}, context, {})

    def test_positional_only_name_is_not_given_twice(self) -> None:
        def load(a: object, /, **more: object) -> object:
            return a, more

        assert called_with(load, {"a": 1, "b": 2}) == (1, {"b": 2})

    def test_functions_of_the_same_shape_share_one_signature(self) -> None:
        functions = [eval("lambda a, b=1: a") for _ in range(3)]
        assert len({id(read(function)) for function in functions}) == 1

    def test_equal_shapes_with_other_defaults_stay_apart(self) -> None:
        first = read(lambda a, b: (a, b))
        second = read(lambda a, b=1: (a, b))
        assert (first.required, second.required) == (("a", "b"), ("a",))

    @given(st.data())
    def test_every_parameter_receives_exactly_its_own_result(self, data: st.DataObject) -> None:
        names = data.draw(st.permutations(["a", "b", "c", "d", "e", "f"]))
        cuts = sorted(data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=2)))
        defaulted = data.draw(st.sets(st.sampled_from(names)))
        kind = inspect.Parameter
        parameters: list[str] = []
        seen_default = False
        for place, name in enumerate(names):
            if place == cuts[0] and place:
                parameters.append("/")
            if place == cuts[1]:
                parameters.append("*")
            positional = place < cuts[1]
            seen_default = seen_default or name in defaulted
            with_default = seen_default if positional else name in defaulted
            parameters.append(f"{name}='default'" if with_default else name)
        source = f"def load({', '.join(parameters)}): return dict(locals())"
        load = defined(source)
        declared = inspect.signature(load).parameters
        required = [name for name in names if declared[name].default is kind.empty]
        given_names = data.draw(st.permutations(names))
        given_names = [name for name in given_names if name in required or data.draw(st.booleans())]
        found = read(load)
        assert list(found.required) == required
        assert called_with(load, {name: name.upper() for name in given_names}) == {
            name: name.upper() if name in given_names else "default" for name in names
        }


class TestContext:
    @pytest.mark.parametrize(
        "annotation",
        [
            RunContext,
            RunContext[Deps],
            Special,
            Annotated[RunContext[Deps], "settings"],
            Annotated["RunContext[Deps]", "settings"],
            Union[RunContext[Deps], list[int]],  # noqa: UP007 - the old spelling is meant
            RunContext[Deps] | int,
            ForwardRef("RunContext[Deps]"),
            "RunContext",
            "RunContext[Deps]",
            "RunContext[OnlyForTypeCheckers]",
            "flowrun.RunContext[Deps]",
            "flowrun.context.RunContext[Deps]",
            "context_module.RunContext[Deps]",
            "somewhere.unknown.RunContext",
            "Aliased[Deps]",
            "TextAlias",
            "Special",
            "'RunContext[Deps]'",
            "Annotated[RunContext[Deps], unknown(1)]",
            "typing.Annotated[RunContext[Deps], 1]",
            "Union[int, RunContext[Deps]]",
            "Union[RunContext[Deps]]",
            " RunContext[Deps] ",
            "RunContext[Deps] | Unknown",
        ],
    )
    def test_context_parameter_is_found_by_its_annotation(self, annotation: object) -> None:  # I1
        found = read(annotated(annotation))
        assert found.context_parameter == "context"
        assert not found.context_optional
        assert not found.context_has_default
        assert found.required == ("rows",)

    @pytest.mark.parametrize(
        "annotation",
        [
            Optional[RunContext[Deps]],  # noqa: UP045 - the old spelling is meant
            RunContext[Deps] | None,
            Annotated[RunContext[Deps] | None, "settings"],
            Optional["RunContext[Deps]"],
            "Optional[RunContext[Deps]]",
            "typing.Optional[RunContext[Deps]]",
            "RunContext[Deps] | None",
            "None | RunContext[Unknown]",
            "Union[RunContext[Deps], None]",
        ],
    )
    def test_optional_context_may_be_none(self, annotation: object) -> None:  # I1
        found = read(annotated(annotation))
        assert found.context_parameter == "context"
        assert found.context_optional
        assert called_with(annotated(annotation), {"rows": 1}) == (1, None)

    @pytest.mark.parametrize(
        "annotation",
        [
            None,
            int,
            list[RunContext[Deps]],
            type[RunContext[Deps]],
            Annotated[int, RunContext[Deps]],
            dict,
            Any,
            int | None,
            42,
            "int",
            "list[RunContext[Deps]]",
            "Unknown",
            "Unknown[RunContext]",
            "Optional[int]",
            "Annotated[int, RunContext[Deps]]",
            "the rows to load",
            "print('never run')",
            "make()[RunContext]",
            "make().thing",
            "lambda: RunContext",
            "1 + RunContext",
            "42",
            "",
            "\0",
            "(" * 10_000,
            "Deps.RunContexts",
        ],
    )
    def test_other_annotations_are_no_context(
        self, annotation: object, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read(annotated(annotation))
        assert found.context_parameter is None
        assert found.required == ("rows", "context")
        assert capsys.readouterr().out == ""

    def test_context_hidden_under_type_checking_is_found(self) -> None:  # I1
        source = (
            "from __future__ import annotations\n"
            "def load(a, context: RunContext[Deps] | None, b): return a, context, b"
        )
        scope: dict[str, Any] = {}
        exec(compile(source, "<test>", "exec", dont_inherit=True), scope)
        found = read(scope["load"])
        assert (found.context_parameter, found.context_optional) == ("context", True)

    def test_another_class_of_that_name_is_no_context(self) -> None:
        class Other:
            pass

        load = defined("def load(context: 'RunContext'): ...", RunContext=Other)
        assert read(load).context_parameter is None

    def test_names_that_only_type_checkers_see_are_read_in_the_source(self) -> None:  # I1
        def imported(context: HiddenContext[Deps]) -> None: ...
        def optional(context: HiddenContext[Deps] | None = None) -> None: ...
        def aliased(context: AlsoHidden) -> None: ...
        def quoted(context: QuotedHidden) -> None: ...

        for load in (imported, optional, aliased, quoted):
            assert read(load).context_parameter == "context"
        assert read(optional).context_optional

    @pytest.mark.parametrize("module", [None, "no.such.module", "builtins"])
    def test_names_that_only_type_checkers_see_without_a_source(self, module: str | None) -> None:
        def load(context: HiddenContext[Deps]) -> None: ...

        load.__module__ = module  # type: ignore[assignment]
        assert read(load).required == ("context",)

    def test_other_names_that_do_not_exist_are_not_guessed(self) -> None:
        def load(context: HiddenDeps) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        assert read(load).required == ("context",)

    def test_names_of_an_enclosing_function_are_known(self) -> None:  # I1
        local_alias = RunContext

        def load(context: local_alias[Deps]) -> object:
            return context, local_alias

        assert read(load).context_parameter == "context"

    def test_name_that_the_enclosing_function_has_not_assigned_yet_does_no_harm(self) -> None:
        def load(rows: later) -> object:
            return rows, later

        found = read(load)
        later = int
        assert found.required == ("rows",)
        assert called_with(load, {"rows": 1}) == (1, later)

    @pytest.mark.parametrize(
        "parameters",
        [
            "context: RunContext[Deps], a, b=2",
            "a, context: RunContext[Deps], b=2",
            "a, b=2, *, context: RunContext[Deps]",
            "context: RunContext[Deps], /, a, b=2",
            "a, context: RunContext[Deps], /, b=2",
            "a, b=2, *, context: RunContext[Deps], **more",
            "a, b=2, context: RunContext[Deps]=None",
        ],
    )
    @pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
    def test_context_is_passed_wherever_it_stands(self, parameters: str, future: str) -> None:  # I1
        load = defined(f"{future}def load({parameters}): return context, a, b")
        context = RunContext(Deps())
        assert called_with(load, {"a": 1}, context) == (context, 1, 2)
        assert called_with(load, {"a": 1, "b": 3}, context) == (context, 1, 3)

    def test_missing_context_leaves_the_default(self) -> None:
        default = RunContext(Deps())

        def load(context: RunContext[Deps] = default) -> object:
            return context

        def by_position(context: RunContext[Deps] = default, rows: object = 0, /) -> object:
            return context, rows

        assert read(load).context_has_default
        assert called_with(load) is default
        assert called_with(by_position) == (default, 0)
        assert called_with(by_position, {"rows": 1}) == (default, 1)
        assert called_with(by_position, {"rows": 1}, None) == (default, 1)

    def test_task_of_the_context_parameters_name_does_not_replace_it(self) -> None:
        def load(context: RunContext[Deps], **more: object) -> object:
            return context, more

        context = RunContext(Deps())
        assert called_with(load, {"context": 1, "a": 2}, context) == (context, {"a": 2})

    def test_missing_context_is_not_made_up_from_a_result(self) -> None:
        def load(context: RunContext[Deps] | None = None, **more: object) -> object:
            return context, more

        assert called_with(load, {"context": 1, "a": 2}) == (None, {"a": 2})

    def test_context_parameter_may_be_called_upstream(self) -> None:
        def load(upstream: RunContext[Deps], a: int) -> object:
            return upstream, a

        context = RunContext(Deps())
        assert not read(load).wants_upstream
        assert called_with(load, {"a": 1}, context) == (context, 1)

    def test_two_context_parameters_are_refused(self) -> None:
        def load(first: RunContext[Deps], second: Special) -> None: ...

        with pytest.raises(TaskDefinitionError, match="'first' and 'second' both take") as caught:
            read(load)
        assert (caught.value.task_name, caught.value.dag_name) == ("load", "daily")

    def test_alias_made_by_a_backport_of_type_aliases_is_looked_into(self) -> None:  # I1
        found = read(annotated(TypeAliasType(lambda: RunContext[Deps] | None)))
        assert (found.context_parameter, found.context_optional) == ("context", True)

    def test_alias_that_contains_itself_ends(self) -> None:
        alias: TypeAliasType = TypeAliasType(lambda: Annotated[alias, 1])
        assert read(annotated(alias)).required == ("rows", "context")

    def test_alias_that_cannot_be_evaluated_does_no_harm(self) -> None:
        def fail() -> object:
            raise NameError

        assert read(annotated(TypeAliasType(fail))).required == ("rows", "context")

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="'type' statements came with 3.12")
    @pytest.mark.parametrize(
        ("alias", "annotation", "optional"),
        [
            ("type Mine = RunContext[Deps]", "Mine", False),
            ("type Mine = RunContext[Deps] | None", "Mine", True),
            ("type Mine[T] = RunContext[T] | None", "Mine[Deps]", True),
            ("type Other = RunContext[Deps]\ntype Mine = Other", "Mine", False),
            ("type Mine = 'RunContext[Deps]'", "Mine", False),
            ("type Mine = Mine | RunContext[Deps]", "Mine", False),
        ],
    )
    @pytest.mark.parametrize("quote", ["", "'"])
    def test_type_alias_is_looked_into(
        self, *, alias: str, annotation: str, optional: bool, quote: str
    ) -> None:  # I1
        load = defined(f"{alias}\ndef load(context: {quote}{annotation}{quote}): ...")
        found = read(load)
        assert (found.context_parameter, found.context_optional) == ("context", optional)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="'type' statements came with 3.12")
    def test_type_alias_that_cannot_be_evaluated_does_no_harm(self) -> None:
        load = defined("type Rows = list[Missing]\ndef load(rows: Rows): ...")
        assert read(load).required == ("rows",)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters came with 3.12")
    def test_generic_function_is_read(self) -> None:
        load = defined("def load[T](context: RunContext[T], rows: T): ...")
        assert read(load).context_parameter == "context"


class Loader:
    """Methods of every kind as tasks."""

    def method(self, rows: object, context: Aliased[Deps]) -> object:
        return type(self).__name__, rows, context

    @classmethod
    def of_class(cls, rows: object, context: RunContext[Deps]) -> object:
        return cls.__name__, rows, context

    @staticmethod
    def static(rows: object, context: RunContext[Deps]) -> object:
        return "Loader", rows, context

    partial = functools.partialmethod(method)

    def __call__(self, rows: object, context: RunContext[Deps]) -> object:
        return "Loader", rows, context

    async def coroutine(self, rows: object) -> object:
        return rows


class AsyncCall:
    async def __call__(self, rows: object) -> object:
        return rows


class MadeOf:
    def __init__(self, rows: object, context: RunContext[Deps]) -> None:
        self.seen = ("Loader", rows, context)


class MadeByNew:
    seen: tuple[object, ...]

    def __new__(cls, rows: object, context: RunContext[Deps]) -> Self:
        made = super().__new__(cls)
        made.seen = ("Loader", rows, context)
        return made


def logged(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    return wrapper


class TestKindsOfCallables:
    @pytest.mark.parametrize(
        "function",
        [
            Loader().method,
            Loader.of_class,
            Loader().of_class,
            Loader.static,
            Loader().partial,
            Loader(),
            functools.partial(Loader.method, Loader()),
            functools.partial(Loader.partial, Loader()),
            functools.partial(functools.partial(Loader().method)),
            functools.partial(Loader()),
            logged(Loader().method),
            logged(logged(Loader.static)),
            functools.lru_cache(Loader.static),
            staticmethod(Loader.static),
        ],
    )
    def test_context_and_results_reach_it(self, function: Callable[..., object]) -> None:  # I1
        context = RunContext(Deps())
        found = read(function)
        assert found.context_parameter == "context"
        assert found.required == ("rows",)
        assert called_with(function, {"rows": 1}, context) == ("Loader", 1, context)

    @pytest.mark.parametrize("made", [MadeOf, MadeByNew])
    def test_class_is_called_like_any_callable(self, made: type) -> None:
        context = RunContext(Deps())
        result: Any = called_with(made, {"rows": 1}, context)
        assert isinstance(result, made)
        assert result.seen == ("Loader", 1, context)  # type: ignore[attr-defined]

    def test_class_method_wanting_self_keeps_its_first_parameter(self) -> None:
        assert read(Loader.partial).required == ("self", "rows")

    def test_wrapped_function_gives_names_their_sense(self) -> None:  # I1
        """A wrapper from another module knows nothing of the function's own imports."""
        source = (
            "from functools import wraps\n"
            "def logged(function):\n"
            "    return wraps(function)(lambda *a, **k: function(*a, **k))\n"
        )
        scope: dict[str, Any] = {}
        exec(compile(source, "<elsewhere>", "exec"), scope)

        def load(context: Aliased[Deps]) -> object:
            return context

        assert read(scope["logged"](load)).context_parameter == "context"

    def test_declared_signature_is_believed(self) -> None:
        def load(*args: object, **kwargs: object) -> object:
            return args, kwargs

        parameter = inspect.Parameter("rows", inspect.Parameter.KEYWORD_ONLY, annotation="Rows")
        load.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
        assert read(load).required == ("rows",)
        assert called_with(load, {"rows": 1, "other": 2}) == ((), {"rows": 1})

    def test_declared_signature_of_a_wrapper_speaks_the_wrappers_names(self) -> None:
        inner = defined("def load(rows): return rows", Aliased=int)
        wrapper = logged(inner)
        parameter = inspect.Parameter(
            "context", inspect.Parameter.KEYWORD_ONLY, annotation="Aliased[Deps]"
        )
        wrapper.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
        assert read(wrapper).context_parameter == "context"

    @pytest.mark.parametrize("module", [__name__, "no.such.module", None])
    def test_annotation_text_of_an_object_with_a_declared_signature_is_read(
        self, module: str | None
    ) -> None:
        parameter = inspect.Parameter(
            "context", inspect.Parameter.KEYWORD_ONLY, annotation="RunContext[Deps]"
        )

        class Compiled:
            __call__ = operator.itemgetter(0)
            __signature__ = inspect.Signature([parameter])

        compiled = Compiled()
        compiled.__module__ = module  # type: ignore[assignment]
        assert read(compiled).context_parameter == "context"

    def test_marked_coroutine_functions_and_objects_are_async(self) -> None:
        async def load(rows: object) -> object:
            return rows

        for function in (
            load,
            functools.partial(load),
            functools.partial(functools.partial(load), rows=1),
            Loader().coroutine,
            Loader.coroutine,
            AsyncCall(),
            functools.partial(AsyncCall()),
            staticmethod(load),
        ):
            assert read(function).is_async, function
        assert read(load, rows=1).is_async

    def test_async_is_judged_on_what_is_called(self) -> None:
        async def load(rows: object) -> object:
            return rows

        def body() -> object: ...

        @functools.wraps(body)
        async def asynchronous() -> object:
            return body()

        assert not read(logged(load)).is_async
        assert read(asynchronous).is_async
        assert not read(AsyncCall).is_async

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the mark came with 3.12")
    def test_function_marked_as_coroutine_function_is_async(self) -> None:
        def load(rows: object) -> object:
            return rows

        inspect.markcoroutinefunction(load)
        assert read(load).is_async

    def test_coroutine_that_is_written_as_a_generator_is_a_sync_callable(self) -> None:
        @types.coroutine
        def load(rows: list[int]) -> Iterator[None]:
            yield

        assert not read(load).is_async
        assert read(load).required == ("rows",)

    def test_builtin_without_a_signature_takes_nothing(self) -> None:
        assert not plan_call(read(max), ["a"]).gives_any
        assert not plan_call(read(functools.partial(max, 1)), ["a"]).gives_any
        assert plan_call(read(max), ["a"]).arguments(["a"], [1], None) == ((), {})

    def test_builtin_with_a_signature_is_read(self) -> None:
        assert called_with(len, {"obj": [1, 2]}) == 2


def pull(ctx: RunContext[Deps], rows: object = "default", *, last: object = "L") -> object:
    return ctx, rows, last


def renames(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def wrapper(context: object, *args: object, **kwargs: object) -> object:
        return function(context, *args, **kwargs)

    return wrapper


def passes_on(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> object:
        return function(*args, **kwargs)

    return wrapper


class ByClass:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., object]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, given: object, *args: object, **kwargs: object) -> object:
        return self.function(given, *args, **kwargs)


class Source:
    @renames
    def by_renaming_self(self, ctx: RunContext[Deps]) -> object:
        return self, ctx

    @staticmethod
    @renames
    def pulled(ctx: RunContext[Deps], rows: object = "default", *, last: object = "L") -> object:
        return ctx, rows, last


class TestByPosition:
    """What a callable's own code wants by position is passed by position."""

    @pytest.mark.parametrize(
        "function",
        [
            renames(pull),
            passes_on(renames(pull)),
            renames(passes_on(pull)),
            passes_on(pull),
            ByClass(pull),
            functools.partial(renames(pull)),
            functools.partial(passes_on(renames(pull)), last="L"),
            Source.pulled,
            Source().pulled,
            functools.lru_cache(pull),
        ],
    )
    def test_context_reaches_the_function_behind_wrappers(
        self, function: Callable[..., object]
    ) -> None:  # I1
        context = RunContext(1)
        assert called_with(function, {"rows": 1}, context) == (context, 1, "L")
        assert called_with(function, {}, context) == (context, "default", "L")

    def test_wrapper_with_another_name_for_self(self) -> None:
        source, context = Source(), RunContext(1)
        assert called_with(source.by_renaming_self, {}, context) == (source, context)

    def test_result_reaches_a_wrapper_with_another_parameter_name(self) -> None:
        def load(rows: object, more: object = "M", other: object = "O") -> object:
            return rows, more, other

        @functools.wraps(load)
        def wrapper(data: object, more: object, extra: object, **kwargs: object) -> object:
            return load(data, more, extra, **kwargs)

        assert read(wrapper).by_position == ("rows", "more", "other")
        assert called_with(wrapper, {"rows": 1, "other": 3}) == (1, "M", 3)

    def test_wrapper_that_looks_at_names_gets_results_by_name(self) -> None:
        def load(rows: object) -> object: ...

        @functools.wraps(load)
        def wrapper(*args: object, **kwargs: object) -> object:
            return args, kwargs

        assert called_with(wrapper, {"rows": 1}) == ((), {"rows": 1})

    def test_single_dispatch_looks_at_its_first_argument(self) -> None:
        @functools.singledispatch
        def clean(rows: object, factor: int = 2) -> object:
            return rows, factor

        @clean.register
        def _of_a_list(rows: list, factor: int = 3) -> object:  # type: ignore[type-arg]
            return "list", rows, factor

        assert called_with(clean, {"rows": [1]}) == ("list", [1], 3)
        assert called_with(clean, {"rows": 1, "factor": 5}) == (1, 5)
        assert called_with(clean, {"rows": 1}, bound={"factor": 7}) == (1, 7)

    def test_bound_parameters_end_what_can_be_passed_by_position(self) -> None:
        assert called_with(passes_on(pull), {"rows": 1}, bound={"ctx": 5}) == (5, 1, "L")

    def test_signature_that_was_set_by_hand(self) -> None:
        def wrapper(context: object, *args: object, **kwargs: object) -> object:
            return pull(context, *args, **kwargs)  # type: ignore[arg-type]

        wrapper.__signature__ = inspect.signature(pull)  # type: ignore[attr-defined]
        wrapper.__annotations__ = pull.__annotations__
        context = RunContext(1)
        assert called_with(wrapper, {"rows": 1}, context) == (context, 1, "L")

    @pytest.mark.parametrize("wrapped", [7, None])
    def test_wrapped_object_that_cannot_be_called(self, wrapped: object) -> None:
        def load(*args: object, a: object) -> object:
            return args, a

        load.__wrapped__ = wrapped  # type: ignore[attr-defined]
        for function in (functools.partial(load), types.MethodType(load, 1)):
            assert by_position(function, [], (), None) == []

    def test_wrappers_in_a_circle(self) -> None:
        first, second = passes_on(pull), passes_on(pull)
        first.__wrapped__, second.__wrapped__ = second, first  # type: ignore[attr-defined]
        assert not plan_call(read(first), ["a"]).gives_any
        first.__signature__ = inspect.signature(pull, follow_wrapped=False)  # type: ignore[attr-defined]
        assert read(first).by_position == ("ctx",)


class TestStarArguments:
    @pytest.mark.parametrize(
        ("function", "left"),
        [
            (lambda *tables: tables, True),
            (lambda a, *tables: tables, True),
            (lambda *tables, **more: tables, True),
            (functools.partial(lambda a, *tables: tables, 1), True),
            (functools.partial(lambda a, *tables: tables, 1, 2), False),
            (functools.partial(print, "done"), False),
            (print, True),
            (lambda a: a, False),
            (passes_on(pull), False),
        ],
    )
    def test_star_arguments_are_left_unless_a_partial_fills_them(
        self, function: Callable[..., object], left: bool
    ) -> None:
        assert read(function).leaves_star_arguments is left


class TestBound:
    def test_bound_parameters_are_not_required(self) -> None:
        def fetch(client: object, *, table: str, limit: int = 5) -> object:
            return client, table, limit

        found = read(fetch, table="users")
        assert (found.required, found.optional) == (("client",), ("limit",))
        assert called_with(fetch, {"client": 1}, bound={"table": "users"}) == (1, "users", 5)

    def test_dependency_does_not_replace_what_was_bound(self) -> None:
        def fetch(table: str, **more: object) -> object:
            return table, more

        results: dict[str, object] = {"table": "result", "extra": 1, "a": 2}
        bound: dict[str, object] = {"table": "users", "extra": "bound"}
        assert called_with(fetch, results, bound=bound) == ("users", {"extra": "bound", "a": 2})

    @pytest.mark.parametrize(
        "function",
        [
            functools.partial(lambda a, **more: (a, more), "given"),
            functools.partial(lambda a, **more: (a, more), a="given"),
            types.MethodType(lambda a, **more: (a, more), "given"),
            functools.partial(types.MethodType(lambda a, **more: (a, more), "given")),
        ],
    )
    def test_dependency_does_not_replace_what_a_partial_gave(
        self, function: Callable[..., object]
    ) -> None:
        assert called_with(function, {"a": 1, "b": 2}) == ("given", {"b": 2})

    def test_partial_of_a_builtin_without_a_signature_but_its_own_is_read(self) -> None:
        class Known(functools.partial[object]):
            __signature__ = inspect.Signature(
                [inspect.Parameter("rows", inspect.Parameter.KEYWORD_ONLY)]
            )

        assert read(Known(max, 1)).required == ("rows",)

    def test_bound_context_and_upstream_are_not_injected(self) -> None:
        def load(context: RunContext[Deps], upstream: object) -> object:
            return context, upstream

        found = read(load, context=1, upstream=2)
        assert (found.context_parameter, found.wants_upstream) == (None, False)
        assert called_with(load, {"a": 3}, bound={"context": 1, "upstream": 2}) == (1, 2)

    def test_partials_keyword_can_be_bound_anew(self) -> None:
        fetch = functools.partial(lambda table: table, table="users")
        assert called_with(fetch, bound={"table": "orders"}) == "orders"

    def test_unknown_bound_parameter_is_refused_with_a_close_match(self) -> None:
        def fetch(*, table: str, limit: int = 5) -> None: ...

        with pytest.raises(TaskDefinitionError) as caught:
            read(fetch, tabel="users")
        assert str(caught.value) == (
            "task 'load' (DAG 'daily'): unknown parameter 'tabel' was bound; the function accepts"
            " 'table', 'limit'. Did you mean 'table'?"
        )

    def test_positional_only_parameter_cannot_be_bound(self) -> None:
        def fetch(table: str, /, limit: int) -> None: ...

        with pytest.raises(TaskDefinitionError, match=r"'table' is positional-only .*'/'"):
            read(fetch, table="users")

    def test_any_keyword_accepts_every_bound_name(self) -> None:
        assert called_with(lambda **more: more, bound={"table": 1}) == {"table": 1}

    def test_builtin_without_a_signature_accepts_every_bound_name(self) -> None:
        assert read(max, key=len).bound == {"key"}

    def test_partial_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(TaskDefinitionError, match="arguments that the function does not take"):
            read(functools.partial(lambda a: a, 1, 2))


async def rows_of(rows: Sequence[int]) -> AsyncIterator[int]:
    for row in rows:
        yield row


class Streaming:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1

    @classmethod
    def of_class(cls) -> None: ...


def lines_of(rows: Sequence[int]) -> Iterator[int]:
    yield from rows


class Reading:
    def __call__(self) -> Iterator[int]:
        yield 1

    def lines(self) -> Iterator[int]:
        yield 1


class TestRefused:
    @pytest.mark.parametrize(
        "function",
        [rows_of, functools.partial(rows_of, [1]), Streaming(), functools.partial(Streaming())],
    )
    def test_async_generator_function_is_refused(self, function: object) -> None:  # I3
        with pytest.raises(TaskTypeError, match=r"async generator .*return \[item async for"):
            read(function)

    @pytest.mark.parametrize(
        "function",
        [
            lines_of,
            functools.partial(lines_of, [1]),
            Reading(),
            Reading().lines,
            functools.partial(Reading()),
            staticmethod(lines_of),
        ],
    )
    def test_generator_function_is_refused(self, function: object) -> None:  # I3
        with pytest.raises(TaskTypeError, match=r"a generator function.*return a list"):
            read(function)

    def test_function_that_collects_a_generator_is_accepted(self) -> None:
        @functools.wraps(lines_of)
        def load(rows: list[int]) -> list[int]:
            return list(lines_of(rows))

        assert called_with(load, {"rows": [1]}) == [1]

    @pytest.mark.parametrize("value", [None, 42, "load", ["load"], {}])
    def test_what_cannot_be_called_is_refused(self, value: object) -> None:  # I3
        with pytest.raises(TaskTypeError) as caught:
            read(value)
        assert str(caught.value) == (
            f"task 'load' (DAG 'daily'): a task must be callable, not {type(value).__name__};"
            " pass a function"
        )
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ValueError)

    def test_coroutine_object_is_refused_and_closed(self) -> None:  # I3
        async def load() -> None: ...

        coroutine = load()
        with pytest.raises(TaskTypeError, match=r"pass load, not load\(\)"):
            read(coroutine)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

    def test_coroutine_that_somebody_runs_is_refused_and_left_alone(self) -> None:
        @types.coroutine
        def pause() -> Iterator[None]:
            yield

        async def load() -> str:
            await pause()  # type: ignore[func-returns-value]
            return "done"

        coroutine = load()
        coroutine.send(None)
        with pytest.raises(TaskTypeError):
            read(coroutine)
        with pytest.raises(StopIteration, match="done"):
            coroutine.send(None)

    def test_generator_objects_are_refused(self) -> None:
        for value in (rows_of([1]), (row for row in [1])):
            with pytest.raises(TaskTypeError, match=f"not the {type(value).__name__} that calling"):
                read(value)

    def test_raw_classmethod_is_refused_with_the_remedy(self) -> None:
        with pytest.raises(TaskTypeError, match="register it after the class body"):
            read(vars(Streaming)["of_class"])


class TestNames:
    @pytest.mark.parametrize(
        "name",
        ["a", "a" * 200, "with space", "zażółć", "数据", "a/b:c", "😀", "a\u2028b", "\u202eb"],
    )
    def test_ordinary_and_odd_but_harmless_names_are_accepted(self, name: str) -> None:
        validate_name(name, what="task")
        validate_name(name, what="DAG")

    def test_name_of_a_str_subclass_is_accepted(self) -> None:
        class Name(str):
            __slots__ = ()

        validate_name(Name("load"), what="task")

    @pytest.mark.parametrize("name", [None, 1, b"load", ["load"]])
    def test_name_that_is_no_str_is_refused(self, name: object) -> None:  # I3
        with pytest.raises(TaskTypeError, match="must be a str, not") as caught:
            validate_name(name, what="task", dag_name="daily")
        assert (caught.value.task_name, caught.value.dag_name) == (name, "daily")

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("", "must not be empty"),
            ("a" * 201, "this one has 201 and starts with 'aaa"),
            ("a\nb", r"has the character '\n' at index 1"),
            ("\x00", r"has the character '\x00' at index 0"),
            ("a\x85", r"has the character '\x85' at index 1"),
            ("a\x1b[31m", r"has the character '\x1b' at index 1"),
            ("ok\ud800", r"has the character '\ud800' at index 2"),
        ],
    )
    @pytest.mark.parametrize("what", ["task", "DAG"])
    def test_name_that_cannot_be_shown_is_refused(
        self, name: str, problem: str, what: str
    ) -> None:  # I3
        with pytest.raises(TaskDefinitionError) as caught:
            validate_name(name, what=what, task_name="load")
        assert problem in str(caught.value)
        assert f"of a {what}" in str(caught.value)
        assert caught.value.task_name == (name if what == "task" else "load")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000

    @given(st.text(max_size=250))
    def test_accepted_names_can_be_encoded_and_hold_no_control_character(self, name: str) -> None:
        try:
            validate_name(name, what="task")
        except TaskDefinitionError:
            return
        assert 0 < len(name) <= 200
        assert not {"Cc", "Cs"} & {unicodedata.category(character) for character in name}

    @given(st.text(min_size=1, max_size=200))
    def test_refused_names_hold_such_a_character(self, name: str) -> None:
        try:
            validate_name(name, what="DAG")
        except TaskDefinitionError:
            assert {"Cc", "Cs"} & {unicodedata.category(character) for character in name}
