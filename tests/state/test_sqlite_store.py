"""The SQLite store's own business: the file, its owners, what it survives (D1-D8)."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import (
    Change,
    Engine,
    JsonSerializer,
    PickleSerializer,
    ResultSerializer,
    RunQuery,
    SqliteStateStore,
)
from flowrun.errors import (
    DamagedRecordError,
    ForkedStoreError,
    ResultNotReadableError,
    ResultNotStorableError,
    RunAliveError,
    RunLostError,
    StoreBusyError,
    StoreError,
    StoreFileError,
    StoreFullError,
    UnknownRunError,
)
from flowrun.state.records import EncodedResult, NoResult, Reason

from ..conftest import WAIT_S, statuses
from .runs import failed, finish, make_run, running, save, succeeded

MakeEngine = Callable[..., Engine]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., SqliteStateStore]]:
    stores: list[SqliteStateStore] = []

    def make(where: Path = path, **options: Any) -> SqliteStateStore:
        stores.append(SqliteStateStore(where, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def child(code: str, *arguments: object, hold: bool = False) -> subprocess.Popen[str]:
    """Start Python with a piece of code; it says "ready" and may wait to be killed."""
    tail = "\nprint('ready', flush=True)\nsys.stdin.read()" if hold else ""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code) + tail, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if hold:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", process.communicate()[1]
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=WAIT_S)


# -- the file ---------------------------------------------------------------------------------


def test_file_is_readable_by_its_owner_only(path: Path, open_store: Any) -> None:  # D6
    previous = os.umask(0)
    try:
        store = open_store()
        store.create_run(make_run())
        files = sorted(path.parent.iterdir())
        assert {file.name for file in files} == {
            "runs.db",
            "runs.db-owners",
            "runs.db-shm",
            "runs.db-wal",
        }
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    finally:
        os.umask(previous)


def test_settings_reach_sqlite(path: Path, open_store: Any) -> None:
    store = open_store(synchronous="NORMAL")
    store.create_run(make_run())
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA user_version").fetchone() == (7,)
    database.close()
    store.close()
    rollback = open_store(journal_mode="DELETE")
    rollback.create_run(make_run("r2"))
    assert rollback.load_run("r2", results=True).run_id == "r2"
    assert not path.with_name("runs.db-wal").exists()


@pytest.mark.parametrize(
    ("synchronous", "journal_mode", "expected"),
    [
        ("FULL", "WAL", 2),
        ("NORMAL", "WAL", 1),
        ("FULL", "DELETE", 3),  # EXTRA: a rollback journal's deletion must survive, too
        ("NORMAL", "DELETE", 1),
    ],
)
def test_writer_waits_for_the_disk_as_was_asked_for(  # D2
    open_store: Any,
    monkeypatch: pytest.MonkeyPatch,
    synchronous: str,
    journal_mode: str,
    expected: int,
) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_keep(*arguments: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_keep)
    open_store(synchronous=synchronous, journal_mode=journal_mode)
    writer = made[-1]
    assert writer.execute("PRAGMA synchronous").fetchone() == (expected,)
    assert writer.execute("PRAGMA fullfsync").fetchone() == (synchronous == "FULL",)
    assert writer.execute("PRAGMA journal_mode").fetchone() == (journal_mode.lower(),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synchronous": "OFF"}, "synchronous must be one of FULL, NORMAL"),
        ({"journal_mode": "MEMORY"}, "journal_mode must be one of"),
        ({"busy_timeout_s": -1.0}, "busy_timeout_s must be"),
        ({"busy_timeout_s": float("inf")}, "busy_timeout_s must be"),
        ({"cache_ttl_s": -1.0}, "cache_ttl_s must be"),
    ],
)
def test_wrong_settings_are_refused(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SqliteStateStore(path, **options)
    assert not path.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "give the path of a file"),
        ("a\0b", "give the path of a file"),
        ("file:x?mode=memory", "use InMemoryStateStore"),
        (".", "it is a directory"),
        ("nowhere/runs.db", "does not exist; make it first"),
    ],
)
def test_path_that_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreFileError, match=message):
        SqliteStateStore(wrong)
    assert list(tmp_path.iterdir()) == []


def test_sidecar_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    for sidecar in ("-wal", "-shm", "-journal", "-owners"):
        link = path.with_name(path.name + sidecar)
        link.symlink_to(target)
        with pytest.raises(StoreFileError, match="is a link; remove it"):
            SqliteStateStore(path)
        link.unlink()
    assert target.read_text() == "precious"


def made_by_sqlite(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["CREATE TABLE mine (x)"], "of some other program"),
        (["PRAGMA application_id = 77"], "of some other program"),
        (["PRAGMA application_id = 1718382455", "PRAGMA user_version = 99"], "newer flowrun"),
    ],
)
def test_foreign_or_newer_file_is_refused_and_left_alone(  # D4
    path: Path, statements: list[str], message: str
) -> None:
    made_by_sqlite(path, *statements)
    before = path.read_bytes()
    for open_it in (SqliteStateStore, SqliteStateStore.open_readonly):
        with pytest.raises(StoreFileError, match=message):
            open_it(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"]


def test_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:  # D4
    path.write_text("this is no database, but quite a long text that nobody should lose" * 30)
    before = path.read_bytes()
    with pytest.raises(StoreFileError, match="damaged, or no SQLite database"):
        SqliteStateStore(path)
    assert path.read_bytes() == before


def test_strange_triggers_and_views_are_refused(path: Path, open_store: Any) -> None:
    open_store().close()
    made_by_sqlite(path, "CREATE VIEW mine AS SELECT 1")
    with pytest.raises(StoreFileError, match="triggers or views"):
        SqliteStateStore(path)


def test_truncated_file_is_an_error_and_never_wrong_data(path: Path, open_store: Any) -> None:  # D7
    store = open_store()
    for number in range(50):
        store.create_run(make_run(f"r{number}", metadata={"text": "x" * 500}))
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError), closing(SqliteStateStore(path)) as reopened:
        for summary in reopened.list_runs(RunQuery()):
            assert summary.metadata == {"text": "x" * 500}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="drops root's rights in a child")
def test_read_only_file_and_folder_are_clear_errors(path: Path, open_store: Any) -> None:  # D4
    open_store().close()
    os.chmod(path.parent.parent, 0o755)
    code = """
        import os, urllib.parse  # the standard library may lie where only root can read
        from flowrun import SqliteStateStore
        from flowrun.errors import StoreFileError
        os.setuid(65534)
        try:
            SqliteStateStore(sys.argv[1])
        except StoreFileError as error:
            print(error)
    """
    folder = Path("/tmp") / f"flowrun-test-{os.getpid()}-{random.random()}"
    folder.mkdir(mode=0o755)
    try:
        copy = folder / "runs.db"
        shutil.copy(path, copy)
        copy.chmod(0o444)
        out, err = child(code, copy).communicate(timeout=WAIT_S)
        assert "cannot be used as a state store" in out, err
        out, err = child(code, folder / "new.db").communicate(timeout=WAIT_S)
        assert "Permission denied" in out, err
        assert not (folder / "new.db").exists()
    finally:
        shutil.rmtree(folder)


def test_file_that_cannot_be_made_or_opened(tmp_path: Path) -> None:  # D4
    with pytest.raises(StoreFileError, match="File name too long"):
        SqliteStateStore(tmp_path / ("x" * 300))
    if Path("/proc/self").exists():
        with pytest.raises(StoreFileError, match="cannot be used as a state store"):
            SqliteStateStore("/proc/flowrun.db")  # where not even root can make a file
    dangling = tmp_path / "link.db"
    dangling.symlink_to(tmp_path / "nowhere" / "file.db")
    with pytest.raises(StoreFileError, match="cannot be written to"):
        SqliteStateStore(dangling)
    (tmp_path / "runs.db-owners").mkdir()
    with pytest.raises(StoreFileError, match="the lock file .* cannot be used"):
        SqliteStateStore(tmp_path / "runs.db")


def test_store_that_is_closed_while_it_is_read(open_store: Any) -> None:
    class Closing(JsonSerializer):
        def deserialize(self, data: bytes) -> object:
            store.close()
            return super().deserialize(data)

    store = open_store(serializer=Closing())
    run = make_run()
    store.create_run(run)
    save(store, run, succeeded(run.tasks["a"], [1]))
    assert store.load_results("r1", ["a"]) == {"a": [1]}
    with pytest.raises(StoreFileError, match="is closed"):
        store.load_results("r1", ["a"])


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files by a POSIX call")
def test_full_disk_is_said_to_be_one(open_store: Any) -> None:  # D4
    import resource

    store = open_store()
    store.create_run(make_run())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_001, before[1]))
    try:
        with pytest.raises(StoreError, match="no space left|disk I/O error"):
            for number in range(1000):
                store.create_run(make_run(f"x{number}", metadata={"text": "x" * 3000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    store.create_run(make_run("after"))
    assert store.load_run("after", results=False).run_id == "after"


def test_number_of_runs_that_is_used_up_is_a_full_store(path: Path, open_store: Any) -> None:
    store = open_store()
    store.create_run(make_run())
    made_by_sqlite(path, "UPDATE sqlite_sequence SET seq = 9223372036854775807")
    with pytest.raises(StoreFullError, match="no space left to write to"):
        store.create_run(make_run("r2"))
    assert [run.run_id for run in store.list_runs()] == ["r1"]


def test_closed_store_says_so(open_store: Any) -> None:
    store = open_store()
    store.close()
    for use in (lambda: store.load_run("x", results=True), lambda: store.create_run(make_run())):
        with pytest.raises(StoreFileError, match="is closed; open a new one"):
            use()


# -- results ----------------------------------------------------------------------------------


def test_serializer_that_wrote_a_result_is_remembered(open_store: Any) -> None:
    store = open_store(serializer=PickleSerializer())
    run = make_run()
    store.create_run(run)
    save(store, run, succeeded(run.tasks["a"], {1, 2}))
    assert store.load_results("r1", ["a"]) == {"a": {1, 2}}
    name, size, head = store.stored_result("r1", "a", 5)
    assert store.stored_results("r1", 5) == {"a": (name, size, head)}
    assert (name, len(head)) == ("pickle", 5)
    assert size > 5
    with pytest.raises(UnknownRunError):
        store.stored_result("r1", "b")
    reader = open_store(serializer=JsonSerializer())
    with pytest.raises(ResultNotReadableError, match="written by the 'pickle' serializer"):
        reader.load_run("r1", results=True)
    assert reader.load_run("r1", results=False).tasks["a"].result is NoResult.STORED


@pytest.mark.parametrize("value", [7, "x" * 1000])
def test_encoded_result_is_kept_as_it_is(open_store: Any, value: object) -> None:
    store = open_store()
    run = make_run()
    store.create_run(run)
    encoded = store.encode_result(value, run_id="r1", task_name="a")
    assert isinstance(encoded, EncodedResult)
    save(store, run, succeeded(run.tasks["a"], encoded), succeeded(run.tasks["b"], value))
    loaded = store.load_run("r1", results=True).tasks
    assert [task.result for task in loaded.values()] == [value, value]
    assert store.stored_result("r1", "a", 5000) == ("json", len(encoded.data), encoded.data)
    assert store.stored_result("r1", "b", 5000) == store.stored_result("r1", "a", 5000)


def test_result_that_cannot_be_kept_is_refused_before_anything_is_written(  # D1
    open_store: Any,
) -> None:
    store = open_store()
    run = make_run()
    store.create_run(run)
    bad = {"rows": [1, {"lock": threading.Lock()}]}
    for refuse in (
        lambda: store.encode_result(bad, run_id="r1", task_name="b"),
        lambda: save(store, run, succeeded(run.tasks["a"], 1), succeeded(run.tasks["b"], bad)),
    ):
        with pytest.raises(ResultNotStorableError, match="task 'b' in run 'r1'") as caught:
            refuse()
        assert (caught.value.run_id, caught.value.task_name) == ("r1", "b")
        assert "lock" in str(caught.value)
    assert store.load_run("r1", results=True) == run


async def test_result_that_cannot_be_kept_names_the_place(  # D1
    make_engine: MakeEngine, open_store: Any
) -> None:
    engine = make_engine(state_store=open_store())
    engine.task(name="bad", dag="d", retries=2)(lambda: {"rows": [1, {"lock": threading.Lock()}]})
    engine.task(name="good", dag="d")(lambda: (1, {"a", "b"}))
    run_id = await engine.run_once("d")
    tasks = engine.get_run_report(run_id)["tasks"]
    assert tasks["bad"]["attempt"] == 1
    assert "result['rows'][1].lock" in (tasks["bad"]["error"] or "") or "lock" in (
        tasks["bad"]["error"] or ""
    )
    assert "'json' serializer" in (tasks["bad"]["error"] or "")
    assert tasks["good"]["result"] == (1, {"a", "b"})


async def test_unretained_result_needs_no_serializer_and_is_made_again(  # S2
    make_engine: MakeEngine, open_store: Any
) -> None:
    engine = make_engine(state_store=open_store())
    fail = [True]
    ran: list[str] = []

    @engine.task(dag="d", retain_result=False)
    def frame() -> object:
        ran.append("frame")
        return threading.Event()

    @engine.task(dag="d")
    def use(frame: object) -> bool:
        ran.append("use")
        if fail:
            fail.clear()
            raise ValueError
        return isinstance(frame, threading.Event)

    old = await engine.run_once("d")
    assert engine.get_run_report(old)["tasks"]["frame"]["result_state"] == "released"
    new = await engine.resume(old)
    assert ran == ["frame", "use", "frame", "use"]
    assert engine.get_run_report(new)["tasks"]["use"]["result"] is True


def test_released_result_is_deleted(open_store: Any) -> None:
    store = open_store()
    run = make_run()
    store.create_run(run)
    run = save(store, run, succeeded(run.tasks["a"], [1]))
    save(store, run, run.tasks["a"].release())
    with pytest.raises(UnknownRunError):
        store.stored_result("r1", "a")


def test_cache_is_for_finished_runs_and_for_a_while(open_store: Any, path: Path) -> None:
    store = open_store(cache_ttl_s=60.0)
    brief = open_store(cache_ttl_s=0.0)
    run = make_run()
    store.create_run(run)
    assert store.load_run("r1", results=True).finished_at is None
    finish(store, run, [1])
    for _ in range(2):
        first = store.load_run("r1", results=True)
        brief.load_run("r1", results=True)
    made_by_sqlite(path, "DELETE FROM runs")
    changed: Any = first.tasks["a"].result
    changed.append("changed by a reader")
    again = store.load_run("r1", results=True)
    assert (again.finished_at, again.tasks["a"].result) == (9.0, [1])
    with pytest.raises(UnknownRunError):
        brief.load_run("r1", results=True)
    for number in range(70):
        other = make_run(f"x{number}")
        store.create_run(other)
        finish(store, other)
        store.load_run(f"x{number}", results=True)
    with pytest.raises(UnknownRunError):
        store.load_run("r1", results=True)


# -- ownership --------------------------------------------------------------------------------

HOLD = """
    from flowrun import RunRecord, SqliteStateStore, TaskRecord, Change
    store = SqliteStateStore(sys.argv[1])
    run = RunRecord("r1", "d", 1.0, {n: TaskRecord(n) for n in ("a", "b", "c")})
    store.create_run(run)
    done = run.tasks["a"].start(2.0, 2.0).succeed(3.0, [1, 2])
    begun = run.tasks["b"].start(3.0, 3.0)
    store.save([Change(run, done), Change(run, begun)])
"""


def test_run_of_a_living_process_is_never_touched_a_dead_ones_is_ended_at_once(  # D3
    path: Path, open_store: Any
) -> None:
    holder = child(HOLD, path, hold=True)
    store = open_store(recover=True)
    assert store.load_run("r1", results=False).alive
    with pytest.raises(RunAliveError):
        store.create_run(make_run("r2", resumed_from="r1"))
    kill(holder)
    left = store.load_run("r1", results=False)
    assert (left.alive, left.finished_at) == (False, None)
    assert [run.alive for run in store.list_runs(RunQuery())] == [False]
    recovered = open_store(recover=True).load_run("r1", results=True)
    assert [(task.status, task.reason) for task in recovered.tasks.values()] == [
        ("SUCCESS", None),
        ("FAILED", Reason.OWNER_DIED),
        ("SKIPPED", Reason.OWNER_DIED),
    ]
    assert recovered.finished_at is not None
    assert "OWNER_DIED" in (recovered.error or "")
    assert recovered.tasks["a"].result == [1, 2]


def test_dead_run_is_ended_by_whoever_resumes_it(path: Path, open_store: Any) -> None:  # S5
    kill(child(HOLD, path, hold=True))
    store = open_store()
    store.create_run(make_run("r2", resumed_from="r1", sole_heir=True))
    assert store.load_run("r1", results=False).finished_at is not None
    with pytest.raises(RunAliveError):
        store.create_run(make_run("r3", resumed_from="r1"))


def test_store_that_was_closed_with_unfinished_runs_owns_them_no_more(open_store: Any) -> None:
    first, second = open_store(), open_store()
    first.create_run(make_run())
    assert second.load_run("r1", results=False).alive
    first.close()
    assert not second.load_run("r1", results=False).alive


def test_write_of_a_lost_run_is_refused(path: Path, open_store: Any) -> None:  # D3
    store = open_store()
    run = make_run()
    with pytest.raises(RunLostError):
        store.save([Change(run, None)])
    store.create_run(run)
    made_by_sqlite(path, "UPDATE runs SET owner = 5")
    for _ in range(2):
        with pytest.raises(RunLostError):
            save(store, run, running(run.tasks["a"]))


def test_of_eight_processes_that_resume_one_dead_run_exactly_one_wins(  # S5
    path: Path,
) -> None:
    kill(child(HOLD, path, hold=True))
    code = """
        import asyncio
        from flowrun import SqliteStateStore, build_default_engine
        from flowrun.errors import ResumeError
        store = SqliteStateStore(sys.argv[1])
        engine = build_default_engine(state_store=store)
        for name in "abc":
            engine.task(name=name, dag="d")(lambda: print("ran", flush=True))
        sys.stdin.readline()
        try:
            asyncio.run(engine.resume("r1"))
            print("won")
        except ResumeError as error:
            print("refused")
        engine.close()
        store.close()
    """
    racers = [child(code, path) for _ in range(8)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60) for racer in racers]
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert lines.count("won") == 1, outputs
    assert lines.count("refused") == 7, outputs
    assert "".join(lines).count("ran") == 2  # b and c, once


def use_in_child(store: SqliteStateStore, answers: Any) -> None:
    for use in (lambda: store.list_runs(RunQuery()), lambda: store.create_run(make_run("r2"))):
        try:
            use()
        except ForkedStoreError as error:
            answers.send(str(error))
    store.close()
    answers.send("closed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_is_refused(open_store: Any) -> None:
    store = open_store()
    store.create_run(make_run())
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=use_in_child, args=(store, sender))
    process.start()
    for _ in range(2):
        assert receiver.poll(WAIT_S)
        assert "cannot be used in a forked child" in receiver.recv()
    assert receiver.poll(WAIT_S)
    assert receiver.recv() == "closed"
    process.join(WAIT_S)
    assert store.load_run("r1", results=False).alive  # the child's end took no lock along


# -- locks, readers, faults -------------------------------------------------------------------


def test_lock_of_somebody_else_is_waited_for_a_bounded_time(path: Path, open_store: Any) -> None:
    store = open_store(busy_timeout_s=0.05)
    patient = open_store(busy_timeout_s=WAIT_S)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusyError, match="locked by another connection for more than 0.05 s"):
        store.create_run(make_run())
    waiting = threading.Thread(target=patient.create_run, args=(make_run("r2"),))
    waiting.start()
    assert store.list_runs(RunQuery()) == []  # reading never waits for a writer
    other.execute("COMMIT")
    waiting.join(WAIT_S)
    assert [run.run_id for run in store.list_runs(RunQuery())] == ["r2"]
    other.close()


@pytest.mark.parametrize(("first", "second"), [("WAL", "DELETE"), ("DELETE", "WAL")])
def test_change_of_the_journal_mode_waits_as_for_any_lock(
    path: Path, open_store: Any, first: str, second: str
) -> None:
    open_store(journal_mode=first).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM runs").fetchall()
        with pytest.raises(
            StoreBusyError, match="locked by another connection for more than 0.02 s"
        ):
            open_store(journal_mode=second, busy_timeout_s=0.02)
    open_store(journal_mode=second).create_run(make_run())


def test_pruning_waits_for_no_reader_and_gives_the_space_back_later(
    path: Path, open_store: Any
) -> None:
    store = open_store(busy_timeout_s=10 * WAIT_S)
    run = make_run()
    store.create_run(run)
    finish(store, run, "x" * 150_000)
    made_by_sqlite(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        pruning = threading.Thread(
            target=store.prune_runs, kwargs={"keep_last": 0, "created_before": None}
        )
        pruning.start()
        pruning.join(WAIT_S)
        assert not pruning.is_alive()
        store.create_run(make_run("r2"))  # nor does anybody who writes wait
        assert path.stat().st_size > 300_000
    assert store.prune_runs(keep_last=0, created_before=None) == 0
    assert path.stat().st_size < 150_000
    assert path.with_name("runs.db-wal").stat().st_size == 0


def test_reader_sees_a_live_file_and_changes_nothing(path: Path, open_store: Any) -> None:
    with pytest.raises(StoreFileError, match="there is no such file"):
        SqliteStateStore.open_readonly(path)
    path.touch()
    with pytest.raises(StoreFileError, match="holds no runs yet"):
        SqliteStateStore.open_readonly(path)
    store = open_store()
    store.create_run(make_run())
    reader = SqliteStateStore.open_readonly(path)
    assert [run.run_id for run in reader.list_runs(RunQuery())] == ["r1"]
    assert reader.load_run("r1", results=False).alive
    with pytest.raises(StoreFileError, match="opened to read only"):
        reader.create_run(make_run("r2"))
    reader.close()
    reader.close()


def test_flipped_bytes_are_noticed_and_never_give_wrong_data(
    path: Path, open_store: Any
) -> None:  # D7
    store = open_store()
    for number in range(20):
        run = make_run(f"r{number}", metadata={"n": number})
        store.create_run(run)
        done = [
            succeeded(failed(task).retry(), f"result {task.name} {number}")
            for task in run.tasks.values()
        ]
        finish(store, save(store, run, *done))
    store.close()
    good = path.read_bytes()
    damaged = path.with_name("damaged.db")
    dice = random.Random(7)
    noticed = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(3):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        damaged.write_bytes(bytes(data))
        try:
            copy = SqliteStateStore(damaged)
        except StoreError:
            noticed += 1
            continue
        try:
            for number in range(20):
                try:
                    run = copy.load_run(f"r{number}", results=True)
                except (StoreError, UnknownRunError, ResultNotReadableError):
                    noticed += 1
                    continue
                assert run.metadata == {"n": number}
                for name, task in run.tasks.items():
                    assert task.result == f"result {name} {number}"
                    assert [attempt.error for attempt in task.attempts] == ["boom", None]
        finally:
            copy.close()
    assert noticed > 100


def test_damaged_row_names_run_and_task_and_the_others_stay_readable(  # D7
    path: Path, open_store: Any
) -> None:
    store = open_store()
    for name in ("r1", "r2", "r3"):
        run = make_run(name)
        store.create_run(run)
        save(store, run, succeeded(run.tasks["a"], [1]), running(run.tasks["b"]))
    made_by_sqlite(
        path,
        "UPDATE tasks SET attempt = 9 WHERE run = 1 AND place = 1",
        "UPDATE tasks SET data = x'5b325d' WHERE run = 2 AND place = 0",
    )
    with pytest.raises(DamagedRecordError, match="run 'r1', task 'b'") as caught:
        store.load_run("r1", results=False)
    assert (caught.value.run_id, caught.value.task_name) == ("r1", "b")
    with pytest.raises(DamagedRecordError, match="run 'r2', task 'a'"):
        store.load_run("r2", results=True)
    assert store.load_run("r2", results=False).tasks["a"].result is NoResult.STORED
    assert store.load_run("r3", results=True).tasks["a"].result == [1]
    made_by_sqlite(path, "UPDATE tasks SET place = 3 WHERE run = 2 AND place = 1")
    with pytest.raises(DamagedRecordError, match="run 'r2', task 'b'"):
        store.load_run("r2", results=False)
    made_by_sqlite(path, "UPDATE tasks SET data = NULL WHERE run = 3")
    with pytest.raises(DamagedRecordError, match="task 'a': its result is missing"):
        store.load_run("r3", results=True)
    made_by_sqlite(path, "UPDATE runs SET dag_name = 'other' WHERE seq = 3")
    with pytest.raises(DamagedRecordError, match="run 'r3'"):
        store.list_runs(RunQuery())


FULL_DISK = """
    import asyncio, resource, signal
    from flowrun import SqliteStateStore, build_default_engine
    from flowrun.errors import StoreError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = SqliteStateStore(sys.argv[1])
    engine = build_default_engine(state_store=store, max_parallel=1)
    for number in range(30):
        deps = [f"t{number - 1}"] if number else []
        engine.task(name=f"t{number}", dag="d", deps=deps)(lambda: "x" * 20_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    async def main():
        try:
            await asyncio.wait_for(engine.run_once("d"), 30)
            print("no error")
        except StoreError as error:
            print(type(error).__name__)
        done = sum(t["status"] == "SUCCESS" for run in engine.list_runs()
                   for t in engine.get_run_report(run.run_id, results=False)["tasks"].values())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        for run in engine.list_runs():
            print(run.finished_at is not None)
    asyncio.run(main())
    engine.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files by a POSIX call")
@pytest.mark.parametrize("limit", [120_000, 200_000, 400_000])
def test_full_disk_ends_the_run_and_keeps_what_was_acknowledged(  # D4
    path: Path, open_store: Any, limit: int
) -> None:
    out, err = child(FULL_DISK, path, limit).communicate(timeout=60)
    lines = out.splitlines()
    assert lines[0] in ("StoreFullError", "StoreError"), (out, err)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    store = open_store(recover=True)
    for summary in store.list_runs(RunQuery()):
        run = store.load_run(summary.run_id, results=True)
        assert run.finished_at is not None
        for task in run.tasks.values():
            assert task.status != "SUCCESS" or task.result == "x" * 20_000


async def test_resume_by_another_engine_on_the_same_file(  # S1 S4
    make_engine: MakeEngine, open_store: Any
) -> None:
    fail = [True]

    def declare(engine: Engine) -> list[str]:
        ran: list[str] = []

        @engine.task(dag="d")
        def rows() -> tuple[int, ...]:
            ran.append("rows")
            return (1, 2)

        @engine.task(dag="d")
        def load(rows: tuple[int, ...]) -> int:
            ran.append("load")
            if fail:
                fail.clear()
                raise ValueError
            assert isinstance(rows, tuple)
            return sum(rows)

        return ran

    first = make_engine(state_store=open_store())
    declare(first)
    old = await first.run_once("d", metadata={"night": 1})
    second = make_engine(state_store=open_store())
    ran = declare(second)
    new = await second.resume(old)
    report = second.get_run_report(new)
    assert ran == ["load"]
    assert statuses(report) == {"rows": "SUCCESS", "load": "SUCCESS"}
    assert report["tasks"]["rows"]["result"] == (1, 2)
    assert (report["resumed_from"], report["metadata"]) == (old, {"night": 1})


async def test_large_results_do_not_block_the_loop(
    make_engine: MakeEngine, open_store: Any
) -> None:
    engine = make_engine(state_store=open_store())
    engine.task(name="big", dag="d")(lambda: ["x" * 1000] * 20_000)
    engine.task(name="size", dag="d")(lambda big: len(big))
    run_id = await asyncio.wait_for(engine.run_once("d"), 60)
    assert engine.get_run_report(run_id)["tasks"]["size"]["result"] == 20_000


class Reversed(ResultSerializer):
    """One that says nothing of its name."""

    def serialize(self, obj: object) -> bytes:
        return repr(obj).encode()[::-1]

    def deserialize(self, data: bytes) -> object:
        return int(data[::-1])


class Straight(ResultSerializer):
    """Another one."""

    def serialize(self, obj: object) -> bytes:
        return repr(obj).encode()

    def deserialize(self, data: bytes) -> object:
        return int(data)


def test_serializers_without_a_name_are_told_apart_by_their_class(tmp_path: Path) -> None:  # D1
    path = tmp_path / "runs.db"
    with closing(SqliteStateStore(path, Straight())) as store:
        run = make_run()
        store.create_run(run)
        save(store, run, succeeded(run.tasks["a"], 12))
        assert store.load_results("r1", ["a"]) == {"a": 12}
    problem = r"written by the '.*\.Straight' ser"
    with (
        closing(SqliteStateStore(path, Reversed())) as store,
        pytest.raises(ResultNotReadableError, match=problem),
    ):
        store.load_run("r1", results=True)


@pytest.mark.parametrize("wrong", ["json", JsonSerializer, object()])
def test_what_is_no_serializer_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a ResultSerializer, such as JsonSerializer\(\)"):
        SqliteStateStore(tmp_path / "runs.db", wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, "", 3])
def test_serializer_without_a_text_as_its_name_is_refused(tmp_path: Path, name: Any) -> None:
    serializer: Any = types.SimpleNamespace(serialize=repr, deserialize=eval, name=name)
    with pytest.raises(TypeError, match="the name of types.SimpleNamespace is "):
        SqliteStateStore(tmp_path / "runs.db", serializer)
    assert not list(tmp_path.iterdir())


def test_half_a_serializer_is_refused_before_there_is_a_file(tmp_path: Path) -> None:
    class Half(ResultSerializer):
        def serialize(self, obj: object) -> bytes:
            return b""

    with pytest.raises(TypeError, match=r"Half lacks the method deserialize\(\)"):
        SqliteStateStore(tmp_path / "runs.db", Half())
    assert not list(tmp_path.iterdir())
