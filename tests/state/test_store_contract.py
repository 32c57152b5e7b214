"""One contract for every store: in memory, in a SQLite file, and one that somebody else wrote."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf
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
    build_default_engine,
)
from flowrun.errors import (
    AlreadyResumedError,
    RunAliveError,
    RunLostError,
    StoreError,
    UnknownRunError,
)
from flowrun.state import ByteStoreProtocol, Cached, CacheEntry, CacheStoreProtocol
from flowrun.state.records import NoResult, Reason, TaskRecord
from flowrun.state.run_records import RunStatus

from .runs import failed, finish, make_run, merged, running, save, succeeded, without_results

Store = Any


class PickleJar:
    """What somebody else might write, in some 60 lines: pickles, the newest one last."""

    blocking = True

    def __init__(self) -> None:
        self.jar: dict[str, bytes] = {}

    def create_run(self, run: RunRecord) -> None:
        alive = [other for other in self.list_runs(RunQuery(run.dag_name)) if other.alive]
        if run.sole_of_dag and alive:
            raise RunAliveError(alive[0].run_id, "it is being worked on")
        old = run.resumed_from
        if old is not None:
            heirs = self.list_runs(RunQuery(resumed_from=old))
            if self.load_run(old, results=False).alive or any(heir.alive for heir in heirs):
                raise RunAliveError(old, "it is being worked on")
            if run.sole_heir and heirs:
                raise AlreadyResumedError(old, "somebody has resumed it")
            run = merged(run, self.load_run(old, results=True).tasks, run.tasks.values())
        self.jar[run.run_id] = pickle.dumps(run)

    def save(self, changes: Sequence[Change]) -> None:
        for run, task in changes:
            kept = self.load_run(run.run_id, results=True)
            if task is None:
                kept = kept.finish(run.finished_at or 0.0, run.error)
            else:
                kept = merged(kept, kept.tasks, [task])
            self.jar[run.run_id] = pickle.dumps(kept)

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        if run_id not in self.jar:
            raise UnknownRunError(run_id)
        run: RunRecord = pickle.loads(self.jar[run_id])
        return run if results else without_results(run)

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


@pytest.fixture(params=["memory", "sqlite", "sqlite in memory", "somebody else's"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store
    if request.param == "memory":
        made = InMemoryStateStore()
    elif request.param == "sqlite":
        made = SqliteStateStore(tmp_path / "runs.db")
    elif request.param == "sqlite in memory":
        made = SqliteStateStore(":memory:")
    else:
        made = PickleJar()
    yield made
    made.close()
    made.close()


def test_new_run_comes_back_as_it_was_created(store: Store) -> None:
    run = make_run(
        metadata={"by": "cron", "n": [1, None]},
        targets=("b",),
        started_by="r0",
        params={"day": "2013-02-08", "n": 1, "all": False, "rate": 0.5, "none": None},
        overridden={"a": "value", "b": "function"},
    )
    store.create_run(run)
    assert store.load_run("r1", results=True) == run
    assert list(store.load_run("r1", results=False).tasks) == ["a", "b"]


def test_what_a_task_tears_down_is_kept(store: Store) -> None:
    run = make_run()
    tasks = {**run.tasks, "t\xe4": TaskRecord("t\xe4", ("a", "b"), teardown_of=("a",))}
    run = run._replace(tasks=tasks)
    store.create_run(run)
    assert store.load_run("r1", results=True) == run
    run = save(store, run, failed(tasks["t\xe4"]))
    assert store.load_run("r1", results=True) == run
    run = save(store, run, succeeded(run.tasks["t\xe4"].retry()))
    assert store.load_run("r1", results=False).tasks["t\xe4"].teardown_of == ("a",)


def test_every_field_of_a_task_is_kept(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    task = run.tasks["a"].start(2.0, 1.5)
    task = task.fail(3.0, "first\nerror \U0001f600", Reason.TIMEOUT, abandoned=True).retry()
    for change in (task, task.start(4.0, 3.5)):
        run = save(store, run, change)
        assert store.load_run("r1", results=True) == run
    skipped = run.tasks["b"].skip(6.0, Reason.UPSTREAM_FAILED, "why")
    run = save(store, run, run.tasks["a"].succeed(5.0, {"rows": [1, None]}), skipped)
    loaded = store.load_run("r1", results=True)
    assert loaded == run
    assert [attempt.number for attempt in loaded.tasks["a"].attempts] == [1, 2]


def test_loaded_attempts_go_on(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    task = run.tasks["a"]
    for number in range(5):
        task = failed(task, f"error {number}").retry()
        save(store, run, task)
        task = store.load_run("r1", results=False).tasks["a"]
    assert [attempt.error for attempt in task.attempts] == [f"error {n}" for n in range(5)]


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1.5, True, None]}, "\u20ac\U0001f600"])
def test_results_come_back_and_can_be_left_out(store: Store, value: object) -> None:
    run = make_run()
    store.create_run(run)
    save(store, run, succeeded(run.tasks["a"], value))
    assert store.load_run("r1", results=True).tasks["a"].result == value
    assert store.load_run("r1", results=False).tasks["a"].result is NoResult.STORED
    assert store.load_results("r1", ["a", "b", "other"]) == {"a": value}


def test_what_a_task_has_to_do_with_the_cache_is_kept(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    taken = run.tasks["b"].stand_in(4.0, "taken", Cached("other key", "earlier"))
    made = running(run.tasks["a"]._replace(cache=Cached("key")))
    run = save(store, run, made.succeed(3.0, [1]), taken)
    assert store.load_run("r1", results=True) == run
    ended = finish(store, run)
    assert store.load_run("r1", results=True).tasks == ended.tasks
    heir = make_run("r2", resumed_from="r1")
    kept = without_results(ended).tasks
    kept = {"a": kept["a"]._replace(cache=None), "b": kept["b"]}
    store.create_run(heir._replace(tasks=kept))
    tasks = store.load_run("r2", results=True).tasks
    assert [task.cache for task in tasks.values()] == [None, Cached("other key", "earlier")]


@pytest.fixture
def cache(store: Store) -> Store:
    """Return a store that has a cache."""
    if not isinstance(store, CacheStoreProtocol):
        pytest.skip("it has no cache")
    return store


def test_result_is_found_by_its_key(cache: Store) -> None:
    run = make_run()
    cache.create_run(run)
    assert cache.find_cached("key", -inf) is None
    made = running(run.tasks["a"]._replace(cache=Cached("key")))
    run = save(cache, run, made)
    assert cache.find_cached("key", -inf) is None
    run = save(cache, run, made.succeed(3.0, {"a": [1]}))
    found = cache.find_cached("key", 3.0)
    assert (found.run_id, found.value) == ("r1", {"a": [1]})
    assert cache.find_cached("key", 3.5) is None
    assert cache.find_cached("other", -inf) is None
    assert cache.list_cached() == [CacheEntry("r1", "d", "a", 3.0)]
    # What was found can be kept as it is.
    later = make_run("r2")
    cache.create_run(later)
    save(cache, later, later.tasks["a"].stand_in(5.0, found.stored, Cached("key", "r1")))
    assert cache.load_results("r2", ["a"]) == {"a": {"a": [1]}}
    assert cache.list_cached() == [CacheEntry("r1", "d", "a", 3.0)]


def test_success_replaces_the_entry_of_its_key(cache: Store) -> None:
    for number in (1, 2):
        run = make_run(f"r{number}")
        cache.create_run(run)
        keyed = run.tasks["a"]._replace(cache=Cached("key"))
        finish(cache, save(cache, run, succeeded(keyed, number, at=number + 2.0)))
    assert cache.list_cached() == [CacheEntry("r2", "d", "a", 4.0)]
    assert cache.find_cached("key", -inf).value == 2
    assert cache.prune_runs(keep_last=1, created_before=None) == 1
    assert cache.find_cached("key", -inf).run_id == "r2"
    assert cache.prune_runs(keep_last=0, created_before=None) == 1
    assert cache.find_cached("key", -inf) is None
    assert cache.list_cached() == []


def test_entries_are_cleared_by_dag_and_task(cache: Store) -> None:
    for number, dag in enumerate(("d", "e")):
        run = make_run(f"r{number}", dag)
        cache.create_run(run)
        a, b = (each._replace(cache=Cached(f"{dag}{each.name}")) for each in run.tasks.values())
        finish(cache, save(cache, run, succeeded(a, 1), succeeded(b, 2, at=4.0 + number)))
    assert [entry[:3] for entry in cache.list_cached("e")] == [("r1", "e", "b"), ("r1", "e", "a")]
    assert [entry.finished_at for entry in cache.list_cached(task_name="b")] == [5.0, 4.0]
    assert cache.clear_cached("e", "a") == 1
    assert [entry[1:3] for entry in cache.list_cached()] == [("e", "b"), ("d", "b"), ("d", "a")]
    assert cache.clear_cached("e", "a") == 0
    assert cache.clear_cached(task_name="b") == 2
    assert cache.clear_cached() == 1
    # Their runs stay as they are.
    assert cache.load_run("r1", results=True).tasks["b"].result == 2
    assert cache.prune_runs(keep_last=0, created_before=None) == 2


def test_released_result_is_neither_absent_nor_none(store: Store) -> None:  # I2
    run = make_run()
    store.create_run(run)
    run = save(store, run, succeeded(run.tasks["a"], [1]))
    save(store, run, run.tasks["a"].release())
    assert store.load_run("r1", results=True).tasks["a"].result is NoResult.RELEASED
    assert store.load_results("r1", ["a"]) == {}


def test_record_without_its_result_leaves_the_result_as_it_is(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    save(store, run, succeeded(run.tasks["a"], [1]))
    task = store.load_run("r1", results=False).tasks["a"]
    save(store, run, task._replace(finished_at=3.5))
    loaded = store.load_run("r1", results=True).tasks["a"]
    assert (loaded.result, loaded.finished_at) == ([1], 3.5)


def test_last_one_of_a_record_given_twice_counts(store: Store) -> None:
    run = make_run()
    store.create_run(run)
    task = running(run.tasks["a"])
    save(store, run, task, task.succeed(3.0, 1))
    assert store.load_run("r1", results=True).tasks["a"].result == 1


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
    ended = finish(store, run, fail=True)
    loaded = store.load_run("r1", results=False)
    assert loaded == ended
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


def test_list_shows_what_a_record_shows(store: Store) -> None:
    for number, started_by in enumerate((None, "r0")):
        run = make_run(
            f"r{number}", metadata={"n": number}, started_by=started_by, params={"n": number}
        )
        store.create_run(run)
        save(store, run, failed(run.tasks["a"]))
    for summary in store.list_runs(RunQuery()):
        assert summary == store.load_run(summary.run_id, results=False).summary()


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


def test_resumed_run_takes_results_and_attempts_along(store: Store) -> None:  # S1 S4
    old = make_run()
    store.create_run(old)
    again = failed(old.tasks["a"]).retry()
    old = save(store, old, succeeded(again, [1, None]))
    finish(store, old, fail=True)
    kept = store.load_run("r1", results=False).tasks["a"]
    new = make_run("r2", resumed_from="r1")
    new = new._replace(tasks={**new.tasks, "a": kept})
    store.create_run(new)
    loaded = store.load_run("r2", results=True)
    assert loaded.tasks["a"] == kept._replace(result=[1, None])
    assert loaded.resumed_from == "r1"
    assert [run.run_id for run in store.list_runs(RunQuery(resumed_from="r1"))] == ["r2"]
    save(store, new, failed(new.tasks["b"]))
    assert store.load_run("r2", results=True).tasks["a"] == loaded.tasks["a"]


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
    with pytest.raises(AlreadyResumedError):
        store.create_run(make_run("r5", resumed_from="r1", sole_heir=True))
    store.create_run(make_run("r6", resumed_from="r1"))
    assert {run.run_id for run in store.list_runs(RunQuery())} == {"r1", "r3", "r6"}


def test_run_that_must_be_the_only_one_of_its_dag(store: Store) -> None:
    first = make_run()
    store.create_run(first)
    with pytest.raises(RunAliveError) as refused:
        store.create_run(make_run("r2", sole_of_dag=True))
    assert refused.value.run_id == "r1"
    store.create_run(make_run("r3", dag="other", sole_of_dag=True))
    finish(store, first)
    store.create_run(make_run("r4", sole_of_dag=True))
    store.create_run(make_run("r5"))
    assert {run.run_id for run in store.list_runs(RunQuery())} == {"r1", "r3", "r4", "r5"}


def test_stores_are_known_by_what_they_can_do(store: Store) -> None:
    assert isinstance(store, StateStoreProtocol)
    assert isinstance(store, ByteStoreProtocol) is isinstance(store, SqliteStateStore)
    assert not isinstance(object(), StateStoreProtocol)


@pytest.mark.parametrize("make", [InMemoryStateStore, lambda: SqliteStateStore(":memory:")])
def test_own_stores_list_all_runs_without_a_query(make: Callable[[], Any]) -> None:
    store = make()
    for name in ("r1", "r2"):
        store.create_run(make_run(name))
    assert [run.run_id for run in store.list_runs()] == ["r2", "r1"]
    store.close()


@pytest.mark.parametrize("make", [InMemoryStateStore, lambda: SqliteStateStore(":memory:")])
def test_own_stores_refuse_an_id_that_was_given_before(make: Callable[[], Any]) -> None:
    store = make()
    ended = make_run("same")
    store.create_run(ended)
    finish(store, ended)
    with pytest.raises(StoreError, match="there is a run 'same' already"):
        store.create_run(make_run("same"))
    assert store.load_run("same", results=False).status == "SUCCESS"
    store.close()


@pytest.mark.parametrize("make", [InMemoryStateStore, lambda: SqliteStateStore(":memory:")])
def test_own_stores_refuse_changes_of_a_run_that_has_ended_or_is_none_of_theirs(
    make: Callable[[], Any],
) -> None:
    store = make()
    ended, alive = make_run(), make_run("r2")
    for run in (ended, alive):
        store.create_run(run)
    finish(store, ended)
    for lost in (ended, make_run("nope")):
        with pytest.raises(RunLostError, match=f"run {lost.run_id!r}"):
            store.save([Change(alive, running(alive.tasks["a"])), Change(lost, lost.tasks["a"])])
    assert store.load_run("r2", results=True) == alive  # all or nothing
    store.close()


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
