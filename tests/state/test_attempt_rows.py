"""Attempts are rows of their own: n of them cost n rows, and each is checked (D7, D10)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun.context import AttemptNotes, LogLine, Progress
from flowrun.errors import DamagedRecordError, ResultNotStorableError, StoreError
from flowrun.state import Change, Reason, RunRecord, SqliteStateStore, TaskRecord
from flowrun.state.checksums import attempt_checksum, checksum
from flowrun.state.rows import ATTEMPT_COLUMNS

from .runs import failed, finish, make_run, running, save, succeeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStateStore]:
    with closing(SqliteStateStore(path, synchronous="NORMAL")) as opened:
        yield opened


def execute(path: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        found = database.execute(statement, values).fetchall()
        database.commit()
    return found


def written_for(path: Path, attempts: int) -> int:
    """Return how many bytes the log of the database grows by so many failed attempts."""
    error = "Traceback: a text of the length that one has\n" * 10
    with (
        closing(SqliteStateStore(path, synchronous="NORMAL")) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
    ):
        reader.execute("BEGIN")  # as long as it reads, the log is not begun anew
        reader.execute("SELECT count(*) FROM runs").fetchall()
        run = RunRecord("r1", "d", 1.0, {"a": TaskRecord("a")})
        store.create_run(run)
        task = run.tasks["a"]
        for _ in range(attempts):
            task = running(task)
            save(store, run, task)
            task = task.fail(3.0, error, Reason.ERROR).retry()
            save(store, run, task)
        assert store.load_run("r1", results=True).tasks["a"] == task
        return path.with_name(f"{path.name}-wal").stat().st_size


def test_a_thousand_attempts_write_ten_times_what_a_hundred_write(tmp_path: Path) -> None:  # D10
    hundred = written_for(tmp_path / "hundred.db", 100)
    thousand = written_for(tmp_path / "thousand.db", 1000)
    # A commit writes whole pages: those of the rows and, as the tree grows, of what is above them.
    assert thousand < 15 * hundred
    assert thousand < 40_000_000


def test_attempt_is_written_once(path: Path, store: SqliteStateStore) -> None:  # D10
    run = make_run()
    store.create_run(run)
    task = failed(run.tasks["a"], "first").retry()
    save(store, run, task)
    execute(path, "UPDATE attempts SET error = 'a mark'")
    task = failed(task, "second").retry()
    save(store, run, task, running(task))
    assert execute(path, "SELECT number, error FROM attempts") == [(1, "a mark"), (2, "second")]


def test_attempts_of_a_batch_that_was_refused_are_written_with_the_next(
    path: Path, store: SqliteStateStore
) -> None:
    run = make_run()
    store.create_run(run)
    task = failed(run.tasks["a"], "first").retry()
    with pytest.raises(ResultNotStorableError):
        store.save([Change(run, task), Change(run, succeeded(run.tasks["b"], object()))])
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE results")
        other.commit()
    with pytest.raises(StoreError, match="no such table"):
        store.save([Change(run, task), Change(run, succeeded(run.tasks["b"], "x" * 1000))])
    assert execute(path, "SELECT * FROM attempts") == []
    save(store, run, task)
    assert store.load_run("r1", results=False).tasks["a"] == task


def test_attempts_go_with_their_run(path: Path, store: SqliteStateStore) -> None:
    run = make_run()
    store.create_run(run)
    run = save(store, run, succeeded(failed(run.tasks["a"]).retry()))
    finish(store, run)
    assert execute(path, "SELECT run, place, number FROM attempts") == [(1, 0, 1)]
    assert store.prune_runs(keep_last=0, created_before=None) == 1
    assert execute(path, "SELECT * FROM attempts") == []


def test_attempts_of_a_carried_over_task_are_rows_of_the_new_run(
    path: Path, store: SqliteStateStore
) -> None:
    old = make_run()
    store.create_run(old)
    old = save(store, old, succeeded(failed(old.tasks["a"]).retry(), "x" * 1000))
    finish(store, old, fail=True)
    kept = store.load_run("r1", results=False).tasks["a"]
    heir = RunRecord("r2", "d", 5.0, {"z": TaskRecord("z"), "a": kept}, resumed_from="r1")
    store.create_run(heir)
    assert execute(path, "SELECT run, place, number FROM attempts") == [(1, 0, 1), (2, 1, 1)]
    store.prune_runs(keep_last=0, created_before=None)
    loaded = store.load_run("r2", results=True).tasks["a"]
    assert loaded == kept._replace(result="x" * 1000)


def keep(store: SqliteStateStore) -> None:
    """Keep two runs of two tasks, of which each has failed twice before it succeeded."""
    for run_id in ("r1", "r2"):
        run = make_run(run_id)
        store.create_run(run)
        done = [
            succeeded(failed(failed(task).retry()).retry(), name)
            for name, task in run.tasks.items()
        ]
        save(store, run, *done)


OF_R1_B = "run = 1 AND place = 1"
HARM = [
    f"DELETE FROM attempts WHERE {OF_R1_B}",
    f"DELETE FROM attempts WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET number = 9 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET error = 'other' WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET reason = 'TIMEOUT' WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET reason = NULL WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET abandoned = 1 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET ready_at = 1.5 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET started_at = NULL WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET finished_at = 9 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET granted_at = 9 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET limit_waits = '[]' WHERE {OF_R1_B} AND number = 2",
    f"UPDATE attempts SET checksum = 9 WHERE {OF_R1_B} AND number = 2",
    f"UPDATE tasks SET granted_at = NULL WHERE {OF_R1_B}",
    f"UPDATE tasks SET limit_waits = '[]' WHERE {OF_R1_B}",
    f"UPDATE tasks SET encoded_at = 9 WHERE {OF_R1_B}",
    f"UPDATE tasks SET why_run = 'x' WHERE {OF_R1_B}",
    f"UPDATE tasks SET earlier_attempts = 1 WHERE {OF_R1_B}",
    f"UPDATE tasks SET earlier_attempts = -1 WHERE {OF_R1_B}",
]


@pytest.mark.parametrize("harm", HARM)
def test_damaged_attempt_names_run_and_task_and_the_others_stay_readable(  # D7
    path: Path, store: SqliteStateStore, harm: str
) -> None:
    keep(store)
    execute(path, harm)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b'"):
        store.load_run("r1", results=False)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b'"):
        store.load_results("r1", ["b"])
    assert store.load_results("r1", ["a"]) == {"a": "a"}
    assert len(store.load_run("r2", results=True).tasks["b"].attempts) == 3


@pytest.mark.parametrize("place", [5, -1])
def test_attempt_that_belongs_to_no_task_is_damage(
    path: Path, store: SqliteStateStore, place: int
) -> None:  # D7
    run = make_run()
    store.create_run(run)
    row = (1, 1.0, 1.0, 2.0, "boom", "ERROR", 0, None, None)
    values = (1, place, *row, attempt_checksum(1, place, row))
    columns = f"run, place, {ATTEMPT_COLUMNS}, checksum"
    execute(path, f"INSERT INTO attempts ({columns}) VALUES ({', '.join('?' * 12)})", *values)
    with pytest.raises(DamagedRecordError, match="run 'r1': it has attempts that are not of any"):
        store.load_run("r1", results=False)


def test_forged_attempt_is_an_error_that_names_run_and_task(
    path: Path, store: SqliteStateStore
) -> None:  # D7
    keep(store)
    (row,) = execute(path, f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE {OF_R1_B} AND number = 2")
    forged = (*row[:5], "WRONG", *row[6:])
    values = ("WRONG", attempt_checksum(1, 1, forged))
    where = f"WHERE {OF_R1_B} AND number = 2"
    execute(path, f"UPDATE attempts SET reason = ?, checksum = ? {where}", *values)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b': its values make no sense"):
        store.load_run("r1", results=False)


NOTES = AttemptNotes(Progress(1, 2.5, "rows"), (LogLine(1.5, "INFO", "shop", "one"),), 3)


def keep_notes(store: SqliteStateStore) -> TaskRecord:
    """Keep a run of which each attempt of ``a``, the first and the last, has notes."""
    run = make_run()
    store.create_run(run)
    first = running(run.tasks["a"])._replace(notes=NOTES).fail(3.0, "boom", Reason.ERROR)
    second = running(first.retry())._replace(notes=AttemptNotes(Progress(2)))
    save(store, run, second.succeed(4.0, "x"))
    return second.succeed(4.0, "x")


def test_notes_are_rows_that_go_with_their_run(path: Path, store: SqliteStateStore) -> None:
    task = keep_notes(store)
    loaded = store.load_run("r1", results=True)
    assert loaded.tasks["a"] == task
    assert [attempt.notes for attempt in loaded.tasks["a"].attempts] == [
        NOTES,
        AttemptNotes(Progress(2)),
    ]
    assert loaded.tasks["b"].notes is None
    assert execute(path, "SELECT run, place, number FROM notes") == [(1, 0, 1), (1, 0, 2)]
    finish(store, loaded)
    store.prune_runs(keep_last=0, created_before=None)
    assert execute(path, "SELECT * FROM notes") == []


def test_attempts_without_notes_have_no_row_of_them(path: Path, store: SqliteStateStore) -> None:
    keep(store)
    assert execute(path, "SELECT * FROM notes") == []


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE notes SET notes = replace(notes, 'one', 'two') WHERE number = 1",
        "UPDATE notes SET checksum = 9 WHERE number = 2",
        "UPDATE notes SET number = 3 WHERE number = 2",
    ],
)
def test_damaged_notes_name_run_and_task(
    path: Path, store: SqliteStateStore, harm: str
) -> None:  # D7
    keep_notes(store)
    execute(path, harm)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'a': it does not match"):
        store.load_run("r1", results=False)


def test_notes_that_belong_to_no_task_are_damage(path: Path, store: SqliteStateStore) -> None:  # D7
    keep_notes(store)
    execute(path, "UPDATE notes SET place = 7 WHERE number = 2")
    with pytest.raises(DamagedRecordError, match="run 'r1': it has attempts that are not of any"):
        store.load_run("r1", results=False)


@pytest.mark.parametrize(
    ("number", "text"), [(9, "[null, [], 0]"), (1, "[null, [[1]], 0]"), (1, "["), (1, "[" * 10**5)]
)
def test_forged_notes_are_an_error_that_names_run_and_task(
    path: Path, store: SqliteStateStore, number: int, text: str
) -> None:  # D7
    keep_notes(store)
    values = (1, 0, number, text, checksum((1, 0, number, text)))
    execute(path, "INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?, ?)", *values)
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'a': its values make no sense"):
        store.load_run("r1", results=False)
