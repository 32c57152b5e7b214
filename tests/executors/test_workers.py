"""Worker threads: at most so many, reused, abandoned when they hang, never in the way."""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any

import pytest

from flowrun.executors.worker_jobs import WorkerFuture
from flowrun.executors.worker_threads import WorkerThreads

from ..conftest import WAIT_S


class Gate:
    """Calls that say when they run, and end when they are told to."""

    def __init__(self) -> None:
        self.running = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, result: object = None) -> object:
        self.running.release()
        assert self.opened.wait(WAIT_S)
        return result

    def wait_for(self, calls: int) -> None:
        for _ in range(calls):
            assert self.running.acquire(timeout=WAIT_S)

    def open(self) -> None:
        self.opened.set()


@pytest.fixture
def gates() -> Iterator[Callable[[], Gate]]:
    """Make gates that are open when the test has ended."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate())
        return made[-1]

    yield make
    for gate in made:
        gate.open()


@pytest.fixture
def gate(gates: Callable[[], Gate]) -> Gate:
    return gates()


@pytest.fixture
def make_pool() -> Iterator[Callable[..., WorkerThreads]]:
    pools: list[WorkerThreads] = []

    def make(max_workers: int, **options: Any) -> WorkerThreads:
        pools.append(WorkerThreads(max_workers, **options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)


MakePool = Callable[..., WorkerThreads]


def thread_of(pool: WorkerThreads) -> threading.Thread:
    return pool.submit(threading.current_thread).result(WAIT_S)


def ended(thread: threading.Thread) -> bool:
    thread.join(WAIT_S)
    return not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does right after the last thing that can be waited for."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield() if hasattr(os, "sched_yield") else None


def run_script(text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
        check=False,
        **options,
    )


def test_call_gets_its_arguments_and_gives_its_result(make_pool: MakePool) -> None:
    pool = make_pool(2)
    future = pool.submit(lambda *args, **kwargs: (args, kwargs), 1, 2, fn=3, self=4)
    assert isinstance(future, WorkerFuture)
    assert isinstance(future, Future)
    assert future.result(WAIT_S) == ((1, 2), {"fn": 3, "self": 4})
    assert list(pool.map(str, range(100), timeout=WAIT_S)) == [str(n) for n in range(100)]


def test_context_of_the_caller_is_handed_over_as_the_function(make_pool: MakePool) -> None:  # A7
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("caller's")
    pool = make_pool(1)
    context = contextvars.copy_context()
    assert pool.submit(context.run, variable.get).result(WAIT_S) == "caller's"
    assert pool.submit(variable.get, "none").result(WAIT_S) == "none"


def test_threads_are_made_on_demand_named_daemonic_and_reused(make_pool: MakePool) -> None:
    pool = make_pool(8)
    assert pool.live_threads == 0
    first = thread_of(pool)
    assert first.name.startswith("flowrun-worker-")
    assert first.daemon
    for _ in range(50):
        assert thread_of(pool).daemon
    assert pool.live_threads <= 2  # the second, if a call came before the first was idle


def test_never_more_threads_than_allowed_and_as_many_as_needed(
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(3)
    futures = [pool.submit(gate, number) for number in range(7)]
    gate.wait_for(3)
    assert pool.live_threads == 3
    assert not gate.running.acquire(blocking=False)
    assert [future.running() for future in futures] == [True] * 3 + [False] * 4
    gate.open()
    assert [future.result(WAIT_S) for future in futures] == list(range(7))
    assert pool.live_threads == 3


def test_idle_threads_all_come_for_calls_that_block(
    make_pool: MakePool, gates: Callable[[], Gate]
) -> None:
    pool = make_pool(4)
    for _ in range(3):
        gate = gates()
        futures = [pool.submit(gate) for _ in range(4)]
        gate.wait_for(4)
        gate.open()
        wait(futures, timeout=WAIT_S)
    assert pool.live_threads == 4


def test_calls_start_in_the_order_in_which_they_came(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    order: list[int] = []
    pool.submit(gate)
    futures = [pool.submit(order.append, number) for number in range(100)]
    gate.open()
    wait(futures, timeout=WAIT_S)
    assert order == list(range(100))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(1),
        GeneratorExit(),
        CancelledError(),
        BaseExceptionGroup("many", [SystemExit(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_goes_into_the_future(  # A5
    make_pool: MakePool, error: BaseException
) -> None:
    pool = make_pool(1)
    worker = thread_of(pool)

    def fail() -> None:
        raise error

    future = pool.submit(fail)
    assert future.exception(WAIT_S) is error
    assert thread_of(pool) is worker


def test_callback_that_raises_does_not_end_the_thread(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1)
    worker = thread_of(pool)

    def leave(future: Future[Any]) -> None:
        raise SystemExit(1)

    future = pool.submit(gate)
    future.add_done_callback(leave)
    gate.open()
    assert future.result(WAIT_S) is None
    assert thread_of(pool) is worker
    assert "could not be handed over" in caplog.text


def test_future_completed_by_somebody_else_does_not_end_the_thread(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "concurrent.futures")
    pool = make_pool(1)
    future = pool.submit(gate)
    gate.wait_for(1)
    future.set_result("other")
    gate.open()
    assert thread_of(pool).is_alive()
    assert future.result() == "other"


def test_idle_thread_keeps_nothing_of_its_last_call(make_pool: MakePool) -> None:
    class Thing:
        def __call__(self, other: Thing, *, fail: bool) -> Thing:
            if fail:
                raise ValueError
            return Thing()

    pool = make_pool(1)
    gc.collect()
    gc.disable()  # what only the collector would free was leaked into a cycle
    try:
        for fail in (False, True):
            function, argument = Thing(), Thing()
            references = [weakref.ref(function), weakref.ref(argument)]
            future = pool.submit(function, argument, fail=fail)
            wait([future], timeout=WAIT_S)
            if not fail:
                references.append(weakref.ref(future.result()))
            references.append(weakref.ref(future))
            del function, argument, future
            until(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()


def test_error_does_not_hold_its_future(make_pool: MakePool) -> None:
    pool = make_pool(1)
    gc.collect()
    gc.disable()
    try:
        future = pool.submit(int, "x")
        error = future.exception(WAIT_S)
        reference = weakref.ref(future)
        del future
        until(lambda: reference() is None)
        assert isinstance(error, ValueError)
    finally:
        gc.enable()


def test_cancelled_call_is_never_run_and_let_go_at_once(make_pool: MakePool, gate: Gate) -> None:
    class Thing:
        def run(self) -> None:
            ran.append(1)

    ran: list[int] = []
    pool = make_pool(1)
    busy = pool.submit(gate)
    gate.wait_for(1)
    thing = Thing()
    reference = weakref.ref(thing)
    future = pool.submit(thing.run)
    del thing
    assert future.cancel()
    assert future.cancel()
    assert reference() is None
    # Who waits for it is told although no thread is free to come by.
    assert wait([future], timeout=WAIT_S).done == {future}
    assert list(as_completed([future], timeout=WAIT_S)) == [future]
    assert not busy.cancel()
    gate.open()
    assert busy.result(WAIT_S) is None
    assert thread_of(pool).is_alive()
    assert ran == []


def test_thread_that_comes_upon_a_call_while_it_is_being_cancelled_passes_it_over(
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(1)
    pool.submit(gate)
    gate.wait_for(1)
    future = pool.submit(pytest.fail)
    later = pool.submit(str, "later")
    seen: list[str] = []

    def go_on(future: Future[Any]) -> None:
        gate.open()
        seen.append(later.result(WAIT_S))

    future.add_done_callback(go_on)
    assert future.cancel()
    assert future.cancelled()
    assert seen == ["later"]


def test_cancelled_calls_do_not_pile_up(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate)
    gate.wait_for(1)
    kept = [pool.submit(str, number) for number in range(10)]
    futures = [weakref.ref(pool.submit(str)) for _ in range(1000)]
    for reference in futures:
        future = reference()
        assert future is not None
        future.cancel()
    del future
    gc.collect()
    assert sum(reference() is not None for reference in futures) < 200
    gate.open()
    assert [future.result(WAIT_S) for future in kept] == [str(number) for number in range(10)]


def test_abandoned_thread_is_replaced_at_once_for_queued_work(  # A3
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(1)
    hung = pool.submit(gate, "late")
    gate.wait_for(1)
    queued = pool.submit(str, 1)
    assert hung.abandon()
    assert not hung.abandon()
    assert queued.result(WAIT_S) == "1"
    assert (pool.live_threads, pool.abandoned_threads) == (1, 1)
    seen: list[object] = []
    hung.add_done_callback(lambda future: seen.append(future.result()))
    gate.open()
    assert hung.result(WAIT_S) == "late"
    until(lambda: seen == ["late"])
    until(lambda: pool.abandoned_threads == 0)
    assert pool.live_threads == 1


def test_what_does_not_run_cannot_be_abandoned(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    done = pool.submit(str)
    done.result(WAIT_S)
    running = pool.submit(gate)
    gate.wait_for(1)
    queued = pool.submit(str)
    assert not done.abandon()
    assert not queued.abandon()
    assert pool.abandoned_threads == 0
    gate.open()
    assert running.result(WAIT_S) is None


def test_call_that_is_done_cannot_be_abandoned_while_its_callback_runs(
    make_pool: MakePool, gate: Gate
) -> None:
    answers: list[bool] = []
    pool = make_pool(1)
    future = pool.submit(gate)
    future.add_done_callback(lambda future: answers.append(future.abandon()))
    gate.open()
    thread_of(pool)
    assert answers == [False]


def test_abandoned_thread_comes_back_only_if_there_is_room(
    make_pool: MakePool, gates: Callable[[], Gate]
) -> None:
    pool = make_pool(1)
    first, second = gates(), gates()
    hung = pool.submit(lambda: (first(), threading.current_thread())[1])
    first.wait_for(1)
    assert hung.abandon()
    assert pool.live_threads == 0
    other = pool.submit(second)
    second.wait_for(1)
    assert pool.live_threads == 1
    first.open()
    assert ended(hung.result(WAIT_S))  # the place was taken
    assert (pool.live_threads, pool.abandoned_threads) == (1, 0)

    assert other.abandon()
    second.open()
    other.result(WAIT_S)
    until(lambda: pool.live_threads == 1)  # the place was free
    assert thread_of(pool).is_alive()
    assert (pool.live_threads, pool.abandoned_threads) == (1, 0)


def test_hundred_hung_calls_with_four_workers(make_pool: MakePool, gate: Gate) -> None:  # A3
    pool = make_pool(4)
    futures = [pool.submit(gate) for _ in range(100)]
    for future in futures:
        gate.wait_for(1)
        assert pool.live_threads <= 4
        until(future.running)
        assert future.abandon()
    assert pool.abandoned_threads == 100
    assert pool.submit(str, "works").result(WAIT_S) == "works"
    gate.open()
    wait(futures, timeout=WAIT_S)
    until(lambda: pool.abandoned_threads == 0)
    assert pool.live_threads <= 4


def test_lent_thread_runs_what_the_lender_waits_for(make_pool: MakePool) -> None:  # R3
    pool = make_pool(1)

    def outer() -> str:
        inner = pool.submit(str, "inner")
        pool.lend()
        try:
            return inner.result(WAIT_S)
        finally:
            pool.give_back()

    future = pool.submit(outer)
    assert future.result(WAIT_S) == "inner"
    until(lambda: pool.live_threads == 1)


def test_thread_given_back_while_all_are_busy_ends_after_its_call(
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(1)
    pool.lend()
    pool.lend()
    futures = [pool.submit(gate) for _ in range(3)]
    gate.wait_for(3)
    queued = [pool.submit(str, number) for number in range(20)]
    pool.give_back()
    pool.give_back()
    assert pool.live_threads == 3
    gate.open()
    wait([*futures, *queued], timeout=WAIT_S)
    until(lambda: pool.live_threads == 1)
    with pytest.raises(RuntimeError, match=r"give_back\(\) without a lend\(\)"):
        pool.give_back()
    assert thread_of(pool).is_alive()


def test_give_back_from_many_threads_is_counted(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)

    def borrow() -> None:
        for _ in range(200):
            pool.lend()
            pool.give_back()

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    futures = [pool.submit(gate) for _ in range(5)]
    gate.wait_for(2)
    assert pool.live_threads == 2
    gate.open()
    wait(futures, timeout=WAIT_S)


def test_idle_threads_end_after_a_while_and_new_ones_come(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(4, idle_s=0.05)
    futures = [pool.submit(lambda: (gate(), threading.current_thread())[1]) for _ in range(4)]
    gate.wait_for(4)
    gate.open()
    threads = [future.result(WAIT_S) for future in futures]
    assert all(ended(thread) for thread in threads)
    assert pool.live_threads == 0
    assert thread_of(pool) not in threads


def test_call_that_comes_as_a_thread_is_leaving_is_run(make_pool: MakePool) -> None:
    pool = make_pool(1, idle_s=0.0005)
    for number in range(300):
        assert pool.submit(int, number).result(WAIT_S) == number
        threading.Event().wait(0.0005 if number % 2 else 0.0004)  # about when it leaves


def test_thread_that_is_called_after_its_time_was_up_stays(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, idle_s=0.05)
    leave, came = pool._leave_idle, list[Future[Any]]()
    timed_out = threading.Event()

    def leave_late(worker: Any) -> bool:
        if not came:  # its time is up, but it has not told so yet
            came.append(pool.submit(threading.current_thread))
            timed_out.set()
        return leave(worker)

    monkeypatch.setattr(pool, "_leave_idle", leave_late)
    first = thread_of(pool)
    assert timed_out.wait(WAIT_S)
    assert came[0].result(WAIT_S) is first


def test_shutdown_waits_for_everything_that_was_taken(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    futures = [pool.submit(gate, number) for number in range(6)]
    gate.wait_for(2)
    closer = threading.Thread(target=pool.shutdown)
    closer.start()
    gate.open()
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert [future.result(0) for future in futures] == list(range(6))
    assert pool.live_threads == 0
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot submit: these worker threads were shut down"):
        pool.submit(str)


def test_shutdown_leaves_no_thread(make_pool: MakePool) -> None:
    before = set(threading.enumerate())
    pool = make_pool(4)
    with pool:
        assert list(pool.map(str, range(50))) == [str(n) for n in range(50)]
    assert set(threading.enumerate()) <= before


def test_shutdown_that_does_not_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    future = pool.submit(gate, "done all the same")
    queued = pool.submit(str, "queued")
    pool.shutdown(wait=False)
    gate.open()
    assert future.result(WAIT_S) == "done all the same"
    assert queued.result(WAIT_S) == "queued"


def test_shutdown_cancels_what_is_queued(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    running = pool.submit(gate, "ran")
    gate.wait_for(1)
    queued = [pool.submit(str) for _ in range(3)]
    assert queued[1].cancel()
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    gate.open()
    pool.shutdown()
    assert running.result(0) == "ran"


def test_shutdown_never_waits_for_abandoned_threads(make_pool: MakePool, gate: Gate) -> None:  # A3
    pool = make_pool(2)
    hung = [pool.submit(gate) for _ in range(2)]
    gate.wait_for(2)
    queued = pool.submit(str, "queued")
    assert hung[0].abandon()
    closer = threading.Thread(target=pool.shutdown)
    closer.start()
    assert queued.result(WAIT_S) == "queued"
    assert closer.is_alive()
    assert hung[1].abandon()  # while it is waited for
    closer.join(WAIT_S)
    assert not closer.is_alive()
    assert (pool.live_threads, pool.abandoned_threads) == (0, 2)
    gate.open()
    wait(hung, timeout=WAIT_S)
    until(lambda: pool.abandoned_threads == 0)
    until(lambda: pool.live_threads == 0)


def test_queued_work_is_done_after_shutdown_though_all_threads_hang(
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(1)
    hung = pool.submit(gate)
    gate.wait_for(1)
    queued = pool.submit(str, "queued")
    pool.shutdown(wait=False)
    assert hung.abandon()
    pool.shutdown()
    assert queued.result(0) == "queued"


def test_worker_may_shut_its_own_pool_down(make_pool: MakePool) -> None:
    pool = make_pool(2)
    pool.submit(pool.shutdown).result(WAIT_S)
    until(lambda: pool.live_threads == 0)


@pytest.mark.parametrize("number", [0, -1, True, False, 1.5, "2", None])
def test_bad_max_workers_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be an int of 1 or more, not"):
        WorkerThreads(number)


@pytest.mark.parametrize("idle_s", [0, -1, float("nan"), float("inf")])
def test_bad_idle_s_is_refused(idle_s: float) -> None:
    with pytest.raises(ValueError, match="idle_s must be a number of seconds above 0, not"):
        WorkerThreads(1, idle_s=idle_s)


@pytest.fixture
def no_more_threads() -> Iterator[Callable[[], None]]:
    """Let the system refuse every further thread: no stack of that size can be had."""
    before = threading.stack_size()
    yield lambda: threading.stack_size(2**47) and None
    threading.stack_size(before)


def test_system_that_gives_no_thread_at_all(
    make_pool: MakePool, no_more_threads: Callable[[], None]
) -> None:
    pool = make_pool(2)
    no_more_threads()
    with pytest.raises(RuntimeError, match="thread"):
        pool.submit(str)
    threading.stack_size(0)
    assert pool.submit(str, "later").result(WAIT_S) == "later"


def test_system_that_gives_no_more_threads(
    make_pool: MakePool,
    gates: Callable[[], Gate],
    no_more_threads: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = make_pool(4)
    first = gates()
    hung = pool.submit(first)
    first.wait_for(1)
    no_more_threads()
    queued = pool.submit(str, "queued")  # has to wait for the one thread there is
    assert hung.abandon()
    assert "queued calls have to wait for a thread" in caplog.text
    first.open()
    assert queued.result(WAIT_S) == "queued"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_pool_works_in_a_forked_child() -> None:
    done = run_script(
        """
        import os, sys, threading, warnings
        from flowrun.executors.worker_threads import WorkerThreads
        warnings.simplefilter("ignore")
        pool = WorkerThreads(2)
        hold = threading.Event()
        hung = [pool.submit(hold.wait) for _ in range(2)]
        hung[0].abandon()
        queued = [pool.submit(str) for _ in range(3)]
        pid = os.fork()
        if pid == 0:
            assert (pool.live_threads, pool.abandoned_threads) == (0, 0)
            assert pool.submit(str, "in the child").result(10) == "in the child"
            pool.shutdown()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        hold.set()
        assert [future.result(10) for future in queued] == [""] * 3

        brief = WorkerThreads(2, idle_s=0.05)

        def fork_in_a_worker():
            pid = os.fork()
            if pid == 0:
                brief.submit(str, "from the worker's child").result(10)
                os.write(1, b"%d live\\n" % brief.live_threads)
            return pid

        pid = brief.submit(fork_in_a_worker).result(10)
        # The child ends when all of its threads have, the one that has forked included.
        print(os.waitpid(pid, 0)[1])
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 live\n0\n", "", 0)


def test_process_exits_at_once_though_hundred_abandoned_calls_hang() -> None:  # A3
    done = run_script(
        """
        import threading, time
        from flowrun.executors.worker_threads import WorkerThreads
        pool = WorkerThreads(4)
        started = threading.Semaphore(0)

        def hang():
            started.release()
            time.sleep(3600)

        futures = [pool.submit(hang) for _ in range(100)]
        for future in futures:
            started.acquire()
            while not future.abandon():
                pass
        queued = [pool.submit(hang) for _ in range(10)]
        print(pool.abandoned_threads)
        """
    )  # they hang for an hour, and run_script() waits for the end of the process
    assert (done.stdout, done.stderr, done.returncode) == ("100\n", "", 0)
