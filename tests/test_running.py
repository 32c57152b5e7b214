"""Every way to run: from plain code, raising on failure, refusing an overlap."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    RunContext,
    RunFailedError,
    SqliteStateStore,
    build_default_engine,
)
from flowrun.errors import (
    ContextError,
    EngineClosedError,
    ResultNotStorableError,
    RunAliveError,
    TaskTimeoutError,
    WrongCallError,
)

from .conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def stored(request: pytest.FixtureRequest, make_engine: MakeEngine, tmp_path: Path) -> MakeEngine:
    """Make engines, all on one store of each kind."""
    store = (
        InMemoryStateStore()
        if request.param == "memory"
        else SqliteStateStore(tmp_path / "runs.db")
    )
    request.addfinalizer(store.close)
    return lambda **options: make_engine(state_store=store, **options)


# -- plain code ------------------------------------------------------------------------------------


def test_run_from_plain_code(stored: MakeEngine) -> None:
    with stored() as engine:

        @engine.task(dag="d")
        def shout(context: RunContext[Any]) -> str:
            return context.word.upper()

        report = engine.run("d", RunContext({"word": "hello"}), metadata={"n": 1})
        assert report["tasks"]["shout"]["result"] == "HELLO"
        assert report["metadata"] == {"n": 1}
        assert engine.dag("d").run(RunContext({"word": "b"}))["tasks"]["shout"]["result"] == "B"
    with pytest.raises(EngineClosedError), engine:
        pass
    with pytest.raises(EngineClosedError):
        engine.run("d")


def test_sync_task_may_run_another_dag(engine: Engine) -> None:
    @engine.task(dag="inner")
    def number() -> int:
        return 7

    @engine.task(dag="outer")
    def ask() -> object:
        return engine.run("inner")["tasks"]["number"]["result"]

    report = engine.run("outer")
    assert report["tasks"]["ask"]["result"] == 7
    assert engine.list_runs("inner")[0].started_by == report["run_id"]


async def test_run_on_a_running_loop_says_what_to_do(engine: Engine) -> None:
    engine.task(dag="d")(statuses)
    with pytest.raises(WrongCallError, match=r"await engine\.run_once\('d', \.\.\.\)"):
        engine.run("d")
    assert engine.list_runs() == []


INTERRUPTED = """
import signal
import sys
import threading
from flowrun import SqliteStateStore, build_default_engine, current_attempt

# What starts the tests may have it ignored, and whatever it starts inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

with build_default_engine(state_store=SqliteStateStore(sys.argv[1])) as engine:

    @engine.task(dag="d", timeout_s=None)
    def wait():
        cancelled = threading.Event()
        current_attempt().listen(lambda _: cancelled.set())
        print("ready", flush=True)
        cancelled.wait()

    @engine.task(dag="d", deps=[wait])
    def later():
        pass

    engine.run("d")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another matter there")
def test_ctrl_c_ends_a_run_from_plain_code(tmp_path: Path) -> None:  # R2
    path = tmp_path / "runs.db"
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode != 0
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    store = SqliteStateStore.open_readonly(path)
    (run,) = store.list_runs()
    assert (run.status, run.alive, run.task_counts) == (
        "FAILED",
        False,
        {"FAILED": 1, "SKIPPED": 1},
    )
    store.close()


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"timeout": 3}, TypeError, "unknown option 'timeout' of a run.*'timeout_s'"),
        ({"raise_on_failure": 1}, TypeError, "raise_on_failure must be True or False, not 1"),
        ({"if_running": "wait"}, ValueError, "if_running must be 'start' or 'refuse', not 'wait'"),
        ({"timeout_s": 0}, ValueError, "DAG 'd'"),
        ({"metadata": {1: 2}}, ValueError, "metadata"),
        ({"context": 7}, ContextError, "must be a RunContext"),
    ],
)
async def test_wrong_options_are_refused_on_every_way(
    engine: Engine, options: Any, kind: type[Exception], message: str
) -> None:
    @engine.task(dag="d")
    def fail() -> None:
        raise ValueError

    run_id = await engine.run_once("d")
    for way in (
        lambda: engine.run_once("d", **options),
        lambda: engine.run_subgraph("d", ["fail"], **options),
        lambda: engine.resume(run_id, **options),
        lambda: engine.dag("d").run_once(**options),
        lambda: engine.dag("d").run_subgraph(["fail"], **options),
    ):
        with pytest.raises(kind, match=message):
            await way()
    with pytest.raises(kind, match=message):
        engine.start("d", **options)
    assert [run.run_id for run in engine.list_runs()] == [run_id]


# -- raise_on_failure ------------------------------------------------------------------------------


class Broken(Exception):
    """What a task raises."""


def declare_failing(engine: Engine) -> Broken:
    """Declare a task that fails, one that fails after it, and one that is skipped."""
    error = Broken("no rows\nat all")

    @engine.task(dag="d", retries=1)
    async def extract() -> None:
        raise error

    @engine.task(dag="d", trigger_rule="all_done", deps=[extract])
    def clean_up() -> None:
        raise OSError

    @engine.task(dag="d", deps=[extract])
    def load() -> None: ...

    return error


async def test_every_way_to_run_raises_on_failure(stored: MakeEngine) -> None:
    engine = stored()
    error = declare_failing(engine)
    run_id = await engine.run_once("d")
    etl = engine.dag("d")
    for way in (
        lambda: engine.run_once("d", raise_on_failure=True),
        lambda: engine.run_subgraph("d", ["load"], raise_on_failure=True),
        lambda: engine.resume(run_id, raise_on_failure=True),
        lambda: etl.run_once(raise_on_failure=True),
        lambda: etl.run_subgraph(["load"], raise_on_failure=True),
        lambda: etl.start(raise_on_failure=True),
        lambda: asyncio.to_thread(engine.run, "d", raise_on_failure=True),
    ):
        with pytest.raises(
            RunFailedError, match="failed: task 'extract': .*Broken: no rows"
        ) as raised:
            await way()
        assert raised.value.__cause__ is error
        report = raised.value.report
        assert report == engine.get_run_report(report["run_id"])
        assert report["tasks"]["extract"]["error_type"] == f"{__name__}.Broken"
        assert report["tasks"]["extract"]["error_message"] == "no rows"
        assert [each["status"] for each in report["tasks"]["extract"]["attempts"]] == ["FAILED"] * 2
    assert str(raised.value).endswith("no rows, 1 more failed, 1 skipped")
    again = pickle.loads(pickle.dumps(raised.value))
    assert again.report == report


async def test_success_raises_nothing(stored: MakeEngine) -> None:
    engine = stored()

    @engine.task(dag="d")
    def fine() -> None: ...

    run_id = await engine.run_once("d", raise_on_failure=True)
    task = engine.get_run_report(run_id)["tasks"]["fine"]
    assert (task["error_type"], task["error_message"]) == (None, None)


async def test_cause_of_a_timeout_is_the_timeout(engine: Engine) -> None:
    @engine.task(dag="d", timeout_s=0.01)
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RunFailedError, match="TaskTimeoutError") as raised:
        await engine.run_once("d", raise_on_failure=True)
    assert isinstance(raised.value.__cause__, TaskTimeoutError)


async def test_cause_of_a_result_that_cannot_be_kept(make_engine: MakeEngine) -> None:
    with closing(SqliteStateStore(":memory:")) as store:
        engine = make_engine(state_store=store)

        @engine.task(dag="d")
        def odd() -> object:
            return object()

        with pytest.raises(RunFailedError) as raised:
            await engine.run_once("d", raise_on_failure=True)
        assert isinstance(raised.value.__cause__, ResultNotStorableError)


async def test_run_that_timed_out_raises_without_a_cause(engine: Engine) -> None:
    @engine.task(dag="d")
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RunFailedError, match="RUN_TIMED_OUT") as raised:
        await engine.run_once("d", raise_on_failure=True, timeout_s=0.01)
    assert raised.value.__cause__ is None
    assert raised.value.report["tasks"]["slow"]["error_type"] is None


def test_cause_from_another_process(make_engine: MakeEngine) -> None:
    context = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(1, context) as pool:
        engine = make_engine(executors={"other": pool})
        engine.task("number", dag="d", executor="other")(_number)
        with pytest.raises(RunFailedError, match="ValueError: invalid literal") as raised:
            engine.run("d", raise_on_failure=True)
    assert isinstance(raised.value.__cause__, ValueError)


def _number() -> int:
    return int("x")


# -- if_running ------------------------------------------------------------------------------------


async def test_overlap_is_refused_before_anything_starts(stored: MakeEngine) -> None:
    first, second = stored(), stored()
    begun, go = threading.Event(), threading.Event()
    for engine in (first, second):

        @engine.task(dag="d")
        def work() -> None:
            begun.set()
            assert go.wait(WAIT_S)

        engine.task("other", dag="e")(begun.is_set)

    handle = first.start("d", if_running="refuse")
    await asyncio.to_thread(begun.wait, WAIT_S)
    for engine in (first, second):
        for way in (
            lambda engine=engine: engine.run_once("d", if_running="refuse"),
            lambda engine=engine: engine.run_subgraph("d", ["work"], if_running="refuse"),
            lambda engine=engine: engine.start("d", if_running="refuse"),
        ):
            with pytest.raises(
                RunAliveError, match=f"DAG 'd' was not started.*{handle.run_id}"
            ) as e:
                await way()
            assert e.value.run_id == handle.run_id
        await engine.run_once("e", if_running="refuse")
    both = second.start("d", if_running="start")
    go.set()
    await handle
    await both
    assert len(first.list_runs("d")) == 2
    await second.run_once("d", if_running="refuse")


async def test_resume_is_refused_while_another_run_is_alive(stored: MakeEngine) -> None:
    engine = stored()
    go = asyncio.Event()
    fails = [True, False, False]

    @engine.task(dag="d")
    async def work() -> None:
        if fails.pop(0):
            raise ValueError
        await go.wait()

    old = await engine.run_once("d")
    handle = engine.start("d")
    with pytest.raises(RunAliveError, match=handle.run_id):
        await engine.resume(old, if_running="refuse")
    go.set()
    await handle
    new = await engine.resume(old, if_running="refuse")
    assert engine.get_run_report(new)["status"] == "SUCCESS"


def _start_at_once(path: str, barrier: Barrier, alive: Any, answers: Any) -> None:
    store = SqliteStateStore(path)
    with build_default_engine(state_store=store) as engine:

        @engine.task(dag="hourly", timeout_s=None)
        def work() -> None:
            answers.put("runs")
            alive.wait(WAIT_S)

        barrier.wait(WAIT_S)
        try:
            engine.run("hourly", if_running="refuse")
        except RunAliveError:
            answers.put("refused")
    store.close()


def test_of_processes_that_start_at_the_same_moment_one_runs(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    SqliteStateStore(path).close()
    context = multiprocessing.get_context("spawn")
    barrier, alive, answers = context.Barrier(3), context.Event(), context.Queue()
    processes = [
        context.Process(target=_start_at_once, args=(path, barrier, alive, answers))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in range(3)) == ["refused", "refused", "runs"]
    alive.set()
    for process in processes:
        process.join(WAIT_S)
        assert process.exitcode == 0


def test_run_of_a_dead_process_refuses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    program = INTERRUPTED.replace("cancelled.wait()", "__import__('os')._exit(9)")
    subprocess.run([sys.executable, "-c", program, path], check=False, stdout=subprocess.DEVNULL)
    store = SqliteStateStore(path)
    with build_default_engine(state_store=store) as engine, ThreadPoolExecutor(1) as thread:
        engine.task("work", dag="d")(threading.get_ident)
        assert [run.alive for run in engine.list_runs()] == [False]
        report = thread.submit(engine.run, "d", if_running="refuse").result(WAIT_S)
        assert report["status"] == "SUCCESS"
    store.close()
