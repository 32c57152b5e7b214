"""Files of older versions of the schema: kept as they were made then, one of each version (D5)."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from flowrun import Engine, SqliteStateStore
from flowrun.errors import StoreBusyError, StoreError, StoreFileError
from flowrun.state import sqlite_file
from flowrun.state.records import Reason

from .conftest import WAIT_S, statuses
from .data.make_runs import declare

MakeEngine = Callable[..., Engine]
DATA = Path(__file__).parent / "data"


@pytest.fixture(params=sorted(DATA.glob("runs-v*.db")), ids=lambda path: str(path.stem))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Copy a file of some version of the schema."""
    copy = tmp_path / "runs.db"
    shutil.copyfile(request.param, copy)
    return copy


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return int(version)


def test_there_is_a_file_of_every_version() -> None:
    versions = [version_of(path) for path in sorted(DATA.glob("runs-v*.db"))]
    assert versions == list(range(1, sqlite_file.SCHEMA_VERSION + 1))
    assert sorted(sqlite_file.MIGRATIONS) == versions[:-1]


def test_all_that_an_older_file_holds_can_be_read(path: Path, make_engine: MakeEngine) -> None:
    with closing(SqliteStateStore(path)) as store:
        engine = make_engine(state_store=store)
        runs = {run.run_id: run for run in engine.list_runs()}
        assert list(runs) == ["dead", "whole", "part", "resumed", "failed"]
        assert [str(run.status) for run in runs.values()] == [
            "RUNNING",
            "SUCCESS",
            "SUCCESS",
            "SUCCESS",
            "FAILED",
        ]
        assert not runs["dead"].alive
        assert (runs["part"].targets, runs["resumed"].resumed_from) == (("clean",), "failed")
        assert runs["resumed"].metadata == {"night": 1}
        report = engine.get_run_report("failed")
        assert report["tasks"]["extract"]["result"] == {
            "rows": [(1, "ü"), (2, None)],
            "seen": {1.5, 2.5},
        }
        load = report["tasks"]["load"]
        assert [attempt["attempt"] for attempt in load["attempts"]] == [1, 2]
        assert "ConnectionError: the target is down" in (load["error"] or "")
        assert report["created_at"] < (load["started_at"] or 0) < (load["finished_at"] or 0)
        assert engine.get_run_report("whole")["tasks"]["load"]["result"] == 2
    assert version_of(path) == sqlite_file.SCHEMA_VERSION


async def test_runs_of_an_older_file_are_ended_and_resumed(
    path: Path, make_engine: MakeEngine
) -> None:
    with closing(SqliteStateStore(path, recover=True)) as store:
        engine = make_engine(state_store=store)
        dead = engine.get_run_report("dead")
        assert statuses(dead) == {"first": "SUCCESS", "die": "SKIPPED"}
        assert dead["tasks"]["die"]["reason"] == Reason.OWNER_DIED
        engine.task(name="first", dag="deadly")(lambda: 0)
        engine.task(name="die", dag="deadly")(lambda first: first + 1)
        report = engine.get_run_report(await asyncio.wait_for(engine.resume("dead"), WAIT_S))
        assert report["tasks"]["die"]["result"] == 2  # it was given what was kept
        declare(engine, failing=False)
        await asyncio.wait_for(engine.resume("failed", from_tasks=["load"]), WAIT_S)


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend that there is one more version of the schema, with one more column."""
    now = sqlite_file.SCHEMA_VERSION
    calls: list[int] = []

    def migrate(connection: sqlite3.Connection) -> None:
        calls.append(now)
        connection.execute("ALTER TABLE runs ADD COLUMN note TEXT")
        connection.execute("UPDATE runs SET note = dag_name")

    monkeypatch.setitem(sqlite_file.MIGRATIONS, now, migrate)
    monkeypatch.setattr(sqlite_file, "SCHEMA_VERSION", now + 1)
    return calls


def test_older_file_is_migrated_once(path: Path, next_version: list[int]) -> None:
    with closing(SqliteStateStore(path)) as first, closing(SqliteStateStore(path)) as second:
        assert first.load_run("whole", results=True).tasks["load"].result == 2
        assert second.load_run("part", results=False).dag_name == "nightly"
    assert len(next_version) == 1
    assert version_of(path) == sqlite_file.SCHEMA_VERSION
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT note FROM runs WHERE seq = 5").fetchall() == [("deadly",)]


def test_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, next_version: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = version_of(path)
    before = path.read_bytes()
    step = sqlite_file.MIGRATIONS[sqlite_file.SCHEMA_VERSION - 1]

    def fails(connection: sqlite3.Connection) -> None:
        step(connection)
        connection.execute("SELECT no_such_column FROM runs")

    monkeypatch.setitem(sqlite_file.MIGRATIONS, sqlite_file.SCHEMA_VERSION - 1, fails)
    with pytest.raises(StoreError, match="no such column"):
        SqliteStateStore(path)
    assert len(next_version) == 1
    assert (version_of(path), path.read_bytes()) == (older, before)


def test_file_that_is_only_read_is_not_migrated(path: Path, next_version: list[int]) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreFileError, match="older flowrun wrote it .* opens it to write"):
        SqliteStateStore.open_readonly(path)
    assert (next_version, path.read_bytes()) == ([], before)


def test_file_that_somebody_else_migrates_is_waited_for(
    path: Path, next_version: list[int]
) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError, match="locked by somebody else"):
            SqliteStateStore(path, busy_timeout_s=0.05)
        database.execute(f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION}")
        database.execute("ALTER TABLE runs ADD COLUMN note TEXT")
        database.execute("COMMIT")
    SqliteStateStore(path).close()
    assert next_version == []


KILLED = """
    import os, sys
    from flowrun import SqliteStateStore
    from flowrun.state import sqlite_file

    def migrate(connection):
        connection.execute("ALTER TABLE runs ADD COLUMN note TEXT")
        connection.execute("PRAGMA user_version = 99")
        os.kill(os.getpid(), 9)

    sqlite_file.MIGRATIONS[sqlite_file.SCHEMA_VERSION] = migrate
    sqlite_file.SCHEMA_VERSION += 1
    SqliteStateStore(sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_process_that_is_killed_while_it_migrates_leaves_the_older_file(path: Path) -> None:
    older = version_of(path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), path], timeout=WAIT_S, check=False
    )
    assert done.returncode == -9
    assert version_of(path) == older
    with closing(SqliteStateStore(path)) as store:
        assert store.load_run("whole", results=True).tasks["load"].result == 2
