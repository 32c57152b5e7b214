"""Everything that must hold before a change is merged; ``make check`` runs it.

The lint, type and floor checks and the whole suite run on the Python of ``.venv``. The suite also
runs on every other CPython >= 3.11 that this machine has, each in a virtual environment of its own
under ``.venvs``; without the tests in a browser, to which one page is like another, and those that
are marked "once". The newest of them measures the coverage, since Python 3.14 and later do that at
little cost; it has the libraries of group ``data``. Those between leave out tests marked "slow".
Tests marked "no_cover", which take long, run once, where nothing is measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".venvs"
OLDEST = (3, 11)
EXPECTED = ((3, 11), (3, 12), (3, 13), (3, 14), (3, 15))
GROUPS = ("test", "cluster")

_ASK = (
    "import json, platform, sys;"
    "print(json.dumps([platform.python_implementation(), *sys.version_info[:3],"
    " sys.version_info.releaselevel, getattr(sys, '_is_gil_enabled', lambda: True)()]))"
)


def main() -> int:
    """Run every check, go on after a failure, and return 1 if there was any."""
    os.chdir(ROOT)
    binary = Path(sys.executable).parent
    static: list[tuple[str, Sequence[str | Path]]] = [
        ("ruff check", [binary / "ruff", "check", "."]),
        ("ruff format", [binary / "ruff", "format", "--check", "."]),
        ("mypy", [binary / "mypy"]),
        ("pyright", [binary / "pyright"]),
        ("import floors", [binary / "lint-imports"]),
    ]
    here = sys.version_info[:2]
    others = found_pythons()
    others.pop(here, None)
    # Each of these keeps one processor busy, or waits for the network.
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        checks = {
            name: pool.submit(run, name, command, beside_others=True) for name, command in static
        }
        environments = {
            minor: pool.submit(prepared, minor, python, is_newest=minor == max(others))
            for minor, python in sorted(others.items())
        }
    failed = [name for name, check in checks.items() if not check.result()]

    # Many tests wait for processes and clocks: more workers than processors keep those busy.
    workers = str((os.cpu_count() or 1) + 2)
    suite = ["-m", "pytest", "-q", "-n", workers]
    outside = ["--ignore", "tests/browser", "-m"]  # of the environment for everything
    measured = ["--cov", "--cov-report=term-missing"]
    suites: list[tuple[str, str | None, list[str]]] = []
    if not others:
        suites = [
            ("suite and coverage", sys.executable, [*measured, "-m", "not no_cover"]),
            ("tests that are not measured", sys.executable, ["-m", "no_cover"]),
        ]
    else:
        suites.append((f"suite on Python {dotted(here)}", sys.executable, []))
    for minor, made in environments.items():
        chosen = [*outside, "not once and not no_cover and not slow"]
        name = "suite"
        if minor == max(others):
            name, chosen = "suite and coverage", [*measured, *outside, "not once and not no_cover"]
        suites.append((f"{name} on Python {dotted(minor)}", made.result(), chosen))
    with tempfile.TemporaryDirectory() as folder:
        # In a folder of its own: another run in this work tree at the same time would combine,
        # and delete, the data files of this one's processes.
        os.environ["COVERAGE_FILE"] = str(Path(folder) / ".coverage")
        for name, python, chosen in suites:
            if python is None or not run(name, [python, *suite, *chosen]):
                failed.append(name)

    tested = {here, *others}
    print(f"\nTested on Python {', '.join(map(dotted, sorted(tested)))}.")
    if missing := [dotted(minor) for minor in EXPECTED if minor not in tested]:
        print(f"Not found on this machine, so not tested: Python {', '.join(missing)}.")
    print(f"FAILED: {', '.join(failed)}" if failed else "Every check passed.")
    return 1 if failed else 0


def run(name: str, command: Sequence[str | Path], *, beside_others: bool = False) -> bool:
    """Run one check, and return whether it passed.

    Its output is shown as it comes, or in one piece if it runs beside others.
    """
    title = f"\n== {name}"
    if not beside_others:
        print(title, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE if beside_others else None,
        stderr=subprocess.STDOUT if beside_others else None,
        text=True,
    )
    passed = done.returncode == 0
    outcome = f"-- {name}: {'ok' if passed else 'FAILED'}, {time.monotonic() - started:.1f} s"
    print(f"{title}\n{done.stdout}{outcome}" if beside_others else outcome, flush=True)
    return passed


def found_pythons() -> dict[tuple[int, int], str]:
    """Return the newest CPython of each minor version on the PATH and in pyenv and uv."""
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    candidates = [
        *(str(path) for path in pyenv.glob("versions/3.*/bin/python")),
        *(str(path) for path in uv.glob("cpython-3.*/bin/python3")),
        *(path for minor in range(OLDEST[1], 30) if (path := shutil.which(f"python3.{minor}"))),
    ]
    found: dict[tuple[int, int], tuple[tuple[int, int, int], str]] = {}
    for python in candidates:
        version = cpython_version(python)
        if version is None or version[:2] < OLDEST:
            continue
        minor = version[:2]
        if minor not in found or version > found[minor][0]:
            found[minor] = (version, python)
    return {minor: python for minor, (_, python) in found.items()}


def cpython_version(python: str) -> tuple[int, int, int] | None:
    """Ask an interpreter what it is; ``None`` if it is no released CPython that starts."""
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None  # a pyenv shim of a version that is not selected, for example
    implementation, major, minor, micro, level, has_gil = json.loads(answer.stdout)
    if implementation != "CPython" or level != "final" or not has_gil:
        return None
    return (major, minor, micro)


def prepared(minor: tuple[int, int], python: str, *, is_newest: bool) -> str | None:
    """Return the Python of an up-to-date environment; ``None`` if it cannot be made."""
    folder = ENVIRONMENTS / dotted(minor)
    stamp = folder / ".prepared"
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = hashlib.sha256(
        (ROOT / "pyproject.toml").read_bytes() + f"{os.path.realpath(python)} {is_newest}".encode()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return str(inside)
    print(f"\n== making {folder.relative_to(ROOT)} with {python}", flush=True)
    pip: list[str | Path] = [inside, "-m", "pip", "install", "--quiet"]
    names = [*GROUPS, "cover"] if is_newest else GROUPS
    groups = [argument for name in names for argument in ("--group", name)]
    steps: list[Sequence[str | Path]] = [
        [python, "-m", "venv", "--clear", folder],
        [*pip, "--upgrade", "pip>=25.1"],
        [*pip, *groups],
        [*pip, "--no-build-isolation", "--editable", "."],
    ]
    if is_newest:
        steps.append([inside, ROOT / ".ci/wheels.py", "data"])
    for step in steps:
        if subprocess.run(step, check=False).returncode != 0:
            return None
    stamp.write_text(wanted)
    return str(inside)


def dotted(version: tuple[int, ...]) -> str:
    """Write a version with dots."""
    return ".".join(map(str, version))


if __name__ == "__main__":
    raise SystemExit(main())
