"""Out to a cluster: a real Dask cluster of worker processes on loopback, handed in as executor."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, RunContext, SchedulerConfig, current_attempt

from ..conftest import WAIT_S, statuses
from . import remote_tasks

distributed = pytest.importorskip("distributed", reason="the cluster group is not installed")

# Dask's own threads and loops warn of what is not ours while a cluster is torn down.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.xdist_group("cluster")]

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=2,
                threads_per_worker=2,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=50,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.wait_for_workers(2, timeout=60)
            yield client


@pytest.fixture
def executor(client: Any) -> Executor:
    return client.get_executor()


async def test_progress_and_logs_come_back_with_the_result(
    make_engine: MakeEngine, executor: Executor, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    engine = make_engine(executor=executor, config=SchedulerConfig(keep_logs=True))
    engine.task(name="tell", dag="d")(partial(remote_tasks.say_and_log, gate=str(gate)))
    report = engine.get_run_report(await engine.run_once("d"))
    (attempt,) = report["tasks"]["tell"]["attempts"]
    assert attempt["progress"] == {"done": 3, "total": 3, "unit": "rows"}
    assert [line["text"] for line in attempt["logs"]] == ["a secret warning", "1 of 3"]


@pytest.mark.parametrize("named", [True, False])
async def test_results_travel_there_and_back(
    make_engine: MakeEngine, executor: Executor, named: bool
) -> None:
    options: dict[str, Any] = {"executors": {"c": executor}} if named else {"executor": executor}
    engine = make_engine(**options)
    where = "c" if named else None
    engine.task(name="rows", dag="d")(lambda: [1, 2, 3])

    @engine.task(dag="d", executor=where)
    def total(rows: list[int], context: RunContext[Any]) -> tuple[int, int, str, str]:
        attempt = current_attempt()
        return sum(rows), os.getpid(), attempt.task_name, context.deps

    run_id = await engine.run_once("d", RunContext("given"))
    report = engine.get_run_report(run_id)
    result: Any = report["tasks"]["total"]["result"]
    assert report["status"] == "SUCCESS"
    assert (result[0], result[2], result[3]) == (6, "total", "given")
    assert result[1] != os.getpid()


async def test_failures_and_retries(make_engine: MakeEngine, executor: Executor) -> None:
    engine = make_engine(executors={"c": executor})

    @engine.task(dag="d", executor="c", retries=2)
    def flaky() -> int:
        attempt = current_attempt().attempt
        if attempt < 3:
            msg = f"remote failure {attempt}"
            raise ValueError(msg)
        return attempt

    @engine.task(dag="d", executor="c")
    def leaves() -> None:
        raise SystemExit(3)

    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["flaky"]["result"] == 3
    assert "ValueError: remote failure 1" in (tasks["flaky"]["attempts"][0]["error"] or "")
    assert tasks["leaves"]["status"] == "FAILED"
    assert "SystemExit: 3" in (tasks["leaves"]["error"] or "")


async def test_whatever_a_task_raises_there_is_its_failure(  # A4 A5
    make_engine: MakeEngine, executor: Executor
) -> None:
    engine = make_engine(executors={"c": executor})

    class Unpleasant(Exception):
        """Pickles, and cannot be unpickled."""

        def __init__(self, first: str, second: str) -> None:
            super().__init__(first)
            self.second = second

    def raiser(kind: str) -> Callable[[], None]:
        def work() -> None:
            errors: dict[str, BaseException] = {
                "ValueError": ValueError("plain"),
                "SystemExit": SystemExit(3),
                "StopIteration": StopIteration(1),
                "GeneratorExit": GeneratorExit(),
                "CancelledError": asyncio.CancelledError("nobody asked"),
                "ExceptionGroup": ExceptionGroup("many", [ValueError("one"), KeyError("two")]),
                "TimeoutError": TimeoutError("own"),
                "Unpleasant": Unpleasant("first", "second"),
            }
            raise errors[kind]

        return work

    kinds = [
        "ValueError",
        "SystemExit",
        "StopIteration",
        "GeneratorExit",
        "CancelledError",
        "ExceptionGroup",
        "TimeoutError",
        "Unpleasant",
    ]
    for kind in kinds:
        engine.task(name=kind, dag="d", executor="c")(raiser(kind))
    engine.task(name="good", dag="d", executor="c")(lambda: 1)
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert statuses(report) == {**dict.fromkeys(kinds, "FAILED"), "good": "SUCCESS"}
    for kind in kinds:
        task = report["tasks"][kind]
        assert kind in (task["error"] or "")
        assert "Traceback (most recent call last)" in (task["error"] or "")
        assert task["reason"] == "ERROR"


async def test_timed_out_task_is_cancelled_there(
    make_engine: MakeEngine, client: Any, executor: Executor, tmp_path: Path
) -> None:
    engine = make_engine(executors={"c": executor})
    release = tmp_path / "release"

    def known() -> set[str]:
        return set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)))

    before = known()

    @engine.task(dag="d", executor="c", timeout_s=0.3)
    def hung() -> None:
        while not release.exists():
            time.sleep(0.01)  # in another process, that nobody here waits for

    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["hung"]
    assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")
    # The cluster's scheduler forgets it, while its thread over there still goes on.
    deadline = time.monotonic() + WAIT_S
    while known() - before:
        assert time.monotonic() < deadline, known()
    release.touch()


async def test_what_cannot_be_sent_is_a_clear_failure(
    make_engine: MakeEngine, executor: Executor
) -> None:
    import threading

    engine = make_engine(executors={"c": executor})
    engine.task(name="lock", dag="d")(threading.Lock)
    engine.task(name="use", dag="d", executor="c")(lambda lock: None)
    run_id = await asyncio.wait_for(engine.run_once("d"), 60)
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"lock": "SUCCESS", "use": "FAILED"}
    assert "lock" in (report["tasks"]["use"]["error"] or "")


async def test_worker_killed_in_the_middle_of_a_run(
    make_engine: MakeEngine, executor: Executor, tmp_path: Path
) -> None:
    engine = make_engine(executors={"c": executor}, max_parallel=2)
    first = tmp_path / "first"

    @engine.task(dag="d", executor="c", timeout_s=60.0)
    def killed() -> str:
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "again, on another worker"

    engine.task(name="after", dag="d", executor="c", timeout_s=60.0)(lambda killed: killed)
    run_id = await asyncio.wait_for(engine.run_once("d"), 90)
    report = engine.get_run_report(run_id)
    assert first.exists()
    # Dask runs it again by itself: to flowrun it is one attempt that took longer.
    assert statuses(report) == {"killed": "SUCCESS", "after": "SUCCESS"}
    assert report["tasks"]["after"]["result"] == "again, on another worker"
