"""What happens inside an attempt: its progress while it runs, and its log lines."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    ProcessPerAttemptExecutor,
    RunReport,
    SchedulerConfig,
    SqliteStateStore,
    TaskProgressEvent,
    current_attempt,
    fn_hook,
)
from flowrun.config import Clock
from flowrun.executors.attempt_logs import MOST_CHARACTERS, MOST_LINES

from ..conftest import WAIT_S
from ..executors import remote_tasks

MakeEngine = Callable[..., Engine]
KEEP = SchedulerConfig(keep_logs=True)
shop = logging.getLogger("shop")


@pytest.fixture(params=["memory", "sqlite"])
def make(
    request: pytest.FixtureRequest, make_engine: MakeEngine, tmp_path: Path
) -> Iterator[MakeEngine]:
    """Make engines on a store of each kind."""
    if request.param == "memory":
        yield make_engine
        return
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    yield partial(make_engine, state_store=store)
    store.close()


@pytest.fixture(autouse=True)
def informs() -> Iterator[None]:
    """Have the logger of these tests emit what is below a warning, too."""
    shop.setLevel(logging.INFO)
    yield
    shop.setLevel(logging.NOTSET)


def said(done: float, total: float | None = None, unit: str = "") -> dict[str, object]:
    return {"done": done, "total": total, "unit": unit}


def texts(report: RunReport, task: str, attempt: int = 1) -> list[str]:
    return [line["text"] for line in report["tasks"][task]["attempts"][attempt - 1]["logs"]]


# -- progress ----------------------------------------------------------------------------------


async def test_progress_of_a_task_that_runs_is_in_the_report_and_by_the_handle(
    make: MakeEngine,
) -> None:
    engine = make()
    told, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(dag="d")
    async def load() -> None:
        current_attempt().progress(1, 3, "rows")
        current_attempt().progress(2, 3, "rows")
        told.set()
        await go_on.wait()
        current_attempt().progress(3, 3, "rows")

    @engine.task(dag="d")
    async def silent() -> None:
        await go_on.wait()

    handle = engine.start("d")
    await asyncio.wait_for(told.wait(), WAIT_S)
    assert handle.task_progress == {"load": said(2, 3, "rows")}
    tasks = engine.get_run_report(handle.run_id)["tasks"]
    assert (tasks["load"]["status"], tasks["load"]["progress"]) == ("RUNNING", said(2, 3, "rows"))
    assert tasks["silent"]["progress"] is None
    # The same once the store has learnt that it runs.
    await asyncio.sleep(0.05)
    assert engine.get_run_report(handle.run_id)["tasks"]["load"]["progress"] == said(2, 3, "rows")
    go_on.set()
    report = await asyncio.wait_for(handle, WAIT_S)
    assert report["tasks"]["load"]["progress"] == said(3, 3, "rows")
    assert report["tasks"]["load"]["attempts"][0]["progress"] == said(3, 3, "rows")
    assert engine.get_run_report(handle.run_id) == report
    assert handle.task_progress == {}


async def test_each_attempt_keeps_its_last_progress_and_a_resume_takes_it_along(
    make: MakeEngine,
) -> None:
    engine = make()
    broken = [True]

    @engine.task(dag="d", retries=1)
    def fetch() -> None:
        attempt = current_attempt()
        attempt.progress(10 * attempt.attempt, unit="pages")
        if attempt.attempt == 1:
            message = "away"
            raise OSError(message)

    @engine.task(dag="d", deps=[fetch])
    def load() -> None:
        assert not broken

    run_id = await engine.run_once("d")
    broken.clear()
    resumed = await engine.resume(run_id)
    for each in (run_id, resumed):
        task = engine.get_run_report(each)["tasks"]["fetch"]
        assert task["progress"] == said(20, unit="pages")
        assert [attempt["progress"] for attempt in task["attempts"]] == [
            said(10, unit="pages"),
            said(20, unit="pages"),
        ]


async def test_hooks_get_the_newest_progress_and_few_events(make_engine: MakeEngine) -> None:
    seen: list[TaskProgressEvent] = []
    done = threading.Event()

    def keep(event: TaskProgressEvent) -> None:
        seen.append(event)
        if event.done == 10_000:
            done.set()

    engine = make_engine(hooks=[fn_hook(on_task_progress=keep)])

    @engine.task(dag="d")
    def load() -> None:
        for number in range(1, 10_001):
            current_attempt().progress(number, 20_000, "rows")
        assert done.wait(WAIT_S), "the last one is told while the task still runs"

    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"
    assert len(seen) < 100
    about = (run_id, "d", "load", seen[-1].timestamp, 1)
    assert seen[-1] == (*about, 10_000, 20_000, "rows", None)
    assert [event.done for event in seen] == sorted({event.done for event in seen})


async def test_hooks_get_the_progress_of_tasks_that_run_beside_each_other(
    make_engine: MakeEngine,
) -> None:
    seen: set[str] = set()
    all_told = threading.Event()

    def keep(event: TaskProgressEvent) -> None:
        seen.add(event.task_name)
        if len(seen) == 2:
            all_told.set()

    engine = make_engine(hooks=[fn_hook(on_task_progress=keep)])
    both = asyncio.Barrier(2)

    async def load() -> None:
        await both.wait()
        current_attempt().progress(1)
        assert await asyncio.to_thread(all_told.wait, WAIT_S)

    for name in ("one", "two"):
        engine.task(name=name, dag="d")(load)
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["status"] == "SUCCESS"


async def test_events_of_a_handle_have_the_progress(make_engine: MakeEngine) -> None:
    engine = make_engine()
    told = asyncio.Event()

    @engine.task(dag="d")
    async def load() -> None:
        current_attempt().progress(1)
        await asyncio.wait_for(told.wait(), WAIT_S)

    handle = engine.start("d")
    async for event in handle.events():
        if isinstance(event, TaskProgressEvent):
            assert (event.task_name, event.done, event.total) == ("load", 1, None)
            told.set()
    assert (await handle)["status"] == "SUCCESS"


class Hasty(Clock):
    """Does at once what is to be done later."""

    def call_later(self, loop: Any, delay_s: float, callback: Callable[[], object]) -> Any:
        return loop.call_soon(callback)


async def test_much_progress_leaves_room_for_the_other_events(make_engine: MakeEngine) -> None:
    engine = make_engine(config=SchedulerConfig(clock=Hasty()))

    @engine.task(dag="d")
    async def load() -> None:
        for number in range(11_000):
            current_attempt().progress(number)
            for _ in range(4):  # so many turns of the loop bring it to the handle
                await asyncio.sleep(0)

    handle = engine.start("d")
    await handle
    names = [type(event).__name__ async for event in handle.events()]
    assert names == ["DagStartEvent", "TaskStartEvent", "TaskSuccessEvent", "DagEndEvent"]


async def test_busy_hooks_are_told_later_and_hold_up_neither_run_nor_handle(
    make_engine: MakeEngine,
) -> None:
    go_on, last = threading.Event(), threading.Event()
    seen: list[float] = []

    def slow(event: TaskProgressEvent) -> None:
        seen.append(event.done)
        assert go_on.wait(WAIT_S)
        if event.done == 30:
            last.set()

    engine = make_engine(hooks=[fn_hook(on_task_progress=slow)])

    @engine.task(dag="d")
    async def load() -> None:
        for number in range(31):
            current_attempt().progress(number)
            await asyncio.sleep(0.02)
        assert await asyncio.to_thread(last.wait, WAIT_S)

    handle = engine.start("d")
    heard: list[float] = []
    async for event in handle.events():
        if isinstance(event, TaskProgressEvent):
            heard.append(event.done)
            if event.done == 30:
                go_on.set()
    assert (await handle)["status"] == "SUCCESS"
    assert len(seen) == 2
    assert seen[-1] == 30
    assert len(heard) > 2
    assert heard == sorted(set(heard))


async def test_what_is_said_just_before_the_end_is_no_event_of_a_task_that_has_ended(
    make_engine: MakeEngine,
) -> None:
    seen: list[str] = []
    hook = fn_hook(
        on_task_progress=lambda event: seen.append(event.task_name),
        on_task_success=lambda event: seen.append(event.task_name),
    )
    engine = make_engine(hooks=[hook])

    @engine.task(dag="d")
    async def quick() -> None:
        current_attempt().progress(1)

    @engine.task(dag="d", deps=[quick])
    async def after() -> None:
        await asyncio.sleep(0.2)

    await engine.run_once("d")
    assert seen == ["quick", "after"]


async def test_threads_that_carry_the_context_say_the_progress(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @engine.task(dag="d")
    def load() -> None:
        def work() -> None:
            current_attempt().progress(5, 5, "files")

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()

    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["load"]["progress"] == said(5, 5, "files")


async def test_numbers_of_other_libraries_are_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine()

    @engine.task(dag="d")
    def load() -> None:
        current_attempt().progress(Decimal("1.5"), Decimal(3))  # type: ignore[arg-type]

    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["load"]["progress"] == said(1.5, 3.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("3",), TypeError, "done of progress() must be a number, not '3'"),
        ((10**400,), TypeError, "done of progress() must be a number, not 1000"),
        ((-1,), ValueError, "done of progress() must be finite and 0 or more, not -1"),
        ((1, float("nan")), ValueError, "total of progress() must be finite and 0 or more"),
        ((1, "rows"), TypeError, "total of progress() must be a number, not 'rows'"),
        ((1, 2, 3), TypeError, "the unit of progress() must be a str, such as 'rows', not 3"),
    ],
)
async def test_wrong_progress_is_refused(
    make_engine: MakeEngine, arguments: Any, error: type[Exception], message: str
) -> None:
    engine = make_engine()

    @engine.task(dag="d")
    def load() -> None:
        current_attempt().progress(*arguments)

    task = engine.get_run_report(await engine.run_once("d"))["tasks"]["load"]
    assert task["error_type"] == error.__name__
    assert message in (task["error"] or "")
    assert task["progress"] is None


async def test_the_unit_is_redacted(make_engine: MakeEngine) -> None:  # V2
    units: list[str] = []
    told = threading.Event()

    def keep(event: TaskProgressEvent) -> None:
        units.append(event.unit)
        told.set()

    hooks = [fn_hook(on_task_progress=keep)]
    engine = make_engine(redact=lambda text: text.replace("secret", "*"), hooks=hooks)

    @engine.task(dag="d")
    def load() -> None:
        current_attempt().progress(1, unit="secret rows \ud800")
        assert told.wait(WAIT_S)

    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["load"]["progress"] == said(1, unit="* rows \\ud800")
    assert units == ["* rows \\ud800"]


@pytest.mark.parametrize("kind", ["fresh process", "pool"])
async def test_progress_and_logs_come_from_other_processes(
    make: MakeEngine, kind: str, tmp_path: Path, pools_collected: None
) -> None:
    pool: Any = ProcessPerAttemptExecutor(1)
    if kind == "pool":
        pool = ProcessPoolExecutor(1, get_context("spawn"))
    seen: list[float] = []
    gate = tmp_path / "gate"

    def open_gate(event: TaskProgressEvent) -> None:
        seen.append(event.done)
        gate.touch()

    with pool:
        if kind == "pool":  # which tells nothing before the end
            gate.touch()
        engine = make(
            executor=pool,
            config=KEEP,
            redact=lambda text: text.replace("secret", "*"),
            hooks=[fn_hook(on_task_progress=open_gate)],
        )
        tell = partial(remote_tasks.say_and_log, gate=str(gate))
        engine.task(name="tell", dag="d")(tell)
        report = engine.get_run_report(await engine.run_once("d"))
    task = report["tasks"]["tell"]
    assert task["error_message"] == "after all"
    assert task["progress"] == said(3, 3, "rows")
    assert texts(report, "tell") == ["a * warning", "1 of 3"]
    # What is said after the first one may be told, too, if the process takes its time to end.
    assert seen[:1] == ([1] if kind == "fresh process" else [])


async def test_progress_comes_from_another_process_where_no_logs_are_kept(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with ProcessPerAttemptExecutor(1) as pool:
        engine = make_engine(executor=pool)
        engine.task(name="tell", dag="d")(partial(remote_tasks.say_and_log, gate=str(gate)))
        report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["tell"]["progress"] == said(3, 3, "rows")
    assert texts(report, "tell") == []


# -- logs --------------------------------------------------------------------------------------


async def test_logs_are_kept_with_the_attempt_that_emitted_them(make: MakeEngine) -> None:
    engine = make(config=KEEP)

    @engine.task(dag="d", retries=1)
    def fetch() -> None:
        number = current_attempt().attempt
        shop.info("attempt %d begins", number)
        if number == 1:
            try:
                raise OSError
            except OSError:
                shop.exception("it failed")
                raise
        shop.debug("below the logger's level")

    @engine.task(dag="d")
    async def other() -> None:
        shop.warning("from the other")

    @engine.task(dag="d", deps=[fetch])
    def fails() -> None:
        shop.info("just before")
        raise KeyError

    run_id = await engine.run_once("d")
    report = engine.get_run_report(run_id)
    begins, failed = report["tasks"]["fetch"]["attempts"][0]["logs"]
    assert (begins["level"], begins["logger"]) == ("INFO", "shop")
    assert (begins["text"], failed["level"]) == ("attempt 1 begins", "ERROR")
    assert failed["text"].startswith("it failed\nTraceback (most recent call last):\n")
    assert failed["text"].endswith("\nOSError")
    assert report["created_at"] <= begins["time"] <= failed["time"]
    assert texts(report, "fetch", 2) == ["attempt 2 begins"]
    assert texts(report, "other") == ["from the other"]
    assert texts(report, "fails") == ["just before"]
    # A resume takes along those of the tasks that it keeps.
    resumed = engine.get_run_report(await engine.resume(run_id))
    assert resumed["tasks"]["fetch"]["attempts"] == report["tasks"]["fetch"]["attempts"]


async def test_each_item_of_a_mapped_task_has_progress_and_logs_of_its_own(
    make: MakeEngine,
) -> None:
    engine = make(config=KEEP)
    both, go_on = asyncio.Barrier(2), asyncio.Event()
    broken = [True]
    engine.task(name="pages", dag="d")(lambda: ["a", "b"])

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: str) -> str:
        shop.info("fetches %s", pages)
        current_attempt().progress(current_attempt().item or 0, 2, "rows")
        await both.wait()
        await go_on.wait()
        return pages

    @engine.task(dag="d", deps=[fetch])
    def load() -> None:
        assert not broken

    handle = engine.start("d")
    told: set[int | None] = set()
    async for event in handle.events():
        if isinstance(event, TaskProgressEvent):
            told.add(event.item)
            if len(told) == 2:
                assert handle.task_progress == {
                    "fetch[0]": said(0, 2, "rows"),
                    "fetch[1]": said(1, 2, "rows"),
                }
                items = engine.get_run_report(handle.run_id)["tasks"]["fetch"]["items"] or []
                assert [item["progress"] for item in items] == [
                    said(0, 2, "rows"),
                    said(1, 2, "rows"),
                ]
                go_on.set()
    assert told == {0, 1}
    broken.clear()
    for run_id in (handle.run_id, await engine.resume(handle.run_id)):
        items = engine.get_run_report(run_id)["tasks"]["fetch"]["items"] or []
        logs = [item["attempts"][0]["logs"] for item in items]
        assert [[line["text"] for line in each] for each in logs] == [["fetches a"], ["fetches b"]]
        assert [item["progress"] for item in items] == [said(0, 2, "rows"), said(1, 2, "rows")]


async def test_logs_are_not_kept_unless_that_is_wanted(make_engine: MakeEngine) -> None:
    before = list(logging.root.handlers)
    engine = make_engine()

    @engine.task(dag="d")
    def load() -> None:
        shop.warning("not kept")
        assert logging.root.handlers == before

    report = engine.get_run_report(await engine.run_once("d"))
    assert texts(report, "load") == []
    assert report["tasks"]["load"]["error"] is None


async def test_threads_that_carry_the_context_and_nested_runs_log_for_their_attempt(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(config=KEEP)

    @engine.task(dag="inner")
    def child() -> None:
        shop.info("from the child")

    @engine.task(dag="d")
    async def parent() -> str:
        await asyncio.to_thread(shop.info, "from a thread")
        thread = threading.Thread(target=shop.info, args=("from a thread without context",))
        thread.start()
        thread.join()
        return await engine.run_once("inner")

    report = engine.get_run_report(await engine.run_once("d"))
    assert texts(report, "parent") == ["from a thread"]
    inner = engine.get_run_report(report["tasks"]["parent"]["result"])  # type: ignore[arg-type]
    assert texts(inner, "child") == ["from the child"]


async def test_the_handler_is_there_only_while_such_runs_are_alive(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(logging.root.handlers)
    engine = make_engine(config=KEEP)
    counts: list[int] = []

    @engine.task(dag="d")
    async def load() -> None:
        counts.append(len(logging.root.handlers) - len(before))

    assert logging.root.handlers == before
    await asyncio.gather(engine.run_once("d"), engine.run_once("d"))
    assert counts == [1, 1]
    assert logging.root.handlers == before


async def test_a_warning_still_gets_to_standard_error_where_logging_is_not_set_up(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    engine = make_engine(config=KEEP)
    quiet = logging.getLogger("shop.quiet")
    quiet.addHandler(logging.NullHandler())

    @engine.task(dag="d")
    def load() -> None:
        shop.info("an information")
        shop.warning("a warning")
        quiet.warning("a warning that has a handler")
        monkeypatch.setattr(logging, "lastResort", None)
        shop.warning("a warning that nobody wants")

    report = engine.get_run_report(await engine.run_once("d"))
    assert capsys.readouterr().err == "a warning\n"
    assert len(texts(report, "load")) == 4


async def test_logs_are_redacted_before_they_are_cut(make_engine: MakeEngine) -> None:  # V2
    def redact(text: str) -> str:
        shop.info("redact was called")  # is of no attempt, and does not call redact again
        return text.replace("secret", "*")

    engine = make_engine(config=KEEP, redact=redact)

    @engine.task(dag="d")
    def load() -> None:
        shop.info("a secret")
        shop.info("%s", "x" * 3_998 + "secret" + "y" * 9_001)

    first, second = texts(engine.get_run_report(await engine.run_once("d")), "load")
    assert first == "a *"
    assert second.startswith("x" * 3_998 + "*y... (5,000 characters cut) ...y")


async def test_logs_are_bounded_in_lines_and_characters(make: MakeEngine) -> None:
    engine = make(config=KEEP)

    @engine.task(dag="d")
    def many() -> None:
        for number in range(MOST_LINES + 7):
            shop.info("%d", number)

    @engine.task(dag="d")
    def long() -> None:
        for number in range(20):
            shop.info("%d %s", number, "x" * 7_000)

    report = engine.get_run_report(await engine.run_once("d"))
    assert texts(report, "many") == [str(number) for number in range(7, MOST_LINES + 7)]
    assert report["tasks"]["many"]["attempts"][0]["logs_cut"] == 7
    kept = texts(report, "long")
    assert MOST_CHARACTERS - 8_000 < sum(map(len, kept)) <= MOST_CHARACTERS
    assert kept[-1].startswith("19 ")
    assert report["tasks"]["long"]["attempts"][0]["logs_cut"] == 20 - len(kept)


class Angry:
    """Does not want to be written."""

    def __str__(self) -> str:
        raise SystemError


async def test_messages_that_cannot_be_formatted_or_encoded_are_kept_as_they_are(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    engine = make_engine(config=KEEP)

    @engine.task(dag="d")
    def load() -> None:
        shop.info("%d rows", "many")
        shop.info(Angry())
        shop.info("a lone surrogate: \ud800")

    report = engine.get_run_report(await engine.run_once("d"))
    assert texts(report, "load") == [
        "%d rows (not formatted: TypeError)",
        "Angry (not formatted: SystemError)",
        "a lone surrogate: \\ud800",
    ]


async def test_an_attempt_that_is_given_up_keeps_what_it_had_logged(  # A2
    make: MakeEngine,
) -> None:
    engine = make(config=KEEP)
    release = threading.Event()

    @engine.task(dag="d", timeout_s=0.05)
    def hangs() -> None:
        shop.info("asks the server")
        current_attempt().progress(1, 2)
        release.wait(WAIT_S)
        shop.info("too late")

    @engine.task(dag="d", timeout_s=0.05)
    async def waits() -> None:
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            shop.info("cleans up")

    report = engine.get_run_report(await engine.run_once("d"))
    release.set()
    assert report["tasks"]["hangs"]["attempts"][0]["abandoned"]
    assert texts(report, "hangs") == ["asks the server"]
    assert report["tasks"]["hangs"]["progress"] == said(1, 2)
    assert texts(report, "waits") == ["cleans up"]


@pytest.mark.parametrize("retain", [True, False])
async def test_a_success_that_the_store_refuses_keeps_its_logs(
    make_engine: MakeEngine, tmp_path: Path, retain: bool
) -> None:
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    engine = make_engine(config=KEEP, state_store=store)

    @engine.task(dag="d", retain_result=retain)
    def load() -> object:
        shop.info("loads")
        return object()

    report = engine.get_run_report(await engine.run_once("d"))
    assert report["status"] == ("FAILED" if retain else "SUCCESS")
    assert texts(report, "load") == ["loads"]
    engine.close()
    store.close()
