"""The journal: acknowledgement before children, group commit, and stores that fail (S1, R4)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

import pytest

from flowrun import Change, Engine, RunRecord, RunSummary, fn_hook
from flowrun.errors import (
    RunLostError,
    StoreError,
    StoreFullError,
)
from flowrun.state.journal import Journal

from ..conftest import WAIT_S, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


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


async def test_answer_of_a_call_can_be_waited_for_and_raises_what_the_call_raised() -> None:
    store = ThirdPartyStore()
    journal = Journal(store, logging.getLogger("test"))
    may_end = threading.Event()
    slow = journal.call_from_loop(lambda: may_end.wait(WAIT_S))
    failing = journal.call_from_loop(lambda: 1 / 0)
    cancelled = journal.call_from_loop(lambda: 1)
    cancelled.cancel()
    assert not slow.done()  # and the loop goes on
    may_end.set()
    assert await asyncio.wait_for(slow, WAIT_S) is True
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(failing, WAIT_S)
    with pytest.raises(ZeroDivisionError):
        journal.call(lambda: 1 / 0)
    assert journal.call(lambda: journal.call(lambda: 7)) == 7  # in its own thread at once
    journal.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_journal_whose_thread_an_answer_has_ended_starts_another_one() -> None:
    store = ThirdPartyStore()
    journal = Journal(store, logging.getLogger("test"))
    first = journal.call(threading.current_thread)

    def end_the_thread(_: object) -> None:
        raise SystemExit

    run = RunRecord("r", "d", 1.0, {})
    store.create_run(run)
    journal.submit([Change(run, None)], end_the_thread)
    first.join(WAIT_S)
    assert not first.is_alive()
    assert journal.call(threading.current_thread) is not first
    journal.close()


async def test_resume_saves_first_what_the_store_had_refused(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1)
    refuses = [True]

    def before(what: str) -> None:
        if what == "save" and refuses:
            raise StoreFullError("full")

    store.before = before
    with pytest.raises(StoreError):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    refuses.clear()
    (run_id,) = store.runs
    resumed = await asyncio.wait_for(engine.resume(run_id), WAIT_S)
    assert statuses(engine.get_run_report(resumed)) == {"a": "SUCCESS"}
    assert store.runs[run_id].finished_at is not None


async def test_interrupt_in_a_store_that_does_not_block_cancels_the_run(  # R2
    make_engine: MakeEngine,
) -> None:
    store = ThirdPartyStore(blocking=False)
    engine = make_engine(state_store=store)

    @engine.task(dag="d")
    async def a() -> None:
        return None

    armed = [True]

    def before(what: str) -> None:
        if what == "save" and armed:
            armed.clear()
            raise KeyboardInterrupt

    store.before = before
    run = engine.run_once("d")
    with pytest.raises(KeyboardInterrupt):
        # Driven by hand: a task would hand a KeyboardInterrupt to the event loop.
        while True:
            future = run.send(None)
            if future is not None:
                future._asyncio_future_blocking = False
                await asyncio.wait([future])
    (summary,) = engine.list_runs()
    assert summary.finished_at is not None
