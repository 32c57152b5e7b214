"""How DAGs and reports show themselves in a notebook: as text, and as a picture."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flowrun.report import RunReport


class ShownReport(dict[str, Any]):
    """A run report: a dictionary to every program, a table and a picture in a notebook."""

    __slots__ = ()

    def _repr_mimebundle_(
        self, include: Collection[str] | None = None, exclude: Collection[str] | None = None
    ) -> dict[str, str]:
        from flowrun import render  # noqa: PLC0415 - drawing is not needed to run
        from flowrun.escape import for_html  # noqa: PLC0415

        report = cast("RunReport", self)
        deps = {name: task["deps"] for name, task in report["tasks"].items()}
        table = render.report_table(report)
        picture = render.dag_svg(report["dag_name"], deps, report)
        html = _as_image(picture) + f"<pre>{for_html(table, multiline=True)}</pre>"
        return chosen({"text/plain": table, "text/html": html}, include, exclude)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ANN401, FBT001 - IPython's
        """Print the table; IPython prefers its own text of a dictionary to the bundle's."""
        del cycle
        printer.text(self._repr_mimebundle_(include=("text/plain",))["text/plain"])


def shown_dag(
    dag_name: str, deps: Mapping[str, Sequence[str]], teardowns: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return a DAG as a tree and as a picture, by media type."""
    from flowrun import render  # noqa: PLC0415 - drawing is not needed to run

    return {
        "text/plain": render.graph_text(dag_name, deps, teardowns=teardowns),
        "image/svg+xml": render.dag_svg(dag_name, deps, teardowns=teardowns),
    }


def chosen(
    bundle: dict[str, str],
    include: Collection[str] | None,
    exclude: Collection[str] | None,
) -> dict[str, str]:
    """Return what a notebook has asked for of a bundle; ``None`` asks for everything."""
    return {
        kind: shown
        for kind, shown in bundle.items()
        if (include is None or kind in include) and kind not in (exclude or ())
    }


def _as_image(svg: str) -> str:
    """Return an HTML element: as an image its style sheet cannot reach the rest of the page."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img style="max-width:100%" alt="" src="data:image/svg+xml;base64,{data}">'
