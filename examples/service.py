"""Start, watch and cancel runs over HTTP, with FastAPI; let them end when the server stops.

    pip install fastapi uvicorn
    .venv/bin/python examples/service.py

    curl -i -X POST localhost:8000/runs -H 'content-type: application/json' -d '{"pages": 20}'
    curl -N localhost:8000/runs/RUN/events     # what happens in it, as it happens
    curl localhost:8000/runs/RUN
    curl -X DELETE localhost:8000/runs/RUN

`POST` answers at once with 202 and the run's id. Ctrl-C (or SIGTERM) stops taking requests, gives
the runs half a minute to end, and cancels those that take longer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse
except ImportError:
    sys.exit("this example needs FastAPI and uvicorn: pip install fastapi uvicorn")

from flowrun import (
    Engine,
    Param,
    RunHandle,
    SqliteStateStore,
    build_default_engine,
    current_attempt,
    fn_hook,
)
from flowrun.errors import ParameterError, UnknownRunError

DRAIN_S = 30.0


def declare(engine: Engine) -> None:
    etl = engine.dag("etl")

    @etl.task
    async def fetch(pages: Param[int] = 5) -> list[int]:
        rows: list[int] = []
        for page in range(pages):
            await asyncio.sleep(0.05)  # in a real job, a request
            rows += [page] * 10
            current_attempt().progress(page + 1, pages, "pages")
        return rows

    @etl.task(deps=[fetch])
    def load(fetch: list[int]) -> str:
        return f"{len(fetch)} rows"


def make_app(db: str) -> FastAPI:
    store = SqliteStateStore(db, recover=True)
    engine = build_default_engine(state_store=store)
    declare(engine)
    # A handle keeps the events of its run, so it goes when that has ended; the report stays.
    handles: dict[str, RunHandle] = {}
    engine.add_hook(fn_hook(on_dag_end=lambda event: handles.pop(event.run_id, None)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.aclose(drain=True, timeout_s=DRAIN_S)
        store.close()

    app = FastAPI(title="flowrun", lifespan=lifespan)

    @app.exception_handler(UnknownRunError)
    def unknown(_: Request, error: UnknownRunError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    @app.exception_handler(ParameterError)
    def wrong(_: Request, error: ParameterError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    # Async, as start() belongs to the event loop.
    @app.post("/runs", status_code=202)
    async def start(params: dict[str, Any], response: Response) -> dict[str, str]:
        handle = engine.start("etl", params=params)
        handles[handle.run_id] = handle
        response.headers["Location"] = f"/runs/{handle.run_id}"
        return {"run_id": handle.run_id}

    # Not async: FastAPI calls it in a thread, so that reading the file does not hold up the loop.
    @app.get("/runs/{run_id}")
    def show(run_id: str) -> dict[str, Any]:
        report = engine.get_run_report(run_id)
        shown = ("status", "progress", "result", "error_message")
        return {
            "status": report["status"],
            "finished_at": report["finished_at"],
            "error": report["error"],
            "tasks": {
                name: {key: value for key, value in task.items() if key in shown}
                for name, task in report["tasks"].items()
            },
        }

    @app.get("/runs/{run_id}/events")
    async def watch(run_id: str) -> StreamingResponse:
        handle = handles.get(run_id)
        if handle is None:
            raise HTTPException(404, "that run is not alive; GET /runs/RUN shows how it ended")

        async def events() -> AsyncIterator[str]:
            async for event in handle.events():
                yield f"event: {type(event).__name__}\ndata: {json.dumps(event._asdict())}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.delete("/runs/{run_id}", status_code=202)
    def cancel(run_id: str) -> None:
        if not engine.cancel(run_id):
            raise HTTPException(409, "that run has ended")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--db", default="service.db")
    arguments = parser.parse_args()
    # Requests that still watch a run are answered until the runs would be cancelled.
    uvicorn.run(make_app(arguments.db), port=arguments.port, timeout_graceful_shutdown=int(DRAIN_S))
