"""The program that ``test_interrupts`` starts: ``interrupted_runs.py WAY STORE COUNT SEED``.

It starts runs until SIGINT has arrived COUNT times, each time at a random moment of a run.
``WAY`` is how the run is awaited and how often SIGINT arrives in one run:

- ``once``: ``asyncio.run``, and one SIGINT, which asyncio turns into a cancellation;
- ``twice``: ``asyncio.run``, and a second SIGINT, which is a bare ``KeyboardInterrupt``; asyncio
  itself may lose a wake-up by it and hang, so no test asks for this way;
- ``bare``: ``loop.run_until_complete`` and Python's own handler: a bare ``KeyboardInterrupt`` may
  come out of any line of flowrun. The loop is closed where it stands.

What is wrong is printed, one line each; the last line is a JSON object with counts.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import random
import signal
import sys
import threading
import time
from typing import Any

from flowrun import (
    Engine,
    RunQuery,
    SchedulerConfig,
    SqliteStateStore,
    build_default_engine,
    current_attempt,
    fn_hook,
)
from flowrun.errors import ResumeError
from flowrun.state import RunStatus

HANGS_AFTER_S = 15.0
"""Nothing here takes so long; the tracebacks of all threads are printed then."""


class FirstAttemptError(Exception):
    """What the retried tasks raise."""


def declare(engine: Engine) -> None:
    """Declare a small DAG of sync, async and retried tasks."""

    def fail_once() -> int:
        attempt = current_attempt().attempt
        if attempt == 1:
            raise FirstAttemptError
        return attempt

    @engine.task(dag="d")
    def source() -> int:
        return 1

    @engine.task(dag="d")
    async def on_the_loop(source: int) -> int:
        await asyncio.sleep(0)
        return source + 1

    engine.task(name="retried_in_thread", dag="d", deps=["source"], retries=1)(fail_once)

    @engine.task(dag="d", deps=["source"], retries=1)
    async def retried_on_the_loop() -> int:
        await asyncio.sleep(0)
        return fail_once()

    @engine.task(dag="d")
    def last(on_the_loop: int, retried_in_thread: int, retried_on_the_loop: int) -> int:
        return on_the_loop + retried_in_thread + retried_on_the_loop

    meet = threading.Barrier(2)
    for number in range(2):
        engine.task(name=f"meets{number}", dag="both slots")(lambda: meet.wait(HANGS_AFTER_S) and 0)


class Interrupter:
    """Sends SIGINT to this process at set moments."""

    def __init__(self) -> None:
        self._next_delays_s: list[float] = []
        self.sent = 0
        signal.signal(signal.SIGALRM, self._fire)

    def arm(self, *delays_s: float) -> None:
        first, *self._next_delays_s = delays_s
        signal.setitimer(signal.ITIMER_REAL, max(first, 1e-6))

    def disarm(self) -> None:
        self._next_delays_s = []
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _fire(self, *_: object) -> None:
        self.sent += 1
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # not before: asyncio does not survive a second one in its own handler
            if self._next_delays_s:
                signal.setitimer(signal.ITIMER_REAL, max(self._next_delays_s.pop(0), 1e-6))


class Trial:
    """One engine, and everything that is wrong with it."""

    def __init__(self, way: str, path: str, seed: int) -> None:
        self.way = way
        self.chance = random.Random(seed)
        self.interrupter = Interrupter()
        self.wrong: list[str] = []
        self.begun: set[str] = set()
        self.ended: set[str] = set()
        self.interrupted = 0
        self.store = None if path == "memory" else SqliteStateStore(path, synchronous="NORMAL")
        self.engine = build_default_engine(
            max_parallel=2,
            max_workers=2,
            state_store=self.store,
            config=SchedulerConfig(cancel_grace_s=0.5),
            # The standard library's handlers have locks that an interrupt can leave taken.
            logger=logging.Logger("quiet", logging.CRITICAL + 1),
            hooks=[
                fn_hook(
                    on_dag_start=lambda event: self.begun.add(event.run_id),
                    on_dag_end=lambda event: self.ended.add(event.run_id),
                )
            ],
        )
        declare(self.engine)

    def run(self, count: int) -> None:
        usual_s = self.usual_duration()
        number = 0
        while self.interrupter.sent < count:
            number += 1
            faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
            delays_s = [self.chance.uniform(0, 1.2 * usual_s)]
            if self.way == "twice":
                delays_s.append(self.chance.uniform(0, 0.5 * usual_s))
            begun = time.perf_counter()
            try:
                self.one_run(delays_s)
                self.interrupter.disarm()
                usual_s = time.perf_counter() - begun  # the machine may have been busy before
            except (KeyboardInterrupt, asyncio.CancelledError):
                self.interrupter.disarm()
                self.interrupted += 1
            self.check_last()
            if not number % 10:
                self.check_resume()
        faulthandler.dump_traceback_later(2 * HANGS_AFTER_S, exit=True)
        self.check_all()

    def usual_duration(self) -> float:
        for _ in range(5):  # the last one counts
            begun = time.perf_counter()
            asyncio.run(self.engine.run_once("d"))
        return time.perf_counter() - begun

    def one_run(self, delays_s: list[float]) -> None:
        if self.way != "bare":
            asyncio.run(self.await_run(delays_s))
            return
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # it would tell of its own pending tasks
        try:
            loop.run_until_complete(self.await_run(delays_s))
        finally:
            self.interrupter.disarm()
            loop.close()

    async def await_run(self, delays_s: list[float]) -> None:
        # Armed here, for asyncio's own setup and cleanup do not survive any moment.
        try:
            self.interrupter.arm(*delays_s)
            await self.engine.run_once("d")
        finally:
            self.interrupter.disarm()

    def check_last(self) -> None:
        runs = self.engine.list_runs(limit=1)
        report = self.engine.get_run_report(runs[0].run_id)
        left = {
            name: task["status"]
            for name, task in report["tasks"].items()
            if task["status"] in ("RUNNING", "PENDING")
        }
        if report["finished_at"] is None or left:
            self.wrong.append(f"run {report['run_id']} has not ended: {left}")

    def check_resume(self) -> None:
        run = self.engine.list_runs(limit=1)[0]
        try:
            new = self.engine.get_run_report(asyncio.run(self.engine.resume(run.run_id)))
        except ResumeError as error:
            self.wrong.append(f"run {run.run_id} cannot be resumed: {error}")
            return
        if new["status"] != "SUCCESS":
            self.wrong.append(f"run {run.run_id} was resumed, and ended as {new['status']}")

    def check_all(self) -> None:
        asyncio.run(self.engine.run_once("both slots"))
        runs = self.engine.list_runs(limit=None)
        for run in runs:
            if run.finished_at is None or {"RUNNING", "PENDING"} & set(run.task_counts):
                self.wrong.append(f"run {run.run_id} is open: {run.task_counts}")
        if self.way == "once" and self.begun != self.ended:
            self.wrong.append(f"no end was reported of {self.begun - self.ended}")
        self.engine.close()
        if self.store is not None:
            other = SqliteStateStore(self.store.path)
            open_runs = [run.run_id for run in other.list_runs(RunQuery(status=RunStatus.RUNNING))]
            if open_runs:
                self.wrong.append(f"the file has open runs: {open_runs}")
            other.close()
            self.store.close()
        threads = [each.name for each in threading.enumerate() if each.name.startswith("flowrun")]
        if threads:
            self.wrong.append(f"threads are left: {threads}")


def main(way: str, path: str, count: str, seed: str) -> None:
    # A shell that starts the tests in the background has its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial = Trial(way, path, int(seed))
    trial.run(int(count))
    for line in trial.wrong:
        print(line)
    counts: dict[str, Any] = {
        "wrong": len(trial.wrong),
        "sent": trial.interrupter.sent,
        "interrupted": trial.interrupted,
    }
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
