"""The cache between runs from the command line: ``--refresh``, ``cache ls``, ``cache clear``."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowrun.cli.commands import main

JOBS = """
    import os
    from flowrun import Cache, SqliteStateStore, build_default_engine

    store = SqliteStateStore("runs.db")
    ran = []

    def fetch():
        ran.append("fetch")
        return [1, 2]

    def total(fetch):
        ran.append("total")
        return sum(fetch)

    def load(total):
        if os.path.exists("broken"):
            raise ValueError("broken")

    def make():
        engine = build_default_engine(state_store=store)
        dag = engine.dag("daily")
        dag.task(cache=Cache())(fetch)
        dag.task(cache=Cache())(total)
        dag.task(load)
        return engine
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs  # type: ignore[import-not-found]

    yield jobs
    sys.modules.pop("jobs").store.close()


def run(*arguments: str, command: str = "run", what: str = "daily") -> int:
    return main([command, "jobs:make", what, *arguments, "--no-progress", "--json"])


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ((), []),
        (("--refresh", "total"), ["total"]),
        (("--refresh", "total", "--refresh", "fetch"), ["fetch", "total"]),
        (("--refresh-all",), ["fetch", "total"]),
    ],
)
def test_refresh_runs_what_is_in_the_cache(
    jobs: Any, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], runs: list[str]
) -> None:
    assert run() == 0
    first = json.loads(capsys.readouterr().out)
    jobs.ran.clear()
    assert run(*options) == 0
    report = json.loads(capsys.readouterr().out)
    assert jobs.ran == runs
    expected = {
        name: None if name in (*runs, "load") else first["run_id"] for name in first["tasks"]
    }
    assert {name: task["cached_from"] for name, task in report["tasks"].items()} == expected


def test_resume_takes_refresh(jobs: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    assert run() == 1
    jobs.ran.clear()
    (tmp_path / "broken").unlink()
    assert run("--refresh", "total", command="resume", what="latest") == 0
    assert jobs.ran == []  # it keeps what has succeeded


def test_refresh_of_an_unknown_task_is_wrong_use(
    jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--refresh", "totl") == 2
    assert "Did you mean 'total'" in capsys.readouterr().err


def test_what_is_in_the_cache_is_listed_and_cleared(
    jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    assert main(["cache", "ls", "runs.db"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["Made", "DAG", "Task", "Run"]
    assert [row.split()[2:] for row in rows] == [
        ["daily", "total", run_id],
        ["daily", "fetch", run_id],
    ]
    assert main(["cache", "ls", "runs.db", "--task", "fetch", "--dag", "daily", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["run_id"], entry["task_name"]) == (run_id, "fetch")
    assert main(["cache", "clear", "runs.db", "--task", "fetch"]) == 0
    assert capsys.readouterr().out == "1 result cleared from the cache\n"
    assert main(["cache", "clear", "runs.db", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"cleared": 1}
    assert main(["cache", "ls", "runs.db"]) == 0
    assert capsys.readouterr().out == "no results\n"


@pytest.mark.parametrize("action", ["ls", "clear"])
def test_file_that_is_not_there_is_wrong_use(
    jobs: Any, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    assert main(["cache", action, "other.db"]) == 2
    assert "there is no file 'other.db'" in capsys.readouterr().err
    assert not Path("other.db").exists()
