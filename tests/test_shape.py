"""The shape of the source, counted: what issue by issue must not grow unseen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import flowrun

SOURCE = Path(flowrun.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
_PRIVATE_CALLS = re.compile(
    r"\bgetrefcount\b|\b(?:asyncio|threading|futures|concurrent)\.(?:\w+\.)*_[a-z]\w*"
    r"|\._(?:must_cancel|callbacks|is_owned|loop_self|fut_waiter|waiters|work_queue)\b"
)


def definitions(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield the name and the lines of every function and class, and whether it is a class."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            name = f"{path.relative_to(SOURCE)}:{node.name}"
            yield name, lines, isinstance(node, ast.ClassDef)


def longer_than(most: int, *, classes: bool) -> dict[str, int]:
    found = [each for path in MODULES for each in definitions(path)]
    return {name: lines for name, lines, is_class in found if is_class is classes and lines > most}


def test_no_function_has_more_than_sixty_lines() -> None:
    assert longer_than(60, classes=False) == {}


def test_no_class_has_more_than_350_lines() -> None:
    assert longer_than(350, classes=True) == {}


def test_top_level_has_parts_and_a_dozen_files() -> None:
    entries = [each for each in SOURCE.iterdir() if each.name != "__pycache__"]
    assert len(entries) <= 22, sorted(each.name for each in entries)


def test_engine_is_a_facade_of_under_500_lines() -> None:
    assert len((SOURCE / "engine.py").read_text(encoding="utf-8").splitlines()) < 500


def test_nothing_private_of_the_interpreter_is_used() -> None:
    found = {
        f"{path.relative_to(SOURCE)}:{number}": line.strip()
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _PRIVATE_CALLS.search(line)
    }
    assert found == {}
