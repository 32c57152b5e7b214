"""Rules, branches, omissions, priorities, limits, delays and teardowns survive ``kill -9``."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import RunQuery, RunRecord, SqliteStateStore

from .conftest import WAIT_S
from .killed_flows import DELAY_S, OMITTED, PAGES, USERS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills by POSIX calls")

PROGRAM = Path(__file__).with_name("killed_flows.py")
KILLS = int(os.environ.get("FLOWRUN_KILLS", "32"))
SEEDS = 4
Line = dict[str, Any]


def go_on(path: Path, notes: Path, dies_after: int, recover: str) -> int:
    """Run the program once; return how it has ended."""
    command = [sys.executable, str(PROGRAM), str(path), str(notes), str(dies_after), recover]
    done = subprocess.run(command, capture_output=True, timeout=3 * WAIT_S, check=False)
    assert done.returncode in (0, 1, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def lines_of(notes: Path) -> list[Line]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


def last_run(path: Path) -> RunRecord:
    with closing(SqliteStateStore(path)) as store:
        (last,) = store.list_runs(RunQuery(limit=1))
        return store.load_run(last.run_id, results=True)


def by_process(lines: list[Line]) -> list[list[Line]]:
    found: list[list[Line]] = []
    for line in lines:
        if line["what"] == "up":
            found.append([])
        found[-1].append(line)
    return found


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(SEEDS))
def test_kill_at_any_point_keeps_what_was_acknowledged_and_every_rule(
    tmp_path: Path, seed: int
) -> None:  # S1 S2 D2
    dice = random.Random(seed)
    killed = turn = 0
    while killed < KILLS // SEEDS:
        turn += 1
        path, notes = tmp_path / f"{turn}.db", tmp_path / f"{turn}.notes"
        ended = -1
        spared = killed + 4
        while ended != 0:
            is_to_die = killed < min(spared, KILLS // SEEDS)
            # Near its end as often as anywhere, since teardowns come last.
            most = dice.choice([12, 45])
            dies_after = dice.randrange(2, most) if is_to_die else 0
            ended = go_on(path, notes, dies_after, dice.choice(["recover", "resume"]))
            killed += ended == -signal.SIGKILL
        lines = lines_of(notes)
        check_acknowledged(lines)
        check_cluster(lines)
        for each in by_process(lines):
            check_limits_and_priorities(each)
            check_delay(each)
        check_end(last_run(path))


def check_acknowledged(lines: list[Line]) -> None:
    """What was acknowledged does not run again, but for what a teardown has undone."""
    acknowledged: set[str] = set()
    for line in lines:
        if line["what"] == "ack":
            acknowledged.add(line["task"])
        elif line["what"] == "run" and line["task"] not in ("cluster", "drop"):
            assert line["task"] not in acknowledged, (line, lines)


def check_cluster(lines: list[Line]) -> None:
    """Its users find it set up; it is torn down once they have ended, and set up at most then."""
    cluster, is_up, using = "", False, Counter[str]()
    for line in lines:
        what, task = line["what"], line.get("task")
        if what == "up":
            using.clear()
        elif what == "run" and task == "cluster":
            cluster, is_up = line["made"], True
        elif task in USERS and what == "run":
            assert is_up, lines
            assert line["given"] == cluster
            using[task] += 1
        elif task in USERS and what == "end":
            using[task] -= 1
        elif task == "drop" and what == "run":
            assert not +using, lines
            assert line["given"] == cluster
            is_up = False
    assert not is_up


def check_limits_and_priorities(lines: list[Line]) -> None:
    """One page at a time, and those of higher priority first."""
    pages = [line for line in lines if line.get("task") in PAGES and line["what"] != "ack"]
    kinds = [(line["what"], line["task"]) for line in pages]
    started = [task for what, task in kinds if what == "run"]
    assert started == sorted(started, reverse=True)
    for begin, end in itertools.pairwise(kinds):
        assert begin[0] != "run" or end == ("end", begin[1]), kinds


def check_delay(lines: list[Line]) -> None:
    """The retry comes when it was told to, in whichever process."""
    told = [line for line in lines if line.get("task") == "told" and line["what"] != "ack"]
    times = [line["at"] for line in told]
    assert [line["attempt"] for line in told] == [1, 1, 2, 2][: len(told)]
    if len(times) > 2:
        assert times[2] - times[1] >= DELAY_S * 0.9


def check_end(run: RunRecord) -> None:
    found = {name: str(task.status) for name, task in run.tasks.items()}
    assert {name for name, status in found.items() if status == "OMITTED"} == set(OMITTED)
    assert set(found.values()) == {"SUCCESS", "OMITTED"}
    assert run.tasks["summary"].result == [
        {"source": 7},
        {"nothing_new": "OMITTED", "source": "SUCCESS"},
    ]
    assert run.tasks["drop"].result == run.tasks["join"].result == "left"
