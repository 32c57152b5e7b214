"""What ``test_killed_flows`` kills: ``killed_flows.py FILE NOTES DIES_AFTER RECOVER``.

It runs a DAG with rules, branches, omissions, priorities, limits, delays and teardowns, or goes on
where the last process has died. It notes what happens as :class:`fault_programs.Notes` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Generator
from typing import Any

from flowrun import (
    Engine,
    RetryAfter,
    SkipTask,
    SqliteStateStore,
    TaskFailureEvent,
    TaskOmitEvent,
    TaskSuccessEvent,
    build_default_engine,
    current_attempt,
    fn_hook,
)

if __name__ == "__main__":
    from fault_programs import Notes
else:
    from .fault_programs import Notes

DELAY_S = 0.05
PAGES = ("page0", "page1", "page2", "page3")
"""Tasks of one limit of 1; the later ones have the higher priority."""

OMITTED = ("right", "after_right", "alarm", "nothing_new", "after_nothing")
USERS = ("left", "late", *PAGES)
"""Tasks that use the cluster."""


@contextlib.contextmanager
def noted(notes: Notes, **facts: object) -> Generator[None]:
    """Note when the code of an attempt begins and ends."""
    task, attempt = current_attempt().task_name, current_attempt().attempt
    about = {"task": task, "attempt": attempt}
    notes.add(what="run", **about, **facts, at=time.time())
    try:
        yield
    finally:
        notes.add(what="end", **about, at=time.time())


def declare(engine: Engine, notes: Notes, *, is_first: bool) -> None:
    """Declare the DAG; in the first process that comes so far, ``late`` fails."""
    etl = engine.dag("d")

    @etl.task
    def cluster() -> str:
        made = os.urandom(8).hex()
        with noted(notes, made=made):
            return made

    @etl.task(teardown_of=["cluster"], deps=["join"])
    def drop(cluster: str, join: str = "") -> str:
        with noted(notes, given=cluster):
            return join

    @etl.branch
    async def choose() -> list[str]:
        with noted(notes):
            return ["left"]

    @etl.task(deps=["choose"])
    async def left(cluster: str) -> str:
        with noted(notes, given=cluster):
            return "left"

    @etl.task(deps=["choose"])
    async def right() -> str:
        with noted(notes):
            return "right"

    etl.task("after_right", deps=["right"])(lambda: notes.add(what="run", task="after_right"))

    @etl.task(deps=["left", "right"], trigger_rule="none_failed_min_one_success")
    async def join(left: str = "", right: str = "") -> str:
        with noted(notes):
            return left or right

    @etl.task
    def nothing_new() -> None:
        with noted(notes):
            raise SkipTask("nothing new")

    etl.task("after_nothing", deps=["nothing_new"])(lambda: notes.add(what="run", task="x"))

    @etl.task
    async def source() -> int:
        with noted(notes):
            return 7

    @etl.task(deps=["nothing_new", "source"], trigger_rule="all_done")
    def summary(upstream: dict[str, object]) -> object:
        with noted(notes):
            return [upstream, current_attempt().upstream_status]

    @etl.task(deps=["source"], trigger_rule="one_failed")
    def alarm() -> None:
        with noted(notes):
            pass

    @etl.task(retries=1, uses=["api"])
    async def told() -> int:
        with noted(notes):
            if current_attempt().attempt == 1:
                raise RetryAfter(DELAY_S, "429", pause=["api"])
            return current_attempt().attempt

    for number, name in enumerate(PAGES):

        @etl.task(name, uses=["one"], priority=number)
        def page(cluster: str) -> str:
            with noted(notes, given=cluster):
                return current_attempt().task_name

    @etl.task(deps=["join"])
    def late(cluster: str) -> None:
        with noted(notes, given=cluster):
            if is_first:
                raise ConnectionError


def main(path: str, notes_path: str, dies_after: str, recover: str) -> None:
    """Run the DAG, or go on; the process ends with 1 if the run has failed."""
    with open(notes_path, "a+", encoding="utf-8") as file:
        file.seek(0)
        is_first = '"failed"' not in file.read()
    notes = Notes(notes_path, int(dies_after))
    notes.add(what="up")
    store = SqliteStateStore(path, synchronous="NORMAL", recover=recover == "recover")

    def acknowledged(event: TaskSuccessEvent | TaskOmitEvent) -> None:
        notes.add(what="ack", task=event.task_name, kind=type(event).__name__)

    def failed(event: TaskFailureEvent) -> None:
        notes.add(what="failed", task=event.task_name)

    hook = fn_hook(on_task_success=acknowledged, on_task_omit=acknowledged, on_task_failure=failed)
    engine = build_default_engine(
        state_store=store, hooks=[hook], max_parallel=4, limits={"one": 1, "api": 1}
    )
    declare(engine, notes, is_first=is_first)

    async def go_on() -> str:
        runs = engine.list_runs(limit=1)
        return await (engine.resume(runs[0].run_id) if runs else engine.run_once("d"))

    run_id = asyncio.run(go_on())
    report: Any = engine.get_run_report(run_id)
    engine.close()
    store.close()
    sys.exit(0 if report["status"] == "SUCCESS" else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
