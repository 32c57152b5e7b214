"""What every test may use: engines that are closed, and a bounded wait."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flowrun import Engine, RunReport, SqliteStateStore, build_default_engine
from flowrun.config import Clock

WAIT_S = 20.0
"""No test waits longer than this for something that must happen; it is never slept."""


# A busy machine may stall any example; what hangs ends by the test's timeout.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


_MARK = b"FLOWRUN_TEST_SESSION="
_is_outermost = os.environ.setdefault(_MARK.decode()[:-1], str(os.getpid())) == str(os.getpid())
"""Whether this is not a worker of pytest-xdist; all that a session starts inherits its mark."""


WATCHED = (
    "test_carriers",
    "test_attempt_time",
    "test_internals",
    "test_journal",
    "test_resuming",
    "test_handed_in_pools",
    "test_saving",
    "test_sync_tasks",
    "test_scheduler",
    "test_stopping",
)
"""After each test of these modules nothing may be left."""


SLOW = (
    *("cli", "test_processes.py", "test_faults.py", "test_orphans.py", "test_docs.py"),
    *("test_encoding.py", "test_history.py", "test_large_results.py", "test_render_layout.py"),
    *("test_render_siblings.py", "test_run_state.py", "test_serializers.py"),
    *("test_signature.py", "test_sqlite_store.py", "test_json_classes.py"),
)
"""Folders and modules whose tests start many processes, or try many values."""


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def _use_hypothesis(nothing: None) -> None:
    """Have Hypothesis make what it keeps for all tests."""


def pytest_collection_finish() -> None:
    """Have the collector leave alone what all tests share: many tests call it."""
    _use_hypothesis()  # else it would ask the collector who holds what it makes, after the freeze
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests; have async tests of the watched modules leave no asyncio task behind."""
    for item in items:
        if item.path.name in SLOW or item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)
        if (
            isinstance(item, pytest.Function)
            and inspect.iscoroutinefunction(item.function)
            and item.module.__name__.rpartition(".")[2] in WATCHED
        ):
            item.fixturenames.insert(0, "no_task_left")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail a session that leaves processes behind, once its workers have ended."""
    yield
    deadline = time.monotonic() + WAIT_S
    while _is_outermost and (left := processes_left()):
        if time.monotonic() > deadline:
            print("\nProcesses that the tests have left behind:", *left.items(), sep="\n")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            break
        threading.Event().wait(0.05)


def processes_left() -> dict[int, str]:
    """Return the command lines of processes that were started by this session.

    Not counted are those that ``multiprocessing`` keeps for this process, and ends with it.
    """
    mark = _MARK + str(os.getpid()).encode()
    left: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            is_child = int(parent) == os.getpid()
            is_marked = mark in (process / "environ").read_bytes().split(b"\0")
            if is_child and _is_a_helper(process):
                continue
            if is_child or is_marked:
                left[int(process.name)] = (process / "cmdline").read_bytes().decode()
    return left


@pytest.fixture(autouse=True)
def untraced_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that such a test starts not traced either."""
    if request.node.get_closest_marker("no_cover") is not None:
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def no_task_left() -> AsyncIterator[None]:
    """Fail a test after which there are more asyncio tasks than before."""
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + WAIT_S
    while True:
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if not left:
            return
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0)


@pytest.fixture
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Build engines that are closed when the test ends."""
    if request.module.__name__.rpartition(".")[2] in WATCHED:
        request.getfixturevalue("nothing_left")
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        engine = build_default_engine(**options)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """Return an engine with the defaults."""
    return make_engine()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteStateStore]:
    """Return a store in a file; ask for it before ``make_engine``, so that it is closed last."""
    with contextlib.closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        yield store


@pytest.fixture
def pools_collected() -> Iterator[None]:
    """Collect what process pools leave before the next test.

    A semaphore that is collected in the middle of multiprocessing's starting a process is an
    error there (its resource tracker refuses to be called inside itself).
    """
    yield
    gc.collect()


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which there are more threads, processes or open files than before.

    Asked for before the engines, so that they are closed when it looks.
    """
    before = (flowrun_threads(), open_files(), child_processes())
    yield
    deadline = time.monotonic() + WAIT_S
    while True:
        gc.collect()
        threads = [thread for thread in flowrun_threads() if thread not in before[0]]
        files = open_files() - before[1]
        processes = child_processes() - before[2]
        if not threads and files <= 0 and not processes:
            return
        assert time.monotonic() < deadline, (threads, files, processes)
        threading.Event().wait(0.01)


def open_files() -> int:
    """Return how many descriptors this process has, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def child_processes() -> set[int]:
    """Return this process's children, dead ones that nobody has reaped included.

    Of all its threads: when one ends its children go over to another. Not counted are the
    helpers that ``multiprocessing`` starts once and keeps, and the workers of a Dask cluster,
    whose nannies start them anew, and let go of them, when they like.
    """
    found: set[int] = set()
    for told in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has just ended
            found.update(map(int, told.read_text().split()))
    return {process for process in found if not _is_a_helper(Path(f"/proc/{process}"))}


def _is_a_helper(process: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
        # Set by a nanny's "pre-spawn-environ".
        of_a_nanny = b"MALLOC_TRIM_THRESHOLD_=" in (process / "environ").read_bytes()
    except OSError:
        return False
    return of_a_nanny or b"resource_tracker" in command or b"forkserver" in command


class SkippingClock(Clock):
    """The real clock, but for seconds that a test skips."""

    skipped_s = 0.0

    def monotonic(self) -> float:  # type: ignore[override]
        return time.monotonic() + self.skipped_s


def statuses(report: RunReport) -> dict[str, str]:
    """Return the status of each task."""
    return {name: task["status"] for name, task in report["tasks"].items()}


def flowrun_threads() -> list[threading.Thread]:
    """Return the threads that flowrun has started and that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowrun")]
