"""The in-memory store's own business: its bounds, and threads that use it at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from flowrun.context import AttemptNotes, LogLine, Progress
from flowrun.errors import AlreadyResumedError, RunAliveError, RunLostError, StoreError
from flowrun.state import (
    Change,
    InMemoryStateStore,
    NoResult,
    Reason,
    RunQuery,
    RunRecord,
    StateStore,
)

from ..conftest import WAIT_S
from .runs import failed, finish, make_run, running, save, succeeded


def test_both_names_are_one_store() -> None:
    assert StateStore is InMemoryStateStore


def ids(store: InMemoryStateStore) -> list[str]:
    return [run.run_id for run in store.list_runs()]


def test_oldest_finished_runs_are_dropped_beyond_the_bound() -> None:
    store = InMemoryStateStore(max_finished_runs=3)
    store.create_run(make_run("alive"))  # a live run is never dropped
    for number in range(5):
        run = make_run(f"r{number}")
        store.create_run(run)
        finish(store, run)
    assert ids(store) == ["r4", "r3", "r2", "alive"]
    assert store.prune_runs(keep_last=2, created_before=None) == 1
    run = make_run("last")
    store.create_run(run)
    finish(store, run)
    assert ids(store) == ["last", "r4", "r3", "alive"]


@pytest.mark.parametrize(("bound", "kept"), [(None, 3), (0, 0)])
def test_unbounded_and_zero(bound: int | None, kept: int) -> None:
    store = InMemoryStateStore(max_finished_runs=bound)
    for number in range(3):
        run = make_run(f"r{number}")
        store.create_run(run)
        finish(store, run)
    assert len(store.list_runs()) == kept


@pytest.mark.parametrize("name", ["max_finished_runs", "keep_results_of"])
def test_wrong_bound_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, or None"):
        InMemoryStateStore(**{name: -1})
    wrong: Any
    for wrong in (1.5, "3", True):
        with pytest.raises(TypeError, match=f"{name} must be an int, or None"):
            InMemoryStateStore(**{name: wrong})


def result_of(store: InMemoryStateStore, run_id: str) -> object:
    return store.load_run(run_id, results=True).tasks["a"].result


@pytest.mark.parametrize(("bound", "kept"), [(2, 2), (0, 0), (None, 4)])
def test_only_the_newest_finished_runs_keep_their_results(bound: int | None, kept: int) -> None:
    store = InMemoryStateStore(keep_results_of=bound)
    alive = make_run("alive")
    store.create_run(alive)
    save(store, alive, succeeded(alive.tasks["a"], 7))
    for number in range(4):
        run = make_run(f"r{number}")
        store.create_run(run)
        if number % 2:
            run = save(store, run, failed(run.tasks["b"]))
        finish(store, run)
    released = [f"r{number}" for number in range(4 - kept)]
    for run_id in ("alive", "r0", "r1", "r2", "r3"):
        expected = NoResult.RELEASED if run_id in released else 7
        assert result_of(store, run_id) == expected, run_id
        assert store.load_results(run_id, ["a"]) == ({} if run_id in released else {"a": 7})
    # Only results are released: how the runs have ended is still known.
    assert [run.status for run in store.list_runs(RunQuery(limit=2))] == ["FAILED", "SUCCESS"]
    assert store.load_run("r1", results=False).tasks["b"].error == "boom"


def test_only_the_newest_finished_runs_keep_their_log_lines() -> None:
    store = InMemoryStateStore(keep_results_of=1)
    notes = AttemptNotes(Progress(1), (LogLine(1.0, "INFO", "shop", "one"),) * 3, 2)
    for run_id in ("old", "new"):
        run = make_run(run_id)
        store.create_run(run)
        again = running(run.tasks["a"])._replace(notes=notes).fail(3.0, "boom", Reason.ERROR)
        finish(store, save(store, run, running(again.retry())._replace(notes=notes)))
    new, old = (store.load_run(run_id, results=False).tasks for run_id in ("new", "old"))
    assert [attempt.notes for attempt in new["a"].attempts] == [notes, notes]
    cut = AttemptNotes(Progress(1), (), 5)
    assert [attempt.notes for attempt in old["a"].attempts] == [cut, cut]
    assert old["b"].notes is None


def test_default_keeps_the_results_of_twenty_runs() -> None:
    store = InMemoryStateStore()
    for number in range(22):
        run = make_run(f"r{number}")
        store.create_run(run)
        finish(store, run)
    kept = [run_id for run_id in reversed(ids(store)) if result_of(store, run_id) == 7]
    assert kept == [f"r{number}" for number in range(2, 22)]


def test_result_that_was_dropped_while_a_resume_was_planned_is_an_error() -> None:  # S2
    store = InMemoryStateStore(keep_results_of=1)
    old = make_run()
    store.create_run(old)
    old = finish(store, old)
    planned = store.load_run("r1", results=False).tasks
    for name in ("other", "more"):
        run = make_run(name)
        store.create_run(run)
        finish(store, run)
    with pytest.raises(StoreError, match="task 'a' in run 'r1' was dropped while a resume"):
        store.create_run(make_run("r2", resumed_from="r1")._replace(tasks=planned))
    store.prune_runs(keep_last=0, created_before=None)
    with pytest.raises(StoreError, match="task 'a' in run 'r1' was dropped while a resume"):
        store.create_run(make_run("r2", resumed_from="r1")._replace(tasks=planned))
    assert ids(store) == []


def test_records_are_the_callers_and_the_dictionaries_the_stores() -> None:
    store = InMemoryStateStore()
    tasks = dict(make_run().tasks)
    store.create_run(RunRecord("r1", "d", 1.0, tasks))
    tasks.clear()
    loaded = store.load_run("r1", results=True)
    assert list(loaded.tasks) == ["a", "b"]
    del loaded.tasks["a"]  # type: ignore[attr-defined]
    assert list(store.load_run("r1", results=True).tasks) == ["a", "b"]


def test_changes_of_a_pruned_run_are_refused() -> None:
    store = InMemoryStateStore(max_finished_runs=0)
    run = make_run()
    store.create_run(run)
    ended = finish(store, run)
    with pytest.raises(RunLostError):
        store.save([Change(ended, None)])


def test_pruned_heirs_are_forgotten() -> None:
    store = InMemoryStateStore()
    old = make_run()
    store.create_run(old)
    finish(store, old, fail=True)
    for run_id in ("r2", "r3"):  # by clocks that were set back
        heir = make_run(run_id, resumed_from="r1", created_at=0.1, sole_heir=True)
        store.create_run(heir)
        finish(store, heir)
        with pytest.raises(AlreadyResumedError):
            store.create_run(make_run("other", resumed_from="r1", sole_heir=True))
        assert store.prune_runs(keep_last=None, created_before=0.05) == 0
        assert store.prune_runs(keep_last=None, created_before=0.5) == 1
        assert ids(store) == ["r1"]
    assert store.prune_runs(keep_last=0, created_before=None) == 1
    assert ids(store) == []


def test_heirs_of_heirs_are_seen() -> None:  # S5
    store = InMemoryStateStore()
    for run_id, ancestor in (("r1", None), ("r2", "r1")):
        run = make_run(run_id, resumed_from=ancestor)
        store.create_run(run)
        finish(store, run, fail=True)
    store.create_run(make_run("r3", resumed_from="r2"))
    with pytest.raises(RunAliveError, match="'r3' is just resuming it"):
        store.create_run(make_run("r4", resumed_from="r1"))


def test_threads_that_use_it_at_once() -> None:  # R5
    store = InMemoryStateStore(max_finished_runs=5, keep_results_of=2)
    problems: list[BaseException] = []
    done = threading.Event()

    def work(thread: int) -> None:
        try:
            for number in range(100):
                run = make_run(f"{thread}-{number}")
                store.create_run(run)
                run = save(store, run, succeeded(run.tasks["a"], 7))
                assert store.load_run(run.run_id, results=True) == run
                finish(store, run)
        except BaseException as error:
            problems.append(error)

    def look() -> None:
        try:
            while not done.is_set():
                for run in store.list_runs():
                    assert run.alive is (run.finished_at is None)
                    assert run.alive or run.status == "SUCCESS"
                store.prune_runs(keep_last=2, created_before=None)
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    looking = threading.Thread(target=look)
    for thread in (*workers, looking):
        thread.start()
    for thread in workers:
        thread.join(WAIT_S)
    done.set()
    looking.join(WAIT_S)
    assert problems == []
    assert len(store.list_runs()) <= 5


class PrunedMeanwhile(InMemoryStateStore):
    """One of whose runs is pruned just before it is looked at."""

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        if run_id == "r1":
            self.prune_runs(keep_last=0, created_before=None)
        return super().load_run(run_id, results=results)


def test_run_that_is_pruned_while_runs_are_listed_is_left_out() -> None:
    store = PrunedMeanwhile()
    run = make_run()
    store.create_run(run)
    finish(store, run)
    store.create_run(make_run("r2"))
    assert ids(store) == ["r2"]
