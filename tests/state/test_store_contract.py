"""One contract for every store: in memory, in a SQLite file, and one that somebody else wrote."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    InMemoryStateStore,
    RunQuery,
    RunRecord,
    RunSummary,
    SqliteStateStore,
    StateStoreProtocol,
    TaskRecord,
    build_default_engine,
)
from flowrun.errors import AlreadyResumedError, RunAliveError, UnknownRunError
from flowrun.state.records import NoResult, Reason, RunStatus

Store = Any
MakeRun = Callable[..., RunRecord]


class PickleJar:
    """What somebody else might write, in less than 60 lines: pickles, the newest one last."""

    blocking = True

    def __init__(self) -> None:
        self.jar: dict[str, bytes] = {}

    def create_run(self, run: RunRecord) -> None:
        old = run.resumed_from
        if old is not None:
            heirs = self.list_runs(RunQuery(resumed_from=old))
            if self.load_run(old, results=False).alive or any(heir.alive for heir in heirs):
                raise RunAliveError(old, "it is being worked on")
            if run.sole_heir and heirs:
                raise AlreadyResumedError(old, "somebody has resumed it")
            for name, value in self.load_results(old, list(run.tasks)).items():
                run.tasks[name].result = value
        self.jar[run.run_id] = pickle.dumps(run)

    def save(self, changes: Sequence[Change]) -> None:
        for run, task in changes:
            kept = self.load_run(run.run_id, results=True)
            if task is None:
                kept.finish(run.finished_at or 0.0, run.error)
            else:
                if task.result is NoResult.STORED:
                    task.result = kept.tasks[task.name].result
                kept.tasks[task.name] = task
            self.jar[run.run_id] = pickle.dumps(kept)

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        if run_id not in self.jar:
            raise UnknownRunError(run_id)
        run: RunRecord = pickle.loads(self.jar[run_id])
        for task in run.tasks.values():
            if not results and not isinstance(task.result, NoResult):
                task.result = NoResult.STORED
        return run

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        tasks = self.load_run(run_id, results=True).tasks.items()
        kept = {name: task.result for name, task in tasks if not isinstance(task.result, NoResult)}
        return {name: value for name, value in kept.items() if name in task_names}

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        before = query.before
        if isinstance(before, str):
            before = self.load_run(before, results=False).run_id
        ids = list(self.jar)[: list(self.jar).index(before) if isinstance(before, str) else None]
        runs = [self.load_run(run_id, results=False).summary() for run_id in reversed(ids)]
        return [run for run in runs if fits(run, query)][: query.limit]

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        return sum(1 for run in doomed(self, keep_last, created_before) if self.jar.pop(run.run_id))

    def close(self) -> None: ...


def fits(run: RunSummary, query: RunQuery) -> bool:
    return (
        query.dag_name in (None, run.dag_name)
        and query.status in (None, run.status)
        and query.resumed_from in (None, run.resumed_from)
        and (not isinstance(query.before, float) or run.created_at < query.before)
    )


def doomed(store: PickleJar, keep_last: int | None, before: float | None) -> list[RunSummary]:
    ended = [run for run in store.list_runs(RunQuery()) if run.finished_at is not None]
    later: Counter[str] = Counter()
    found: list[RunSummary] = []
    for run in ended:
        later[run.dag_name] += 1
        if keep_last is None or later[run.dag_name] > keep_last:
            found += [run] if before is None or run.created_at < before else []
    return found


@pytest.fixture(params=["memory", "sqlite", "somebody else's"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = InMemoryStateStore()
    elif request.param == "sqlite":
        made = SqliteStateStore(tmp_path / "runs.db")
    else:
        made = PickleJar()
    yield made
    made.close()
    made.close()


def make_run(run_id: str = "r1", dag: str = "d", created_at: float = 1.0, **more: Any) -> RunRecord:
    tasks = {"a": TaskRecord("a"), "b": TaskRecord("b", ("a",))}
    return RunRecord(run_id, dag, created_at, tasks, **more)


def save(store: Store, run: RunRecord, *names: str) -> None:
    store.save([Change(run, run.tasks[name]) for name in names])


def finish(store: Store, run: RunRecord, *, fail: bool = False, at: float = 9.0) -> None:
    for task in run.tasks.values():
        if task.status == "PENDING":
            task.start(at - 1, at - 2)
        if task.status == "RUNNING":
            task.fail(at, "boom", Reason.ERROR) if fail else task.succeed(at, 7)
    run.finish(at, "why" if fail else None)
    store.save([*(Change(run, task) for task in run.tasks.values()), Change(run, None)])


def test_new_run_comes_back_as_it_was_created(store: Store) -> None:
    run = make_run(metadata={"by": "cron", "n": [1, None]}, targets=("b",))
    store.create_run(run)
    loaded = store.load_run("r1", results=True)
    assert (loaded.run_id, loaded.dag_name, loaded.created_at) == ("r1", "d", 1.0)
    assert (loaded.metadata, loaded.targets) == ({"by": "cron", "n": [1, None]}, ("b",))
    assert (loaded.finished_at, loaded.error, loaded.alive) == (None, None, True)
    assert list(loaded.tasks) == ["a", "b"]
    assert loaded.tasks["b"].deps == ("a",)
    assert loaded.tasks["a"].result is NoResult.ABSENT
    assert loaded.status == "RUNNING"


def test_every_field_of_a_task_is_kept(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    task = run.tasks["a"]
    task.start(2.0, 1.5)
    task.fail(3.0, "first\nerror \U0001f600", Reason.TIMEOUT, abandoned=True)
    task.retry()
    task.start(4.0, 3.5)
    save(store, run, "a")
    running = store.load_run("r1", results=True).tasks["a"]
    assert (running.status, running.attempt, running.started_at) == ("RUNNING", 2, 4.0)
    task.succeed(5.0, {"rows": [1, None]})
    run.tasks["b"].skip(6.0, Reason.UPSTREAM_FAILED, "why")
    save(store, run, "a", "b")
    loaded = store.load_run("r1", results=True)
    assert loaded.tasks["a"].attempts == task.attempts
    assert loaded.tasks["a"].result == {"rows": [1, None]}
    assert loaded.tasks["b"].reason is Reason.UPSTREAM_FAILED
    assert (loaded.tasks["b"].status, loaded.tasks["b"].error) == ("SKIPPED", "why")


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1.5, True, None]}, "\u20ac\U0001f600"])
def test_results_come_back_and_can_be_left_out(store: Store, value: object) -> None:
    run = make_run()
    store.create_run(run)
    run.tasks["a"].start(2.0, 2.0)
    run.tasks["a"].succeed(3.0, value)
    save(store, run, "a")
    assert store.load_run("r1", results=True).tasks["a"].result == value
    assert store.load_run("r1", results=False).tasks["a"].result is NoResult.STORED
    assert store.load_results("r1", ["a", "b"]) == {"a": value}


def test_released_result_is_neither_absent_nor_none(store: Store) -> None:  # I2
    run = make_run()
    store.create_run(run)
    run.tasks["a"].start(2.0, 2.0)
    run.tasks["a"].succeed(3.0, [1])
    run.tasks["a"].release()
    save(store, run, "a")
    assert store.load_run("r1", results=True).tasks["a"].result is NoResult.RELEASED
    assert store.load_results("r1", ["a"]) == {}


def test_loaded_run_is_a_snapshot(store: Store) -> None:  # D8
    run = make_run()
    store.create_run(run)
    before = store.load_run("r1", results=True)
    finish(store, run)
    assert before.status == "RUNNING"
    assert store.load_run("r1", results=True).status == "SUCCESS"


def test_finished_run(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    finish(store, run, fail=True)
    loaded = store.load_run("r1", results=False)
    assert (loaded.status, loaded.finished_at, loaded.error) == ("FAILED", 9.0, "why")
    assert not loaded.alive


@pytest.mark.parametrize("run_id", ["nope", "no\ud800pe", "no\0pe", ""])
def test_unknown_run(store: Store, run_id: str) -> None:
    with pytest.raises(UnknownRunError):
        store.load_run(run_id, results=False)
    with pytest.raises(UnknownRunError):
        store.load_results(run_id, ["a"])
    with pytest.raises(UnknownRunError):
        store.list_runs(RunQuery(before=run_id))


def test_runs_are_listed_newest_first(store: Store) -> None:
    runs = [
        make_run(f"r{number}", "even" if number % 2 == 0 else "odd", 1.0) for number in range(6)
    ]
    for run in runs:
        store.create_run(run)
    finish(store, runs[0])
    finish(store, runs[1], fail=True)

    def ids(**query: Any) -> list[str]:
        return [summary.run_id for summary in store.list_runs(RunQuery(**query))]

    assert ids() == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert ids(limit=2) == ["r5", "r4"]
    assert ids(dag_name="odd") == ["r5", "r3", "r1"]
    assert ids(status=RunStatus.FAILED) == ["r1"]
    assert ids(status=RunStatus.SUCCESS) == ["r0"]
    assert ids(status=RunStatus.RUNNING, limit=1) == ["r5"]
    assert ids(before="r2") == ["r1", "r0"]
    assert ids(before=0.5) == []
    assert ids(before=1.5, limit=1) == ["r5"]
    (summary,) = store.list_runs(RunQuery(status=RunStatus.SUCCESS))
    assert (summary.dag_name, summary.finished_at, summary.alive) == ("even", 9.0, False)
    assert summary.task_counts == {"SUCCESS": 2}


def test_prune_deletes_finished_runs_only(store: Store) -> None:
    runs = [make_run(f"r{number}", created_at=float(number)) for number in range(5)]
    for run in runs:
        store.create_run(run)
    for run in runs[:4]:
        finish(store, run)
    assert store.prune_runs(keep_last=None, created_before=1.0) == 1
    assert store.prune_runs(keep_last=1, created_before=3.0) == 2
    assert [run.run_id for run in store.list_runs(RunQuery())] == ["r4", "r3"]
    assert store.prune_runs(keep_last=0, created_before=None) == 1
    assert [run.run_id for run in store.list_runs(RunQuery())] == ["r4"]


def test_resumed_run_takes_results_along(store: Store) -> None:  # S1 S4
    old = make_run()
    store.create_run(old)
    old.tasks["a"].start(2.0, 2.0)
    old.tasks["a"].succeed(3.0, [1, None])
    save(store, old, "a")
    old.tasks["b"].start(4.0, 4.0)
    old.tasks["b"].fail(5.0, "boom", Reason.ERROR)
    old.finish(6.0)
    store.save([Change(old, old.tasks["b"]), Change(old, None)])
    new = make_run("r2", resumed_from="r1")
    new.tasks["a"] = store.load_run("r1", results=store.blocking is False).tasks["a"]
    store.create_run(new)
    loaded = store.load_run("r2", results=True)
    assert loaded.tasks["a"].result == [1, None]
    assert loaded.resumed_from == "r1"
    assert [run.run_id for run in store.list_runs(RunQuery(resumed_from="r1"))] == ["r2"]


def test_second_heir_is_refused(store: Store) -> None:  # S5
    old = make_run()
    store.create_run(old)
    with pytest.raises(RunAliveError):
        store.create_run(make_run("r2", resumed_from="r1"))
    finish(store, old, fail=True)
    heir = make_run("r3", resumed_from="r1")
    store.create_run(heir)
    with pytest.raises(RunAliveError):
        store.create_run(make_run("r4", resumed_from="r1"))
    finish(store, heir)
    sole = make_run("r5", resumed_from="r1")
    sole.sole_heir = True
    with pytest.raises(AlreadyResumedError):
        store.create_run(sole)
    store.create_run(make_run("r6", resumed_from="r1"))
    assert {run.run_id for run in store.list_runs(RunQuery())} == {"r1", "r3", "r6"}


async def test_engine_runs_and_resumes_on_it(store: Store) -> None:
    as_promised: StateStoreProtocol = store
    fails = [True]
    async with build_default_engine(state_store=as_promised) as engine:
        engine.task(name="a", dag="d")(lambda: [1, 2])

        @engine.task(dag="d", retries=1)
        async def b(a: list[int]) -> int:
            if fails[0]:
                raise ConnectionError
            return len(a)

        old = await engine.run_once("d", metadata={"n": 1})
        assert engine.get_run_report(old)["tasks"]["b"]["attempt"] == 2
        fails[0] = False
        report = engine.get_run_report(await engine.resume(old))
    assert (report["status"], report["resumed_from"]) == ("SUCCESS", old)
    assert (report["tasks"]["b"]["result"], report["metadata"]) == (2, {"n": 1})
