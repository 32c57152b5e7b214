"""Successes that are saved where they are, without the journal's thread (S1, D2, D3)."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    Engine,
    JsonSerializer,
    PickleSerializer,
    RunRecord,
    SqliteStateStore,
    TaskRecord,
    fn_hook,
)
from flowrun.errors import ResultNotStorableError, RunLostError, StoreFileError
from flowrun.state.journal import Journal
from flowrun.state.pace import Pace
from flowrun.state.protocol import Successes
from flowrun.state.records import NoResult
from flowrun.state.serializers import is_small

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]
OpenStore = Callable[..., SqliteStateStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    stores: list[SqliteStateStore] = []

    def make(**options: Any) -> SqliteStateStore:
        kind = options.pop("kind", SqliteStateStore)
        stores.append(kind(path, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def begun(names: Sequence[str]) -> RunRecord:
    """Return a run whose tasks are all running, each after the one before."""
    tasks = {
        name: TaskRecord(name, tuple(names[:number][-1:])) for number, name in enumerate(names)
    }
    return RunRecord("r1", "d", 1.0, tasks)


def started(run: RunRecord) -> list[TaskRecord]:
    tasks = list(run.tasks.values())
    for number, task in enumerate(tasks):
        task.start(3.5 + number, 2.25)
    return tasks


def successes_of(run: RunRecord, values: Sequence[object], first: int = 0) -> Successes:
    tasks = list(run.tasks.values())
    ended = [(first + number, 9.75 + number, value) for number, value in enumerate(values)]
    return Successes(run, tasks, ended)


VALUES = [7, None, True, 1.5, "text \N{SNOWMAN}", b"bytes", (1, "a"), {"rows": 3}, [], -(2**62)]


def save_all(store: SqliteStateStore, successes: Successes) -> bool:
    store.save_all([], [successes])
    return True


@pytest.mark.parametrize(
    "save", [SqliteStateStore.save_on_loop, SqliteStateStore.save_in_thread, save_all]
)
@pytest.mark.parametrize("serializer", [JsonSerializer(), PickleSerializer(key=bytes(16))])
@pytest.mark.parametrize("number", [1, 10, 85])
def test_successes_are_kept_as_changes_are(  # D1 D7
    open_store: OpenStore,
    path: Path,
    save: Callable[[SqliteStateStore, Successes], bool],
    serializer: Any,
    number: int,
) -> None:
    values = (VALUES * 9)[:number]
    names = [
        f't{place} "\\ \N{SNOWMAN}' if place % 7 == 5 else f"t{place}" for place in range(number)
    ]
    rows: list[list[Any]] = []
    for quick in (False, True):
        with closing(SqliteStateStore(path.with_name(f"{quick}.db"), serializer)) as store:
            run = begun(names)
            store.create_run(run)
            started(run)
            successes = successes_of(run, values)
            if quick:
                assert save(store, successes)
            else:
                store.save(successes.changes())
            found = store.load_run("r1", results=True)
            assert [task.result for task in found.tasks.values()] == values
            assert {task.status for task in found.tasks.values()} == {"SUCCESS"}
        with closing(sqlite3.connect(path.with_name(f"{quick}.db"))) as database:
            rows.append(database.execute("SELECT * FROM tasks ORDER BY place").fetchall())
    assert rows[0] == rows[1]
    # Only a copy had succeeded: the run's own record is not the store's to change.
    assert {task.status for task in run.tasks.values()} == {"RUNNING"}


def test_long_and_released_results_go_with_the_others(open_store: OpenStore) -> None:
    store = open_store()
    run = begun(["a", "b", "c"])
    store.create_run(run)
    started(run)
    values = [1, "x" * 5000, NoResult.RELEASED]
    assert not store.save_on_loop(successes_of(run, values))
    assert not store.save_in_thread(successes_of(run, [NoResult.RELEASED], 2))
    store.save_all([], [successes_of(run, values)])
    found = store.load_run("r1", results=True)
    assert [task.result for task in found.tasks.values()] == values


def test_what_would_take_its_time_is_left_to_the_journal(open_store: OpenStore) -> None:
    class Slow(JsonSerializer):
        pass

    for options, value in (
        ({}, "x" * 501),
        ({}, ["\x00" * 100] * 2),  # not much of it, but its text is long
        ({}, Decimal(1)),
        ({"serializer": Slow()}, 1),
        ({"journal_mode": "DELETE"}, 1),
    ):
        store = open_store(**options)
        run = begun(["a"])
        run.run_id = f"{options}{value!r}"
        store.create_run(run)
        started(run)
        assert not store.save_on_loop(successes_of(run, [value]))
        assert store.load_run(run.run_id, results=False).tasks["a"].status == "PENDING"
        store.close()


@pytest.mark.parametrize(
    ("value", "small"),
    [
        (2**63, False),
        ([1] * 33, False),
        ([[1]], False),
        ({"a": [1]}, False),
        ({2**70: 1}, False),
        (dict.fromkeys(range(33), 1), False),
        ({"a": None}, True),
        ((1.5, b"b", "c"), True),
        (object(), False),
    ],
)
def test_only_what_is_written_in_no_time_is_small(value: object, small: bool) -> None:
    assert is_small(value) is small


@pytest.mark.parametrize("number", [1, 3])
def test_lock_of_somebody_else_is_not_waited_for(  # R4
    open_store: OpenStore, path: Path, number: int
) -> None:
    store = open_store(busy_timeout_s=10 * WAIT_S)  # the test would time out
    run = begun(["a", "b", "c"])
    store.create_run(run)
    started(run)
    successes = successes_of(run, [1, 2, 3][:number])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not store.save_on_loop(successes)
        other.execute("ROLLBACK")
    assert store.save_on_loop(successes)


def test_writer_of_the_same_store_is_not_waited_for(open_store: OpenStore) -> None:
    store = open_store()
    run = begun(["a"])
    store.create_run(run)
    started(run)
    inside, go_on = threading.Event(), threading.Event()

    class Blocks(RunRecord):
        def summary(self) -> Any:
            inside.set()
            assert go_on.wait(WAIT_S)
            return super().summary()

    other = Blocks("r2", "d", 1.0, {})
    writer = threading.Thread(target=store.create_run, args=(other,))
    writer.start()
    assert inside.wait(WAIT_S)
    assert not store.save_on_loop(successes_of(run, [1]))
    go_on.set()
    writer.join()
    assert store.save_on_loop(successes_of(run, [1]))


@pytest.mark.parametrize("number", [1, 3])
def test_success_of_a_lost_run_is_not_saved(  # D3
    open_store: OpenStore, path: Path, number: int
) -> None:
    store = open_store()
    run = begun(["a", "b", "c"])
    store.create_run(run)
    started(run)
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE runs SET owner = owner + 1")
    successes = successes_of(run, [1, 2, 3][:number])
    assert not store.save_on_loop(successes)
    if number == 1:
        assert not store.save_in_thread(successes)
    with pytest.raises(RunLostError):
        store.save_all([], [successes])
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM tasks").fetchone() == (0,)
    # It knows now.
    assert not store.save_on_loop(successes)
    with pytest.raises(RunLostError):
        store.save_all([], [successes])


def test_transaction_that_fails_half_way_is_rolled_back(open_store: OpenStore) -> None:
    store = open_store()
    run = begun(["a", *(f"t{number}" for number in range(20)), "\udc80"])
    store.create_run(run)
    started(run)
    with pytest.raises(UnicodeEncodeError):
        store.save_on_loop(successes_of(run, range(22)))
    found = store.load_run("r1", results=False)
    assert {task.status for task in found.tasks.values()} == {"PENDING"}
    assert store.save_on_loop(successes_of(run, range(21)))


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("synchronous", "number", "most"), [("NORMAL", 10_000, 8000), ("FULL", 2500, 2000)]
)
def test_log_does_not_grow_without_bound(  # D2
    open_store: OpenStore, path: Path, synchronous: str, number: int, most: int
) -> None:
    store = open_store(synchronous=synchronous)
    run = begun(["a"])
    store.create_run(run)
    started(run)
    log = path.with_name(f"{path.name}-wal")
    saved = refused = 0
    while saved < number:
        if store.save_on_loop(successes_of(run, [saved])):
            saved += 1
        else:
            # Somebody has to fold it back, who may wait for the disk.
            refused += 1
            store.save_all([], [successes_of(run, [saved])])
    assert refused == 4
    assert log.stat().st_size < most * 4200


def test_closed_store_saves_nothing(open_store: OpenStore) -> None:
    store = open_store()
    run = begun(["a"])
    store.create_run(run)
    started(run)
    store.close()
    assert not store.save_on_loop(successes_of(run, [1]))
    with pytest.raises(StoreFileError, match="is closed"):
        store.save_in_thread(successes_of(run, [1]))


# The journal and the engine.


class Watched(SqliteStateStore):
    """Takes note of who has saved what."""

    saved: list[tuple[str, int]]
    before: Callable[[], object]

    def save_on_loop(self, successes: Successes) -> bool:
        saved = super().save_on_loop(successes)
        if saved:
            self.saved.append((threading.current_thread().name, len(successes.ended)))
        return saved


def watched(open_store: OpenStore, **options: Any) -> Watched:
    store = open_store(kind=Watched, **options)
    assert isinstance(store, Watched)
    store.saved = []
    return store


def chain(engine: Engine, length: int) -> None:
    async def work(upstream: dict[str, int]) -> int:
        return sum(upstream.values()) + 1

    for number in range(length):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="d", deps=deps)(work)


async def test_chain_of_async_tasks_is_saved_on_the_loop(
    open_store: OpenStore, make_engine: MakeEngine
) -> None:  # S1
    store = watched(open_store, synchronous="NORMAL")
    told: list[str] = []
    seen: list[str] = []

    def on_success(event: Any) -> None:
        told.append(event.task_name)
        seen.append(store.load_run(event.run_id, results=False).tasks[event.task_name].status)

    engine = make_engine(state_store=store, hooks=[fn_hook(on_task_success=on_success)])
    chain(engine, 100)
    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["t99"]["result"] == 100
    assert told == [f"t{number}" for number in range(100)]
    assert set(seen) == {"SUCCESS"}
    assert store.saved
    assert {name for name, _ in store.saved} == {threading.current_thread().name}


async def test_what_ends_together_is_saved_together(
    open_store: OpenStore, make_engine: MakeEngine
) -> None:
    store = watched(open_store)
    engine = make_engine(state_store=store)

    async def work() -> int:
        return 1

    for number in range(500):
        engine.task(name=f"t{number}", dag="d")(work)
    report = engine.get_run_report(await engine.run_once("d"))
    assert set(statuses(report).values()) == {"SUCCESS"}
    assert len(store.saved) < 50


async def test_nothing_is_saved_on_the_loop_while_another_task_runs(
    open_store: OpenStore, make_engine: MakeEngine
) -> None:
    store = watched(open_store)
    engine = make_engine(state_store=store)
    gate = asyncio.Event()

    @engine.task(dag="d")
    async def waits() -> None:
        await gate.wait()

    chain(engine, 10)

    @engine.task(dag="d", deps=["t9"])
    async def opens() -> None:
        gate.set()

    await engine.run_once("d")
    assert sum(number for _, number in store.saved) <= 2


async def test_chain_goes_on_by_the_journal_while_the_file_is_locked(
    open_store: OpenStore, make_engine: MakeEngine, path: Path
) -> None:  # R4
    store = watched(open_store)
    engine = make_engine(state_store=store)
    chain(engine, 5)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        locked = asyncio.Event()

        @engine.task(dag="d", deps=["t4"])
        async def locks() -> int:
            other.execute("BEGIN IMMEDIATE")
            locked.set()
            return 1

        @engine.task(dag="d", deps=["locks"])
        async def last() -> int:
            return 2

        run = asyncio.create_task(engine.run_once("d"))
        await asyncio.wait_for(locked.wait(), WAIT_S)
        for _ in range(20):
            await asyncio.sleep(0)  # the loop goes on
        assert not run.done()
        other.execute("ROLLBACK")
        report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert set(statuses(report).values()) == {"SUCCESS"}


async def test_result_that_cannot_be_kept_fails_alone_among_many(
    open_store: OpenStore, make_engine: MakeEngine
) -> None:  # D1
    engine = make_engine(state_store=open_store())
    for number in range(50):

        @engine.task(name=f"t{number}", dag="d")
        async def work(number: int = number) -> object:
            return object() if number == 20 else number

    report = engine.get_run_report(await engine.run_once("d"))
    failed = [name for name, status in statuses(report).items() if status != "SUCCESS"]
    assert failed == ["t20"]
    assert report["tasks"]["t49"]["result"] == 49


async def test_subclass_with_a_save_of_its_own_sees_every_change(
    open_store: OpenStore, make_engine: MakeEngine
) -> None:
    seen: list[str] = []

    class Mine(SqliteStateStore):
        def save(self, changes: Sequence[Change]) -> None:
            seen.extend(task.name for _, task in changes if task is not None)
            super().save(changes)

    engine = make_engine(state_store=open_store(kind=Mine))
    chain(engine, 10)
    await engine.run_once("d")
    assert seen == [f"t{number}" for number in range(10)]


class Failing:
    """A store whose quick ways fail, and whose slow one refuses one task."""

    blocking = True

    def __init__(self) -> None:
        self.saved: list[list[int]] = []

    @property
    def quick(self) -> Failing:
        return self

    def save_on_loop(self, successes: Successes) -> bool:
        raise ZeroDivisionError

    def save_in_thread(self, successes: Successes) -> bool:
        return False

    def save(self, changes: Sequence[Change]) -> None:
        raise ZeroDivisionError

    def save_all(self, changes: Sequence[Change], successes: Sequence[Successes]) -> None:
        places = [place for each in successes for place, _, _ in each.ended]
        if 1 in places:
            problem = "no"
            raise ResultNotStorableError(problem, "r1", "b")
        self.saved.append(places)


def test_what_cannot_be_saved_at_once_is_submitted_and_told_one_by_one() -> None:
    store = Failing()
    journal = Journal(store, logging.getLogger("test"))  # type: ignore[arg-type]
    run = begun(["a", "b", "c"])
    started(run)
    successes = successes_of(run, [1, 2, 3])
    assert not journal.save_on_loop(successes)
    assert not journal.save_in_thread(successes)
    told: list[tuple[list[int], str | None]] = []
    both = threading.Barrier(2)

    class Inbox:
        def put(self, receipt: Any) -> None:
            for then in receipt.thens:
                then(receipt.error)
            if len(told) == 2:
                both.wait(WAIT_S)

    def then(ended: Any, error: Exception | None) -> None:
        told.append(([place for place, _, _ in ended], error and str(error)))

    journal.submit_successes(successes, Inbox(), then)  # type: ignore[arg-type]
    both.wait(WAIT_S)
    journal.close()
    assert told == [([1], "no"), ([0, 2], None)]
    assert store.saved == [[0, 2]]


class NeverWoken(Journal):
    """A journal whose thread has not had its turn yet."""

    def _have_thread(self) -> None:
        pass


def test_nothing_overtakes_what_was_submitted_before(open_store: OpenStore) -> None:  # R6
    store = open_store()
    run = begun(["a", "b"])
    store.create_run(run)
    started(run)
    journal = NeverWoken(store, logging.getLogger("test"))
    later = successes_of(run, [2], first=1)
    journal.submit_successes(successes_of(run, [1]), object(), print)  # type: ignore[arg-type]
    assert not journal.save_on_loop(later)
    assert not journal.save_in_thread(later)
    assert Journal(store, logging.getLogger("test")).save_on_loop(later)


def test_pace_pauses_longer_each_time_it_finds_the_disk_slow() -> None:
    pace = Pace()
    pace.took(0.0, 0.0005, 1)
    assert pace.not_before == 0.0
    pace.took(1.0, 1.004, 1)  # it may have waited for a processor
    assert pace.not_before == 0.0
    pace.took(2.0, 2.02, 1)
    first = pace.not_before - 2.02
    assert 0.1 < first < 0.3
    pace.took(3.0, 3.02, 1)
    assert 9 < (pace.not_before - 3.02) / first < 11
    for _ in range(100):
        pace.took(10.0, 10.0001, 1)
    pace.took(11.0, 11.02, 1)
    assert pace.not_before - 11.02 == pytest.approx(first)
    for number in range(20):
        pace.took(20.0 + number, 20.005 + number, 1)
    assert pace.not_before > 1000
    # Many at a time may take as long as they need in the processor.
    other = Pace()
    other.took(0.0, 0.0022, 128)
    assert other.not_before == 0.0
