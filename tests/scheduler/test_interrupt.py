"""Ctrl-C and hung threads, seen from outside: real child processes (A3, R2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from ..conftest import WAIT_S

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


INTERRUPTED = """
    import asyncio, json, signal, sys, threading
    from flowrun import build_default_engine, fn_hook

    # A shell that starts the tests in the background has its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    events = []
    engine = build_default_engine(hooks=[fn_hook(
        on_task_failure=lambda e: events.append(["failure", e.task_name, e.reason]),
        on_task_skip=lambda e: events.append(["skip", e.task_name, e.reason]),
        on_dag_end=lambda e: events.append(["end", e.status]),
    )])

    deaf_runs = threading.Event()

    @engine.task(dag="d")
    async def waits():
        await asyncio.to_thread(deaf_runs.wait)
        print("begun", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            events.append(["cleaned up"])

    @engine.task(dag="d", timeout_s=None)
    def deaf():
        deaf_runs.set()
        threading.Event().wait()

    @engine.task(dag="d", deps=[waits])
    def never():
        pass

    try:
        asyncio.run(engine.run_once("d"))
    finally:
        (run,) = engine.list_runs()
        tasks = engine.get_run_report(run.run_id)["tasks"]
        print(json.dumps({
            "tasks": {name: [task["status"], task["reason"]] for name, task in tasks.items()},
            "events": events,
            "ended": run.finished_at is not None,
        }), flush=True)
        engine.close()
"""


def test_ctrl_c_ends_the_run_as_a_cancellation_does() -> None:  # R1 R2
    with start(INTERRUPTED) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=WAIT_S)
        finally:
            child.kill()
    told = json.loads(out)
    assert told["tasks"] == {
        "waits": ["FAILED", "RUN_CANCELLED"],
        "deaf": ["FAILED", "RUN_CANCELLED"],
        "never": ["SKIPPED", "RUN_CANCELLED"],
    }
    assert told["ended"] is True
    assert sorted(map(tuple, told["events"])) == sorted(
        [
            ("cleaned up",),
            ("failure", "waits", "RUN_CANCELLED"),
            ("failure", "deaf", "RUN_CANCELLED"),
            ("skip", "never", "RUN_CANCELLED"),
            ("end", "FAILED"),
        ]
    )
    assert "KeyboardInterrupt" in err
    assert child.returncode in (130, -signal.SIGINT, 1)


HUNG = """
    import asyncio, sys, threading, time
    from flowrun import build_default_engine

    engine = build_default_engine(max_workers=4)
    for number in range(100):
        engine.task(name=f"t{number}", dag="d", timeout_s=0.02)(threading.Event().wait)

    async def main():
        async with engine:
            await engine.run_once("d")
            print(engine.list_runs()[0].task_counts, flush=True)

    asyncio.run(main())
    print("closed", flush=True)
"""


def test_process_with_a_hundred_hung_threads_ends_at_once() -> None:  # A3
    child = start(HUNG)
    out, err = child.communicate(timeout=60)  # they hang for good
    assert (out, child.returncode) == ("{'FAILED': 100}\nclosed\n", 0), err


BLOCKED_IN_C = """
    import asyncio, ctypes
    from flowrun import build_default_engine

    engine = build_default_engine()
    libc = ctypes.CDLL(None)
    engine.task(name="a", dag="d", timeout_s=0.05)(lambda: libc.sleep(600))

    async def main():
        async with engine:
            run = await engine.run_once("d")
            print(engine.get_run_report(run)["tasks"]["a"]["abandoned"], flush=True)

    asyncio.run(main())
"""


def test_task_that_blocks_in_c_is_abandoned_and_the_process_ends() -> None:  # A3
    child = start(BLOCKED_IN_C)
    out, err = child.communicate(timeout=WAIT_S)
    assert (out, child.returncode) == ("True\n", 0), err
