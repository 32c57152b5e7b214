"""The example of a web service, on a real server."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowrun import SqliteStateStore

from .conftest import WAIT_S
from .extras import need

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "service.py"


class Server:
    """The example, in a process of its own on a free port."""

    def __init__(self, folder: Path) -> None:
        self.db = folder / "service.db"
        self.process = subprocess.Popen(
            [sys.executable, "-X", "utf8", EXAMPLE, "--port", "0", "--db", self.db],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self.process.stderr is not None
        self.pipe = self.process.stderr
        self.log: list[str] = []
        for line in self.pipe:
            self.log.append(line)
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
                break
        else:
            pytest.fail("".join(self.log))
        # Read to the end, so that the server never waits for a full pipe.
        self.reader = threading.Thread(target=self.log.extend, args=(self.pipe,))
        self.reader.start()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        with closing(self.connect()) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def start(self, **params: object) -> str:
        status, answer = self.ask("POST", "/runs", params)
        assert status == 202
        run_id: str = answer["run_id"]
        return run_id

    def events(self, run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events of a run as the server sends them, to the last."""
        with closing(self.connect()) as connection:
            connection.request("GET", f"/runs/{run_id}/events")
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Content-Type")) == (
                200,
                "text/event-stream; charset=utf-8",
            )
            while line := answer.readline().decode():
                name, data = line.strip(), answer.readline().decode()
                answer.readline()
                yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def end(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        self.reader.join(WAIT_S)
        self.pipe.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    need("fastapi", "uvicorn")
    started = Server(tmp_path)
    yield started
    started.end()


def test_a_run_is_started_watched_and_shown(server: Server) -> None:
    with closing(server.connect()) as connection:
        connection.request("POST", "/runs", "{}", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        run_id = json.loads(answer.read())["run_id"]
        assert (answer.status, answer.getheader("Location")) == (202, f"/runs/{run_id}")
    events = server.events(run_id)
    seen = [next(events)]
    assert server.ask("GET", f"/runs/{run_id}")[1]["status"] == "RUNNING"
    seen += events
    names = [name for name, _ in seen]
    assert (names[0], names[-1]) == ("DagStartEvent", "DagEndEvent")
    told = [event for name, event in seen if name == "TaskProgressEvent"]
    assert {(event["task_name"], event["total"], event["unit"]) for event in told} == {
        ("fetch", 5, "pages")
    }
    status, shown = server.ask("GET", f"/runs/{run_id}")
    assert (status, shown["status"], shown["error"]) == (200, "SUCCESS", None)
    assert shown["tasks"]["fetch"]["progress"] == {"done": 5, "total": 5, "unit": "pages"}
    assert shown["tasks"]["load"]["result"] == "50 rows"
    assert server.ask("GET", f"/runs/{run_id}/events")[0] == 404
    assert server.ask("DELETE", f"/runs/{run_id}") == (409, {"detail": "that run has ended"})


def test_a_run_is_cancelled_while_it_is_watched(server: Server) -> None:
    run_id = server.start(pages=10_000)
    is_cancelled = False
    for name, event in server.events(run_id):
        if name == "TaskProgressEvent" and not is_cancelled:
            shown = server.ask("GET", f"/runs/{run_id}")[1]
            assert shown["tasks"]["fetch"]["progress"]["done"] >= event["done"] > 0
            assert shown["finished_at"] is None
            is_cancelled = server.ask("DELETE", f"/runs/{run_id}")[0] == 202
    assert is_cancelled
    shown = server.ask("GET", f"/runs/{run_id}")[1]
    assert {name: task["status"] for name, task in shown["tasks"].items()} == {
        "fetch": "FAILED",
        "load": "SKIPPED",
    }
    assert shown["error"] == "RUN_CANCELLED: engine.cancel() was called"
    assert shown["finished_at"] > 0


def test_wrong_requests_are_told(server: Server) -> None:
    status, answer = server.ask("POST", "/runs", {"pages": "many"})
    assert status == 422
    assert "the parameter 'pages' of task 'fetch' must be int" in answer["detail"]
    status, answer = server.ask("POST", "/runs", {"page": 1})
    assert status == 422
    assert "Did you mean 'pages'?" in answer["detail"]
    for method in ("GET", "DELETE"):
        status, answer = server.ask(method, "/runs/none")
        assert (status, "no run 'none'" in answer["detail"]) == (404, True)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM there")
def test_a_server_that_is_told_to_stop_lets_its_runs_end(server: Server) -> None:
    watched, unseen = server.start(pages=30), server.start(pages=40)
    events = server.events(watched)
    while next(events)[0] != "TaskProgressEvent":
        pass
    server.process.send_signal(signal.SIGTERM)
    assert [name for name, _ in events][-1] == "DagEndEvent"
    assert server.process.wait(WAIT_S) in (0, -signal.SIGTERM)  # as the version of uvicorn has it
    server.reader.join(WAIT_S)
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/runs/none")
    assert "Application shutdown complete" in "".join(server.log)
    assert "Traceback" not in "".join(server.log)
    with closing(SqliteStateStore.open_readonly(server.db)) as store:
        for run_id in (watched, unseen):
            run = store.load_run(run_id, results=False)
            assert (run.status, run.error) == ("SUCCESS", None)
