"""The package as users get it: its names, its version, its files, and nothing it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flowrun

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "flowrun"
DISTRIBUTION = "flowrun-dag"

# "Public API Surface" of the contract.
PROMISED = {
    "Engine",
    "InMemoryStateStore",
    "JsonSerializer",
    "PickleSerializer",
    "ResultSerializer",
    "RunContext",
    "RunHook",
    "SchedulerConfig",
    "SqliteStateStore",
    "StateStore",
    "StateStoreProtocol",
    "TaskRegistry",
    "TaskSpec",
    "build_default_engine",
    "fn_hook",
    "task",
    "task_template",
}

_NEW_MODULES = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import flowrun
for name in flowrun.__all__:
    getattr(flowrun, name)
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_importing_loads_the_standard_library_alone() -> None:
    # Nothing that makes a tool start by itself, as coverage does: it is not being looked at.
    needed = ("PATH", "SYSTEMROOT")
    environment = {key: os.environ[key] for key in needed if key in os.environ}
    home = Path(flowrun.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-I", "-c", _NEW_MODULES, str(home)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    assert "flowrun" in loaded
    # The build's own settings and the alias that multiprocessing makes are of the library too.
    loaded = {name for name in loaded if not name.startswith("_sysconfigdata")} - {"__mp_main__"}
    foreign = loaded - {"flowrun"} - sys.stdlib_module_names
    # multiprocessing's name for __main__, and what the build of the interpreter has written: its
    # settings, which bear its platform, and from 3.15 on the modules that it left out.
    allowed = ("__mp_main__", "_sysconfigdata_", "_missing_stdlib_info")
    assert [name for name in foreign if not name.startswith(allowed)] == []


def test_importing_loads_no_heavy_part_of_the_library_before_it_is_used() -> None:
    code = (
        "import sys, flowrun; print('asyncio' in sys.modules);"
        "flowrun.build_default_engine;"
        "heavy = {'sqlite3', 'multiprocessing', 'html', 'pickle', 'json', 'difflib', 'random'};"
        "print(heavy & set(sys.modules))"
    )
    home = str(Path(flowrun.__file__).resolve().parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {home!r}); {code}"],
        env={key: os.environ[key] for key in ("PATH", "SYSTEMROOT") if key in os.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "False\nset()\n"


def test_all_holds_everything_that_the_contract_promises() -> None:
    assert set(flowrun.__all__) >= PROMISED


def test_all_is_sorted_and_every_name_of_it_exists() -> None:
    assert flowrun.__all__ == sorted(flowrun.__all__)
    assert len(set(flowrun.__all__)) == len(flowrun.__all__)
    for name in flowrun.__all__:
        assert getattr(flowrun, name) is not None
    assert set(flowrun.__all__) <= set(dir(flowrun))


def test_nothing_public_is_missing_from_all() -> None:
    own = {
        name
        for name, value in vars(flowrun).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("flowrun.")
    }
    assert own - set(flowrun.__all__) == set()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Enigne'"):
        flowrun.Enigne  # noqa: B018


def test_version_is_that_of_the_metadata() -> None:
    assert flowrun.__version__ == importlib.metadata.version(DISTRIBUTION)


def test_nothing_is_required_at_run_time() -> None:
    assert importlib.metadata.requires(DISTRIBUTION) in (None, [])


def test_types_are_shipped() -> None:
    assert (importlib.resources.files("flowrun") / "py.typed").is_file()


@pytest.mark.skipif(not SOURCES.exists(), reason="an installed wheel is tested, not the sources")
def test_wheel_holds_every_file_of_the_package_and_no_other(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT],
        capture_output=True,
        timeout=100,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"flowrun_dag-{flowrun.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (scripts,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        fields = archive.read(metadata).decode().splitlines()
        assert "flowrun = flowrun.cli:main" in archive.read(scripts).decode().splitlines()
    files = (path for path in SOURCES.rglob("*") if path.is_file())
    expected = {path.relative_to(SOURCES.parent).as_posix() for path in files}
    assert names == {name for name in expected if "__pycache__" not in name}
    assert "flowrun/py.typed" in names
    for line in ("Name: flowrun-dag", "Requires-Python: >=3.11", "License-Expression: MIT"):
        assert line in fields
    assert not [line for line in fields if line.startswith("Requires-Dist")]
