"""Whose run it is: one lock file however the file is called, none of a parent's in a child (D3)."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import RunQuery, RunRecord, SqliteStateStore, TaskRecord
from flowrun.errors import ForkedStoreError, RunAliveError, StoreFileError
from flowrun.state import ownership, sqlite_file
from flowrun.state.ownership import Ownership

from ..conftest import WAIT_S, open_files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., SqliteStateStore]]:
    stores: list[SqliteStateStore] = []

    def make(where: str | os.PathLike[str] = path, **options: Any) -> SqliteStateStore:
        stores.append(SqliteStateStore(where, **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def make_run(run_id: str = "r1", **more: Any) -> RunRecord:
    return RunRecord(run_id, "d", 1.0, {"a": TaskRecord("a")}, **more)


OWNER = """
import sys
from flowrun import RunRecord, SqliteStateStore, TaskRecord
store = SqliteStateStore(sys.argv[1])
store.create_run(RunRecord("r1", "d", 1.0, {"a": TaskRecord("a")}))
print("ready", flush=True)
sys.stdin.read()
"""


def start_owner(where: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(where)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("owner_has_link", [True, False])
def test_run_is_alive_by_whatever_name_the_file_is_opened(  # D3
    tmp_path: Path, open_store: Any, owner_has_link: bool
) -> None:
    real = tmp_path / "data" / "runs.db"
    real.parent.mkdir()
    open_store(real).close()
    link = tmp_path / "current.db"
    link.symlink_to(real)
    owner = start_owner(link if owner_has_link else real)
    store = open_store(real if owner_has_link else link, recover=True)
    assert store.load_run("r1", results=False).alive
    with pytest.raises(RunAliveError):
        store.create_run(make_run("r2", resumed_from="r1"))
    owner.kill()
    owner.communicate()
    assert not store.load_run("r1", results=False).alive
    assert not list(tmp_path.glob("current.db-*"))


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_sidecar_of_the_real_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "data" / "runs.db"
    real.parent.mkdir()
    link = tmp_path / "current.db"
    link.symlink_to(real)
    SqliteStateStore(real).close()
    real.with_name("runs.db-wal").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreFileError, match="'runs.db-wal' beside it is a link"):
        SqliteStateStore(link)


def test_relative_path_means_the_same_file_in_another_folder(
    tmp_path: Path, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = open_store("runs.db")
    store.create_run(make_run())
    monkeypatch.chdir(tmp_path / "elsewhere")
    open_store("runs.db").create_run(make_run("other"))
    assert [run.run_id for run in store.list_runs(RunQuery())] == ["r1"]


def open_in_child(where: str, answers: Any) -> None:
    for open_it in (SqliteStateStore, SqliteStateStore.open_readonly):
        try:
            open_it(where)
        except ForkedStoreError as error:
            answers.send(str(error))
    with closing(SqliteStateStore(where + "-other")) as store:
        store.create_run(make_run())
        answers.send(store.load_run("r1", results=False).alive)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("readonly", [False, True])
def test_file_that_a_parent_has_open_is_refused_in_a_forked_child(  # S1
    path: Path, open_store: Any, readonly: bool
) -> None:
    """What such a child wrote would be lost when its parent closes the file."""
    store = open_store()
    store.create_run(make_run())
    if readonly:
        store.close()
        store = SqliteStateStore.open_readonly(path)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=open_in_child, args=(str(path), sender))
    process.start()
    for _ in range(2):
        assert receiver.poll(WAIT_S)
        assert "cannot be used in a forked child" in receiver.recv()
    assert receiver.poll(WAIT_S)
    assert receiver.recv() is True
    process.join(WAIT_S)
    assert store.load_run("r1", results=False).run_id == "r1"
    store.close()


def resume_in_child(where: str, answers: Any) -> None:
    with closing(SqliteStateStore(where)) as store:
        answers.send(store.load_run("r1", results=False).alive)
        heir = make_run("r2", resumed_from="r1")
        store.create_run(heir)
    answers.send("resumed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_file_that_a_parent_has_closed_can_be_used_in_a_forked_child(
    path: Path, open_store: Any
) -> None:
    store = open_store()
    store.create_run(make_run())
    store.close()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=resume_in_child, args=(str(path), sender))
    process.start()
    for expected in (False, "resumed"):
        assert receiver.poll(WAIT_S)
        assert receiver.recv() == expected
    process.join(WAIT_S)
    assert open_store().load_run("r2", results=False).resumed_from == "r1"


@pytest.mark.skipif(os.name == "nt", reason="kills a process as POSIX does")
def test_many_who_look_at_once_agree(path: Path, open_store: Any) -> None:
    owner = start_owner(path)
    store = open_store()
    alive: list[bool] = []

    def look() -> None:
        alive.extend(store.load_run("r1", results=False).alive for _ in range(50))

    for expected in (True, False):
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert alive == [expected] * 200
        alive.clear()
        owner.kill()
        owner.communicate()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors")
def test_store_that_cannot_be_opened_leaves_nothing_open(path: Path, open_store: Any) -> None:
    dead = open_store()
    dead.create_run(make_run())
    dead.close()
    before = open_files()
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFileError, match="is a directory"):
            open_store(path.parent)
        with pytest.raises(TimeoutError, match="locked by another connection"):
            open_store(recover=True, busy_timeout_s=0.01)
    assert open_files() == before
    assert not open_store(recover=True).load_run("r1", results=False).alive


def test_who_reads_does_not_wait_for_its_own_writer(path: Path, open_store: Any) -> None:
    store = open_store(busy_timeout_s=WAIT_S)
    store.create_run(make_run())
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=store.create_run, args=(make_run("r2"),))
        writer.start()
        for _ in range(100):  # the writer is waiting for most of them
            assert [run.run_id for run in store.list_runs(RunQuery())] == ["r1"]
            assert store.load_run("r1", results=True).alive
        assert writer.is_alive()
        other.execute("COMMIT")
        writer.join(WAIT_S)
    assert store.load_run("r2", results=False).alive


def test_forked_child_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in a child, run here: what a child does is not measured."""
    file = ownership._LockFile(tmp_path / "x-owners")
    file.open(claims=True)
    files = {"x": file}
    monkeypatch.setattr(ownership, "_FILES", files)
    monkeypatch.setattr(ownership, "_lock", threading.Lock())
    inherited: set[str] = set()
    monkeypatch.setattr(sqlite_file, "_INHERITED", inherited)
    (descriptor,) = file._descriptors
    ownership._forget_parent()
    assert files == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with closing(SqliteStateStore(tmp_path / "runs.db")):
        sqlite_file._remember_parent()
    assert inherited == {str(tmp_path / "runs.db")}


def test_claim_is_given_up_once(tmp_path: Path) -> None:
    claims = [Ownership(tmp_path / "runs.db") for _ in range(2)]
    claims[0].close()
    claims[0].close()
    assert claims[1].is_alive(claims[1].owner)
    claims[1].close()
