"""ProcessPerAttemptExecutor: a fresh process for each call, which can really be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from flowrun import Engine, ProcessPerAttemptExecutor
from flowrun.errors import NotPicklableError, ProcessDiedError, RemoteTaskError

from . import remote_tasks
from .conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]

posix = pytest.mark.skipif(os.name == "nt", reason="signals and process groups are POSIX")


@pytest.fixture
def pool() -> Iterator[ProcessPerAttemptExecutor]:
    executor = ProcessPerAttemptExecutor(2, grace_s=0.2)
    yield executor
    executor.kill()
    executor.shutdown()


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


def zombies_below(pid: int) -> list[int]:
    """Return the dead but unreaped descendants of a process."""
    parents: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        parents[int(stat.parent.name)] = (int(parent), state)
    below = {pid}
    for _ in range(5):
        below |= {child for child, (parent, _) in parents.items() if parent in below}
    return [child for child in below if parents.get(child, (0, ""))[1] == "Z"]


def noted(path: Path) -> list[int]:
    wait_until(lambda: path.exists() and path.read_text())
    return [int(word) for word in path.read_text().split()]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_every_call_has_a_process_of_its_own(method: str) -> None:
    if method == "forkserver" and os.name == "nt":
        pytest.skip("no forkserver on Windows")
    with ProcessPerAttemptExecutor(2, start_method=method) as pool:
        futures = [pool.submit(remote_tasks.process_id) for _ in range(3)]
        processes = {future.result(WAIT_S) for future in futures}
    assert len(processes) == 3
    assert os.getpid() not in processes
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit(remote_tasks.one)


def test_values_and_errors_come_back(pool: ProcessPerAttemptExecutor) -> None:
    assert pool.submit(remote_tasks.add, 1, b=2).result(WAIT_S) == 3
    assert len(pool.submit(remote_tasks.big).result(WAIT_S)) == 50_000_000
    with pytest.raises(ValueError, match="plain") as caught:
        pool.submit(remote_tasks.raise_value_error).result(WAIT_S)
    assert "remote_tasks.py" in caught.value.__notes__[0]
    with pytest.raises(RemoteTaskError, match="Unpleasant"):
        pool.submit(remote_tasks.raise_unpleasant).result(WAIT_S)


def test_what_does_not_cross_is_named(pool: ProcessPerAttemptExecutor) -> None:
    with pytest.raises(
        NotPicklableError, match="the function .* cannot be sent to another process"
    ):
        pool.submit(lambda: 1)
    with pytest.raises(NotPicklableError, match="argument 1 .*lock.* cannot be sent"):
        pool.submit(remote_tasks.add, 1, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(NotPicklableError, match="argument 'b' .*lock.* cannot be sent"):
        pool.submit(remote_tasks.add, 1, b=threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(NotPicklableError, match="result .*lock"):
        pool.submit(remote_tasks.return_lock).result(WAIT_S)
    with pytest.raises(NotPicklableError, match="RuntimeError"):
        pool.submit(remote_tasks.return_pickles_only).result(WAIT_S)


@posix
def test_crash_says_how_it_died_and_disturbs_nothing_else(
    pool: ProcessPerAttemptExecutor,
) -> None:
    crashes = [
        (remote_tasks.kill_own_process, r"killed by signal SIGKILL \(9\)"),
        (remote_tasks.segfault, r"killed by signal SIGSEGV \(11\)"),
        (remote_tasks.exit_own_process, "exited with code 7"),
    ]
    for crash, message in crashes:
        other = pool.submit(remote_tasks.one)
        with pytest.raises(ProcessDiedError, match=message):
            pool.submit(crash).result(WAIT_S)
        assert other.result(WAIT_S) == 1


@posix
@pytest.mark.parametrize("function", [remote_tasks.hang, remote_tasks.stubborn])
def test_cancelling_kills_the_process(
    pool: ProcessPerAttemptExecutor, tmp_path: Path, function: Callable[[str], None]
) -> None:
    note = tmp_path / "pid"
    future = pool.submit(function, str(note))
    (pid,) = noted(note)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    assert is_gone(pid)
    assert not future.cancel()


@posix
def test_cancelling_kills_what_the_process_has_started(
    pool: ProcessPerAttemptExecutor, tmp_path: Path
) -> None:
    note = tmp_path / "pids"
    future = pool.submit(remote_tasks.with_grandchild, str(note))
    pids = noted(note)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    wait_until(lambda: all(map(is_gone, pids)))


def test_queued_calls_wait_their_turn_and_can_be_withdrawn(tmp_path: Path) -> None:
    pool = ProcessPerAttemptExecutor(1, grace_s=0.2)
    note = tmp_path / "pid"
    running = pool.submit(remote_tasks.hang, str(note))
    queued = [pool.submit(remote_tasks.one) for _ in range(2)]
    noted(note)
    assert queued[0].cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    pool.kill()
    pool.shutdown()
    with pytest.raises(CancelledError):
        running.result(WAIT_S)


def test_call_that_is_cancelled_while_its_process_starts(pool: ProcessPerAttemptExecutor) -> None:
    for _ in range(5):
        future = pool.submit(remote_tasks.one)
        future.cancel()
        try:
            assert future.result(WAIT_S) == 1  # it was quicker
        except CancelledError:
            pass


def test_process_that_answers_and_does_not_end_is_ended(pool: ProcessPerAttemptExecutor) -> None:
    assert pool.submit(remote_tasks.leave_thread_behind).result(WAIT_S) == "answered"


@posix
def test_no_zombie_and_no_descriptor_is_left(pool: ProcessPerAttemptExecutor) -> None:
    pool.submit(remote_tasks.one).result(WAIT_S)  # the forkserver stays, once
    if not Path("/proc/self/fd").exists():
        pytest.skip("counts descriptors in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for future in [pool.submit(remote_tasks.one) for _ in range(20)]:
        future.result(WAIT_S)
    pool.shutdown()
    assert len(os.listdir("/proc/self/fd")) <= before
    wait_until(lambda: not zombies_below(os.getpid()))


@posix
def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from flowrun import ProcessPerAttemptExecutor\n"
        "from tests import remote_tasks\n"
        "if __name__ == '__main__':\n"
        "    ProcessPerAttemptExecutor(1).submit(remote_tasks.hang, sys.argv[1]).result()\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, str(script), str(note), *filter(None, sys.path)])
    (pid,) = noted(note)
    parent.send_signal(signal.SIGKILL)
    parent.wait(WAIT_S)
    wait_until(lambda: is_gone(pid))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 0}, "max_workers must be"),
        ({"max_workers": True}, "max_workers must be"),
        ({"start_method": "fork"}, "start_method 'fork' is refused"),
        ({"grace_s": -1.0}, "grace_s must be"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessPerAttemptExecutor(**options)  # type: ignore[arg-type]


# In an engine.


@posix
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


@posix
async def test_crash_is_a_failed_attempt(make_engine: MakeEngine) -> None:
    with ProcessPerAttemptExecutor(2) as pool:
        engine = make_engine(executor=pool)
        engine.task(name="crash", dag="d", retries=1)(remote_tasks.segfault)
        engine.task(name="fine", dag="d")(remote_tasks.one)
        run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["crash"]
    assert (task["status"], task["attempt"]) == ("FAILED", 2)
    assert "killed by signal SIGSEGV (11)" in (task["error"] or "")


@posix
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
