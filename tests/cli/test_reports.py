"""Reports, errors, results and pages of a file; durations; colours."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest

from flowrun.cli.arguments import COMMANDS, make_parser

from .programs import flowrun, write_jobs

JOBS = """
    import logging

    from flowrun import PickleSerializer, SchedulerConfig

    @engine.task(dag="d")
    def rows():
        return {"rows": [1, (2, 3)]}

    @engine.task(dag="d", deps=[rows], retries=1)
    def once():
        if not os.path.exists("tried"):
            open("tried", "w").close()
            raise OSError("first time \\x1b[31m")

    @engine.task(dag="d", deps=[once])
    def broken():
        raise ValueError("not these rows")

    @engine.task(dag="d", deps=[broken])
    def after():
        pass

    pickled = build_default_engine(state_store=SqliteStateStore("pickled.db", PickleSerializer()))
    pickled.task("value", dag="d")(lambda: {1, 2})

    keeps = build_default_engine(
        config=SchedulerConfig(keep_logs=True), state_store=SqliteStateStore("logs.db")
    )

    @keeps.task(dag="d", retries=2)
    def noisy():
        if os.path.exists("silent"):
            return
        logging.getLogger("shop").warning("red \\x1b[31m")
        open("silent", "w").close()
        raise OSError

    keeps.task("pages", dag="d")(lambda: [7, 8])

    @keeps.task(dag="d", map_over="pages")
    def fetch(pages):
        logging.getLogger("shop").warning("page %d", pages)

    @keeps.task(dag="d", deps=[noisy])
    def heard():
        logging.getLogger("shop").warning("done")
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    write_jobs(tmp_path, JOBS)
    flowrun(tmp_path, "run", "jobs:engine", "d", "--no-progress", code=1)
    return tmp_path


def test_report_is_a_success_whatever_it_reports_and_latest_by_default(jobs: Path) -> None:
    shown = flowrun(jobs, "report", "runs.db").stdout
    assert shown.startswith("d: Failed in ")
    assert shown == flowrun(jobs, "report", "runs.db", "latest", "--dag", "d").stdout


def test_failure_shows_its_line_of_code_and_is_said_once(jobs: Path) -> None:
    lines = [line.strip() for line in flowrun(jobs, "report", "runs.db").stdout.splitlines()]
    start = lines.index("✘ broken")
    assert lines[start + 1] == "ValueError: not these rows"
    assert re.fullmatch(r".*jobs\.py:\d+", lines[start + 2])
    assert lines[start + 3] == 'raise ValueError("not these rows")'
    assert sum("not these rows" in line for line in lines) == 2  # the error, and that line of code
    assert lines[-1].endswith("the task 'broken' upstream of it failed")


def test_each_failure_stands_once_in_the_progress(jobs: Path) -> None:
    (jobs / "tried").unlink()
    shown = flowrun(jobs, "run", "jobs:engine", "d", code=1).stderr
    assert shown.count("first time") == 1
    assert shown.count("not these rows") == 1
    assert "3 attempts" not in shown
    assert re.search(r"x d failed in \S+ s: 2 succeeded, 1 failed, 1 skipped", shown)


def test_only_failures(jobs: Path) -> None:
    shown = flowrun(jobs, "report", "runs.db", "--failed").stdout
    assert "ValueError: not these rows" in shown
    assert "once" not in shown
    told = json.loads(flowrun(jobs, "report", "runs.db", "--failed", "--json").stdout)
    assert list(told["tasks"]) == ["broken"]


def test_page_of_failures_alone_is_refused(jobs: Path) -> None:
    shown = flowrun(jobs, "report", "runs.db", "--failed", "--html", "a.html", code=2).stderr
    assert "a page shows the failures first; leave one of --failed and --html out" in shown
    assert not (jobs / "a.html").exists()


def test_report_says_first_where_the_time_went(jobs: Path) -> None:
    title, line, *facts = flowrun(jobs, "report", "runs.db").stdout.splitlines()
    assert title.startswith("d: Failed in ")
    assert re.match(r"  \d+(\.\d)? m?s[:;] ", line)
    shown = "\n".join(facts)
    assert re.search(r"\n  max_parallel    4\n  versions        flowrun \S+, Python 3", shown)


def test_explanation_of_a_run_and_of_a_task(jobs: Path) -> None:
    shown = flowrun(jobs, "explain", "runs.db").stdout
    assert re.match(r"d: \d+(\.\d)? m?s: ", shown)
    assert re.search(r"\n\d+ ms +once +running\n", shown)
    assert re.search(r"\nbroken +failed: ValueError: not these rows\n", shown)
    assert shown == flowrun(jobs, "explain", "runs.db", "latest", "--dag", "d").stdout
    shown = flowrun(jobs, "explain", "runs.db", "latest", "once").stdout
    assert shown.startswith("once of d: ")
    told = json.loads(flowrun(jobs, "explain", "runs.db", "latest", "--json").stdout)
    whole = sum(part["duration_s"] for part in told["parts"])
    assert whole == pytest.approx(told["duration_s"], abs=1e-5)
    assert told["line"]
    shown = flowrun(jobs, "explain", "runs.db", "latest", "borken", code=2).stderr
    assert "Did you mean 'broken'?" in shown


def test_error_of_one_task(jobs: Path) -> None:
    shown = flowrun(jobs, "error", "runs.db", "latest", "broken").stdout
    assert shown.startswith("Traceback")
    assert shown.endswith("ValueError: not these rows\n")
    # Of a task that succeeded after all: that of its last failed attempt.
    shown = flowrun(jobs, "error", "runs.db", "latest", "once").stdout
    assert shown.endswith("OSError: first time \\x1b[31m\n")
    assert "has no error" in flowrun(jobs, "error", "runs.db", "latest", "rows", code=1).stderr
    shown = flowrun(jobs, "error", "runs.db", "latest", "borken", code=2).stderr
    assert "Did you mean 'broken'?" in shown


def test_logs_of_one_task(jobs: Path) -> None:
    flowrun(jobs, "run", "jobs:keeps", "d", "--no-progress")
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z"
    shown = flowrun(jobs, "logs", "logs.db", "latest", "heard").stdout
    assert re.fullmatch(rf"{time} WARNING shop: done\n", shown)
    shown = flowrun(jobs, "logs", "logs.db", "latest", "noisy").stdout
    assert re.fullmatch(rf"attempt 1:\n{time} WARNING shop: red \\x1b\[31m\nattempt 2:\n", shown)
    first, second = json.loads(flowrun(jobs, "logs", "logs.db", "latest", "noisy", "--json").stdout)
    assert (first["attempt"], first["status"], first["logs_cut"]) == (1, "FAILED", 0)
    assert [line["text"] for line in first["logs"]] == ["red \x1b[31m"]
    assert second == {
        "item": None,
        "attempt": 2,
        "status": "SUCCESS",
        "logs": [],
        "logs_cut": 0,
    }
    shown = flowrun(jobs, "logs", "logs.db", "latest", "fetch").stdout
    assert [line.removeprefix("item ").split()[0] for line in shown.splitlines()[::2]] == [
        "0,",
        "1,",
    ]
    assert [line.split()[-1] for line in shown.splitlines()[1::2]] == ["7", "8"]
    shown = flowrun(jobs, "logs", "runs.db", "latest", "rows", code=1).stderr
    assert "nothing is kept" in shown
    assert "keep_logs=True" in shown
    assert "Did you mean" in flowrun(jobs, "logs", "logs.db", "latest", "nosy", code=2).stderr


def test_result_of_one_task(jobs: Path) -> None:
    shown = flowrun(jobs, "result", "runs.db", "latest", "rows").stdout
    assert shown == "{'rows': [1, (2, 3)]}\n"
    stored = json.loads(flowrun(jobs, "result", "runs.db", "latest", "rows", "--json").stdout)
    assert stored["rows"][0] == 1
    shown = flowrun(jobs, "result", "runs.db", "latest", "broken", code=1).stderr
    assert "has no result in the file" in shown
    shown = flowrun(jobs, "result", "runs.db", "latest", "row", code=2).stderr
    assert "Did you mean 'rows'?" in shown
    flowrun(jobs, "run", "jobs:pickled", "d", "--no-progress")
    shown = flowrun(jobs, "result", "pickled.db", "latest", "value", code=1).stderr
    assert re.search(r"kept by the serializer 'pickle' \(\d+ bytes\)", shown)


def test_index_of_the_newest_runs_beside_their_pages(jobs: Path) -> None:
    for _ in range(3):
        flowrun(jobs, "run", "jobs:engine", "d", "--target", "rows", "--no-progress")
    shown = flowrun(jobs, "report", "runs.db", "--html", "out/pages", "--limit", "3").stdout
    assert shown == str(Path("out/pages/index.html")) + "\n"
    index = (jobs / "out" / "pages" / "index.html").read_text(encoding="utf-8")
    pages = [unquote(page) for page in re.findall(r'<a href="([^"]*)">d</a>', index)]
    assert len(pages) == 3
    for page in pages:
        assert (jobs / "out" / "pages" / page).read_text("utf-8").startswith("<!doctype html>")
    assert index.count("succeeded") == 6  # a run, and its task
    assert "<script" not in index
    assert "runs.db" in index
    page = (jobs / "out" / "pages" / pages[0]).read_text("utf-8")
    assert ", usually " in page
    again = flowrun(jobs, "run", "jobs:engine", "d", "--target", "rows", "--no-progress").stdout
    assert ", usually " in again.splitlines()[0]
    assert flowrun(jobs, "report", "runs.db", "--html", "last.html").stdout == "last.html\n"
    assert (jobs / "last.html").is_file()
    # Of one run into a folder that is there.
    shown = flowrun(jobs, "report", "runs.db", "latest", "--html", "out").stdout.strip()
    assert shown.startswith("out")
    assert (jobs / shown).is_file()


def damage(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "runs.db", isolation_level=None)) as file:
        file.execute(statement)


def test_usual_duration_is_told_by_the_runs_that_are_not_damaged(tmp_path: Path) -> None:
    write_jobs(tmp_path, "engine.task('a', dag='d')(lambda: 1)")
    for _ in range(2):
        flowrun(tmp_path, "run", "jobs:engine", "d", "--no-progress")
    damage(tmp_path, "UPDATE runs SET error = 'x' WHERE rowid = 1")
    for command in (("report", "runs.db"), ("run", "jobs:engine", "d", "--no-progress")):
        first = flowrun(tmp_path, *command).stdout.splitlines()[0]
        assert (", usually " in first) is (command[0] == "run")


def test_index_of_nothing_and_of_damaged_runs(tmp_path: Path) -> None:
    write_jobs(tmp_path, "engine.task('a', dag='d')(lambda: 1)")
    for _ in range(2):
        flowrun(tmp_path, "run", "jobs:engine", "d", "--no-progress")
    flowrun(tmp_path, "report", "runs.db", "--html", "none", "--dag", "other")
    assert "No runs." in (tmp_path / "none" / "index.html").read_text("utf-8")
    damage(tmp_path, "UPDATE runs SET dag_name = 'x' WHERE rowid = 1")
    shown = flowrun(tmp_path, "report", "runs.db", "--html", "some", code=1).stderr
    assert "damaged" in shown
    assert (tmp_path / "some" / "index.html").read_text("utf-8").count("<a href") == 1
    shown = flowrun(tmp_path, "runs", "runs.db", "--dag", "x", code=1)
    assert shown.stdout == ""
    assert "damaged" in shown.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("1.5s", 1.5),
        ("30m", 1800),
        ("12h", 43_200),
        ("7d", 604_800),
        ("2w", 1_209_600),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    parser = make_parser()
    for name in ("--older-than", "--older-than-s"):
        assert parser.parse_args(["prune", "runs.db", name, text]).older_than_s == seconds
    for name in ("--timeout", "--timeout-s"):
        assert parser.parse_args(["run", "a:b", "d", name, text]).timeout_s == seconds


@pytest.mark.parametrize("text", ["7x", "-1", "nan", "inf", "d", "1 day", ""])
def test_other_durations_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["prune", "runs.db", f"--older-than={text}"])
    assert "is not a duration like 90 (seconds), 30m, 12h or 7d" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["succeeded", "SUCCESS", "Success"])
def test_status_has_one_word_and_the_reports_name(jobs: Path, word: str) -> None:
    assert flowrun(jobs, "runs", "runs.db", "--status", word).stdout == "no runs\n"


def test_other_status_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["runs", "runs.db", "--status", "ok"])
    assert "'ok' is none of succeeded, failed, running" in capsys.readouterr().err


def test_every_argument_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            make_parser().parse_args([name, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        for argument in command.arguments:
            assert argument.help
            is_hidden = argument.help == argparse.SUPPRESS
            assert (argument.help in shown) is not is_hidden
            assert (f"{argument.name} " in shown) is not is_hidden or "metavar" in argument.settings
