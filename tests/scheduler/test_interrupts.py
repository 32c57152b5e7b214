"""SIGINT at random moments: the run ends, no slot is lost, and the store has no open run (R1, R2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals"),
    pytest.mark.once,
    pytest.mark.no_cover,
]

PROGRAM = Path(__file__).with_name("interrupted_runs.py")
SEED = 20_261_130


def interrupted(way: str, store: str, count: int) -> None:
    """Interrupt runs so many times, and fail with all that was wrong afterwards."""
    child = subprocess.run(
        [sys.executable, PROGRAM, way, store, str(count), str(SEED)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    *wrong, counts = child.stdout.splitlines()
    assert not wrong
    assert json.loads(counts)["sent"] == count


def test_ctrl_c_under_asyncio_run_ends_the_run_in_memory() -> None:
    interrupted("once", "memory", 1400)


def test_ctrl_c_under_asyncio_run_ends_the_run_in_a_file(tmp_path: Path) -> None:
    interrupted("once", str(tmp_path / "runs.db"), 600)


def test_loop_that_is_closed_after_a_bare_interrupt_loses_no_slot_in_memory() -> None:
    interrupted("bare", "memory", 1000)


def test_loop_that_is_closed_after_a_bare_interrupt_loses_no_slot_in_a_file(
    tmp_path: Path,
) -> None:
    interrupted("bare", str(tmp_path / "runs.db"), 400)
