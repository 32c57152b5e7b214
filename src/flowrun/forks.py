"""Locks after a fork: in the child no thread is left to release those that the parent held.

Threads are no more inherited than that, so an object with either starts over in the child.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import MethodType

_methods: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def call_in_children(method: Callable[[], object]) -> None:
    """Have a method called in every child that is forked while its object exists.

    Args:
        method: A bound method that replaces locks and forgets threads; it must not wait.
    """
    bound = cast("MethodType", method)
    _methods[bound.__self__] = bound.__name__


def _call_all() -> None:
    for owner, method in list(_methods.items()):
        getattr(owner, method)()


if hasattr(os, "register_at_fork"):  # pragma: no branch - there is none on Windows
    os.register_at_fork(after_in_child=_call_all)
