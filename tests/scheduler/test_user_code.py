"""What users hand in raises what is no ``Exception``: the run ends, and nothing hangs (R1, R4, A5).

Such errors are real: a panic in a library that is written in Rust is one, and ``sys.exit``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    Engine,
    InMemoryStateStore,
    PickleSerializer,
    ProcessPerAttemptExecutor,
    RetryPolicy,
    RunHook,
    RunRecord,
    SchedulerConfig,
    SqliteStateStore,
    TaskRecord,
    fn_hook,
)
from flowrun.errors import FlowrunError, StoreError
from flowrun.scheduler.results import is_to_be_awaited

from ..conftest import WAIT_S, statuses
from ..third_party import ThirdPartyStore

MakeEngine = Callable[..., Engine]


class PanicError(BaseException):
    """What is no ``Exception``."""


KINDS = [PanicError, SystemExit, GeneratorExit, asyncio.CancelledError]


class Closed:
    """A value that cannot be copied in any way."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> str:
        raise self.kind


class Uncopied(Closed):
    """The same, and says so itself."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise self.kind


def odd() -> Any:
    """Return a value whose class cannot be hashed; both raise when they are asked for anything.

    Not made beside the tests, as pytest asks every class that it finds there.
    """

    class Meta(type):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(cls, other: object) -> bool:
            raise PanicError

        def __getattr__(cls, name: str) -> object:
            raise PanicError

    class Odd(metaclass=Meta):
        @property
        def __class__(self) -> Any:
            raise PanicError

    return Odd()


async def finished(engine: Engine, dag: str = "d") -> dict[str, str]:
    """Run a DAG and return how its tasks have ended."""
    run_id = await asyncio.wait_for(engine.run_once(dag), WAIT_S)
    return statuses(engine.get_run_report(run_id))


async def next_run_gets_the_slot(engine: Engine) -> None:
    engine.task(name="next", dag="after")(lambda: 1)
    assert await finished(engine, "after") == {"next": "SUCCESS"}


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [Closed, Uncopied])
async def test_input_that_cannot_be_copied_is_shared(  # S4
    make_engine: MakeEngine, value: type[Closed], kind: type[BaseException], is_async: bool
) -> None:
    engine = make_engine(max_parallel=1)
    made = value(kind)
    given: list[Closed] = []

    async def take_async(make: Closed) -> None:
        given.append(make)

    def take(make: Closed) -> None:
        given.append(make)

    engine.task(name="make", dag="d")(lambda: made)
    engine.task(name="take", dag="d")(take_async if is_async else take)
    assert await finished(engine) == {"make": "SUCCESS", "take": "SUCCESS"}
    assert given == [made]
    await next_run_gets_the_slot(engine)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("durable", [True, False])
async def test_result_of_an_odd_class(
    make_engine: MakeEngine, tmp_path: Path, is_async: bool, durable: bool
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    engine = make_engine(state_store=store)

    async def make_async() -> object:
        return odd()

    engine.task(name="odd", dag="d")(make_async if is_async else odd)
    # The default serializer has no way to keep it, and says so.
    assert await finished(engine) == {"odd": "FAILED" if durable else "SUCCESS"}
    engine.close()
    store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_result_that_cannot_be_pickled_fails_its_task_alone(  # D1 R5
    make_engine: MakeEngine, tmp_path: Path, kind: type[BaseException]
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db", PickleSerializer())
    engine = make_engine(state_store=store)
    both = asyncio.Barrier(2)

    @engine.task(dag="bad")
    async def bad() -> dict[str, object]:
        await both.wait()
        return {"rows": [1, Closed(kind)]}

    @engine.task(dag="good")
    async def good() -> int:
        await both.wait()
        return 1

    one, other = await asyncio.gather(finished(engine, "bad"), finished(engine, "good"))
    assert (one, other) == ({"bad": "FAILED"}, {"good": "SUCCESS"})
    error = engine.get_run_report(engine.list_runs("bad")[0].run_id)["tasks"]["bad"]["error"] or ""
    assert "result['rows'][1]: " in error
    assert "Closed cannot be pickled" in error
    engine.close()
    store.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocking", [True, False])
async def test_store_that_raises_ends_the_run(  # R1 R4
    make_engine: MakeEngine, kind: type[BaseException], blocking: bool
) -> None:
    store = ThirdPartyStore(blocking=blocking)
    engine = make_engine(state_store=store, max_parallel=1)
    engine.task(name="a", dag="d")(lambda: 1)
    engine.task(name="b", dag="d", deps=["a"])(lambda: 1)
    broken = [True]

    def before(what: str) -> None:
        if what == "save" and broken:
            raise kind

    store.before = before
    with pytest.raises(StoreError, match="of DAG 'd' could not be saved: the state store failed"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    assert engine.get_run_report(next(iter(store.runs)))["finished_at"] is not None
    assert [run.finished_at for run in engine.list_runs()] == [None]  # still owed
    broken.clear()
    assert engine.list_runs()[0].finished_at is not None
    await next_run_gets_the_slot(engine)


async def test_what_kills_one_save_leaves_the_others(make_engine: MakeEngine) -> None:  # R5
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Store(ThirdPartyStore):
        def save(self, changes: Sequence[Change]) -> None:
            if any(run.dag_name == "bad" and task is not None for run, task in changes):
                if threading.current_thread().name == "flowrun-journal" and not entered.is_set():
                    loop.call_soon_threadsafe(entered.set)
                    asyncio.run_coroutine_threadsafe(three_more_wait(), loop).result(WAIT_S)
                raise PanicError
            super().save(changes)

    async def three_more_wait() -> None:
        while engine._parts.services.journal._queue.qsize() < 3:
            await asyncio.sleep(0)

    engine = make_engine(state_store=Store())
    engine.task(name="a", dag="bad")(lambda: 1)
    engine.task(name="a", dag="good")(lambda: 1)
    bad = asyncio.create_task(engine.run_once("bad"))
    await asyncio.wait_for(entered.wait(), WAIT_S)
    good = [asyncio.create_task(finished(engine, "good")) for _ in range(3)]
    with pytest.raises(StoreError, match="PanicError"):
        await bad
    assert await asyncio.gather(*good) == [{"a": "SUCCESS"}] * 3
    assert await finished(engine, "good") == {"a": "SUCCESS"}


class Strict(PickleSerializer):
    """Raises whatever it likes, and returns what is not bytes."""

    def serialize(self, obj: Any) -> Any:
        if obj == "bad":
            raise TypeError(obj)
        return bytearray(super().serialize(obj)) if obj == "array" else super().serialize(obj)


async def test_serializer_that_raises_fails_the_attempt_alone(  # D1 R5
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db", Strict())
    engine = make_engine(state_store=store)
    both = asyncio.Barrier(2)

    @engine.task(dag="bad")
    async def bad() -> str:
        await both.wait()
        return "bad"

    @engine.task(dag="good")
    async def good() -> str:
        await both.wait()
        return "array"

    one, other = await asyncio.gather(finished(engine, "bad"), finished(engine, "good"))
    assert (one, other) == ({"bad": "FAILED"}, {"good": "SUCCESS"})
    report = engine.get_run_report(engine.list_runs("bad")[0].run_id)
    assert "task 'bad'" in (report["tasks"]["bad"]["error"] or "")
    assert report["error"] is None
    report = engine.get_run_report(engine.list_runs("good")[0].run_id)
    assert report["tasks"]["good"]["result"] == "array"
    engine.close()
    store.close()


async def test_result_longer_than_a_row_may_be_fails_the_attempt_alone(  # D1 R5
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db", PickleSerializer())
    assert store._connections.longest_result > 100_000_000  # a billion bytes is the usual limit
    store._connections.longest_result = 50_000
    engine = make_engine(state_store=store)
    engine.task(name="long", dag="d")(lambda: b"x" * 60_000)
    engine.task(name="short", dag="d")(lambda: b"x" * 40_000)
    assert await finished(engine) == {"long": "FAILED", "short": "SUCCESS"}
    error = engine.get_run_report(engine.list_runs()[0].run_id)["tasks"]["long"]["error"] or ""
    assert "and SQLite keeps at most 50,000 in a row" in error
    engine.close()
    store.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["retry_on", "no_retry_on"])
async def test_predicate_that_raises_means_no_retry(
    engine: Engine, caplog: pytest.LogCaptureFixture, kind: type[BaseException], option: str
) -> None:
    def broken(error: BaseException) -> bool:
        raise kind

    @engine.task(dag="d", retries=RetryPolicy(1, **{option: broken}))  # type: ignore[arg-type]
    def fails() -> None:
        raise ValueError

    assert await finished(engine) == {"fails": "FAILED"}
    (said,) = [each for each in caplog.messages if "predicate" in each]
    problem = f"failed with {kind.__name__}, so it is not retried"
    assert said == f"task 'fails': a predicate of its RetryPolicy {problem}"


async def test_future_that_cannot_be_asked_or_cancelled_keeps_no_run_from_ending(
    make_engine: MakeEngine,
) -> None:
    class Sullen(concurrent.futures.Future[Any]):
        def cancel(self) -> bool:
            raise NotImplementedError

        def running(self) -> bool:
            raise NotImplementedError

    class Never(concurrent.futures.Executor):
        def submit(self, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
            return Sullen()

    engine = make_engine(executor=Never(), config=SchedulerConfig(thread_grace_s=0.02))
    engine.task(name="a", dag="d")(lambda: 1)
    run_id = await asyncio.wait_for(engine.run_once("d", timeout_s=0.05), WAIT_S)
    task = engine.get_run_report(run_id)["tasks"]["a"]
    assert (task["status"], task["reason"], task["abandoned"]) == ("FAILED", "RUN_TIMED_OUT", True)


@pytest.mark.parametrize("kind", KINDS)
async def test_executor_that_raises_fails_the_attempt(
    make_engine: MakeEngine, kind: type[BaseException]
) -> None:
    class Refusing(concurrent.futures.ThreadPoolExecutor):
        refuses = True

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            if self.refuses:
                raise kind
            return super().submit(*args, **kwargs)

    ended: list[str] = []
    with Refusing(1) as pool:
        engine = make_engine(
            executor=pool,
            max_parallel=1,
            hooks=[fn_hook(on_dag_end=lambda event: ended.append(event.status))],
        )
        engine.task(name="a", dag="d")(lambda: 1)
        engine.task(name="b", dag="d", deps=["a"])(lambda: 1)
        assert await finished(engine) == {"a": "FAILED", "b": "SKIPPED"}
        assert ended == ["FAILED"]
        pool.refuses = False
        await next_run_gets_the_slot(engine)


@pytest.mark.parametrize("when", ["predicate", "copy", "executor", "log"])
async def test_ctrl_c_in_flowruns_own_code_cancels_the_run(  # R2
    make_engine: MakeEngine, when: str
) -> None:
    armed = [when]

    def interrupted(here: str) -> None:
        if armed == [here]:
            armed.clear()
            raise KeyboardInterrupt

    class Copied:
        def __deepcopy__(self, memo: object) -> Copied:
            interrupted("copy")
            return self

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            interrupted("executor")
            return super().submit(*args, **kwargs)

    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if "failed" in record.getMessage():
                interrupted("log")
            return True

    def may_retry(error: BaseException) -> bool:
        interrupted("predicate")
        return False

    log = logging.Logger("mine", logging.INFO)
    log.addFilter(Filter())
    with Pool(1) as pool:
        engine = make_engine(executor=pool, max_parallel=1, logger=log)

        @engine.task(dag="d")
        async def make() -> Copied:
            return Copied()

        @engine.task(dag="d", copy_inputs=True)
        async def take(make: Copied) -> None:
            pass

        @engine.task(dag="d", deps=["take"])
        def other() -> None:
            pass

        @engine.task(dag="d", deps=["other"], retries=RetryPolicy(1, retry_on=may_retry))
        async def fails() -> None:
            raise ValueError

        engine.task(name="last", dag="d", deps=["fails"])(lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            await engine.run_once("d")
        report = engine.get_run_report(engine.list_runs()[0].run_id)
        assert report["finished_at"] is not None
        assert (report["error"] or "").startswith("RUN_CANCELLED")
        assert not {"RUNNING", "PENDING"} & set(statuses(report).values())
        await next_run_gets_the_slot(engine)


def test_ctrl_c_in_a_values_own_code_is_not_taken_for_that_values(tmp_path: Path) -> None:
    class Meta(type):
        def __getattr__(cls, name: str) -> object:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        is_to_be_awaited(Meta("Odd", (), {})())
    with pytest.raises(KeyboardInterrupt):
        PickleSerializer().serialize(Closed(KeyboardInterrupt))
    with ProcessPerAttemptExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(print, Closed(KeyboardInterrupt))
    run = RunRecord("r", "d", 1.0, {"a": TaskRecord("a")})
    with closing(SqliteStateStore(tmp_path / "runs.db", PickleSerializer())) as store:
        store.create_run(run)
        task = run.tasks["a"].start(1.0, 1.0).succeed(1.0, Closed(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.save([Change(run, task)])


async def test_ctrl_c_while_what_is_owed_is_paid_leaves_it_owed(make_engine: MakeEngine) -> None:
    store = ThirdPartyStore()
    engine = make_engine(state_store=store)
    engine.task(name="a", dag="d")(lambda: 1)
    kinds: list[type[BaseException]] = [StoreError]

    def before(what: str) -> None:
        if what == "save" and kinds:
            raise kinds[0]

    store.before = before
    with pytest.raises(StoreError):
        await engine.run_once("d")
    kinds[0] = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        engine.list_runs()
    kinds.clear()
    assert engine.list_runs()[0].finished_at is not None


async def test_store_that_does_not_say_what_it_refuses_is_asked_run_by_run(  # R5
    make_engine: MakeEngine,
) -> None:
    together: list[set[str]] = []

    class Store(ThirdPartyStore):
        def save(self, changes: Sequence[Change]) -> None:
            together.append({run.dag_name for run, _ in changes})
            if any(run.dag_name == "bad" for run, task in changes if task is not None):
                raise ValueError
            super().save(changes)

    engine = make_engine(state_store=Store())
    begin, begun, go_on = asyncio.Event(), asyncio.Barrier(3), threading.Event()

    async def work() -> None:
        await begun.wait()
        await begin.wait()

    for dag in ("bad", "good"):
        engine.task(name="a", dag=dag)(work)
    journal = engine._parts.services.journal
    runs = [asyncio.create_task(engine.run_once(dag)) for dag in ("bad", "good")]
    await asyncio.wait_for(begun.wait(), WAIT_S)
    held = journal.call_from_loop(lambda: go_on.wait(WAIT_S))
    begin.set()
    while journal._queue.qsize() < 2:
        await asyncio.sleep(0)
    go_on.set()
    await held
    with pytest.raises(StoreError, match="run '.*' of DAG 'bad' could not be saved"):
        await runs[0]
    assert engine.get_run_report(await runs[1])["status"] == "SUCCESS"
    assert {"bad", "good"} in together


@pytest.mark.parametrize("durable", [True, False])
async def test_what_a_task_interrupts_is_cancelled_in_any_store(  # R2
    make_engine: MakeEngine, tmp_path: Path, durable: bool
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    told: list[tuple[str, str]] = []
    hook = fn_hook(
        on_task_failure=lambda event: told.append((event.task_name, event.reason)),
        on_task_skip=lambda event: told.append((event.task_name, event.reason)),
    )
    engine = make_engine(state_store=store, hooks=[hook])

    @engine.task(dag="d")
    def interrupts() -> None:
        raise KeyboardInterrupt

    engine.task(name="child", dag="d", deps=["interrupts"])(lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    assert told == [("interrupts", "RUN_CANCELLED"), ("child", "RUN_CANCELLED")]
    engine.close()
    store.close()


async def test_interrupt_beside_a_call_that_cannot_be_cancelled(make_engine: MakeEngine) -> None:
    class Stubborn(concurrent.futures.Future[object]):
        def cancel(self) -> bool:
            raise OSError

    class Pool(concurrent.futures.Executor):
        future = Stubborn()

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            return self.future

    engine = make_engine(executor=Pool(), config=SchedulerConfig(cancel_grace_s=0.01))
    engine.task(name="elsewhere", dag="d")(lambda: 1)

    @engine.task(dag="d")
    async def interrupts() -> None:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_later(0.1, Pool.future.set_result, None)
    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    (run,) = engine.list_runs()
    assert run.finished_at is not None
    assert run.task_counts == {"FAILED": 2}


@pytest.mark.parametrize("durable", [True, False])
async def test_log_that_always_raises_leaves_a_record_that_has_ended(  # R1 R4
    make_engine: MakeEngine, tmp_path: Path, durable: bool
) -> None:
    class Filter(logging.Filter):
        raises = True

        def filter(self, record: logging.LogRecord) -> bool:
            if self.raises:
                raise PanicError
            return True

    log, filter_ = logging.Logger("mine", logging.INFO), Filter()
    log.addFilter(filter_)
    store = SqliteStateStore(tmp_path / "runs.db") if durable else InMemoryStateStore()
    engine = make_engine(state_store=store, logger=log, max_parallel=1)
    engine.task(name="a", dag="d")(lambda: 1)
    engine.task(name="b", dag="d", deps=["a"])(lambda: 1)
    with pytest.raises(FlowrunError, match="PanicError"):
        await asyncio.wait_for(engine.run_once("d"), WAIT_S)
    filter_.raises = False
    (run,) = engine.list_runs()
    assert run.finished_at is not None
    assert not {"RUNNING", "PENDING"} & set(run.task_counts)
    await next_run_gets_the_slot(engine)
    engine.close()
    store.close()


class Seen:
    """Where a secret may not be seen."""

    def __init__(self, store: Any = None, **options: Any) -> None:
        self.texts: list[str] = []
        self.log = logging.Logger("mine", logging.DEBUG)
        handler = logging.Handler()
        handler.emit = lambda record: self.texts.append(  # type: ignore[method-assign]
            logging.Formatter("%(message)s").format(record)
        )
        self.log.addHandler(handler)

        def hear(event: object) -> None:
            self.texts.append(repr(event))

        hooks: list[RunHook] = [
            fn_hook(on_dag_end=hear, on_task_failure=hear, on_task_skip=hear, on_task_retry=hear),
            *options.pop("hooks", ()),
        ]
        self.options = {
            "logger": self.log,
            "hooks": hooks,
            "redact": lambda text: text.replace("SECRET", "***"),
            "state_store": store,
            **options,
        }


async def test_secret_of_an_interrupt_is_redacted(make_engine: MakeEngine) -> None:  # V2
    seen = Seen()
    engine = make_engine(**seen.options)

    @engine.task(dag="d")
    def interrupts() -> None:
        raise KeyboardInterrupt("SECRET")

    with pytest.raises(KeyboardInterrupt):
        await engine.run_once("d")
    shown = [*seen.texts, repr(engine.get_run_report(engine.list_runs()[0].run_id))]
    assert sum("***" in text for text in shown) >= 3
    assert not [text for text in shown if "SECRET" in text]


async def test_secret_of_a_store_is_redacted(make_engine: MakeEngine) -> None:  # V2
    store = ThirdPartyStore()
    seen = Seen(store)
    engine = make_engine(**seen.options)
    engine.task(name="a", dag="d")(lambda: 1)
    engine.task(name="b", dag="d", deps=["a"])(lambda: 1)

    def before(what: str) -> None:
        if what == "save":
            raise RuntimeError("SECRET")

    store.before = before
    with pytest.raises(StoreError):
        await engine.run_once("d")
    engine.list_runs()  # tries again, and tells of that
    shown = [*seen.texts, repr(engine.get_run_report(next(iter(store.runs))))]
    assert sum("***" in text for text in shown) >= 4
    assert any("still cannot be saved" in text for text in shown)
    assert not [text for text in shown if "SECRET" in text]


async def test_secret_of_a_hook_and_of_an_error_inside_is_redacted(  # V2
    make_engine: MakeEngine,
) -> None:
    def chance() -> float:
        raise ValueError("SECRET")

    def fails(event: object) -> None:
        raise ValueError("SECRET")

    seen = Seen(hooks=[fn_hook(on_dag_start=fails)], config=SchedulerConfig(chance=chance))
    engine = make_engine(**seen.options)

    @engine.task(dag="d", retries=RetryPolicy(1, delay_s=1, jitter=1))
    def work() -> None:
        raise ValueError

    with pytest.raises(FlowrunError):
        await engine.run_once("d")
    shown = [*seen.texts, repr(engine.get_run_report(engine.list_runs()[0].run_id))]
    assert any("hook" in text and "***" in text for text in shown)
    assert any("broke" in text and "***" in text for text in shown)
    assert not [text for text in shown if "SECRET" in text]


async def test_result_that_sqlite_itself_refuses_is_never_half_written(  # D4
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    with closing(SqliteStateStore(tmp_path / "runs.db", PickleSerializer())) as store:
        store._connections._writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
        engine = make_engine(state_store=store)
        engine.task(name="long", dag="d")(lambda: b"x" * 60_000)
        with pytest.raises(StoreError, match="too big"):
            await asyncio.wait_for(engine.run_once("d"), WAIT_S)
        (run,) = engine.list_runs()
        assert run.task_counts == {"FAILED": 1}
        engine.close()
