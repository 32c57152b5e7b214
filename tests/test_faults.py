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
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    JsonSerializer,
    RunQuery,
    RunRecord,
    SqliteStateStore,
    TaskRecord,
)
from flowrun.errors import StoreBusyError, StoreError
from flowrun.report import build_report

from .conftest import WAIT_S
from .fault_programs import SHAPES, check_report, is_released, result_like

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and limits by POSIX calls")

Start = Callable[..., "subprocess.Popen[bytes]"]

PROGRAM = Path(__file__).with_name("fault_programs.py")
KILLS = int(os.environ.get("FLOWRUN_KILLS", "32"))
"""How many processes are killed in all; FLOWRUN_KILLS=300 looks harder."""
CASES = [
    *((kind, level) for kind in SHAPES for level in ("FULL", "NORMAL")),
    *((kind, "DELETE") for kind in ("grid", "large")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start one of the programs; none of them outlives its test."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(*arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


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
                    assert task.result == result_like(kind, made[dag, name])


@pytest.mark.no_cover
@pytest.mark.parametrize(("kind", "level"), CASES)
def test_kill_at_any_point_loses_and_repeats_nothing_acknowledged(  # S1 S2 S4 D2 D3
    tmp_path: Path, start: Start, kind: str, level: str
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
            _, errors = process.communicate(timeout=3 * WAIT_S)
            done = process.returncode == 0
            if not done:
                assert process.returncode == -signal.SIGKILL, errors.decode()
                killed += 1
                if path.exists():
                    # A copy: the file itself is for the store to open first.
                    copy = tmp_path / "copy.db"
                    for tail in ("", "-wal", "-journal"):
                        copy.with_name(copy.name + tail).unlink(missing_ok=True)
                        if path.with_name(path.name + tail).exists():
                            shutil.copy(f"{path}{tail}", f"{copy}{tail}")
                    assert is_intact(copy)
        text = notes.read_text().splitlines()
        check_file(path, kind, check_notes(kind, [json.loads(line) for line in text]))


# -- neighbours -------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.parametrize(("writers", "reader"), [(2, "readonly"), (8, "own")])
def test_processes_share_a_file_while_others_read_it(
    path: Path, start: Start, writers: int, reader: str
) -> None:
    turns = 12 // writers + 2
    with closing(SqliteStateStore(path)) as store:
        looking = start("read", path, reader)
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"up\n"
        # One who reads the same view from beginning to end: nobody may have to wait for it.
        still = sqlite3.connect(path, isolation_level=None)
        still.execute("BEGIN")
        assert still.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        working = [start("write", path, f"w{number}", turns) for number in range(writers)]
        while any(process.poll() is None for process in working):
            # Nothing to delete, but it folds the log back as far as it can.
            assert store.prune_runs(keep_last=turns, created_before=None) == 0
        for process in working:
            _, errors = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, errors.decode()
        assert still.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        still.close()
        output, errors = looking.communicate(b"stop", timeout=WAIT_S)
        assert looking.returncode == 0, errors.decode()
        assert int(output) > 0
        runs = store.list_runs(RunQuery())
        assert len(runs) == writers * turns
        assert {run.status for run in runs} == {"SUCCESS"}
        for run in runs:
            check_report(build_report(store.load_run(run.run_id, results=True)))
    assert is_intact(path)


def test_processes_that_make_a_file_together_all_open_it(tmp_path: Path, start: Start) -> None:
    makers = [start("create", tmp_path, 20) for _ in range(6)]
    for process in makers:
        _, errors = process.communicate(timeout=3 * WAIT_S)
        assert process.returncode == 0, errors.decode()
    assert all(is_intact(tmp_path / f"{number}.db") for number in range(20))


def test_change_of_the_journal_waits_for_others_like_any_lock(path: Path) -> None:
    store = SqliteStateStore(path)
    with pytest.raises(StoreBusyError, match="for more than 0.02 s"):
        SqliteStateStore(path, journal_mode="DELETE", busy_timeout_s=0.02)
    opened: list[SqliteStateStore] = []
    waiting = threading.Thread(
        target=lambda: opened.append(
            SqliteStateStore(path, journal_mode="DELETE", busy_timeout_s=WAIT_S)
        )
    )
    waiting.start()
    store.close()
    waiting.join(WAIT_S)
    opened[0].close()
    assert not path.with_name("runs.db-wal").exists()


class Interrupting(JsonSerializer):
    """Does something while a run is being read."""

    then: Callable[[], object] | None = None

    def deserialize(self, data: bytes) -> object:
        if self.then is not None:
            then, self.then = self.then, None
            then()
        return super().deserialize(data)


def test_run_that_ends_while_it_is_read_is_not_taken_for_a_dead_one(path: Path) -> None:  # D3
    serializer = Interrupting()
    run = RunRecord("r1", "d", 1.0, {"a": TaskRecord("a")})
    with closing(SqliteStateStore(path, serializer)) as reader:
        writer = SqliteStateStore(path)
        writer.create_run(run)
        task = run.tasks["a"].start(2.0, 2.0).succeed(3.0, "made")
        writer.save([Change(run, task)])

        def end() -> None:
            writer.save([Change(run.finish(4.0, None, {"a": task}), None)])
            writer.close()

        serializer.then = end
        found = reader.load_run("r1", results=True)
        # As it was when the reading began, or as it is now: never as one that nobody works on.
        assert (found.finished_at, found.alive) in [(None, True), (4.0, False)]


# -- a full disk ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "sizes"), [("pages", (11, 30, 1)), ("bytes", (2_000, 210_000, 10_000))]
)
def test_disk_that_is_full_at_any_point_loses_nothing_acknowledged(  # D4 R4 S1
    tmp_path: Path, start: Start, how: str, sizes: tuple[int, int, int]
) -> None:
    process = start("starve", tmp_path, how, *sizes)
    output, errors = process.communicate(timeout=3 * WAIT_S)
    assert process.returncode == 0, errors.decode()
    stories = [json.loads(line) for line in output.splitlines()]
    assert len(stories) == len(range(*sizes)) + 1
    said = {error for _, errors, _ in stories for error in errors} - {None}
    assert said == {"StoreFullError" if how == "pages" else "StoreError"}
    # From a disk on which nothing can be made to one on which everything fits.
    assert stories[0][1][0] is not None
    assert set(stories[-1][1]) == {None}
    assert len({done for _, _, done in stories}) >= 4


# -- a lost log -------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [3, 9, 15])
def test_log_lost_after_a_kill_leaves_an_older_state(  # D7
    path: Path, tmp_path: Path, start: Start, lines: int
) -> None:
    log = path.with_name("runs.db-wal")
    assert start("write", path, "w0", 2).wait(WAIT_S) == 0
    assert not log.exists()  # nothing can be lost of a file that was closed
    notes = tmp_path / "notes"
    assert start("job", path, notes, "grid", "FULL", "resume", lines).wait(WAIT_S) != 0
    log.unlink()
    with closing(SqliteStateStore(path, recover=True)) as store:
        older = store.list_runs(RunQuery())
        for run in older:
            check_report(build_report(store.load_run(run.run_id, results=True)))
        assert [run.status for run in older] == ["SUCCESS"] * 2
    assert start("job", path, notes, "grid", "FULL", "resume", 0).wait(WAIT_S) == 0
    made: dict[tuple[str, str], str] = {}
    for line in map(json.loads, notes.read_text().splitlines()):
        if line["what"] == "run":
            made[line["dag"], line["task"]] = line["made"]
    check_file(path, "grid", made)


def test_log_lost_while_it_was_copied_back_never_gives_wrong_data(path: Path) -> None:  # D7
    # Each state that a run has ever had: one of these, or an error, is what may be read.
    history: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def save(store: SqliteStateStore, run: RunRecord, task: TaskRecord | None) -> RunRecord:
        if task is not None:
            run = run._replace(tasks={**run.tasks, task.name: task})
        store.save([Change(run, task)])
        history[run.run_id].append(dict(build_report(run), alive=False))
        return run

    def succeed(store: SqliteStateStore, run: RunRecord, name: str) -> RunRecord:
        started = run.tasks[name].start(2.0, 2.0)
        run = save(store, run, started)
        return save(store, run, started.succeed(3.0, f"{run.run_id} {name} " * 300))

    def make_run(run_id: str) -> RunRecord:
        run = RunRecord(run_id, "d", 1.0, {name: TaskRecord(name) for name in "ab"})
        history[run_id].append(dict(build_report(run), alive=False))
        return run

    with closing(SqliteStateStore(path)) as store, closing(sqlite3.connect(path)) as database:
        filler = make_run("filler")
        store.create_run(filler)
        task = filler.tasks["a"].start(2.0, 2.0).succeed(3.0, "x" * 400_000)
        store.save([Change(filler, task)])
        # The pages that it leaves free are used later: the file stays as long as it is.
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("DELETE FROM runs")
        database.commit()
        runs = [make_run(f"r{number}") for number in range(9)]
        for run in runs:
            store.create_run(run)
        runs = [succeed(store, run, "a") for run in runs]
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        before = path.read_bytes()
        for run in runs:
            save(store, succeed(store, run, "b").finish(4.0), None)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        after = path.read_bytes()
    assert len(before) == len(after)
    outcomes: set[str] = set()
    torn = path.with_name("torn.db")
    for place in range(0, len(after) + 1, 4096):
        torn.write_bytes(after[:place] + before[place:])
        with closing(SqliteStateStore(torn)) as store:
            for run in runs:
                try:
                    found = store.load_run(run.run_id, results=True)
                except StoreError as error:
                    outcomes.add(type(error).__name__)
                    continue
                assert dict(build_report(found), alive=False) in history[run.run_id]
                outcomes.add("older" if found.finished_at is None else "newer")
    assert {"older", "newer", "DamagedRecordError"} <= outcomes
