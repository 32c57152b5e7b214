"""Mapped tasks: items that are known only at run time, their outcomes, and resuming them."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Engine,
    InMemoryStateStore,
    PickleSerializer,
    ProcessPerAttemptExecutor,
    RetryPolicy,
    RunCancelledError,
    SchedulerConfig,
    SkipTask,
    SqliteStateStore,
    build_default_engine,
    current_attempt,
    fn_hook,
)
from flowrun.errors import GraphError, RunFailedError, TaskDefinitionError, UnfilledParameterError

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["memory", "sqlite"])
def stored(
    request: pytest.FixtureRequest, file: SqliteStateStore, make_engine: MakeEngine
) -> Iterator[MakeEngine]:
    """Build engines that share a store of each kind."""
    store = file if request.param == "sqlite" else InMemoryStateStore()

    def make(**options: Any) -> Engine:
        return make_engine(state_store=store, **options)

    return make


async def run(engine: Engine, **options: Any) -> dict[str, Any]:
    """Run the DAG and return the reports of its tasks."""
    run_id = await asyncio.wait_for(engine.run_once("d", **options), WAIT_S)
    return dict(engine.get_run_report(run_id)["tasks"])


def told(task: Any) -> list[tuple[int, str, object]]:
    """Return number, status and result of each item."""
    return [(item["item"], item["status"], item["result"]) for item in task["items"]]


# -- what a mapped task is given, and gives --------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "elements"),
    [
        ([3, 1, 2], [3, 1, 2]),
        (("a", "b"), ["a", "b"]),
        ({"a": 1, "b": 2}, [("a", 1), ("b", 2)]),
        ([], []),
    ],
)
async def test_task_runs_once_for_each_element_and_gives_the_list(
    stored: MakeEngine, source: Any, elements: list[object]
) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: source)
    engine.task("scale", dag="d")(lambda: 10)

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: object, scale: int) -> tuple[object, int]:
        return pages, scale

    @engine.task(dag="d", map_over=["pages"], deps=["pages"])
    def by_name(upstream: dict[str, object]) -> object:
        return upstream["pages"]

    @engine.task(dag="d")
    def total(fetch: list[object], by_name: list[object]) -> tuple[object, ...]:
        return fetch, by_name

    tasks = await run(engine)
    wanted = [(element, 10) for element in elements]
    assert tasks["total"]["result"] == (wanted, elements)
    assert tasks["fetch"]["result"] == wanted
    assert (tasks["fetch"]["status"], tasks["fetch"]["result_state"]) == ("SUCCESS", "kept")
    assert told(tasks["by_name"]) == [(n, "SUCCESS", each) for n, each in enumerate(elements)]
    assert tasks["fetch"]["item_counts"] == ({"SUCCESS": len(elements)} if elements else {})
    assert (tasks["pages"]["items"], tasks["pages"]["item_counts"]) == (None, None)


async def test_several_sources_of_equal_length(stored: MakeEngine) -> None:
    engine = stored()
    names = engine.task("names", dag="d")(lambda: ["a", "b"])
    engine.task("sizes", dag="d")(lambda: (1, 2))

    @engine.task(dag="d", map_over=[names, "sizes"], deps=[names], map_key=lambda a, b: f"{a}{b}")
    def both(names: str, sizes: int) -> str:
        return names * sizes

    assert (await run(engine))["both"]["result"] == ["a", "bb"]


async def test_items_have_attempts_of_their_own_and_the_task_has_none(stored: MakeEngine) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: [0, 1, 2])

    @engine.task(dag="d", map_over="pages", retries=2)
    async def fetch(pages: int) -> int:
        if pages == 1 and current_attempt().attempt < 3:
            raise OSError(pages)
        return pages

    task = (await run(engine))["fetch"]
    assert (task["status"], task["attempt"], task["attempts"]) == ("SUCCESS", 3, [])
    first, second, third = task["items"]
    assert [len(item["attempts"]) for item in task["items"]] == [1, 3, 1]
    assert [each["status"] for each in second["attempts"]] == ["FAILED", "FAILED", "SUCCESS"]
    assert task["started_at"] == min(item["started_at"] for item in task["items"])
    assert task["finished_at"] == max(item["finished_at"] for item in task["items"])
    assert (first["error"], third["attempt"]) == (None, 1)


async def test_failed_item_fails_the_task_once_all_others_have_ended(stored: MakeEngine) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: [0, 1, 2, 3])

    @engine.task(dag="d", map_over="pages")
    def fetch(pages: int) -> int:
        if pages in (1, 2):
            raise ValueError(f"page {pages} is bad")
        return pages

    engine.task("total", dag="d")(lambda fetch: fetch)
    with pytest.raises(RunFailedError) as caught:
        await engine.run_once("d", raise_on_failure=True)
    assert isinstance(caught.value.__cause__, ValueError)
    tasks = caught.value.report["tasks"]
    assert statuses(caught.value.report) == {
        "pages": "SUCCESS",
        "fetch": "FAILED",
        "total": "SKIPPED",
    }
    assert tasks["fetch"]["item_counts"] == {"SUCCESS": 2, "FAILED": 2}
    assert tasks["fetch"]["error_message"] == "page 1 is bad"
    assert (tasks["fetch"]["reason"], tasks["fetch"]["result"]) == ("ERROR", None)
    assert [item["error_type"] for item in tasks["fetch"]["items"] or ()] == [
        None,
        "ValueError",
        "ValueError",
        None,
    ]


async def test_collected_failures_are_counted_and_left_out(stored: MakeEngine) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: [0, 1, 2])

    @engine.task(dag="d", map_over="pages", map_errors="collect")
    async def fetch(pages: int) -> int:
        if pages == 1:
            raise ValueError(pages)
        return pages

    @engine.task(dag="d", map_over="fetch")
    async def parse(fetch: int) -> int:
        return fetch * 10

    engine.task("total", dag="d")(lambda fetch, parse: (fetch, parse))
    tasks = await run(engine, fail_fast=True, raise_on_failure=True)
    assert tasks["total"]["result"] == ([0, 2], [0, 20])
    assert tasks["fetch"]["item_counts"] == {"SUCCESS": 2, "FAILED": 1}
    assert told(tasks["parse"]) == [(0, "SUCCESS", 0), (2, "SUCCESS", 20)]


async def test_item_may_omit_itself(stored: MakeEngine) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: [0, 1])

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: int) -> int:
        if pages == 0:
            raise SkipTask("nothing new")
        return pages

    @engine.task(dag="d", map_over="fetch")
    async def parse(fetch: int) -> int:
        return fetch

    @engine.task(dag="d", map_over="pages")
    async def none(pages: int) -> int:
        raise SkipTask("nothing new")

    tasks = await run(engine)
    assert tasks["fetch"]["result"] == [1]
    assert told(tasks["parse"]) == [(0, "OMITTED", None), (1, "SUCCESS", 1)]
    assert tasks["parse"]["items"][0]["reason"] == "UPSTREAM_OMITTED"
    assert (tasks["none"]["status"], tasks["none"]["result"]) == ("SUCCESS", [])


async def test_items_of_two_mapped_tasks_go_through_depth_first(stored: MakeEngine) -> None:
    engine = stored(max_parallel=2)
    parsed = asyncio.Event()
    engine.task("pages", dag="d")(lambda: [0, 1, 2])
    engine.task("late", dag="d")(lambda: 1)

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: int) -> int:
        if pages == 1:
            await asyncio.wait_for(parsed.wait(), WAIT_S)  # the first one is through meanwhile
        if pages == 2:
            raise ValueError
        return pages

    @engine.task(dag="d", map_over="fetch", deps=["late"])
    async def parse(fetch: int) -> int:
        return fetch

    @engine.task(dag="d", map_over="parse")
    async def load(parse: int) -> int:
        parsed.set()
        return parse

    tasks = await run(engine)
    assert [tasks[name]["status"] for name in ("fetch", "parse", "load")] == [
        "FAILED",
        "SKIPPED",
        "SKIPPED",
    ]
    assert told(tasks["load"]) == [(0, "SUCCESS", 0), (1, "SUCCESS", 1), (2, "SKIPPED", None)]
    assert tasks["load"]["items"][2]["error_message"] == (
        "the item 'parse[2]' upstream of it failed"
    )
    starts = {
        (name, item["item"]): item["started_at"]
        for name in ("fetch", "parse", "load")
        for item in tasks[name]["items"]
        if item["started_at"] is not None
    }
    assert starts["load", 0] < tasks["fetch"]["items"][1]["finished_at"]


async def test_max_items_bounds_how_many_items_run_at_once(stored: MakeEngine) -> None:
    engine = stored(max_parallel=8)
    engine.task("pages", dag="d")(lambda: list(range(12)))
    lock, running, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2)

    @engine.task(dag="d", map_over="pages", max_items=2)
    def fetch(pages: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        both.wait(WAIT_S)
        with lock:
            running[0] -= 1

    assert (await run(engine))["fetch"]["item_counts"] == {"SUCCESS": 12}
    assert most == [2]


async def test_limits_slots_and_timeouts_count_items(stored: MakeEngine) -> None:
    engine = stored(limits={"api": 1})
    engine.task("pages", dag="d")(lambda: [0, 1, 2])
    running = [0]

    @engine.task(dag="d", map_over="pages", uses=["api"], timeout_s=0.02)
    async def fetch(pages: int) -> int:
        assert not running[0]
        running[0] += 1
        try:
            if pages == 1:
                await asyncio.sleep(WAIT_S)
        finally:
            running[0] -= 1
        return pages

    task = (await run(engine))["fetch"]
    assert (task["status"], task["reason"]) == ("FAILED", "TIMEOUT")
    assert "task 'fetch[1]' of DAG 'd' timed out" in task["error"]
    assert task["item_counts"] == {"SUCCESS": 2, "FAILED": 1}


# -- what is told of items -----------------------------------------------------------------------------


async def test_events_and_attempts_know_their_item(
    stored: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[str, str, int | None, int]] = []

    def note(kind: str) -> Callable[[Any], None]:
        return lambda e: events.append((kind, e.task_name, e.item, getattr(e, "attempt", -1)))

    kinds = ("start", "success", "failure", "retry", "skip")
    hook = fn_hook(**{f"on_task_{kind}": note(kind) for kind in kinds})
    engine = stored(hooks=[hook], max_parallel=1)
    caplog.set_level(logging.DEBUG, "flowrun")
    engine.task("pages", dag="d")(lambda: [0, 1])
    seen: list[tuple[int | None, str, str, str]] = []

    @engine.task(dag="d", map_over="pages", retries=RetryPolicy(1, retry_on=(OSError,)))
    async def fetch(pages: int) -> None:
        me = current_attempt()
        assert me.first_run_id is None
        seen.append((me.item, me.idempotency_key, me.attempt_key, repr(me)))
        if me.attempt == 1 and pages == 1:
            raise OSError
        if pages == 1:
            raise ValueError

    run_id = await engine.run_once("d")
    of_fetch = [event for event in events if event[1] == "fetch"]
    assert [event for event in of_fetch if event[2] == 0] == [
        ("start", "fetch", 0, 1),
        ("success", "fetch", 0, 1),
    ]
    assert [event for event in of_fetch if event[2] != 0] == [
        ("start", "fetch", None, 0),
        ("start", "fetch", 1, 1),
        ("retry", "fetch", 1, 1),
        ("start", "fetch", 1, 2),
        ("failure", "fetch", 1, 2),
        ("failure", "fetch", None, 2),
    ]
    assert seen[0] == (
        0,
        f"{run_id}/fetch[0]",
        f"{run_id}/fetch[0]/1",
        f"<Attempt 1 of 'fetch[0]' in run {run_id!r}>",
    )
    assert [each[2] for each in seen[1:]] == [f"{run_id}/fetch[1]/1", f"{run_id}/fetch[1]/2"]
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    succeeded = next(text for text in levels if text.startswith("task 'fetch[0]' succeeded"))
    assert levels[succeeded] == "DEBUG"
    assert levels["task 'fetch[1]' failed: ValueError"] == "WARNING"
    assert levels["task 'fetch' failed: item 1: ValueError"] == "WARNING"
    assert [r.item for r in caplog.records if r.getMessage() == succeeded] == [0]  # type: ignore[attr-defined]


async def test_item_in_another_process_knows_its_number(make_engine: MakeEngine) -> None:
    engine = make_engine(executors={"apart": ProcessPerAttemptExecutor(2)})
    engine.task("pages", dag="d")(lambda: ["a", "b"])
    engine.task("fetch", dag="d", map_over="pages", executor="apart", map_key=number_of)(in_process)
    assert (await run(engine))["fetch"]["result"] == [(0, "fetch[5]"), (1, "fetch[6]")]


def number_of(element: str) -> int:
    """Tell elements apart."""
    return {"a": 5, "b": 6}[element]


def in_process(pages: str) -> tuple[int | None, str | None]:
    """Return the item's number, and the end of its key."""
    return current_attempt().item, current_attempt().idempotency_key.rpartition("/")[2]


# -- resuming --------------------------------------------------------------------------------------------


class Job:
    """A mapped task, one that follows it, and one that takes all; what ran is noted."""

    def __init__(self, engine: Engine, pages: list[Any], **options: Any) -> None:
        self.pages = pages
        self.bad: set[Any] = set()
        self.ran: list[Any] = []
        self.scale = 1
        dag = engine.dag("d")
        source, fetch = options.get("source", {}), options.get("fetch", {})
        dag.task("pages", **source)(lambda: list(self.pages))
        dag.task("scale")(lambda: int(self.scale))

        @dag.task(map_over="pages", **fetch)
        async def fetch(pages: Any, scale: int) -> Any:
            self.ran.append(("fetch", pages))
            if pages in self.bad:
                raise ValueError(pages)
            return f"{pages}*{scale}"

        @dag.task(map_over="fetch")
        async def parse(fetch: str) -> str:
            self.ran.append(("parse", fetch))
            return fetch + "!"

        @dag.task
        async def total(parse: list[str]) -> str:
            self.ran.append(("total", len(parse)))
            return " ".join(parse)

    def did(self) -> list[Any]:
        """Return what ran since the last time."""
        ran, self.ran = self.ran, []
        return sorted(ran)


async def test_resume_runs_exactly_the_items_that_have_not_succeeded(stored: MakeEngine) -> None:
    engine = stored()
    job = Job(engine, ["a", "b", "c"])
    job.bad = {"b"}
    old = await engine.run_once("d")
    assert len(job.did()) == 5
    job.bad = set()
    new = await engine.resume(old)
    assert job.did() == [("fetch", "b"), ("parse", "b*1"), ("total", 3)]
    report = engine.get_run_report(new)
    fetch = report["tasks"]["fetch"]
    items = fetch["items"] or []
    assert [item["kept"] for item in items] == [True, False, True]
    # Its time is that of the items of this run.
    assert (fetch["started_at"], fetch["finished_at"]) == (
        items[1]["started_at"],
        items[1]["finished_at"],
    )
    assert report["tasks"]["total"]["result"] == "a*1! b*1! c*1!"
    assert report["tasks"]["fetch"]["item_counts"] == {"SUCCESS": 3}
    assert told(report["tasks"]["parse"]) == [
        (0, "SUCCESS", "a*1!"),
        (1, "SUCCESS", "b*1!"),
        (2, "SUCCESS", "c*1!"),
    ]
    # And what it has kept is kept once more.
    again = await engine.resume(new, from_tasks=["total"])
    assert job.did() == [("total", 3)]
    report = engine.get_run_report(again)
    assert report["tasks"]["fetch"]["result"] == ["a*1", "b*1", "c*1"]
    assert report["tasks"]["total"]["result"] == "a*1! b*1! c*1!"


@pytest.mark.parametrize("why", ["source failed", "other failed", "no items", "items failed"])
async def test_resume_of_a_run_in_which_no_item_succeeded(stored: MakeEngine, why: str) -> None:
    engine = stored()
    job = Job(engine, ["a", "b"])
    if why == "source failed":
        job.pages = None  # type: ignore[assignment] # which list() refuses
    elif why == "other failed":
        job.scale = None  # type: ignore[assignment] # which the task refuses
    elif why == "no items":
        job.pages = []
    else:
        job.bad = {"a", "b"}
    old = await engine.run_once("d")
    job.did()
    job.bad, job.pages, job.scale = set(), ["a", "b"], 1
    again = ["pages"] if why == "no items" else None
    new = await engine.resume(old, from_tasks=again)
    assert set(statuses(engine.get_run_report(new)).values()) == {"SUCCESS"}
    assert [what for what in job.did() if what[0] == "fetch"] == [("fetch", "a"), ("fetch", "b")]
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == "a*1! b*1!"


async def test_element_that_has_changed_runs_again_and_no_other(stored: MakeEngine) -> None:
    engine = stored()
    job = Job(engine, ["a", "b", "c"])
    job.bad = {"c"}
    old = await engine.run_once("d")
    job.did()
    job.bad, job.pages = set(), ["a", "x", "c", "d"]
    new = await engine.resume(old, from_tasks=["pages"])  # all that depends on it as well
    assert len(job.did()) == 9
    job.bad, job.pages = {"d"}, ["a", "y", "c", "d"]
    new = await engine.resume(new, from_tasks=["pages"])
    job.did()
    assert engine.get_run_report(new)["tasks"]["fetch"]["item_counts"] == {
        "SUCCESS": 3,
        "FAILED": 1,
    }


@pytest.mark.parametrize("by_key", [False, True])
async def test_source_that_is_made_again_may_differ(stored: MakeEngine, *, by_key: bool) -> None:
    engine = stored()
    options: dict[str, Any] = {"map_key": str} if by_key else {}
    job = Job(engine, ["a", "b", "c"], source={"retain_result": False}, fetch=options)
    job.bad = {"b"}
    old = await engine.run_once("d")
    job.did()
    job.bad, job.pages = set(), ["c", "b", "a", "d"]
    new = await engine.resume(old)
    fetched = [what for kind, what in job.did() if kind == "fetch"]
    # By position, "b" failed, "d" is new, and the two others have changed places.
    assert fetched == (["b", "d"] if by_key else ["a", "b", "c", "d"])
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == "c*1! b*1! a*1! d*1!"


async def test_all_items_run_again_when_something_else_has_changed(stored: MakeEngine) -> None:
    engine = stored()
    job = Job(engine, ["a", "b"])
    job.bad = {"b"}
    old = await engine.run_once("d")
    job.did()
    job.bad, job.scale = set(), 2
    new = await engine.resume(old, from_tasks=["scale"])
    assert [each for each in job.did() if each[0] == "fetch"] == [("fetch", "a"), ("fetch", "b")]
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == "a*2! b*2!"
    await engine.resume(new, from_tasks=["fetch"])
    assert len(job.did()) == 5
    job.bad = {"b"}
    old = await engine.run_once("d", overrides={"scale": 5})
    job.bad = set()
    job.did()
    await engine.resume(old)  # "scale" is as declared again
    assert [each for each in job.did() if each[0] == "fetch"] == [("fetch", "a"), ("fetch", "b")]


async def test_released_results_of_items_are_made_again_if_needed(stored: MakeEngine) -> None:
    engine = stored()
    ran: list[Any] = []
    bad = {"total"}
    engine.task("pages", dag="d")(lambda: ["a", "b"])

    @engine.task(dag="d", map_over="pages", retain_result=False)
    async def fetch(pages: str) -> str:
        ran.append(pages)
        if pages in bad:
            raise ValueError
        return pages

    @engine.task(dag="d")
    async def total(fetch: list[str]) -> str:
        if "total" in bad:
            raise ValueError
        return "".join(fetch)

    old = await engine.run_once("d")
    task = engine.get_run_report(old)["tasks"]["fetch"]
    assert (task["status"], task["result_state"], task["result"]) == ("SUCCESS", "released", None)
    bad.clear()
    new = await engine.resume(old)
    assert ran == ["a", "b", "a", "b"]
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == "ab"


async def test_omissions_and_collected_failures_are_kept(stored: MakeEngine) -> None:
    engine = stored()
    ran: list[str] = []
    bad = {"b", "total"}
    engine.task("pages", dag="d")(lambda: ["a", "b", "c"])

    @engine.task(dag="d", map_over="pages", map_errors="collect")
    async def fetch(pages: str) -> str:
        ran.append(pages)
        if pages == "c":
            raise SkipTask("not now")
        if pages in bad:
            raise ValueError
        return pages

    @engine.task(dag="d")
    async def total(fetch: list[str]) -> str:
        if "total" in bad:
            raise ValueError
        return "".join(fetch)

    old = await engine.run_once("d")
    bad.clear()
    new = await engine.resume(old)
    assert ran == ["a", "b", "c"]
    tasks = engine.get_run_report(new)["tasks"]
    assert (tasks["total"]["result"], tasks["fetch"]["item_counts"]) == (
        "a",
        {"SUCCESS": 1, "FAILED": 1, "OMITTED": 1},
    )


@pytest.mark.parametrize("how", ["cancel", "timeout", "fail_fast"])
async def test_run_that_is_stopped_in_the_middle_keeps_what_was_done(
    stored: MakeEngine, how: str
) -> None:
    engine = stored(max_parallel=2)
    engine.task("pages", dag="d")(lambda: list(range(6)))
    ran: list[int] = []
    stop = [True]

    @engine.task(dag="d", map_over="pages", timeout_s=None)
    async def fetch(pages: int) -> int:
        ran.append(pages)
        if stop[0] and pages == 2:
            if how == "cancel":
                engine.cancel(current_attempt().run_id)
            if how == "fail_fast":
                raise ValueError
            await asyncio.sleep(WAIT_S)
        if stop[0] and pages > 2:
            await asyncio.sleep(WAIT_S)
        return pages

    @engine.task(dag="d", map_over="fetch")
    async def parse(fetch: int) -> int:
        return fetch

    engine.task("total", dag="d")(lambda parse: sum(parse))
    options: dict[str, Any] = {"fail_fast": how == "fail_fast"}
    if how == "timeout":
        options["timeout_s"] = 0.3
    with pytest.raises(BaseException) if how == "cancel" else _nothing():
        await engine.run_once("d", **options)
    (summary,) = engine.list_runs()
    report = engine.get_run_report(summary.run_id)
    assert statuses(report) == {
        "pages": "SUCCESS",
        "fetch": "FAILED",
        "parse": "SKIPPED",
        "total": "SKIPPED",
    }
    fetch_ = report["tasks"]["fetch"]
    # A failure is committed before it stops the run, and another item may start meanwhile.
    counts = fetch_["item_counts"] or {}
    assert (counts["SUCCESS"], counts["FAILED"] + counts["SKIPPED"]) == (2, 4)
    assert counts["FAILED"] + 2 == len(ran)
    stop[0] = False
    ran.clear()
    new = await engine.resume(summary.run_id)
    assert sorted(ran) == [2, 3, 4, 5]
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == 15


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


KILLED = """
import faulthandler
import sys
import threading
from pathlib import Path
from flowrun import SqliteStateStore, build_default_engine, current_attempt

faulthandler.dump_traceback_later(60, exit=True)  # should it hang
path, log, kill = sys.argv[1:]
store = SqliteStateStore(path)
with build_default_engine(state_store=store, max_parallel=8) as engine:
    done = threading.Semaphore(0)

    @engine.task(dag="d", retain_result=kill != "no source")
    def pages():
        return list(range(40))

    @engine.task(dag="d", map_over="pages", timeout_s=None)
    def fetch(pages):
        with open(log, "a") as file:
            file.write(f"fetch {pages}\\n")
        if 25 <= pages < 29 and kill != "resume":
            for _ in range(8):
                done.acquire()
            sys.stdout.write("ready\\n")  # in one piece, as others say so, too
            sys.stdout.flush()
            threading.Event().wait()
        return pages

    @engine.task(dag="d", map_over="fetch")
    def parse(fetch):
        with open(log, "a") as file:
            file.write(f"parse {fetch}\\n")
        done.release()
        return fetch

    @engine.task(dag="d")
    def total(parse):
        return sum(parse)

    if kill == "resume":
        import asyncio
        new = asyncio.run(engine.resume(engine.list_runs()[0].run_id))
        print(engine.get_run_report(new)["tasks"]["total"]["result"])
    else:
        engine.run("d")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL there")
@pytest.mark.parametrize("kill", ["source", "no source"])
def test_killed_run_loses_and_repeats_no_acknowledged_item(tmp_path: Path, kill: str) -> None:
    program, path, log = tmp_path / "job.py", tmp_path / "runs.db", tmp_path / "log"
    program.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(program), str(path), str(log)]
    with subprocess.Popen(
        [*command, kill], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n", process.stderr.read().decode()
        process.send_signal(signal.SIGKILL)
    store = SqliteStateStore.open_readonly(path)
    (run_,) = store.list_runs()
    items = store.load_run(run_.run_id, results=False).items
    acknowledged = {
        f"{name} {item.item}"
        for name in ("fetch", "parse")
        for item in items.get(name, ())
        if item.status == "SUCCESS"
    }
    store.close()
    assert len(acknowledged) >= 8
    before = Counter(log.read_text().split("\n")[:-1])
    log.unlink()
    resumed = subprocess.run(
        [*command, "resume"], capture_output=True, text=True, check=False, timeout=WAIT_S * 3
    )
    assert resumed.stdout == f"{sum(range(40))}\n", resumed.stderr
    after = Counter(log.read_text().split("\n")[:-1])
    whole = {f"{name} {number}" for name in ("fetch", "parse") for number in range(40)}
    assert set(before) | set(after) == whole  # nothing is lost
    assert set(after) == whole - acknowledged  # what was acknowledged does not run again
    assert max(before.values()) == max(after.values()) == 1


async def test_items_of_another_serializer_run_again(
    tmp_path: Path, make_engine: MakeEngine
) -> None:
    ran: list[int] = []
    bad = {1}

    def build(store: SqliteStateStore) -> Engine:
        engine = make_engine(state_store=store)
        engine.task("pages", dag="d")(lambda: [0, 1])

        @engine.task(dag="d", map_over="pages")
        def fetch(pages: int) -> int:
            ran.append(pages)
            if pages in bad:
                raise ValueError
            return pages

        engine.task("total", dag="d")(lambda fetch: sum(fetch))
        return engine

    path = tmp_path / "runs.db"
    store = SqliteStateStore(path, PickleSerializer())
    old = await build(store).run_once("d")
    store.close()
    bad.clear()
    store = SqliteStateStore(path)
    engine = build(store)
    new = await engine.resume(old)
    assert sorted(ran[2:]) == [0, 1]
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == 1
    engine.close()
    store.close()


async def test_omitted_items_are_kept_as_those_that_succeeded_are(stored: MakeEngine) -> None:
    engine = stored()
    ran: list[int] = []
    bad = {2}
    engine.task("pages", dag="d")(lambda: [0, 1, 2])

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: int) -> int:
        ran.append(pages)
        if pages == 0:
            raise SkipTask("nothing new")
        if pages in bad:
            raise ValueError
        return pages

    old = await engine.run_once("d")
    bad.clear()
    new = await engine.resume(old)
    assert ran[3:] == [2]
    assert told(engine.get_run_report(new)["tasks"]["fetch"]) == [
        (0, "OMITTED", None),
        (1, "SUCCESS", 1),
        (2, "SUCCESS", 2),
    ]


async def test_mapped_task_that_depends_on_something_else_now_runs_all_its_items(
    stored: MakeEngine,
) -> None:
    ran: list[str] = []

    def build(*, changed: bool) -> Engine:
        engine = stored()
        engine.task("pages", dag="d")(lambda: ["a", "b"])
        engine.task("before", dag="d")(lambda: None)
        engine.task("after", dag="d")(lambda: None)

        @engine.task(dag="d", map_over="pages", deps=["after" if changed else "before"])
        async def fetch(pages: str) -> None:
            ran.append(pages)
            if pages == "b" and not changed:
                raise ValueError

        return engine

    old = await build(changed=False).run_once("d")
    del ran[:]
    await build(changed=True).resume(old)
    assert sorted(ran) == ["a", "b"]


async def test_element_without_a_stored_form_runs_again(
    file: SqliteStateStore, make_engine: MakeEngine
) -> None:
    engine = make_engine(state_store=file)
    ran: list[int] = []
    bad = {1}
    engine.task("pages", dag="d", retain_result=False)(lambda: [(0, print), (1, print)])

    @engine.task(dag="d", map_over="pages")
    def fetch(pages: tuple[int, object]) -> int:
        ran.append(pages[0])
        if pages[0] in bad:
            raise ValueError
        return pages[0]

    old = await engine.run_once("d")
    bad.clear()
    await engine.resume(old)
    assert sorted(ran[2:]) == [0, 1]


async def test_in_memory_elements_are_the_same_by_identity_or_by_their_pickles(
    engine: Engine,
) -> None:
    same = threading.Lock()  # it cannot be pickled
    sources: list[list[Any]] = [
        [same, ["equal"], threading.Lock(), 7, "last"],
        [same, ["equal"], threading.Lock(), 8, "last"],
    ]
    ran: list[int | None] = []
    engine.task("pages", dag="d", retain_result=False)(lambda: sources.pop(0))

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: object) -> None:
        ran.append(current_attempt().item)
        if pages == "last" and sources:
            raise ValueError

    old = await engine.run_once("d")
    await engine.resume(old)
    assert sorted(x or 0 for x in ran[5:]) == [2, 3, 4]


async def test_task_that_is_newly_mapped_or_depends_on_more_runs_all_its_items(
    stored: MakeEngine,
) -> None:
    ran: list[str] = []

    def build(*, changed: bool) -> Engine:
        engine = stored()
        engine.task("pages", dag="d")(lambda: ["a", "b"])
        engine.task("other", dag="d")(lambda: None)
        deps = ["other"] if changed else []

        @engine.task(dag="d", map_over="pages", deps=deps)
        async def fetch(pages: str) -> str:
            ran.append(pages)
            if pages == "b" and not changed:
                raise ValueError
            return pages

        if changed:
            engine.task("new", dag="d", map_over="pages")(lambda pages: ran.append(f"new {pages}"))
        return engine

    old = await build(changed=False).run_once("d")
    del ran[:]
    await build(changed=True).resume(old)
    assert sorted(ran) == ["a", "b", "new a", "new b"]


async def test_task_that_is_mapped_no_more_takes_the_list_as_it_is(stored: MakeEngine) -> None:
    def build(*, mapped: bool) -> Engine:
        engine = stored()
        engine.task("pages", dag="d")(lambda: [1, 2])
        options: dict[str, Any] = {"map_over": "pages"} if mapped else {}
        engine.task("fetch", dag="d", **options)(lambda pages: pages)

        @engine.task(dag="d")
        async def total(fetch: list[int]) -> int:
            if mapped:
                raise ValueError
            return sum(fetch)

        return engine

    old = await build(mapped=True).run_once("d")
    engine = build(mapped=False)
    new = await engine.resume(old)
    assert engine.get_run_report(new)["tasks"]["total"]["result"] == 3


async def test_kept_items_are_followed_by_those_of_a_task_that_runs(stored: MakeEngine) -> None:
    engine = stored()
    ran: list[Any] = []
    bad = {"parse"}
    engine.task("pages", dag="d")(lambda: ["a", "b", "c"])

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: str) -> str:
        ran.append(pages)
        if pages == "b":
            raise SkipTask("not today")
        return pages

    @engine.task(dag="d", map_over="fetch")
    async def parse(fetch: str) -> str:
        ran.append(fetch * 2)
        if "parse" in bad and fetch == "c":
            raise ValueError
        return fetch * 2

    old = await engine.run_once("d")
    bad.clear()
    del ran[:]
    new = await engine.resume(old)
    assert ran == ["cc"]
    assert told(engine.get_run_report(new)["tasks"]["parse"]) == [
        (0, "SUCCESS", "aa"),
        (1, "OMITTED", None),
        (2, "SUCCESS", "cc"),
    ]


async def test_live_report_shows_items_that_run_and_those_that_wait(
    stored: MakeEngine, request: pytest.FixtureRequest
) -> None:
    engine = stored(max_parallel=1)
    seen: list[Any] = []
    engine.task("pages", dag="d")(lambda: [0, 1, 2])

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: int) -> None:
        report = await asyncio.to_thread(engine.get_run_report, current_attempt().run_id)
        task = report["tasks"]["fetch"]
        seen.append((task["status"], task["item_counts"], task["result_state"]))

    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["tasks"]["fetch"]["item_counts"] == {"SUCCESS": 3}
    if request.node.callspec.params["stored"] == "sqlite":
        del seen[1:]  # a success that is not committed yet shows as pending there
    wanted = [
        ("RUNNING", {"RUNNING": 1, "PENDING": 2}, "absent"),
        ("RUNNING", {"SUCCESS": 1, "RUNNING": 1, "PENDING": 1}, "absent"),
        ("RUNNING", {"SUCCESS": 2, "RUNNING": 1}, "absent"),
    ]
    assert seen == wanted[: len(seen)]


async def test_elements_that_come_after_the_run_was_stopped_make_no_items(
    stored: MakeEngine,
) -> None:
    engine = stored(config=SchedulerConfig(cancel_grace_s=WAIT_S))
    asked, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    engine.task("pages", dag="d")(lambda: [0])

    def key(page: int) -> int:
        loop.call_soon_threadsafe(asked.set)
        assert go.wait(WAIT_S)
        loop.call_soon_threadsafe(loop.call_soon, came.set)
        return page

    came = asyncio.Event()
    engine.task("fetch", dag="d", map_over="pages", map_key=key)(lambda pages: pages)

    @engine.task(dag="d")
    async def busy() -> None:
        await asyncio.wait_for(asked.wait(), WAIT_S)
        engine.cancel(current_attempt().run_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            go.set()
            await asyncio.wait_for(came.wait(), WAIT_S)
            for _ in range(20):  # the answer takes another turn of the loop
                await asyncio.to_thread(lambda: None)
            raise

    with pytest.raises(RunCancelledError):
        await engine.run_once("d")
    report = engine.get_run_report(engine.list_runs()[0].run_id)
    assert statuses(report) == {"pages": "SUCCESS", "busy": "FAILED", "fetch": "SKIPPED"}
    assert report["tasks"]["fetch"]["items"] is None


async def test_part_of_what_follows_items_may_be_overridden(stored: MakeEngine) -> None:
    engine = stored()
    job = Job(engine, ["a", "b"])
    tasks = await run(engine, overrides={"parse": ["x"]})
    assert tasks["total"]["result"] == "x"
    assert [each[0] for each in job.did()] == ["fetch", "fetch", "total"]


# -- overrides, sub-graphs -------------------------------------------------------------------------------


async def test_mapped_tasks_are_overridden_as_others_are(stored: MakeEngine) -> None:
    engine = stored()
    job = Job(engine, ["a", "b"])
    tasks = await run(engine, overrides={"fetch": ["x", "y", "z"]})
    assert tasks["total"]["result"] == "x! y! z!"
    assert (tasks["fetch"]["overridden"], tasks["fetch"]["items"]) == ("value", None)

    async def other(pages: str, scale: int) -> str:
        return pages.upper() * scale

    assert (await run(engine, overrides={"fetch": other}))["total"]["result"] == "A! B!"
    assert not [each for each in job.did() if each[0] == "fetch"]


async def test_part_of_a_dag_has_its_items(stored: MakeEngine) -> None:
    engine = stored()
    Job(engine, ["a", "b"])
    run_id = await engine.run_subgraph("d", ["parse"])
    assert list(engine.get_run_report(run_id)["tasks"]) == ["pages", "scale", "fetch", "parse"]
    assert engine.get_run_report(run_id)["tasks"]["parse"]["result"] == ["a*1!", "b*1!"]


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({1, 2}, "map_over takes a list, a tuple or a dict, and 'pages' returned a set"),
        ("text", "'pages' returned a str; have it return a list"),
        (None, "'pages' returned a NoneType"),
    ],
)
async def test_source_that_is_no_sequence_fails_the_task(
    make_engine: MakeEngine, source: Any, message: str
) -> None:
    engine = make_engine()
    engine.task("pages", dag="d")(lambda: source)
    engine.task("fetch", dag="d", map_over="pages", retries=3)(lambda pages: pages)
    task = (await run(engine))["fetch"]
    assert (task["status"], task["attempt"], task["items"]) == ("FAILED", 0, [])
    assert message in task["error"]


async def test_sources_of_unequal_length_fail_the_task(stored: MakeEngine) -> None:
    engine = stored()
    engine.task("a", dag="d")(lambda: [1, 2])
    engine.task("b", dag="d")(lambda: [1])
    engine.task("both", dag="d", map_over=["a", "b"])(lambda a, b: a + b)
    task = (await run(engine))["both"]
    assert (task["status"], task["items"]) == ("FAILED", [])
    assert "map_over needs sources of equal length, and 'a' has 2, 'b' has 1" in task["error"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (lambda page: [page], "map_key must return a str or an int, not [0] (for item 0)"),
        (lambda page: "same", "map_key returned 'same' for the items "),
        (lambda page: 1 // page, "ZeroDivisionError"),
        (lambda page: sys.exit(3), "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("depth", ["first", "second"])
async def test_map_key_that_fails_fails_the_task(
    stored: MakeEngine, key: Any, message: str, depth: str
) -> None:
    engine = stored()
    engine.task("pages", dag="d")(lambda: [0, 1])
    first = {"map_key": key} if depth == "first" else {}
    engine.task("fetch", dag="d", map_over="pages", **first)(lambda pages: pages)
    second = {"map_key": key} if depth == "second" else {}
    engine.task("parse", dag="d", map_over="fetch", **second)(lambda fetch: fetch)
    task = (await run(engine))["fetch" if depth == "first" else "parse"]
    assert task["status"] == "FAILED"
    # Which element comes first depends on which item has ended first.
    assert (message if depth == "first" else message.partition(" (for item")[0]) in task["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_over": []}, "map_over is empty"),
        ({"map_over": 7}, "map_over takes a task, or a list of tasks, not 7"),
        ({"map_over": [7]}, "map_over takes names of tasks or decorated callables, not 7"),
        ({"map_over": {"a": 1}}, "map_over takes a task"),
        ({"max_items": 3}, "max_items is for mapped tasks; say over what"),
        (
            {"map_over": "a", "max_items": 0},
            "max_items must be 1 or more, or None for no bound, not 0",
        ),
        ({"map_over": "a", "max_items": True}, "max_items must be an int"),
        ({"map_over": "a", "map_errors": "ignore"}, "map_errors must be 'fail' or 'collect'"),
        ({"map_over": "a", "map_key": "id"}, "map_key must be a function"),
        ({"map_over": "a", "trigger_rule": "all_done"}, "trigger_rule must be all_success"),
    ],
)
def test_declaration_that_cannot_be_is_refused(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskDefinitionError, match=message.replace("(", r"\(")):
        engine.task("t", dag="d", **options)(lambda a: a)


def test_branch_cannot_be_mapped(engine: Engine) -> None:
    with pytest.raises(TaskDefinitionError, match="a branch chooses among tasks once"):
        engine.branch("t", dag="d", map_over="a")(lambda a: a)


def test_source_must_be_a_dependency_that_the_task_is_given(engine: Engine) -> None:
    pages = engine.task("pages", dag="d")(list)
    engine.task("fetch", dag="d", map_over="page", deps=[pages])(lambda pages: pages)
    with pytest.raises(GraphError, match=r"mapped over 'page', which is none .*pages"):
        engine.validate("d")
    engine.task("fetch", dag="d", map_over=[engine.task], deps=[pages], replace=True)(
        lambda pages: pages
    )
    with pytest.raises(GraphError, match=r"mapped over 'task', which is none of its"):
        engine.validate("d")
    engine.task("fetch", dag="d", map_over="pages", deps=[pages], replace=True)(lambda: 1)
    with pytest.raises(UnfilledParameterError, match="would never see an element"):
        engine.validate("d")


# -- many items --------------------------------------------------------------------------------------------


def cost_s(count: int, *, mapped: bool) -> float:
    """Return the processor time of a run of so many items, or of so many tasks like them."""

    async def give(pages: object) -> object:
        return pages

    with build_default_engine(max_parallel=8) as engine:
        engine.task("pages", dag="d")(lambda: list(range(count)))
        for number in range(1 if mapped else count):
            options: dict[str, Any] = {"map_over": "pages"} if mapped else {}
            engine.task(f"t{number}", dag="d", **options)(give)
        engine.validate("d")
        before = time.process_time()
        report = engine.run("d")
        took = time.process_time() - before
        assert report["status"] == "SUCCESS"
        return took


@pytest.mark.no_cover
def test_item_costs_at_most_half_as_much_again_as_a_task() -> None:
    ratios = [cost_s(10_000, mapped=True) / cost_s(10_000, mapped=False) for _ in range(3)]
    assert min(ratios) < 1.5


@pytest.mark.no_cover
async def test_hundred_thousand_items(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.task("pages", dag="d")(lambda: list(range(100_000)))

    @engine.task(dag="d", map_over="pages")
    async def fetch(pages: int) -> int:
        return pages

    engine.task("total", dag="d")(lambda fetch: sum(fetch))
    run_id = await engine.run_once("d")
    assert engine.get_run_report(run_id)["tasks"]["total"]["result"] == sum(range(100_000))
