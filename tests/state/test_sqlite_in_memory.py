"""``SqliteStateStore(":memory:")``: a database without a file, private to its store."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from flowrun.errors import RunAliveError, StoreFileError
from flowrun.state import RunRecord, SqliteStateStore, TaskRecord

from ..conftest import WAIT_S
from .runs import finish, make_run, save, succeeded


def test_it_is_private_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        closing(SqliteStateStore(":memory:", recover=True)) as store,
        closing(SqliteStateStore(":memory:")) as other,
    ):
        assert (str(store.path), store.recovered) == (":memory:", [])
        store.create_run(make_run())
        assert other.list_runs() == []
        assert [run.alive for run in store.list_runs()] == [True]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreFileError, match="is closed; open a new one"):
        store.list_runs()


def test_it_cannot_be_opened_to_read_only() -> None:
    with pytest.raises(StoreFileError, match="give the path of a file"):
        SqliteStateStore.open_readonly(":memory:")


def test_results_are_checked_and_made_anew_as_with_a_file() -> None:  # D1
    with closing(SqliteStateStore(":memory:")) as store:
        run = make_run()
        store.create_run(run)
        value = {"rows": [(1, 2)]}
        save(store, run, succeeded(run.tasks["a"], value))
        first = store.load_results("r1", ["a"])["a"]
        assert first == value
        assert first is not store.load_results("r1", ["a"])["a"]
        with pytest.raises(RunAliveError):
            store.create_run(make_run("r2", resumed_from="r1"))


def test_pruning_and_several_threads() -> None:
    problems: list[BaseException] = []
    with closing(SqliteStateStore(":memory:")) as store:

        def work(thread: int) -> None:
            try:
                for number in range(20):
                    run = RunRecord(f"{thread}-{number}", "d", 1.0, {"a": TaskRecord("a")})
                    store.create_run(run)
                    finish(store, run, "x" * 1000)
                    assert store.load_run(run.run_id, results=True).status == "SUCCESS"
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert problems == []
        assert len(store.list_runs()) == 80
        assert store.prune_runs(keep_last=1, created_before=None) == 79
        assert len(store.list_runs()) == 1
