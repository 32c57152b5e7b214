"""Lists, reports and pruning of a file with 100,000 runs: by an index, in few statements."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowrun import RunQuery, RunRecord, SqliteStateStore, TaskRecord
from flowrun.state import statements
from flowrun.state.checksums import run_checksum
from flowrun.state.rows import run_row, task_row
from flowrun.state.run_records import RunStatus

from ..conftest import WAIT_S
from .runs import failed, running, save, succeeded

MANY = 100_000
DAGS = 10
Traced = tuple[SqliteStateStore, list[str]]


def make_run(number: int) -> RunRecord:
    """Return a finished run: one in a thousand has failed, one in seven has resumed another."""
    new = RunRecord(
        f"r{number}",
        f"dag{number % DAGS}",
        float(number),
        {"a": TaskRecord("a"), "b": TaskRecord("b", ("a",))},
        resumed_from=f"r{number - 1}" if number % 7 == 0 and number else None,
    )
    end = failed if number % 1000 == 0 else succeeded
    tasks = {name: end(task, at=number + 0.2) for name, task in new.tasks.items()}
    return new.finish(number + 0.3, None, tasks)


def fill(path: Path, count: int) -> None:
    """Write runs as the store does, only faster."""
    SqliteStateStore(path).close()
    runs: list[tuple[object, ...]] = []
    tasks: list[tuple[object, ...]] = []
    for number in range(count):
        run = make_run(number)
        row = run_row(run, None)
        runs.append((*row, run_checksum(row)))
        for place, task in enumerate(run.tasks.values()):
            kept = ("json", b"1", 2212294583) if task.status == "SUCCESS" else (None, None, None)
            deps = json.dumps(task.deps)
            tasks.append((*task_row(number + 1, place, task, deps), *kept))
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        for row in runs:
            database.execute(statements.INSERT_RUN, row).fetchall()
        database.executemany(statements.PUT_TASKS[1], tasks)
        database.execute("COMMIT")


@contextmanager
def trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """Open a store that writes down every statement that SQLite is given."""
    said: list[str] = []
    connect = sqlite3.connect

    def connect_and_trace(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(said.append)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_and_trace)
        with closing(SqliteStateStore(path)) as store:
            store.list_runs(RunQuery(limit=1))  # a reader is connected
            said.clear()
            yield store, said


def queries(said: list[str]) -> list[str]:
    return [text for text in said if text.split()[0] in {"SELECT", "WITH", "DELETE", "UPDATE"}]


def plan(path: Path, text: str) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}")]


def filters() -> list[dict[str, Any]]:
    """Return every combination of what a list can be asked for."""
    choices: dict[str, list[Any]] = {
        "dag_name": [None, "dag3"],
        "status": [None, RunStatus.FAILED, RunStatus.SUCCESS, RunStatus.RUNNING],
        "before": [None, "r50007", 50_007.0],
        "resumed_from": [None, "r13"],
    }
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


@pytest.mark.once
@pytest.mark.no_cover
def test_every_list_of_100_000_runs_is_served_by_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    fill(path, MANY)
    with trace(path, monkeypatch) as (store, said):
        for query in filters():
            said.clear()
            found = store.list_runs(RunQuery(**query, limit=20))
            assert [run.run_id for run in found] == expected(query, 20), query
            asked = queries(said)
            # The runs, those that have not ended, and where the run that was named stands.
            most = 1 + (query["status"] is not None) + isinstance(query["before"], str)
            assert len(asked) <= most, asked
            steps = [step for text in asked for step in plan(path, text)]
            for step in steps:
                # Each run that has not ended counts its own tasks.
                assert "TEMP B-TREE" not in step or "GROUP BY" in step, (step, query)
                # Without any filter runs are read from the newest on, as far as is asked for.
                assert (
                    not step.startswith("SCAN runs")
                    or "USING INDEX runs_unfinished" in step
                    or not any(query.values())
                ), (step, query)
            if query["dag_name"] and query["status"]:
                assert (
                    any("runs_by_dag_and_status" in step for step in steps) or query["resumed_from"]
                )


def expected(query: dict[str, Any], limit: int) -> list[str]:
    found = (
        f"r{number}"
        for number in range(MANY - 1, -1, -1)
        if query["dag_name"] in (None, f"dag{number % DAGS}")
        and query["status"] in (None, "SUCCESS" if number % 1000 else "FAILED")
        and (query["before"] is None or number < 50_007)
        and (query["resumed_from"] is None or number == 14)
    )
    return list(itertools.islice(found, limit))


def test_unfinished_runs_cost_no_statement_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    fill(path, 100)
    with closing(SqliteStateStore(path)) as other:
        for number in range(50):
            run = RunRecord(
                f"live{number}", f"dag{number % 2}", 1.0, {n: TaskRecord(n) for n in "abc"}
            )
            other.create_run(run)
            change = running if number % 5 else failed
            save(other, run, change(run.tasks["a"]))
        with trace(path, monkeypatch) as (store, said):
            found = store.list_runs(RunQuery(status=RunStatus.RUNNING))
            assert len(found) == 40
            assert all(run.task_counts == {"RUNNING": 1, "PENDING": 2} for run in found)
            assert len(queries(said)) == 2
            found = store.list_runs(RunQuery("dag0", RunStatus.FAILED))
            assert [run.run_id for run in found] == [
                *(f"live{number}" for number in range(40, -1, -10)),
                "r0",
            ]
            assert found[0].task_counts == {"FAILED": 1, "PENDING": 2}


def test_report_takes_few_statements_whatever_the_number_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    with closing(SqliteStateStore(path)) as other:
        for run_id, size in (("small", 2), ("large", 500)):
            run = RunRecord(run_id, "d", 1.0, {str(n): TaskRecord(str(n)) for n in range(size)})
            other.create_run(run)
            done = [succeeded(failed(task).retry(), [name]) for name, task in run.tasks.items()]
            save(other, run, *done)
    with trace(path, monkeypatch) as (store, said):
        for run_id in ("small", "large"):
            for results in (False, True):
                said.clear()
                run = store.load_run(run_id, results=results)
                asked = queries(said)
                # The run, its attempts, what is kept of their inside, its tasks, what they have to do
                # with the cache, their results.
                assert len(asked) == 5 + results
                for text in asked:
                    steps = plan(path, text)
                    assert not [step for step in steps if "SCAN" in step or "B-TREE" in step], steps
        assert run.tasks["499"].result == ["499"]


@pytest.mark.parametrize(
    ("keep_last", "created_before"), [(None, 500.0), (990, None), (990, 700.0)]
)
def test_what_is_pruned_is_found_by_an_index(
    tmp_path: Path, keep_last: int | None, created_before: float | None
) -> None:
    path = tmp_path / "runs.db"
    fill(path, 10_000)
    text = statements.PRUNABLE_BY_AGE if keep_last is None else statements.PRUNABLE_BY_NUMBER
    values = {"keep": keep_last, "before": created_before}
    with closing(sqlite3.connect(path)) as database:
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {text}", values)]
        found = {row[0] - 1 for row in database.execute(text, values)}
        deleting = [
            row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statements.PRUNE_RUN}", (1,))
        ]
    assert not [step for step in steps if "B-TREE" in step or "SCAN runs" in step], steps
    assert found == (set(range(500)) if keep_last is None else set(range(100)))
    assert deleting == ["SEARCH runs USING INTEGER PRIMARY KEY (rowid=?)"]


def test_prune_gives_the_space_back_and_lets_others_write_meanwhile(tmp_path: Path) -> None:
    # How often others get to write while one file is pruned is a matter of the machine and its
    # load, since SQLite's waiting is a polling; so a longer pruning follows one that was short.
    for count in (5_000, 20_000, 80_000):
        path = tmp_path / f"{count}.db"
        meanwhile = written_while_pruned(path, count)
        if min(meanwhile.values()) > 1:
            break
    assert min(meanwhile.values()) > 1, meanwhile


def written_while_pruned(path: Path, count: int) -> dict[str, int]:
    """Prune a file, and return how often others wrote while a part of it was gone."""
    fill(path, count)
    before = path.stat().st_size
    store = SqliteStateStore(path, synchronous="NORMAL")
    other = SqliteStateStore(path, synchronous="NORMAL", busy_timeout_s=WAIT_S)
    done = threading.Event()
    written: dict[str, int] = {"same": 0, "other": 0}
    meanwhile: dict[str, int] = {"same": 0, "other": 0}

    def write(name: str, through: SqliteStateStore) -> None:
        with closing(sqlite3.connect(path)) as reader:
            while not done.is_set():
                through.create_run(
                    RunRecord(f"{name}{written[name]}", "new", 1e9, {"a": TaskRecord("a")})
                )
                written[name] += 1
                (left,) = reader.execute(
                    "SELECT count(*) FROM runs WHERE dag_name <> 'new'"
                ).fetchone()
                meanwhile[name] += 10 * DAGS < left < count
                done.wait(0.02)

    writers = [
        threading.Thread(target=write, args=("same", store)),
        threading.Thread(target=write, args=("other", other)),
    ]
    for writer in writers:
        writer.start()
    try:
        deleted = store.prune_runs(keep_last=10, created_before=None)
    finally:
        done.set()
        for writer in writers:
            writer.join(WAIT_S)
    assert deleted == count - 10 * DAGS
    left = store.list_runs(RunQuery())
    assert len(left) == 10 * DAGS + sum(written.values())
    other.close()
    assert store.prune_runs(keep_last=10, created_before=None) == 0
    assert path.stat().st_size < before / 3
    assert path.with_name(f"{path.name}-wal").stat().st_size == 0
    store.close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for table in ("tasks", "results"):
            text = f"SELECT count(*) FROM {table} WHERE run NOT IN (SELECT seq FROM runs)"
            assert database.execute(text).fetchone() == (0,)
    return meanwhile


def test_prune_of_a_file_that_cannot_shrink_ends(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    fill(path, 300)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("PRAGMA auto_vacuum = NONE")
        database.execute("VACUUM")
    with closing(SqliteStateStore(path)) as store:
        assert store.prune_runs(keep_last=1, created_before=None) == 300 - DAGS
        assert len(store.list_runs(RunQuery())) == DAGS


def test_prune_does_not_wait_for_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    fill(path, 300)
    with (
        closing(SqliteStateStore(path, synchronous="NORMAL", busy_timeout_s=1e6)) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchone()
        assert store.prune_runs(keep_last=0, created_before=None) == 300
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (300,)
        reader.execute("COMMIT")
        assert store.prune_runs(keep_last=0, created_before=None) == 0
    assert path.stat().st_size < 200_000


def test_runs_before_a_time_are_right_when_the_clock_was_set_back(tmp_path: Path) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db")) as store:
        for number, created_at in enumerate([10.0, 50.0, 20.0, 60.0, 15.0]):
            store.create_run(RunRecord(f"r{number}", "d", created_at, {}))
        for query, expected in (
            (RunQuery(before=30.0), ["r4", "r2", "r0"]),
            (RunQuery(before=30.0, dag_name="d", limit=2), ["r4", "r2"]),
            (RunQuery(before=10.0), []),
            (RunQuery(before=100), ["r4", "r3", "r2", "r1", "r0"]),
        ):
            assert [run.run_id for run in store.list_runs(query)] == expected
