"""Damaged and hostile rows: an error that names the run and the task, never wrong data (D7)."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    Engine,
    JsonSerializer,
    RunQuery,
    RunRecord,
    SqliteStateStore,
)
from flowrun.cli.commands import main
from flowrun.errors import (
    DamagedRecordError,
    ResultNotReadableError,
    StoreError,
    StoreFileError,
    UnknownRunError,
)
from flowrun.state.checksums import checksum, run_checksum, task_checksum
from flowrun.state.records import Cached, NoResult
from flowrun.state.rows import RUN_COLUMNS, TASK_COLUMNS, check_task_row, run_of_row
from flowrun.state.run_records import RunStatus

from .runs import failed, finish, make_run, running, save, succeeded

MakeEngine = Callable[..., Engine]
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStateStore]:
    store = SqliteStateStore(path, synchronous="NORMAL")
    yield store
    store.close()


def keep(store: SqliteStateStore, *run_ids: str, **more: Any) -> None:
    """Keep finished runs in which ``a`` has succeeded and ``b`` has, too, at its second attempt."""
    for run_id in run_ids:
        run = make_run(run_id, **more)
        store.create_run(run)
        a, b = run.tasks.values()
        run = save(store, run, succeeded(a, ["a"]), succeeded(failed(b).retry(), ["b"]))
        finish(store, run)


def keep_in_cache(store: SqliteStateStore) -> None:
    """Keep a run in which ``a`` has made an entry of the cache, and ``b`` was found there."""
    run = make_run("cached")
    store.create_run(run)
    a, b = run.tasks.values()
    found = b.stand_in(4.0, "b", Cached("other", "earlier"))
    save(store, run, succeeded(a._replace(cache=Cached("key")), "a"), found)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE cached SET source = 'another' WHERE place = 1",
        "UPDATE cached SET finished_at = 99.0 WHERE place = 0",
        "UPDATE cached SET checksum = 5 WHERE place = 0",
        "UPDATE cached SET place = 7 WHERE place = 0",
        "DELETE FROM tasks WHERE place = 0 AND run = 1",
    ],
)
def test_damage_in_the_cache_is_an_error_of_its_run(
    store: SqliteStateStore, path: Path, harm: str
) -> None:
    keep_in_cache(store)
    keep(store, "other")
    before = store.find_cached("key", 0.0)
    assert before is not None
    execute(path, harm)
    with pytest.raises(DamagedRecordError, match="run 'cached'"):
        store.load_run("cached", results=False)
    assert store.load_run("other", results=False).status == "SUCCESS"
    try:
        assert store.find_cached("key", 0.0) in (before, None)
        assert len(store.list_cached()) < 2
    except DamagedRecordError as error:
        assert (error.run_id, error.task_name) == ("cached", "a")


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE runs SET dag_name = 'other' WHERE run_id = 'cached'",
        "UPDATE runs SET run_id = 'other' WHERE run_id = 'cached'",
        "UPDATE tasks SET name = 'other' WHERE place = 0",
        "UPDATE tasks SET data = NULL WHERE place = 0",
        "UPDATE tasks SET data = x'00' WHERE place = 0",
    ],
)
def test_entry_of_a_damaged_run_is_not_taken(
    store: SqliteStateStore, path: Path, harm: str
) -> None:
    keep_in_cache(store)
    execute(path, harm)
    with pytest.raises(DamagedRecordError):
        store.find_cached("key", 0.0)
    if "data" not in harm:
        with pytest.raises(DamagedRecordError):
            store.list_cached()


def execute(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


def forge_run(path: Path, run_id: str, **values: object) -> None:
    """Change a run's row, and its checksum along with it."""
    with closing(sqlite3.connect(path)) as database:
        for column, value in values.items():
            database.execute(f"UPDATE runs SET {column} = ? WHERE run_id = ?", (value, run_id))
        (row,) = database.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,))
        told = run_checksum(row)
        database.execute("UPDATE runs SET checksum = ? WHERE run_id = ?", (told, run_id))
        database.commit()


def forge_task(path: Path, run_id: str, name: str, **values: object) -> None:
    """Change a task's row, and its checksum along with it."""
    with closing(sqlite3.connect(path)) as database:
        (seq,) = database.execute("SELECT seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        found = "FROM tasks WHERE run = ? AND name = ?"
        (place,) = database.execute(f"SELECT place {found}", (seq, name)).fetchone()
        where = "WHERE run = ? AND place = ?"
        for column, value in values.items():
            database.execute(f"UPDATE tasks SET {column} = ? {where}", (value, seq, place))
        row = database.execute(f"SELECT {TASK_COLUMNS} FROM tasks {where}", (seq, place)).fetchone()
        forged = task_checksum(seq, place, row)
        database.execute(f"UPDATE tasks SET checksum = ? {where}", (forged, seq, place))
        database.commit()


def forge_result(path: Path, run_id: str, place: int, data: bytes) -> None:
    """Put other bytes in the place of a result: in its task's row, or beside it if they are long."""
    where = "run = (SELECT seq FROM runs WHERE run_id = ?) AND place = ?"
    stored = (data, zlib.crc32(data), run_id, place)
    if len(data) <= 500:
        execute(path, f"UPDATE tasks SET data = ?, data_checksum = ? WHERE {where}", *stored)
        return
    execute(
        path,
        "INSERT INTO results (run, place, serializer, data, checksum)"
        f" SELECT run, place, serializer, ?, ? FROM tasks WHERE {where}",
        *stored,
    )
    emptied = "serializer = NULL, data = NULL, data_checksum = NULL"
    execute(path, f"UPDATE tasks SET {emptied} WHERE {where}", run_id, place)


# -- hostile results --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (DEEP.encode(), "nested more deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more deeply"),
        (b"9" * 1_000_000, "ValueError"),
        (b'{"$flowrun":["int","' + b"z" * 100 + b'"]}', "ValueError"),
        (b'{"$flowrun":["Decimal","1e999999999999999999"]}', "cannot be read"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b'"' + b"x" * 2_000_000 + b'"', "more than the 1000000"),
        (b"", "JSONDecodeError"),
    ],
)
def test_hostile_result_is_an_error_that_names_run_and_task(
    path: Path, store: SqliteStateStore, data: bytes, why: str
) -> None:
    keep(store, "r1", "r2")
    forge_result(path, "r1", 1, data)
    with closing(SqliteStateStore(path, JsonSerializer(max_bytes=1_000_000))) as reader:
        for read in (
            lambda: reader.load_run("r1", results=True),
            lambda: reader.load_results("r1", ["a", "b"]),
        ):
            with pytest.raises(ResultNotReadableError, match="task 'b' in run 'r1'") as caught:
                read()
            assert why in str(caught.value)
            assert len(str(caught.value)) < 2000
        # A report that does not ask for it never sees it; nor do other results.
        assert reader.load_run("r1", results=False).tasks["b"].result is NoResult.STORED
        assert reader.load_results("r1", ["a"]) == {"a": ["a"]}
        assert reader.load_run("r2", results=True).tasks["b"].result == ["b"]


class Fragile:
    """A serializer of somebody else's, which raises what it likes."""

    name = "json"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def serialize(self, obj: object) -> bytes:
        return b"x"

    def deserialize(self, data: bytes) -> object:
        raise self.error


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), KeyError("x")])
def test_whatever_a_serializer_raises_names_run_and_task(
    path: Path, store: SqliteStateStore, error: Exception
) -> None:
    keep(store, "r1")
    with (
        closing(SqliteStateStore(path, Fragile(error))) as reader,
        pytest.raises(
            ResultNotReadableError, match="task 'a' in run 'r1' cannot be read"
        ) as caught,
    ):
        reader.load_run("r1", results=True)
    assert caught.value.__cause__ is error


# -- rows whose checksum is right, but which flowrun cannot have written ----------------------


@pytest.mark.parametrize(
    "values",
    [
        {"metadata": DEEP},
        {"metadata": "9" * 10_000},
        {"metadata": "5"},
        {"targets": "{"},
        {"targets": "7"},
        {"task_counts": DEEP},
        {"task_counts": '{"WRONG": 2}'},
        {"task_counts": '{"SUCCESS": "x"}'},
        {"task_counts": "[]"},
    ],
)
def test_forged_run_is_an_error_that_names_it(
    path: Path, store: SqliteStateStore, values: dict[str, Any]
) -> None:
    keep(store, "r1", "r2", "r3")
    forge_run(path, "r2", **values)
    with pytest.raises(DamagedRecordError, match="run 'r2': its values make no sense"):
        store.load_run("r2", results=False)
    with pytest.raises(DamagedRecordError, match="run 'r2'") as caught:
        store.list_runs(RunQuery())
    assert [run.run_id for run in caught.value.others] == ["r3", "r1"]


@pytest.mark.parametrize(
    "values",
    [
        {"deps": DEEP},
        {"deps": "1"},
        {"status": "WRONG"},
        {"reason": "WRONG"},
        {"deps": "[[]]", "status": "wrong"},
        {"result_state": "WRONG"},
    ],
)
def test_forged_task_is_an_error_that_names_it(
    path: Path, store: SqliteStateStore, values: dict[str, Any]
) -> None:
    keep(store, "r1", "r2")
    forge_task(path, "r1", "b", **values)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b': its values make no sense"):
        store.load_run("r1", results=True)
    assert store.load_run("r2", results=True).status == "SUCCESS"


def test_tasks_that_are_not_those_of_the_end_are_damage(
    path: Path, store: SqliteStateStore
) -> None:
    keep(store, "r1")
    forge_task(path, "r1", "b", status="FAILED", error="boom", reason="ERROR")
    with pytest.raises(DamagedRecordError, match="run 'r1': .* older, or newer, than its end"):
        store.load_run("r1", results=False)


@pytest.mark.parametrize("plan", ["[5]", "{", "[[1, 2]]", '[["b", []], ["a", []]]', '[["a", []]]'])
def test_forged_plan_is_an_error_that_names_the_run(
    path: Path, store: SqliteStateStore, plan: str
) -> None:
    run = make_run()
    store.create_run(run)
    save(store, run, running(run.tasks["a"]))
    assert store.load_run("r1", results=True).tasks["b"].deps == ("a",)
    execute(path, "UPDATE plans SET tasks = ?, checksum = ?", plan, checksum((plan,)))
    with pytest.raises(DamagedRecordError, match="run 'r1'"):
        store.load_run("r1", results=False)


WRONG_TASK = (
    *(None, b"[]", 5, "1", "2.0", b"", [], 1.5, 7, "x", "[]", 0),
    *("1", b"key", 3.0, "2.0", b"[]", "x", None),
)


def test_row_with_values_of_other_types_does_not_match_its_checksum() -> None:
    row = ("a", "[]", "RUNNING", 1, 2.0, 2.0, None, None, None, 0, 0, "absent")
    row = (*row, 1, "key", 3, 2.0, '[["api", 1.0]]', None, "had failed")
    stored = task_checksum(1, 0, row)
    check_task_row(row, stored, 1, 0, "r1")
    for place, value in enumerate(WRONG_TASK):
        damaged = (*row[:place], value, *row[place + 1 :])
        with pytest.raises(DamagedRecordError, match="does not match its checksum"):
            check_task_row(damaged, stored, 1, 0, "r1")
    for run, place in ((2, 0), (1, 1)):
        with pytest.raises(DamagedRecordError, match="run 'r1', task 'a'"):
            check_task_row(row, stored, run, place, "r1")


def test_run_with_values_of_other_types_makes_no_sense() -> None:
    row = ("r1", "d", 1.0, None, "RUNNING", None, "{}", None, None, 5, "{}", *[None] * 4)
    assert run_of_row(row, {}, alive=True) == RunRecord("r1", "d", 1.0, {})
    wrong = (5, b"d", "1.0", "2.0", 5, b"x", None, 5, b"[]", "5", None, 5, b"{}", 5, "[1]")
    for place, value in enumerate(wrong):
        damaged = (*row[:place], value, *row[place + 1 :])
        with pytest.raises(DamagedRecordError, match="its values make no sense"):
            run_of_row(damaged, {}, alive=True)


async def test_row_that_went_missing_during_a_run_is_there_at_its_end(
    path: Path, store: SqliteStateStore, make_engine: MakeEngine
) -> None:
    engine = make_engine(state_store=store)
    started = [asyncio.Event(), asyncio.Event()]
    go = asyncio.Event()

    for number in (0, 1):

        @engine.task(dag=f"d{number}", name="a")
        async def a(number: int = number) -> None:
            started[number].set()
            await go.wait()

    runs = [asyncio.create_task(engine.run_once(f"d{number}")) for number in (0, 1)]
    for event in started:
        await event.wait()
    execute(path, "DELETE FROM tasks WHERE run = (SELECT seq FROM runs WHERE dag_name = 'd0')")
    go.set()
    for run_id in await asyncio.gather(*runs):
        assert engine.get_run_report(run_id)["status"] == "SUCCESS"


# -- one damaged row among many ---------------------------------------------------------------


def damage(path: Path, run_id: str) -> None:
    execute(path, "UPDATE runs SET dag_name = 'x' || dag_name WHERE run_id = ?", run_id)


def test_list_tells_of_the_damaged_and_has_the_others(path: Path, store: SqliteStateStore) -> None:
    keep(store, *(f"r{number}" for number in range(6)))
    damage(path, "r3")
    damage(path, "r1")
    with pytest.raises(DamagedRecordError, match="run 'r3'") as caught:
        store.list_runs(RunQuery())
    error = pickle.loads(pickle.dumps(caught.value))
    assert [run.run_id for run in error.others] == ["r5", "r4", "r2", "r0"]
    with pytest.raises(DamagedRecordError, match="run 'r3'") as caught:
        store.list_runs(RunQuery(status=RunStatus.SUCCESS, limit=3))
    assert [run.run_id for run in caught.value.others] == ["r5", "r4", "r2"]
    # Pages that hold no damaged one are as ever, also those after one.
    assert [run.run_id for run in store.list_runs(RunQuery(limit=2))] == ["r5", "r4"]
    assert [run.run_id for run in store.list_runs(RunQuery(before="r3", limit=1))] == ["r2"]
    assert [run.run_id for run in store.list_runs(RunQuery(before="r1"))] == ["r0"]
    with pytest.raises(DamagedRecordError, match="run 'r3'"):
        store.load_run("r3", results=False)
    assert store.load_run("r2", results=True).status == "SUCCESS"


@pytest.mark.parametrize("column", ["dag_name", "error", "metadata"])
def test_bytes_that_are_no_text_are_damage_like_any_other(
    path: Path, store: SqliteStateStore, column: str
) -> None:
    keep(store, "r1", "r2")
    execute(path, f"UPDATE runs SET {column} = CAST(x'ff41' AS TEXT) WHERE run_id = 'r1'")
    with pytest.raises(DamagedRecordError, match="run 'r1'") as caught:
        store.list_runs(RunQuery())
    assert [run.run_id for run in caught.value.others] == ["r2"]


def test_terminal_shows_the_others_and_tells_of_the_damage(
    path: Path, store: SqliteStateStore, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(store, "r1", "r2")
    damage(path, "r1")
    assert main(["runs", str(path)]) != 0
    out, err = capsys.readouterr()
    assert "r2" in out
    assert "damaged record of run 'r1'" in err
    damage(path, "r2")
    assert main(["runs", str(path)]) != 0
    assert "no runs" not in capsys.readouterr().out


def test_prune_leaves_the_damaged_alone(
    path: Path, store: SqliteStateStore, caplog: pytest.LogCaptureFixture
) -> None:
    keep(store, *(f"r{number}" for number in range(5)))
    execute(path, "UPDATE runs SET created_at = 0.5 WHERE run_id = 'r4'")
    with caplog.at_level(logging.WARNING, "flowrun.state"):
        assert store.prune_runs(keep_last=None, created_before=0.9) == 0
    assert "not deleted: damaged record of run 'r4'" in caplog.text
    assert store.prune_runs(keep_last=1, created_before=None) == 4
    with pytest.raises(DamagedRecordError) as caught:
        store.list_runs(RunQuery())
    assert (caught.value.run_id, caught.value.others) == ("r4", ())


def leave_behind(path: Path, *run_ids: str) -> None:
    with closing(SqliteStateStore(path, synchronous="NORMAL")) as dead:
        for run_id in run_ids:
            run = make_run(run_id)
            dead.create_run(run)
            save(dead, run, running(run.tasks["a"]))


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE runs SET dag_name = 'x' WHERE run_id = 'r2'",
        "UPDATE tasks SET attempt = 7 WHERE run = 2 AND place = 0",
        "UPDATE tasks SET place = 5 WHERE run = 2 AND place = 0",
        "UPDATE tasks SET place = 1 WHERE run = 2 AND place = 0",
        "UPDATE plans SET tasks = replace(tasks, 'b', 'c') WHERE run = 2",
        "UPDATE plans SET tasks = '[[]]' WHERE run = 2",
        "DELETE FROM plans WHERE run = 2",
        "UPDATE tasks SET status = CAST(x'ff' AS TEXT) WHERE run = 2 AND place = 0",
    ],
)
def test_damaged_run_does_not_keep_recover_from_the_others(  # D3 D7
    path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    leave_behind(path, "r1", "r2", "r3")
    execute(path, harm)
    with (
        caplog.at_level(logging.WARNING, "flowrun.state"),
        closing(SqliteStateStore(path, recover=True)) as store,
    ):
        assert "not recovered: damaged record of run 'r2'" in caplog.text
        for run_id in ("r1", "r3"):
            assert store.load_run(run_id, results=True).tasks["a"].reason == "OWNER_DIED"
        with pytest.raises(DamagedRecordError, match="run 'r2'"):
            store.load_run("r2", results=False)


async def test_damaged_run_is_not_resumed_and_the_others_are(
    path: Path, store: SqliteStateStore, make_engine: MakeEngine
) -> None:
    leave_behind(path, "r1", "r2")
    execute(path, "UPDATE tasks SET attempt = 7 WHERE run = 1 AND place = 0")
    engine = make_engine(state_store=store)
    ran: list[str] = []
    engine.task(name="a", dag="d")(lambda: ran.append("a"))
    engine.task(name="b", dag="d", deps=["a"])(lambda: ran.append("b"))
    for ask in (engine.plan_resume, engine.get_run_report):
        with pytest.raises(DamagedRecordError, match="run 'r1', task 'a'"):
            ask("r1")
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'a'"):
        await engine.resume("r1")
    assert ran == []
    await engine.resume("r2")
    assert ran == ["a", "b"]


@pytest.mark.parametrize("size", [1, 1000])
def test_result_that_went_missing_is_not_carried_over(
    path: Path, store: SqliteStateStore, size: int
) -> None:
    keep(store, "r1")
    forge_result(path, "r1", 1, b"[%s]" % (b"1" * size))
    old = store.load_run("r1", results=False)
    execute(path, "DELETE FROM results WHERE place = 1")
    execute(path, "UPDATE tasks SET data = NULL WHERE place = 1")
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b': its result is missing"):
        store.load_run("r1", results=True)
    heir = RunRecord("r2", "d", 5.0, old.tasks, resumed_from="r1")
    with pytest.raises(DamagedRecordError, match="run 'r1': results of it .* are missing"):
        store.create_run(heir)
    with pytest.raises(UnknownRunError):
        store.load_run("r2", results=False)


def test_row_that_went_missing_is_written_anew_or_the_batch_is_refused(
    path: Path, store: SqliteStateStore
) -> None:  # S1
    run = make_run()
    store.create_run(run)
    run = save(store, run, running(run.tasks["a"]))
    execute(path, "DELETE FROM tasks")
    run = save(store, run, run.tasks["a"].succeed(3.0, 1))
    assert store.load_run("r1", results=True).tasks["a"].result == 1
    other = make_run("r2")
    store.create_run(other)
    # Here the record says that the store has the result: it must not say so of nothing.
    execute(path, "DELETE FROM tasks")
    kept = run.tasks["a"]._replace(result=NoResult.STORED)
    batch = [Change(other, running(other.tasks["a"])), Change(other, None), Change(run, kept)]
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'a': its row is missing"):
        store.save(batch)
    assert store.load_run("r2", results=False).tasks["a"].status == "PENDING"
    execute(path, "DROP TABLE tasks")
    with pytest.raises(StoreError, match="no such table"):
        store.save([Change(run, run.tasks["a"])])


def test_text_that_cannot_be_decoded_is_damage(tmp_path: Path) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        file = store._file
        with pytest.raises(StoreFileError, match="it is damaged .*can't decode"), file.translated():
            b"\xff".decode()
