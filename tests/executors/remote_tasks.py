"""Tasks that run in other processes: a worker imports them from here."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from flowrun import RunContext, current_attempt


def process_id() -> int:
    return os.getpid()


def attempt_name(context: RunContext[str]) -> tuple[str, int, str]:
    attempt = current_attempt()
    left = attempt.time_left_s
    assert left is not None
    assert 0 < left <= 30
    return attempt.task_name, attempt.attempt, context.deps


def second_time_lucky() -> int:
    attempt = current_attempt().attempt
    if attempt == 1:
        msg = "first time"
        raise ValueError(msg)
    return attempt


class Unpleasant(Exception):
    """Pickles, but does not unpickle: its constructor wants more than it keeps."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


class PicklesOnly:
    """A result that pickles, but does not unpickle."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> None:
    msg = "cannot be rebuilt"
    raise RuntimeError(msg)


def raise_named(rows: None = None, *, name: str = "") -> None:
    errors: dict[str, BaseException] = {
        "ValueError": ValueError("plain"),
        "SystemExit": SystemExit(3),
        "StopIteration": StopIteration(1),
        "GeneratorExit": GeneratorExit(),
        "CancelledError": asyncio.CancelledError("nobody asked"),
        "ExceptionGroup": ExceptionGroup("many", [ValueError("one"), KeyError("two")]),
        "Unpleasant": Unpleasant("first", "second"),
        "TimeoutError": TimeoutError("own"),
    }
    raise errors[name]


def return_lock() -> object:
    return threading.Lock()


def return_pickles_only() -> object:
    return PicklesOnly()


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_own_process() -> None:
    os._exit(7)


def hang(path: str) -> None:
    """Note the process, then never return."""
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    while True:
        time.sleep(60)


def add(a: int, b: int) -> int:
    return a + b


def one() -> int:
    return 1


def two() -> int:
    return 2


def segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def with_grandchild(path: str) -> None:
    """Start a process of its own that would live on, note both, then hang."""
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(path).write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
    while True:
        time.sleep(60)


def stubborn(path: str) -> None:
    """Refuse the polite signal, note the process, then hang."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(path)


def big() -> bytes:
    return b"x" * 50_000_000


def leave_thread_behind() -> str:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return "answered"


def raise_unpleasant() -> None:
    raise Unpleasant("first", "second")


def raise_value_error() -> None:
    msg = "plain"
    raise ValueError(msg)


class Changeling(Exception):
    """Comes back from pickle as something else."""

    def __reduce__(self) -> Any:
        return ValueError, ("changed",)


def raise_changeling() -> None:
    raise Changeling


class Interrupting:
    """Pressing Ctrl-C while it is being pickled."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class Moody:
    """Refuses to be pickled, but only the first time."""

    def __init__(self) -> None:
        self.asked = False

    def __reduce__(self) -> Any:
        if not self.asked:
            self.asked = True
            msg = "moody"
            raise ValueError(msg)
        return Moody, ()


def wait_for_file(started: str, go_on: str) -> None:
    Path(started).touch()
    while not Path(go_on).exists():
        time.sleep(0.005)  # in another process, to which nobody can talk


class NotesUnpickling:
    """A value that leaves a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


def note(path: str, value: object = None) -> str:
    Path(path).touch()
    return "ran"


def note_keys(context: RunContext[Path]) -> None:
    """Write this attempt's keys to a file; fail until that has five lines."""
    attempt = current_attempt()
    with context.deps.open("a") as file:
        file.write(f"{attempt.idempotency_key} {attempt.attempt_key}\n")
    if len(context.deps.read_text().splitlines()) < 5:
        raise ValueError


def say_and_log(gate: str) -> None:
    log = logging.getLogger("shop")
    log.warning("a secret warning")
    log.warning("%d of %d", 1, 3)
    current_attempt().progress(1, 3, "rows")
    deadline = time.monotonic() + 20
    while not Path(gate).exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    current_attempt().progress(2, 3, "rows")
    current_attempt().progress(3, 3, "rows")
    msg = "after all"
    raise ValueError(msg)
