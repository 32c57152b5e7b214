"""Ingest an API page by page, from a server that limits, fails and is slow.

The pages are known only at run time, so ``fetch`` is mapped over them. It keeps to the server's
rate, waits as long as the server says when it has exceeded that, and retries what fails. Killed in
the middle, ``--resume`` fetches the pages that are missing, and no other.

    python examples/api_ingest.py              # against a server of its own
    python examples/api_ingest.py --host 127.0.0.1:8000 --db runs.db
    python examples/api_ingest.py --host 127.0.0.1:8000 --db runs.db --resume
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from flowrun import (
    Limit,
    Rate,
    RetryAfter,
    RetryPolicy,
    RunContext,
    RunReport,
    SqliteStateStore,
    TaskRegistry,
    build_default_engine,
)

LIMITS = {"api": Limit(8, rate=Rate(400, per_s=1.0))}

registry = TaskRegistry()
etl = {"dag": "ingest", "retries": RetryPolicy(6, delay_s=0.01)}


def ask(context: RunContext[str], path: str, method: str = "GET") -> object:
    """Return what the server answers; a 429 is retried when the server says so."""
    with closing(HTTPConnection(context.deps, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            wait_s = float(answer.headers["Retry-After"])
            raise RetryAfter(wait_s, "429 from the API", pause=["api"])
        if answer.status != HTTPStatus.OK:
            msg = f"{method} {path}: {answer.status} {answer.reason}"
            raise OSError(msg)
        return json.loads(body)


@registry.task(**etl)
def session(context: RunContext[str]) -> str:
    """Open a session."""
    return str(ask(context, "/session", "POST"))


@registry.task(**etl, teardown_of=["session"])
def close_session(context: RunContext[str], session: str) -> None:
    """Close the session, whatever has become of the pages."""
    ask(context, f"/session/{session}", "DELETE")


@registry.task(**etl)
def pages(context: RunContext[str], session: str) -> list[int]:
    """Return the numbers of the pages, which only the server knows."""
    return cast("list[int]", ask(context, f"/{session}/pages"))


@registry.task(**etl, map_over="pages", uses=["api"])
def fetch(context: RunContext[str], pages: int) -> dict[str, int]:
    """Fetch one page."""
    return cast("dict[str, int]", ask(context, f"/pages/{pages}"))


@registry.task(**etl)
def total(fetch: list[dict[str, int]]) -> int:
    """Add up what the pages say."""
    return sum(page["value"] for page in fetch)


class Api(ThreadingHTTPServer):
    """A server of pages with a log of its own.

    Attributes:
        served: How often each page was sent.
        sessions: Sessions that are open.
        answers: How often it gave which status.
    """

    def __init__(self, pages: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages = pages
        self.served: Counter[int] = Counter()
        self.sessions: set[str] = set()
        self.answers: Counter[int] = Counter()
        self.lock = threading.Condition()
        self.count = itertools.count(1)

    @property
    def host(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        with self.server.lock:
            self.server.answers[status] += 1

    def do_POST(self) -> None:
        with self.server.lock:
            name = f"s{len(self.server.sessions)}"
            self.server.sessions.add(name)
        self.answer(200, name)

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.server.sessions.discard(self.path.rpartition("/")[2])
        self.answer(200)

    def do_GET(self) -> None:
        server, name = self.server, self.path.rpartition("/")[2]
        if name == "pages":
            self.answer(200, list(range(server.pages)))
            return
        number = next(server.count)
        threading.Event().wait(0.005)  # it is slow
        if number % 23 == 0:
            self.answer(429, Retry_After="0.05")
        elif number % 17 == 0:
            self.answer(503)
        else:
            with server.lock:
                server.served[int(name)] += 1
                server.lock.notify_all()
            self.answer(200, {"page": int(name), "value": int(name) * 2})

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def serving(pages: int) -> Iterator[Api]:
    """Run a server in threads of this process."""
    with Api(pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


async def ingest(host: str, db: Path, *, resume: bool) -> RunReport:
    """Run the DAG, or go on with its last run."""
    with closing(SqliteStateStore(db)) as store:
        about: Any = {"registry": registry, "state_store": store, "limits": LIMITS}
        async with build_default_engine(**about) as engine:
            context = RunContext(host)
            if resume:
                last = engine.list_runs("ingest", limit=1)[0].run_id
                run_id = await engine.resume(last, context=context)
            else:
                run_id = await engine.run_once("ingest", context=context)
            return engine.get_run_report(run_id)


def main() -> None:
    """Read the command line and ingest."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", help="the server; by default one of its own")
    parser.add_argument("--db", type=Path, default=Path("ingest.db"), help="where runs are kept")
    parser.add_argument("--resume", action="store_true", help="go on with the last run")
    arguments = parser.parse_args()
    if arguments.host is None:
        with serving(200) as server:
            report = asyncio.run(ingest(server.host, arguments.db, resume=arguments.resume))
            print(f"{server.answers[429]} times too fast, {server.answers[503]} times unavailable")
    else:
        report = asyncio.run(ingest(arguments.host, arguments.db, resume=arguments.resume))
    counts = report["tasks"]["fetch"]["item_counts"]
    print(report["status"], counts, report["tasks"]["total"]["result"])


if __name__ == "__main__":
    main()
