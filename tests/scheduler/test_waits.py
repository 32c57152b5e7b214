"""How long tasks wait for slots and limits, and what of their time is a serializer's (V3)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, JsonSerializer, RetryAfter, SqliteStateStore, TaskReport

from ..conftest import WAIT_S
from .test_virtual_time import World

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        yield None
        return
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    yield store
    store.close()


def waits(task: TaskReport) -> list[tuple[float, dict[str, float]]]:
    found: list[tuple[float, dict[str, float]]] = []
    for each in task["attempts"]:
        assert each["slot_wait_s"] is not None
        limits = {name: round(wait_s, 3) for name, wait_s in each["limit_waits"].items()}
        found.append((round(each["slot_wait_s"], 3), limits))
    return found


async def test_waits_for_slot_and_limits_are_told_apart(
    make_engine: MakeEngine, store: Any
) -> None:
    world = World(make_engine, state_store=store, max_parallel=2, limits={"api": 1})
    clock = world.clock

    def declare(name: str, pause_s: float, **options: Any) -> None:
        @world.engine.task(name=name, dag="d", **options)
        async def work() -> None:
            await clock.wait_for(pause_s)
            if name == "retried" and not world.begun:
                world.began()
                raise RetryAfter(4.0, "429", pause=["api"])

    declare("first", 5.0, uses=["api"])
    declare("long", 7.0)
    declare("second", 1.0, uses=["api"])  # the limit is free after 5 s, and so is a slot
    declare("last", 1.0)  # a slot is free after 6 s
    declare("retried", 1.0, uses=["api"], deps=["last"], retries=1)
    report = await world.run()
    tasks = report["tasks"]
    assert waits(tasks["first"]) == waits(tasks["long"]) == [(0.0, {})]
    assert waits(tasks["second"]) == [(0.0, {"api": 5.0})]
    assert waits(tasks["last"]) == [(6.0, {})]
    assert [limits for _, limits in waits(tasks["retried"])] == [{}, {}]
    assert tasks["second"]["limit_waits"] == {"api": pytest.approx(5.0, abs=1e-3)}
    assert tasks["last"]["slot_wait_s"] == pytest.approx(6.0, abs=1e-3)
    assert report["max_parallel"] == 2
    assert set(report["versions"]) == {"flowrun", "Python"}


async def test_paused_limit_is_waited_for(make_engine: MakeEngine, store: Any) -> None:
    world = World(make_engine, state_store=store, limits={"api": 3})

    @world.engine.task(dag="d", uses=["api"], retries=1)
    async def a() -> None:
        if world.began() == 1:
            raise RetryAfter(4.0, "429", pause=["api"])

    @world.engine.task(dag="d")
    async def b() -> None:
        await world.clock.wait_for(1.0)

    @world.engine.task(dag="d", uses=["api"])
    async def c(b: None) -> None: ...

    tasks = (await world.run())["tasks"]
    assert waits(tasks["c"]) == [(0.0, {"api": 3.0})]
    assert waits(tasks["a"]) == [(0.0, {}), (0.0, {})]


async def test_task_that_never_started_says_what_it_waited_for(
    make_engine: MakeEngine, store: Any
) -> None:
    world = World(make_engine, state_store=store, limits={"api": 1})

    @world.engine.task(dag="other", uses=["api"])
    async def holds() -> None:
        await world.clock.wait_for(100.0)

    @world.engine.task(dag="d", uses=["api"])
    async def waits_for_it() -> None: ...

    async def both() -> str:
        other = asyncio.create_task(world.engine.run_once("other"))
        await asyncio.sleep(0)
        run_id = await asyncio.gather(
            world.engine.run_once("d", timeout_s=30.0), return_exceptions=True
        )
        await other
        return str(run_id)

    await world.clock.run(world.engine, both())
    (run,) = world.engine.list_runs("d")
    explained = world.engine.explain(run.run_id)
    assert explained.path == ("waits_for_it",)
    assert explained.line.startswith("30.0 s: waiting for limit api 30.0")
    task = world.engine.get_run_report(run.run_id)["tasks"]["waits_for_it"]
    assert (task["status"], task["attempts"]) == ("SKIPPED", [])
    assert task["limit_waits"] == {"api": pytest.approx(30.0, abs=0.01)}


class GatedSerializer(JsonSerializer):
    """Makes bytes of a result once somebody lets it."""

    name = "gated"

    def __init__(self) -> None:
        super().__init__()
        self.encodes, self.may_encode = threading.Event(), threading.Event()

    def serialize(self, obj: object) -> bytes:
        if obj == "gated":
            self.encodes.set()
            assert self.may_encode.wait(WAIT_S)
        return super().serialize(obj)


@pytest.mark.parametrize("is_async", [True, False])
async def test_slot_is_free_when_the_code_has_ended(  # V3
    make_engine: MakeEngine, tmp_path: Path, is_async: bool
) -> None:
    serializer = GatedSerializer()
    store = SqliteStateStore(tmp_path / "runs.db", serializer=serializer)
    engine = make_engine(state_store=store, max_parallel=1)

    async def asynchronous() -> str:
        return "gated"

    def synchronous() -> str:
        return "gated"

    engine.task(name="a", dag="d")(asynchronous if is_async else synchronous)

    @engine.task(dag="d")
    async def b() -> None:  # it would never start if the serializer of a had the only slot
        serializer.may_encode.set()

    @engine.task(dag="d")
    async def c(a: str) -> None: ...

    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    assert report["status"] == "SUCCESS"
    a, b_ended_at = report["tasks"]["a"], report["tasks"]["b"]["finished_at"]
    assert a["finished_at"] < a["encoded_at"]
    assert a["saving_s"] >= a["encoded_at"] - a["finished_at"] > 0
    assert b_ended_at <= a["encoded_at"]
    assert report["tasks"]["c"]["ready_at"] >= a["encoded_at"]
    engine.close()
    store.close()


async def test_loop_goes_on_while_a_serializer_of_the_users_works(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    serializer = GatedSerializer()
    store = SqliteStateStore(tmp_path / "runs.db", serializer=serializer)
    engine = make_engine(state_store=store)

    @engine.task(dag="d")
    async def a() -> str:
        return "gated"

    run = asyncio.create_task(engine.run_once("d"))
    while not serializer.encodes.is_set():
        await asyncio.sleep(0)
    serializer.may_encode.set()  # from the loop
    assert engine.get_run_report(await run)["tasks"]["a"]["result"] == "gated"
    engine.close()
    store.close()


async def test_waits_and_reasons_survive_a_resume(make_engine: MakeEngine, store: Any) -> None:
    world = World(make_engine, state_store=store, max_parallel=1, limits={"api": 1})
    engine, clock = world.engine, world.clock
    broken = [True]

    @engine.task(dag="d")
    async def first() -> None:
        await clock.wait_for(2.0)

    @engine.task(dag="d", uses=["api"])
    async def second() -> int:
        return 1

    @engine.task(dag="d")
    async def third(second: int) -> None:
        await clock.wait_for(1.0)
        if broken:
            raise OSError("away")

    @engine.task(dag="d")
    async def fourth(third: None) -> None: ...

    failed = await world.run()
    broken.clear()
    run_id = await clock.run(engine, engine.resume(failed["run_id"]))
    tasks = engine.get_run_report(run_id)["tasks"]
    assert waits(tasks["second"]) == waits(failed["tasks"]["second"]) == [(2.0, {})]
    assert [task["why_run"] for task in tasks.values()] == [None, None, "had failed", "was skipped"]
    assert engine.explain(run_id).why == {
        "first": f"kept from run {failed['run_id']}",
        "second": f"kept from run {failed['run_id']}",
        "third": "run by the resume: had failed",
        "fourth": "run by the resume: was skipped",
    }
    again = await clock.run(engine, engine.resume(run_id, from_tasks=["fourth"]))
    why = [task["why_run"] for task in engine.get_run_report(again)["tasks"].values()]
    assert why == [None, None, None, "named to run again"]


async def test_run_inside_a_task_has_the_one_slot_of_its_caller(make_engine: MakeEngine) -> None:
    engine = make_engine(max_parallel=3)
    inner: list[str] = []

    @engine.task(dag="inner")
    async def b() -> None: ...

    @engine.task(dag="outer")
    async def a() -> None:
        inner.append(await engine.run_once("inner"))

    outer = await engine.run_once("outer")
    assert engine.get_run_report(outer)["max_parallel"] == 3
    assert engine.get_run_report(inner[0])["max_parallel"] == 1


async def test_items_wait_for_slots_and_limits_like_tasks(
    make_engine: MakeEngine, store: Any
) -> None:
    world = World(make_engine, state_store=store, max_parallel=2, limits={"api": 1})

    @world.engine.task(dag="d")
    async def pages() -> list[int]:
        return [1, 2, 3]

    @world.engine.task(dag="d", map_over="pages", uses=["api"])
    async def fetch(pages: int) -> int:
        await world.clock.wait_for(float(pages))
        return pages

    @world.engine.task(dag="d")
    async def load(fetch: list[int]) -> None: ...

    report = await world.run()
    items = report["tasks"]["fetch"]["items"]
    assert [waits(item) for item in items] == [
        [(0.0, {})],
        [(0.0, {"api": 1.0})],
        [(0.0, {"api": 3.0})],
    ]
    explained = world.engine.explain(report["run_id"])
    assert explained.line.startswith("6.0 s: fetch 6.0")
    assert explained.path == ("pages", "fetch", "load")
    assert sum(part.duration_s for part in explained.parts) == pytest.approx(6.0, abs=1e-5)
    assert explained.busy == pytest.approx(0.5, abs=1e-3)
