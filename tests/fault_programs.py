"""The programs that ``test_faults`` starts, kills and starves: ``python fault_programs.py NAME ...``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal, cast

from flowrun import Engine, SqliteStateStore, build_default_engine, fn_hook

Shape = dict[str, list[str]]


def layers(*widths: int) -> Shape:
    """Return layers of tasks, each of which needs the whole layer before."""
    shape: Shape = {}
    before: list[str] = []
    for depth, width in enumerate(widths):
        names = [f"t{depth}_{place}" for place in range(width)]
        shape.update(dict.fromkeys(names, before))
        before = names
    return shape


SHAPES: dict[str, dict[str, Shape]] = {
    "chain": {"d": layers(*[1] * 8)},
    "fan": {"d": layers(1, 8, 1)},
    "grid": {"d": layers(3, 3, 3, 3)},
    "mixed": {"d": layers(2, 3, 2, 1)},
    "released": {"d": layers(1, 3, 2, 1)},
    "two": {"d": layers(1, 2, 1, 2), "e": layers(2, 1, 2)},
}


def is_released(kind: str, name: str) -> bool:
    """Whether the task lets its result go; what it makes is then always the same."""
    return kind == "released" and name.startswith(("t1", "t2"))


class Notes:
    """Lines in a file that outlive the process at once, and on its output.

    A line is out before the call returns, so whoever reads it knows that this was done.
    """

    def __init__(self, path: str, dies_after: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left = dies_after

    def add(self, **line: object) -> None:
        """Write one line; the process is gone after its ``dies_after``-th."""
        data = json.dumps(line).encode() + b"\n"
        os.write(self._file, data)
        os.write(1, data)
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def declare(engine: Engine, kind: str, notes: Notes) -> None:
    """Declare the DAGs of a kind; every task notes what it was given and what it makes."""
    for dag, shape in SHAPES[kind].items():
        for name, deps in shape.items():
            engine.task(
                name=name,
                dag=dag,
                deps=deps,
                retries=2 if kind == "mixed" else 0,
                retain_result=not is_released(kind, name),
            )(make_work(kind, dag, name, notes))


def make_work(kind: str, dag: str, name: str, notes: Notes) -> Callable[..., Any]:
    """Make a task; in ``mixed`` every second one is async, and some fail at first."""
    calls = 0

    def work(upstream: dict[str, Any]) -> object:
        nonlocal calls
        calls += 1
        # No two calls make the same, so that the values tell which call's is kept.
        made = name if is_released(kind, name) else os.urandom(8).hex()
        notes.add(what="run", dag=dag, task=name, given=upstream, made=made)
        if kind == "mixed" and calls == 1 and name.endswith("1"):
            raise ConnectionError(name)
        return made

    async def work_async(upstream: dict[str, Any]) -> object:
        made = work(upstream)
        await asyncio.sleep(0)
        return made

    return work_async if kind == "mixed" and name.endswith(("0", "1")) else work


def job(db: str, notes_path: str, kind: str, synchronous: str, recover: str, after: str) -> None:
    """Run every DAG of a kind, or go on where the last process has died."""
    notes = Notes(notes_path, int(after))
    notes.add(what="up")
    store = SqliteStateStore(
        db,
        recover=recover == "recover",
        synchronous=cast("Literal['FULL', 'NORMAL']", synchronous),
    )
    hook = fn_hook(
        on_task_success=lambda event: notes.add(
            what="ack", dag=event.dag_name, task=event.task_name
        )
    )
    engine = build_default_engine(state_store=store, hooks=[hook], max_parallel=3)
    declare(engine, kind, notes)

    async def go_on(dag: str) -> None:
        runs = engine.list_runs(dag, limit=1)
        if runs and runs[0].status == "SUCCESS":
            return
        await (engine.resume(runs[0].run_id) if runs else engine.run_once(dag))

    async def main() -> None:
        await asyncio.gather(*map(go_on, SHAPES[kind]))

    asyncio.run(main())
    engine.close()
    store.close()


if __name__ == "__main__":
    _, program, *arguments = sys.argv
    {"job": job}[program](*arguments)
