"""What happens when the surroundings misbehave: clocks, loops, executors, inputs (R3-R5, A3)."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from flowrun import Engine, RunHook, SchedulerConfig, build_default_engine, fn_hook
from flowrun.config import Clock
from flowrun.errors import FlowrunError

from ..conftest import WAIT_S, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


class BreakingClock(Clock):
    """A clock that fails once, at its n-th reading."""

    def __init__(self, nth: int, times: int = 1) -> None:
        self.left = nth
        self.times = times
        self.broke = False

    def monotonic(self) -> float:  # type: ignore[override]
        self.left -= 1
        if -self.times < self.left <= 0:
            self.broke = True
            msg = "the clock broke"
            raise ZeroDivisionError(msg)
        return Clock.monotonic()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("durable", [False, True])
async def test_error_at_any_point_inside_flowrun_ends_the_run_and_never_hangs(  # R4
    make_engine: MakeEngine, durable: bool, times: int
) -> None:
    clean = 0
    for nth in range(1, 200):
        clock = BreakingClock(nth, times)
        store: dict[str, Any] = {"state_store": ThirdPartyStore()} if durable else {}
        engine = make_engine(config=SchedulerConfig(clock=clock), **store)
        calls: list[int] = []

        async def a(calls: list[int] = calls) -> int:
            calls.append(1)
            await asyncio.sleep(0)
            if len(calls) == 1:
                raise ValueError
            return 1

        engine.task(name="a", dag="d", retries=1)(a)
        engine.task(name="b", dag="d")(lambda: 2)
        engine.task(name="c", dag="d", deps=["a", "b"])(lambda: 3)
        try:
            run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        except (FlowrunError, ZeroDivisionError):
            assert clock.broke
        else:
            if not clock.broke:
                assert engine.get_run_report(run_id)["status"] == "SUCCESS"
                clean += 1
                if clean == 3:
                    return
        for run in engine.list_runs():
            if run.finished_at is not None:
                assert set(statuses(engine.get_run_report(run.run_id)).values()) <= {
                    "SUCCESS",
                    "FAILED",
                    "SKIPPED",
                }
        # No slot is lost: the engine still works.
        clock.left = -times
        assert engine.get_run_report(await engine.run_once("d"))["status"] == "SUCCESS"
    pytest.fail("the run never got through")


@pytest.mark.parametrize("tick", [1e-3, 1e-9])
async def test_many_launches_in_one_go_let_the_loop_breathe(
    make_engine: MakeEngine, tick: float
) -> None:
    class Ticking(Clock):
        def __init__(self) -> None:
            self.now = 0.0

        def monotonic(self) -> float:  # type: ignore[override]
            self.now += tick
            return self.now

    engine = make_engine(config=SchedulerConfig(clock=Ticking()), max_parallel=500)

    async def work() -> None:
        await asyncio.sleep(0)

    for number in range(400):
        engine.task(name=f"t{number}", dag="d", timeout_s=None)(work)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


def test_loop_that_is_closed_under_a_waiting_run_takes_no_slot_along(  # R3 R5
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(max_parallel=1)
    gate = threading.Event()
    begun = threading.Event()

    @engine.task(dag="hold", timeout_s=None)
    def hold() -> None:
        begun.set()
        gate.wait(WAIT_S)

    engine.task(name="a", dag="d")(lambda: 1)
    holder = threading.Thread(target=lambda: asyncio.run(engine.run_once("hold")))
    holder.start()
    assert begun.wait(WAIT_S)
    loop = asyncio.new_event_loop()
    lost = loop.create_task(engine.run_once("d"))
    for _ in range(10):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    lost._log_destroy_pending = False  # type: ignore[attr-defined]
    gate.set()
    holder.join(WAIT_S)
    assert engine.get_run_report(asyncio.run(engine.run_once("d")))["status"] == "SUCCESS"
    engine.close()  # does not wait for a run that will never end


async def test_aclose_does_not_wait_for_a_closed_loop(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @engine.task(dag="d")
    async def forever() -> None:
        await asyncio.Event().wait()

    def start_and_leave() -> None:
        loop = asyncio.new_event_loop()
        lost = loop.create_task(engine.run_once("d"))
        for _ in range(5):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        lost._log_destroy_pending = False  # type: ignore[attr-defined]

    await asyncio.to_thread(start_and_leave)
    await asyncio.wait_for(engine.aclose(), WAIT_S)


async def test_call_that_ends_at_the_very_moment_it_is_told_to_stop(  # A3
    make_engine: MakeEngine,
) -> None:
    class Racing(Future[Any]):
        def cancel(self) -> bool:
            if not self.done():
                self.set_result(None)
            return False

    class Pool(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = Racing()
            future.set_running_or_notify_cancel()
            return future

    engine = make_engine(executor=Pool())
    engine.task(name="a", dag="d", timeout_s=0.01)(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")
    assert len(task["attempts"]) == 1


async def test_timeout_during_a_cancellation_changes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(config=SchedulerConfig(cancel_grace_s=WAIT_S))
    begun = asyncio.Event()

    @engine.task(dag="d", timeout_s=1)
    async def slow() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1.2)  # beyond its own timeout

    run = asyncio.create_task(engine.run_once("d"))
    await begun.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    task = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["slow"]
    assert (task["reason"], task["abandoned"]) == ("RUN_CANCELLED", False)


async def test_abandoned_attempt_is_saved_while_its_retry_waits(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    release = threading.Event()
    calls: list[int] = []

    @engine.task(dag="d", timeout_s=1.0, retries=1)
    def slow() -> int:
        calls.append(1)
        if len(calls) == 1:
            release.wait(WAIT_S)
        return len(calls)

    run = asyncio.create_task(engine.run_once("d"))
    while not any(("slow", "FAILED") in batch for batch in store.saved):
        await asyncio.sleep(0)
    release.set()
    report = engine.get_run_report(await asyncio.wait_for(run, WAIT_S))
    assert report["tasks"]["slow"]["result"] == 2
    assert report["tasks"]["slow"]["attempts"][0]["abandoned"] is True


async def test_custom_task_factory_makes_a_task_for_each_async_task(
    make_engine: MakeEngine,
) -> None:
    made: list[asyncio.Task[Any]] = []
    inside: list[object] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coroutine, loop=loop, **options))
        return made[-1]

    engine = make_engine()

    @engine.task(dag="d")
    async def a() -> None:
        inside.append(asyncio.current_task())

    @engine.task(dag="d", deps=[a])
    async def b() -> None:
        inside.append(asyncio.current_task())

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        run_id = await engine.run_once("d")
    finally:
        loop.set_task_factory(None)
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert inside == made[:2]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has no eager tasks before 3.12")
async def test_eager_task_factory_and_many_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine(max_parallel=2000)
    everybody = asyncio.Barrier(2000)
    for number in range(2000):
        engine.task(name=f"t{number}", dag="d")(everybody.wait)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - not in 3.11
    try:
        run_id = await engine.run_once("d")
    finally:
        loop.set_task_factory(None)
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


async def test_run_of_another_engine_inside_a_task_has_its_own_slots(
    make_engine: MakeEngine,
) -> None:
    with ThreadPoolExecutor(2) as pool:
        inner = make_engine(max_parallel=1)
        outer = make_engine(max_parallel=1, executor=pool)
        inner.task(name="a", dag="d")(lambda: 1)
        outer.task(name="b", dag="small")(lambda: 2)

        @outer.task(dag="big")
        async def nest() -> list[str]:
            runs = [(inner, await inner.run_once("d")), (outer, await outer.run_once("small"))]
            return [engine.get_run_report(run)["status"] for engine, run in runs]

        run_id = await asyncio.wait_for(outer.run_once("big"), WAIT_S)
        assert outer.get_run_report(run_id)["tasks"]["nest"]["result"] == ["SUCCESS", "SUCCESS"]


# -- hooks ------------------------------------------------------------------------------------


def test_wrong_hooks_are_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(TypeError, match="unknown event 'on_task_succes'.*'on_task_success'"):
        fn_hook(on_task_succes=print)
    with pytest.raises(TypeError, match="the handler for 'on_dag_end' must be callable, not int"):
        fn_hook(on_dag_end=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hooks= takes RunHook objects"):
        make_engine().add_hook(object())  # type: ignore[arg-type]


async def test_every_kind_of_hook_hears_the_run(make_engine: MakeEngine) -> None:
    heard: list[str] = []

    class Unhashable(list[str]):
        def __call__(self, event: Any) -> None:
            heard.append("unhashable")

    class Duck:
        def on_dag_end(self, event: Any) -> None:
            heard.append("duck")

    class Proper(RunHook):
        def on_dag_end(self, event: Any) -> None:
            heard.append("proper")

    engine = make_engine(hooks=[fn_hook(on_dag_end=Unhashable()), Duck()])
    engine.add_hook(Proper())
    engine.task(name="a", dag="d")(lambda: 1)
    await engine.run_once("d")
    assert heard == ["unhashable", "duck", "proper"]


async def test_every_event_of_a_silent_hook_costs_nothing(make_engine: MakeEngine) -> None:
    threads = set(threading.enumerate())
    engine = make_engine(hooks=[RunHook.__new__(type("Silent", (RunHook,), {}))])

    async def a() -> None:
        return None

    engine.task(name="a", dag="d")(a)
    await engine.run_once("d")
    assert set(threading.enumerate()) <= threads


def test_engine_that_is_dropped_without_closing_frees_its_graphs() -> None:
    import gc
    import weakref

    engine = build_default_engine()
    engine.task(name="a", dag="d")(lambda: 1)
    asyncio.run(engine.run_once("d"))
    reference = weakref.ref(engine)
    del engine
    gc.collect()
    assert reference() is None


# -- hooks on another executor, the journal, calls to other processes ------------------------------


def test_stuck_hook_on_a_plain_executor() -> None:  # R4
    import contextvars
    import logging

    from flowrun.hooks import DagEndEvent, HookDispatcher

    release, heard = threading.Event(), threading.Event()
    hooks = [
        fn_hook(on_dag_end=lambda event: release.wait(WAIT_S)),
        fn_hook(on_dag_end=lambda event: heard.set()),
    ]
    with ThreadPoolExecutor(2) as pool:
        dispatcher = HookDispatcher(hooks, pool, 0.0, logging.getLogger("test"))
        channel = dispatcher.channel(contextvars.copy_context(), lambda: None)
        channel.emit(DagEndEvent("r", "d", 1.0, "SUCCESS", 1.0, None))
        while not heard.is_set():
            channel.give_up_if_stuck()
        release.set()


def test_journal_writes_before_it_calls_and_in_bounded_batches() -> None:
    import logging

    from flowrun import Change, RunRecord
    from flowrun.state.journal import Journal

    class Slow:
        blocking = True

        def __init__(self) -> None:
            self.inside, self.go_on = threading.Event(), threading.Event()
            self.batches: list[int] = []

        def save(self, changes: Any) -> None:
            self.inside.set()
            assert self.go_on.wait(WAIT_S)
            self.batches.append(len(changes))

    store = Slow()
    journal = Journal(store, logging.getLogger("test"))  # type: ignore[arg-type]
    run = RunRecord("r", "d", 1.0, {})

    def submit() -> None:
        journal.submit([Change(run, None)], lambda errors: None)

    submit()
    assert store.inside.wait(WAIT_S)
    for _ in range(2500):
        submit()
    threading.Timer(0.0, store.go_on.set).start()
    assert journal.call(lambda: list(store.batches)) == [1, *[1000] * 2, 500]
    submit()
    journal.close()
    assert store.batches == [1, *[1000] * 2, 500, 1]


def test_what_is_submitted_while_the_journal_ends_is_written_all_the_same() -> None:
    import logging

    from flowrun import Change, RunRecord
    from flowrun.state.journal import Journal

    inside, go_on, written = threading.Event(), threading.Event(), threading.Event()
    batches: list[int] = []

    class Slow:
        blocking = True

        def save(self, changes: Any) -> None:
            inside.set()
            assert go_on.wait(WAIT_S)
            batches.append(len(changes))
            if len(batches) == 2:
                written.set()

    journal = Journal(Slow(), logging.getLogger("test"))  # type: ignore[arg-type]
    run = RunRecord("r", "d", 1.0, {})

    def submit() -> None:
        journal.submit([Change(run, None)], lambda errors: None)

    submit()
    assert inside.wait(WAIT_S)
    journal.close(timeout_s=0)
    submit()
    go_on.set()
    assert written.wait(WAIT_S)
    journal.close()
    assert batches == [1, 1]


def test_calls_to_other_processes_say_what_went_wrong() -> None:
    from flowrun.errors import NotPicklableError, RemoteTaskError
    from flowrun.executors.remote_call import Facts, PackedCall, RemoteCall, unpacked

    from ..executors import remote_tasks

    facts = Facts("r", "d", "t", 1, None)

    def packed(function: Any, *args: Any) -> Any:
        return unpacked(PackedCall(RemoteCall(function, args, {}, facts))())

    assert packed(remote_tasks.add, 1, 2).value == 3
    reply = packed(remote_tasks.add, remote_tasks.PicklesOnly(), 1)
    assert isinstance(reply.error, NotPicklableError)
    assert "could not be unpickled in the worker process" in reply.text
    assert isinstance(packed(remote_tasks.raise_changeling).error, RemoteTaskError)
    assert "lock" in packed(remote_tasks.return_lock).text
    with pytest.raises(NotPicklableError, match="task 't' cannot be pickled: ValueError: moody"):
        packed(remote_tasks.add, remote_tasks.Moody())
    with pytest.raises(KeyboardInterrupt):
        packed(remote_tasks.add, remote_tasks.Interrupting())
    mixed_up = unpacked(pickle.dumps("hello"))
    assert isinstance(mixed_up.error, NotPicklableError)
    assert "the worker process sent str, not a reply" in mixed_up.text


def test_door_lists_what_is_behind_it() -> None:
    import flowrun

    assert {"SqliteStateStore", "__version__", "build_default_engine"} <= set(dir(flowrun))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        flowrun.nothing  # noqa: B018
