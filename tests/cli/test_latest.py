"""``latest``: the newest run that a command can use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flowrun.cli.latest import LATEST, latest_in_file, load_from_file
from flowrun.cli.loading import UsageError
from flowrun.errors import DamagedRecordError, UnknownRunError

from .programs import flowrun, write_jobs

JOBS = """
    def check():
        if not os.path.exists("fixed"):
            raise OSError("no")

    engine.task("first", dag="fails")(lambda: 1)
    engine.task("check", dag="fails", deps=["first"])(check)
    engine.task("t", dag="works")(lambda: 1)
    if not os.path.exists("gone"):
        engine.task("t", dag="leaves")(check)
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return write_jobs(tmp_path, JOBS)


def run(folder: Path, dag: str, code: int = 0) -> str:
    done = flowrun(folder, "run", "jobs:engine", dag, "--no-progress", "--json", code=code)
    return str(json.loads(done.stdout)["run_id"])


def resume(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return flowrun(folder, "resume", "jobs:engine", *arguments, "--no-progress", code=code)


def test_resume_takes_the_newest_run_that_is_not_finished(jobs: Path) -> None:
    failed = run(jobs, "fails", code=1)
    run(jobs, "works")
    done = resume(jobs, LATEST, code=1)
    assert done.stderr.startswith(f"resuming run {failed} of DAG fails\n")
    (jobs / "fixed").touch()
    resume(jobs, LATEST)
    shown = resume(jobs, LATEST, code=2).stderr
    assert "no run can be resumed: nothing is left to run." in shown
    assert "flowrun resume jobs:engine RUN --from TASK" in shown


def test_resume_from_a_task_takes_the_newest_run_that_has_it(jobs: Path) -> None:
    (jobs / "fixed").touch()
    succeeded = run(jobs, "fails")
    run(jobs, "works")
    done = resume(jobs, LATEST, "--from", "check", "--json")
    assert json.loads(done.stdout)["resumed_from"] == succeeded
    shown = resume(jobs, LATEST, "--from", "chekc", code=2).stderr
    assert "has no task 'chekc'" in shown


def test_resume_and_report_narrow_to_a_dag(jobs: Path) -> None:
    failed = run(jobs, "fails", code=1)
    left = run(jobs, "leaves", code=1)
    told = json.loads(resume(jobs, LATEST, "--dry-run", "--json").stdout)
    assert told["run_id"] == left
    told = json.loads(resume(jobs, LATEST, "--dag", "fails", "--dry-run", "--json").stdout)
    assert told["run_id"] == failed
    report = flowrun(jobs, "report", "runs.db", LATEST, "--dag", "fails", "--json")
    assert json.loads(report.stdout)["run_id"] == failed
    told = resume(jobs, LATEST, "--dag", "works", code=2).stderr
    assert "the engine's store has no runs of DAG 'works' yet" in told
    told = flowrun(jobs, "report", "runs.db", LATEST, "--dag", "works", code=2).stderr
    assert "'runs.db' has no runs of DAG 'works' yet" in told
    assert "goes with 'latest'" in resume(jobs, failed, "--dag", "fails", code=2).stderr
    told = flowrun(jobs, "report", "runs.db", failed, "--dag", "fails", code=2).stderr
    assert "goes with 'latest'" in told


def test_run_of_a_dag_that_the_engine_does_not_have_is_passed_over(jobs: Path) -> None:
    failed = run(jobs, "fails", code=1)
    run(jobs, "leaves", code=1)
    (jobs / "gone").touch()
    told = json.loads(resume(jobs, LATEST, "--dry-run", "--json").stdout)
    assert told["run_id"] == failed
    assert "unknown DAG 'leaves'" in resume(jobs, LATEST, "--dag", "leaves", code=2).stderr


def test_resume_with_nothing_to_run_is_refused(jobs: Path) -> None:
    succeeded = run(jobs, "works")
    shown = resume(jobs, succeeded, code=2).stderr
    assert f"run '{succeeded}' of DAG 'works' has nothing left to run" in shown
    assert f"flowrun resume jobs:engine {succeeded} --from TASK" in shown
    assert resume(jobs, succeeded, "--dry-run").stdout.splitlines()[1].startswith("keep  t ")
    resume(jobs, succeeded, "--from", "t")
    failed = run(jobs, "fails", code=1)
    (jobs / "fixed").touch()
    resume(jobs, failed)
    shown = resume(jobs, failed, code=2).stderr
    assert f"run '{failed}' cannot be resumed: a run that resumed it has finished it." in shown
    assert f"flowrun resume jobs:engine {failed} --from TASK" in shown
    assert "engine.list_runs" not in resume(jobs, "nonsense", code=2).stderr


class _Store:
    """Lists of runs, page by page; some of them are damaged."""

    path = Path("runs.db")

    def __init__(self, *pages: Any) -> None:
        self._pages = list(pages)

    def list_runs(self, query: object) -> list[Any]:
        page = self._pages.pop(0)
        if isinstance(page, DamagedRecordError):
            raise page
        return list(page)


class _Run:
    def __init__(self, run_id: str, started_by: str | None = None) -> None:
        self.run_id = run_id
        self.started_by = started_by


def test_runs_that_were_started_inside_others_do_not_count() -> None:
    store: Any = _Store([_Run("c", "b"), _Run("b", "a")], [_Run("a")])
    assert latest_in_file(store, None) == "a"
    store = _Store([_Run("b", "a")], [])
    with pytest.raises(UsageError, match="there is no latest run: 'runs.db' has no runs yet"):
        latest_in_file(store, None)


def test_damaged_runs_are_passed_over() -> None:
    damaged = DamagedRecordError("c", None, "bad")
    damaged.others = (_Run("b"),)
    store: Any = _Store(damaged)
    assert latest_in_file(store, None) == "b"
    damaged.others = ()
    with pytest.raises(DamagedRecordError):
        latest_in_file(_Store(damaged), None)  # type: ignore[arg-type]


def test_run_of_a_living_process_is_passed_over(jobs: Path) -> None:
    failed = run(jobs, "fails", code=1)
    code = """
import asyncio, jobs, sys
from flowrun.cli.latest import latest_to_resume

async def both():
    @jobs.engine.task(dag="inner", timeout_s=None)
    async def look():
        print(latest_to_resume(jobs.engine, "jobs:engine", None, None))
    await jobs.engine.run_once("inner")

asyncio.run(both())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=jobs,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"{failed}\n", done.stderr


def test_run_in_which_nothing_is_left_to_run_is_passed_over(jobs: Path) -> None:
    left = run(jobs, "fails", code=1)
    run(jobs, "leaves", code=1)
    # The task that failed is no longer in the DAG, and the one that is has succeeded.
    with (jobs / "jobs.py").open("a", encoding="utf-8") as file:
        file.write(
            """
engine = build_default_engine(state_store=SqliteStateStore("runs.db"))
engine.task("first", dag="fails")(lambda: 1)
"""
        )
    shown = resume(jobs, LATEST, code=2).stderr
    assert "unknown DAG 'leaves'" in shown
    shown = resume(jobs, LATEST, "--dag", "fails", code=2).stderr
    assert "no run of DAG 'fails' can be resumed: nothing is left to run" in shown
    assert f"run '{left}' of DAG 'fails' has nothing left" in resume(jobs, left, code=2).stderr


def test_runs_are_named_by_the_start_of_their_ids(jobs: Path) -> None:
    failed = run(jobs, "fails", code=1)
    worked = run(jobs, "works")
    report = flowrun(jobs, "report", "runs.db", worked[:12], "--json")
    assert json.loads(report.stdout)["run_id"] == worked
    told = json.loads(resume(jobs, failed[:12], "--dry-run", "--json").stdout)
    assert told["run_id"] == failed
    shown = flowrun(jobs, "report", "runs.db", "z", code=2).stderr
    assert "no run 'z' in the state store" in shown
    assert "'flowrun runs DB' lists" in shown
    (jobs / "fixed").touch()
    resumed = json.loads(resume(jobs, failed[:12], "--json").stdout)
    assert resumed["resumed_from"] == failed


class _Named(NamedTuple):
    run_id: str
    created_at: float = 0.0
    dag_name: str = "d\x1b"


class _Loading(_Store):
    def load_run(self, run_id: str, *, results: bool) -> str:
        if run_id == "ab":
            raise UnknownRunError(run_id)
        return run_id


def test_start_of_several_ids_is_an_error_that_lists_them() -> None:
    store: Any = _Loading([_Named("abc"), _Named("b")], [_Named("abd")], [])
    with pytest.raises(UsageError) as caught:
        load_from_file(store, "ab", None)
    lines = str(caught.value).split("\n")
    assert lines[0] == "2 runs have ids that begin with 'ab'; type more:"
    assert [line.split()[0] for line in lines[1:]] == ["abc", "abd"]
    many: Any = _Loading([_Named(f"ab{number}") for number in range(10)], [])
    with pytest.raises(UsageError, match="  and 2 more"):
        load_from_file(many, "ab", None)
    one: Any = _Loading([_Named("abc"), _Named("b")], [])
    assert load_from_file(one, "ab", None) == "abc"


def test_run_that_another_one_has_started_is_not_the_latest_to_resume(jobs: Path) -> None:
    with (jobs / "jobs.py").open("a", encoding="utf-8") as file:
        file.write(
            """
@engine.task(dag="outer")
async def starts():
    await engine.run_once("fails")
"""
        )
    run(jobs, "outer")
    assert "no run can be resumed" in resume(jobs, LATEST, code=2).stderr
