"""Worker processes of a pool whose parent was killed: real ones, seen from outside."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from flowrun.executors.parent_watch import end_with_parent

from ..conftest import WAIT_S

JOBS = """
    import asyncio, multiprocessing, os, sys, threading
    from concurrent.futures import ProcessPoolExecutor
    from flowrun import build_default_engine

    def hang():
        os.write(1, b"%d\\n" % os.getpid())  # in one piece
        threading.Event().wait()

    def main(method):
        pool = ProcessPoolExecutor(3, mp_context=multiprocessing.get_context(method))
        engine = build_default_engine(executors={"cpu": pool})
        for name in "abc":
            engine.task(name=name, dag="d", executor="cpu", timeout_s=None)(hang)
        asyncio.run(engine.run_once("d"))

    if __name__ == "__main__":
        main(sys.argv[1])
"""


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, method: str) -> None:
    script = tmp_path / "jobs.py"
    script.write_text(textwrap.dedent(JOBS))
    with subprocess.Popen(
        [sys.executable, script, method], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        try:
            workers = [int(parent.stdout.readline()) for _ in range(3)]
            assert all(map(is_running, workers))
        finally:
            parent.kill()
    deadline = time.monotonic() + WAIT_S
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline


def watchers() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "flowrun-parent-watch"]


def test_process_that_nobody_has_made_is_left_alone() -> None:
    end_with_parent()
    assert not watchers()


def watch_twice() -> int:
    end_with_parent()
    end_with_parent()
    return len(watchers())


def test_one_watcher_is_enough() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(watch_twice) == 1
        pool.close()
        pool.join()
