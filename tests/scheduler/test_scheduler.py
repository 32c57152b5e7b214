"""One run: order, injection, retries, skips, retention, hooks, errors of every kind."""

from __future__ import annotations

import asyncio
import contextvars
import csv
import itertools
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    NonRetryableError,
    RetryPolicy,
    RunContext,
    RunHook,
    SchedulerConfig,
    current_attempt,
    fn_hook,
)
from flowrun.errors import FlowrunError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


def recording_hook(into: list[tuple[Any, ...]]) -> RunHook:
    """Return a hook that notes every event as a short tuple."""
    return fn_hook(
        on_dag_start=lambda e: into.append(("dag_start", e.task_names)),
        on_dag_end=lambda e: into.append(("dag_end", e.status)),
        on_task_start=lambda e: into.append(("start", e.task_name, e.attempt)),
        on_task_success=lambda e: into.append(("success", e.task_name, e.attempt)),
        on_task_failure=lambda e: into.append(("failure", e.task_name, e.attempt, e.message)),
        on_task_retry=lambda e: into.append(("retry", e.task_name, e.attempt, e.message)),
        on_task_skip=lambda e: into.append(("skip", e.task_name, e.reason)),
    )


# -- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_launch_order_is_topological_then_as_declared(  # R6
    make_engine: MakeEngine, is_async: bool
) -> None:
    engine = make_engine(max_parallel=1)
    order: list[str] = []

    def declare(name: str, deps: list[str]) -> None:
        def work() -> None:
            order.append(name)

        async def work_async() -> None:
            order.append(name)

        engine.task(name=name, dag="d", deps=deps)(work_async if is_async else work)

    for name, deps in (
        ("join", ["left", "right"]),
        ("second", []),
        ("right", ["first"]),
        ("left", ["second"]),
        ("first", []),
    ):
        declare(name, deps)
    run_id = await engine.run_once("d")
    assert order == ["second", "first", "right", "left", "join"]
    assert list(engine.get_run_report(run_id)["tasks"]) == order


async def test_events_are_delivered_in_the_order_of_the_run(make_engine: MakeEngine) -> None:  # R6
    for _ in range(3):
        events: list[tuple[Any, ...]] = []
        engine = make_engine(max_parallel=1, hooks=[recording_hook(events)])

        @engine.task(dag="d")
        def a() -> int:
            return 1

        @engine.task(dag="d", deps=["a"], retries=1)
        async def b() -> None:
            msg = "never works"
            raise ValueError(msg)

        @engine.task(dag="d", deps=["b"])
        def c() -> None:
            return None

        await engine.run_once("d")
        assert events == [
            ("dag_start", ("a", "b", "c")),
            ("start", "a", 1),
            ("success", "a", 1),
            ("start", "b", 1),
            ("retry", "b", 1, "ValueError: never works"),
            ("start", "b", 2),
            ("failure", "b", 2, "ValueError: never works"),
            ("skip", "c", "UPSTREAM_FAILED"),
            ("dag_end", "FAILED"),
        ]


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("shape", "kind"), [("chain", "suspend"), ("fan", "async"), ("fan", "sync")]
)
async def test_hundred_thousand_tasks(  # G2
    make_engine: MakeEngine, kind: str, shape: str
) -> None:
    number = 100_000
    engine = make_engine(max_parallel=4)

    def work() -> None:
        return None

    async def at_once() -> None:
        return None

    async def suspend() -> None:
        await asyncio.sleep(0)

    function = {"sync": work, "async": at_once, "suspend": suspend}[kind]
    register = engine.registry.register
    register(function, name="t0", dag="d")
    for place in range(1, number):
        deps = [f"t{place - 1}"] if shape == "chain" else ["t0"]
        register(function, name=f"t{place}", dag="d", deps=deps)
    run_id = await engine.run_once("d")
    (run,) = engine.list_runs()
    assert run.run_id == run_id
    assert run.task_counts == {"SUCCESS": number}


@pytest.mark.no_cover
async def test_failure_at_the_head_of_a_long_chain_skips_it_all(engine: Engine) -> None:  # G2
    register = engine.registry.register

    def fail() -> None:
        raise ValueError

    register(fail, name="t0", dag="d")
    for place in range(1, 50_000):
        register(lambda: None, name=f"t{place}", dag="d", deps=[f"t{place - 1}"])
    await engine.run_once("d")
    assert engine.list_runs()[0].task_counts == {"FAILED": 1, "SKIPPED": 49_999}


# -- injection --------------------------------------------------------------------------------


async def test_results_are_injected_by_name_and_by_upstream(engine: Engine) -> None:
    @engine.task(dag="d")
    def a() -> int:
        return 1

    @engine.task(dag="d")
    async def b() -> None:
        return None

    @engine.task(dag="d", deps=["b", "a"])
    def combine(upstream: dict[str, object]) -> object:
        return list(upstream.items())

    @engine.task(dag="d")
    def inferred(b: None, a: int) -> object:  # G4
        return (a, b)

    @engine.task(dag="d", deps=[a])
    def with_default(a: int = 7, b: int = 8) -> object:  # G4: defaults are never inferred
        return (a, b)

    @engine.task(dag="d", deps=[a])
    def only_after() -> str:
        return "after"

    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["combine"]["result"] == [("b", None), ("a", 1)]
    assert tasks["inferred"]["result"] == (1, None)  # I2: None is a result
    assert tasks["with_default"]["result"] == (1, 8)
    assert tasks["only_after"]["result"] == "after"
    assert tasks["b"]["result_state"] == "kept"
    assert tasks["inferred"]["deps"] == ["b", "a"]


async def test_sync_callable_that_returns_an_awaitable_has_it_awaited(engine: Engine) -> None:  # I3
    async def later() -> str:
        await asyncio.sleep(0)
        return current_attempt().task_name

    async def broken() -> None:
        msg = "awaited and failed"
        raise ValueError(msg)

    engine.task(name="good", dag="d")(lambda: later())
    engine.task(name="bad", dag="d")(lambda: broken())
    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["good"]["result"] == "good"
    assert tasks["bad"]["status"] == "FAILED"
    assert "awaited and failed" in (tasks["bad"]["error"] or "")


@pytest.mark.parametrize("is_async", [False, True])
async def test_generator_based_coroutine_is_awaited(engine: Engine, is_async: bool) -> None:  # I3
    @types.coroutine
    def steps() -> Any:
        yield from asyncio.sleep(0).__await__()
        return current_attempt().task_name

    async def returns_steps() -> object:
        return steps()

    engine.task(name="direct", dag="d")(steps)
    engine.task(name="returned", dag="d")(returns_steps if is_async else lambda: steps())
    tasks = engine.get_run_report(await engine.run_once("d"))["tasks"]
    assert [task["result"] for task in tasks.values()] == ["direct", "returned"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (number for number in range(3)),
        lambda: map(str, [1]),
        lambda: zip([1], strict=True),
        lambda: filter(None, [1]),
        lambda: enumerate([1]),
        lambda: reversed([1]),
        lambda: itertools.count(),
        lambda: csv.reader(["a,b"]),
    ],
)
async def test_result_that_can_be_read_only_once_fails_the_attempt_and_is_not_retried(  # I3
    engine: Engine, make: Callable[[], object]
) -> None:
    async def in_a_coroutine() -> object:
        return make()

    engine.task(name="sync", dag="d", retries=2)(make)
    engine.task(name="async", dag="d", retries=2)(in_a_coroutine)
    report = engine.get_run_report(await engine.run_once("d"))
    for task in report["tasks"].values():
        assert (task["status"], task["attempt"]) == ("FAILED", 1)
        assert "can be read only once" in (task["error"] or "")
        assert "list(...)" in (task["error"] or "")


async def test_same_function_under_two_names_is_two_tasks(engine: Engine) -> None:  # I3
    @engine.task("one", dag="d")
    @engine.task("two", dag="d")
    def work() -> str:
        return current_attempt().task_name

    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert {name: task["result"] for name, task in tasks.items()} == {"two": "two", "one": "one"}
    engine.task(name="after", dag="d", deps=[work])(lambda: None)
    with pytest.raises(ValueError, match="registered as 'two', 'one'; name the one"):
        engine.validate("d")


# -- retries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_retries_until_it_works_and_every_attempt_leaves_its_trace(  # A6
    engine: Engine, is_async: bool
) -> None:
    calls: list[int] = []

    def work() -> str:
        calls.append(current_attempt().attempt)
        if len(calls) < 3:
            msg = f"attempt {len(calls)}"
            raise ValueError(msg)
        return "done"

    async def work_async() -> str:
        return work()

    engine.task(name="flaky", dag="d", retries=5)(work_async if is_async else work)
    engine.task(name="after", dag="d", deps=["flaky"])(lambda flaky: flaky)
    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["flaky"]
    assert calls == [1, 2, 3]
    assert (task["status"], task["attempt"], task["error"]) == ("SUCCESS", 3, None)
    assert [attempt["attempt"] for attempt in task["attempts"]] == [1, 2, 3]
    assert "ValueError: attempt 1" in (task["attempts"][0]["error"] or "")
    assert "ValueError: attempt 2" in (task["attempts"][1]["error"] or "")
    assert task["attempts"][2]["error"] is None
    starts = [attempt["started_at"] or 0 for attempt in task["attempts"]]
    assert starts == sorted(starts)


async def test_downstream_is_skipped_only_after_the_last_retry(engine: Engine) -> None:
    calls: list[int] = []

    @engine.task(dag="d", retries=2)
    def broken() -> None:
        calls.append(1)
        raise ValueError

    @engine.task(dag="d", deps=[broken])
    def child() -> None:
        calls.append(100)

    @engine.task(dag="d", deps=[child])
    def grandchild() -> None:
        calls.append(1000)

    @engine.task(dag="d")
    def independent() -> str:
        return "ran"

    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    assert sum(calls) == 3
    assert statuses(report) == {
        "broken": "FAILED",
        "independent": "SUCCESS",
        "child": "SKIPPED",
        "grandchild": "SKIPPED",
    }
    child_report = report["tasks"]["grandchild"]
    assert child_report["reason"] == "UPSTREAM_FAILED"
    assert "'broken'" in (child_report["error"] or "")
    assert child_report["attempt"] == 0
    assert report["status"] == "FAILED"


async def test_two_failures_skip_a_shared_descendant_once(make_engine: MakeEngine) -> None:
    events: list[tuple[Any, ...]] = []
    engine = make_engine(hooks=[recording_hook(events)])
    gate = asyncio.Barrier(2)

    async def fail() -> None:
        await gate.wait()
        raise ValueError

    engine.task(name="a", dag="d")(fail)
    engine.task(name="b", dag="d")(fail)
    engine.task(name="c", dag="d", deps=["a", "b"])(lambda: None)
    await engine.run_once("d")
    assert [event for event in events if event[0] == "skip"] == [("skip", "c", "UPSTREAM_FAILED")]


async def test_policy_decides_which_errors_are_retried(engine: Engine) -> None:
    calls: dict[str, int] = {}

    def failing(name: str, error: BaseException) -> Callable[[], None]:
        def work() -> None:
            calls[name] = calls.get(name, 0) + 1
            raise error

        return work

    only_connection = RetryPolicy(3, retry_on=ConnectionError)
    engine.task(name="wanted", dag="d", retries=only_connection)(
        failing("wanted", ConnectionResetError())
    )
    engine.task(name="other", dag="d", retries=only_connection)(failing("other", KeyError("x")))
    engine.task(name="never", dag="d", retries=3)(failing("never", NonRetryableError("stop")))
    engine.task(
        name="predicate", dag="d", retries=RetryPolicy(3, no_retry_on=lambda e: "x" in str(e))
    )(failing("predicate", ValueError("x")))
    await engine.run_once("d")
    assert calls == {"wanted": 4, "other": 1, "never": 1, "predicate": 1}


async def test_waiting_for_a_retry_holds_no_slot(make_engine: MakeEngine) -> None:
    engine = make_engine(max_parallel=1)
    order: list[str] = []

    @engine.task(dag="d", retries=RetryPolicy(1, delay_s=0.05))
    def flaky() -> None:
        order.append("flaky")
        if len(order) == 1:
            raise ValueError

    @engine.task(dag="d")
    def other() -> None:
        order.append("other")

    run_id = await engine.run_once("d")
    assert order == ["flaky", "other", "flaky"]
    attempts = engine.get_run_report(run_id)["tasks"]["flaky"]["attempts"]
    assert (attempts[1]["started_at"] or 0) - (attempts[0]["finished_at"] or 0) >= 0.049


@pytest.mark.parametrize("is_async", [False, True])
async def test_task_that_copies_its_inputs_is_given_the_same_at_every_attempt(  # S4
    engine: Engine, is_async: bool
) -> None:
    seen: list[list[int]] = []
    made = [1, 2]
    engine.task(name="rows", dag="d")(lambda: made)

    def consume(rows: list[int], context: RunContext[object]) -> bool:
        seen.append(list(rows))
        rows.append(3)
        if len(seen) < 3:
            raise ValueError
        return context.deps is shared

    async def consume_async(rows: list[int], context: RunContext[object]) -> bool:
        return consume(rows, context)

    function = consume_async if is_async else consume
    engine.task(name="consume", dag="d", retries=2, copy_inputs=True)(function)
    shared = threading.Lock()  # which cannot be copied: the context is passed as it is
    run_id = await engine.run_once("d", RunContext(shared))
    assert seen == [[1, 2]] * 3
    assert made == [1, 2]
    assert engine.get_run_report(run_id)["tasks"]["consume"]["result"] is True


async def test_inputs_are_passed_by_reference_and_cost_the_same_whatever_their_size(  # I4
    engine: Engine,
) -> None:
    made = [{"id": number} for number in range(1000)]
    seen: list[bool] = []
    engine.task(name="rows", dag="d")(lambda: made)
    engine.task(name="retried", dag="d", retries=2)(lambda rows: seen.append(rows is made))

    @engine.task(dag="d")
    async def on_the_loop(rows: list[dict[str, int]]) -> None:
        seen.append(rows is made)

    await engine.run_once("d")
    assert seen == [True, True]


async def test_input_that_cannot_be_copied_fails_the_attempt(engine: Engine) -> None:  # S4 A5
    engine.task(name="lock", dag="d")(threading.Lock)
    engine.task(name="use", dag="d", copy_inputs=True)(lambda lock: lock)
    report = engine.get_run_report(await engine.run_once("d"))
    assert statuses(report) == {"lock": "SUCCESS", "use": "FAILED"}
    assert "cannot pickle" in (report["tasks"]["use"]["error"] or "")


# -- retention --------------------------------------------------------------------------------


async def test_result_that_is_not_retained_is_released_after_its_last_consumer(  # I2
    engine: Engine,
) -> None:
    class Big:
        pass

    alive_at: list[bool] = []
    is_gone = threading.Event()
    references: list[weakref.ref[Big]] = []

    @engine.task(dag="d", retain_result=False)
    def big() -> Big:
        value = Big()
        references.append(weakref.ref(value, lambda _: is_gone.set()))
        return value

    @engine.task(dag="d", deps=[big], retries=2)
    def consumer(big: Big) -> None:
        alive_at.append(references[0]() is not None)
        if len(alive_at) < 3:
            raise ValueError

    @engine.task(dag="d", deps=[consumer])
    def after() -> bool:
        return is_gone.wait(WAIT_S)  # the thread of a failed attempt may still leave its code

    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    assert alive_at == [True, True, True]
    assert report["tasks"]["after"]["result"] is True
    assert report["tasks"]["big"]["result"] is None
    assert report["tasks"]["big"]["result_state"] == "released"


async def test_unretained_leaf_is_released_at_once(engine: Engine) -> None:
    engine.task(name="leaf", dag="d", retain_result=False)(lambda: 7)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["tasks"]["leaf"]["result_state"] == "released"


async def test_unretained_result_is_released_when_its_consumers_are_skipped(
    engine: Engine,
) -> None:
    def fail() -> None:
        raise ValueError

    engine.task(name="big", dag="d", retain_result=False)(lambda: 7)
    engine.task(name="broken", dag="d")(fail)
    engine.task(name="c", dag="d", deps=["big", "broken"])(lambda: None)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["tasks"]["big"]["result_state"] == "released"


# -- whatever a task raises -------------------------------------------------------------------


class Unfriendly(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__("only one")

    def __str__(self) -> str:
        raise RuntimeError


ERRORS: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "StopIteration": lambda: StopIteration(1),
    "StopAsyncIteration": lambda: StopAsyncIteration(1),
    "GeneratorExit": lambda: GeneratorExit(),
    "CancelledError": lambda: asyncio.CancelledError("nobody asked"),
    "ExceptionGroup": lambda: ExceptionGroup("many", [ValueError("one"), KeyError("two")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("many", [SystemExit(1)]),
    "TimeoutError": lambda: TimeoutError("the task's own"),
    "Unfriendly": lambda: Unfriendly("a", "b"),
    "MemoryError": lambda: MemoryError(),
    "RecursionError": lambda: RecursionError("deep"),
}


@pytest.mark.parametrize("timeout_s", [None, 30.0])
@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("name", ERRORS)
async def test_whatever_a_task_raises_is_its_failure(  # A4 A5
    engine: Engine, name: str, is_async: bool, timeout_s: float | None
) -> None:
    def work() -> None:
        raise ERRORS[name]()

    async def work_async() -> None:
        raise ERRORS[name]()

    engine.task(name="bad", dag="d", timeout_s=timeout_s)(work_async if is_async else work)
    engine.task(name="good", dag="d")(lambda: 1)
    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    error = report["tasks"]["bad"]["error"] or ""
    assert statuses(report) == {"bad": "FAILED", "good": "SUCCESS"}
    assert report["tasks"]["bad"]["reason"] == "ERROR"
    assert "Traceback (most recent call last)" in error
    assert name in error or (is_async and name in ("StopIteration", "StopAsyncIteration"))
    assert "timed out: attempt" not in error
    assert "attempt.py" not in error


async def test_error_text_is_kept_up_to_64_kb_and_can_be_encoded(engine: Engine) -> None:  # A6
    @engine.task(dag="d")
    def huge() -> None:
        raise ValueError("x" * 10_000_000 + "the end")

    @engine.task(dag="d")
    def surrogate() -> None:
        msg = "bad \ud800 text"
        raise ValueError(msg)

    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    error = tasks["huge"]["error"] or ""
    assert len(error.encode()) <= 64 * 1024
    assert error.endswith("the end")
    assert "bad \\ud800 text" in (tasks["surrogate"]["error"] or "")
    (tasks["surrogate"]["error"] or "").encode()


async def test_redact_sees_every_error_first(  # V2
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[Any, ...]] = []
    engine = make_engine(
        redact=lambda text: text.replace("s3cret", "***"), hooks=[recording_hook(events)]
    )

    @engine.task(dag="d", retries=1)
    def leak() -> None:
        msg = "token s3cret"
        raise ValueError(msg)

    with caplog.at_level("DEBUG"):
        run_id = await engine.run_once("d")
    assert "s3cret" not in str(engine.get_run_report(run_id))
    assert "token ***" in str(engine.get_run_report(run_id))
    assert "s3cret" not in str(events)
    assert "s3cret" not in caplog.text


async def test_keyboard_interrupt_of_a_task_ends_the_run_and_goes_further(  # A5
    make_engine: MakeEngine,
) -> None:
    for is_async in (True, False):
        engine = make_engine()

        def work() -> None:
            raise KeyboardInterrupt

        async def work_async() -> None:
            raise KeyboardInterrupt

        engine.task(name="a", dag="d")(work_async if is_async else work)
        engine.task(name="b", dag="d", deps=["a"])(lambda: None)
        run = engine.run_once("d")
        with pytest.raises(KeyboardInterrupt):
            while True:
                # Driven by hand: a task would hand a KeyboardInterrupt to the event loop.
                future = run.send(None)
                if future is not None:
                    future._asyncio_future_blocking = False
                    await asyncio.wait([future])
        (summary,) = engine.list_runs()
        assert summary.status == "FAILED"
        assert summary.finished_at is not None
        assert statuses(engine.get_run_report(summary.run_id)) == {"a": "FAILED", "b": "SKIPPED"}


# -- hooks ------------------------------------------------------------------------------------


async def test_hook_that_raises_changes_nothing(  # R4
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(RunHook):
        def on_task_success(self, event: object) -> None:
            raise SystemExit(1)

    events: list[tuple[Any, ...]] = []
    engine = make_engine(hooks=[Bad(), recording_hook(events)])
    engine.task(name="a", dag="d")(lambda: 1)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert [event[0] for event in events] == ["dag_start", "start", "success", "dag_end"]
    assert "failed on TaskSuccessEvent" in caplog.text


async def test_hook_that_blocks_delays_no_task_and_no_timer(make_engine: MakeEngine) -> None:  # R4
    release = threading.Event()
    engine = make_engine(hooks=[fn_hook(on_task_start=lambda event: release.wait(WAIT_S))])

    @engine.task(dag="d", timeout_s=5.0)
    async def a() -> None:
        await asyncio.sleep(0)

    @engine.task(dag="d", deps=[a])
    def b() -> None:
        release.set()

    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert release.is_set()


async def test_hook_that_never_returns_is_left_behind(  # R4
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    events: list[tuple[Any, ...]] = []
    stuck = fn_hook(on_task_start=lambda event: release.wait(WAIT_S))
    engine = make_engine(
        hooks=[stuck, recording_hook(events)], config=SchedulerConfig(hook_timeout_s=1)
    )
    for name in "abc":
        engine.task(name=name, dag="d")(lambda: 1)
    try:
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    finally:
        release.set()
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert [event[0] for event in events].count("start") == 3
    assert "it was abandoned and gets no more events of this run" in caplog.text


async def test_what_a_hook_does_to_the_loop_is_noticed(make_engine: MakeEngine) -> None:
    started = asyncio.Event()
    engine = make_engine(hooks=[fn_hook(on_task_start=lambda event: started.set())])
    gate = asyncio.Event()

    @engine.task(dag="d")
    async def wait() -> None:
        await gate.wait()

    waiting = asyncio.create_task(started.wait())
    await asyncio.sleep(0)  # it waits now: an asyncio.Event is not made for threads
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(waiting, WAIT_S)
    gate.set()
    assert engine.get_run_report(await run)["status"] == "SUCCESS"


# -- context variables ------------------------------------------------------------------------

request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


@pytest.mark.parametrize("is_async", [True, False])
async def test_context_variables_of_the_caller_reach_tasks_and_do_not_leak(  # A7
    make_engine: MakeEngine, is_async: bool
) -> None:
    engine = make_engine(max_parallel=1, max_workers=1)
    hooked: list[str] = []

    def work() -> str:
        seen = request.get()
        request.set("changed by a task")
        return seen

    async def work_async() -> str:
        return work()

    for name in "abc":
        engine.task(name=name, dag="d")(work_async if is_async else work)
    request.set("from the caller")
    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert [task["result"] for task in tasks.values()] == ["from the caller"] * 3
    assert request.get() == "from the caller"
    del hooked


# -- current_attempt() ------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False])
async def test_current_attempt_tells_what_is_running(engine: Engine, is_async: bool) -> None:
    def look() -> tuple[Any, ...]:
        attempt = current_attempt()
        attempt.raise_if_cancelled()
        left = attempt.time_left_s
        assert left is not None
        return (
            attempt.run_id,
            attempt.dag_name,
            attempt.task_name,
            attempt.attempt,
            attempt.cancelled,
            0 < left <= 5,
            attempt.idempotency_key,
            attempt.attempt_key,
        )

    async def look_async() -> tuple[Any, ...]:
        await asyncio.sleep(0)
        return look()

    engine.task(name="look", dag="d", timeout_s=5.0)(look_async if is_async else look)
    engine.task(name="free", dag="d", timeout_s=None)(lambda: current_attempt().time_left_s)
    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    expected = (run_id, "d", "look", 1, False, True, f"{run_id}/look", f"{run_id}/look/1")
    assert tasks["look"]["result"] == expected
    assert tasks["free"]["result"] is None
    assert tasks["free"]["status"] == "SUCCESS"


def test_current_attempt_outside_a_task() -> None:
    with pytest.raises(FlowrunError, match="works only inside a task"):
        current_attempt()


# -- parallelism ------------------------------------------------------------------------------


class Meter:
    """Count how many are inside at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1


@pytest.mark.parametrize(("max_parallel", "max_workers"), [(1, 4), (3, 8), (8, 2), (2, 2)])
async def test_parallelism_is_bounded_by_slots_and_by_threads(
    make_engine: MakeEngine, max_parallel: int, max_workers: int
) -> None:
    engine = make_engine(max_parallel=max_parallel, max_workers=max_workers)
    meter = Meter()
    bound = min(max_parallel, max_workers)
    barrier = threading.Barrier(bound)

    def work() -> None:
        with meter:
            barrier.wait(WAIT_S)

    for number in range(bound * 4):
        engine.task(name=f"t{number}", dag="d")(work)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert meter.most == bound


async def test_max_parallel_bounds_all_runs_together_and_fairly(
    make_engine: MakeEngine,
) -> None:  # R3
    engine = make_engine(max_parallel=2)
    meter = Meter()
    finished: list[str] = []

    async def work() -> None:
        with meter:
            await asyncio.sleep(0)
        finished.append(current_attempt().run_id)

    for number in range(20):
        engine.task(name=f"t{number}", dag="d")(work)
    runs = await asyncio.gather(*(engine.run_once("d") for _ in range(5)))
    assert meter.most == 2
    assert all(engine.get_run_report(run)["status"] == "SUCCESS" for run in runs)
    # Fair: when half of all tasks are done, every run has come on.
    assert {run: finished[:50].count(run) >= 5 for run in runs} == dict.fromkeys(runs, True)


@pytest.mark.parametrize("outer_async", [True, False])
@pytest.mark.parametrize("inner_async", [True, False])
async def test_run_inside_a_task_cannot_deadlock(  # R3
    make_engine: MakeEngine, outer_async: bool, inner_async: bool
) -> None:
    engine = make_engine(max_parallel=1, max_workers=1)

    def inner() -> str:
        return "inner"

    async def inner_on_the_loop() -> str:
        await asyncio.sleep(0)
        return "inner"

    engine.task(name="inner", dag="small")(inner_on_the_loop if inner_async else inner)
    engine.task(name="more", dag="small")(inner_on_the_loop if inner_async else inner)

    async def outer_on_the_loop() -> list[str]:
        both = (engine.run_once("small"), engine.run_once("small"))
        return [engine.get_run_report(run)["status"] for run in await asyncio.gather(*both)]

    def outer() -> list[str]:
        return asyncio.run(outer_on_the_loop())

    engine.task(name="outer", dag="big")(outer_on_the_loop if outer_async else outer)
    engine.task(name="next", dag="big")(lambda: "next")
    run_id = await asyncio.wait_for(engine.run_once("big"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert report["tasks"]["outer"]["result"] == ["SUCCESS", "SUCCESS"]
    assert report["tasks"]["next"]["result"] == "next"


async def test_run_that_outlives_the_task_that_started_it_uses_the_engines_slots(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=1)
    background: list[asyncio.Task[str]] = []
    gate = asyncio.Event()

    async def later() -> str:
        await gate.wait()
        return await engine.run_once("small")

    @engine.task(dag="big")
    async def start() -> None:
        background.append(asyncio.create_task(later()))

    engine.task(name="inner", dag="small")(lambda: 1)
    await engine.run_once("big")
    gate.set()
    run_id = await asyncio.wait_for(background[0], WAIT_S)
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


def test_two_loops_in_two_threads_share_an_engine(make_engine: MakeEngine) -> None:  # R5
    engine = make_engine(max_parallel=2, max_workers=2)

    async def on_loop() -> str:
        await asyncio.sleep(0)
        return "loop"

    engine.task(name="a", dag="d")(on_loop)
    engine.task(name="b", dag="d")(lambda: "thread")
    engine.task(name="c", dag="d", deps=["a", "b"])(lambda a, b: a + b)
    results: list[str] = []

    async def many() -> None:
        for run in await asyncio.gather(*(engine.run_once("d") for _ in range(20))):
            results.append(engine.get_run_report(run)["status"])

    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert results == ["SUCCESS"] * 60


async def test_thousand_runs_at_once(make_engine: MakeEngine) -> None:  # R5
    store = InMemoryStateStore(keep_results_of=None)
    engine = make_engine(max_parallel=8, state_store=store)

    async def a() -> int:
        await asyncio.sleep(0)
        return 1

    engine.task(name="a", dag="d")(a)
    engine.task(name="b", dag="d")(lambda a: a + 1)
    runs = await asyncio.gather(*(engine.run_once("d") for _ in range(1000)))
    assert len(set(runs)) == 1000
    assert {engine.get_run_report(run)["tasks"]["b"]["result"] for run in runs} == {2}


async def test_long_runs_let_the_loop_breathe(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def busy() -> None:
        end = time.monotonic() + 0.001
        while time.monotonic() < end:
            pass

    for number in range(300):
        engine.task(name=f"t{number}", dag="d")(busy)
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(heart())
    await engine.run_once("d")
    beating.cancel()
    assert beats >= 3
