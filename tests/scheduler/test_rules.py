"""Priorities, trigger rules, branches, tasks that omit themselves, retries when told, fail fast."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    Limit,
    Rate,
    RetryPolicy,
    SchedulerConfig,
    SqliteStateStore,
    current_attempt,
    fn_hook,
)
from flowrun.errors import DefinitionError, GraphError, RetryAfter, SkipTask, TaskDefinitionError
from flowrun.registry import TriggerRule

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def stored(
    request: pytest.FixtureRequest, tmp_path: Path, make_engine: MakeEngine
) -> Iterator[MakeEngine]:
    """Build engines with a store of each kind."""
    stores: list[SqliteStateStore] = []

    def make(**options: Any) -> Engine:
        if request.param == "sqlite":
            stores.append(SqliteStateStore(tmp_path / "runs.db"))
            options["state_store"] = stores[-1]
        return make_engine(**options)

    yield make
    for store in stores:
        store.close()


async def finished(engine: Engine, **options: Any) -> dict[str, str]:
    """Run the DAG and return its tasks' statuses."""
    run_id = await asyncio.wait_for(engine.run_once("d", **options), WAIT_S)
    return statuses(engine.get_run_report(run_id))


# -- priorities -------------------------------------------------------------------------------


async def test_higher_priority_starts_first_among_what_is_ready(
    stored: MakeEngine, request: pytest.FixtureRequest
) -> None:  # R6
    engine = stored(max_parallel=1)
    order: list[str] = []

    def declare(name: str, priority: int, *deps: str) -> None:
        async def work() -> None:
            order.append(name)

        engine.task(name=name, dag="d", priority=priority, deps=deps)(work)

    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 5), ("e", 0)):
        declare(name, priority)
    declare("child", 9, "b")
    await finished(engine)
    if "sqlite" in request.node.name:  # there the child is ready once its parent is committed
        order.remove("child")
        assert order == ["b", "d", "a", "e", "c"]
    else:
        assert order == ["b", "child", "d", "a", "e", "c"]


@pytest.mark.parametrize("priority", [1.5, "high", True, None])
def test_priority_that_is_no_int_is_refused(engine: Engine, priority: Any) -> None:
    with pytest.raises(TypeError, match="task 'a'.*priority must be an int"):
        engine.task(name="a", dag="d", priority=priority)(lambda: 1)


# -- trigger rules --------------------------------------------------------------------------------

RUNS = {
    "all_success": lambda good, bad, omitted: not bad and not omitted,
    "all_done": lambda good, bad, omitted: True,
    "one_success": lambda good, bad, omitted: good > 0,
    "one_failed": lambda good, bad, omitted: bad > 0,
    "none_failed": lambda good, bad, omitted: bad == 0,
    "none_failed_min_one_success": lambda good, bad, omitted: bad == 0 and good > 0,
}


@pytest.mark.parametrize("rule", list(TriggerRule))
async def test_rule_decides_by_what_has_become_of_the_dependencies(
    stored: MakeEngine, rule: TriggerRule
) -> None:
    engine = stored()
    expected: dict[str, str] = {}

    def fail() -> None:
        raise ValueError

    def omit() -> None:
        raise SkipTask

    engine.task(name="good", dag="d")(lambda: 1)
    engine.task(name="fails", dag="d")(fail)
    engine.task(name="skipped", dag="d", deps=["fails"])(lambda: 1)
    engine.task(name="omitted", dag="d")(omit)
    kinds = ("good", "fails", "skipped", "omitted")
    for size in (1, 2, 3, 4):
        for deps in itertools.combinations(kinds, size):
            name = "after " + " ".join(deps)
            engine.task(name=name, dag="d", deps=deps, trigger_rule=str(rule))(lambda: "ran")
            good, omitted = "good" in deps, "omitted" in deps
            bad = ("fails" in deps) + ("skipped" in deps)
            if RUNS[rule](good, bad, omitted):
                expected[name] = "SUCCESS"
            else:
                is_skipped = bad and rule != "one_failed"
                expected[name] = "SKIPPED" if is_skipped else "OMITTED"
    found = await finished(engine)
    assert {name: status for name, status in found.items() if name not in kinds} == expected


async def test_only_all_success_is_skipped_while_something_still_runs(stored: MakeEngine) -> None:
    skipped = threading.Event()
    engine = stored(hooks=[fn_hook(on_task_skip=lambda event: skipped.set())])

    @engine.task(dag="d")
    def fails() -> None:
        raise ValueError

    @engine.task(dag="d")
    def waits() -> None:
        assert skipped.wait(WAIT_S)

    engine.task(name="needs both", dag="d", deps=["fails", "waits"])(lambda: 1)
    engine.task(name="any", dag="d", deps=["fails", "waits"], trigger_rule="all_done")(lambda: 1)
    found = await finished(engine)
    assert (found["needs both"], found["any"], found["waits"]) == ("SKIPPED", "SUCCESS", "SUCCESS")


async def test_upstream_holds_what_succeeded_and_the_attempt_tells_the_rest(
    stored: MakeEngine,
) -> None:
    engine = stored()

    @engine.task(dag="d")
    def fails() -> None:
        raise ValueError

    engine.task(name="good", dag="d")(lambda: None)

    @engine.task(dag="d", deps=["good", "fails"], trigger_rule="all_done")
    def report(upstream: dict[str, object]) -> list[object]:
        return [upstream, current_attempt().upstream_status]

    @engine.task(dag="d", deps=["good", "fails"], trigger_rule="all_done")
    async def named(fails: object = "default", good: object = "default") -> list[object]:
        return [fails, good]

    @engine.task(dag="d", deps=["good", "fails"], trigger_rule="all_done")
    def by_position(fails: object = "default", /, good: object = "default") -> list[object]:
        return [fails, good]

    @engine.task(dag="d", deps=["good"])
    def usual() -> dict[str, str]:
        return current_attempt().upstream_status

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    tasks = engine.get_run_report(run_id)["tasks"]
    outcome = {"good": "SUCCESS", "fails": "FAILED"}
    assert tasks["report"]["result"] == [{"good": None}, outcome]
    assert tasks["named"]["result"] == ["default", None]
    assert tasks["by_position"]["result"] == ["default", None]
    assert tasks["usual"]["result"] == {"good": "SUCCESS"}


def test_parameter_without_default_for_what_may_have_no_result_is_refused(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)

    @engine.task(dag="d", deps=["a"], trigger_rule="all_done")
    def b(a: int) -> int:
        return a

    with pytest.raises(GraphError, match=r"'d'.*task 'b' requires the parameter 'a'.*default"):
        engine.validate("d")


def test_unknown_rule_is_refused_with_the_closest_one(engine: Engine) -> None:
    with pytest.raises(TaskDefinitionError, match="'all_dne'.*Did you mean 'all_done'"):
        engine.task(name="a", dag="d", trigger_rule="all_dne")(lambda: 1)
    with pytest.raises(TypeError, match="trigger_rule must be one of"):
        engine.task(name="a", dag="d", trigger_rule=None)(lambda: 1)  # type: ignore[arg-type]


async def test_no_rule_fires_in_a_run_that_is_stopped(stored: MakeEngine) -> None:
    engine = stored()
    begun = asyncio.Event()

    @engine.task(dag="d")
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    engine.task(name="cleanup", dag="d", deps=["waits"], trigger_rule="all_done")(lambda: 1)
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    (summary,) = engine.list_runs()
    found = statuses(engine.get_run_report(summary.run_id))
    assert found == {"waits": "FAILED", "cleanup": "SKIPPED"}


# -- tasks that omit themselves, and branches ------------------------------------------------------


async def test_task_that_has_nothing_to_do_is_omitted_and_the_run_succeeds(
    stored: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flowrun")
    told: list[tuple[str, str, str]] = []
    ended: list[str] = []
    hook = fn_hook(
        on_task_omit=lambda event: told.append((event.task_name, event.reason, event.error)),
        on_task_failure=lambda event: told.append((event.task_name, "failure", "")),
        on_dag_end=lambda event: ended.append(event.status),
    )
    engine = stored(hooks=[hook])

    @engine.task(dag="d", retries=3)
    async def extract() -> None:
        message = "nothing new today"
        raise SkipTask(message)

    engine.task(name="load", dag="d", deps=["extract"])(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert (report["status"], ended) == ("SUCCESS", ["SUCCESS"])
    extract_report, load_report = report["tasks"]["extract"], report["tasks"]["load"]
    assert (extract_report["status"], extract_report["attempt"]) == ("OMITTED", 1)
    assert (extract_report["error"], extract_report["reason"]) == ("nothing new today", "SKIP_TASK")
    assert [each["status"] for each in extract_report["attempts"]] == ["OMITTED"]
    assert (load_report["status"], load_report["attempt"]) == ("OMITTED", 0)
    assert told == [
        ("extract", "SKIP_TASK", "nothing new today"),
        ("load", "UPSTREAM_OMITTED", "a task upstream of it was omitted"),
    ]
    assert "task 'extract' omitted: nothing new today" in caplog.text
    (summary,) = engine.list_runs()
    assert (summary.status, summary.task_counts) == ("SUCCESS", {"OMITTED": 2})
    assert "omitted" in engine.report_text(run_id)
    assert "omitted" in engine.report_html(run_id)


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (lambda left, right: left, ["left"]),
        (lambda left, right: "right", ["right"]),
        (lambda left, right: [left, "right"], ["left", "right"]),
        (lambda left, right: None, []),
        (lambda left, right: (), []),
    ],
)
async def test_branch_omits_what_it_does_not_choose_and_the_join_runs(
    stored: MakeEngine, choice: Callable[..., object], chosen: list[str]
) -> None:
    engine = stored()
    etl = engine.dag("d")

    @etl.branch
    def choose() -> object:
        return choice(left, right)

    @etl.task(deps=[choose])
    def left() -> str:
        return "left"

    @etl.task(deps=[choose])
    async def right() -> str:
        return "right"

    @etl.task(deps=[left, right], trigger_rule="none_failed_min_one_success")
    def join(upstream: dict[str, str]) -> list[str]:
        return sorted(upstream)

    run_id = await asyncio.wait_for(etl.run_once(), WAIT_S)
    report = engine.get_run_report(run_id)
    found = statuses(report)
    expected = {name: "SUCCESS" if name in chosen else "OMITTED" for name in ("left", "right")}
    assert found == {"choose": "SUCCESS", **expected, "join": "SUCCESS" if chosen else "OMITTED"}
    assert report["status"] == "SUCCESS"
    assert report["tasks"]["choose"]["result"] == chosen
    if chosen:
        assert report["tasks"]["join"]["result"] == sorted(chosen)


@pytest.mark.parametrize("retain_result", [True, False])
async def test_resume_keeps_what_a_branch_has_chosen(
    stored: MakeEngine, *, retain_result: bool
) -> None:
    engine = stored()
    calls: list[str] = []
    cancels = [True]

    @engine.branch(dag="d", retain_result=retain_result)
    async def choose() -> list[str]:
        calls.append("choose")
        if cancels:  # the run ends between the choice and what comes of it
            cancels.clear()
            engine.cancel(current_attempt().run_id)
        return ["left"]

    for name in ("left", "right"):
        engine.task(name=name, dag="d", deps=["choose"])(lambda name=name: calls.append(name))
    engine.task(name="join", dag="d", deps=["left", "right"], trigger_rule="none_failed")(
        lambda: calls.append("join")
    )
    with pytest.raises(asyncio.CancelledError):
        await engine.run_once("d")
    (cancelled,) = engine.list_runs()
    assert statuses(engine.get_run_report(cancelled.run_id))["choose"] == "SUCCESS"
    calls.clear()
    run_id = await asyncio.wait_for(engine.resume(cancelled.run_id), WAIT_S)
    assert statuses(engine.get_run_report(run_id)) == {
        "choose": "SUCCESS",
        "left": "SUCCESS",
        "right": "OMITTED",
        "join": "SUCCESS",
    }
    again = [] if retain_result else ["choose"]  # S2
    assert calls == [*again, "left", "join"]
    calls.clear()
    await asyncio.wait_for(engine.resume(run_id, from_tasks=["right"]), WAIT_S)
    assert calls == [*again, "right", "join"]


@pytest.mark.parametrize("wrong", ["nobody", 7, ["left", 7], print])
async def test_branch_to_what_is_no_child_fails_and_is_not_retried(
    stored: MakeEngine, wrong: object
) -> None:
    engine = stored()
    engine.dag("d").branch("choose", retries=2)(lambda: wrong)
    engine.task(name="left", dag="d", deps=["choose"])(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["choose"]
    assert (task["status"], task["attempt"]) == ("FAILED", 1)
    assert "the branch 'choose' returned" in (task["error"] or "")
    assert "'left'" in (task["error"] or "")


async def test_resume_keeps_omissions_unless_what_they_depend_on_runs_again(
    stored: MakeEngine,
) -> None:
    engine = stored()
    calls: list[str] = []
    broken = [True]

    @engine.task(dag="d")
    def source() -> int:
        calls.append("source")
        return 1

    @engine.task(dag="d", deps=[source])
    def nothing() -> None:
        calls.append("nothing")
        raise SkipTask

    engine.task(name="after", dag="d", deps=["nothing"])(lambda: calls.append("after"))

    @engine.task(dag="d")
    def fails() -> None:
        calls.append("fails")
        if broken:
            raise ValueError

    @engine.task(dag="d", deps=["nothing", "fails"], trigger_rule="none_failed")
    def join(upstream: dict[str, object]) -> list[str]:
        calls.append("join")
        return sorted(upstream)

    old = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert statuses(engine.get_run_report(old))["join"] == "SKIPPED"
    broken.clear()
    calls.clear()
    plan = engine.plan_resume(old)
    assert plan.to_run == ["fails", "join"]
    assert plan.tasks["nothing"].why == "was omitted before"
    new = await asyncio.wait_for(engine.resume(old), WAIT_S)
    report = engine.get_run_report(new)
    assert calls == ["fails", "join"]
    assert report["status"] == "SUCCESS"
    assert statuses(report)["nothing"] == statuses(report)["after"] == "OMITTED"
    assert report["tasks"]["join"]["result"] == ["fails"]
    calls.clear()
    again = await asyncio.wait_for(engine.resume(old, from_tasks=["source"]), WAIT_S)
    assert sorted(calls) == ["fails", "join", "nothing", "source"]
    assert statuses(engine.get_run_report(again))["after"] == "OMITTED"


# -- retry when told ----------------------------------------------------------------------------


async def test_retry_after_waits_as_long_as_told_and_overrides_the_policy(
    stored: MakeEngine,
) -> None:
    delays: list[float] = []
    engine = stored(hooks=[fn_hook(on_task_retry=lambda event: delays.append(event.delay_s))])
    calls: list[int] = []

    @engine.task(dag="d", retries=RetryPolicy(2, delay_s=9, max_delay_s=0, retry_on=KeyError))
    def polite() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise RetryAfter(0.01 * len(calls), "429 from the API")
        return len(calls)

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["polite"]
    assert (task["result"], delays) == (3, [0.01, 0.02])
    first, second, third = task["attempts"]
    assert (second["started_at"] or 0) >= (first["finished_at"] or 0) + 0.01
    assert (third["started_at"] or 0) >= (second["finished_at"] or 0) + 0.02
    assert "429 from the API" in (first["error"] or "")


async def test_retry_after_without_a_retry_left_fails_the_task(engine: Engine) -> None:
    @engine.task(dag="d")
    def polite() -> None:
        raise RetryAfter(600)

    assert await finished(engine) == {"polite": "FAILED"}


async def test_policy_may_read_the_error_to_say_how_long_to_wait(make_engine: MakeEngine) -> None:
    delays: list[float] = []
    engine = make_engine(hooks=[fn_hook(on_task_retry=lambda event: delays.append(event.delay_s))])

    class Busy(Exception):
        retry_after = 0.02

    def asked(error: BaseException, retry: int) -> float:
        assert isinstance(error, Busy)
        return error.retry_after * retry

    @engine.task(dag="d", retries=RetryPolicy(2, delay_s=asked, max_delay_s=0.03))
    def busy() -> None:
        raise Busy

    await finished(engine)
    assert delays == [0.02, 0.03]


@pytest.mark.parametrize("wrong", [lambda error, retry: -1, lambda error, retry: "x", lambda: 1])
async def test_policy_function_that_fails_waits_as_long_as_the_policy_may(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, wrong: Any
) -> None:
    delays: list[float] = []
    engine = make_engine(hooks=[fn_hook(on_task_retry=lambda event: delays.append(event.delay_s))])
    policy = RetryPolicy(1, delay_s=wrong, max_delay_s=0.01)
    engine.task(name="a", dag="d", retries=policy)(lambda: 1 / 0)
    await finished(engine)
    assert delays == [0.01]
    assert "the delay_s of its RetryPolicy failed" in caplog.text


def test_retry_after_refuses_what_is_no_number_of_seconds() -> None:
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="RetryAfter takes seconds"):
            RetryAfter(wrong)
    with pytest.raises(TypeError, match="RetryAfter takes seconds"):
        RetryAfter("30")  # type: ignore[arg-type]


# -- fail fast ---------------------------------------------------------------------------------------


async def test_fail_fast_stops_what_runs_and_skips_the_rest(stored: MakeEngine) -> None:
    engine = stored()
    begun = threading.Event()

    @engine.task(dag="d")
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    @engine.task(dag="d", retries=1)
    def fails() -> None:
        assert begun.wait(WAIT_S)
        raise ValueError

    engine.task(name="after", dag="d", deps=["waits"])(lambda: 1)
    engine.task(name="last", dag="d", deps=["fails"], trigger_rule="all_done")(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d", fail_fast=True), WAIT_S)
    report = engine.get_run_report(run_id)
    assert {name: (task["status"], task["reason"]) for name, task in report["tasks"].items()} == {
        "waits": ("FAILED", "FAIL_FAST"),
        "fails": ("FAILED", "ERROR"),
        "after": ("SKIPPED", "FAIL_FAST"),
        "last": ("SKIPPED", "FAIL_FAST"),
    }
    assert report["error"] == "FAIL_FAST: the task 'fails' failed"


async def test_fail_fast_that_is_no_bool_is_refused(engine: Engine) -> None:
    engine.task(name="a", dag="d")(lambda: 1)
    with pytest.raises(TypeError, match="fail_fast must be True or False"):
        await engine.run_once("d", fail_fast="yes")  # type: ignore[arg-type]
    assert engine.list_runs() == []


def test_declarations_that_cannot_be_right_are_definition_errors(engine: Engine) -> None:
    with pytest.raises(DefinitionError):
        engine.dag("d").branch("b", name="c")(lambda: 1)


# -- limits ------------------------------------------------------------------------------------------


class Counted:
    """Code that counts how many of it run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, weight: int = 1) -> None:
        with self.lock:
            self.now += weight
            self.most = max(self.most, self.now)
        os.sched_yield() if hasattr(os, "sched_yield") else None
        with self.lock:
            self.now -= weight


async def test_limit_holds_over_all_runs_of_an_engine(stored: MakeEngine) -> None:
    engine = stored(max_parallel=8, max_workers=8, limits={"api": 2, "warehouse": 4})
    light, heavy = Counted(), Counted()
    for number in range(12):
        engine.task(name=f"l{number}", dag="d", uses=["api"])(lambda: light())
        weight = 4 if number % 4 == 0 else 1
        engine.task(name=f"h{number}", dag="d", uses={"warehouse": weight})(
            lambda weight=weight: heavy(weight)
        )
    runs = await asyncio.wait_for(asyncio.gather(*[engine.run_once("d") for _ in range(3)]), 60)
    assert [engine.get_run_report(run)["status"] for run in runs] == ["SUCCESS"] * 3
    assert light.most <= 2
    assert heavy.most <= 4


async def test_unit_whose_limit_is_taken_holds_up_only_what_needs_it(stored: MakeEngine) -> None:
    engine = stored(max_parallel=2, limits={"api": 1})
    may_end = asyncio.Event()

    @engine.task(dag="d", uses=["api"])
    async def holds() -> None:
        await may_end.wait()

    @engine.task(dag="d", uses=["api"])
    async def waits() -> None:
        assert may_end.is_set()

    @engine.task(dag="d")
    async def free() -> None:
        may_end.set()

    assert set((await finished(engine)).values()) == {"SUCCESS"}


async def test_rate_is_kept_and_the_pause_of_a_retry_holds_for_everybody(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=8, limits={"api": Limit(rate=Rate(3, per_s=0.1))})
    starts: list[float] = []
    loop = asyncio.get_running_loop()

    async def call() -> None:
        starts.append(loop.time())

    for number in range(8):
        engine.task(name=f"t{number}", dag="d", uses=["api"])(call)
    assert set((await finished(engine)).values()) == {"SUCCESS"}
    starts.sort()
    # Decided by the clock a moment before the code begins.
    assert all(late - early > 0.08 for early, late in zip(starts, starts[3:], strict=False))

    engine = make_engine(max_parallel=1, limits={"api": 5})
    told_at: list[float] = []

    @engine.task(dag="d", retries=1, uses=["api"])
    async def polite() -> None:
        if not told_at:
            told_at.append(loop.time())
            raise RetryAfter(0.1, pause=["api"])

    @engine.task(dag="d", uses=["api"])
    async def other() -> None:
        assert loop.time() >= told_at[0] + 0.09

    assert set((await finished(engine)).values()) == {"SUCCESS"}


async def test_pause_of_an_unknown_limit_is_logged(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    calls: list[int] = []

    @engine.task(dag="d", retries=1)
    async def polite() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RetryAfter(0, pause=["apu"])

    assert await finished(engine) == {"polite": "SUCCESS"}
    assert "pause 'apu'" in caplog.text


async def test_run_inside_a_task_uses_the_limit_that_the_task_holds(stored: MakeEngine) -> None:
    engine = stored(max_parallel=1, limits={"api": 1, "other": 1})
    inner = Counted()
    for number in range(3):
        engine.task(name=f"t{number}", dag="inner", uses=["api", "other"])(lambda: inner())

    @engine.task(dag="d", uses=["api"])
    async def nests() -> str:
        return engine.get_run_report(await engine.run_once("inner"))["status"]

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert engine.get_run_report(run_id)["tasks"]["nests"]["result"] == "SUCCESS"
    assert inner.most == 1
    assert set((await finished(engine)).values()) == {"SUCCESS"}  # nothing is held any more


@pytest.mark.parametrize("how", ["fails", "times out", "cancelled", "abandoned"])
async def test_limit_is_free_again_however_an_attempt_ends(stored: MakeEngine, how: str) -> None:
    config = SchedulerConfig(thread_grace_s=0.01, cancel_grace_s=0.01)
    engine = stored(limits={"api": 1}, config=config)
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @engine.task(dag="bad", uses=["api"], timeout_s=None if how == "cancelled" else 0.05)
    def bad() -> None:
        loop.call_soon_threadsafe(begun.set)
        if how == "fails":
            raise ValueError
        assert may_end.wait(WAIT_S)

    run = asyncio.create_task(engine.run_once("bad"))
    await asyncio.wait_for(begun.wait(), WAIT_S)
    if how == "cancelled":
        run.cancel()
    if how == "times out":
        may_end.set()
    await asyncio.wait([run], timeout=WAIT_S)
    engine.task(name="good", dag="d", uses=["api"])(lambda: 1)
    assert await finished(engine) == {"good": "SUCCESS"}
    may_end.set()


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (["apu"], "task 'a' uses the limit 'apu'; the engine has 'api'.*Did you mean 'api'"),
        ({"api": 4}, "task 'a' uses 4 of the limit 'api', which is 3; it could never start"),
    ],
)
def test_limit_that_is_not_there_is_refused(
    make_engine: MakeEngine, uses: Any, message: str
) -> None:
    engine = make_engine(limits={"api": 3})
    engine.task(name="a", dag="d", uses=uses)(lambda: 1)
    with pytest.raises(GraphError, match=f"'d'.*{message}"):
        engine.validate("d")


@pytest.mark.parametrize("uses", ["api", {"api": 0}, {"api": 1.5}, [7], 7, {"api": True}])
def test_uses_that_cannot_be_is_refused(engine: Engine, uses: Any) -> None:
    with pytest.raises(DefinitionError, match=r"task 'a'.*uses"):
        engine.task(name="a", dag="d", uses=uses)(lambda: 1)


@pytest.mark.parametrize(
    "limits",
    [
        ["api"],
        {"api": 0},
        {"api": 1.5},
        {"api": True},
        {7: 1},
        {"": 1},
    ],
)
def test_limits_that_cannot_be_are_refused(make_engine: MakeEngine, limits: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="limit"):
        make_engine(limits=limits)


def test_limit_and_rate_check_their_values() -> None:
    assert Limit(3, Rate(2)) == Limit(count=3, rate=Rate(2, per_s=1.0))
    for wrong in ({}, {"count": 0}, {"count": "3"}, {"rate": 10}):
        with pytest.raises((TypeError, ValueError), match="Limit"):
            Limit(**wrong)  # type: ignore[arg-type]
    for arguments in ((0,), (1.5,), (1, 0), (1, -1), (1, "x"), (1, float("inf"))):
        with pytest.raises((TypeError, ValueError), match="Rate"):
            Rate(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"write pause=\['api'\]"):
        RetryAfter(1, pause="api")
