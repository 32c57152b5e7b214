"""The example notebook, executed by a real Jupyter kernel; its cells are run more than once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .extras import need

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "notebook.ipynb"


class Notebook:
    """The example's cells of code, and the kernel that runs them."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.cells = [cell for cell in client.nb.cells if cell.cell_type == "code"]

    def run(self, number: int, source: str | None = None) -> dict[str, str]:
        """Run a cell, changed if a source is given, and return what it shows, by MIME type."""
        cell = self.cells[number]
        if source is not None:
            cell.source = source
        place = self._client.nb.cells.index(cell)
        self._client.execute_cell(cell, place)  # raises what the cell has raised
        shown: dict[str, str] = {}
        for output in cell.outputs:
            if output.output_type == "stream":
                shown[output.name] = shown.get(output.name, "") + output.text
            else:
                shown |= output.data
        return shown


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    need("nbclient", "ipykernel")
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    import nbformat
    from nbclient import NotebookClient

    read = nbformat.read(EXAMPLE, as_version=4)
    client = NotebookClient(read, timeout=60, kernel_name="python3")
    with client.setup_kernel(cwd=str(tmp_path)):
        yield Notebook(client)


ORDERS, TOTAL, DAG, RUN, RESULT = 1, 2, 3, 4, 5


def test_cells_that_are_run_again_replace_what_they_had_declared(notebook: Notebook) -> None:
    for number in range(DAG):
        assert notebook.run(number) == {}
    shown = notebook.run(DAG)
    assert shown["text/plain"] == "shop\n└─ orders\n   └─ total"
    assert shown["image/svg+xml"].startswith("<svg")
    shown = notebook.run(RUN)
    assert shown["text/plain"].startswith("shop: Succeeded in ")
    assert notebook.run(RESULT)["text/plain"] == "7"

    # All cells once more, as "Run all" does after a change in the first one.
    source = notebook.cells[ORDERS].source
    notebook.run(ORDERS, source.replace("[3, 4]", "[30, 40]"))
    for number in (TOTAL, DAG, RUN):
        notebook.run(number)
    assert notebook.run(RESULT)["text/plain"] == "70"

    # One cell alone: what depends on its function now depends on the new one.
    notebook.run(ORDERS, source.replace("[3, 4]", "[5]"))
    notebook.run(RUN)
    assert notebook.run(RESULT)["text/plain"] == "5"
    # The cell of a task that got another dependency.
    notebook.run(TOTAL, "@shop.task\ndef total() -> int:\n    return 1")
    assert notebook.run(DAG)["text/plain"] == "shop\n├─ orders\n└─ total"
    notebook.run(RUN)
    assert notebook.run(RESULT)["text/plain"] == "1"


def test_the_log_says_that_a_function_was_replaced(notebook: Notebook) -> None:
    notebook.run(
        0, f"import logging\nlogging.basicConfig(level='INFO')\n{notebook.cells[0].source}"
    )
    assert "orders" not in notebook.run(ORDERS).get("stderr", "")
    assert "'orders'" in notebook.run(ORDERS)["stderr"]
    assert notebook.run(RESULT, "engine.list_tasks('shop')")["text/plain"] == "['orders']"


def test_plain_run_is_refused_with_the_remedy(notebook: Notebook) -> None:
    for number in range(DAG):
        notebook.run(number)
    shown = notebook.run(
        RUN, "try:\n    engine.run('shop')\nexcept RuntimeError as error:\n    print(error)"
    )
    assert "write run_id = await engine.run_once('shop', ...)" in shown["stdout"]
