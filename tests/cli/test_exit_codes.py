"""The exit code of a command, whatever happens to what it prints."""

from __future__ import annotations

import errno
import importlib
import io
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flowrun.cli.commands import main

from .programs import flowrun, in_shell, write_jobs

JOBS = """
    @engine.task(dag="works")
    def loud():
        print("x" * 10)
        return 1

    @engine.task(dag="fails")
    def broken():
        print("x" * 10)
        raise OSError("no")
"""

unix = pytest.mark.skipif(
    shutil.which("bash") is None or os.name == "nt", reason="needs bash and its redirections"
)
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return write_jobs(tmp_path, JOBS)


@unix
@pytest.mark.parametrize(("dag", "progress"), [("works", "--progress"), ("fails", "--no-progress")])
@pytest.mark.parametrize(
    "redirected",
    [
        "| true",
        ">&-",
        "2>&-",
        ">&- 2>&-",
        "2>&1 | true",
        pytest.param("> /dev/full", marks=full),
        pytest.param("2> /dev/full", marks=full),
        pytest.param("> /dev/full 2>&1", marks=full),
    ],
)
def test_code_is_that_of_the_run_whoever_reads(
    jobs: Path, dag: str, progress: str, redirected: str
) -> None:
    line = f"$FLOWRUN run jobs:engine {dag} {progress} {redirected}; echo ${{PIPESTATUS[0]}}"
    done = in_shell(jobs, line)
    code = "1" if dag == "fails" else "0"
    assert done.stdout.splitlines()[-1] == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@unix
def test_command_closes_its_loop(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(  # without a file, which is its owner's to close
        "import flowrun\nengine = flowrun.build_default_engine()\n"
        "engine.task('loud', dag='works')(lambda: print('x' * 10))\n"
    )
    done = in_shell(tmp_path, "PYTHONDEVMODE=1 $FLOWRUN run jobs:engine works --no-progress")
    assert "works: Succeeded" in done.stdout
    assert "ResourceWarning" not in done.stderr


@unix
def test_output_goes_on_where_only_errors_are_not_read(jobs: Path) -> None:
    done = in_shell(jobs, "$FLOWRUN run jobs:engine works 2>&-")
    assert "works: Succeeded" in done.stdout


@unix
@full
def test_output_that_is_lost_is_reported(jobs: Path) -> None:
    done = in_shell(jobs, "$FLOWRUN run jobs:engine works --no-progress > /dev/full")
    assert done.stderr.startswith("flowrun: cannot write to standard output: ")
    for command, code in (
        ("report runs.db latest", "1"),
        ("runs runs.db", "1"),
        ("list jobs:engine", "1"),
        ("completion bash", "1"),
    ):
        done = in_shell(jobs, f"$FLOWRUN {command} > /dev/full; echo $?")
        assert done.stdout == f"{code}\n", command
        assert "cannot write to standard output" in done.stderr
        assert in_shell(jobs, f"$FLOWRUN {command} | true; echo ${{PIPESTATUS[0]}}").stdout == "0\n"
    assert in_shell(jobs, "$FLOWRUN --help | true; echo ${PIPESTATUS[0]}").stdout == "0\n"


@full
def test_disk_error_is_no_wrong_use(jobs: Path) -> None:
    flowrun(jobs, "run", "jobs:engine", "works", "--no-progress")
    shown = flowrun(jobs, "report", "runs.db", "latest", "--html", "/dev/full", code=1).stderr
    assert "No space left" in shown
    # But this is:
    shown = flowrun(jobs, "report", "runs.db", "latest", "--html", "nowhere/page.html", code=2)
    assert "No such file or directory" in shown.stderr


def test_damaged_file_is_no_wrong_use(jobs: Path) -> None:
    flowrun(jobs, "run", "jobs:engine", "works", "--no-progress")
    with closing(sqlite3.connect(jobs / "runs.db", isolation_level=None)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((jobs / "runs.db").read_bytes())
    (jobs / "bad.db").write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    assert "damaged" in flowrun(jobs, "runs", "bad.db", code=1).stderr
    (jobs / "foreign.db").write_text("a letter", encoding="utf-8")
    flowrun(jobs, "runs", "foreign.db", code=2)
    (jobs / "empty.db").touch()
    flowrun(jobs, "report", "empty.db", "latest", code=2)


def test_list_with_a_damaged_run_shows_the_others_and_fails(jobs: Path) -> None:
    for dag in ("works", "works"):
        flowrun(jobs, "run", "jobs:engine", dag, "--no-progress")
    with closing(sqlite3.connect(jobs / "runs.db", isolation_level=None)) as file:
        file.execute(
            "UPDATE runs SET dag_name = 'other' WHERE rowid = (SELECT min(rowid) FROM runs)"
        )
    done = flowrun(jobs, "runs", "runs.db", code=1)
    assert len(done.stdout.splitlines()) == 2
    assert "damaged record of run" in done.stderr
    flowrun(jobs, "report", "runs.db", "latest")


class _Stream:
    """A stream in the place of standard output."""

    encoding = "utf-8"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def write(self, text: str) -> int:
        raise self._error

    def flush(self) -> None:
        raise self._error

    def fileno(self) -> int:
        raise OSError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokenPipeError(), 0),
        (OSError(22, "Invalid argument"), 0),  # a broken pipe on Windows
        (OSError(28, "No space left on device"), 1),
        (ValueError("I/O operation on closed file"), 1),
    ],
)
def test_streams_that_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    monkeypatch.setattr(sys, "stdout", _Stream(error))
    assert main(["completion", "bash"]) == code
    assert ("cannot write to standard output" in capsys.readouterr().err) is (code == 1)


def test_mistakes_are_lines(tmp_path: Path) -> None:
    write_jobs(
        tmp_path,
        """
        engine.task("a", dag="bad", deps=["nothing"])(lambda: 1)
        engine.task("b", dag="bad", deps=["nowhere"])(lambda: 1)
        """,
    )
    for command in (["run", "jobs:engine", "bad"], ["list", "jobs:engine"]):
        lines = flowrun(tmp_path, *command, code=1).stderr.splitlines()
        assert lines[0] == "flowrun: DAG 'bad' has 2 mistakes:"
        assert [line[:12] for line in lines[1:]] == ["  - task 'a'", "  - task 'b'"]


def test_dag_that_needs_a_context_is_for_python(tmp_path: Path) -> None:
    write_jobs(
        tmp_path,
        """
        from flowrun import RunContext

        @engine.task(dag="d")
        def t(context: RunContext[int]): ...
        """,
    )
    shown = flowrun(tmp_path, "run", "jobs:engine", "d", code=2).stderr
    assert "name a function that makes it: --context MODULE:FACTORY" in shown


def test_help_says_what_the_words_mean(capsys: pytest.CaptureFixture[str]) -> None:
    for command, text in (
        ("run", "the name of a DAG"),
        ("show", "the name of a DAG"),
        ("runs", "the file of a SqliteStateStore"),
        ("report", "the file of a SqliteStateStore"),
        ("prune", "the file of a SqliteStateStore"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert text in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("jbos:engine", "No module named 'jbos'. Did you mean 'jobs'?"),
        ("zzzzz:engine", "Is the working directory the one that the module is in?"),
        ("jobs:engin", "Did you mean 'engine'?"),
        ("jobs:nothing", "Engines in 'jobs': 'engine'."),
        ("jobs.py:engine", "'jobs.py' is a path, and MODULE is a name; write jobs:engine"),
        ("./team/jobs.py:engine", "write team.jobs:engine"),
        ("team.dayly:engine", "No module named 'team.dayly'. Did you mean 'daily'? (in 'team')"),
        ("team.zzzzz:engine", "No module named 'team.zzzzz'."),
        ("needs:engine", "cannot import 'needs': No module named 'pandaz'"),
        ("empty:engine", "is not a flowrun Engine, nor a function that returns one."),
    ],
)
def test_wrong_places_get_a_suggestion(
    jobs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    message: str,
) -> None:
    monkeypatch.chdir(jobs)
    (jobs / "team").mkdir()
    (jobs / "team" / "daily.py").touch()
    (jobs / "empty.py").touch()
    (jobs / "needs.py").write_text("import pandaz", encoding="utf-8")
    importlib.invalidate_caches()
    try:
        assert main(["list", place]) == 2
    finally:
        loaded = sys.modules.pop("jobs", None)
        if loaded is not None:
            loaded.store.close()
        for name in ("team", "empty", "needs"):
            sys.modules.pop(name, None)
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
    if place.startswith("needs"):
        assert "Did you mean" not in shown


def test_wrong_dag_gets_a_suggestion(jobs: Path) -> None:
    for command in ("run", "show", "validate"):
        shown = flowrun(jobs, command, "jobs:engine", "work", code=2).stderr
        assert "Did you mean 'works'?" in shown


@pytest.mark.parametrize("stream", ["", "sys.stderr", "sys.stdout"])
def test_engine_with_a_progress_hook_gets_no_second_one(tmp_path: Path, stream: str) -> None:
    write_jobs(
        tmp_path,
        f"""
        engine.add_hook(ProgressHook({stream}))
        engine.task("t", dag="d")(lambda: 1)
        """,
    )
    done = flowrun(tmp_path, "run", "jobs:engine", "d")
    assert (done.stdout + done.stderr).count(" of d: 1 task") == 1


def test_standard_error_that_cannot_be_written_to_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["report", "no-such-file.db", "latest"]) != 0
