"""The journal: acknowledgement before children, group commit, and stores that fail (S1, R4)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence

import pytest

from flowrun import Change, Engine, RunQuery, RunRecord, RunSummary, TaskRecord, fn_hook
from flowrun.errors import (
    ResultNotStorableError,
    RunLostError,
    StoreError,
    StoreFullError,
    UnknownRunError,
)
from flowrun.state.journal import Journal
from flowrun.state.records import NoResult
from flowrun.state.starts import StartNotes, Starts

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


class ThirdPartyStore:
    """What somebody else might write: copies in a dictionary, behind a lock."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.blocking = blocking
        self.lock = threading.Lock()
        self.runs: dict[str, RunRecord] = {}
        self.saved: list[list[tuple[str | None, str]]] = []
        self.before: Callable[[str], object] = lambda what: None

    def create_run(self, run: RunRecord) -> None:
        self.before("create_run")
        with self.lock:
            self.runs[run.run_id] = copied(run)

    def save(self, changes: Sequence[Change]) -> None:
        self.before("save")
        for run, task in changes:
            if task is not None and isinstance(task.result, threading.Event):
                problem = "result: threading.Event"
                raise ResultNotStorableError(problem, run.run_id, task.name)
        with self.lock:
            self.saved.append(
                [(t and t.name, "end" if t is None else t.status.value) for _, t in changes]
            )
            for run, task in changes:
                kept = self.runs[run.run_id]
                if task is None:
                    kept.finished_at, kept.error, kept.alive = run.finished_at, run.error, False
                else:
                    if task.result is NoResult.STORED:
                        task.result = kept.tasks[task.name].result
                    kept.tasks[task.name] = task

    def load_run(self, run_id: str, *, results: bool) -> RunRecord:
        with self.lock:
            if run_id not in self.runs:
                raise UnknownRunError(run_id)
            return copied(self.runs[run_id])

    def load_results(self, run_id: str, task_names: Collection[str]) -> dict[str, object]:
        return {name: self.runs[run_id].tasks[name].result for name in task_names}

    def list_runs(self, query: RunQuery) -> list[RunSummary]:
        runs = [run.summary() for run in reversed(self.runs.values())]
        return [run for run in runs if query.resumed_from in (None, run.resumed_from)]

    def prune_runs(self, *, keep_last: int | None, created_before: float | None) -> int:
        return 0

    def close(self) -> None:
        pass


def copied(run: RunRecord) -> RunRecord:
    tasks: dict[str, TaskRecord] = {name: task.copy() for name, task in run.tasks.items()}
    twin = RunRecord(
        run.run_id,
        run.dag_name,
        run.created_at,
        tasks,
        metadata=run.metadata,
        resumed_from=run.resumed_from,
        targets=run.targets,
    )
    twin.finished_at, twin.error, twin.alive = run.finished_at, run.error, run.alive
    return twin


def declare_chain(engine: Engine, ran: list[str] | None = None) -> None:
    noted = ran if ran is not None else []
    engine.task(name="a", dag="d")(lambda: noted.append("a") or 1)
    engine.task(name="b", dag="d", retain_result=False)(lambda a: noted.append("b") or a + 1)

    @engine.task(dag="d")
    async def c(b: int) -> int:
        noted.append("c")
        return b + 1


@pytest.mark.parametrize("blocking", [True, False])
async def test_any_store_that_follows_the_protocol_works(
    make_engine: MakeEngine, blocking: bool
) -> None:
    engine = make_engine(state_store=ThirdPartyStore(blocking=blocking))
    declare_chain(engine)
    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    assert report["status"] == "SUCCESS"
    assert [task["result_state"] for task in report["tasks"].values()] == [
        "kept",
        "released",
        "kept",
    ]
    assert report["tasks"]["c"]["result"] == 3
    assert report["finished_at"] is not None


async def test_children_and_hooks_wait_for_the_acknowledgement(
    make_engine: MakeEngine,
) -> None:  # S1
    store = ThirdPartyStore()
    engine = make_engine(
        state_store=store,
        hooks=[fn_hook(on_task_success=lambda event: told.append(event.task_name))],
    )
    told: list[str] = []
    ran: list[str] = []
    declare_chain(engine, ran)
    may_save = threading.Event()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def before(what: str) -> None:
        if what == "save" and "a" in ran:
            loop.call_soon_threadsafe(asked.set)
            assert may_save.wait(WAIT_S)

    store.before = before
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(asked.wait(), WAIT_S)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (ran, told) == (["a"], [])
    may_save.set()
    await run
    assert (ran, told) == (["a", "b", "c"], ["a", "b", "c"])


async def test_what_settles_meanwhile_goes_with_the_next_transaction(
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store, max_parallel=50)
    all_ran = threading.Event()
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)
        if len(ran) == 50:
            all_ran.set()

    for number in range(50):
        engine.task(name=f"t{number}", dag="d")(work)
    store.before = lambda what: what != "save" or all_ran.wait(WAIT_S)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert len(store.saved) < 10


@pytest.mark.parametrize("blocking", [True, False])
async def test_result_that_cannot_be_kept_fails_the_attempt_without_retry(
    make_engine: MakeEngine, blocking: bool
) -> None:
    engine = make_engine(state_store=ThirdPartyStore(blocking=blocking))
    calls: list[int] = []

    @engine.task(dag="d", retries=3)
    def bad() -> object:
        calls.append(1)
        return threading.Event()

    engine.task(name="good", dag="d")(lambda: "kept")
    engine.task(name="after", dag="d", deps=[bad])(lambda: None)
    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    assert statuses(report) == {"bad": "FAILED", "good": "SUCCESS", "after": "SKIPPED"}
    assert "threading.Event" in (report["tasks"]["bad"]["error"] or "")
    assert calls == [1]


@pytest.mark.parametrize("blocking", [True, False])
async def test_store_that_fails_at_the_nth_call_ends_the_run_for_every_n(  # R4
    make_engine: MakeEngine, blocking: bool
) -> None:
    clean = 0
    for nth in range(1, 100):
        store = ThirdPartyStore(blocking=blocking)
        engine = make_engine(state_store=store, max_parallel=1)
        ran: list[str] = []
        declare_chain(engine, ran)
        calls = [0]

        def before(what: str, nth: int = nth, calls: list[int] = calls) -> None:
            calls[0] += 1
            if calls[0] == nth:
                msg = "the disk is full"
                raise StoreFullError(msg)

        store.before = before
        try:
            run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        except StoreError as error:
            assert "disk is full" in str(error)
        else:
            assert engine.get_run_report(run_id)["status"] == "SUCCESS"
            clean += 1
            if clean == 3:
                break
            continue
        for summary in engine.list_runs():
            report = engine.get_run_report(summary.run_id)
            assert report["finished_at"] is not None, nth
            assert set(statuses(report).values()) <= {"SUCCESS", "FAILED", "SKIPPED"}, nth
            # S1: what was acknowledged is not run again.
            done = [name for name, task in report["tasks"].items() if task["status"] == "SUCCESS"]
            if report["status"] == "SUCCESS":
                continue
            ran.clear()
            again = engine.get_run_report(await engine.resume(summary.run_id))
            assert again["status"] == "SUCCESS"
            assert "c" not in done or "c" not in ran
            assert "a" not in done or "a" not in ran
    else:
        pytest.fail("the run never got through")


async def test_error_that_is_no_store_error_ends_the_run_clearly_too(  # R4
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    declare_chain(engine)

    def before(what: str) -> None:
        if what == "save":
            raise ZeroDivisionError

    store.before = before
    with pytest.raises(StoreError, match="of DAG 'd' could not be saved: .* ZeroDivisionError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)


async def test_owed_end_of_a_run_is_reported_and_saved_later(make_engine: MakeEngine) -> None:  # D4
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    declare_chain(engine)
    full = [True]

    def before(what: str) -> None:
        if what == "save" and full:
            msg = "no space"
            raise StoreFullError(msg)

    store.before = before
    with pytest.raises(StoreFullError):
        await engine.run_once("d")
    (run,) = store.runs.values()
    assert run.finished_at is None
    assert engine.get_run_report(run.run_id)["finished_at"] is not None
    assert engine.list_runs()[0].finished_at is None
    full.clear()
    assert engine.list_runs()[0].finished_at is not None
    assert store.runs[run.run_id].status == "FAILED"


async def test_lost_run_ends_alone(make_engine: MakeEngine) -> None:  # D3
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    gate = asyncio.Barrier(2)

    @engine.task(dag="d")
    async def meet() -> None:
        await gate.wait()

    lost: list[str] = []
    original = store.save

    def save(changes: Sequence[Change]) -> None:
        for run, task in changes:
            if not lost and task is not None and task.status == "SUCCESS":
                lost.append(run.run_id)
            if lost and run.run_id == lost[0]:
                raise RunLostError(run.run_id)
        original(changes)

    store.save = save  # type: ignore[method-assign]
    results = await asyncio.gather(
        engine.run_once("d"), engine.run_once("d"), return_exceptions=True
    )
    errors = [result for result in results if isinstance(result, BaseException)]
    assert [type(error) for error in errors] == [RunLostError]
    (fine,) = [result for result in results if isinstance(result, str)]
    assert engine.get_run_report(fine)["status"] == "SUCCESS"
    engine.close()


async def cancelled_while_storing(
    engine: Engine, store: ThirdPartyStore, is_reached: Callable[[str], bool]
) -> RunSummary:
    """Cancel a run of DAG "d" while its store does what it is waited for; return how it ended."""
    reached, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def before(what: str) -> None:
        if is_reached(what):
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(WAIT_S)

    store.before = before
    run = asyncio.create_task(engine.run_once("d"))
    await asyncio.wait_for(reached.wait(), WAIT_S)  # the loop goes on meanwhile
    run.cancel()
    for _ in range(10):  # until the run has heard of it
        await asyncio.sleep(0)
    assert not run.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    (summary,) = engine.list_runs()
    return summary


async def test_cancelling_while_the_run_is_created_and_while_a_success_is_saved(  # R2
    make_engine: MakeEngine,
) -> None:
    for stop_at in ("create_run", "save"):
        store = ThirdPartyStore()
        engine = make_engine(state_store=store, max_parallel=1)
        ran: list[str] = []
        declare_chain(engine, ran)

        def is_reached(what: str, stop_at: str = stop_at, ran: list[str] = ran) -> bool:
            return what == stop_at and (bool(ran) or what == "create_run")

        summary = await cancelled_while_storing(engine, store, is_reached)
        report = engine.get_run_report(summary.run_id)
        assert report["finished_at"] is not None
        assert set(statuses(report).values()) <= {"SUCCESS", "FAILED", "SKIPPED"}
        assert report["tasks"]["c"]["reason"] == "RUN_CANCELLED"
        assert ran == ([] if stop_at == "create_run" else ["a"])


async def test_resume_loads_inputs_from_a_durable_store(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    fail = [True]
    engine.task(name="rows", dag="d")(lambda: [1, 2])

    @engine.task(dag="d")
    def total(rows: list[int]) -> int:
        if fail:
            fail.clear()
            raise ValueError
        return sum(rows)

    old = await engine.run_once("d")
    new = await engine.resume(old)
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == 3


def test_starts_are_due_when_they_stood_there_the_last_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("flowrun.state.starts.time.monotonic", lambda: now)
    first, second, third = tasks = [TaskRecord(name) for name in "abc"]
    starts = Starts(RunRecord("r", "d", 1.0, {}), object(), print)  # type: ignore[arg-type]
    notes = StartNotes()
    assert not notes.find_due()
    notes[first] = notes[second] = starts
    assert not notes.find_due()
    now += 0.005
    assert not notes.find_due()  # it was looked at a moment ago
    now += 0.02
    notes[third] = starts
    assert notes.find_due()
    assert notes.pop(second) is starts  # its end has come
    assert notes.take_due() == [(first, starts)]
    assert list(notes) == tasks[2:]
    assert not notes.take_due()


async def test_thread_that_a_mistake_has_ended_is_replaced(  # R4
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(state_store=ThirdPartyStore())
    declare_chain(engine)
    journal = engine._services.journal
    thread = started_thread(journal)

    def broken() -> bool:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda arguments: None)
        patch.setattr(journal._starts, "find_due", broken)
        assert journal.call(lambda: 1).result(WAIT_S) == 1
        thread.join(WAIT_S)
        assert not thread.is_alive()
    report = engine.get_run_report(await asyncio.wait_for(engine.run_once("d"), WAIT_S))
    assert report["status"] == "SUCCESS"


def started_thread(journal: Journal) -> threading.Thread:
    """Return the thread of a journal, once it has done something."""
    journal.call(lambda: None).result(WAIT_S)
    assert journal._thread is not None
    return journal._thread
