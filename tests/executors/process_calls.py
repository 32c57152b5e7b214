"""What the tests of the process executor run in other processes, which import it from here."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, NoReturn

_held: list[Any] = []


def call_home(address: str) -> Connection:
    """Tell the test that this process runs; it hears when the last one that holds this ends."""
    phone = Client(address)
    phone.send(os.getpid())
    _held.append(phone)
    return phone


def sleep() -> NoReturn:
    while True:
        time.sleep(60)


def hang(address: str) -> NoReturn:
    call_home(address)
    sleep()


def wait_for_go(address: str) -> str:
    return str(call_home(address).recv())


def ignore_sigterm(address: str) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(address)


def clean_up_on_sigterm(address: str) -> NoReturn:
    phone = Client(address)

    def clean_up(number: int, frame: object) -> NoReturn:
        phone.send("cleaned up")
        os._exit(0)

    signal.signal(signal.SIGTERM, clean_up)
    phone.send(os.getpid())
    sleep()


def hang_with_grandchild(address: str) -> NoReturn:
    """Both hold the phone; the grandchild does not care for SIGTERM."""
    phone = call_home(address)
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    phone.send("forked")
    sleep()


def hold_the_lock(address: str) -> None:
    """Hang in C without letting any other thread of this process run, with a grandchild."""
    phone = call_home(address)
    if os.fork() == 0:
        sleep()
    phone.send("forked")
    ctypes.PyDLL(None).sleep(3600)


def leave_grandchild(address: str) -> str:
    phone = call_home(address)
    pid = os.fork()
    if pid == 0:
        sleep()
    phone.send("forked")
    return "left"


def crash_beside_grandchild(address: str) -> NoReturn:
    """Die while a grandchild in a session of its own holds everything it has inherited."""
    phone = call_home(address)
    ready, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        phone.send(os.getpid())
        os.write(tell, b"!")
        sleep()
    os.read(ready, 1)
    os._exit(5)


def leave_thread() -> str:
    threading.Thread(target=sleep).start()
    return "left"


def close_all_files(address: str) -> NoReturn:
    phone = call_home(address)
    for number in range(3, 64):
        if number != phone.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    sleep()


def send_signal_to_itself(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    sleep()


def raise_error(kind: str) -> NoReturn:
    errors: dict[str, Callable[[], BaseException]] = {
        "ValueError": lambda: ValueError("no rows"),
        "SystemExit": lambda: SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt,
        "StopIteration": lambda: StopIteration(1),
        "ExceptionGroup": lambda: ExceptionGroup("many", [KeyError("a")]),
    }
    error = errors[kind]()
    raise error


class Unpleasant(Exception):
    """Pickles, but does not unpickle: its constructor wants more than it keeps."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


def raise_unpleasant() -> NoReturn:
    raise Unpleasant("first line", "second")


class PicklesOnly:
    """Pickles, but does not unpickle."""

    def __reduce__(self) -> Any:
        return refuse, ()


def refuse() -> NoReturn:
    msg = "cannot be rebuilt"
    raise RuntimeError(msg)


def return_lock() -> object:
    return threading.Lock()


def length(data: bytes) -> int:
    return len(data)


def surroundings() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgrp(),
        "read": os.read(0, 1),
        "grandchild_read": subprocess.run(
            [sys.executable, "-c", "import sys; print(repr(sys.stdin.read()))"],
            check=True,
            capture_output=True,
        ).stdout,
        "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "threads": threading.active_count(),
        "flag": os.environ.get("FLOWRUN_TEST_FLAG"),
        "directory": str(Path.cwd()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "loaded": "colorsys" in sys.modules,
    }


def run_a_process_of_its_own() -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    return process.exitcode


def exit_at_once(code: int) -> None:
    """End the process without any cleaning up, as a crash does."""
    os._exit(code)
