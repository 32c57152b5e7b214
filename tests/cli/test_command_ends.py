"""The command ends with its run: signals, abandoned tasks, threads."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flowrun.cli.commands import main
from flowrun.cli.signals import RunLoop

from ..conftest import WAIT_S
from .programs import flowrun, write_jobs

JOBS = """
    @engine.task(dag="stubborn", timeout_s=0.1)
    async def stub():
        while True:
            try:
                await asyncio.sleep(0.05)
            except BaseException:
                pass

    @engine.task(dag="thread", timeout_s=0.1)
    async def waits():
        await asyncio.to_thread(time.sleep, 300)

    @engine.task(dag="background")
    async def leaves():
        async def goes_on():
            try:
                await asyncio.sleep(300)
            finally:
                print("cleaned up")

        async def items():
            try:
                yield 1
                yield 2
            finally:
                print("closed")

        global kept
        kept = asyncio.create_task(goes_on()), items()
        await anext(kept[1])
        await asyncio.to_thread(print, "in a thread")

    @engine.task(dag="quick")
    def quick():
        pass
"""

posix = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return write_jobs(tmp_path, JOBS)


def test_task_that_ignores_its_cancellation(jobs: Path) -> None:  # it would go on for good
    done = flowrun(jobs, "run", "jobs:engine", "stubborn", "--no-progress", code=1)
    assert "stub" in done.stdout
    assert "Traceback" not in done.stderr
    assert "destroyed" not in done.stderr


def test_thread_that_nobody_waits_for(jobs: Path) -> None:  # for 300 s
    done = flowrun(jobs, "run", "jobs:engine", "thread", "--no-progress", code=1)
    assert "waits" in done.stdout


def test_what_a_task_leaves_on_the_loop_is_cancelled_and_cleans_up(jobs: Path) -> None:
    done = flowrun(jobs, "run", "jobs:engine", "background", "--no-progress")
    lines = done.stdout.splitlines()
    assert lines[0] == "in a thread"
    assert sorted(lines[1:3]) == ["cleaned up", "closed"]
    assert lines[3].startswith("background: Succeeded")
    assert done.stderr == ""


def test_atexit_functions_run_where_threads_end_by_themselves(jobs: Path) -> None:
    with (jobs / "jobs.py").open("a", encoding="utf-8") as file:
        file.write(
            "import atexit\n"
            "atexit.register(print, 'at exit')\n"
            "threading.Thread(target=time.sleep, args=(1,)).start()\n"
        )
    done = flowrun(jobs, "run", "jobs:engine", "quick", "--no-progress")
    assert done.stdout.splitlines()[-1] == "at exit"


@posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_signal_after_the_end_changes_neither_report_nor_code(jobs: Path, number: str) -> None:
    with (jobs / "jobs.py").open("a", encoding="utf-8") as file:
        file.write(
            f"""
import atexit
read = engine.get_run_report
def read_and_signal(run_id, **options):
    os.kill(os.getpid(), signal.{number})
    return read(run_id, **options)
engine.get_run_report = read_and_signal
atexit.register(os.kill, os.getpid(), signal.{number})
"""
        )
    done = flowrun(jobs, "run", "jobs:engine", "quick", "--no-progress")
    assert done.stdout.startswith("quick: Succeeded")
    assert done.stderr == ""


@posix
def test_second_signal_after_the_end_ends_a_command_that_hangs(jobs: Path) -> None:
    with (jobs / "jobs.py").open("a", encoding="utf-8") as file:
        file.write(
            """
def hang(run_id, **options):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(300)
engine.get_run_report = hang
"""
        )
    assert flowrun(jobs, "run", "jobs:engine", "quick", "--no-progress", code=130).stdout == ""


def test_caller_of_main_goes_on_beside_a_task_that_does_not_end(jobs: Path) -> None:
    code = """
import os
from flowrun.cli import main
code = main(["run", "jobs:engine", "stubborn", "--no-progress"])
print("code", code, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=jobs,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "code 1"


@posix
def test_caller_of_main_gets_its_handlers_back(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(jobs)
    (jobs / "jobs.py").rename(jobs / "called.py")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["run", "called:engine", "quick", "--no-progress"]) == 0
    sys.modules.pop("called").store.close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


@pytest.fixture
def loop() -> Iterator[RunLoop]:
    run_loop = RunLoop()
    yield run_loop
    run_loop.release()


@posix
class TestRunLoop:
    def test_signal_before_the_run_cancels_it_at_once(self, loop: RunLoop) -> None:
        async def work() -> str:
            raise AssertionError("it starts")

        with loop:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                loop.run(nothing(), work)

    def test_cancellation_that_no_signal_asked_for_goes_further(self, loop: RunLoop) -> None:
        async def work() -> str:
            raise asyncio.CancelledError

        with loop, pytest.raises(asyncio.CancelledError):
            loop.run(nothing(), work)

    def test_signal_during_the_run_cancels_it(self, loop: RunLoop) -> None:
        async def work() -> str:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(WAIT_S)
            return "not reached"

        with loop, pytest.raises(KeyboardInterrupt):
            loop.run(nothing(), work)

    def test_signal_after_the_run_is_ignored(self, loop: RunLoop) -> None:
        async def work() -> str:
            return "run"

        with loop:
            assert loop.run(nothing(), work) == "run"
            signal.raise_signal(signal.SIGINT)
        assert not loop.left
