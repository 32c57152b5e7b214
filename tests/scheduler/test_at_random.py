"""Random DAGs of random tasks, cancelled at random moments: what always holds is checked.

``FLOWRUN_RANDOM_ROUNDS`` sets the number of rounds of each kind, ``FLOWRUN_RANDOM_SEED`` the
first seed; what goes wrong is told with the seed that shows it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import sys
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import flowrun
from flowrun import RetryPolicy, RunReport, current_attempt
from flowrun.context import Attempt

from ..conftest import WAIT_S

ROUNDS = int(os.environ.get("FLOWRUN_RANDOM_ROUNDS", "12"))
SEED = int(os.environ.get("FLOWRUN_RANDOM_SEED", "0"))
ASYNC = ("at once", "at once", "yields", "sleeps")
SYNC = ("sync", "sync", "sync", "slow sync")
MIXED = (*ASYNC, *SYNC, "awaitable", "nested", "nested sync")
Events: TypeAlias = list[tuple[str, str]]
ERRORS = (
    *(ValueError, asyncio.CancelledError, SystemExit, GeneratorExit, StopIteration, TimeoutError),
    lambda: BaseExceptionGroup("several", [SystemExit(1), KeyError("x")]),
)
HOST = contextvars.ContextVar("HOST", default="")  # the attempt that a nested run is in


class Plan:
    """What one task is to do."""

    def __init__(self, chance: random.Random, number: int, kinds: tuple[str, ...]) -> None:
        self.name = f"t{number}"
        self.kind = chance.choice(kinds)
        parents = chance.sample(range(number), min(number, chance.choice((0, 1, 1, 2, 3))))
        self.deps = [f"t{parent}" for parent in parents]
        self.fails = chance.choice((0, 0, 0, 0, 0, 1, 2, 5))
        self.error = chance.choice(ERRORS)
        retries, delay_s = chance.choice((0, 1, 3)), chance.choice((0, 0, 0.002))
        self.waits = bool(delay_s)
        can_hang = self.kind not in {"at once", "nested", "nested sync"}
        self.hangs = can_hang and chance.random() < 0.03
        self.succeeds = not self.hangs and self.fails <= retries
        self.disturbs = self.kind == "yields" and not self.hangs
        self.pause_s = chance.choice((0.0, 0.001, 0.004))
        self.options: dict[str, Any] = {
            "retries": RetryPolicy(retries, delay_s=delay_s, backoff=1),
            "retain_result": chance.random() < 0.7,
            "timeout_s": 0.03 if self.hangs else WAIT_S,
        }


class World:
    """An engine, its tasks, and what was seen of them."""

    def __init__(self, seed: int, folder: Path | None) -> None:
        self.chance = chance = random.Random(seed)
        self.lock = threading.Lock()
        self.problems: list[str] = []
        self.running: dict[str, tuple[str, Attempt]] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.given: dict[str, object] = {}
        self.succeeded: set[str] = set()
        self.events: dict[str, Events] = defaultdict(list)
        self.entries = 0
        self.acts: dict[int, Callable[[], object]] = {}
        self.runs: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[str]]] = []
        self.store = folder and flowrun.SqliteStateStore(folder / "runs.db", synchronous="NORMAL")
        self.parallel = chance.randint(1, 5)
        self.engine: flowrun.Engine = flowrun.build_default_engine(
            max_parallel=self.parallel,
            max_workers=chance.randint(1, 6),
            state_store=self.store,
            config=flowrun.SchedulerConfig(thread_grace_s=WAIT_S),
            hooks=[self.hook()] if chance.random() < 0.8 else None,
        )
        self.plans: dict[str, list[Plan]] = {}
        for dag, most in (("inner", 5), ("a", 25), ("b", 25)):
            kinds = chance.choice((ASYNC, SYNC, MIXED if dag != "inner" else ASYNC + SYNC))
            count = chance.randint(1, most)
            self.plans[dag] = [Plan(chance, number, kinds) for number in range(count)]
            for plan in self.plans[dag]:
                self.declare(dag, plan)

    def hook(self) -> Any:
        def seen(event: Any) -> None:
            kind = type(event).__name__.removesuffix("Event").removeprefix("Task")
            self.events[event.run_id].append((kind, getattr(event, "task_name", "")))
            if kind == "Retry":
                raise SystemExit

        on = "dag_start dag_end task_start task_success task_failure task_retry task_skip"
        return flowrun.fn_hook(**{f"on_{name}": seen for name in on.split()})

    def declare(self, dag: str, plan: Plan) -> None:
        async def at_once(upstream: dict[str, Any]) -> object:
            with self.inside(plan, upstream):
                return self.outcome(plan)

        async def suspending(upstream: dict[str, Any]) -> object:
            with self.inside(plan, upstream):
                await asyncio.sleep(plan.pause_s if plan.kind == "sleeps" else 0)
                if plan.disturbs:
                    await do_what_disturbs_others()
                if plan.kind == "nested":
                    await self.nested()
                while plan.hangs:
                    await asyncio.sleep(WAIT_S)
                return self.outcome(plan)

        def sync(upstream: dict[str, Any]) -> object:
            with self.inside(plan, upstream):
                if plan.kind == "slow sync":
                    threading.Event().wait(plan.pause_s)
                elif plan.kind == "nested sync":
                    asyncio.run(self.nested())
                while plan.hangs and not current_attempt().cancelled:
                    threading.Event().wait(0.001)
                return self.outcome(plan)

        def awaitable(upstream: dict[str, Any]) -> Awaitable[object]:
            return suspending(upstream)

        function: Any = sync if "sync" in plan.kind else suspending
        function = {"at once": at_once, "awaitable": awaitable}.get(plan.kind, function)
        self.engine.task(name=plan.name, dag=dag, deps=plan.deps, copy_inputs=True, **plan.options)(
            function
        )

    @contextlib.contextmanager
    def inside(self, plan: Plan, upstream: dict[str, Any]) -> Generator[None]:
        me, host = current_attempt(), HOST.get()
        key = f"{me.run_id}/{me.task_name}"
        with self.lock:
            self.entries += 1
            act = self.acts.pop(self.entries, None)
            self.calls[key] += 1
            self.expect(self.calls[key] <= me.attempt, f"{me} was called twice")
            self.expect(key not in self.running, f"{me} runs beside another attempt")
            self.running[key] = host, me
            # A sync attempt that was told to stop may have been abandoned.
            beside = [one for where, one in self.running.values() if where == host]
            beside = [one for one in beside if not one.cancelled]
            self.expect(len(beside) <= (1 if host else self.parallel), f"at once: {beside}")
            early = [dep for dep in plan.deps if f"{me.run_id}/{dep}" not in self.succeeded]
            self.expect(not early and list(upstream) == plan.deps, f"{me} is before {early}")
            given = {name: list(value) for name, value in upstream.items()}
            self.expect(self.given.setdefault(key, given) == given, f"{me} was given {given}")
        for name, value in upstream.items():
            if sum(name in other.deps for other in self.plans[me.dag_name]) == 1:
                value.append(me.attempt)
        if act is not None:
            act()
        try:
            yield
        finally:
            with self.lock:
                del self.running[key]

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)

    async def nested(self) -> None:
        HOST.set(current_attempt().attempt_key)
        with contextlib.suppress(flowrun.RunCancelledError):  # by a task of that run
            await self.engine.run_once("inner")

    def outcome(self, plan: Plan) -> list[int]:
        me = current_attempt()
        if me.attempt <= plan.fails:
            raise plan.error()
        self.succeeded.add(f"{me.run_id}/{me.task_name}")
        return [me.attempt]

    def play(self, cancels: int) -> None:
        for _ in range(cancels):
            self.acts[self.chance.randint(1, 60)] = self.cancel
        other = threading.Thread(target=lambda: asyncio.run(self.drive()))
        other.start()
        asyncio.run(self.drive())
        other.join()
        asyncio.run(self.check_slots())
        for run in self.engine.list_runs(limit=None):
            self.check(self.engine.get_run_report(run.run_id))
        self.engine.close()
        if self.store is not None:
            self.store.close()

    async def drive(self) -> None:
        loop, before = asyncio.get_running_loop(), asyncio.all_tasks()
        count = self.chance.randint(1, 3)
        runs = [asyncio.create_task(self.engine.run_once("ab"[n % 2])) for n in range(count)]
        self.runs += [(loop, run) for run in runs]
        async with asyncio.timeout(WAIT_S):
            for end in await asyncio.gather(*runs, return_exceptions=True):
                self.expect(isinstance(end, str | asyncio.CancelledError), repr(end))
        await asyncio.sleep(0)
        self.expect(asyncio.all_tasks() == before, f"left on the loop: {asyncio.all_tasks()}")

    def cancel(self) -> None:
        if self.entries % 2:
            self.engine.cancel(current_attempt().run_id)
            return
        loop, run = self.runs[self.entries % len(self.runs)]
        with contextlib.suppress(RuntimeError):  # that loop is closed
            loop.call_soon_threadsafe(run.cancel)

    async def check_slots(self) -> None:
        all_here = asyncio.Barrier(self.parallel)
        for number in range(self.parallel):
            self.engine.task(name=f"t{number}", dag="all", timeout_s=WAIT_S)(all_here.wait)
        run_id = await self.engine.run_once("all")
        self.expect(self.engine.get_run_report(run_id)["status"] == "SUCCESS", "slots were lost")

    def check(self, report: RunReport) -> None:
        run_id = report["run_id"]
        plans = self.plans.get(report["dag_name"], [])
        events = self.events.get(run_id)
        ends = {name: task["status"] for name, task in report["tasks"].items()}
        self.expect(report["finished_at"] is not None, f"{run_id} has no end")
        for plan in plans:
            task = report["tasks"][plan.name]
            calls, status = self.calls[f"{run_id}/{plan.name}"], task["status"]
            blocked = any(ends[dep] != "SUCCESS" for dep in plan.deps)
            usual = "SKIPPED" if blocked else "SUCCESS" if plan.succeeds else "FAILED"
            what = f"{report['dag_name']} {run_id} {plan.name} ({plan.kind}): {status}"
            if report["error"] is None:
                self.expect(status == usual, f"{what}, not {usual}: {task['error']}")
                self.expect(calls == task["attempt"], f"{what}, {calls} calls")
            self.expect(status in {"SUCCESS", "FAILED", "SKIPPED"}, what)
            if not events:
                continue
            own = [kind for kind, name in events if name == plan.name]
            attempts = ["Start", *["Retry", "Start"] * (len(own) // 2 - 1)]
            last = {"SUCCESS": "Success", "FAILED": "Failure", "SKIPPED": "Skip"}[status]
            good = own == ["Skip"] if own[0] == "Skip" else own == [*attempts, last]
            self.expect(good or own[-2:] == ["Retry", "Skip"], f"{what}: {own}")
        if events:
            self.expect(events[0][0] == "DagStart" and events[-1][0] == "DagEnd", "no frame")
            if plans and all(plan.kind in ASYNC for plan in plans):
                self.check_order(plans, list(ends), events)

    def check_order(self, plans: list[Plan], order: list[str], events: Events) -> None:  # R6
        ready = [plan.name for plan in plans if not plan.deps]
        waiting = {plan.name for plan in plans if plan.waits}
        done: set[str] = set()
        for kind, name in events:
            if kind == "Start":
                if name not in ready and name in waiting:
                    continue  # nobody tells when its wait is over
                first = min(ready, key=order.index, default="")
                self.expect(name == first, f"launched {name} before {first}: {events}")
                ready.remove(name)
            elif kind == "Retry" and name not in waiting:
                ready.append(name)
            elif kind == "Success":
                done.add(name)
                ready += [
                    plan.name for plan in plans if name in plan.deps and done.issuperset(plan.deps)
                ]


async def do_what_disturbs_others() -> None:
    me = asyncio.current_task()
    assert me is not None
    me.cancel()
    me.uncancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    me.cancel()
    me.uncancel()


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_what_always_holds(seed: int, store: str, tmp_path: Path) -> None:
    world = World(seed, tmp_path if store == "sqlite" else None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval if seed % 3 else 1e-6)  # threads come at all moments
    try:
        world.play(cancels=(0, 0, 1, 3)[seed % 4])
    finally:
        sys.setswitchinterval(interval)
    assert not world.problems
