"""A run report -> one HTML page that needs nothing beside it.

What a task could have chosen reaches the page as escaped text or as inert JSON, which the
script puts on screen by ``textContent`` only. The page's Content-Security-Policy allows the
style sheet and the script by their hashes, and nothing else: no request can leave it.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING

from flowrun.escape import for_html
from flowrun.failure import own_line
from flowrun.render.explanation import critical_path, why_slow
from flowrun.render.inside import at_progress
from flowrun.render.page import as_json, page_data, preview
from flowrun.render.source_places import place_of
from flowrun.render.svg import draw, graph_css, symbols
from flowrun.render.wording import (
    SIGNS,
    attempts_of,
    counted,
    counted_retries,
    duration_of,
    duration_text,
    failure_notes,
    given_facts,
    kept_text,
    outcome,
    retries,
    status_counts,
    status_of,
    time_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flowrun.render.svg import Picture
    from flowrun.report import RunReport, TaskReport, TaskStatusName

_MOST_FAILURES = 20
_MOST_TRACEBACK = 8_000
_MOST_LINE = 600
_MOST_FACT = 300
_MOST_SCROLLED = 400
_FEW_ROWS = 18


def report_html(
    report: RunReport,
    *,
    result_preview: Callable[[object], str] | None = preview,
    stored: Mapping[str, str] | None = None,
    usual: float | None = None,
) -> str:
    """Return the report as a page: outcome, failures, graph, timeline and every task.

    Args:
        report: The run.
        result_preview: Makes the text that is shown of a kept result; its outcome is escaped
            and cut. ``None`` shows no result.
        stored: What is shown of results that the report leaves in the store, by task; see
            :func:`flowrun.render.stored_previews`.
        usual: What the DAG's runs usually take, in seconds.
    """
    critical = critical_path(report)
    deps = {name: task["deps"] for name, task in report["tasks"].items()}
    picture = draw(report["dag_name"], deps, report, critical=critical)
    data = page_data(
        report, critical=critical, picture=picture, result_preview=result_preview, stored=stored
    )
    body = (
        _header(report, usual),
        _failures(report),
        _graph(picture) if deps else "",
        _timeline(report, critical),
        _tasks(report),
    )
    return document(
        f"{for_html(report['dag_name'])} · {outcome(report)}",
        "\n".join(body),
        '<aside id="detail" class="detail" aria-label="Task" tabindex="-1" hidden></aside>\n'
        f'<script type="application/json" id="data">{as_json(data)}</script>\n',
        script=_resource("report.js"),
    )


def document(title: str, body: str, data: str = "", script: str = "") -> str:
    """Return a whole page that cannot send requests.

    Args:
        title: Escaped text.
        body: What stands in its main part.
        data: What stands behind it.
        script: Its script.
    """
    style = graph_css() + _resource("report.css")
    scripts = f" script-src {_hash(script)};" if script else ""
    policy = (
        f"default-src 'none'; style-src {_hash(style)};{scripts}"
        " base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en" class="flowrun"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style></head>\n<body>\n"
        f'<svg class="defs" aria-hidden="true"><defs>{symbols()}</defs></svg>\n'
        f"<main>\n{body}\n</main>\n{data}"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body></html>\n"
    )


def _resource(name: str) -> str:
    return files("flowrun.render").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def sign_html(status: TaskStatusName) -> str:
    """Return the sign of a status, which the page has among its symbols."""
    return f'<svg class="sign" aria-hidden="true"><use href="#flowrun-{status}"/></svg>'


def _header(report: RunReport, usual: float | None) -> str:
    status = status_of(report)
    counts = status_counts(report)
    chips = "".join(
        f'<li class="chip {status}">{sign_html(status)}<b>{count:,}</b> {SIGNS[status].word}</li>'
        for status, count in counts.items()
    )
    again = retries(report)
    for more in (kept_text(report), counted_retries(again) if again else ""):
        chips += f'<li class="chip extra">{more}</li>' if more else ""
    error = "" if report["error"] is None else f'<p class="callout">{_short(report["error"])}</p>'
    return (
        f'<header class="top {status}"><div class="headline"><div>'
        f'<p class="kicker">Run of a DAG</p><h1>{_short(report["dag_name"])}</h1></div>'
        f'<div class="verdict">{sign_html(status)}<div><p class="word">{outcome(report)}</p>'
        f'<p class="took">{duration_of(report, usual)}</p></div></div>'
        f'</div>{_why_slow(report)}{_bar(counts)}<ul class="chips">{chips}</ul>{error}'
        f'<dl class="facts">{_facts(report)}</dl></header>'
    )


def _why_slow(report: RunReport) -> str:
    """Return what the run's time went to in one line, in which each task leads to its details."""
    number = {name: place for place, name in enumerate(report["tasks"])}
    line = "".join(
        for_html(text)
        if name is None
        else f'<button type="button" data-open="{number[name]}">{_short(name)}</button>'
        for name, text in why_slow(report)
    )
    return f'<p class="slow">{line}</p>' if line else ""


def _bar(counts: Mapping[TaskStatusName, int]) -> str:
    """Return the share of each status as one bar; it repeats the chips, so it is not read."""
    left, parts = 0.0, ""
    # Of thousands, one that failed would be too thin to see.
    shown = {status: max(count, sum(counts.values()) / 100) for status, count in counts.items()}
    for status, count in shown.items():
        share = 100 * count / sum(shown.values())
        parts += f'<rect class="{status}" x="{left:.2f}%" width="{share:.2f}%" height="6"/>'
        left += share
    return f'<svg class="bar" aria-hidden="true">{parts}</svg>'


def _facts(report: RunReport) -> str:
    rows = [
        ("Run", f"<code>{_short(report['run_id'])}</code>"),
        ("Started", time_html(report["created_at"])),
    ]
    if report["finished_at"] is not None:
        rows.append(("Finished", time_html(report["finished_at"])))
    if report["resumed_from"] is not None:
        rows.append(("Resumed from", f"<code>{_short(report['resumed_from'])}</code>"))
    if report["targets"] is not None:
        rows.append(("Targets", _short(", ".join(report["targets"]))))
    for name, text in given_facts(report):
        rows.append((name if "_" in name else name.capitalize(), _short(text)))
    for key, value in report["metadata"].items():
        rows.append((_short(key), _short(value if isinstance(value, str) else repr(value))))
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)


def time_html(moment: float) -> str:
    """Return a point in time in UTC; the page's script puts the reader's own time beside it."""
    iso = datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    return f'<time datetime="{iso}">{time_text(moment)}</time>'


def _short(text: str) -> str:
    return for_html(text if len(text) <= _MOST_FACT else f"{text[:_MOST_FACT]}…")


def _section(name: str, title: str, body: str, beside: str = "") -> str:
    """Return a part of the page, with what stands beside its heading."""
    return (
        f'<section id="{name}" aria-labelledby="h-{name}"><div class="heading">'
        f'<h2 id="h-{name}">{title}</h2>{beside}</div>{body}</section>'
    )


def _toggle(place: str, kind: str, text: str) -> str:
    status = f" {kind}" if kind in SIGNS else ""
    return (
        f'<button type="button" class="chip{status}" data-{place}="{kind}" aria-pressed="false">'
        f"{text}</button>"
    )


def _failures(report: RunReport) -> str:
    numbered = enumerate(report["tasks"].items())
    failed = [(place, *item) for place, item in numbered if item[1]["status"] == "FAILED"]
    if not failed:
        return ""
    cards = "".join(
        _failure(report, place, name, task) for place, name, task in failed[:_MOST_FAILURES]
    )
    more = len(failed) - _MOST_FAILURES
    if more > 0:
        cards += f'<p class="more">{counted(more, "more failure")} in the table below.</p>'
    return _section("failures", counted(len(failed), "failure"), cards)


def _failure(report: RunReport, place: int, name: str, task: TaskReport) -> str:
    error = task["error"] or "no error was recorded"
    line = own_line(error)
    shown = line if len(line) <= _MOST_LINE else f"{line[:_MOST_LINE]}…"
    notes = [for_html(note) for note in failure_notes(task) + at_progress(task)]
    where = place_of(error) or ()
    held = _held_back(report, name)
    if held:
        notes.append(f"{counted(held, 'task')} skipped after it")
    trace = "".join(f'<p class="place"><code>{_short(part)}</code></p>' for part in where if part)
    if error.strip() != line:
        text = error if len(error) <= _MOST_TRACEBACK else f"…{error[-_MOST_TRACEBACK:]}"
        # Python marks the place below a line of code: such text is scrolled and not wrapped.
        kind = "trace" if max(map(len, text.split("\n"))) <= _MOST_SCROLLED else "long"
        trace += (
            "<details><summary>Traceback</summary>"
            f'<pre class="{kind}" tabindex="0">{for_html(text, multiline=True)}</pre></details>'
        )
    return (
        f'<article class="failure">{sign_html("FAILED")}<div>'
        f'<h3><button type="button" data-open="{place}">{for_html(name)}</button></h3>'
        f'<p class="notes">{" · ".join(notes)}</p>'
        f'<p class="line">{for_html(shown)}</p>{trace}</div></article>'
    )


def _held_back(report: RunReport, name: str) -> int:
    """Count the skipped tasks below a failed one; tasks are in topological order."""
    below = {name}
    for other, task in report["tasks"].items():
        if task["status"] == "SKIPPED" and not below.isdisjoint(task["deps"]):
            below.add(other)
    return len(below) - 1


def _graph(picture: Picture) -> str:
    # Marks are too many for a keyboard to walk through: there, the table is the way in.
    ways = (
        "With the keyboard: arrow keys, then Enter."
        if picture.marks is None
        else "Point at a mark to see its name, or zoom in to see them all."
    )
    tools = (
        '<div class="tools">'
        '<button type="button" data-zoom="out" aria-label="Zoom out">&minus;</button>'
        '<button type="button" data-zoom="in" aria-label="Zoom in">+</button>'
        '<button type="button" data-zoom="fit">Fit</button></div>'
    )
    body = (
        f'<div class="canvas">{picture.svg}</div>'
        '<p class="hint">Drag to move, hold Ctrl and scroll to zoom; choose a task to see more.'
        f" {ways}</p>"
    )
    return _section("graph", "Graph", body, tools)


def _timeline(report: RunReport, critical: list[str]) -> str:
    tasks = report["tasks"].values()
    shown = [task for task in tasks if task["attempt"] and not task["kept"]]
    if not shown:
        return ""
    kinds = [("wait", "waiting for a slot or a limit"), ("SUCCESS", "succeeded")]
    if any(attempt["status"] == "FAILED" for task in tasks for attempt in attempts_of(task)):
        kinds.append(("FAILED", "failed"))
    if any(task["status"] == "RUNNING" for task in tasks):
        kinds.append(("RUNNING", "running"))
    if critical:
        kinds.append(("SUCCESS critical", "critical path"))
    legend = "".join(
        f'<li><svg class="key" aria-hidden="true"><rect class="{kind}" y="2" width="22"'
        f' height="10" rx="2"/></svg>{word}</li>'
        for kind, word in kinds
    )
    path = f'<p class="hint">{_critical_text(report, critical)}</p>' if critical else ""
    body = f'{_choices(report, critical, len(shown))}{path}<div class="lanes"></div>'
    return _section("timeline", "Timeline", body, f'<ul class="legend">{legend}</ul>')


def _choices(report: RunReport, critical: list[str], rows: int) -> str:
    """Return the buttons that choose the rows of a timeline that is too long to be seen whole."""
    if rows <= _FEW_ROWS or not critical:
        return ""
    choices = {"all": f"All {rows:,}", "critical": "Critical path only"}
    if any(task["status"] == "FAILED" for task in report["tasks"].values()):
        choices = {"worst": "Failures and critical path", **choices}
    buttons = (_toggle("rows", kind, text) for kind, text in choices.items())
    return f'<div class="filters">{"".join(buttons)}</div>'


def _critical_text(report: RunReport, critical: list[str]) -> str:
    attempts = [attempt for name in critical for attempt in attempts_of(report["tasks"][name])]
    busy = sum((one["finished_at"] or 0) - (one["started_at"] or 0) for one in attempts)
    return (
        f"The critical path is {counted(len(critical), 'task')} long and ran for"
        f" {duration_text(busy)}."
    )


def _tasks(report: RunReport) -> str:
    tasks = report["tasks"].values()
    filters = "".join(
        _toggle("filter", status, f"{sign_html(status)}{SIGNS[status].word} <b>{count:,}</b>")
        for status, count in status_counts(report).items()
    )
    kept = sum(task["kept"] for task in tasks)
    retried = sum(task["attempt"] > 1 and not task["kept"] for task in tasks)
    for kind, count in (("kept", kept), ("retried", retried)):
        filters += _toggle("filter", kind, f"{kind} <b>{count:,}</b>") if count else ""
    body = (
        '<div class="filters"><label><span>Filter</span><input type="search" id="search"'
        ' placeholder="name or error" autocomplete="off" spellcheck="false"></label>'
        f'{filters}</div><div class="rows"></div>'
        "<noscript><p>The timeline, the table and the details need JavaScript.</p></noscript>"
    )
    return _section("tasks", "Tasks", body, '<p id="shown" class="hint" role="status"></p>')
