"""Run reports made by hand: every shape that a page, a table or a tree must show well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flowrun.report import (
    AttemptReport,
    ItemReport,
    LogLineReport,
    ProgressReport,
    RunReport,
    TaskReport,
)

START = 1_760_000_000.0
TRACEBACK = """Traceback (most recent call last):
  File "/srv/etl/jobs/orders.py", line 88, in convert_currency
    rows = enrich(rows, rates)
           ^^^^^^^^^^^^^^^^^^^
  File "/srv/etl/jobs/orders.py", line 41, in enrich
    return [row | {"eur": row["amount"] * rates[row["currency"]]} for row in rows]
                                          ~~~~~^^^^^^^^^^^^^^^^^
KeyError: 'CHF'"""
NO_ANSWER = """Traceback (most recent call last):
  File "/srv/etl/jobs/rates.py", line 17, in fetch_rates
    response = session.get(url, timeout=5)
TimeoutError: no answer from rates.example within 5 s"""
LOGS = (
    (12.9, "INFO", "18,000 orders converted"),
    (13.25, "WARNING", "no rate for CHF on 2025-10-09\nlooked in: ecb, fallback"),
)
UPSTREAM = "upstream task 'convert_currency' failed"


def attempt(
    number: int,
    ready: float | None,
    started: float | None,
    finished: float | None,
    error: str | None = None,
    reason: str | None = "ERROR",
    *,
    abandoned: bool = False,
    logs: Sequence[tuple[float, str, str]] = (),
    logs_cut: int = 0,
) -> AttemptReport:
    """Make one attempt; times are seconds after START, those of log lines too."""
    lines: list[LogLineReport] = [
        {"time": START + at, "level": level, "logger": "jobs.orders", "text": text}
        for at, level, text in logs
    ]
    return {
        "attempt": number,
        "status": "SUCCESS" if error is None else "OMITTED" if reason == "SKIP_TASK" else "FAILED",
        "ready_at": _moment(ready),
        "started_at": _moment(started),
        "finished_at": _moment(finished),
        "error": error,
        "reason": None if error is None else reason,
        "abandoned": abandoned,
        "slot_wait_s": None,
        "limit_waits": {},
        "progress": None,
        "logs": lines,
        "logs_cut": logs_cut,
    }


def progress(done: float, total: float | None, unit: str) -> ProgressReport:
    """Make what an attempt says of its progress."""
    return {"done": done, "total": total, "unit": unit}


def task(deps: Sequence[str] = (), *attempts: AttemptReport, **fields: Any) -> TaskReport:
    """Make a task as its attempts say, SKIPPED without any; ``fields`` say otherwise."""
    last = attempts[-1] if attempts else None
    status = "SKIPPED" if last is None else "SUCCESS" if last["error"] is None else "FAILED"
    made: TaskReport = {
        "status": status,
        "attempt": 0 if last is None else last["attempt"],
        "started_at": None if last is None else last["started_at"],
        "finished_at": START if last is None else last["finished_at"],
        "error": None if last is None else last["error"],
        "result": None,
        "result_state": "kept" if status == "SUCCESS" else "absent",
        "reason": None if last is None else last["reason"],
        "ready_at": None if last is None else last["ready_at"],
        "abandoned": last is not None and last["abandoned"],
        "deps": list(deps),
        "attempts": list(attempts),
        "overridden": None,
        "cached_from": None,
        "items": None,
        "item_counts": None,
        "slot_wait_s": None,
        "limit_waits": {},
        "encoded_at": None,
        "saving_s": None,
        "why_run": None,
        "kept": False,
        "teardown_of": [],
        "progress": None,
    }
    made.update(fields)  # type: ignore[typeddict-item]
    return made


def item(number: int, *attempts: AttemptReport, **fields: Any) -> ItemReport:
    """Make an item of a mapped task."""
    made: Any = task((), *attempts, **fields)
    for key in ("deps", "overridden", "items", "item_counts"):
        del made[key]
    return {"item": number, **made}


def mapped(deps: Sequence[str], items: Sequence[ItemReport], **fields: Any) -> TaskReport:
    """Make a mapped task of its items; ``fields`` say how it stands."""
    starts = [each["started_at"] for each in items if each["started_at"] is not None]
    ends = [each["finished_at"] for each in items if each["finished_at"] is not None]
    about: dict[str, Any] = {
        "status": "SUCCESS",
        "attempt": max((each["attempt"] for each in items), default=0),
        "ready_at": START,
        "started_at": min(starts, default=START),
        "finished_at": max(ends, default=START),
        "items": list(items),
        "item_counts": dict(Counter(each["status"] for each in items)),
    }
    return task(deps, **{**about, **fields})


def pages(count: int = 200) -> RunReport:
    """Return a run in which one of many items has failed, and one was retried."""
    items = [item(n, attempt(1, 1, 1 + n / 100, 2 + n / 100)) for n in range(count)]
    again = attempt(1, 1, 1, 2, NO_ANSWER, "TIMEOUT")
    items[0] = item(0, again, attempt(2, 2, 2, 3))
    items[1] = item(1, attempt(1, 1, 2, 3, TRACEBACK, logs=[(2.5, "WARNING", "page 1 is empty")]))
    failed = {"status": "FAILED", "error": TRACEBACK, "reason": "ERROR"}
    tasks = {
        "pages": task((), attempt(1, 0, 0, 1)),
        "fetch": mapped(["pages"], items, **failed),
        "load": skipped(["fetch"]),
    }
    return run("crawl", tasks, 10.0)


def skipped(
    deps: Sequence[str], error: str = UPSTREAM, reason: str = "UPSTREAM_FAILED"
) -> TaskReport:
    """Make a task that was not started."""
    return task(deps, error=error, reason=reason)


def pending(deps: Sequence[str]) -> TaskReport:
    """Make a task that waits for others."""
    return task(deps, status="PENDING", finished_at=None)


def run(
    name: str, tasks: dict[str, TaskReport], finished: float | None, **fields: Any
) -> RunReport:
    """Make a run as its tasks say; ``fields`` say otherwise."""
    statuses = {each["status"] for each in tasks.values()}
    made: RunReport = {
        "run_id": "01K7-4f2c9a1e",
        "dag_name": name,
        "created_at": START,
        "finished_at": _moment(finished),
        "status": (
            "FAILED"
            if statuses & {"FAILED", "SKIPPED"}
            else "SUCCESS"
            if statuses <= {"SUCCESS"}
            else "RUNNING"
        ),
        "tasks": tasks,
        "error": None,
        "metadata": {},
        "resumed_from": None,
        "targets": None,
        "started_by": None,
        "params": {},
        "alive": finished is None,
        "max_parallel": None,
        "versions": {},
    }
    made.update(fields)  # type: ignore[typeddict-item]
    return made


def failure() -> RunReport:
    """Make the run that failed at its third try, after another task's retries had helped."""
    orders = [{"id": 1, "amount": 10, "currency": "EUR"}, {"id": 2, "currency": "CHF"}]
    tasks = {
        "extract_orders": task([], attempt(1, 0, 0.02, 2.9), result=orders),
        "extract_customers": task([], attempt(1, 0, 0.03, 1.4), result={"rows": 10_412}),
        "fetch_rates": task(
            [],
            attempt(1, 0, 0.03, 1.2, NO_ANSWER),
            attempt(2, 1.7, 1.75, 3.1, NO_ANSWER),
            attempt(3, 4.1, 4.6, 5.2),
            result={"USD": 0.92, "GBP": 1.17},
        ),
        "extract_inventory": task([], attempt(1, 0, 1.42, 4.4), result_state="released"),
        "clean_orders": task(
            ["extract_orders"], attempt(1, 2.9, 2.95, 4.2), result_state="released"
        ),
        "clean_customers": task(
            ["extract_customers"], attempt(1, 1.4, 3.1, 4.6), result_state="stored"
        ),
        "convert_currency": task(
            ["clean_orders", "fetch_rates"],
            attempt(1, 5.2, 5.25, 7.0, TRACEBACK),
            attempt(2, 8.0, 8.1, 9.7, TRACEBACK, logs=[(8.2, "INFO", "converts 41,200 orders")]),
            attempt(3, 11.7, 11.8, 13.3, TRACEBACK, logs=LOGS, logs_cut=1_204),
        ),
        "stock_levels": task(
            ["extract_inventory", "clean_orders"], attempt(1, 4.4, 4.5, 8.8), result="812 rows"
        ),
        "customer_segments": task(
            ["clean_customers", "clean_orders"], attempt(1, 4.6, 5.3, 9.9), result=["new", "loyal"]
        ),
        "revenue_by_day": skipped(["convert_currency"]),
        "revenue_by_segment": skipped(["convert_currency", "customer_segments"]),
        "reorder_report": task(["stock_levels"], attempt(1, 8.8, 8.9, 12.4)),
        "publish_dashboard": skipped(["revenue_by_day", "revenue_by_segment", "reorder_report"]),
        "notify_team": skipped(["publish_dashboard"]),
    }
    metadata = {"trigger": "cron", "git": "4be21c0", "day": "2025-10-09"}
    return run("daily_etl", tasks, 13.31, metadata=metadata, resumed_from="01K6-77aa0c52")


def success() -> RunReport:
    """Make the same run on a good night."""
    made = failure()
    made["tasks"] |= {
        "convert_currency": task(["clean_orders", "fetch_rates"], attempt(1, 5.2, 5.25, 8.0)),
        "revenue_by_day": task(["convert_currency"], attempt(1, 8, 8.1, 10)),
        "revenue_by_segment": task(
            ["convert_currency", "customer_segments"], attempt(1, 9.9, 10, 12.2)
        ),
        "publish_dashboard": task(
            ["revenue_by_day", "revenue_by_segment", "reorder_report"],
            attempt(1, 12.4, 12.5, 14),
            result="https://dashboard.example/daily",
        ),
        "notify_team": task(["publish_dashboard"], attempt(1, 14, 14, 14.2)),
    }
    made.update(status="SUCCESS", finished_at=START + 14.22, resumed_from=None)
    return made


def cancelled() -> RunReport:
    """Make a run of a part of the DAG that somebody stopped."""
    made, why = failure(), "the run was cancelled before the task started"
    for name in list(made["tasks"])[6:]:
        deps = made["tasks"][name]["deps"]
        made["tasks"][name] = skipped(deps, why, "RUN_CANCELLED")
    for name in ("convert_currency", "stock_levels"):
        stopped = attempt(
            1, 4.9, 5, 6.5, "the run was cancelled: SIGINT", "RUN_CANCELLED", abandoned=True
        )
        made["tasks"][name] = task(made["tasks"][name]["deps"], stopped)
    made.update(
        finished_at=START + 6.6,
        error="RUN_CANCELLED: SIGINT",
        resumed_from=None,
        targets=["publish_dashboard"],
    )
    return made


def running() -> RunReport:
    """Make a run that goes on: one task is at its second attempt."""
    made = failure()
    for name in list(made["tasks"])[6:]:
        made["tasks"][name] = pending(made["tasks"][name]["deps"])
    made["tasks"]["convert_currency"] = task(
        ["clean_orders", "fetch_rates"],
        attempt(1, 5.2, 5.25, 7.0, TRACEBACK),
        status="RUNNING",
        attempt=2,
        ready_at=START + 8,
        started_at=START + 8.1,
        finished_at=None,
        error=None,
        reason=None,
        progress=progress(18_540, 41_200, "orders"),
    )
    made.update(status="RUNNING", finished_at=None, alive=True)
    return made


def resumed() -> RunReport:
    """Make a run that kept what an earlier one had done."""
    tasks = {
        "extract": task([], attempt(1, -90, -89, -80), result=[1, 2], kept=True),
        "load": task(["extract"], attempt(1, 0, 0.1, 2.5)),
    }
    return run("daily_etl", tasks, 2.6, resumed_from="01K6-77aa0c52")


def omitted() -> RunReport:
    """Make a run in which a task chose not to do anything, and others were not needed."""
    tasks = {
        "look": task([], attempt(1, 0, 0.1, 1)),
        "fetch": task(
            ["look"],
            attempt(1, 1, 1.1, 1.5, "SKIP_TASK: nothing new", "SKIP_TASK"),
            status="OMITTED",
        ),
        "load": task(
            ["fetch"],
            status="OMITTED",
            error="UPSTREAM_OMITTED: the task 'fetch' upstream of it was omitted",
            reason="UPSTREAM_OMITTED",
        ),
        "tell": task(["look"], attempt(1, 1, 1.2, 3)),
    }
    return run("daily_etl", tasks, 3.1, status="SUCCESS")


def single() -> RunReport:
    """Make a run of one task."""
    return run("hello", {"greet": task([], attempt(1, 0, 0.001, 0.004), result="hello")}, 0.005)


def big(size: int = 5_000) -> RunReport:
    """Make a run of layers of a hundred tasks, two of which failed and held many back."""
    chance = random.Random(4)
    tasks: dict[str, TaskReport] = {}
    names: list[str] = []
    ends: dict[str, float] = {}
    bad: set[str] = set()
    for place in range(size):
        layer, column = divmod(place, 100)
        name = f"{chance.choice(['load', 'extract', 'clean', 'join'])}_{layer:02d}_{column:02d}"
        near = [min(99, max(0, column + chance.randint(-4, 4))) for _ in range(2)]
        deps = sorted({names[(layer - 1) * 100 + other] for other in near}) if layer else []
        ready = max((ends[parent] for parent in deps), default=0.0)
        started = ready + chance.random() * 0.4
        ends[name] = started + chance.random() * 3
        if not bad.isdisjoint(deps):
            bad.add(name)
            ends[name] = ready
            tasks[name] = skipped(deps, f"upstream task {deps[0]!r} failed")
        elif place in {2210, 2580}:
            bad.add(name)
            tasks[name] = task(deps, attempt(1, ready, started, ends[name], TRACEBACK))
        else:
            done = attempt(1, ready, started, ends[name])
            tasks[name] = task(deps, done, result={"rows": chance.randint(1, 10**6)})
        names.append(name)
    return run("warehouse_nightly", tasks, max(ends.values()) + 0.2, metadata={"trigger": "cron"})


def fan(size: int = 200, **of_pages: TaskReport) -> RunReport:
    """Make a run that lists pages, gets and cleans each, and joins them."""
    done = attempt(1, 1, 1, 2)
    tasks = {"list": task([], attempt(1, 0, 0, 1))}
    for page in range(size):
        tasks[f"page_{page}"] = of_pages.get(f"page_{page}") or task(["list"], done)
    for page in range(size):
        tasks[f"clean_{page}"] = task([f"page_{page}"], attempt(1, 2, 2, 3))
    tasks["join"] = task([f"clean_{page}" for page in range(size)], attempt(1, 3, 3, 4))
    return run("fan", tasks, 4)


def failed_fan() -> RunReport:
    """Make such a run in which one page took three attempts, and another one failed."""
    again = [
        attempt(number, 1, 1.1, 1.4, NO_ANSWER if number < 3 else None) for number in (1, 2, 3)
    ]
    failed = task(["list"], attempt(1, 1, 1, 2, TRACEBACK))
    return fan(200, page_7=task(["list"], *again), page_9=failed)


HOSTILE_NAMES = (
    "<script>hacked=1</script>",
    "\"quoted\" 'name' & more",
    "\u202egnp.exe\u202c",
    "עברית ראשונה",
    "🧪👩‍🔬 emoji",
    "`${hacked}` #quot; \\N &lt;br&gt;",
    "a" * 200,
    "名前が長い仕事の名前です",
    "</script><img src=x onerror=hacked=2>",
    "__proto__",
    "constructor",
    "]]> --> ; } %% end",
    "toString",
)
HOSTILE_ERROR = (
    'Traceback (most recent call last):\n  File "x", line 1\n'
    "ValueError: <script>hacked=3</script> \x1b[31mred\x1b[0m \x07 \u202eflip \ud800 "
    + "x"
    * 10_000
)
HOSTILE_RESULT = "<img src=x onerror=hacked=4> \x1b]0;title\x07 \u2066 \udfff"


def hostile() -> RunReport:
    """Make a run whose every text was chosen by an attacker."""
    tasks: dict[str, TaskReport] = {}
    for place, name in enumerate(HOSTILE_NAMES):
        deps = [HOSTILE_NAMES[place - 1]] if place else []
        if place % 3 == 2:
            logs = [(place + 0.5, "<b>LEVEL</b>", HOSTILE_RESULT)]
            failed = attempt(1, place, place + 0.2, place + 1, HOSTILE_ERROR, logs=logs)
            tasks[name] = task(deps, failed, progress=progress(1, None, "<s onclick=hacked=7>\x1b"))
        else:
            done = attempt(1, place, place + 0.1, place + 0.9)
            tasks[name] = task(deps, done, result=HOSTILE_RESULT)
    return run(
        '<b onload="hacked=5">\u202edag</b> 🚀',
        tasks,
        14,
        run_id="<i>\x1b[2J",
        error="\x1b[2J<u>ended</u>\u202e",
        resumed_from="<s>old</s>",
        targets=["<q>target</q>"],
        metadata={"<k>": "</script><script>hacked=6</script>", "n": {"a": [1, "\x1b"]}},
    )


def deps_of(report: RunReport) -> dict[str, list[str]]:
    """Return the graph of a report."""
    return {name: each["deps"] for name, each in report["tasks"].items()}


def chain(size: int) -> dict[str, Sequence[str]]:
    """Return a graph in which each task needs the one before."""
    return {f"t{place}": [f"t{place - 1}"] if place else [] for place in range(size)}


def _moment(offset: float | None) -> float | None:
    return None if offset is None else START + offset
