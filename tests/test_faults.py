"""What the SQLite file survives: kills, neighbours, a full disk, a lost log, a wrong clock."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import RunQuery, SqliteStateStore

from .conftest import WAIT_S
from .fault_programs import SHAPES, is_released

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and limits by POSIX calls")

PROGRAMS = Path(__file__).with_name("fault_programs.py")
KILLS = int(os.environ.get("FLOWRUN_KILLS", "36"))
"""How many processes are killed in all; FLOWRUN_KILLS=300 looks harder."""
CASES = [(kind, level) for kind in SHAPES for level in ("FULL", "NORMAL")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start one of the programs."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def is_intact(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as database:
        return bool(database.execute("PRAGMA integrity_check").fetchone() == ("ok",))


# -- kill -9 ----------------------------------------------------------------------------------


def kill_after(process: subprocess.Popen[bytes], lines: int, delay_s: float) -> None:
    """Kill it a moment after a line of its output, unless it has ended before."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    deadline = time.monotonic() + WAIT_S
    seen = 0
    while seen < lines:
        assert select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]
        data = os.read(pipe, 1 << 16)
        if not data:
            return
        seen += data.count(b"\n")
    deadline = time.monotonic() + delay_s
    while (wait_s := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], wait_s)[0]:
        if not os.read(pipe, 1 << 16):
            return
    process.kill()


def check_notes(kind: str, lines: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Return what each task has made at last, if nothing was forgotten, repeated or altered."""
    acknowledged: set[tuple[str, str]] = set()
    given: dict[tuple[str, str], list[Any]] = defaultdict(list)
    made: dict[tuple[str, str], str] = {}
    for line in lines:
        if line["what"] == "up":
            continue
        key = (line["dag"], line["task"])
        if line["what"] == "ack":
            assert key in made
            acknowledged.add(key)
            continue
        assert key not in acknowledged or is_released(kind, key[1]), (key, lines)  # S1
        given[key].append(line["given"])
        made[key] = line["made"]
        # Its parents' successes are what let it start, whether their hooks came so far or not.
        acknowledged.update((key[0], parent) for parent in line["given"])
    for inputs in given.values():
        assert all(each == inputs[0] for each in inputs), inputs  # S4
    for (dag, name), inputs in given.items():
        assert inputs[0] == {parent: made[dag, parent] for parent in SHAPES[kind][dag][name]}
    assert set(made) == {(dag, name) for dag, shape in SHAPES[kind].items() for name in shape}
    return made


def check_file(path: Path, kind: str, made: dict[tuple[str, str], str]) -> None:
    """Look at what the file says when all is done."""
    assert is_intact(path)
    with closing(SqliteStateStore(path, recover=True)) as store:
        assert all(run.finished_at is not None for run in store.list_runs(RunQuery()))
        for dag in SHAPES[kind]:
            (last,) = store.list_runs(RunQuery(dag, limit=1))
            run = store.load_run(last.run_id, results=True)
            assert run.status == "SUCCESS"
            for name, task in run.tasks.items():
                if not is_released(kind, name):
                    assert task.result == made[dag, name]


@pytest.mark.parametrize(("kind", "level"), CASES)
def test_kill_at_any_point_loses_and_repeats_nothing_acknowledged(  # S1 S2 S4 D2 D3
    tmp_path: Path, kind: str, level: str
) -> None:
    dice = random.Random(f"{kind} {level}")
    place = CASES.index((kind, level))
    wanted = KILLS * (place + 1) // len(CASES) - KILLS * place // len(CASES)
    tasks = sum(map(len, SHAPES[kind].values()))
    killed = turn = 0
    while killed < wanted:
        turn += 1
        path, notes = tmp_path / f"{turn}.db", tmp_path / f"{turn}.notes"
        spared = killed + 4
        done = False
        while not done:
            recover = dice.choice(["recover", "resume"])
            lines = dice.randrange(1, 2 * tasks + 2) if killed < min(wanted, spared) else 0
            # From inside at the very line, or from outside a moment later.
            itself = lines if dice.random() < 0.5 else 0
            process = start("job", path, notes, kind, level, recover, itself)
            if lines and not itself:
                kill_after(process, lines, dice.choice([0.0, 0.002, 0.02]) * dice.random())
            _, errors = process.communicate(timeout=WAIT_S)
            done = process.returncode == 0
            if not done:
                assert process.returncode == -signal.SIGKILL, errors.decode()
                killed += 1
                if path.exists():
                    # A copy: the file itself is for the store to open first.
                    copy = tmp_path / "copy.db"
                    for tail in ("", "-wal"):
                        copy.with_name(copy.name + tail).unlink(missing_ok=True)
                        if path.with_name(path.name + tail).exists():
                            shutil.copy(f"{path}{tail}", f"{copy}{tail}")
                    assert is_intact(copy)
        text = notes.read_text().splitlines()
        check_file(path, kind, check_notes(kind, [json.loads(line) for line in text]))
