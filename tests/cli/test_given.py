"""What the command line gives to a run: parameters, a context, metadata."""

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
    from contextlib import contextmanager
    from datetime import date
    from flowrun import Param, RunContext, SqliteStateStore, build_default_engine

    store = SqliteStateStore("runs.db")
    notes = []

    def make():
        engine = build_default_engine(state_store=store)

        @engine.task(dag="daily")
        def extract(day: Param[date], limit: Param[int] = 10):
            notes.append(f"extract {day:%d} {limit}")
            return day

        @engine.task(dag="daily")
        def load(context: RunContext[dict], extract):
            notes.append(f"load {context.table}")
            if os.path.exists("broken"):
                raise ValueError("broken")

        engine.task(dag="plain", name="alone")(lambda: None)
        return engine

    def plain(params):
        return RunContext({"table": f"{params['day']:%A}"})

    @contextmanager
    def opened(params):
        notes.append(f"open {sorted(params)}")
        try:
            yield plain(params)
        finally:
            notes.append("close")

    @contextmanager
    def odd(params):
        yield 7

    async def awaits(params):
        pass

    number = 7
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import jobs  # type: ignore[import-not-found]

    yield jobs
    sys.modules.pop("jobs").store.close()


def flowrun(*arguments: str) -> int:
    return main([*arguments, *(["--no-progress"] if arguments[0] in ("run", "resume") else [])])


RUN = ("run", "jobs:make", "daily", "--param", "day=2013-02-08")


def test_run_is_given_parameters_a_context_and_metadata(
    jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code = flowrun(
        *RUN, "--param", "limit=3", "--context", "jobs:opened", "--metadata", "by=a=b", "--json"
    )
    report = json.loads(capsys.readouterr().out)
    assert (code, report["status"]) == (0, "SUCCESS")
    assert report["params"] == {"day": "2013-02-08", "limit": "3"}
    assert report["metadata"] == {"by": "a=b"}
    assert jobs.notes == ["open ['day', 'limit']", "extract 08 3", "load Friday", "close"]
    flowrun("runs", "runs.db")
    head, row = capsys.readouterr().out.splitlines()
    assert head.endswith("  Parameters")
    assert row.endswith("  day=2013-02-08, limit=3")
    flowrun("report", "runs.db")
    assert "  parameters      day=2013-02-08, limit=3\n" in capsys.readouterr().out


def test_target_needs_only_what_it_reads(jobs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert flowrun(*RUN, "--target", "extract", "--context", "jobs:plain") == 0
    assert jobs.notes == ["extract 08 10"]
    assert flowrun("run", "jobs:make", "plain") == 0
    assert "parameters" not in capsys.readouterr().out.splitlines()[-5]


def test_resume_keeps_and_replaces_parameters(
    jobs: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken").touch()
    assert flowrun(*RUN, "--context", "jobs:plain", "--metadata", "by=cron") == 1
    Path("broken").unlink()
    jobs.notes.clear()
    assert flowrun("resume", "jobs:make", "latest", "--context", "jobs:opened") == 0
    assert jobs.notes == ["open ['day']", "load Friday", "close"]
    assert "  by              cron\n" in capsys.readouterr().out
    again = ("resume", "jobs:make", "latest", "--param", "day=2013-02-09")
    assert flowrun(*again, "--dry-run") == 0
    assert "run   extract  its parameter 'day' is replaced" in capsys.readouterr().out
    jobs.notes.clear()
    assert flowrun(*again, "--context", "jobs:plain", "--metadata", "by=me", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert jobs.notes == ["extract 09 10", "load Saturday"]
    assert (report["params"], report["metadata"]) == ({"day": "2013-02-09"}, {"by": "me"})
    assert flowrun("resume", "jobs:make", "latest", "--param", "dya=2013-02-09") == 2
    assert "'dya' is of no task of this run" in capsys.readouterr().err
    run_id = report["run_id"][:8]
    assert flowrun("resume", "jobs:make", run_id, "--param", "day=2013-02-10", "--dry-run") == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--param", "day"], "'day' is not NAME=VALUE"),
        (["--metadata", "=x"], "'=x' is not NAME=VALUE"),
        (
            ["--target", "extract", "--param", "limit=many"],
            "'limit' of task 'extract' must be int, not 'many'",
        ),
        (["--target", "extract", "--param", "lmit=3"], "Did you mean 'limit'?"),
        (["--context", "jobs"], "'jobs' is not MODULE:FACTORY; write it like jobs.daily:make_"),
        (["--context", "jobs:number"], "'jobs:number' is no function; --context takes one that"),
        (["--context", "jobs:nothing"], "'jobs:nothing' is no function"),
        (["--context", "jobs:dict"], "'jobs:dict' is no function"),
        (["--context", "jobs:odd"], "'jobs:odd' returned int, not a RunContext: let it return"),
        (["--context", "jobs:awaits"], "'jobs:awaits' returned coroutine, not a RunContext"),
        (["--context", "jobs:make"], "'jobs:make' made no RunContext: TypeError: make() takes"),
        ([], "load' ask for a RunContext"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    jobs: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    try:
        code = flowrun(*RUN, *arguments)
    except SystemExit as error:  # argparse's own
        code = int(str(error.code))
    assert code == 2
    assert problem in capsys.readouterr().err
    assert jobs.notes == []
    assert jobs.store.list_runs() == []
