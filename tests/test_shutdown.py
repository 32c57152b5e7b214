"""What the public API does while the interpreter ends: it works, or raises an error of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from .conftest import WAIT_S

pytestmark = pytest.mark.slow

SCRIPT = """
    import asyncio, atexit, os, sys, threading
    from concurrent.futures import ThreadPoolExecutor

    if {is_early}:
        atexit.register(lambda: look())  # called after flowrun's own handlers

    from flowrun import *
    from flowrun.executors.process_per_attempt import ProcessPerAttemptExecutor

    folder = sys.argv[1]
    store = SqliteStateStore(os.path.join(folder, "runs.db"))
    own, threads = ProcessPerAttemptExecutor(1), ThreadPoolExecutor(1)
    pools = {{"own": own, "threads": threads}}

    def make(**options):
        engine = build_default_engine(executors=pools, **options)
        for executor in (None, *pools):
            engine.task(f"in {{executor}}", dag="d", executor=executor)(list)
        async def on_loop():
            return 1
        engine.task("on the loop", dag="d")(on_loop)
        return engine

    in_memory = make(hooks=[fn_hook(on_dag_end=lambda event: None)])
    in_file = make(state_store=store)
    failed = None
    if {is_used}:
        for engine in (in_memory, in_file):
            failed = asyncio.run(engine.run_once("d"))

    def run(engine, start):
        report = engine.get_run_report(asyncio.run(start))
        assert report["finished_at"] is not None
        for task in report["tasks"].values():
            assert task["status"] == "SUCCESS" or "flowrun.errors." in task["error"], task

    def look():
        for act in (
            lambda: run(in_memory, in_memory.run_once("d")),
            lambda: run(in_file, in_file.run_once("d")),
            lambda: failed and run(in_file, in_file.resume(failed, from_tasks=["on the loop"])),
            lambda: in_file.prune_runs(keep_last=9),
            lambda: SqliteStateStore(os.path.join(folder, "other.db"), recover=True).close(),
            lambda: own.submit(list).result(),
            lambda: build_default_engine().close(),
            lambda: asyncio.run(in_memory.aclose()),
            in_file.close,
            lambda: run(in_file, in_file.run_once("d")),
            store.close,
        ):
            try:
                act()
            except FlowrunError:
                pass
            except BaseException as error:
                print(repr(error))
        print("looked", flush=True)

    def look_late():
        threading.main_thread().join()  # it goes on while the interpreter ends
        look()
        looked.set()

    if __name__ == "__main__" and {in_thread}:
        looked = threading.Event()
        atexit.register(looked.wait, 30)
        threading.Thread(target=look_late, daemon=True).start()
    elif __name__ == "__main__" and not {is_early}:
        atexit.register(look)
"""


@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("where", ["handler", "early handler", "thread"])
def test_errors_at_the_end_of_the_interpreter_are_flowruns(
    tmp_path: object, where: str, is_used: bool
) -> None:
    text = textwrap.dedent(SCRIPT).format(
        is_used=is_used, is_early=where == "early handler", in_thread=where == "thread"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=3 * WAIT_S,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("looked\n", 0), done.stderr
