"""What flowrun takes besides time: memory, patience, and the event loop's attention."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.candidates import at_once, declare, declare_ten
from flowrun import SqliteStateStore, build_default_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.shapes import Edges
    from flowrun import Engine

_DAG = "bench"
_RUNS = 10_000
_WARM = 2_000
_WAITING = 1_000
_WAIT_S = 3.0
_LARGE = 100_000_000
_BEAT_S = 0.001


def memory(edges: Edges) -> dict[str, float]:
    """Measure how much the resident set grows while tasks are registered, built and run.

    The names and the edges are there before; what is counted is flowrun's, and the results. A
    report, which holds all of it once more, is not asked for.
    """
    at_once({"warm": ()}, 4)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    asyncio.run(_once(edges))
    return {"bytes_per_task": (_status("VmHWM") - before) / len(edges)}


async def _once(edges: Edges) -> None:
    async with build_default_engine(max_parallel=4) as engine:
        declare(engine, edges)
        await engine.run_once(_DAG)


def runs(edges: Edges) -> dict[str, float]:
    """Run the DAG of ten tasks 10,000 times, and see what each run has left behind.

    Before that it is run more often than the store in memory keeps runs.
    """
    del edges
    return asyncio.run(_runs())


async def _runs() -> dict[str, float]:
    async with build_default_engine() as engine:
        declare_ten(engine)
        for _ in range(_WARM):
            await engine.run_once(_DAG)
        gc.collect()
        before = _status("VmRSS")
        for _ in range(_RUNS):
            await engine.run_once(_DAG)
        gc.collect()
        return {"bytes_per_run": (_status("VmRSS") - before) / _RUNS}


def idle(edges: Edges) -> dict[str, float]:
    """Let 1,000 tasks wait, each with a timeout, and see what the engine does meanwhile."""
    del edges
    return asyncio.run(_idle())


async def _idle() -> dict[str, float]:
    gate = asyncio.Event()
    begun = 0
    all_wait = asyncio.Event()

    async def wait() -> None:
        nonlocal begun
        begun += 1
        if begun == _WAITING:
            all_wait.set()
        await gate.wait()

    async with build_default_engine(max_parallel=_WAITING) as engine:
        for number in range(_WAITING):
            engine.task(f"t{number}", dag=_DAG, timeout_s=3_600.0)(wait)
        run = asyncio.create_task(engine.run_once(_DAG))
        await all_wait.wait()
        await asyncio.sleep(0.2)  # what follows a launch has been done by then
        cpu, started = time.process_time(), time.perf_counter()
        await asyncio.sleep(_WAIT_S)
        share = (time.process_time() - cpu) / (time.perf_counter() - started)
        gate.set()
        await run
    return {"cpu_per_second": share}


def large(edges: Edges) -> dict[str, float]:
    """Hand a result of 100 MB from one task to the next, in memory and through SQLite."""
    del edges
    figures: dict[str, float] = {}
    with closing(build_default_engine()) as engine:
        figures |= _named("memory", *asyncio.run(_large(engine)))
    with TemporaryDirectory(dir=".") as folder:
        store = SqliteStateStore(Path(folder) / "runs.sqlite", synchronous="NORMAL")
        with closing(store), closing(build_default_engine(state_store=store)) as engine:
            figures |= _named("durable", *asyncio.run(_large(engine)))
    return figures


def _named(where: str, seconds: float, stall: float) -> dict[str, float]:
    return {f"{where}_s": seconds, f"{where}_stall_s": stall}


async def _large(engine: Engine) -> tuple[float, float]:
    """Return seconds of the run, and the longest that the loop did not come round."""

    def make() -> bytes:
        return bytes(_LARGE)

    def measure(make: bytes) -> int:
        return len(make)

    engine.task(dag=_DAG)(make)
    engine.task(dag=_DAG)(measure)
    stall = 0.0

    async def beat() -> None:
        nonlocal stall
        last = time.perf_counter()
        while True:
            await asyncio.sleep(_BEAT_S)
            now = time.perf_counter()
            stall = max(stall, now - last - _BEAT_S)
            last = now

    beating = asyncio.create_task(beat())
    await asyncio.sleep(10 * _BEAT_S)
    started = time.perf_counter()
    run_id = await engine.run_once(_DAG)
    seconds = time.perf_counter() - started
    await asyncio.sleep(2 * _BEAT_S)
    beating.cancel()
    tasks = engine.get_run_report(run_id, results=False)["tasks"]
    assert tasks["measure"]["status"] == "SUCCESS", tasks["measure"]["error"]
    return seconds, stall


def _status(field: str) -> int:
    """Return a figure of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


KINDS: dict[str, Callable[[Edges], dict[str, float]]] = {
    "memory": memory,
    "runs": runs,
    "idle": idle,
    "large result": large,
}
