"""Lazy package doors: a package loads an export when a program first uses it.

A program that only reads a file of runs needs no scheduler, and one that runs in memory needs no
SQLite. ``lazy`` imports (PEP 810) replace this module once every supported Python has them.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def lazy_exports(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package whose exports are loaded on first use.

    Args:
        package: The package's ``__name__``.
        homes: Exported names by the module that defines them.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> Any:  # noqa: ANN401 - stands for each export
        module = home_of.get(name)
        if module is None:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(importlib.import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
