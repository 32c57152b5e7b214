"""The command line, in this process and as a real child process."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import __version__ as flowrun_version
from flowrun.cli.commands import main

from ..conftest import WAIT_S

JOBS = """
    import asyncio, os
    from flowrun import SqliteStateStore, build_default_engine

    store = SqliteStateStore("runs.db")
    engine = build_default_engine(state_store=store)
    daily = engine.dag("daily")

    @daily.task
    def extract():
        return [1, 2]

    @daily.task
    def load(extract):
        if not os.path.exists("fixed"):
            raise ValueError("not \\x1b[31m yet")
        return sum(extract)

    slow = engine.dag("slow")

    @slow.task(timeout_s=None)
    async def wait():
        print("begun", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("cleaned up", flush=True)

    if os.path.exists("bad"):
        engine.task(name="a", dag="bad", deps=["missing"])(lambda: None)

    @engine.task(dag="suicide")
    def cancels():
        from flowrun import current_attempt
        engine.cancel(current_attempt().run_id)

    if os.path.exists("more"):
        daily.task(name="more")(lambda: None)

    def make():
        return engine

    number = 7
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    loaded: Any = sys.modules.pop("jobs", None)
    if loaded is not None:
        loaded.store.close()


def flowrun(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "flowrun", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_run_fails_resume_finishes_and_reports_tell(jobs: Path) -> None:
    failed = flowrun(jobs, "run", "jobs:engine", "daily", code=1)
    assert "not \\x1b[31m yet" in failed.stdout
    assert "x load: ValueError" in failed.stderr
    plan = flowrun(jobs, "resume", "jobs:engine", "latest", "--dry-run")
    assert plan.stdout.splitlines() == [
        "Plan  Task     Why",
        "keep  extract  succeeded before",
        "run   load     had failed",
    ]
    (jobs / "more").touch()
    flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1)
    (jobs / "more").unlink()
    dropped = flowrun(jobs, "resume", "jobs:engine", "latest", "--dry-run").stdout.splitlines()
    assert dropped[-1].split() == ["drop", "more", "no", "longer", "in", "the", "DAG"]
    flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1)
    told = json.loads(flowrun(jobs, "resume", "jobs:make", "latest", "--dry-run", "--json").stdout)
    assert told["tasks"]["load"] == {"action": "run", "why": "had failed"}
    (jobs / "fixed").touch()
    finished = flowrun(jobs, "resume", "jobs:engine", "latest", "--no-progress", "--json")
    report = json.loads(finished.stdout)
    assert report["status"] == "SUCCESS"
    assert report["tasks"]["load"]["result_state"] == "stored"  # nothing was decoded
    listed = flowrun(jobs, "runs", "runs.db").stdout.splitlines()
    assert listed[0].split() == ["Run", "Started", "Outcome", "Took", "DAG", "Tasks"]
    assert [line.split()[3] for line in listed[1:]] == ["succeeded", "failed", "failed", "failed"]
    assert {line.index("daily") for line in listed[1:]} == {listed[0].index("DAG")}
    rows = json.loads(flowrun(jobs, "runs", "runs.db", "--status", "FAILED", "--json").stdout)
    assert rows[0]["run_id"] == report["resumed_from"]
    explicit = flowrun(jobs, "resume", "jobs:engine", rows[2]["run_id"], "--dry-run")
    assert explicit.stdout.splitlines()[2].startswith("run   load")
    text = flowrun(jobs, "report", "runs.db", "latest").stdout
    assert "load" in text
    assert max(map(len, text.splitlines())) <= 80
    old = json.loads(flowrun(jobs, "report", "runs.db", report["resumed_from"], "--json").stdout)
    assert old["tasks"]["load"]["status"] == "FAILED"
    page = flowrun(jobs, "report", "runs.db", "latest", "--html", "page.html")
    assert page.stdout == "page.html\n"
    assert (jobs / "page.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert flowrun(jobs, "prune", "runs.db", "--keep-last", "1").stdout == "3 runs deleted\n"
    assert flowrun(jobs, "prune", "runs.db", "--older-than-s", "0").stdout == "1 run deleted\n"
    assert flowrun(jobs, "runs", "runs.db").stdout == "no runs\n"
    told = "there is no latest run: 'runs.db' has no runs yet"
    assert told in flowrun(jobs, "report", "runs.db", "latest", code=2).stderr
    told = "there is no latest run: the engine's store has no runs yet"
    assert told in flowrun(jobs, "resume", "jobs:engine", "latest", code=2).stderr


LISTED = "DAG      Tasks\ndaily    extract, load\n"


def test_list_show_and_validate(jobs: Path) -> None:
    assert flowrun(jobs, "list", "jobs:engine").stdout.startswith(LISTED)
    assert json.loads(flowrun(jobs, "list", "jobs:engine", "--json").stdout)["slow"] == ["wait"]
    (jobs / "bad").touch()
    bad = flowrun(jobs, "list", "jobs:engine", code=1)
    assert "missing dependency" in bad.stderr
    assert bad.stdout.startswith(LISTED)  # the others are listed
    assert "missing dependency" in flowrun(jobs, "run", "jobs:engine", "bad", code=1).stderr
    assert "extract" in flowrun(jobs, "show", "jobs:engine", "daily").stdout
    assert flowrun(jobs, "show", "jobs:engine", "daily", "--style", "dot").stdout.startswith(
        "digraph"
    )
    checked = flowrun(jobs, "validate", "jobs:engine", code=1).stdout.splitlines()
    assert checked[0] == "daily: fine, 2 tasks"
    assert checked[2].startswith("bad: DAG 'bad': task 'a' has a missing dependency")
    assert flowrun(jobs, "validate", "jobs:engine", "slow").stdout == "slow: fine, 1 task\n"
    only = flowrun(jobs, "run", "jobs:engine", "daily", "--target", "extract", "--json")
    assert list(json.loads(only.stdout)["tasks"]) == ["extract"]


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_the_run(jobs: Path, number: signal.Signals) -> None:  # R2
    child = subprocess.Popen(
        [sys.executable, "-m", "flowrun", "run", "jobs:engine", "slow"],
        cwd=jobs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=WAIT_S)
    assert (out, child.returncode) == ("cleaned up\n", 130)
    assert err.endswith("interrupted\n")
    report = json.loads(flowrun(jobs, "report", "runs.db", "latest", "--json").stdout)
    assert report["tasks"]["wait"]["reason"] == "RUN_CANCELLED"


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_second_signal_exits_at_once(jobs: Path) -> None:
    stubborn = """
        import asyncio, contextlib, jobs
        engine = jobs.engine

        @engine.task(dag="stubborn", timeout_s=None)
        async def wait():
            print("begun", flush=True)
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                print("told", flush=True)
    """
    (jobs / "stubborn.py").write_text(textwrap.dedent(stubborn), encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, "-m", "flowrun", "run", "stubborn:engine", "stubborn"],
        cwd=jobs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in ("begun\n", "told\n"):
        assert child.stdout.readline() == line
        child.send_signal(signal.SIGINT)
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 130


def test_run_that_is_cancelled_from_inside_has_failed(jobs: Path) -> None:
    done = flowrun(jobs, "run", "jobs:engine", "suicide", "--no-progress", code=1)
    assert "engine.cancel() was called" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "jobs", "daily"], "'jobs' is not MODULE:ENGINE"),
        (["run", "no_such_module:engine", "daily"], "cannot import 'no_such_module'"),
        (["run", "jobs:number", "daily"], "'jobs:number' is not a flowrun Engine"),
        (["run", "jobs:nothing.at.all", "daily"], "is not a flowrun Engine"),
        (["show", "jobs:engine", "dayly"], "Did you mean 'daily'?"),
        (["validate", "jobs:engine", "dayly"], "Did you mean 'daily'?"),
        (["runs", "nowhere.db"], "there is no file 'nowhere.db'"),
        (["prune", "nowhere.db", "--keep-last", "1"], "there is no file 'nowhere.db'"),
        (["prune", "nowhere.db"], "say what to delete"),
        (["report", "runs.db", "--json", "--html", "page.html"], "leave one of them out"),
        (["report", "nowhere.db", "latest"], "there is no file 'nowhere.db'"),
    ],
)
def test_wrong_use_is_one_readable_line(
    jobs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    assert main(["--traceback", *arguments]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_while_jobs_are_loaded(jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (jobs / "interrupted.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    assert main(["list", "interrupted:engine"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"flowrun {flowrun_version}\n"


def test_completion_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "prune" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "130 interrupted" in capsys.readouterr().out


def test_reader_that_goes_away_is_no_error(jobs: Path) -> None:
    flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1)
    done = subprocess.run(
        f'"{sys.executable}" -m flowrun report runs.db latest --json | head -n 1',
        shell=True,
        cwd=jobs,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "{\n"
    assert "Traceback" not in done.stderr


def test_broken_pipe_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as file:

        class Gone:
            def write(self, text: str) -> int:
                raise BrokenPipeError

            def flush(self) -> None:
                return None

            def fileno(self) -> int:
                return file.fileno()

        monkeypatch.setattr(sys, "stdout", Gone())
        assert main(["completion", "bash"]) == 0


def test_prune_refuses_what_would_delete_everything(
    jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1)
    for wrong in (
        ["prune", "runs.db", "--keep-last", "-1"],
        ["prune", "runs.db", "--keep-last", "all"],
        ["prune", "runs.db", "--older-than-s", "-1"],
        ["prune", "runs.db", "--older-than-s", "nan"],
        ["runs", "runs.db", "--limit", "0"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
        assert "error: argument --" in capsys.readouterr().err
    kept = json.loads(flowrun(jobs, "prune", "runs.db", "--keep-last", "1", "--json").stdout)
    assert kept == {"deleted": 0}
    kept = json.loads(flowrun(jobs, "prune", "runs.db", "--keep-last", "0", "--json").stdout)
    assert kept == {"deleted": 1}


@pytest.mark.parametrize(
    ("code", "place", "message"),
    [
        ("1 / 0", "mine:engine", "cannot import 'mine': ZeroDivisionError: division by zero"),
        ("x = (", "mine:engine", "cannot import 'mine': SyntaxError: '(' was never closed"),
        ("from os import nothing", "mine:engine", "cannot import name 'nothing' from 'os'"),
        ("def make(): 1 / 0", "mine:make", "'mine:make' made no Engine: ZeroDivisionError"),
        ("raise ValueError('\\x1b[2J')", "mine:engine", r"ValueError: \x1b[2J"),
    ],
)
def test_jobs_that_raise_are_one_readable_line(
    jobs: Path, code: str, place: str, message: str
) -> None:
    (jobs / "mine.py").write_text(code, encoding="utf-8")
    shown = flowrun(jobs, "list", place, code=2).stderr
    assert message in shown
    assert shown.startswith("flowrun: ")
    assert len(shown.splitlines()) == 1
    told = flowrun(jobs, "list", place, "--traceback", code=2).stderr
    assert told.startswith("Traceback")
    assert "mine" in told


def test_validate_tells_a_script(jobs: Path) -> None:
    (jobs / "bad").touch()
    told = json.loads(flowrun(jobs, "validate", "jobs:engine", "--json", code=1).stdout)
    assert told["daily"] is None
    assert "missing dependency" in told["bad"]
    assert json.loads(flowrun(jobs, "validate", "jobs:engine", "slow", "--json").stdout) == {
        "slow": None
    }


def test_screens_without_unicode_get_letters(jobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ran = flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1).stdout
    assert "[ok] " in ran
    assert "[FAILED] load" in ran
    assert "`- load" in flowrun(jobs, "show", "jobs:engine", "daily").stdout


def test_a_failure_is_said_once(jobs: Path) -> None:
    shown = flowrun(jobs, "run", "jobs:engine", "daily", code=1).stderr
    assert shown.count("ValueError") == 1
    quiet = flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1).stderr
    assert quiet.startswith("task 'load' failed: ValueError")


def test_run_where_logging_has_no_last_resort(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "lastResort", None)
    assert main(["run", "jobs:engine", "daily", "--target", "extract"]) == 0
    assert "1 task: 1 succeeded" in capsys.readouterr().out


def test_plan_stays_in_columns_with_wide_names(
    jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = """
        from flowrun import SqliteStateStore, build_default_engine

        store = SqliteStateStore("runs.db")
        engine = build_default_engine(state_store=store)
        engine.task(name="注文", dag="d")(lambda: 1)
        engine.task(name="sums", dag="d", deps=["注文"])(lambda: 1 / 0)
    """
    (jobs / "jobs.py").write_text(textwrap.dedent(wide), encoding="utf-8")
    flowrun(jobs, "run", "jobs:engine", "d", "--no-progress", code=1)
    assert main(["resume", "jobs:engine", "latest", "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        "Plan  Task  Why\nkeep  注文  succeeded before\nrun   sums  had failed\n"
    )


LIVE = """
    import sys
    from flowrun import SqliteStateStore, build_default_engine

    engine = build_default_engine(state_store=SqliteStateStore("runs.db"), max_workers=2)
    engine.task(name="first", dag="live")(lambda: {"rows": 3})
    before = "first"
    for number in range(60):
        engine.task(name=f"t{number}", dag="live", deps=[before])(lambda: "x" * 1000)
        before = f"t{number}"

    @engine.task(dag="live", deps=["first"], timeout_s=None)
    def gate():
        print("begun", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.no_cover
def test_reads_a_file_that_another_process_writes(jobs: Path) -> None:
    (jobs / "live.py").write_text(textwrap.dedent(LIVE), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "flowrun", "run", "live:engine", "live", "--no-progress"],
        cwd=jobs,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        for _ in range(3):  # the other tasks are written meanwhile
            listed = flowrun(jobs, "runs", "runs.db").stdout
            assert listed.splitlines()[1].split()[3:5] == ["running", "live"]
        (run,) = json.loads(flowrun(jobs, "runs", "runs.db", "--json").stdout)
        assert (run["status"], run["finished_at"]) == ("RUNNING", None)
        assert "live: Running" in flowrun(jobs, "report", "runs.db", "latest").stdout
        report = json.loads(flowrun(jobs, "report", "runs.db", "latest", "--json").stdout)
        assert report["tasks"]["first"]["status"] == "SUCCESS"
        assert report["tasks"]["gate"]["status"] == "RUNNING"
        # Somebody else is in the middle of a transaction: readers do not wait for it.
        with closing(sqlite3.connect(jobs / "runs.db", isolation_level=None)) as busy:
            busy.execute("BEGIN IMMEDIATE")
            flowrun(jobs, "report", "runs.db", run["run_id"], "--html", "live.html")
            assert "  running  " in flowrun(jobs, "runs", "runs.db").stdout
            busy.execute("ROLLBACK")
        assert "Running" in (jobs / "live.html").read_text(encoding="utf-8")
        out, err = writer.communicate("go on\n", timeout=WAIT_S)
    assert (writer.returncode, err) == (0, "")
    assert "62 tasks: 62 succeeded" in out
    assert "live: Succeeded" in flowrun(jobs, "report", "runs.db", "latest").stdout


BOMB = """
    import os
    from flowrun import PickleSerializer, SqliteStateStore, build_default_engine

    class Bomb:
        def __getstate__(self):
            return os.path.abspath("exploded")

        def __setstate__(self, path):
            if "DISARMED" not in os.environ:  # as the run that stores it reads it back
                open(path, "w").close()

    store = SqliteStateStore("runs.db", PickleSerializer())
    engine = build_default_engine(state_store=store)
    engine.task(name="bomb", dag="d")(Bomb)
    engine.task(name="plain", dag="d")(lambda: [1, 2])
"""


@pytest.mark.no_cover
def test_pickled_results_are_shown_without_being_unpickled(
    jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (jobs / "pickled.py").write_text(textwrap.dedent(BOMB), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setenv("DISARMED", "1")
        flowrun(jobs, "run", "pickled:engine", "d", "--no-progress")
    flowrun(jobs, "report", "runs.db", "latest")
    flowrun(jobs, "report", "runs.db", "latest", "--json")
    flowrun(jobs, "report", "runs.db", "latest", "--html", "page.html")
    page = (jobs / "page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"pickle, \d+ bytes, not decoded", page)) == 2
    # The engine's own page, though it could.
    own = """
import pickled, re
page = pickled.engine.report_html(pickled.engine.list_runs()[0].run_id)
print(len(re.findall("pickle, [0-9]+ bytes, not decoded", page)))
"""
    done = subprocess.run(
        [sys.executable, "-c", own],
        cwd=jobs,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "2\n"
    assert not (jobs / "exploded").exists()
    # It is a bomb indeed.
    read = "import pickled; pickled.engine.get_run_report(pickled.engine.list_runs()[0].run_id)"
    subprocess.run([sys.executable, "-c", read], cwd=jobs, timeout=60, check=True)
    assert (jobs / "exploded").exists()


def test_page_shows_what_json_results_begin_with(jobs: Path) -> None:
    flowrun(jobs, "run", "jobs:engine", "daily", "--no-progress", code=1)
    flowrun(jobs, "report", "runs.db", "latest", "--html", "page.html")
    page = (jobs / "page.html").read_text(encoding="utf-8")
    assert '"result":"[1, 2]"' in page
    assert len(page.encode()) < 100_000
