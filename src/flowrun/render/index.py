"""A list of runs -> one HTML page that leads to the page of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.escape import for_html
from flowrun.render.html import document, sign_html, time_html
from flowrun.render.wording import (
    duration_text,
    params_text,
    summary_status,
    summary_word,
    tally_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.state import RunSummary

_HEADINGS = ("DAG", "Outcome", "Started", "Took", "Tasks", "Run", "Parameters")


def index_html(runs: Sequence[RunSummary], pages: Mapping[str, str], name: str) -> str:
    """Return the page.

    Args:
        runs: The runs, newest first.
        pages: The address of each run's page, by the run's id.
        name: Where the runs are kept.
    """
    title = f"Runs in {for_html(name)}"
    columns = len(_HEADINGS) if any(run.params for run in runs) else len(_HEADINGS) - 1
    head = "".join(f'<th scope="col">{heading}</th>' for heading in _HEADINGS[:columns])
    rows = "".join(_row(run, pages[run.run_id], columns) for run in runs)
    table = f'<table class="index"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return document(
        title,
        f'<header class="top"><p class="kicker">Newest first</p><h1>{title}</h1></header>'
        f'<section aria-label="Runs"><div class="rows">{table if runs else "No runs."}</div>'
        "</section>",
    )


def _row(run: RunSummary, page: str, columns: int) -> str:
    status = summary_status(run)
    took = "" if run.finished_at is None else duration_text(run.finished_at - run.created_at)
    cells = (
        f'<a href="{for_html(page)}">{for_html(run.dag_name)}</a>',
        f"{sign_html(status)}{summary_word(run)}",
        time_html(run.created_at),
        took,
        tally_text(run.task_counts),
        f"<code>{for_html(run.run_id)}</code>",
        for_html(params_text(run.params)),
    )
    return f'<tr class="{status}">{"".join(f"<td>{cell}</td>" for cell in cells[:columns])}</tr>'
