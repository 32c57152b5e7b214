"""The programs that ``test_faults`` starts, kills and starves: ``python fault_programs.py NAME ...``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import select
import signal
import sqlite3
import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

from flowrun import Engine, RunQuery, RunReport, SqliteStateStore, build_default_engine, fn_hook
from flowrun.errors import StoreError

if sys.platform != "win32":
    import resource

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
    "large": {"d": layers(2, 3, 2)},
    "two": {"d": layers(1, 2, 1, 2), "e": layers(2, 1, 2)},
}


GRID = layers(2, 3, 2)


def is_released(kind: str, name: str) -> bool:
    """Whether the task lets its result go; what it makes is then always the same."""
    return kind == "released" and name.startswith(("t1", "t2"))


def result_like(kind: str, made: object) -> object:
    """Return a result of the kind's size; so large that the log is folded back during a run."""
    return str(made) * 65_536 if kind == "large" else made


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
        given = {parent: value[:16] for parent, value in upstream.items()}
        assert upstream == {parent: result_like(kind, value) for parent, value in given.items()}
        notes.add(what="run", dag=dag, task=name, given=given, made=made)
        if kind == "mixed" and calls == 1 and name.endswith("1"):
            raise ConnectionError(name)
        return result_like(kind, made)

    async def work_async(upstream: dict[str, Any]) -> object:
        made = work(upstream)
        await asyncio.sleep(0)
        return made

    return work_async if kind == "mixed" and name.endswith(("0", "1")) else work


def job(db: str, notes_path: str, kind: str, level: str, recover: str, after: str) -> None:
    """Run every DAG of a kind, or go on where the last process has died."""
    notes = Notes(notes_path, int(after))
    notes.add(what="up")
    store = SqliteStateStore(
        db,
        recover=recover == "recover",
        synchronous="NORMAL" if level == "NORMAL" else "FULL",
        journal_mode="DELETE" if level == "DELETE" else "WAL",
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


def result_of(writer: str, turn: int, name: str) -> str:
    """Return what a task of ``write`` makes, so that a reader can tell whose it is."""
    return f"{writer} {turn} {name} " + "x" * 500


def write(db: str, writer: str, turns: str) -> None:
    """Run a grid several times, under a name of its own, on a file that others share."""
    store = SqliteStateStore(db)
    engine = build_default_engine(state_store=store)
    turn = 0
    for name, deps in GRID.items():
        engine.task(name=name, dag=writer, deps=deps)(
            lambda name=name: result_of(writer, turn, name)
        )

    async def main() -> None:
        nonlocal turn
        for turn in range(int(turns)):
            await engine.run_once(writer, metadata={"turn": turn})

    asyncio.run(main())
    engine.close()
    store.close()


def read(db: str, kind: str) -> None:
    """Look at random runs until the input ends; say how many reports were right."""
    store = SqliteStateStore.open_readonly(db) if kind == "readonly" else SqliteStateStore(db)
    engine = build_default_engine(state_store=store)
    print("up", flush=True)
    finished: set[str] = set()
    reports = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        runs = engine.list_runs(limit=None)
        assert finished <= {run.run_id for run in runs}
        # Any one, and some that are likely to be written at this moment.
        for run in [*random.sample(runs, min(1, len(runs))), *runs[:8]]:
            report = engine.get_run_report(run.run_id)
            check_report(report)
            assert report["finished_at"] is not None or run.run_id not in finished
            if report["finished_at"] is not None:
                finished.add(run.run_id)
            reports += 1
    engine.close()
    store.close()
    print(reports)


def check_report(report: RunReport) -> None:
    """Look for anything that was never so, at any moment of the run."""
    assert list(report["tasks"]) == list(GRID)
    for name, task in report["tasks"].items():
        if task["status"] == "SUCCESS":
            expected = result_of(report["dag_name"], cast("int", report["metadata"]["turn"]), name)
            assert task["result"] == expected
        else:
            assert task["result_state"] == "absent"
        if task["status"] != "PENDING":
            assert all(report["tasks"][parent]["status"] == "SUCCESS" for parent in GRID[name])
    if report["finished_at"] is None:
        assert report["alive"]
    else:
        assert report["status"] == "SUCCESS"


def create(folder: str, count: str) -> None:
    """Make many files, all of which others are making too."""
    for number in range(int(count)):
        SqliteStateStore(os.path.join(folder, f"{number}.db")).close()


class Disk:
    """A disk with little space: so many pages in the file, or so many bytes in any file."""

    def __init__(self, how: str) -> None:
        self._pages = _PLENTY
        self._bytes = how == "bytes"
        self._connections: list[weakref.ref[sqlite3.Connection]] = []
        connect = sqlite3.connect

        def connect_limited(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **options, factory=_Connection)
            connection.execute(f"PRAGMA max_page_count = {self._pages}")
            self._connections.append(weakref.ref(connection))
            return connection

        if not self._bytes:
            sqlite3.connect = cast("Any", connect_limited)

    def limit(self, size: int) -> None:
        """Leave this much space."""
        if self._bytes:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        self._pages = size

    def lift(self) -> None:
        """Give space back, to those who have the file open as well."""
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        self._pages = _PLENTY
        for reference in self._connections:
            if (connection := reference()) is not None:
                with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                    connection.execute(f"PRAGMA max_page_count = {_PLENTY}")


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


_PLENTY = 1 << 30


def starve(folder: str, how: str, first: str, last: str, step: str) -> None:
    """Run on disks of many sizes, the last one large; say what went wrong, and how far it got."""
    disk = Disk(how)
    # How much is enough depends on how many tasks share a transaction.
    sizes = [*range(int(first), int(last), int(step)), 10 * int(last)]
    for place, size in enumerate(sizes):
        path = os.path.join(folder, f"{size}.db")
        errors, done = asyncio.run(run_starved(path, disk, size, reopen=place % 2 == 0))
        print(json.dumps([size, errors, done]), flush=True)


async def run_starved(
    path: str, disk: Disk, size: int, *, reopen: bool
) -> tuple[list[str | None], int]:
    """Run until the disk is full; look at the file; go on with more space."""
    made: dict[str, str] = {}
    ran: list[str] = []
    acknowledged: set[str] = set()

    def open_engine(**options: Any) -> tuple[SqliteStateStore, Engine]:
        store = SqliteStateStore(path, **options)
        hook = fn_hook(on_task_success=lambda event: acknowledged.add(event.task_name))
        engine = build_default_engine(state_store=store, hooks=[hook], max_parallel=2)
        for name, deps in GRID.items():

            def work(upstream: dict[str, str], name: str = name) -> str:
                ran.append(name)
                made[name] = os.urandom(3000).hex()
                return made[name]

            engine.task(name=name, dag="d", deps=deps)(work)
        return store, engine

    def refused(**options: Any) -> str | None:
        before = len(os.listdir("/dev/fd"))
        try:
            store, engine = open_engine(**options)
        except StoreError as error:
            assert len(os.listdir("/dev/fd")) == before
            return type(error).__name__
        engine.close()
        store.close()
        return None

    disk.limit(size)
    errors = [refused()]
    if errors[0]:
        disk.lift()
    store, engine = open_engine()
    disk.limit(size)
    try:
        await engine.run_once("d")
        errors.append(None)
    except StoreError as error:
        errors.append(type(error).__name__)
    if reopen:
        engine.close()
        store.close()
        errors.append(refused(recover=True))
    disk.lift()
    safe = set(acknowledged)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with contextlib.closing(SqliteStateStore(path)) as other:
        found = other.list_runs(RunQuery())
        tasks = other.load_run(found[0].run_id, results=True).tasks if found else {}
        for name in safe:
            assert (tasks[name].status, tasks[name].result) == ("SUCCESS", made[name])
    if reopen:
        store, engine = open_engine(recover=True)
    runs = engine.list_runs()
    assert all(run.finished_at is not None for run in runs)
    ran.clear()
    if not runs:
        run_id = await engine.run_once("d")
    elif runs[0].status == "SUCCESS":
        run_id = runs[0].run_id
    else:
        run_id = await engine.resume(runs[0].run_id)
    assert safe.isdisjoint(ran), (safe, ran)
    report = engine.get_run_report(run_id)
    assert {name: task["result"] for name, task in report["tasks"].items()} == made
    engine.close()
    store.close()
    return errors, len(safe)


PROGRAMS: dict[str, Callable[..., None]] = {
    "job": job,
    "write": write,
    "read": read,
    "create": create,
    "starve": starve,
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
