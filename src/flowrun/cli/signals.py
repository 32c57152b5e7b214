"""Signals, while the command line awaits a run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractAsyncContextManager
    from types import FrameType

INTERRUPTED = 130
"""The exit code of a program that SIGINT has ended, as a shell has it."""


async def until_interrupted(
    engine: AbstractAsyncContextManager[object], work: Awaitable[str]
) -> str:
    """Await a run; cancel it on the first SIGINT or SIGTERM (R2), exit at once on the second.

    Args:
        engine: Closed when the run has ended.
        work: The run; the result is what it returns.

    Raises:
        KeyboardInterrupt: There was such a signal, and the run has ended.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(work)
    told: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal calls it
        if told:
            with suppress(OSError):  # pragma: no cover - ends the process at once
                os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)  # pragma: no cover - as above
        told.append(number)
        loop.call_soon_threadsafe(running.cancel)
        with suppress(RuntimeError):  # in the middle of another print
            print("interrupted: cancelling; once more to leave at once", file=sys.stderr)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        # The loop's own handlers wait while a task blocks the loop; but only with them does a
        # signal that comes just before the loop falls asleep wake it.
        with suppress(NotImplementedError):  # on Windows it wakes without
            loop.add_signal_handler(number, told.copy)
        signal.signal(number, stop)
    try:
        async with engine:
            return await running
    except asyncio.CancelledError:
        if told:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler or signal.SIG_DFL)
