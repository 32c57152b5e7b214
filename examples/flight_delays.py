"""The main example: a week of New York departures, from CSV files to a SQLite table.

    make demo                                                  run the whole pipeline
    .venv/bin/python examples/flight_delays.py --fail-at load  break it on purpose
    make demo-resume                                           finish what the last run left undone
    .venv/bin/python examples/flight_delays.py --day 2013-02-08  one day only

Any Python that can import flowrun will do. Results go to build/flight_delays, or where --out says.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import logging
import shlex
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from flowrun import (
    Engine,
    Param,
    ProgressHook,
    RetryPolicy,
    RunContext,
    SqliteStateStore,
    build_default_engine,
    current_attempt,
    fn_hook,
)
from flowrun.errors import ParameterError

DATA = Path(__file__).parent / "data"
DAG = "flight_delays"
DEFAULT_OUT = Path("build/flight_delays")
Row = dict[str, str]


@dataclass(frozen=True)
class Settings:
    """What the tasks need to know; handed to them as a RunContext."""

    source: Path
    out: Path
    fail_at: str | None = None


Context = RunContext[Settings]


def declare(engine: Engine) -> None:
    """Declare the pipeline's tasks: five extracts, checks, a join, three summaries, a load."""
    dag = engine.dag(DAG)

    # One template for the extracts that are read in worker threads ...
    def read_table(context: Context, *, table: str) -> list[Row]:
        may_fail(context)
        return read_csv(context.source / f"{table}.csv")

    files = dag.task_template(read_table, retain_result=False, timeout_s=60.0)
    for table in ("flights", "weather", "planes"):
        files.bind(f"extract_{table}", table=table)

    # ... and one for the small ones, which are async.
    async def read_small_table(context: Context, *, table: str) -> list[Row]:
        may_fail(context)
        return await asyncio.to_thread(read_csv, context.source / f"{table}.csv")

    small = dag.task_template(read_small_table)
    for table in ("airports", "airlines"):
        small.bind(f"extract_{table}", table=table)

    @dag.task(retain_result=False)
    def validate(
        context: Context, extract_flights: list[Row], day: Param[date | None] = None
    ) -> dict[str, list[Row]]:
        """Split the day's flights into usable ones and rejected ones, with the reason."""
        may_fail(context)
        good: list[Row] = []
        rejected: list[Row] = []
        for row in extract_flights:
            if day is not None and day_of(row) != day:
                continue
            problem = what_is_wrong(row)
            if problem is None:
                good.append(row)
            else:
                rejected.append({**row, "problem": problem})
        return {"good": good, "rejected": rejected}

    @dag.task
    def quarantine(context: Context, validate: dict[str, list[Row]]) -> dict[str, int]:
        """Write the rejected rows to a file of their own, and count them by reason."""
        may_fail(context)
        rejected = validate["rejected"]
        path = context.out / "quarantine.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rejected[0]) if rejected else ["problem"])
            writer.writeheader()
            writer.writerows(rejected)
        return dict(sorted(count(row["problem"] for row in rejected).items()))

    @dag.task(retain_result=False)
    def join(
        context: Context,
        validate: dict[str, list[Row]],
        extract_weather: list[Row],
        extract_planes: list[Row],
        extract_airports: list[Row],
        extract_airlines: list[Row],
    ) -> list[dict[str, Any]]:
        """Give every flight its carrier's name, its destination, its plane and its weather."""
        may_fail(context)
        weather = {(row["origin"], row["time_hour"]): row for row in extract_weather}
        planes = {row["tailnum"]: row for row in extract_planes}
        airports = {row["faa"]: row["name"] for row in extract_airports}
        airlines = {row["carrier"]: row["name"] for row in extract_airlines}
        return [
            {
                "carrier": airlines.get(row["carrier"], row["carrier"]),
                "origin": row["origin"],
                "destination": airports.get(row["dest"], row["dest"]),
                "day": day_of(row).isoformat(),
                "hour": int(row["sched_dep_time"]) // 100,
                "delay": int(row["dep_delay"]),
                "seats": number_or_none(planes.get(row["tailnum"], {}).get("seats")),
                "weather": kind_of_weather(weather.get((row["origin"], row["time_hour"]))),
            }
            for row in validate["good"]
        ]

    @dag.task
    def by_carrier(context: Context, join: list[dict[str, Any]]) -> list[dict[str, Any]]:
        may_fail(context)
        return delays_by(join, "carrier")

    @dag.task
    def by_hour(context: Context, join: list[dict[str, Any]]) -> list[dict[str, Any]]:
        may_fail(context)
        return sorted(delays_by(join, "hour"), key=lambda row: row["hour"])

    @dag.task
    def by_weather(context: Context, join: list[dict[str, Any]]) -> list[dict[str, Any]]:
        may_fail(context)
        return delays_by(join, "weather")

    @dag.task(retries=RetryPolicy(2, delay_s=0.1, retry_on=ConnectionError))
    async def announce(context: Context) -> str:
        """Tell the warehouse that a load is coming; its first answer is always "busy"."""
        may_fail(context)
        await asyncio.sleep(0)
        if current_attempt().attempt == 1:
            msg = "the warehouse is busy, try again"
            raise ConnectionError(msg)
        return "the warehouse is ready"

    @dag.task(deps=[announce])
    def load(
        context: Context,
        by_carrier: list[dict[str, Any]],
        by_hour: list[dict[str, Any]],
        by_weather: list[dict[str, Any]],
    ) -> dict[str, int]:
        """Replace the three summary tables in one transaction, so that a retry repeats nothing."""
        may_fail(context)
        tables = {"carrier": by_carrier, "hour": by_hour, "weather": by_weather}
        with closing(sqlite3.connect(context.out / "delays.sqlite")) as database, database:
            for name, rows in tables.items():
                database.execute(f"DROP TABLE IF EXISTS delays_by_{name}")
                database.execute(
                    f"CREATE TABLE delays_by_{name} ({name}, flights INTEGER,"
                    " mean_delay REAL, late_share REAL)"
                )
                database.executemany(
                    f"INSERT INTO delays_by_{name} VALUES (:{name}, :flights, :mean, :late)",  # noqa: S608
                    rows,
                )
        return {f"delays_by_{name}": len(rows) for name, rows in tables.items()}

    @dag.task
    def summarise(
        context: Context,
        load: dict[str, int],
        quarantine: dict[str, int],
        by_carrier: list[dict[str, Any]],
        by_weather: list[dict[str, Any]],
    ) -> str:
        """Write what a person wants to know to a JSON file; return its path's name."""
        may_fail(context)
        summary = {
            "rows_loaded": load,
            "rejected": quarantine,
            "worst_carrier": by_carrier[0],
            "worst_weather": by_weather[0],
        }
        path: Path = context.out / "summary.json"
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return path.name


# What the tasks are made of: plain functions, which a test can call without any engine.


def may_fail(context: Context) -> None:
    name = current_attempt().task_name
    if context.fail_at == name:
        msg = f"broken on purpose, by --fail-at {name}"
        raise RuntimeError(msg)


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def day_of(row: Row) -> date:
    return date(int(row["year"]), int(row["month"]), int(row["day"]))


def what_is_wrong(row: Row) -> str | None:
    if row["dep_time"] in ("", "NA"):
        return "cancelled: no departure time"
    if row["tailnum"] in ("", "NA"):
        return "no tail number"
    if row["arr_delay"] in ("", "NA"):
        return "diverted: no arrival delay"
    return None


def kind_of_weather(row: Row | None) -> str:
    if row is None:
        return "unknown"
    visibility, rain = float(row["visib"]), float(row["precip"])
    cold = row["temp"] != "NA" and float(row["temp"]) <= 34  # noqa: PLR2004 - near freezing
    if rain > 0 or visibility < 3:  # noqa: PLR2004 - miles
        return "snow or sleet" if cold else "rain or fog"
    if row["wind_speed"] != "NA" and float(row["wind_speed"]) > 20:  # noqa: PLR2004 - miles an hour
        return "strong wind"
    return "fair"


def delays_by(flights: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    groups: dict[Any, list[int]] = defaultdict(list)
    for flight in flights:
        groups[flight[key]].append(flight["delay"])
    rows = [
        {
            key: value,
            "flights": len(delays),
            "mean": round(sum(delays) / len(delays), 1),
            "late": round(sum(delay > 15 for delay in delays) / len(delays), 3),  # noqa: PLR2004
        }
        for value, delays in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def count(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return counts


def number_or_none(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


# The terminal's side.


def show_results(out: Path) -> None:
    with closing(sqlite3.connect(out / "delays.sqlite")) as database:
        for name, title in (
            ("weather", "Departure delay by weather"),
            ("carrier", "Departure delay by carrier"),
            ("hour", "Departure delay by hour of the day"),
        ):
            rows = database.execute(
                f"SELECT {name}, flights, mean_delay, late_share FROM delays_by_{name}"  # noqa: S608
            ).fetchall()
            print(f"\n{title}\n{'':28}{'flights':>8}  {'mean':>9}  over 15 min late")
            for label, flights, mean, late in rows:
                bar = "#" * round(late * 30)
                shown = f"{label:02}:00" if name == "hour" else label
                line = f"  {shown:26}{flights:>8}  {mean:>5.1f} min  {late:>6.1%} {bar}"
                print(line.rstrip())


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A week of New York departures.")
    parser.add_argument("--fail-at", metavar="TASK", help="let this task fail on purpose")
    parser.add_argument("--resume", action="store_true", help="finish what the last run left")
    parser.add_argument("--day", help="only this day, like 2013-02-08; a resume keeps the day")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="results")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=sys.stderr.isatty(),
        help="show what runs while it runs; on a terminal it is the default",
    )
    parser.add_argument("--verbose", action="store_true", help="show flowrun's own log")
    return parser.parse_args()


async def main() -> int:
    arguments = options()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.ERROR)
    told = fn_hook(
        on_task_retry=lambda e: print(f"  ~ {e.task_name}: {e.message}; again in {e.delay_s:g} s"),
        on_task_failure=lambda e: print(f"  x {e.task_name}: {e.message}"),
        on_task_success=lambda e: print(f"  + {e.task_name}  {e.duration_s * 1000:.0f} ms"),
        on_task_skip=lambda e: print(f"  - {e.task_name} skipped"),
    )
    with closing(SqliteStateStore(out / "runs.sqlite", recover=True)) as store:
        hooks = [told, ProgressHook()] if arguments.progress else [told]
        async with build_default_engine(hooks=hooks, state_store=store) as engine:
            declare(engine)
            return await run(engine, out, arguments)


async def run(engine: Engine, out: Path, arguments: argparse.Namespace) -> int:
    fail_at, resume = arguments.fail_at, arguments.resume
    params = None if arguments.day is None else {"day": arguments.day}
    tasks = engine.list_tasks(DAG)
    last = engine.list_runs(DAG, limit=1)
    if fail_at is not None and fail_at not in tasks:
        print(f"there is no task {fail_at!r}; there are {', '.join(tasks)}")
        return 2
    if resume and not last:
        print("there is no run to resume yet")
        return 2

    print(engine.display_dag(DAG))
    print("\nRunning")
    context = RunContext(Settings(DATA, out, fail_at))
    try:
        if resume:
            run_id = await engine.resume(last[0].run_id, context=context, params=params)
        else:
            run_id = await engine.run_once(DAG, context, params=params)
    except ParameterError as error:
        print(error)
        return 2

    succeeded = engine.get_run_report(run_id, results=False)["status"] == "SUCCESS"
    if succeeded:
        show_results(out)
    print(f"\n{engine.report_text(run_id)}\n")
    if not succeeded:
        print(f"Finish it with: {command('--resume', out)}")
        return 1
    print(f"Written to {out}:\n  summary.json, quarantine.csv, delays.sqlite, runs.sqlite")
    return 0


def command(option: str, out: Path) -> str:
    """Return a command line that starts this program again, as it was started."""
    here = Path.cwd()
    words = [
        str(path.relative_to(here) if path.is_relative_to(here) else path)
        for path in (Path(sys.executable), Path(__file__).absolute())
    ]
    elsewhere = [] if out == DEFAULT_OUT else ["--out", str(out)]
    return shlex.join([*words, option, *elsewhere])


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
