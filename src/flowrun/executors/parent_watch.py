"""A worker process of a pool does not outlive the process that made the pool.

Otherwise a task of a run whose process was killed would continue beside the resumed run.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_LOOK_S = 0.5
_watching: set[int] = set()  # process ids: a fork's child has no watching thread


def end_with_parent() -> None:
    """End this process when its parent ends, if multiprocessing made it.

    It ends in the middle of any code, once that code releases the interpreter's lock.
    """
    known: Any = sys.modules.get("multiprocessing.process")
    parent: BaseProcess | None = None if known is None else known.parent_process()
    if parent is None or os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    threading.Thread(
        target=_watch, args=(parent, os.getppid()), name="flowrun-parent-watch", daemon=True
    ).start()


def _watch(parent: BaseProcess, parent_id: int) -> None:
    from multiprocessing import connection  # noqa: PLC0415 - only in worker processes

    # The sentinel alone is not enough: workers that were forked later may keep it open.
    while os.getppid() == parent_id and not connection.wait([parent.sentinel], _LOOK_S):
        pass
    os._exit(1)  # pragma: no cover - it ends the process, and coverage with it
