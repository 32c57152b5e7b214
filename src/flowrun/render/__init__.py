"""Graphs, runs and reports as text, pictures and pages; a door and nothing else."""

from __future__ import annotations

from flowrun.escape import for_terminal
from flowrun.render.dot import dot
from flowrun.render.html import report_html
from flowrun.render.mermaid import mermaid
from flowrun.render.page import preview, stored_previews
from flowrun.render.style import GraphStyle, graph_text
from flowrun.render.svg import dag_svg
from flowrun.render.table import report_table
from flowrun.render.tree import tree

__all__ = [
    "GraphStyle",
    "dag_svg",
    "dot",
    "for_terminal",
    "graph_text",
    "mermaid",
    "preview",
    "report_html",
    "report_table",
    "stored_previews",
    "tree",
]
