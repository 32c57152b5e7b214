"""A file that was deleted or replaced under an open store: an error, never a lost success (D4)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun.errors import StoreFileError
from flowrun.state import SqliteStateStore

from .runs import make_run, save, succeeded

pytestmark = pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")

Harm = Callable[[Path], None]


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def lose_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "runs.db"


@pytest.fixture(params=["WAL", "DELETE"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteStateStore]:
    with closing(SqliteStateStore(path, journal_mode=request.param)) as opened:
        yield opened


@pytest.mark.parametrize("harm", [delete, move, replace, lose_the_folder])
@pytest.mark.parametrize("has_read", [False, True])
def test_next_write_and_the_next_reading_say_that_the_file_is_gone(
    path: Path, store: SqliteStateStore, harm: Harm, has_read: bool
) -> None:
    run = make_run()
    store.create_run(run)
    if has_read:
        store.list_runs()
    harm(path)
    uses: list[Callable[[], Any]] = [
        lambda: save(store, run, succeeded(run.tasks["a"], 1)),
        lambda: store.create_run(make_run("r2")),
        lambda: store.load_run("r1", results=True),
        lambda: store.load_results("r1", ["a"]),
        store.list_runs,
        lambda: store.prune_runs(keep_last=0, created_before=None),
    ]
    for use in uses:
        with pytest.raises(StoreFileError, match="the file is gone: it was deleted, moved or"):
            use()


def test_file_that_was_put_back_is_used_again(path: Path, store: SqliteStateStore) -> None:
    run = make_run()
    store.create_run(run)
    path.rename(path.with_name("elsewhere.db"))
    with pytest.raises(StoreFileError, match="put it back where it was"):
        save(store, run, succeeded(run.tasks["a"], 1))
    path.with_name("elsewhere.db").rename(path)
    save(store, run, succeeded(run.tasks["a"], 2))
    assert store.load_results("r1", ["a"]) == {"a": 2}


def test_reader_says_so_too(path: Path, store: SqliteStateStore) -> None:
    store.create_run(make_run())
    with closing(SqliteStateStore.open_readonly(path)) as reader:
        path.unlink()
        with pytest.raises(StoreFileError, match="the file is gone"):
            reader.list_runs()
