"""Every Python block of the README and the docs pages runs, and so does every docstring's example.

A block stands for itself, in a process of its own. Lines directly above its fence change that:

- ``<!-- continues -->``: it goes on where the page's previous Python block ended.
- ``<!-- needs: MODULE -->``: it is skipped where that module is not installed.
- ``<!-- output -->`` above a plain block: exactly what the Python block before it prints.
"""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import flowrun

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (continues|output|needs: ([\w.]+)) -->$")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


@dataclass
class Program:
    """One or more blocks of a page that run together."""

    page: Path
    line: int
    source: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)

    def add(self, line: int, block: list[str]) -> None:
        # Empty lines in place of the prose: a traceback then names the page's own lines.
        self.source += [""] * (line - len(self.source)) + block

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def programs(page: Path) -> list[Program]:
    """Return the programs of a page."""
    found: list[Program] = []
    marks: list[re.Match[str]] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            mark = _MARK.match(lines[number])
            marks = [*marks, mark] if mark else []
            number += 1
            continue
        end = lines.index("```", number + 1)
        block = lines[number + 1 : end]
        words = {mark[1] for mark in marks}
        if fence[1] == "python":
            if "continues" not in words:
                found.append(Program(page, number + 1))
            found[-1].add(number + 1, block)
            found[-1].needs += [mark[2] for mark in marks if mark[2]]
        elif "output" in words:
            found[-1].output += block
        marks = []
        number = end + 1
    return found


PROGRAMS = [program for page in PAGES for program in programs(page)]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_code_of_the_docs_runs_and_prints_what_the_page_says(
    program: Program, tmp_path: Path
) -> None:
    for module in program.needs:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the page says that it needs {module}, which is not installed")
    file = tmp_path / f"{program.page.stem}.py"
    file.write_text("\n".join(program.source) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "utf8", file],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if program.output:
        assert done.stdout.splitlines() == program.output


def test_the_readme_has_programs() -> None:
    assert [program for program in PROGRAMS if program.page.name == "README.md"]


def test_the_readme_begins_with_the_minimal_example() -> None:
    first = programs(ROOT / "README.md")[0]
    shown = "\n".join(first.source[first.line :]) + "\n"
    assert shown == (ROOT / "examples" / "minimal.py").read_text(encoding="utf-8")


MODULES = [
    module.name
    for module in pkgutil.walk_packages(flowrun.__path__, "flowrun.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_right(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_links_of_the_readme_work_outside_the_repository() -> None:
    """PyPI shows the README without the files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert _LINK.findall(text) == []
    ours = re.findall(r"\]\(https://github\.com/Mg30/flowrun/(?:blob|raw)/main/([^)#]+)", text)
    assert len(ours) > 10
    assert [path for path in ours if not (ROOT / path).exists()] == []


def test_a_block_that_continues_runs_together_with_the_one_before(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n<!-- continues -->\n<!-- needs: dask -->\n```python\n"
        "print(a)\n```\n<!-- output -->\n```text\n1\n```\n```python\nb = 2\n```\n",
        encoding="utf-8",
    )
    first, second = programs(page)
    assert [line for line in first.source if line] == ["a = 1", "print(a)"]
    assert first.source.index("print(a)") + 1 == 8, "its line in the page"
    assert (first.needs, first.output) == (["dask"], ["1"])
    assert [line for line in second.source if line] == ["b = 2"]
