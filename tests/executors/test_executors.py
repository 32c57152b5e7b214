"""Executors that are handed in: threads, process pools; what crosses, what breaks (A5)."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, ProcessPerAttemptExecutor, RunContext, SchedulerConfig, fn_hook
from flowrun.errors import ProcessDiedError
from flowrun.executors.remote_call import Facts, PackedCall, RemoteCall, unpacked

from ..conftest import WAIT_S, SkippingClock, statuses
from . import remote_tasks

pytestmark = pytest.mark.usefixtures("pools_collected")

MakeEngine = Callable[..., Engine]

ERRORS = (
    "ValueError",
    "SystemExit",
    "StopIteration",
    "GeneratorExit",
    "CancelledError",
    "ExceptionGroup",
    "Unpleasant",
    "TimeoutError",
)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


class Inline(Executor):
    """An executor of a user's own: calls at once, in the calling thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


async def test_values_context_and_attempt_cross_to_a_process_pool(
    make_engine: MakeEngine, pool: ProcessPoolExecutor
) -> None:
    engine = make_engine(executors={"cpu": pool})
    dag = engine.dag("d")
    dag.task("here")(os.getpid)
    dag.task("there", executor="cpu")(remote_tasks.process_id)
    dag.task("a", executor="cpu")(remote_tasks.one)
    dag.task("b")(remote_tasks.two)
    dag.task("sum", executor="cpu")(remote_tasks.add)
    dag.task("flaky", executor="cpu", retries=1)(remote_tasks.second_time_lucky)

    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert tasks["here"]["result"] != tasks["there"]["result"]
    assert tasks["sum"]["result"] == 3
    assert tasks["flaky"]["result"] == 2
    assert "ValueError: first time" in (tasks["flaky"]["attempts"][0]["error"] or "")


async def test_context_crosses_to_a_process_pool(
    make_engine: MakeEngine, pool: ProcessPoolExecutor
) -> None:
    engine = make_engine(executors={"cpu": pool})
    engine.task(name="look", dag="d", executor="cpu")(remote_tasks.attempt_name)
    run_id = await engine.run_once("d", RunContext("given"))
    assert engine.get_run_report(run_id)["tasks"]["look"]["result"] == ("look", 1, "given")


@pytest.mark.parametrize("kind", ["threads", "inline", "processes", "own processes"])
@pytest.mark.parametrize("name", ERRORS)
async def test_whatever_a_task_raises_elsewhere_is_its_failure(  # A4 A5
    make_engine: MakeEngine, pool: ProcessPoolExecutor, kind: str, name: str
) -> None:
    with ThreadPoolExecutor(1) as threads, ProcessPerAttemptExecutor(2) as own:
        chosen: Executor = {
            "threads": threads,
            "inline": Inline(),
            "processes": pool,
            "own processes": own,
        }[kind]
        engine = make_engine(executors={"x": chosen})
        template = engine.task_template(remote_tasks.raise_named, dag="d", executor="x")
        template.bind("bad", name=name)
        engine.task(name="good", dag="d", executor="x")(remote_tasks.one)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    error = report["tasks"]["bad"]["error"] or ""
    assert statuses(report) == {"bad": "FAILED", "good": "SUCCESS"}
    assert name in error
    assert "Traceback (most recent call last)" in error
    assert "remote_tasks.py" in error
    assert report["tasks"]["bad"]["reason"] == "ERROR"


async def test_what_cannot_be_pickled_is_named(
    make_engine: MakeEngine, pool: ProcessPoolExecutor
) -> None:
    engine = make_engine(executors={"cpu": pool})
    engine.task(name="function", dag="d", executor="cpu")(lambda: 1)
    engine.task(name="a", dag="d")(threading.Lock)
    engine.task(name="b", dag="d")(remote_tasks.two)
    engine.task(name="argument", dag="d", executor="cpu")(remote_tasks.add)
    engine.task(name="result", dag="d", executor="cpu")(remote_tasks.return_lock)
    engine.task(name="back", dag="d", executor="cpu")(remote_tasks.return_pickles_only)
    engine.task(name="good", dag="d", executor="cpu")(remote_tasks.one)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    errors = {name: task["error"] or "" for name, task in report["tasks"].items()}
    assert report["tasks"]["good"]["status"] == "SUCCESS"
    assert "'function' runs in another process, but its function" in errors["function"]
    assert "but argument 'a' (lock) cannot be pickled" in errors["argument"]
    assert "the task's result (lock) could not be pickled" in errors["result"]
    assert "could not be unpickled (RuntimeError: cannot be rebuilt)" in errors["back"]


async def test_broken_pool_fails_attempts_and_not_the_engine(make_engine: MakeEngine) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as broken:
        engine = make_engine(executors={"cpu": broken})
        engine.task(name="killer", dag="d", executor="cpu")(remote_tasks.kill_own_process)
        engine.task(name="next", dag="d", deps=["killer"])(lambda: None)
        engine.task(name="later", dag="again", executor="cpu")(remote_tasks.one)
        engine.task(name="fine", dag="again")(lambda: "fine")
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        report = engine.get_run_report(run_id)
        assert statuses(report) == {"killer": "FAILED", "next": "SKIPPED"}
        assert "executor 'cpu' is broken" in (report["tasks"]["killer"]["error"] or "")
        run_id = await asyncio.wait_for(engine.run_once("again"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"later": "FAILED", "fine": "SUCCESS"}
    assert "executor 'cpu' " in (report["tasks"]["later"]["error"] or "")


async def test_executor_that_was_shut_down(make_engine: MakeEngine) -> None:
    gone = ThreadPoolExecutor(1)
    gone.shutdown()
    engine = make_engine(executor=gone)
    engine.task(name="a", dag="d", retries=1)(lambda: 1)
    run_id = await engine.run_once("d")
    error = engine.get_run_report(run_id)["tasks"]["a"]["error"] or ""
    assert "the executor did not take the task" in error


async def test_executor_that_cancels_a_call_by_itself(make_engine: MakeEngine) -> None:  # A5
    class Cancels(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    engine = make_engine(executor=Cancels())
    engine.task(name="a", dag="d")(lambda: 1)
    run_id = await engine.run_once("d")
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert (task["status"], task["reason"]) == ("FAILED", "ERROR")
    assert "has withdrawn the call before it began" in (task["error"] or "")


async def test_handed_in_threads_clock_starts_with_the_code(make_engine: MakeEngine) -> None:  # A1
    clock, launched = SkippingClock(), threading.Semaphore(0)
    hook = fn_hook(on_task_start=lambda event: launched.release())
    with ThreadPoolExecutor(1) as threads:
        engine = make_engine(executor=threads, config=SchedulerConfig(clock=clock), hooks=[hook])

        @engine.task(dag="d", timeout_s=None)
        def first() -> None:
            for _ in range(2):
                assert launched.acquire(timeout=WAIT_S)
            clock.skipped_s += 3600  # the second attempt waits for the thread

        engine.task(name="second", dag="d", timeout_s=60)(lambda: None)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"first": "SUCCESS", "second": "SUCCESS"}


async def test_pool_that_cannot_tell_has_its_clock_start_at_submission(  # A1
    make_engine: MakeEngine,
) -> None:
    class Lazy(Executor):
        """A pool that begins nothing."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

    engine = make_engine(executor=Lazy())
    engine.task(name="a", dag="d", timeout_s=0.05)(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert (task["reason"], task["abandoned"]) == ("TIMEOUT", False)


def test_async_task_with_an_executor_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(executors={"x": Inline()})

    async def work() -> None:
        return None

    with pytest.raises(ValueError, match="async tasks run on the event loop"):
        engine.task(name="a", dag="d", executor="x")(work)
    with pytest.raises(TypeError, match="executor= takes the name of an executor"):
        engine.task(name="a", dag="d", executor=Inline())  # type: ignore[arg-type]
        engine.task(name="a", dag="d", executor=Inline())(lambda: 1)  # type: ignore[arg-type]


# -- a process for every attempt ---------------------------------------------------------------


def wait_until(condition: Callable[[], object]) -> None:
    """Look again and again, for a bounded time, at what another process does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def noted(path: Path) -> list[int]:
    wait_until(lambda: path.exists() and path.read_text())
    return [int(word) for word in path.read_text().split()]


async def test_fresh_processs_clock_starts_with_the_code(  # A1
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    clock = SkippingClock()
    began, go_on = str(tmp_path / "began"), str(tmp_path / "go on")
    launched = threading.Semaphore(0)
    with ProcessPerAttemptExecutor(1) as pool:
        engine = make_engine(
            executors={"own": pool},
            config=SchedulerConfig(clock=clock),
            hooks=[fn_hook(on_task_start=lambda event: launched.release())],
        )

        @engine.task(name="skip", dag="d", timeout_s=None)
        def skip() -> None:
            for _ in range(3):
                assert launched.acquire(timeout=WAIT_S)
            wait_until(Path(began).exists)
            clock.skipped_s += 3600  # the second attempt waits for its process
            Path(go_on).touch()

        for name, timeout_s in (("first", None), ("second", 60)):
            template = engine.task_template(
                remote_tasks.wait_for_file, dag="d", executor="own", timeout_s=timeout_s
            )
            template.bind(name, started=began, go_on=go_on)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert statuses(report) == dict.fromkeys(("skip", "first", "second"), "SUCCESS"), report
    assert (report["tasks"]["second"]["started_at"] or 0.0) > report["created_at"] + 3000


def test_code_that_may_not_begin_never_does(tmp_path: Path) -> None:  # A1
    unpickled, ran = tmp_path / "unpickled", tmp_path / "ran"
    seen: list[tuple[bool, bool]] = []

    def call() -> PackedCall:
        arguments = (str(ran), remote_tasks.NotesUnpickling(str(unpickled)))
        return PackedCall(RemoteCall(remote_tasks.note, arguments, {}, Facts("r", "d", "t", 1, 9)))

    def refuse() -> bool:
        seen.append((unpickled.exists(), ran.exists()))
        return False

    with ProcessPerAttemptExecutor(1) as pool:
        with pytest.raises(ProcessDiedError, match="exited with code 0 without a result"):
            pool.submit_task(call(), refuse).result(WAIT_S)
        assert seen == [(True, False)]
        assert not ran.exists()
        assert unpacked(pool.submit_task(call(), lambda: True).result(WAIT_S)).value == "ran"
        assert unpacked(pool.submit(call()).result(WAIT_S)).value == "ran"


class ShowsItsFutures(ProcessPerAttemptExecutor):
    """Keep the futures of tasks where a test finds them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.futures: list[Future[Any]] = []

    def submit_task(self, call: Any, may_begin: Any) -> Any:
        self.futures.append(super().submit_task(call, may_begin))
        return self.futures[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="stops the fork server")
async def test_attempt_given_up_while_its_process_boots_never_begins(  # A1
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ShowsItsFutures() as pool:
        server = pool.submit(os.getppid).result(WAIT_S)
        engine = make_engine(
            executor=pool,
            hooks=[fn_hook(on_task_start=lambda e: loop.call_soon_threadsafe(started.set))],
        )
        engine.task(name="boots", dag="d")(functools.partial(remote_tasks.note, str(ran)))
        os.kill(server, signal.SIGSTOP)
        try:
            running = asyncio.create_task(engine.run_once("d"))
            await asyncio.wait_for(started.wait(), WAIT_S)
            await asyncio.to_thread(wait_until, lambda: pool.futures[0].running())
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(running, WAIT_S)
        finally:
            os.kill(server, signal.SIGCONT)
        (run,) = engine.list_runs()
        report = engine.get_run_report(run.run_id)["tasks"]["boots"]
        assert (report["status"], report["reason"]) == ("SKIPPED", "RUN_CANCELLED")
    assert not ran.exists()


class AnswersLate(ProcessPerAttemptExecutor):
    """Let a test do something between a process's question whether to begin and the answer."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked, self.goes_on = threading.Event(), threading.Event()
        self.answers: list[bool] = []

    def submit_task(self, call: Any, may_begin: Any) -> Any:
        def late() -> bool:
            self.asked.set()
            assert self.goes_on.wait(WAIT_S)
            self.answers.append(may_begin())
            return self.answers[-1]

        return super().submit_task(call, late)


async def test_attempt_given_up_as_its_process_asks_never_begins(  # A1
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    with AnswersLate() as pool:
        engine = make_engine(executor=pool)
        engine.task(name="asks", dag="d")(functools.partial(remote_tasks.note, str(ran)))
        running = asyncio.create_task(engine.run_once("d"))
        assert await asyncio.to_thread(pool.asked.wait, WAIT_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, WAIT_S)
        pool.goes_on.set()
    assert pool.answers == [False]
    assert not ran.exists()
    (run,) = engine.list_runs()
    report = engine.get_run_report(run.run_id)["tasks"]["asks"]
    assert (report["status"], report["reason"]) == ("SKIPPED", "RUN_CANCELLED")


async def test_attempt_given_up_while_it_waits_for_a_process_never_begins(  # A1
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    began, ran = tmp_path / "began", tmp_path / "ran"
    with ShowsItsFutures() as pool:
        pool.submit(remote_tasks.wait_for_file, str(began), str(ran))
        engine = make_engine(executor=pool)
        engine.task(name="waits", dag="d")(functools.partial(remote_tasks.note, str(ran)))
        running = asyncio.create_task(engine.run_once("d"))
        await asyncio.to_thread(wait_until, lambda: pool.futures and began.exists())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, WAIT_S)
        assert not ran.exists()
        pool.kill()
    (run,) = engine.list_runs()
    report = engine.get_run_report(run.run_id)["tasks"]["waits"]
    assert (report["status"], report["reason"]) == ("SKIPPED", "RUN_CANCELLED")


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
async def test_timed_out_attempt_is_killed_and_retried(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    with ProcessPerAttemptExecutor(2, grace_s=0.2) as pool:
        engine = make_engine(executors={"own": pool})
        template = engine.task_template(
            remote_tasks.hang, dag="d", executor="own", timeout_s=1.5, retries=1
        )
        template.bind("hung", path=str(tmp_path / "pid"))
        engine.task(name="fine", dag="d", executor="own")(remote_tasks.one)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"hung": "FAILED", "fine": "SUCCESS"}
    task = report["tasks"]["hung"]
    assert [attempt["reason"] for attempt in task["attempts"]] == ["TIMEOUT", "TIMEOUT"]
    assert task["abandoned"] is False
    (pid,) = noted(tmp_path / "pid")
    assert is_gone(pid)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
async def test_crash_is_a_failed_attempt(make_engine: MakeEngine) -> None:
    with ProcessPerAttemptExecutor(2) as pool:
        engine = make_engine(executor=pool)
        engine.task(name="crash", dag="d", retries=1)(remote_tasks.segfault)
        engine.task(name="fine", dag="d")(remote_tasks.one)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["crash"]
    assert (task["status"], task["attempt"]) == ("FAILED", 2)
    assert "killed by signal SIGSEGV (11)" in (task["error"] or "")


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
async def test_cancelled_run_kills_its_processes(make_engine: MakeEngine, tmp_path: Path) -> None:
    with ProcessPerAttemptExecutor(1, grace_s=0.2) as pool:
        engine = make_engine(executors={"own": pool})
        note = tmp_path / "pid"
        engine.task_template(remote_tasks.hang, dag="d", executor="own").bind("a", path=str(note))
        run = asyncio.create_task(engine.run_once("d"))
        (pid,) = await asyncio.to_thread(noted, note)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert is_gone(pid)
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["a"]
    assert (task["reason"], task["abandoned"]) == ("RUN_CANCELLED", False)
