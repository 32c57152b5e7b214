"""Files of older releases, and the steps that bring them to the present schema (D5)."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flowrun import Engine, RunQuery, RunRecord, SqliteStateStore, TaskRecord
from flowrun.errors import DamagedRecordError, StoreError, StoreFileError
from flowrun.state import NoResult, Reason
from flowrun.state.checksums import checksum, task_checksum_with
from flowrun.state.schema import APPLICATION_ID, STEPS, statements
from flowrun.state.sqlite_file import SqliteFile

from ..conftest import WAIT_S, statuses
from ..data.make_runs import Switch, declare

DATA = Path(__file__).parents[1] / "data"
OLD = range(1, len(STEPS))
OLD_ATTEMPTS = (1, 2, 3)
"""Versions that keep the attempts before the last one in their task's row."""
OLD_RUN = (
    "run_id, dag_name, created_at, finished_at, status, error, metadata, resumed_from, targets,"
    " owner, task_counts"
)
MakeEngine = Callable[..., Engine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def make_old(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript((DATA / f"schema-{version}.sql").read_text(encoding="utf-8"))


def schema_of(path: Path) -> tuple[int, int, set[tuple[str, str, str]]]:
    with closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (vacuum,) = database.execute("PRAGMA auto_vacuum").fetchone()
        rows = database.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    # A dump puts quotes around the names.
    return version, vacuum, {(kind, name, (sql or "").replace('"', "")) for kind, name, sql in rows}


def open_with(path: Path, *more: Any) -> SqliteFile:
    return SqliteFile(
        path,
        synchronous="FULL",
        journal_mode="WAL",
        busy_timeout_s=WAIT_S,
        readonly=False,
        steps=(*STEPS, *more),
    )


def test_there_is_a_file_of_every_older_version() -> None:  # D5
    assert {file.name for file in DATA.glob("schema-*.sql")} == {f"schema-{n}.sql" for n in OLD}


@pytest.mark.parametrize("version", OLD)
def test_older_file_gets_the_schema_of_a_new_one(path: Path, version: int) -> None:  # D5
    make_old(path, version)
    assert schema_of(path)[0] == version
    SqliteStateStore(path).close()
    new = path.with_name("new.db")
    SqliteStateStore(new).close()
    assert schema_of(path) == schema_of(new)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def old_store(path: Path) -> Iterator[Callable[[int], SqliteStateStore]]:
    stores: list[SqliteStateStore] = []

    def make(version: int) -> SqliteStateStore:
        make_old(path, version)
        stores.append(SqliteStateStore(path))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.mark.parametrize("version", OLD)
async def test_runs_of_an_older_file_are_listed_reported_and_resumed(  # D5
    old_store: Callable[[int], SqliteStateStore], make_engine: MakeEngine, version: int
) -> None:
    engine = make_engine(state_store=old_store(version))
    ran: list[str] = []
    broken = Switch()
    broken.on = False
    declare(engine, ran, broken)
    died, part, resumed, failed = engine.list_runs()
    assert [run.status for run in (died, part, resumed, failed)] == [
        "RUNNING",
        "SUCCESS",
        "SUCCESS",
        "FAILED",
    ]
    assert (died.alive, part.targets, resumed.resumed_from) == (False, ("nothing",), failed.run_id)
    report = engine.get_run_report(failed.run_id)
    assert report["metadata"] == {"night": 1, "by": ["cron", None]}
    assert statuses(report) == {
        "rows": "SUCCESS",
        "frame": "SUCCESS",
        "nothing": "SUCCESS",
        "load": "FAILED",
        "tell": "SKIPPED",
    }
    assert report["tasks"]["rows"]["result"] == (1, 2, 3)
    assert report["tasks"]["frame"]["result_state"] == "released"
    assert report["tasks"]["load"]["attempt"] == 2
    assert "the database is away \N{SNOWMAN}" in (report["tasks"]["load"]["error"] or "")
    assert [attempt["attempt"] for attempt in report["tasks"]["load"]["attempts"]] == [1, 2]
    done = engine.get_run_report(resumed.run_id)["tasks"]
    assert done["load"]["result"] == {
        "when": datetime(2026, 3, 1, 3, 12, tzinfo=UTC),
        7: Decimal("1.50"),
    }
    assert done["nothing"]["result"] is None
    # What the dead process had not done is done, and no more.
    new = await engine.resume(died.run_id)
    assert ran == ["second"]
    assert engine.get_run_report(new)["tasks"]["second"]["result"] == "keptkept"
    ended = engine.get_run_report(died.run_id)
    assert ended["tasks"]["second"]["reason"] == "OWNER_DIED"
    await engine.resume(failed.run_id, from_tasks=["load"])
    assert ran == ["second", "frame", "load", "tell"]


@pytest.mark.parametrize("version", OLD)
def test_older_file_is_read_as_it_is(path: Path, version: int) -> None:
    make_old(path, version)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    before = path.read_bytes()
    with closing(SqliteStateStore.open_readonly(path)) as store:
        for status in (None, "FAILED", "RUNNING"):
            for run in store.list_runs(RunQuery(status=status)):  # type: ignore[arg-type]
                assert store.load_run(run.run_id, results=True).run_id == run.run_id
    assert path.read_bytes() == before


def make_old_with_attempts(path: Path, version: int, *earlier: object) -> None:
    """Give the task that failed twice other earlier attempts, with the right checksum."""
    make_old(path, version)
    columns = (
        "name, deps, status, attempt, ready_at, started_at, finished_at, error, reason, abandoned"
    )
    where = "WHERE run = 1 AND place = 3"
    with closing(sqlite3.connect(path)) as database:
        row = database.execute(f"SELECT {columns} FROM tasks {where}").fetchone()
        text = json.dumps(earlier)
        values = (*row, text, "absent")
        told = checksum(values) if version < 3 else task_checksum_with(1, 3, values, text)
        database.execute(f"UPDATE tasks SET earlier = ?, checksum = ? {where}", (text, told))
        database.commit()


def open_or_read(path: Path, readonly: bool) -> SqliteStateStore:
    return SqliteStateStore.open_readonly(path) if readonly else SqliteStateStore(path)


def failed_run_of(store: SqliteStateStore) -> str:
    return store.list_runs()[-1].run_id


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", OLD_ATTEMPTS)
def test_attempts_of_an_older_file_are_all_there(  # D5 A6
    path: Path, version: int, readonly: bool
) -> None:
    told = [[n, None, n + 0.1, n + 0.2, f"error \N{SNOWMAN} {n}", "ERROR", n == 2] for n in (1, 2)]
    make_old_with_attempts(path, version, *told, [3, 3, 4, 5, None, None, False])
    with closing(open_or_read(path, readonly)) as store:
        run_id = failed_run_of(store)
        task = store.load_run(run_id, results=False).tasks["load"]
        assert [tuple(each) for each in task.earlier[:2]] == [
            (*each, None, (), None) for each in told
        ]
        assert task.earlier[2] == (3, 3.0, 4.0, 5.0, None, None, False, None, (), None)
        assert store.load_results(run_id, ["rows", "load"]) == {"rows": (1, 2, 3)}
    if not readonly:
        with closing(sqlite3.connect(path)) as database:
            found = database.execute("SELECT run, place, number, error FROM attempts").fetchall()
        assert [row[:3] for row in found] == [(1, 3, 1), (1, 3, 2), (1, 3, 3)]


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", OLD_ATTEMPTS)
@pytest.mark.parametrize(
    "earlier",
    [
        [1],
        [[1]],
        [["1", None, None, None, "x", "ERROR", False]],
        [[1, None, None, None, "x", "WRONG", False]],
        [[1, "now", None, None, "x", "ERROR", False]],
        [[1, None, None, None, 5, "ERROR", False]],
    ],
)
def test_attempts_that_no_release_wrote_are_damage_of_their_task(  # D5 D7
    path: Path, version: int, earlier: list[Any], readonly: bool
) -> None:
    make_old_with_attempts(path, version, *earlier)
    with closing(open_or_read(path, readonly)) as store:
        failed, resumed = store.list_runs()[-1].run_id, store.list_runs()[-2].run_id
        with pytest.raises(DamagedRecordError, match="task 'load'"):
            store.load_run(failed, results=False)
        assert store.load_run(resumed, results=True).status == "SUCCESS"


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", OLD_ATTEMPTS)
@pytest.mark.parametrize(
    "harm",
    ["attempt = 7", "earlier = '[]'", "earlier = 'x'", "earlier = earlier || ' '", "checksum = 5"],
)
def test_damage_of_an_older_file_stays_damage(  # D5 D7
    path: Path, version: int, harm: str, readonly: bool
) -> None:
    make_old(path, version)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE tasks SET {harm} WHERE run = 1 AND place = 3")
        database.execute("UPDATE tasks SET attempt = 7 WHERE run = 2 AND place = 0")
        database.commit()
    with closing(open_or_read(path, readonly)) as store:
        assert len(store.list_runs()) == 4
        for run, name in ((store.list_runs()[-1], "load"), (store.list_runs()[-2], "rows")):
            with pytest.raises(DamagedRecordError, match=f"task '{name}'"):
                store.load_run(run.run_id, results=False)


def test_run_of_an_older_file_was_started_by_nobody(path: Path) -> None:
    make_old(path, 3)
    with closing(SqliteStateStore.open_readonly(path)) as store:
        assert {run.started_by for run in store.list_runs()} == {None}
    with closing(SqliteStateStore(path)) as store:
        store.create_run(RunRecord("new", "d", 1.0, {}, started_by="old"))
        assert [run.started_by for run in store.list_runs()] == ["old", *[None] * 4]


def test_run_of_an_older_file_has_no_params(path: Path) -> None:  # D5
    make_old(path, 4)
    with closing(sqlite3.connect(path)) as database:
        (row,) = database.execute(f"SELECT {OLD_RUN} FROM runs WHERE seq = 1")
        told = checksum((*row, "other"))
        database.execute(
            "UPDATE runs SET started_by = 'other', checksum = ? WHERE seq = 1", (told,)
        )
        database.commit()
    for open_it in (SqliteStateStore.open_readonly, SqliteStateStore):
        with closing(open_it(path)) as store:
            assert {len(run.params) for run in store.list_runs()} == {0}
            oldest = store.load_run(failed_run_of(store), results=False)
            assert (oldest.params, oldest.overridden, oldest.started_by) == ({}, {}, "other")
    with closing(SqliteStateStore(path)) as store:
        new = RunRecord("new", "d", 1.0, {}, params={"day": "2013"}, overridden={"a": "value"})
        store.create_run(new)
        assert store.load_run("new", results=False) == new
        assert store.list_runs()[0].params == {"day": "2013"}


@pytest.mark.parametrize("version", OLD)
def test_older_file_has_nothing_in_the_cache(path: Path, version: int) -> None:  # D5
    make_old(path, version)
    for open_it in (SqliteStateStore.open_readonly, SqliteStateStore):
        with closing(open_it(path)) as store:
            assert (store.list_cached(), store.find_cached("key", 0.0)) == ([], None)
            tasks = store.load_run(failed_run_of(store), results=False).tasks
            assert {task.cache for task in tasks.values()} == {None}


def test_run_of_an_older_file_does_not_tell_where_its_time_went(path: Path) -> None:  # D5 V3
    make_old(path, 6)
    for open_it in (SqliteStateStore.open_readonly, SqliteStateStore):
        with closing(open_it(path)) as store:
            run = store.load_run(failed_run_of(store), results=False)
            assert (run.max_parallel, run.versions) == (None, {})
            load = run.tasks["load"]
            assert [each[-3:] for each in load.attempts] == [(None, (), None)] * 2
            assert (load.encoded_at, load.why_run) == (None, None)
    with closing(SqliteStateStore(path)) as store:
        task = TaskRecord("a", why_run="had failed").start(3.0, 1.0, (("api", 1.5),))
        task = task.fail(4.0, "boom", Reason.ERROR).retry().start(6.0, 5.0)
        task = task.succeed(7.0, NoResult.RELEASED, encoded_at=8.0)
        new = RunRecord("new", "d", 1.0, {"a": task}, max_parallel=4, versions={"Python": "3.11"})
        store.create_run(new)
        assert store.load_run("new", results=False) == new


def test_step_that_fails_in_the_middle_leaves_the_file_as_it_was(path: Path) -> None:  # D5
    make_old(path, 1)
    before = schema_of(path)
    bad = statements(
        "CREATE TABLE more (x); UPDATE runs SET metadata = '[]'; CREATE TABLE runs (x)"
    )
    with pytest.raises(StoreError, match="table runs already exists"):
        open_with(path, bad)
    assert schema_of(path) == before
    with closing(SqliteStateStore(path)) as store:
        assert store.list_runs(RunQuery())[-1].metadata == {"night": 1, "by": ["cron", None]}


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILLED = """
    import os, signal, sys
    from flowrun.state.schema import STEPS, statements
    from flowrun.state.sqlite_file import SqliteFile
    def die(connection):
        # More than fits into the cache, so that some of it has reached the file.
        connection.execute("PRAGMA cache_size = 5")
        connection.execute("CREATE TABLE more (x)")
        connection.executemany("INSERT INTO more VALUES (?)", [("x" * 5000,)] * 200)
        os.kill(os.getpid(), signal.SIGKILL)
    SqliteFile(sys.argv[1], synchronous="FULL", journal_mode="WAL", busy_timeout_s=5.0,
               readonly=False, steps=(*STEPS, die))
"""


@pytest.mark.skipif(os.name == "nt", reason="kills a process as POSIX does")
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_process_killed_in_a_step_leaves_the_file_as_it_was(path: Path, mode: str) -> None:  # D5
    make_old(path, 1)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode = {mode}")
    before = schema_of(path)
    process = run_python(KILLED, path)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGKILL, err
    assert schema_of(path) == before
    with closing(SqliteStateStore(path)) as store:
        assert len(store.list_runs(RunQuery())) == 4
    assert schema_of(path)[0] == len(STEPS)


RACER = """
    import sys
    from flowrun.state.schema import STEPS, statements
    from flowrun.state.sqlite_file import SqliteFile
    sys.stdin.readline()
    # It could be taken twice, and would then show it.
    step = statements("CREATE TABLE IF NOT EXISTS taken (x); INSERT INTO taken VALUES (1)")
    SqliteFile(sys.argv[1], synchronous="FULL", journal_mode="WAL", busy_timeout_s=30.0,
               readonly=False, steps=(*STEPS, step))
"""


@pytest.mark.parametrize("version", [0, 1])
def test_processes_that_open_a_file_at_once_take_each_step_once(  # D5
    path: Path, version: int
) -> None:
    if version:
        make_old(path, version)
    racers = [run_python(RACER, path) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        _, err = racer.communicate(timeout=WAIT_S)
        assert racer.returncode == 0, err
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM taken").fetchone() == (1,)
        assert database.execute("PRAGMA user_version").fetchone() == (len(STEPS) + 1,)


def test_file_with_one_step_more_is_a_newer_one(path: Path) -> None:  # D4
    open_with(path, statements("CREATE TABLE more (x)"))
    before = path.read_bytes()
    newer = f"a newer flowrun wrote it .schema {len(STEPS) + 1}, .* knows {len(STEPS)}"
    for open_it in (SqliteStateStore, SqliteStateStore.open_readonly):
        with pytest.raises(StoreFileError, match=newer):
            open_it(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, -1])
def test_version_that_no_release_wrote_is_refused(path: Path, version: int) -> None:
    make_old(path, 1)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreFileError, match=f"there is no schema {version}"):
        SqliteStateStore(path)
