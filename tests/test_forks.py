"""A child that is forked while its parent is busy: it works, or says clearly why not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from .conftest import WAIT_S

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.slow,
]

PRELUDE = """
    import asyncio, io, multiprocessing, os, sys, threading, time, traceback, warnings
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from flowrun import *
    from flowrun.errors import *

    warnings.simplefilter("ignore")
    PARENT = os.getpid()

    def in_child(function):
        child = multiprocessing.get_context("fork").Process(target=function)
        child.start()
        child.join(20)
        if child.exitcode is None:
            print("the child hangs", flush=True)
            child.kill()
            child.join()
        return child.exitcode

    def run(engine, dag):
        run_id = asyncio.run(engine.run_once(dag))
        report = engine.get_run_report(run_id)
        return {name: task["error"] or task["result"] for name, task in report["tasks"].items()}

    def busy(engine):
        '''Have a run of the DAG "long" that goes on until this process ends.'''
        begun = threading.Event()
        engine.task("hold", dag="long", timeout_s=None)(lambda: (begun.set(), time.sleep(3600)))
        threading.Thread(target=lambda: asyncio.run(engine.run_once("long")), daemon=True).start()
        begun.wait()
"""


def output_of(script: str) -> list[str]:
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=3 * WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_slots_and_runs_of_the_parent_are_not_the_childs() -> None:
    lines = output_of(
        """
        calls = []
        engine = build_default_engine(max_workers=1, max_parallel=1)
        engine.add_hook(fn_hook(on_task_success=lambda e: calls.append(e.task_name)))
        engine.task("short", dag="d")(lambda: 1)
        busy(engine)

        def child():
            print(run(engine, "d"), calls)
            engine.close()  # it does not wait for the parent's run
            try:
                run(engine, "d")
            except EngineClosedError:
                print("closed", flush=True)

        print(in_child(child), flush=True)
        print(engine.list_runs("long")[0].status, flush=True)
        os._exit(0)
        """
    )
    assert lines == ["{'short': 1} ['short']", "closed", "0", "RUNNING"]


def test_closed_engine_is_closed_in_a_child() -> None:
    lines = output_of(
        """
        engine = build_default_engine()
        engine.task("short", dag="d")(lambda: 1)
        engine.close()

        def child():
            try:
                run(engine, "d")
            except EngineClosedError:
                print("closed", flush=True)

        print(in_child(child))
        """
    )
    assert lines == ["closed", "0"]


@pytest.mark.parametrize("where", ["async", "thread", "hook"])
def test_task_or_hook_may_fork(where: str) -> None:
    lines = output_of(
        f"""
        where = {where!r}
        engine = build_default_engine(max_parallel=1, max_workers=1)
        engine.task("short", dag="inner")(lambda: os.getpid() != PARENT)

        def fork(event=None):
            return in_child(lambda: print(run(engine, "inner"), flush=True))

        async def fork_on_the_loop():
            return fork()

        if where == "hook":
            exits = []
            hook = fn_hook(on_task_success=lambda e: os.getpid() == PARENT and exits.append(fork()))
            engine.add_hook(hook)
            engine.task("t", dag="d")(lambda: "-")
        else:
            engine.task("t", dag="d")(fork if where == "thread" else fork_on_the_loop)
        print(run(engine, "d"), exits if where == "hook" else "")
        """
    )
    ends = {"hook": "{'t': '-'} [0]"}
    assert lines == ["{'short': True}", ends.get(where, "{'t': 0} ")]


def test_locks_that_are_held_at_the_fork_hold_nobody_up() -> None:
    lines = output_of(
        """
        held = [threading.Event(), threading.Event()]

        class Blocks:
            '''Blocks, in the parent, whoever looks at it or writes to it, with a lock taken.'''

            def __call__(self):
                return 1

            @property
            def __wrapped__(self):
                self.block(0)
                raise AttributeError

            def block(self, number):
                if os.getpid() == PARENT and threading.current_thread().daemon:
                    held[number].set()
                    time.sleep(3600)

        class Stream(io.StringIO):
            def write(self, text):
                Blocks.block(self, 1)
                return super().write(text)

        stream = Stream()
        engine = build_default_engine(hooks=[ProgressHook(stream)])
        engine.task("short", dag="d")(lambda: 1)
        threading.Thread(target=lambda: run(engine, "d"), daemon=True).start()
        held[1].wait()
        look = lambda: engine.registry.homes(Blocks())
        threading.Thread(target=look, daemon=True).start()
        held[0].wait()

        def child():
            engine.task("late", dag="d")(lambda: 2)
            print(run(engine, "d"), "short" in stream.getvalue(), flush=True)

        print(in_child(child), flush=True)
        os._exit(0)
        """
    )
    assert lines == ["{'short': 1, 'late': 2} True", "0"]


def test_what_a_child_prints_is_not_drawn_as_the_parents() -> None:
    lines = output_of(
        """
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        real, sys.stdout = sys.stdout, Terminal()
        hook = ProgressHook(sys.stdout, live=True)
        engine = build_default_engine(hooks=[hook])
        engine.task("short", dag="d")(lambda: 1)
        terminal = sys.stdout
        busy(engine)
        while sys.stdout is terminal:
            time.sleep(0.001)
        print("held", end="")

        def child():
            restored = sys.stdout is terminal
            before = len(terminal.getvalue())
            print("mine")
            sys.stdout = real
            print(restored, repr(terminal.getvalue()[before:]), run(engine, "d"), flush=True)

        print(in_child(child), file=real, flush=True)
        os._exit(0)
        """
    )
    assert lines == ["True 'mine\\n' {'short': 1}", "0"]


def test_store_on_a_file_refuses_and_closes_at_once(tmp_path: os.PathLike[str]) -> None:
    lines = output_of(
        f"""
        store = SqliteStateStore({str(tmp_path)!r} + "/runs.db", cache_ttl_s=60)
        engine = build_default_engine(state_store=store)
        engine.task("short", dag="d")(lambda: 1)
        run_id = asyncio.run(engine.run_once("d"))
        engine.get_run_report(run_id)
        busy(engine)

        def child():
            for use in (
                lambda: run(engine, "d"),
                lambda: engine.get_run_report(run_id),
                engine.list_runs,
                lambda: engine.prune_runs(keep_last=1),
                lambda: asyncio.run(engine.resume(run_id)),
            ):
                try:
                    use()
                except StoreError as error:
                    print(type(error).__name__)
            engine.close()
            store.close()
            print("closed", flush=True)

        print(in_child(child), flush=True)
        os._exit(0)
        """
    )
    assert lines == [*["ForkedStoreError"] * 5, "closed", "0"]


@pytest.mark.parametrize("used", [False, True])
def test_pool_that_is_lost_in_a_child_refuses(used: bool) -> None:
    lines = output_of(
        f"""
        threads, processes = ThreadPoolExecutor(1), ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        )
        own = ProcessPerAttemptExecutor(1)
        pools = {{"threads": threads, "own": own, "processes": processes}}
        engine = build_default_engine(executors=pools)
        for name in pools:
            engine.task(name, dag="d", executor=name)(list)
        if {used}:
            print(run(engine, "d"), flush=True)


        def child():
            print(run(engine, "d"), flush=True)
            os._exit(0)  # an interpreter that ends waits for the standard library's process pools

        print(in_child(child), flush=True)
        """
    )
    works = "{'threads': [], 'own': [], 'processes': []}"
    assert (lines[0], lines[-1]) == (works, "0")
    if not used:
        return
    assert "this ThreadPoolExecutor was used before this process was forked" in lines[1]
    assert "this ProcessPoolExecutor was used before this process was forked" in lines[1]
    assert "'own': []" in lines[1]


@pytest.mark.no_cover
def test_children_forked_at_any_moment_work() -> None:
    lines = output_of(
        """
        store = InMemoryStateStore(max_finished_runs=50)
        hook = fn_hook(on_task_success=lambda e: None)
        engine = build_default_engine(state_store=store, hooks=[hook])
        for number in range(4):
            engine.task(f"s{number}", dag="d")(lambda: time.sleep(0.0005))
        engine.task("i", dag="inner")(lambda: 1)

        @engine.task(dag="d", deps=["s0"])
        async def nested():
            await engine.run_once("inner")

        async def forever():
            while True:
                await asyncio.gather(*(engine.run_once("d") for _ in range(3)))

        for _ in range(3):
            threading.Thread(target=lambda: asyncio.run(forever()), daemon=True).start()

        def child():
            assert run(engine, "inner") == {"i": 1}
            engine.list_runs()
            engine.close()

        print([in_child(child) for _ in range(40)], flush=True)
        os._exit(0)
        """
    )
    assert lines == [str([0] * 40)]


def test_child_that_a_task_forks_keeps_no_logs_of_the_parents_runs() -> None:
    lines = output_of(
        """
        import logging

        engine = build_default_engine(config=SchedulerConfig(keep_logs=True))

        @engine.task(dag="inner")
        def inner():
            logging.warning("inner")
            return len(logging.root.handlers)

        @engine.task(dag="d")
        def outer():
            return len(logging.root.handlers), in_child(child)

        def child():
            print(len(logging.root.handlers), run(engine, "inner"), flush=True)
            print(len(logging.root.handlers), flush=True)

        print(run(engine, "d"))
        """
    )
    assert lines == ["0 {'inner': 1}", "0", "{'outer': (1, 0)}"]
