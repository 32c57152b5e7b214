"""The keys of an attempt through retries and resumes, wherever the task runs (D9)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    ProcessPerAttemptExecutor,
    RunContext,
    SqliteStateStore,
    StateStoreProtocol,
)

from ..executors.remote_tasks import note_keys

pytestmark = pytest.mark.usefixtures("pools_collected")

MakeEngine = Callable[..., Engine]


async def note_keys_on_the_loop(context: RunContext[Path]) -> None:
    note_keys(context)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStoreProtocol]:
    if request.param == "memory":
        yield InMemoryStateStore()
        return
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        yield store


@pytest.mark.parametrize("where", ["loop", "thread", "threads", "processes", "each"])
async def test_all_retries_and_resumes_have_one_idempotency_key(  # D9
    store: StateStoreProtocol, make_engine: MakeEngine, tmp_path: Path, where: str
) -> None:
    pools: dict[str, Callable[[], Executor]] = {
        "threads": lambda: ThreadPoolExecutor(1),
        "processes": lambda: ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        ),
        "each": lambda: ProcessPerAttemptExecutor(1),
    }
    pool = pools[where]() if where in pools else None
    engine = make_engine(state_store=store, executors={"there": pool} if pool else None)
    function = note_keys_on_the_loop if where == "loop" else note_keys
    dag = engine.dag("d")
    dag.task("write", executor="there" if pool else None, retries=1)(function)
    dag.task("other")(lambda: None)
    context = RunContext(tmp_path / "keys")

    first = await engine.run_subgraph("d", ["write"], context=context)
    second = await engine.resume(first, context=context)
    third = await engine.resume(second, from_tasks=["write"], context=context)
    assert engine.get_run_report(third)["status"] == "SUCCESS"
    lines = [line.split() for line in context.deps.read_text().splitlines()]
    assert [key for key, _ in lines] == [f"{first}/write"] * 5
    assert [key for _, key in lines] == [
        *(f"{run}/write/{number}" for run in (first, second) for number in (1, 2)),
        f"{third}/write/1",
    ]

    context.deps.write_text("\n" * 4)
    alone = await engine.run_once("d", context)
    assert context.deps.read_text().split() == [f"{alone}/write", f"{alone}/write/1"]
    if pool:
        pool.shutdown()


async def test_the_first_run_of_a_chain_may_be_pruned(  # D9
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    store = InMemoryStateStore()
    engine = make_engine(state_store=store)
    engine.task("write", dag="d")(note_keys)
    context = RunContext(tmp_path / "keys")
    first = await engine.run_once("d", context)
    second = await engine.resume(first, context=context)
    assert engine.prune_runs(keep_last=1) == 1
    await engine.resume(second, context=context)
    keys = [line.split()[0] for line in context.deps.read_text().splitlines()]
    assert keys == [f"{first}/write"] * 3


async def test_a_process_that_resumes_a_file_uses_the_same_key(  # D9
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    context = RunContext(tmp_path / "keys")
    runs: list[str] = []
    for _ in range(3):
        with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
            engine = make_engine(state_store=store)
            engine.task("write", dag="d")(note_keys)
            if runs:
                runs.append(await engine.resume(runs[0], context=context))
            else:
                runs.append(await engine.run_once("d", context))
            await engine.aclose()
    keys = [line.split() for line in context.deps.read_text().splitlines()]
    assert keys == [[f"{runs[0]}/write", f"{run}/write/1"] for run in runs]
