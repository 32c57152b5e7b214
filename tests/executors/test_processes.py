"""A process for every call: results, crashes, killing, and nothing left behind."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from flowrun.errors import ExecutorError, NotPicklableError, ProcessDiedError, RemoteTaskError
from flowrun.executors.process_future import ProcessFuture
from flowrun.executors.process_per_attempt import ProcessPerAttemptExecutor

from ..conftest import WAIT_S
from . import process_calls

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.usefixtures("pools_collected"),
]

MakePool = Callable[..., ProcessPerAttemptExecutor]
METHODS = ("forkserver", "spawn")


class Switchboard:
    """Where processes call home: who is there, and whether they still are."""

    def __init__(self, path: Path) -> None:
        self._listener = Listener(str(path), family="AF_UNIX", backlog=64)
        self._phones: list[Connection] = []
        self.address = str(path)

    def answer(self) -> tuple[Connection, int]:
        """Wait for a process to call home; return its line and its id."""
        phone = self._listener.accept()
        self._phones.append(phone)
        return phone, hear(phone)

    def close(self) -> None:
        for phone in self._phones:
            phone.close()
        self._listener.close()


def hear(phone: Connection) -> Any:
    assert phone.poll(WAIT_S)
    return phone.recv()


def gone(phone: Connection) -> bool:
    """Wait for the end of the last process that holds the other end."""
    assert phone.poll(WAIT_S)
    try:
        phone.recv()
    except (EOFError, ConnectionResetError):
        return True
    return False


def exists(pid: int) -> bool:
    """Return whether there is such a process, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does right after the last thing that can be waited for."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Switchboard]:
    board = Switchboard(tmp_path / "home")
    yield board
    board.close()


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Make executors that are killed when the test ends, and see that nothing is left."""
    threads = set(threading.enumerate())
    pools: list[ProcessPerAttemptExecutor] = []

    def make(max_workers: int = 2, **options: Any) -> ProcessPerAttemptExecutor:
        pools.append(ProcessPerAttemptExecutor(max_workers, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.kill()
    for pool in pools:
        pool.shutdown()
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("method", METHODS)
def test_every_call_has_a_process_of_its_own(make_pool: MakePool, method: str) -> None:
    pool = make_pool(4, start_method=method)
    futures = [pool.submit(os.getpid) for _ in range(6)]
    assert all(isinstance(future, ProcessFuture) for future in futures)
    pids = {future.result(WAIT_S) for future in futures}
    assert len(pids) == 6
    assert os.getpid() not in pids
    assert not any(exists(pid) for pid in pids)
    assert pool.submit(int, "ff", base=16).result(WAIT_S) == 255
    assert futures[0].exception() is None


def test_never_more_processes_than_allowed(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool(2)
    futures = [pool.submit(process_calls.wait_for_go, board.address) for _ in range(3)]
    phones = [board.answer()[0] for _ in range(2)]
    assert [future.running() for future in futures] == [True, True, False]
    phones[0].send("go 0")
    phones.append(board.answer()[0])
    for phone in phones[1:]:
        phone.send("go")
    assert sorted(future.result(WAIT_S) for future in futures) == ["go", "go", "go 0"]


def test_process_has_surroundings_of_its_own(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool = make_pool()
    assert pool.submit(process_calls.surroundings).result(WAIT_S)["flag"] is None
    monkeypatch.setenv("FLOWRUN_TEST_FLAG", "set later \udce4")
    monkeypatch.chdir(tmp_path)
    for method in METHODS:
        seen = make_pool(start_method=method).submit(process_calls.surroundings).result(WAIT_S)
        assert seen["pid"] == seen["session"] == seen["group"]
        assert (seen["read"], seen["grandchild_read"]) == (b"", b"''\n")
        assert seen["sigterm"]
        assert seen["threads"] == 1
        assert seen["flag"] == "set later \udce4"
        assert seen["directory"] == str(tmp_path)
        assert seen["files"] < 20


def test_call_may_start_processes_itself(make_pool: MakePool) -> None:
    pool = make_pool()
    assert pool.submit(process_calls.run_a_process_of_its_own).result(WAIT_S) == 0


@pytest.mark.parametrize(
    "kind", ["ValueError", "SystemExit", "KeyboardInterrupt", "StopIteration", "ExceptionGroup"]
)
def test_whatever_is_raised_comes_back_with_its_traceback(
    make_pool: MakePool, kind: str
) -> None:  # A5
    error = make_pool().submit(process_calls.raise_error, kind).exception(WAIT_S)
    assert type(error).__name__ == kind
    (note,) = error.__notes__
    assert note.startswith("\nIn its process:\n")
    assert "process_calls.py" in note
    assert "flowrun/process" not in note


def test_error_that_does_not_unpickle_comes_back_as_text(make_pool: MakePool) -> None:  # A5
    error = make_pool().submit(process_calls.raise_unpleasant).exception(WAIT_S)
    assert isinstance(error, RemoteTaskError)
    assert error.type_name.endswith("process_calls.Unpleasant")
    assert "first line" in str(error)
    assert "raise_unpleasant" in error.__notes__[0]


def test_what_cannot_be_sent_is_named_at_once(make_pool: MakePool) -> None:
    pool = make_pool()
    lock = threading.Lock()
    with pytest.raises(NotPicklableError, match=r"^the function \(function\) cannot be sent"):
        pool.submit(lambda: 1)
    with pytest.raises(NotPicklableError, match=r"^argument 1 \(lock\) cannot be sent.*TypeError"):
        pool.submit(print, 0, lock)
    with pytest.raises(NotPicklableError, match=r"^argument 'end' \(lock\) cannot be sent"):
        pool.submit(functools.partial(print), 0, end=lock)


def test_what_cannot_be_unpickled_there_or_here_is_said(make_pool: MakePool) -> None:
    pool = make_pool()
    there = pool.submit(process_calls.length, process_calls.PicklesOnly())
    here = pool.submit(process_calls.PicklesOnly)
    never = pool.submit(process_calls.return_lock)
    with pytest.raises(
        NotPicklableError, match="call could not be unpickled in its process.*rebui"
    ):
        there.result(WAIT_S)
    with pytest.raises(NotPicklableError, match="came back but could not be unpickled: .*rebuilt"):
        here.result(WAIT_S)
    with pytest.raises(NotPicklableError, match=r"the result \(lock\) could not be pickled"):
        never.result(WAIT_S)


@pytest.mark.no_cover
@pytest.mark.parametrize("method", METHODS)
def test_large_arguments_and_results_get_through(make_pool: MakePool, method: str) -> None:
    pool = make_pool(start_method=method)
    size = 100 * 1024 * 1024
    assert pool.submit(process_calls.length, bytes(size)).result(WAIT_S) == size
    assert len(pool.submit(bytes, size).result(WAIT_S)) == size


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (process_calls.exit_at_once, 3, "the process exited with code 3 without a result"),
        (process_calls.exit_at_once, 0, "the process exited with code 0 without a result"),
        (process_calls.send_signal_to_itself, signal.SIGSEGV, r"killed by signal SIGSEGV \(11\)$"),
        (process_calls.send_signal_to_itself, signal.SIGKILL, r"SIGKILL \(9\), not by flowrun"),
        (process_calls.send_signal_to_itself, 40, r"killed by signal of real time \(40\)$"),
    ],
)
def test_crash_is_the_failure_of_one_call(
    make_pool: MakePool,
    board: Switchboard,
    method: str,
    function: Any,
    argument: int,
    message: str,
) -> None:
    pool = make_pool(start_method=method)
    other = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    with pytest.raises(ProcessDiedError, match=message):
        pool.submit(function, argument).result(WAIT_S)
    assert pool.submit(str, "works").result(WAIT_S) == "works"
    phone.send("undisturbed")
    assert other.result(WAIT_S) == "undisturbed"


@pytest.mark.parametrize("method", METHODS)
def test_cancelled_process_is_gone_before_anybody_is_told(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    pool = make_pool(start_method=method)
    future = pool.submit(process_calls.hang, board.address)
    _, pid = board.answer()
    found: list[object] = []
    told = threading.Event()

    def look(future: Future[Any]) -> None:
        found.extend([exists(pid), future.cancelled(), future.done()])
        told.set()

    future.add_done_callback(look)
    assert not future.cancelled()
    assert future.cancel()
    assert told.wait(WAIT_S)
    assert found == [False, True, True]
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    with pytest.raises(CancelledError):
        future.exception(WAIT_S)
    assert not future.cancel()
    assert not future.running()


@pytest.mark.parametrize("method", METHODS)
def test_process_that_ignores_sigterm_is_killed_after_its_grace(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    pool = make_pool(start_method=method, grace_s=0.3)
    future = pool.submit(process_calls.ignore_sigterm, board.address)
    _, pid = board.answer()
    began = time.monotonic()
    assert future.cancel()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)
    assert time.monotonic() - began >= 0.3
    assert not exists(pid)


def test_who_cancels_does_not_wait_for_the_grace(make_pool: MakePool, board: Switchboard) -> None:
    future = make_pool(grace_s=3600).submit(process_calls.ignore_sigterm, board.address)
    board.answer()
    assert future.cancel()
    assert not future.done()
    assert future.kill()
    with pytest.raises(CancelledError):
        future.result(WAIT_S)


def test_process_may_clean_up_when_it_is_cancelled(make_pool: MakePool, board: Switchboard) -> None:
    future = make_pool(grace_s=WAIT_S).submit(process_calls.clean_up_on_sigterm, board.address)
    phone, _ = board.answer()
    assert future.cancel()
    assert hear(phone) == "cleaned up"
    wait([future], timeout=WAIT_S)
    assert future.cancelled()


def test_without_grace_or_patience_it_is_killed_at_once(
    make_pool: MakePool, board: Switchboard
) -> None:
    for grace_s, ends in ((0, ["cancel"]), (1000, ["kill"]), (1000, ["cancel", "kill"])):
        pool = make_pool(grace_s=grace_s)
        future = pool.submit(process_calls.ignore_sigterm, board.address)
        _, pid = board.answer()
        for end in ends:
            assert getattr(future, end)()
        wait([future], timeout=WAIT_S)
        assert future.cancelled()
        assert not exists(pid)


@pytest.mark.parametrize("method", METHODS)
def test_grandchildren_are_killed_with_their_group(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    future = make_pool(start_method=method).submit(
        process_calls.hang_with_grandchild, board.address
    )
    phone, _ = board.answer()
    assert [hear(phone), hear(phone)] == ["forked", "forked"]
    assert future.cancel()
    wait([future], timeout=WAIT_S)
    assert gone(phone)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_call_leaves_in_its_group_ends_with_it(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    future = make_pool(start_method=method).submit(process_calls.leave_grandchild, board.address)
    phone, _ = board.answer()
    assert hear(phone) == "forked"
    assert future.result(WAIT_S) == "left"
    assert gone(phone)


@pytest.mark.parametrize("method", METHODS)
def test_crash_is_seen_though_a_grandchild_lives_on(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    future = make_pool(start_method=method).submit(
        process_calls.crash_beside_grandchild, board.address
    )
    phone, _ = board.answer()
    grandchild = hear(phone)
    try:
        with pytest.raises(ProcessDiedError, match="exited with code 5 without a result"):
            future.result(WAIT_S)
    finally:
        os.kill(grandchild, signal.SIGKILL)  # it has left the group: it is nobody's to kill


def test_result_counts_though_a_thread_keeps_the_process_from_ending(make_pool: MakePool) -> None:
    future = make_pool(grace_s=0.1).submit(process_calls.leave_thread)
    assert future.result(WAIT_S) == "left"


@pytest.mark.parametrize("method", METHODS)
def test_process_that_closes_its_pipe_and_goes_on_is_killed(
    make_pool: MakePool, board: Switchboard, method: str
) -> None:
    pool = make_pool(start_method=method, grace_s=0.1)
    future = pool.submit(process_calls.close_all_files, board.address)
    _, pid = board.answer()
    with pytest.raises(ProcessDiedError, match="closed its pipe without a result"):
        future.result(WAIT_S)
    assert not exists(pid)


def test_queued_call_is_withdrawn_at_once(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool(1)
    running = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    queued = pool.submit(process_calls.hang, board.address)
    assert queued.cancel()
    assert queued.cancel()
    assert queued.cancelled()
    assert list(as_completed([queued], timeout=WAIT_S)) == [queued]
    phone.send("go")
    assert running.result(WAIT_S) == "go"
    assert not running.cancel()
    assert not running.cancelled()


def test_call_that_is_just_being_cancelled_gets_no_process(
    make_pool: MakePool, board: Switchboard
) -> None:
    pool = make_pool(1)
    pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    future = pool.submit(process_calls.sleep)
    later = pool.submit(str, "later")
    seen: list[str] = []

    def go_on(future: Future[Any]) -> None:
        phone.send("go")
        seen.append(later.result(WAIT_S))

    future.add_done_callback(go_on)
    assert future.cancel()
    assert future.cancelled()
    assert seen == ["later"]


def test_call_withdrawn_as_a_thread_takes_it_is_not_run(make_pool: MakePool) -> None:
    pool = make_pool()
    future = ProcessFuture[str](pool, b"no call", 1.0, lambda: True)
    assert future.cancel()
    future.run(multiprocessing.get_context("spawn"))
    assert future.cancelled()
    assert not future.running()


def test_call_cancelled_while_its_process_is_being_started(make_pool: MakePool) -> None:
    pool = make_pool()
    server = pool.submit(os.getppid).result(WAIT_S)
    os.kill(server, signal.SIGSTOP)  # the fork server: starting takes until it goes on
    try:
        future = pool.submit(process_calls.sleep)
        until(future.running)
        assert future.cancel()
        assert not future.done()
    finally:
        os.kill(server, signal.SIGCONT)
    wait([future], timeout=WAIT_S)
    assert future.cancelled()


async def test_timeout_of_asyncio_kills_the_process(
    make_pool: MakePool, board: Switchboard
) -> None:
    pool = make_pool()
    loop = asyncio.get_running_loop()
    waiting = loop.run_in_executor(pool, process_calls.hang, board.address)
    phone, _ = await asyncio.to_thread(board.answer)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(waiting, 0.01)
    assert await asyncio.to_thread(gone, phone)


async def test_asyncio_sees_a_killed_call_as_cancelled(
    make_pool: MakePool, board: Switchboard
) -> None:
    future = make_pool().submit(process_calls.hang, board.address)
    wrapped = asyncio.wrap_future(future)
    await asyncio.to_thread(board.answer)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wrapped
    assert wrapped.cancelled()


@pytest.mark.no_cover
@pytest.mark.parametrize(("method", "calls"), [("forkserver", 200), ("spawn", 20)])
def test_neither_files_nor_processes_are_left(
    make_pool: MakePool, board: Switchboard, method: str, calls: int
) -> None:
    pool = make_pool(8, start_method=method)
    assert pool.submit(os.getpid).result(WAIT_S)  # the helpers of multiprocessing stay
    before = open_files()
    kinds: list[tuple[Any, ...]] = [
        (os.getpid,),
        (process_calls.exit_at_once, 1),
        (int, "x"),
        (process_calls.sleep,),
    ]
    futures = [pool.submit(*kinds[number % 4]) for number in range(calls)]
    for future in futures[3::4]:
        until(lambda future=future: future.running() or future.done())
        assert future.cancel()
    assert not wait(futures, timeout=2 * WAIT_S).not_done
    pool.shutdown()
    assert open_files() <= before
    assert children_of(os.getpid(), states="Z") == []
    assert children_of(os.getpid(), name="flowrun") == []


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children_of(parent: int, *, states: str = "", name: str = "") -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, after = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, ppid = after.split()[:2]
        if int(ppid) == parent and ((state in states) if states else (name in before)):
            found.append(before)
    return found


def test_shutdown_waits_for_what_was_taken(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool(1)
    futures = [pool.submit(process_calls.wait_for_go, board.address), pool.submit(str, "queued")]
    phone, _ = board.answer()
    pool.shutdown(wait=False)
    phone.send("go")
    with pool:
        pass
    assert [future.result(0) for future in futures] == ["go", "queued"]
    with pytest.raises(ExecutorError, match="cannot submit: this executor was shut down"):
        pool.submit(str)


def test_shutdown_cancels_what_is_queued(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool(1)
    running = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    queued = [pool.submit(str) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert wait(queued, timeout=WAIT_S).done == set(queued)
    assert all(future.cancelled() for future in queued)
    phone.send("go")
    pool.shutdown()
    assert running.result(0) == "go"


def test_kill_ends_everything_at_once(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool(2, grace_s=1000)
    futures = [pool.submit(process_calls.ignore_sigterm, board.address) for _ in range(4)]
    phones = [board.answer()[0] for _ in range(2)]
    pool.kill()
    pool.shutdown()
    assert all(future.cancelled() for future in futures)
    assert all(gone(phone) for phone in phones)
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit(str)
    pool.kill()


def test_join_waits_a_bounded_time(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool()
    future = pool.submit(process_calls.hang, board.address)
    board.answer()
    pool.join(0.01)
    assert future.running()


def test_callback_may_shut_down_or_raise(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, board: Switchboard
) -> None:
    pool = make_pool(1)

    def leave(future: Future[Any]) -> None:
        raise SystemExit(1)

    future = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    future.add_done_callback(leave)
    phone.send("go")
    assert pool.submit(str, "works").result(WAIT_S) == "works"
    assert "could not be handed over" in caplog.text

    future = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    future.add_done_callback(lambda future: pool.shutdown())
    phone.send("go")
    pool.join()
    with pytest.raises(RuntimeError, match="was shut down"):
        pool.submit(str)


def test_bad_options_are_refused() -> None:
    options: list[tuple[dict[str, Any], str]] = [
        ({"max_workers": 0}, "max_workers must be an int of 1 or more, not 0"),
        ({"max_workers": True}, "max_workers must be an int of 1 or more, not True"),
        ({"max_workers": 2.0}, "max_workers must be an int of 1 or more, not 2.0"),
        ({"grace_s": -1}, "grace_s must be a number of seconds of 0 or more, not -1"),
        ({"grace_s": float("nan")}, "grace_s must be a number of seconds of 0 or more, not nan"),
        ({"start_method": "fork"}, "start_method 'fork' is refused"),
        ({"start_method": "thread"}, "start_method 'thread' is not available here; use 'spawn'"),
    ]
    for option, message in options:
        with pytest.raises(ValueError, match=message):
            ProcessPerAttemptExecutor(**option)


def test_as_many_processes_as_processors_by_default() -> None:
    with ProcessPerAttemptExecutor() as pool:
        assert pool.submit(os.getpid).result(WAIT_S) != os.getpid()


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], None]]:
    """Let the system refuse every further thread: no stack of that size can be had."""
    before = threading.stack_size()
    yield lambda: threading.stack_size(2**47) and None
    threading.stack_size(before)


def test_system_that_gives_no_thread(
    make_pool: MakePool, board: Switchboard, no_more_threads: Callable[[], None]
) -> None:
    idle, pool = make_pool(), make_pool(grace_s=1000)
    future = pool.submit(process_calls.ignore_sigterm, board.address)
    board.answer()
    no_more_threads()
    with pytest.raises(ExecutorError, match="no thread could be started to look after"):
        idle.submit(str)
    queued = pool.submit(str, "queued")  # has to wait for the one thread there is
    assert future.cancel()  # nobody can wait for the end of the grace: there is none
    assert queued.result(WAIT_S) == "queued"
    assert future.cancelled()
    threading.stack_size(0)
    assert idle.submit(str, "later").result(WAIT_S) == "later"


SCRIPT = """
import gc, os, resource, signal, sys, threading, time
from flowrun.executors.process_per_attempt import ProcessPerAttemptExecutor
from multiprocessing.connection import Client
sys.path.insert(0, sys.argv[2])
from tests.executors import process_calls
"""


def start_script(tmp_path: Path, board: Switchboard, text: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + textwrap.dedent(text), encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, str(script), board.address, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=2 * WAIT_S)
    return out, err, process.returncode


@pytest.mark.parametrize("method", METHODS)
def test_processes_die_with_their_parent(tmp_path: Path, board: Switchboard, method: str) -> None:
    parent = start_script(
        tmp_path,
        board,
        f"""
        if __name__ == "__main__":
            pool = ProcessPerAttemptExecutor(1, start_method={method!r})
            pool.submit(process_calls.hold_the_lock, sys.argv[1]).result()
        """,
    )
    phone, _ = board.answer()
    assert hear(phone) == "forked"
    parent.kill()
    assert gone(phone)
    finish(parent)


def test_running_calls_do_not_hold_up_the_end_of_the_interpreter(
    tmp_path: Path, board: Switchboard
) -> None:
    parent = start_script(
        tmp_path,
        board,
        """
        if __name__ == "__main__":
            pool = ProcessPerAttemptExecutor(1, grace_s=1000)
            pool.submit(process_calls.ignore_sigterm, sys.argv[1])
            Client(sys.argv[1]).send(0)
            while not os.path.exists(sys.argv[1] + ".go"):
                time.sleep(0.001)
        """,
    )
    phones = [board.answer()[0] for _ in range(2)]
    Path(board.address + ".go").touch()
    out, err, code = finish(parent)  # long before the call's grace is over
    assert (out, err, code) == ("", "", 0)
    assert all(gone(phone) for phone in phones)


@pytest.mark.parametrize("method", METHODS)
def test_script_without_a_guard_is_told_so(tmp_path: Path, board: Switchboard, method: str) -> None:
    script = start_script(
        tmp_path,
        board,
        f"""
        pool = ProcessPerAttemptExecutor(1, start_method={method!r})
        print(repr(pool.submit(os.getpid).exception()), flush=True)
        raise SystemExit(3)
        """,
    )
    out, _, code = finish(script)
    assert code == 3
    # From Python 3.14 on the fork server itself imports the main module, and ends with it.
    is_servers = method == "forkserver" and sys.version_info >= (3, 14)
    ended = "fork server does not run" if is_servers else r"exited with code \d before the call"
    assert re.search(ended, out.splitlines()[-1])
    assert "if __name__ ==" in out.splitlines()[-1]


def test_fork_server_that_does_not_start_is_said(tmp_path: Path, board: Switchboard) -> None:
    (tmp_path / "deadly.py").write_text("raise SystemExit(5)", encoding="utf-8")
    script = start_script(
        tmp_path,
        board,
        """
        if __name__ == "__main__":
            pool = ProcessPerAttemptExecutor(1, preload=["deadly"])
            print(repr(pool.submit(os.getpid).exception(10)))
        """,
    )
    out, _, code = finish(script)
    assert code == 0
    assert "ExecutorError('the fork server does not run (" in out


def test_process_that_cannot_be_started_is_said(tmp_path: Path, board: Switchboard) -> None:
    script = start_script(
        tmp_path,
        board,
        """
        if __name__ == "__main__":
            with ProcessPerAttemptExecutor(1, start_method="spawn") as pool:
                pool.submit(os.getpid).result()
                limits = resource.getrlimit(resource.RLIMIT_NOFILE)
                here = len(os.listdir("/proc/self/fd"))
                for spare in range(6):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (here + spare, limits[1]))
                    error = pool.submit(os.getpid).exception(10)
                    if error is not None:
                        print(repr(error))
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                del error  # with its traceback, which holds what multiprocessing has opened
                gc.collect()
                print(pool.submit(str, "works").result(10))
                print(len(os.listdir("/proc/self/fd")) - here)
        """,
    )
    out, _, code = finish(script)
    lines = out.splitlines()
    assert code == 0
    assert len(lines) > 3
    assert all("ExecutorError('no process could be started: OSError" in one for one in lines[:-2])
    assert lines[-2:] == ["works", "0"]


def test_forked_child_leaves_its_parents_processes_alone(
    tmp_path: Path, board: Switchboard
) -> None:
    script = start_script(
        tmp_path,
        board,
        """
        import warnings
        warnings.simplefilter("ignore")
        if __name__ == "__main__":
            pool = ProcessPerAttemptExecutor(1, start_method="spawn")
            future = pool.submit(process_calls.wait_for_go, sys.argv[1])
            queued = pool.submit(str, "queued")
            phone = Client(sys.argv[1])
            phone.send("main")
            phone.recv()
            pid = os.fork()
            if pid == 0:
                print(pool.submit(str, "in the child").result(10), flush=True)
                sys.exit(4)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            phone.send("forked")
            print(future.result(10), queued.result(10), flush=True)
        """,
    )
    phones = dict(reversed(board.answer()) for _ in range(2))
    main = phones.pop("main")
    (call,) = phones.values()
    main.send("fork now")
    assert hear(main) == "forked"
    call.send("undisturbed")
    # Standard error is not looked at: multiprocessing complains of children that are not its own.
    out, _, code = finish(script)
    assert (out, code) == ("in the child\n4\nundisturbed queued\n", 0)


def test_named_modules_are_imported_by_the_fork_server(tmp_path: Path, board: Switchboard) -> None:
    script = start_script(
        tmp_path,
        board,
        """
        if __name__ == "__main__":
            with ProcessPerAttemptExecutor(1, preload=["colorsys"]) as pool:
                assert "colorsys" not in sys.modules
                print(pool.submit(process_calls.surroundings).result()["loaded"])
        """,
    )
    out, _, code = finish(script)
    assert (out, code) == ("True\n", 0)


def test_death_of_the_fork_server_disturbs_nobody(make_pool: MakePool, board: Switchboard) -> None:
    pool = make_pool()
    server = pool.submit(os.getppid).result(WAIT_S)
    running = pool.submit(process_calls.wait_for_go, board.address)
    phone, _ = board.answer()
    os.kill(server, signal.SIGKILL)
    assert pool.submit(os.getppid).result(WAIT_S) != server
    phone.send("undisturbed")
    assert running.result(WAIT_S) == "undisturbed"
