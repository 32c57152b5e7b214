"""Random runs, whatever became of them: what is shown of their time adds up to it (V3)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import flowrun
from flowrun import Explanation, JsonSerializer, RetryPolicy, RunReport, SkipTask
from flowrun.render import duration_text, explain, report_html, report_table
from flowrun.render.wording import ran_s, waited_s

SEEDS = range(int(os.environ.get("FLOWRUN_RANDOM_ROUNDS", "8")))
PAUSES = (0.0, 0.0, 0.001, 0.004)


class SlowSerializer(JsonSerializer):
    """Takes its time for some results."""

    name = "slow"

    def serialize(self, obj: Any) -> bytes:
        threading.Event().wait(obj if isinstance(obj, float) else 0)
        return super().serialize(obj)


class World:
    """An engine with a random DAG, and its runs."""

    def __init__(self, seed: int, store: Any) -> None:
        self.chance = random.Random(seed)
        self.is_repaired = False
        self.engine = flowrun.build_default_engine(
            max_parallel=self.chance.randint(1, 3),
            max_workers=self.chance.randint(1, 3),
            limits={"api": 1, "db": 2},
            state_store=store,
            config=flowrun.SchedulerConfig(thread_grace_s=5.0),
        )
        for number in range(self.chance.randint(1, 12)):
            self.declare(number)
        if self.chance.random() < 0.5:
            self.declare_mapped()

    def declare_mapped(self) -> None:
        pauses = [self.chance.choice(PAUSES) for _ in range(self.chance.randint(0, 5))]
        fails = self.chance.random() < 0.3

        async def fetch(pages: float) -> float:
            await asyncio.sleep(pages)
            if fails and not pages and not self.is_repaired:
                raise OSError("away")
            return pages

        self.engine.task("pages", dag="d")(lambda: pauses)
        self.engine.task("fetch", dag="d", map_over="pages", uses=["api"])(fetch)
        self.engine.task("load", dag="d")(lambda fetch: len(fetch))

    def declare(self, number: int) -> None:
        chance = self.chance
        fails, pause_s = chance.choice((0, 0, 0, 0, 1, 9)), chance.choice(PAUSES)
        omits, result = chance.random() < 0.08, chance.choice(PAUSES)
        calls: list[int] = []

        def outcome() -> float:
            calls.append(1)
            if omits:
                raise SkipTask("nothing new")
            if len(calls) <= fails and not self.is_repaired:
                raise OSError("away")
            return result

        async def asynchronous() -> float:
            await asyncio.sleep(pause_s)
            return outcome()

        def synchronous() -> float:
            threading.Event().wait(pause_s)
            return outcome()

        parents = chance.sample(range(number), min(number, chance.choice((0, 1, 1, 2))))
        self.engine.task(
            name=f"t{number}",
            dag="d",
            deps=[f"t{parent}" for parent in parents],
            retries=RetryPolicy(chance.choice((0, 2)), delay_s=chance.choice((0, 0.002))),
            uses=chance.choice(([], [], ["api"], {"db": 2})),
            trigger_rule=chance.choice(("all_success", "all_success", "all_done")),
            retain_result=chance.random() < 0.8,
        )(chance.choice((asynchronous, synchronous)))

    async def play(self) -> None:
        options: dict[str, Any] = {"timeout_s": self.chance.choice((None, None, None, 0.004))}
        runs = [
            asyncio.create_task(self.engine.run_once("d", **options)),
            asyncio.create_task(self.engine.run_once("d", fail_fast=True)),
        ]
        if self.chance.random() < 0.4:
            await asyncio.sleep(self.chance.choice(PAUSES))
            runs[0].cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        self.is_repaired = True
        for run in self.engine.list_runs():
            with contextlib.suppress(flowrun.errors.FlowrunError):  # it has succeeded
                await self.engine.resume(run.run_id)


def adds_up(explained: Explanation, report: RunReport) -> None:
    assert report["finished_at"] is not None
    whole = report["finished_at"] - report["created_at"]
    assert explained.duration_s == pytest.approx(whole, abs=1e-9)
    assert sum(part.duration_s for part in explained.parts) == pytest.approx(whole, abs=1e-5)
    assert all(part.duration_s > 0 for part in explained.parts)
    assert sum(explained.totals().values()) == pytest.approx(whole, abs=1e-5)


def spent(explained: Explanation, *kinds: str) -> float:
    return sum(part.duration_s for part in explained.parts if part.kind in kinds)


def flat(text: str) -> str:
    return " ".join(re.sub("<[^>]+>", "", text).replace("&#x27;", "'").split())


def check(report: RunReport) -> None:
    """Check that explain, table and page name the same numbers, and that they add up."""
    explained = explain(report)
    adds_up(explained, report)
    assert explained.busy is not None
    assert 0 <= explained.busy <= 1
    table, page = report_table(report, 200), report_html(report)
    if explained.path:
        assert flat(explained.line) in flat(table)
        assert [flat(found) for found in re.findall('<p class="slow">(.*?)</p>', page)] == [
            flat(explained.line)
        ]
    (found,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page)
    shown = {each["name"]: dict(each.get("spent", ())) for each in json.loads(found)["tasks"]}
    for name, task in report["tasks"].items():
        of_task = explain(report, name)
        adds_up(of_task, report)
        if task["attempts"] and not task["kept"] and task["status"] != "SKIPPED":
            assert spent(of_task, "running") == pytest.approx(ran_s(task) or 0, abs=1e-5)
            assert spent(of_task, "slot", "limit") == pytest.approx(waited_s(task) or 0, abs=1e-5)
            row = [line for line in table.split("\n") if line.split()[1:2] == [name]][-1]
            assert duration_text(ran_s(task) or 0) in row
            assert duration_text(waited_s(task) or 0) in row
            for words, spent_s in of_task.totals().items():
                if words.startswith(("waiting for a slot", "waiting for limit", "saving")):
                    assert shown[name][words] == pytest.approx(spent_s, abs=2e-3)
        # Nothing that the whole run spent on a task is more than the task itself says.
        for kind in ("running", "slot", "limit", "start", "retry"):
            on_path = sum(p.duration_s for p in explained.parts if (p.task, p.kind) == (name, kind))
            assert on_path <= spent(of_task, kind) + 1e-5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_time_of_random_runs_adds_up(seed: int, kind: str, tmp_path: Path) -> None:  # V3
    store: Any = None
    if kind == "sqlite":
        store = flowrun.SqliteStateStore(tmp_path / "runs.db", serializer=SlowSerializer())
    world = World(seed, store)
    asyncio.run(world.play())
    runs = world.engine.list_runs(limit=None)
    assert len(runs) >= 2
    for run in runs:
        report = world.engine.get_run_report(run.run_id)
        check(report)
        assert str(world.engine.explain(run.run_id)) == str(explain(report))
    world.engine.close()
    if store is not None:
        store.close()
