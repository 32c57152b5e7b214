"""Which drawing of a graph is meant by which word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from flowrun.errors import close_match
from flowrun.render.dot_text import dot
from flowrun.render.mermaid_text import mermaid
from flowrun.render.tree_text import tree

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowrun.report import RunReport

GraphStyle = Literal["tree", "mermaid", "dot"]


def graph_text(  # noqa: PLR0913 - what a tree can be told, handed on
    dag_name: str,
    deps: Mapping[str, Sequence[str]],
    *,
    style: GraphStyle = "tree",
    report: RunReport | None = None,
    ascii_only: bool = False,
    width: int | None = None,
) -> str:
    """Return a graph as text in one of the styles.

    Args:
        dag_name: The title.
        deps: The dependencies of each task, in topological order.
        style: ``"tree"`` for people, ``"mermaid"`` or ``"dot"`` for programs that draw.
        report: Shows the status and duration of each task of this run.
        ascii_only: Of a tree; see :func:`flowrun.render.tree_text`.
        width: Of a tree; see :func:`flowrun.render.tree_text`.

    Raises:
        ValueError: The style is unknown.
    """
    if style == "tree":
        return tree(dag_name, deps, report=report, ascii_only=ascii_only, width=width)
    if style == "mermaid":
        return mermaid(dag_name, deps, report)
    if style == "dot":
        return dot(dag_name, deps, report)
    styles = get_args(GraphStyle)
    names = ", ".join(repr(name) for name in styles)
    msg = f"unknown style {style!r}; the styles are {names}.{close_match(style, styles)}"
    raise ValueError(msg)
