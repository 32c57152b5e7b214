"""Every example runs as its reader would run it: in a process of its own."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flowrun import SqliteStateStore

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

# Other tests run these, on a cluster that they set up themselves and as a server.
ELSEWHERE = {"on_a_cluster.py", "service.py"}

OUTPUTS = {
    "minimal.py": "SUCCESS 16.0\n",
    "templates.py": (
        "sales_north       200\n"
        "sales_south        45\n"
        "sales_harbour     375\n"
        "total             620\n"
    ),
    "subgraph.py": (
        "weekly\n"
        "└─ visits\n"
        "   ├─ busiest_day\n"
        "   │  └─ letter\n"
        "   └─ average\n"
        "      └─ letter (see above)\n"
        "\n"
        "asked for ['average'], so these ran:\n"
        "  visits: SUCCESS\n"
        "  average: SUCCESS\n"
    ),
}


def run_example(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "utf8", EXAMPLES / name, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def test_every_example_has_a_test() -> None:
    tested = {*OUTPUTS, "resume.py", "flight_delays.py", "api_ingest.py", *ELSEWHERE}
    assert {path.name for path in EXAMPLES.glob("*.py")} <= tested


@pytest.mark.parametrize("name", OUTPUTS)
def test_example_prints_what_it_should(name: str, tmp_path: Path) -> None:
    done = run_example(name, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == OUTPUTS[name]


def test_resume_example_does_what_was_left_and_no_more(tmp_path: Path) -> None:
    done = run_example("resume.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    night, morning = done.stdout.split("in the morning\n")
    assert [line for line in night.splitlines() if line.endswith(" runs")] == [
        "  extract runs",
        "  transform runs",
        "  load runs",
    ]
    assert [line for line in morning.splitlines() if line.endswith(" runs")] == ["  load runs"]
    assert night.endswith("  FAILED\n")
    assert morning.endswith("  SUCCESS, 3 rows loaded\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL there")
def test_api_is_ingested_though_the_process_is_killed(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("api_ingest", EXAMPLES / "api_ingest.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    db = tmp_path / "runs.db"
    with example.serving(200) as server:
        options = ("--host", server.host, "--db", str(db))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, EXAMPLES / "api_ingest.py", *options]
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            with server.lock:
                assert server.lock.wait_for(lambda: len(server.served) >= 80, 60)
            process.kill()
        store = SqliteStateStore.open_readonly(db)
        (killed,) = store.list_runs()
        items = store.load_run(killed.run_id, results=False).items["fetch"]
        acknowledged = {item.item for item in items if item.status == "SUCCESS"}
        store.close()
        in_flight = set(server.served) - acknowledged
        done = run_example("api_ingest.py", *options, "--resume", folder=tmp_path)
        assert done.stdout == "SUCCESS {'SUCCESS': 200} 39800\n", done.stderr
        assert set(server.served) == set(range(200))
        twice = {page for page, times in server.served.items() if times > 1}
        assert twice.isdisjoint(acknowledged)
        assert twice >= in_flight
        assert max(server.served.values()) <= 2
        assert acknowledged
        assert not server.sessions  # the teardown has closed what the killed run had opened
        assert server.answers[429]
        assert server.answers[503]


class TestFlightDelays:
    """The main example, on its week of real data."""

    def run(self, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_example("flight_delays.py", *arguments, folder=folder)

    def succeeded(self, done: subprocess.CompletedProcess[str]) -> set[str]:
        """Return the tasks that the example's own hook has seen succeed."""
        return set(re.findall(r"^  \+ (\w+)  ", done.stdout, re.MULTILINE))

    def results(self, folder: Path) -> Path:
        return folder / "build" / "flight_delays"

    def test_whole_pipeline_runs_and_its_figures_are_those_of_the_data(
        self, tmp_path: Path
    ) -> None:
        done = self.run(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("flight_delays\n")
        assert "~ announce: ConnectionError: the warehouse is busy" in done.stdout
        assert "extract_flights" in self.succeeded(done)
        assert "Departure delay by weather" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80

        with (EXAMPLES / "data" / "flights.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        flown = [row for row in rows if "NA" not in (row["tailnum"], row["arr_delay"])]
        out = self.results(tmp_path)
        with closing(sqlite3.connect(out / "delays.sqlite")) as database:
            for name in ("carrier", "hour", "weather"):
                query = f"SELECT sum(flights), sum(flights * mean_delay) FROM delays_by_{name}"
                flights, delay = database.execute(query).fetchone()
                assert flights == len(flown)
                # Each group's mean is rounded to a tenth of a minute.
                assert delay == pytest.approx(
                    sum(int(row["dep_delay"]) for row in flown), abs=0.05 * len(flown)
                )
        with (out / "quarantine.csv").open(newline="", encoding="utf-8") as file:
            rejected = list(csv.DictReader(file))
        assert len(rejected) == len(rows) - len(flown) > 0
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert sum(summary["rejected"].values()) == len(rejected)

    def test_after_a_failed_load_resume_runs_the_load_and_what_follows(
        self, tmp_path: Path
    ) -> None:
        broken = self.run(tmp_path, "--fail-at", "load")
        assert broken.returncode == 1, broken.stdout + broken.stderr
        assert "x load: RuntimeError: broken on purpose" in broken.stdout
        assert "- summarise skipped" in broken.stdout
        assert "by_weather" in self.succeeded(broken)

        mended = self.run(tmp_path, "--resume")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert self.succeeded(mended) == {"load", "summarise"}
        assert (self.results(tmp_path) / "summary.json").exists()

    def test_one_day(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "--day", "2013-02-08")
        assert "  parameters      day=2013-02-08\n" in done.stdout
        with (EXAMPLES / "data" / "flights.csv").open(newline="", encoding="utf-8") as file:
            flown = [
                row
                for row in csv.DictReader(file)
                if row["day"] == "8" and "NA" not in (row["dep_time"], row["arr_delay"])
            ]
        with closing(sqlite3.connect(self.results(tmp_path) / "delays.sqlite")) as database:
            query = "SELECT sum(flights) FROM delays_by_hour"
            assert database.execute(query).fetchone() == (len(flown),)
        wrong = self.run(tmp_path, "--day", "friday")
        assert wrong.returncode == 2
        assert "the parameter 'day' of task 'validate' must be date or None" in wrong.stdout

    @pytest.mark.skipif(os.name == "nt", reason="the hint is for a POSIX shell")
    @pytest.mark.parametrize("out", ["build/flight_delays", "some where"])
    def test_hint_runs_as_it_is_printed(self, tmp_path: Path, out: str) -> None:
        broken = self.run(tmp_path, "--fail-at", "load", "--out", out)
        (hint,) = re.findall(r"^Finish it with: (.*)$", broken.stdout, re.MULTILINE)
        mended = subprocess.run(
            hint,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            encoding="utf-8",
            timeout=100,
            check=False,
        )
        assert mended.returncode == 0, mended.stdout + mended.stderr
        assert self.succeeded(mended) == {"load", "summarise"}

    def test_resume_makes_released_inputs_again(self, tmp_path: Path) -> None:  # S2
        assert self.run(tmp_path, "--fail-at", "by_hour").returncode == 1
        mended = self.run(tmp_path, "--resume")
        assert mended.returncode == 0, mended.stdout + mended.stderr
        again = self.succeeded(mended)
        assert {"extract_flights", "validate", "join", "by_hour", "load"} <= again
        # These have succeeded, and their results were kept.
        assert not again & {"by_carrier", "by_weather", "quarantine", "announce"}

    def test_wrong_uses_are_told(self, tmp_path: Path) -> None:
        unknown = self.run(tmp_path, "--fail-at", "lod")
        assert unknown.returncode == 2
        assert "'lod'" in unknown.stdout
        nothing = self.run(tmp_path, "--resume")
        assert nothing.returncode == 2
        assert "no run to resume" in nothing.stdout
