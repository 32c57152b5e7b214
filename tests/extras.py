"""Packages that only some tests need, and that not every Python has."""

from __future__ import annotations

import importlib.util
import os

import pytest


def need(*modules: str) -> None:
    """Skip a test where a module is missing; on CI it must be there, so fail."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if not missing:
        return
    word = f"not installed: {', '.join(missing)}; the dependency groups have it"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(word)
    pytest.skip(word)
