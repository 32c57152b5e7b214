"""The cache between runs: what is taken from it, what enters it, and what it refuses."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib.util
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Cache,
    DagScope,
    Engine,
    InMemoryStateStore,
    JsonSerializer,
    Param,
    PickleSerializer,
    RunContext,
    SchedulerConfig,
    SqliteStateStore,
    StateStoreProtocol,
    fn_hook,
)
from flowrun.config import Clock
from flowrun.errors import DamagedRecordError, UnknownTaskError
from flowrun.state import CacheStoreProtocol

from ..conftest import WAIT_S, statuses

MakeEngine = Callable[..., Engine]

RAN: list[str] = []
"""What has run; a task with a cache may be no closure."""


def fetch() -> list[int]:
    RAN.append("fetch")
    return [1, 2]


def total(fetch: list[int]) -> int:
    RAN.append("total")
    return sum(fetch)


async def show(total: int) -> str:
    RAN.append("show")
    return f"{total} in all"


def scaled(fetch: list[int], factor: int = 1) -> list[int]:
    RAN.append("scaled")
    return [factor * each for each in fetch]


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        yield InMemoryStateStore()
        return
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    yield store
    store.close()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[SqliteStateStore]:
    store = SqliteStateStore(tmp_path / "runs.db", synchronous="NORMAL")
    yield store
    store.close()


class SetClock(Clock):
    """The real clock, but for the date that a test sets."""

    def __init__(self) -> None:
        self.date = 1_000_000.0

    def time(self) -> float:  # type: ignore[override]
        return self.date


def declare(engine: Engine, cache: Cache | None = None) -> DagScope:
    """Declare a chain of three tasks, the last two with a cache."""
    dag, cache = engine.dag("d"), cache or Cache()
    dag.task(fetch)
    dag.task(cache=cache)(total)
    dag.task(cache=cache)(show)
    return dag


def sources(engine: Engine, run_id: str) -> dict[str, str | None]:
    tasks = engine.get_run_report(run_id)["tasks"]
    return {name: task["cached_from"] for name, task in tasks.items()}


def ran() -> list[str]:
    """Return what has run since this was asked last."""
    found = RAN.copy()
    RAN.clear()
    return found


# -- what is taken ---------------------------------------------------------------------------------


async def test_result_of_an_earlier_run_is_taken(make_engine: MakeEngine, store: Any) -> None:
    events: list[tuple[str, str, int, object]] = []
    hook = fn_hook(
        on_task_start=lambda e: events.append(("start", e.task_name, e.attempt, None)),
        on_task_success=lambda e: events.append(("success", e.task_name, e.attempt, e.result)),
    )
    engine = make_engine(state_store=store, hooks=[hook])
    dag = declare(engine)
    first = await dag.run_once()
    assert ran() == ["fetch", "total", "show"]
    assert set(sources(engine, first).values()) == {None}
    events.clear()
    second = await dag.run_once()
    assert ran() == ["fetch"]
    report = engine.get_run_report(second)
    assert sources(engine, second) == {"fetch": None, "total": first, "show": first}
    task = report["tasks"]["show"]
    assert (task["status"], task["attempt"], task["attempts"]) == ("SUCCESS", 0, [])
    assert (task["result"], task["started_at"], report["status"]) == ("3 in all", None, "SUCCESS")
    assert events == [
        ("start", "fetch", 1, None),
        ("success", "fetch", 1, [1, 2]),
        ("success", "total", 0, 3),
        ("success", "show", 0, "3 in all"),
    ]
    # What was taken is no entry: the next run takes it from the run that has made it.
    assert sources(engine, await dag.run_once())["show"] == first


async def test_other_engine_takes_it_from_the_same_file(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    found: list[dict[str, str | None]] = []
    for _ in range(2):
        store = SqliteStateStore(tmp_path / "runs.db")
        engine = make_engine(state_store=store)
        found.append(sources(engine, await declare(engine).run_once()))
        engine.close()
        store.close()
    assert ran() == ["fetch", "total", "show", "fetch"]
    assert found[1]["total"] is not None


async def test_other_inputs_are_another_key(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")

    @dag.task(name="fetch")
    def fetches(rows: Param[int]) -> list[float]:
        return [float(rows)] if rows > 5 else [rows]

    dag.task(cache=Cache())(total)
    for rows in (1, 2, 1, 2):
        await dag.run_once(params={"rows": rows})
    assert ran() == ["total", "total"]
    await dag.run_once(params={"rows": 6})
    dag.task(name="fetch", replace=True)(lambda: [6])
    await dag.run_once()  # 6 is another input than 6.0
    assert ran() == ["total", "total"]


async def test_dependency_for_order_alone_is_no_input(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    numbers = itertools.count()
    dag.task("first")(lambda: next(numbers))
    dag.task(cache=Cache(), deps=["first"])(fetch)
    for _ in range(2):
        await dag.run_once()
    assert ran() == ["fetch"]


def everything(upstream: dict[str, Any]) -> list[Any]:
    RAN.append("everything")
    return sorted(upstream.items())


async def test_results_of_dependencies_that_failed_are_no_inputs(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    broken = True

    @dag.task
    def flaky() -> int:
        if broken:
            raise ValueError
        return 1

    dag.task(fetch)
    cached = dag.task(cache=Cache(), deps=["flaky", "fetch"], trigger_rule="all_done")
    cached(everything)
    for broken in (True, False, True, False):
        report = engine.get_run_report(await dag.run_once())
        result = report["tasks"]["everything"]["result"]
        assert result == [("fetch", [1, 2]), *([] if broken else [("flaky", 1)])]
    assert ran().count("everything") == 2


def by_day(day: Param[str], mode: Param[str | None] = None) -> str:
    RAN.append(f"{day} {mode}")
    return day


async def test_parameters_and_bound_values_are_part_of_the_key(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.task(cache=Cache())(by_day)
    template = dag.task_template(scaled, cache=Cache())
    dag.task(fetch)
    template.bind("twice", factor=2)
    params = ({"day": "1"}, {"day": "2"}, {"day": "1", "mode": "a"}, {"day": "1"})
    results = [
        engine.get_run_report(await dag.run_once(params=given))["tasks"]["by_day"]["result"]
        for given in params
    ]
    assert results == ["1", "2", "1", "1"]
    others = sorted(each for each in ran() if each != "fetch")
    assert others == ["1 None", "1 a", "2 None", "scaled"]
    dag.task_template(scaled, cache=Cache(), replace=True).bind("twice", factor=3)
    report = engine.get_run_report(await dag.run_once(params={"day": "1"}))
    assert report["tasks"]["twice"]["result"] == [3, 6]


async def test_partial_is_known_by_its_function_and_what_it_has_bound(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.task(fetch)
    for factor in (2, 3, 2):
        bound = functools.partial(functools.partial(scaled), factor=factor)
        dag.task(name="scaled", cache=Cache(), replace=True)(bound)
        await dag.run_once()
    assert ran().count("scaled") == 2


DEFAULTS = """
from flowrun import Cache

def declare(dag, tables, limit):
    for number, table in enumerate(tables):
        @dag.task(name=f"t{number}", cache=Cache())
        def task(table=table, *, limit=limit):
            return [table, limit]
"""


async def test_defaults_of_the_function_are_part_of_the_key(
    make_engine: MakeEngine, store: Any, tmp_path: Path
) -> None:
    module = load_module(tmp_path / "jobs_defaults.py", DEFAULTS)
    for tables, limit, taken in (("ab", 1, 0), ("ac", 1, 1), ("ab", 2, 0), ("ac", 1, 2)):
        engine = make_engine(state_store=store)
        module.declare(engine.dag("d"), tables, limit)
        report = engine.get_run_report(await engine.run_once("d"))
        results = [task["result"] for task in report["tasks"].values()]
        assert results == [[table, limit] for table in tables]
        assert sum(task["cached_from"] is not None for task in report["tasks"].values()) == taken


async def test_version_is_part_of_the_key(make_engine: MakeEngine, store: Any) -> None:
    for version, runs in (("1", 1), ("2", 1), ("1", 0), ("2", 0)):
        engine = make_engine(state_store=store)
        await declare(engine, Cache(version=version)).run_once()
        assert ran().count("total") == runs


SOURCE = """
from flowrun import Cache

def declare(dag):
    @dag.task(cache=Cache())
    def task():
        return 1
"""
LAMBDA = """
from flowrun import Cache

def declare(dag):
    dag.task("task", cache=Cache())(
        lambda: 1
        + 1
    )
"""
TEXT = """
from flowrun import Cache

def declare(dag):
    @dag.task(cache=Cache())
    def task():
        return '''
text'''
"""


def load_module(path: Path, source: str) -> Any:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("before", "change", "taken"),
    [
        (SOURCE, ("return 1", "return 2"), False),
        (SOURCE, ("return 1", "# a comment\n        return (1)"), True),
        (SOURCE, ("cache=Cache()", "retries=2, cache=Cache(ttl_s=60)"), True),
        (LAMBDA, ("+ 1", "- 1"), False),
        (LAMBDA, ("    )", "    )  # the end"), True),
        (TEXT, ("\ntext", "\ntexts"), False),
        (TEXT, ("from", "\nfrom"), True),
    ],
)
async def test_source_of_the_function_is_part_of_the_key(
    make_engine: MakeEngine,
    store: Any,
    tmp_path: Path,
    before: str,
    change: tuple[str, str],
    taken: bool,
) -> None:
    assert change[0] in before
    for number, source in enumerate((before, before.replace(*change))):
        engine = make_engine(state_store=store)
        dag = engine.dag("d")
        load_module(tmp_path / f"jobs_{number}.py", source).declare(dag)
        run_id = await dag.run_once()
    assert (sources(engine, run_id)["task"] is not None) is taken


async def test_source_is_read_when_the_task_is_declared(
    make_engine: MakeEngine, store: Any, tmp_path: Path
) -> None:
    path = tmp_path / "jobs_edited.py"
    engine = make_engine(state_store=store)
    load_module(path, SOURCE).declare(engine.dag("d"))
    path.write_text(SOURCE.replace("return 1", "return 2"))
    await engine.run_once("d")  # the old code, as it was imported
    engine = make_engine(state_store=store)
    load_module(tmp_path / "jobs_new.py", path.read_text()).declare(engine.dag("d"))
    report = engine.get_run_report(await engine.run_once("d"))
    assert report["tasks"]["task"]["result"] == 2


async def test_lambdas_of_one_line_are_two_tasks(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    cached = dag.task("one", cache=Cache()), dag.task("two", cache=Cache())
    cached[0](lambda: 1), cached[1](lambda: 2)
    for _ in range(2):
        report = engine.get_run_report(await dag.run_once())
        assert [task["result"] for task in report["tasks"].values()] == [1, 2]
        is_first = report["tasks"]["one"]["cached_from"] is None
        assert is_first is (report["tasks"]["two"]["cached_from"] is None)
    assert not is_first


@dataclasses.dataclass(frozen=True)
class Deps:
    path: str
    password: str


def reads(context: RunContext[Deps]) -> str:
    RAN.append(context.password)
    return context.path


async def test_key_function_says_what_of_the_context_counts(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    threads: list[threading.Thread] = []

    def key(context: RunContext[Deps]) -> object:
        threads.append(threading.current_thread())
        return context.path

    dag.task(cache=Cache(key=key))(reads)
    for path, password in (("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")):
        report = engine.get_run_report(await dag.run_once(RunContext(Deps(path, password))))
        assert report["tasks"]["reads"]["result"] == path
    assert ran() == ["1", "3"]
    assert threading.main_thread() not in threads  # the loop goes on meanwhile


def chooses() -> list[str]:
    RAN.append("chooses")
    return ["left"]


async def test_branch_in_the_cache_chooses_as_before(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.branch("which", cache=Cache())(chooses)
    dag.task("left", deps=["which"])(lambda: 1)
    dag.task("right", deps=["which"])(lambda: 2)
    for _ in range(2):
        report = engine.get_run_report(await dag.run_once())
        assert statuses(report) == {"which": "SUCCESS", "left": "SUCCESS", "right": "OMITTED"}
    assert ran() == ["chooses"]
    # It cannot choose what is gone.
    engine.registry.unregister("left", "d")
    report = engine.get_run_report(await dag.run_once())
    assert (report["tasks"]["which"]["status"], ran()) == ("FAILED", ["chooses"])


def page(url: str, fetch: list[int]) -> str:
    RAN.append(url)
    return f"{url} {fetch}"


def shout(page: str) -> str:
    RAN.append(f"shout {page}")
    return page.upper()


@pytest.mark.parametrize("max_items", [None, 1])
async def test_items_of_a_mapped_task_are_taken_one_by_one(
    make_engine: MakeEngine, store: Any, max_items: int | None
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")

    @dag.task
    def url(urls: Param[str]) -> list[str]:
        return list(urls)

    dag.task(fetch)
    dag.task(cache=Cache(), map_over="url", max_items=max_items)(page)
    dag.task(cache=Cache(), map_over="page")(shout)
    first = await dag.run_once(params={"urls": "ab"})
    assert sorted(ran()) == ["a", "b", "fetch", "shout a [1, 2]", "shout b [1, 2]"]
    second = await dag.run_once(params={"urls": "bca"})
    assert sorted(ran()) == ["c", "fetch", "shout c [1, 2]"]
    task = engine.get_run_report(second)["tasks"]["shout"]
    assert task["result"] == ["B [1, 2]", "C [1, 2]", "A [1, 2]"]
    assert task["cached_from"] is None
    assert [item["cached_from"] for item in task["items"] or ()] == [first, None, first]
    assert [item["attempt"] for item in task["items"] or ()] == [0, 1, 0]
    assert len(store.list_cached()) == 6
    await dag.run_once(params={"urls": "ab"}, refresh=["page"])
    assert sorted(ran()) == ["a", "b", "fetch"]
    third = await dag.run_once(params={"urls": "cc"})
    assert ran() == ["fetch"]
    items = engine.get_run_report(third)["tasks"]["page"]["items"] or ()
    assert [item["cached_from"] for item in items] == [second, second]


async def test_resume_keeps_items_that_came_from_the_cache(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    broken = False

    @dag.task
    def url(urls: Param[str]) -> list[str]:
        return list(urls)

    dag.task(fetch)
    dag.task(cache=Cache(), map_over="url")(page)

    @dag.task(map_over="page")
    def check(page: str) -> str:
        if broken and page.startswith("c"):
            raise ValueError
        return page

    first = await dag.run_once(params={"urls": "ab"})
    broken = True
    old = await dag.run_once(params={"urls": "abc"})
    ran()
    broken = False
    report = engine.get_run_report(await engine.resume(old))
    assert (report["status"], ran()) == ("SUCCESS", [])
    items = report["tasks"]["page"]["items"] or ()
    assert [item["cached_from"] for item in items] == [first, first, None]
    assert report["tasks"]["check"]["result"] == ["a [1, 2]", "b [1, 2]", "c [1, 2]"]
    assert sorted({entry.run_id for entry in store.list_cached()}) == sorted((first, old))


async def test_items_that_are_looked_up_when_the_run_is_cancelled_are_skipped(
    make_engine: MakeEngine, store: Any
) -> None:  # R2
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    asked, go_on = threading.Event(), threading.Event()

    def key(context: object) -> object:
        asked.set()
        return go_on.wait()

    dag.task("url")(lambda: ["a", "b", "c"])
    dag.task(fetch)
    dag.task(cache=Cache(key=key), map_over="url", max_items=2)(page)
    handle = dag.start()
    await asyncio.to_thread(asked.wait, WAIT_S)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handle
    go_on.set()
    task = engine.get_run_report(handle.run_id)["tasks"]["page"]
    assert [item["status"] for item in task["items"] or ()] == ["SKIPPED"] * 3
    assert (task["status"], task["reason"], ran()) == ("SKIPPED", "RUN_CANCELLED", ["fetch"])


async def test_result_in_the_cache_needs_no_slot(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store, max_parallel=1, limits={"api": 1})
    dag = engine.dag("d")
    dag.task(cache=Cache(), uses=["api"])(fetch)
    first = await dag.run_once()
    inside, go_on = asyncio.Event(), asyncio.Event()

    @engine.task(dag="other", uses=["api"], timeout_s=None)
    async def holds() -> None:
        inside.set()
        await go_on.wait()

    other = asyncio.create_task(engine.run_once("other"))
    await inside.wait()
    async with asyncio.timeout(WAIT_S):
        assert sources(engine, await dag.run_once())["fetch"] == first
    go_on.set()
    await other


async def test_entry_is_too_old_after_its_ttl(make_engine: MakeEngine, store: Any) -> None:
    clock = SetClock()
    engine = make_engine(state_store=store, config=SchedulerConfig(clock=clock))
    dag = declare(engine, Cache(ttl_s=60))
    first = await dag.run_once()
    ran()
    clock.date += 59
    assert sources(engine, await dag.run_once())["total"] == first
    clock.date += 2  # taking it has not renewed it
    last = await dag.run_once()
    assert ran() == ["fetch", "fetch", "total", "show"]
    clock.date += 59
    assert sources(engine, await dag.run_once())["total"] == last


# -- what is not taken -----------------------------------------------------------------------------


async def test_refreshed_tasks_run_and_replace_what_was_there(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    await dag.run_once()
    ran()
    fresh = await dag.run_once(refresh=["total"])
    assert ran() == ["fetch", "total"]  # its result is as before
    again = await dag.run_once()
    assert sources(engine, again)["total"] == fresh
    ran()
    await dag.run_once(refresh=True)
    assert ran() == ["fetch", "total", "show"]
    await dag.run_once(refresh=False)
    assert ran() == ["fetch"]


def _run_in_plain_code(dag: DagScope) -> str:
    return dag.run(refresh=["total"])["run_id"]


async def test_every_way_to_run_takes_refresh(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    await dag.run_once()
    ran()
    await dag.run_once(refresh=["total"])
    await engine.run_subgraph("d", ["total"], refresh=["total"])
    await dag.run_subgraph(["total"], refresh=True)
    await engine.start("d", refresh=["total"])
    await asyncio.to_thread(_run_in_plain_code, dag)
    assert ran().count("total") == 5


@pytest.mark.parametrize(
    ("refresh", "error", "problem"),
    [
        ("total", TypeError, "refresh must be True or a list of names of tasks, not 'total'"),
        (7, TypeError, "refresh must be True or a list of names of tasks, not 7"),
        (["totl"], UnknownTaskError, "Did you mean 'total'"),
    ],
)
async def test_refresh_that_names_no_tasks_is_refused(
    engine: Engine, refresh: Any, error: type[Exception], problem: str
) -> None:
    declare(engine)
    with pytest.raises(error, match=problem):
        await engine.run_once("d", refresh=refresh)
    assert (RAN, engine.list_runs()) == ([], [])


async def test_what_was_overridden_neither_enters_the_cache_nor_comes_from_it(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    for overrides in ({"total": 7}, {"total": lambda: 7}, {"fetch": [3, 4]}):
        await dag.run_once(overrides=overrides)
    assert store.list_cached() == []
    ran()
    await dag.run_once()
    assert ran() == ["fetch", "total", "show"]
    # Nor does what depends on it, whose input may be as before.
    await dag.run_once(overrides={"total": 3})
    await dag.run_once(overrides={"fetch": [1, 2]})
    assert ran() == ["fetch", "show", "total", "show"]
    assert len(store.list_cached()) == 2


async def test_failures_do_not_enter_the_cache(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.task(cache=Cache(), retries=1)(fails_at_first)
    dag.task(cache=Cache())(fails)
    report = engine.get_run_report(await dag.run_once())
    assert statuses(report) == {"fails_at_first": "SUCCESS", "fails": "FAILED"}
    assert report["tasks"]["fails_at_first"]["attempt"] == 2
    assert [entry.task_name for entry in store.list_cached()] == ["fails_at_first"]
    ran()
    await dag.run_once()
    assert ran() == ["fails"]


def fails_at_first() -> int:
    RAN.append("fails_at_first")
    if RAN.count("fails_at_first") == 1:
        raise ValueError
    return 1


def fails() -> None:
    RAN.append("fails")
    raise ValueError


# -- what cannot be looked up ----------------------------------------------------------------------


class Odd:
    """Neither JSON nor a pickle."""

    def __reduce__(self) -> str:
        raise ZeroDivisionError("no pickle")


def takes_odd(odd: object) -> str:
    RAN.append("takes_odd")
    return "taken"


async def test_task_with_an_input_that_no_key_can_be_made_of_runs_with_a_warning(
    make_engine: MakeEngine, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.task("odd", retain_result=False)(Odd)
    dag.task(cache=Cache())(takes_odd)
    for _ in range(2):
        report = engine.get_run_report(await dag.run_once())
        assert report["tasks"]["takes_odd"]["result"] == "taken"
    assert ran() == ["takes_odd"] * 2
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warnings) == 2
    assert warnings[0].startswith("task 'takes_odd': it runs, as the cache cannot be used: ")


async def test_key_function_that_fails_lets_the_task_run(
    make_engine: MakeEngine, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(state_store=store, redact=lambda text: text.replace("secret", "***"))
    dag = engine.dag("d")

    def key(context: object) -> object:
        raise SystemExit("secret")

    dag.task(cache=Cache(key=key))(fetch)
    for _ in range(2):
        await dag.run_once()
    assert ran() == ["fetch"] * 2
    assert "task 'fetch': it runs, as the cache cannot be used: SystemExit: ***" in caplog.messages
    assert store.list_cached() == []


async def test_released_input_that_can_be_stored_is_part_of_the_key(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    dag.task(retain_result=False)(fetch)
    dag.task(cache=Cache())(total)
    for _ in range(2):
        await dag.run_once()
    dag.task(name="fetch", retain_result=False, replace=True)(lambda: [5])
    await dag.run_once()
    assert ran() == ["fetch", "total", "fetch", "total"]


class Plain:
    """A store with no cache."""

    def __init__(self, store: StateStoreProtocol) -> None:
        self.blocking = store.blocking
        for name in ("create_run", "save", "load_run", "load_results", "list_runs"):
            setattr(self, name, getattr(store, name))
        self.prune_runs, self.close = store.prune_runs, store.close


async def test_store_without_a_cache_runs_everything_with_a_warning(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = Plain(InMemoryStateStore())
    assert not isinstance(store, CacheStoreProtocol)
    engine = make_engine(state_store=store)
    dag = declare(engine)
    for _ in range(2):
        await dag.run_once()
    assert ran() == ["fetch", "total", "show"] * 2
    problem = "DAG 'd' has tasks with a cache, and a Plain keeps none: they run each time"
    assert caplog.messages.count(problem) == 2


class Broken(InMemoryStateStore):
    """A store whose cache cannot be read."""

    def find_cached(self, key: str, since: float) -> Any:
        raise DamagedRecordError("r", "t", "it is damaged")


async def test_system_without_a_thread_for_it_lets_the_task_run(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    engine.task(dag="d", cache=Cache())(show_nothing)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    await engine.run_once("d")
    assert ran() == ["show_nothing"]
    assert any("can't start new thread" in message for message in caplog.messages)


async def show_nothing() -> None:
    RAN.append("show_nothing")


async def test_cache_that_cannot_be_read_lets_the_tasks_run(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    store = Broken()
    engine = make_engine(state_store=store)
    report = engine.get_run_report(await declare(engine).run_once())
    assert (report["status"], ran()) == ("SUCCESS", ["fetch", "total", "show"])
    assert sum("it is damaged" in message for message in caplog.messages) == 2
    assert len(store.list_cached()) == 2  # their keys are known all the same


async def test_result_of_another_serializer_is_made_again(
    make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for serializer in (PickleSerializer(), JsonSerializer()):
        store = SqliteStateStore(tmp_path / "runs.db", serializer)
        engine = make_engine(state_store=store)
        engine.task(dag="d", cache=Cache())(fetch)
        await engine.run_once("d")
        engine.close()
        store.close()
    assert ran() == ["fetch", "fetch"]
    assert any("written by the 'pickle' serializer" in message for message in caplog.messages)


async def test_run_that_is_cancelled_waits_for_no_key_function(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = engine.dag("d")
    asked, go_on = threading.Event(), threading.Event()

    def key(context: object) -> object:
        asked.set()
        return go_on.wait()

    for number in range(50):  # more than there are threads
        dag.task(f"t{number}", cache=Cache(key=key))(fetch)
    handle = dag.start()
    await asyncio.to_thread(asked.wait, WAIT_S)
    handle.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handle
    report = engine.get_run_report(handle.run_id)
    assert {task["reason"] for task in report["tasks"].values()} == {"RUN_CANCELLED"}
    engine.close()  # nor does this
    go_on.set()
    assert ran() == []


# -- resume ----------------------------------------------------------------------------------------


async def test_resume_keeps_what_came_from_the_cache_and_says_so(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    first = await dag.run_once()
    broken = True

    @dag.task
    def last(show: str) -> str:
        if broken:
            raise ValueError
        return show

    old = await dag.run_once()
    ran()
    broken = False
    new = await engine.resume(old)
    assert ran() == []
    report = engine.get_run_report(new)
    assert sources(engine, new) == {"fetch": None, "total": first, "show": first, "last": None}
    assert report["tasks"]["last"]["result"] == "3 in all"
    text = engine.report_text(new, width=120)
    assert "3 kept, 1 run" in text
    assert text.count("kept from the earlier run") == 3
    # Entries are of the runs that have made them.
    assert {entry.run_id for entry in store.list_cached()} == {first}


async def test_resume_takes_from_the_cache_what_it_has_to_run(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    broken = False

    @dag.task(name="fetch", replace=True)
    def fetches() -> list[int]:
        if broken:
            raise ValueError
        return [1, 2]

    first = await dag.run_once()
    broken = True
    old = await dag.run_once()
    broken = False
    assert ran() == ["total", "show"]
    assert sources(engine, await engine.resume(old))["show"] == first
    assert ran() == []
    broken = True
    old = await dag.run_once()
    broken = False
    await engine.resume(old, refresh=["show"])
    assert ran() == ["show"]


async def test_resume_from_tasks_runs_them_and_what_depends_on_them(  # S3
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    old = await dag.run_once()
    ran()
    await engine.resume(old, ["total"])
    assert ran() == ["total", "show"]
    await engine.resume(old, ["total"], refresh=["fetch"])  # which the resume keeps
    assert ran() == ["total", "show"]
    await engine.resume(old, ["total"], refresh=True)
    assert ran() == ["total", "show"]


async def test_inputs_that_a_resume_keeps_are_part_of_the_key(
    make_engine: MakeEngine, store: Any
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    first = await dag.run_once()
    store.clear_cached(task_name="show")
    old = await dag.run_once(overrides={"show": fails})
    ran()
    new = await engine.resume(old)
    assert ran() == ["show"]
    assert sources(engine, new)["total"] == first
    assert sources(engine, await dag.run_once())["show"] == new


# -- entries ---------------------------------------------------------------------------------------


async def test_entry_lives_as_long_as_its_run(make_engine: MakeEngine, store: Any) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    first = await dag.run_once()
    second = await dag.run_once()
    ran()
    assert engine.prune_runs(keep_last=1) == 1
    assert store.list_cached() == []
    # What was taken from the run that is gone is still there.
    assert sources(engine, second)["show"] == first
    assert engine.get_run_report(second)["tasks"]["show"]["result"] == "3 in all"
    third = await dag.run_once()
    assert ran() == ["fetch", "total", "show"]
    await dag.run_once(refresh=True)
    ran()
    assert engine.prune_runs(keep_last=1) == 2
    assert third not in {entry.run_id for entry in store.list_cached()}
    await dag.run_once()
    assert ran() == ["fetch"]


async def test_entry_outlives_the_results_that_memory_drops(make_engine: MakeEngine) -> None:
    store = InMemoryStateStore(keep_results_of=0, max_finished_runs=3)
    engine = make_engine(state_store=store)
    dag = declare(engine)
    for _ in range(3):
        report = engine.get_run_report(await dag.run_once())
        assert report["tasks"]["show"]["result_state"] == "released"
    assert ran() == ["fetch", "total", "show", "fetch", "fetch"]
    await dag.run_once()  # the fourth run, by which the first is dropped when it ends
    ran()
    await dag.run_once()
    assert ran() == ["fetch", "total", "show"]


async def test_entries_are_listed_and_cleared(make_engine: MakeEngine, store: Any) -> None:
    clock = SetClock()
    engine = make_engine(state_store=store, config=SchedulerConfig(clock=clock))
    run_id = await declare(engine).run_once()
    clock.date += 10
    engine.task(dag="other", cache=Cache())(fetch)
    other = await engine.run_once("other")
    names = [(entry.dag_name, entry.task_name) for entry in store.list_cached()]
    assert (names[0], sorted(names[1:])) == (("other", "fetch"), [("d", "show"), ("d", "total")])
    entry = store.list_cached("other")[0]
    assert (entry.run_id, entry.finished_at) == (other, pytest.approx(clock.date, abs=5))
    assert {each.run_id for each in store.list_cached("d")} == {run_id}
    assert [each.dag_name for each in store.list_cached(task_name="show")] == ["d"]
    assert store.list_cached("nothing") == []
    assert store.clear_cached("d", "show") == 1
    assert store.clear_cached("nothing") == 0
    assert [entry.task_name for entry in store.list_cached()] == ["fetch", "total"]
    assert store.clear_cached() == 2
    assert store.list_cached() == []
    ran()
    await engine.run_once("d")
    assert ran() == ["fetch", "total", "show"]


# -- where it is shown -----------------------------------------------------------------------------


async def test_table_page_and_log_say_what_came_from_the_cache(
    make_engine: MakeEngine, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(state_store=store)
    dag = declare(engine)
    first = await dag.run_once()
    with caplog.at_level(logging.INFO):
        second = await dag.run_once()
    assert f"task 'total' has its result from the cache, of run {first}" in caplog.messages
    text = engine.report_text(second, width=120)
    assert text.count(f"cached from {first}") == 2
    assert f'"why":"cached from {first}"' in engine.report_html(second)


# -- what is refused when a task is declared --------------------------------------------------------


class Callee:
    def call(self) -> None: ...

    def __call__(self) -> None: ...


def make_closure() -> Callable[[], int]:
    outer, more = 1, 2
    return lambda: outer + more


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (make_closure(), {}, r"the outer variables that the function uses \('more', 'outer'\)"),
        (fetch, {"retain_result": False}, "retain_result=False drops the result"),
        (reads, {}, r"the RunContext parameter 'context', .* Cache\(key=lambda context: ...\)"),
        (Callee().call, {}, "cache= is for functions, .* not for a method"),
        (Callee(), {}, "cache= is for functions, .* not for a Callee"),
        (functools.partial(len, []), {}, "cache= is for functions, .* builtin_function_or_method"),
        (
            eval(compile("lambda: 1", "<nowhere>", "eval")),
            {},
            r"needs the source of the function \(.*; define it in a file",
        ),
        (fetch, {"cache": True}, r"cache must be a Cache or None, not True; write cache=Cache\(\)"),
    ],
)
def test_cache_that_cannot_be_right_is_refused(
    engine: Engine, function: Callable[..., Any], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=f"task 'a' .DAG 'd'.: .*{problem}"):
        engine.task("a", dag="d", **{"cache": Cache(), **options})(function)
    assert engine.list_dags() == []


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"ttl_s": 0}, ValueError, "ttl_s of a Cache must be finite and above 0, not 0"),
        ({"ttl_s": float("inf")}, ValueError, "must be finite"),
        (
            {"ttl_s": "1d"},
            TypeError,
            "ttl_s of a Cache must be a number of seconds, or None for no end, not '1d'",
        ),
        ({"ttl_s": True}, TypeError, "must be a number of seconds"),
        ({"version": 2}, TypeError, 'version of a Cache must be a text, like "2", not 2'),
        ({"key": "path"}, TypeError, "key of a Cache must be a function of the run's context"),
    ],
)
def test_settings_of_a_cache_are_checked(
    options: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        Cache(**options)
