"""What stands, in a forked child, for a pool whose threads and processes are the parent's."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import TYPE_CHECKING, NoReturn, ParamSpec

from flowrun.errors import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")


class InheritedPool(Executor):
    """Refuse calls that the pool itself would keep waiting for good.

    Args:
        pool: The pool; it stays the parent's to shut down.
    """

    def __init__(self, pool: Executor) -> None:
        self._name = type(pool).__name__

    def submit(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> NoReturn:  # noqa: ARG002 - the stdlib's signature
        """Refuse a call.

        Raises:
            ExecutorError: Always.
        """
        msg = (
            f"this {self._name} was used before this process was forked, and its workers are only"
            " in the parent; start the process by 'spawn' or 'forkserver', or make an engine with"
            " a new executor in the child"
        )
        raise ExecutorError(msg)
