"""What every test may use: engines that are closed, and a bounded wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flowrun import Engine, RunReport, build_default_engine

WAIT_S = 20.0
"""No test waits longer than this for something that must happen; it is never slept."""


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """Build engines that are closed when the test ends."""
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


def statuses(report: RunReport) -> dict[str, str]:
    """Return the status of each task."""
    return {name: task["status"] for name, task in report["tasks"].items()}


def flowrun_threads() -> list[threading.Thread]:
    """Return the threads that flowrun has started and that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowrun")]
