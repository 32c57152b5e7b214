"""What flowrun takes besides time: memory, patience, and the event loop's attention."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.candidates import at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.shapes import Edges


def memory(edges: Edges) -> dict[str, Any]:
    """Measure how much the resident set grows while tasks are registered, built and run.

    The names and the edges are there before; what is counted is flowrun's, and the results.
    """
    at_once({"warm": ()}, 4)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    at_once(edges, 4)
    return {"bytes_per_task": (_status("VmHWM") - before) / len(edges)}


def _status(field: str) -> int:
    """Return a figure of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(field)


KINDS: dict[str, Callable[[Edges], dict[str, Any]]] = {"memory": memory}
