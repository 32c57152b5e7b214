"""Random flows of mapped tasks, branches and teardowns, stopped and resumed: what always holds.

Every task is a pure function of what it is given, so that a plain sequential evaluation says what
must come out. Some of them fail in the first rounds. After each run the rest is resumed: the result
is that of a run in which nothing had failed, and nothing that was done is done again.

``FLOWRUN_RANDOM_ROUNDS`` sets the number of rounds of each kind, ``FLOWRUN_RANDOM_SEED`` the
first seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import flowrun
from flowrun import Engine, RunReport, SkipTask

from ..conftest import WAIT_S

ROUNDS = int(os.environ.get("FLOWRUN_RANDOM_ROUNDS", "15"))
SEED = int(os.environ.get("FLOWRUN_RANDOM_SEED", "0"))
RULES = ("all_success", "all_success", "all_success", "all_done", "one_success", "none_failed")
GOOD = ("SUCCESS", "OMITTED")


class Task(NamedTuple):
    """One task of a flow."""

    name: str
    deps: list[str]
    over: list[str]
    rule: str
    collects: bool
    keyed: bool
    retains: bool
    is_async: bool
    max_items: int | None
    is_branch: bool
    teardown_of: list[str]


class Ended(NamedTuple):
    """What a task, or an item, comes to."""

    status: str
    result: Any = None
    items: dict[int, Ended] | None = None  # type: ignore[misc]


def number_of(*what: object) -> int:
    """Return a number that is the same for the same values, in every process."""
    return int(hashlib.sha256(repr(what).encode()).hexdigest()[:12], 16)


class Flow:
    """A random flow, what its tasks do, and what they come to."""

    def __init__(self, seed: int, *, is_plain: bool) -> None:
        self.seed = seed
        self.round = 0
        self.chance = chance = random.Random(seed)
        self.called: list[tuple[str, Any]] = []
        self.made: dict[str, Any] = {}  # the elements of items, by the results of these
        self.stop_at: int | None = None
        self.stop: Callable[[], object] = lambda: None
        self.tasks: list[Task] = []
        for place in range(chance.randint(2, 9)):
            # Nothing depends on a teardown.
            names = [task.name for task in self.tasks if not task.teardown_of]
            deps = sorted(chance.sample(names, min(len(names), chance.choice((0, 1, 1, 2, 3)))))
            # Whether a task that is not chosen is omitted, or skipped for another of its parents,
            # depends on which of both ends first.
            deps = [name for name in deps if name in self.branches()][:1] or deps
            lists = [task.name for task in self.tasks if task.name in deps and not task.is_branch]
            mapped = bool(lists) and chance.random() < 0.6
            over = chance.sample(lists, min(len(lists), chance.choice((1, 1, 1, 2))))
            plain = is_plain or mapped
            special = 0.5 if plain else chance.random()
            tears = special < 0.3 and bool(lists)
            self.tasks.append(
                Task(
                    name=f"t{place}",
                    deps=lists[:1] if tears else deps,
                    over=over if mapped else [],
                    rule="all_success" if plain or tears else chance.choice(RULES),
                    collects=mapped and not is_plain and chance.random() < 0.3,
                    keyed=mapped and chance.random() < 0.3,
                    retains=is_plain or chance.random() < 0.7,
                    is_async=chance.random() < 0.6,
                    max_items=chance.choice((None, None, 1, 2)),
                    is_branch=special > 0.7,
                    teardown_of=lists[:1] if tears else [],
                )
            )

    # -- what tasks do -----------------------------------------------------------------------

    def fails(self, name: str, element: Any) -> bool:
        """Return whether a call fails in this round."""
        number = number_of(self.seed, "fails", name, element)
        until = (0, 0, 0, 0, 0, 1, 1, 2)[number % 8]
        if until and self.collects(name):  # a resume keeps a failure that was collected
            return True
        return self.round < until

    def collects(self, name: str) -> bool:
        """Return whether the failures of a mapped task's items are collected."""
        return next(task.collects for task in self.tasks if task.name == name)

    def branches(self) -> set[str]:
        """Return the tasks that choose which of their children go on."""
        return {task.name for task in self.tasks if task.is_branch}

    def chosen(self, branch: str) -> list[str]:
        """Return what a branch chooses."""
        children = [task.name for task in self.tasks if branch in task.deps]
        return [name for name in children if number_of(self.seed, branch, name) % 2]

    def does(self, name: str, element: Any, given: dict[str, Any]) -> Any:
        """Return what a task, or the item of an element, returns.

        Raises:
            OSError: It fails in this round.
            SkipTask: It omits itself, in every round.
        """
        if self.fails(name, element):
            raise OSError("away")
        number = number_of(self.seed, name, element, sorted(given.items()))
        if number_of(self.seed, "omits", name, element) % 12 == 0:
            raise SkipTask("nothing new")
        if element is not None:
            result = f"{name}.{number % 10_000}"
            self.made[result] = element
            return result
        return [f"{name}.{each}.{number % 10_000}" for each in range(number % 4)]

    def declare(self, engine: Engine) -> None:
        for task in self.tasks:
            options: dict[str, Any] = {}
            if task.over:
                options = {
                    "map_over": task.over if len(task.over) > 1 else task.over[0],
                    "map_errors": "collect" if task.collects else "fail",
                    "max_items": task.max_items,
                    "map_key": (lambda *parts: repr(parts)) if task.keyed else None,
                }
            if task.teardown_of:
                options["teardown_of"] = task.teardown_of
            declare = engine.dag("d").branch if task.is_branch else engine.dag("d").task
            declare(
                task.name,
                deps=[] if task.teardown_of else task.deps,
                trigger_rule=task.rule,
                retain_result=task.retains,
                **options,
            )(self.function(task))

    def function(self, task: Task) -> Any:
        def call(upstream: dict[str, Any]) -> Any:
            given = {name: upstream[name] for name in upstream if name not in task.over}
            given = {name: given[name] for name in given if name not in self.branches()}
            parts = tuple(upstream[name] for name in task.over)
            element = None if not parts else parts[0] if len(parts) == 1 else parts
            self.called.append((task.name, element))
            if len(self.called) == self.stop_at:
                self.stop()
            result = self.does(task.name, element, given)
            return self.chosen(task.name) if task.is_branch else result

        async def asynchronous(upstream: dict[str, Any]) -> Any:
            await asyncio.sleep(0)
            return call(upstream)

        return asynchronous if task.is_async else call

    # -- what it comes to --------------------------------------------------------------------

    def expected(self) -> dict[str, Ended]:
        """Return how each task ends in this round if all are called, one after the other."""
        ends: dict[str, Ended] = {}
        for task in self.tasks:
            ends[task.name] = self.mapped(task, ends) if task.over else self.plain(task, ends)
        return ends

    def is_chosen(self, task: Task, ends: dict[str, Ended]) -> bool:
        """Return whether each branch before a task that has succeeded has chosen it."""
        before = self.branches().intersection(task.deps)
        return all(
            task.name in self.chosen(name) for name in before if ends[name].status == "SUCCESS"
        )

    def plain(self, task: Task, ends: dict[str, Ended]) -> Ended:
        if not self.is_chosen(task, ends):
            return Ended("OMITTED")
        statuses = [ends[name].status for name in task.deps]
        bad = "FAILED" in statuses or "SKIPPED" in statuses
        runs = {
            "all_success": all(status == "SUCCESS" for status in statuses),
            "all_done": True,
            "one_success": not statuses or "SUCCESS" in statuses,
            "none_failed": not bad,
        }[task.rule]
        if not runs:
            return Ended("SKIPPED" if bad else "OMITTED")
        given = {
            name: ends[name].result
            for name in task.deps
            if ends[name].status == "SUCCESS" and name not in self.branches()
        }
        return self.outcome(task.name, None, given)

    def outcome(self, name: str, element: Any, given: dict[str, Any]) -> Ended:
        try:
            return Ended("SUCCESS", self.does(name, element, given))
        except OSError:
            return Ended("FAILED")
        except SkipTask:
            return Ended("OMITTED")

    def mapped(self, task: Task, ends: dict[str, Ended]) -> Ended:
        if not self.is_chosen(task, ends):
            return Ended("OMITTED")
        source = ends[task.over[0]]
        follows = len(task.over) == 1 and source.items is not None
        before = [ends[name].status for name in task.deps if not (follows and name == task.over[0])]
        if "FAILED" in before or "SKIPPED" in before:
            return Ended("SKIPPED")
        if follows and source.status != "SUCCESS" and not source.items:
            return Ended("SKIPPED")
        if "OMITTED" in before:
            return Ended("SKIPPED" if source.status in ("FAILED", "SKIPPED") else "OMITTED")
        others = set(task.deps) - set(task.over) - self.branches()
        given = {name: ends[name].result for name in others}
        if follows:
            collects = self.collects(task.over[0])
            found = source.items or {}
        elif len({len(ends[name].result) for name in task.over}) > 1:
            return Ended("FAILED")
        else:
            lists = [ends[name].result for name in task.over]
            rows = lists[0] if len(lists) == 1 else list(zip(*lists, strict=True))
            collects, found = False, {n: Ended("SUCCESS", row) for n, row in enumerate(rows)}
        items: dict[int, Ended] = {}
        for number, element in found.items():
            if element.status == "SUCCESS":
                items[number] = self.outcome(task.name, element.result, given)
            elif element.status == "OMITTED":
                items[number] = Ended("OMITTED")
            elif not collects or element.status == "SKIPPED":
                items[number] = Ended("SKIPPED")
        statuses = {
            item.status
            for item in items.values()
            if not (task.collects and item.status == "FAILED")
        }
        for status in ("FAILED", "SKIPPED"):
            if status in statuses:
                return Ended(status, None, items)
        results = [item.result for item in items.values() if item.status == "SUCCESS"]
        return Ended("SUCCESS", results, items)


class Story:
    """A flow that is run, stopped and resumed, until nothing fails any more."""

    def __init__(self, flow: Flow, folder: Path | None) -> None:
        self.flow = flow
        self.folder = folder
        self.memory = flowrun.InMemoryStateStore()

    def engine(self) -> tuple[Engine, Any]:
        """Return an engine on the store; a new process would have another one on the file."""
        store: Any = self.memory
        if self.folder is not None:
            store = flowrun.SqliteStateStore(self.folder / "runs.db")
        engine = flowrun.build_default_engine(
            state_store=store, max_parallel=self.flow.chance.randint(1, 4)
        )
        self.flow.declare(engine)
        return engine, store

    async def play(self) -> None:
        flow, report, stopped = self.flow, None, False
        while report is None or report["status"] != "SUCCESS":
            assert flow.round < 8
            engine, store = self.engine()
            flow.called = []
            flow.stop_at = flow.chance.choice((None, None, 1, 3, 6)) if flow.round < 3 else None
            flow.stop = lambda: engine.cancel(engine.list_runs()[0].run_id)
            old, stopped = report, False
            try:
                run = engine.run_once("d") if old is None else engine.resume(old["run_id"])
                run_id = await asyncio.wait_for(run, WAIT_S)
            except flowrun.RunCancelledError as error:
                run_id, stopped = error.run_id, True
            report = engine.get_run_report(run_id)
            await engine.aclose()
            if self.folder is not None:
                store.close()
            expected = flow.expected()
            if old is not None:
                self.check_calls(old, report)
            if not stopped:
                self.check(report, expected)
                if flow.round >= 3:
                    break
            flow.round += 1

    def check(self, report: RunReport, expected: dict[str, Ended]) -> None:
        for task in self.flow.tasks:
            end, found = expected[task.name], report["tasks"][task.name]
            if end.items and found["items"] is None:
                # What it is mapped over failed before the others that it depends on had ended.
                assert found["status"] == "SKIPPED"
                assert {"FAILED", "SKIPPED"} & {expected[name].status for name in task.over}
                continue
            assert found["status"] == end.status, (task, found["error"])
            if found["result_state"] == "kept" and not task.is_branch:
                assert found["result"] == end.result, task
            items = (
                None
                if found["items"] is None
                else {item["item"]: item["status"] for item in found["items"]}
            )
            wanted = end.items and {number: item.status for number, item in end.items.items()}
            assert (items or None) == (wanted or None), task

    def check_calls(self, old: RunReport, new: RunReport) -> None:
        """Check that nothing is called again that had succeeded, if all results were kept."""
        flow = self.flow
        names = [name for name, _ in flow.called]
        keeps_all = all(
            task.retains and task.rule == "all_success" and not task.teardown_of
            for task in flow.tasks
        )
        for task in flow.tasks:
            before, now = old["tasks"][task.name], new["tasks"][task.name]
            if now["kept"]:
                assert task.name not in names
                assert before["status"] in GOOD
            elif keeps_all:
                assert before["status"] not in GOOD
                done = [item["result"] for item in before["items"] or () if item["result"]]
                again = [(task.name, flow.made[result]) for result in done]
                assert not [each for each in again if each in flow.called]


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("kind", ["plain", "all"])
def test_resumed_flow_comes_to_what_an_undisturbed_one_does(
    seed: int, store: str, kind: str, tmp_path: Path
) -> None:
    flow = Flow(seed, is_plain=kind == "plain")
    asyncio.run(Story(flow, tmp_path if store == "sqlite" else None).play())
