"""Runs that dead processes left behind: ended with a warning, and seen by readers (D3)."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flowrun import build_default_engine, fn_hook
from flowrun.errors import RunAliveError, StoreFileError
from flowrun.state import NoResult, Reason, RunRecord, SqliteStateStore, TaskRecord
from flowrun.state.ownership import Ownership

from .runs import failed, finish, make_run, running, save, succeeded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def leave_behind(path: Path, *run_ids: str) -> None:
    """Close a store with runs of which one task has succeeded and one is running."""
    with closing(SqliteStateStore(path, synchronous="NORMAL")) as dead:
        for run_id in run_ids:
            run = make_run(run_id)
            dead.create_run(run)
            a, b = run.tasks.values()
            save(dead, run, succeeded(a, [1]), running(failed(b).retry(), 4.0))


def test_each_recovered_run_is_warned_of_and_handed_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(path, "r1", "r2")
    with (
        caplog.at_level(logging.WARNING, "flowrun.state"),
        closing(SqliteStateStore(path, recover=True)) as store,
    ):
        assert [run.run_id for run in store.recovered] == ["r1", "r2"]
        for run in store.recovered:
            assert store.load_run(run.run_id, results=False) == run
            a, b = run.tasks.values()
            assert (a.status, a.result) == ("SUCCESS", NoResult.STORED)
            assert (b.status, b.reason) == ("FAILED", Reason.OWNER_DIED)
            assert [attempt.error for attempt in b.attempts] == ["boom", b.error]
            assert (run.alive, run.error) == (False, b.error)
    told = [(record.run_id, record.dag) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [("r1", "d"), ("r2", "d")]
    assert "run 'r1' of DAG 'd' was ended: the process that worked on it has died" in caplog.text


def test_recovered_run_says_which_teardowns_are_owed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(SqliteStateStore(path, synchronous="NORMAL")) as dead:
        run = make_run()
        teardowns = {"of_a": ("a",), "of_b": ("b",), "of_both": ("a", "b")}
        made = {name: TaskRecord(name, of, teardown_of=of) for name, of in teardowns.items()}
        run = run._replace(tasks={**run.tasks, **made})
        dead.create_run(run)
        save(dead, run, succeeded(run.tasks["a"]), running(run.tasks["of_a"]))
    with closing(SqliteStateStore(path, recover=True)) as store:
        (ended,) = store.recovered
    assert [task.name for task in ended.owed_teardowns()] == ["of_a"]
    assert "task 'of_a' of run 'r1' tears down 'a' and has not succeeded; resume" in caplog.text
    assert "of_b" not in caplog.text


def test_nothing_is_recovered_twice_or_unasked(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(path, "r1")
    for recover, expected in ((False, 0), (True, 1), (True, 0)):
        with closing(SqliteStateStore(path, recover=recover)) as store:
            assert len(store.recovered) == expected
    assert len(caplog.records) == 1


def test_run_of_which_no_task_was_running_is_recovered(path: Path) -> None:
    with closing(SqliteStateStore(path)) as dead:
        run = make_run()
        dead.create_run(run)
        # Its clock was ahead of this one.
        save(dead, run, succeeded(run.tasks["a"], at=4e9))
        dead.create_run(RunRecord("r2", "d", 5e9, {"a": TaskRecord("a")}))
    with closing(SqliteStateStore(path, recover=True)) as store:
        ended, ahead = store.recovered
    assert [task.status for task in ended.tasks.values()] == ["SUCCESS", "SKIPPED"]
    assert (ended.finished_at, ahead.finished_at) == (4e9, 5e9)


def test_heir_ends_the_run_that_a_dead_process_left(path: Path) -> None:  # S5
    leave_behind(path, "r1")
    with closing(SqliteStateStore(path)) as store:
        store.create_run(make_run("r2", resumed_from="r1"))
        assert store.load_run("r1", results=False).tasks["b"].reason is Reason.OWNER_DIED
        assert store.recovered == []


OWNER = """
import sys
from flowrun.state import RunRecord, SqliteStateStore, TaskRecord
store = SqliteStateStore(sys.argv[1])
store.create_run(RunRecord("r1", "d", 1.0, {"a": TaskRecord("a")}))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a process that works on a run."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def aliveness(store: SqliteStateStore) -> set[bool]:
    return {store.load_run("r1", results=False).alive, store.list_runs()[-1].alive}


@pytest.mark.parametrize("writes", [False, True])
def test_reader_tells_a_dead_run_from_a_live_one(
    path: Path, owner: subprocess.Popen[str], writes: bool
) -> None:
    with closing(SqliteStateStore.open_readonly(path)) as reader:
        assert aliveness(reader) == {True}
        if writes:  # in the same process: the two share the lock file
            with closing(SqliteStateStore(path)) as store:
                store.create_run(make_run("r2"))
                assert aliveness(store) == aliveness(reader) == {True}
                assert reader.load_run("r2", results=False).alive
            assert not reader.load_run("r2", results=False).alive
        owner.kill()
        owner.wait()
        assert aliveness(reader) == {False}
        assert reader.load_run("r1", results=False).finished_at is None


def test_reader_that_leaves_takes_no_claim_along(path: Path) -> None:
    with (
        closing(SqliteStateStore(path)) as other,
        closing(SqliteStateStore.open_readonly(path)) as first,
        closing(SqliteStateStore(path)) as store,
    ):
        store.create_run(make_run())
        first.close()
        with closing(SqliteStateStore.open_readonly(path)):
            pass
        assert other.load_run("r1", results=False).alive
        with pytest.raises(RunAliveError):
            other.create_run(make_run("r2", resumed_from="r1"))


def test_reader_changes_nothing_beside_the_file(path: Path) -> None:
    leave_behind(path, "r1")
    alone = path.with_name("copy.db")
    shutil.copy(path, alone)
    with closing(SqliteStateStore.open_readonly(alone)) as reader:
        # Nobody can tell: it may be the copy of a file on which a process is working.
        assert aliveness(reader) == {True}
    assert not path.with_name("copy.db-owners").exists()


def test_readers_view_of_claims_is_given_up_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with pytest.raises(StoreFileError, match="the lock file .* cannot be used"):
        Ownership(path, claims=False)
    claim = Ownership(path)
    views = [Ownership(path, claims=False) for _ in range(2)]
    claim.close()
    assert not views[0].is_alive(claim.owner)
    assert not views[0].is_alive("no owner")
    again = Ownership(path)  # a reader has the file open: it must be opened for writing, too
    for view in (*views, views[0]):
        view.close()
    assert again.is_alive(again.owner)
    again.close()


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
def test_claim_that_cannot_be_made_leaves_the_view_of_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    claim = Ownership(path)
    claim.close()
    view = Ownership(path, claims=False)
    path.with_name("runs.db-owners").unlink()
    path.with_name("runs.db-owners").mkdir()
    with pytest.raises(StoreFileError, match="the lock file .* cannot be used"):
        Ownership(path)
    assert not view.is_alive(claim.owner)
    view.close()


def test_finished_run_is_never_alive(path: Path) -> None:
    with closing(SqliteStateStore(path)) as store:
        run = make_run()
        store.create_run(run)
        finish(store, run)
        with closing(SqliteStateStore.open_readonly(path)) as reader:
            assert aliveness(reader) == {False}


def test_hooks_of_the_first_engine_are_called_for_what_was_recovered(path: Path) -> None:  # D3
    leave_behind(path, "r1")
    failures: list[tuple[str, str]] = []
    ends: list[tuple[str, str]] = []
    hook = fn_hook(
        on_task_failure=lambda event: failures.append((event.task_name, event.reason)),
        on_dag_end=lambda event: ends.append((event.run_id, event.status)),
    )
    with closing(SqliteStateStore(path, recover=True)) as store:
        build_default_engine(state_store=store, hooks=[hook]).close()
        build_default_engine(state_store=store, hooks=[hook]).close()
    assert failures == [("b", "OWNER_DIED")]
    assert ends == [("r1", "FAILED")]
