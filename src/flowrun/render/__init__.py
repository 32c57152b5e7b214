"""Graphs, runs and reports as text, pictures and pages; live progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowrun.door import lazy_exports

if TYPE_CHECKING:
    from flowrun.escape import for_terminal
    from flowrun.render.explanation import Explanation, explain
    from flowrun.render.html import report_html
    from flowrun.render.index import index_html
    from flowrun.render.inside import log_text
    from flowrun.render.languages import GraphStyle, dot, graph_text, mermaid
    from flowrun.render.notebook import ShownReport, chosen, shown_dag
    from flowrun.render.page import preview, stored_previews
    from flowrun.render.progress import ProgressHook
    from flowrun.render.svg import dag_svg
    from flowrun.render.table import report_table
    from flowrun.render.time_parts import TimePart
    from flowrun.render.tree_text import tree
    from flowrun.render.wording import (
        coloured,
        counted,
        duration_text,
        has_colours,
        params_text,
        summary_word,
        tally_text,
        time_text,
        usual_s,
    )

__all__ = [
    "Explanation",
    "GraphStyle",
    "ProgressHook",
    "ShownReport",
    "TimePart",
    "chosen",
    "coloured",
    "counted",
    "dag_svg",
    "dot",
    "duration_text",
    "explain",
    "for_terminal",
    "graph_text",
    "has_colours",
    "index_html",
    "log_text",
    "mermaid",
    "params_text",
    "preview",
    "report_html",
    "report_table",
    "shown_dag",
    "stored_previews",
    "summary_word",
    "tally_text",
    "time_text",
    "tree",
    "usual_s",
]

# Running a DAG draws nothing.
__getattr__ = lazy_exports(
    __name__,
    {
        "flowrun.escape": ("for_terminal",),
        "flowrun.render.explanation": ("Explanation", "explain"),
        "flowrun.render.time_parts": ("TimePart",),
        "flowrun.render.html": ("report_html",),
        "flowrun.render.index": ("index_html",),
        "flowrun.render.inside": ("log_text",),
        "flowrun.render.languages": ("GraphStyle", "dot", "graph_text", "mermaid"),
        "flowrun.render.notebook": ("ShownReport", "chosen", "shown_dag"),
        "flowrun.render.page": ("preview", "stored_previews"),
        "flowrun.render.progress": ("ProgressHook",),
        "flowrun.render.svg": ("dag_svg",),
        "flowrun.render.table": ("report_table",),
        "flowrun.render.tree_text": ("tree",),
        "flowrun.render.wording": (
            "coloured",
            "counted",
            "duration_text",
            "has_colours",
            "summary_word",
            "params_text",
            "tally_text",
            "time_text",
            "usual_s",
        ),
    },
)
