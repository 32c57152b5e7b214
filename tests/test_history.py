"""A file with many runs in it, and with damaged ones: lists, reports, recovery, pruning."""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flowrun import (
    Change,
    RunQuery,
    RunRecord,
    RunStatus,
    SqliteStateStore,
    TaskRecord,
    build_default_engine,
)
from flowrun.errors import DamagedRecordError
from flowrun.state.records import Reason
from flowrun.state.rows import RUN_COLUMNS, TASK_COLUMNS, checksum, run_row, task_row
from flowrun.state.sqlite_file import SqliteFile

MANY = 100_000
DAGS = 10


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file with 100,000 finished runs, written directly: one in a thousand has failed."""
    path = tmp_path_factory.mktemp("history") / "runs.db"
    SqliteStateStore(path).close()
    runs: list[tuple[object, ...]] = []
    tasks: list[tuple[object, ...]] = []
    data = json.dumps("made").encode()
    for number in range(1, MANY + 1):
        task = TaskRecord("a")
        task.start(number + 0.1, number + 0.1)
        if number % 1000:
            task.succeed(number + 0.2, "made")
        else:
            task.fail(number + 0.2, "boom", Reason.ERROR)
        run = RunRecord(f"r{number}", f"dag{number % DAGS}", float(number), {"a": task})
        run.finish(number + 0.5)
        row = run_row(run, None)
        runs.append((number, *row, checksum(row)))
        row = task_row(task)
        tasks.append((number, 0, *row, checksum(row)))
    results = [(number, 0, "json", data, zlib.crc32(data)) for number in range(1, MANY + 1)]
    with closing(sqlite3.connect(path)) as database, database:
        for table, columns, rows in (
            ("runs", f"seq, {RUN_COLUMNS}, checksum", runs),
            ("tasks", f"run, place, {TASK_COLUMNS}, checksum", tasks),
            ("results", "run, place, serializer, data, checksum", results),
        ):
            marks = ", ".join("?" * len(rows[0]))
            database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
    return path


@contextmanager
def statements_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note every statement that the library's connections to a file carry out."""
    seen: list[str] = []
    connect = SqliteFile.connect

    def traced(self: SqliteFile, *, readonly: bool, waits: bool = True) -> sqlite3.Connection:
        connection = connect(self, readonly=readonly, waits=waits)
        connection.set_trace_callback(seen.append)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(SqliteFile, "connect", traced)
        yield seen


def scans(path: Path, statements: list[str]) -> list[str]:
    """Return the steps of their plans that look at a whole table, or sort one."""
    with closing(sqlite3.connect(path)) as database:
        plans = [
            str(step[3])
            for statement in statements
            if re.match(r"SELECT|DELETE|UPDATE|WITH", statement)
            for step in database.execute(f"EXPLAIN QUERY PLAN {statement}")
        ]
    assert plans
    return [step for step in plans if re.match(r"SCAN \w+$", step) or "TEMP B-TREE" in step]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (RunQuery(limit=20), range(MANY, MANY - 20, -1)),
        (RunQuery(dag_name="dag3", limit=3), (99_993, 99_983, 99_973)),
        (RunQuery(status=RunStatus.FAILED, limit=3), (100_000, 99_000, 98_000)),
        (RunQuery(status=RunStatus.RUNNING, limit=3), ()),
        (RunQuery(dag_name="dag0", status=RunStatus.FAILED, limit=2), (100_000, 99_000)),
        (RunQuery(dag_name="dag3", status=RunStatus.FAILED, limit=2), ()),
        (RunQuery(before="r50", limit=2), (49, 48)),
        (RunQuery(before=50.0, limit=2), (49, 48)),
        (RunQuery(before="r2500", status=RunStatus.FAILED, limit=9), (2000, 1000)),
        (RunQuery(resumed_from="r7", limit=1), ()),
        (RunQuery(dag_name="none", limit=20), ()),
    ],
)
def test_lists_of_many_runs_take_few_statements_and_use_indexes(
    many: Path, monkeypatch: pytest.MonkeyPatch, query: RunQuery, found: tuple[int, ...]
) -> None:
    with statements_of(many, monkeypatch) as seen, closing(SqliteStateStore(many)) as store:
        seen.clear()
        runs = store.list_runs(query)
        selects = [each for each in seen if each.startswith("SELECT")]
        assert len(selects) <= 2  # where "before" is, and the list
        # All runs in the order of the list, until there are enough: no step to be afraid of.
        whole = [step for step in scans(many, selects) if step != "SCAN runs"]
    assert [run.run_id for run in runs] == [f"r{number}" for number in found]
    assert whole == []


def test_report_of_one_run_among_many_reads_that_one_only(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with statements_of(many, monkeypatch) as seen, closing(SqliteStateStore(many)) as store:
        seen.clear()
        assert store.load_run("r777", results=True).tasks["a"].result == "made"
        assert len([each for each in seen if each.startswith("SELECT")]) <= 4
        assert scans(many, seen) == []


def test_history_is_pruned_and_its_space_given_back(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(many.read_bytes())
    size = path.stat().st_size
    with closing(SqliteStateStore(path)) as store:
        engine = build_default_engine(state_store=store)
        assert engine.prune_runs(keep_last=100) == MANY - 100 * DAGS
        left = store.list_runs(RunQuery())
        assert [run.run_id for run in left] == [f"r{n}" for n in range(MANY, MANY - 1000, -1)]
        engine.close()
    assert path.stat().st_size < size / 20


# -- damage ----------------------------------------------------------------------------------


def finished(store: SqliteStateStore, run_id: str) -> None:
    run = RunRecord(run_id, "d", 1.0, {"a": TaskRecord("a")})
    store.create_run(run)
    run.tasks["a"].start(2.0, 2.0)
    run.tasks["a"].succeed(3.0, run_id)
    run.finish(4.0)
    store.save([Change(run, run.tasks["a"]), Change(run, None)])


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(statement).rowcount == 1


def test_list_says_which_run_is_damaged_and_how_to_go_on(tmp_path: Path) -> None:  # D7
    path = tmp_path / "runs.db"
    with closing(SqliteStateStore(path)) as store:
        for name in ("r1", "r2", "r3"):
            finished(store, name)
        damage(path, "UPDATE runs SET created_at = 7 WHERE run_id = 'r2'")
        with pytest.raises(DamagedRecordError, match=r"run 'r2'.*list_runs\(before='r2'\)") as bad:
            store.list_runs(RunQuery())
        assert (bad.value.run_id, bad.value.task_name) == ("r2", None)
        assert [run.run_id for run in store.list_runs(RunQuery(limit=1))] == ["r3"]
        assert [run.run_id for run in store.list_runs(RunQuery(before="r2"))] == ["r1"]
        assert store.load_run("r3", results=True).tasks["a"].result == "r3"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tasks SET attempt = 7 WHERE run = 1 AND place = 0",
        "UPDATE runs SET metadata = '{}x' WHERE seq = 1",
        "DELETE FROM tasks WHERE run = 1 AND place = 0",
    ],
)
def test_damaged_run_that_was_left_behind_keeps_nobody_from_the_store(  # D3 D7
    tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    path = tmp_path / "runs.db"
    with closing(SqliteStateStore(path)) as store:
        for name in ("r1", "r2"):
            store.create_run(RunRecord(name, "d", 1.0, {"a": TaskRecord("a")}))
    damage(path, statement)
    with closing(SqliteStateStore(path, recover=True)) as store:
        assert store.load_run("r2", results=False).tasks["a"].reason is Reason.OWNER_DIED
        with pytest.raises(DamagedRecordError, match="run 'r1'"):
            store.load_run("r1", results=False)
        finished(store, "r3")
        assert store.prune_runs(keep_last=None, created_before=10.0) == 2
    assert "left behind cannot be ended: damaged record of run 'r1'" in caplog.text


def test_most_of_what_is_listed_is_not_read_for_results(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with statements_of(many, monkeypatch) as seen, closing(SqliteStateStore(many)) as store:
        seen.clear()
        assert len(store.list_runs(RunQuery(limit=1000))) == 1000
        assert not [each for each in seen if "results" in each]
        store.load_run("r777", results=True)
        assert [each for each in seen if "results" in each]
