"""Jobs for tests of the command line, and ways to start it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

HEAD = """
import asyncio, os, signal, sys, threading, time
from flowrun import ProgressHook, SchedulerConfig, SqliteStateStore, build_default_engine

store = SqliteStateStore("runs.db")
engine = build_default_engine(state_store=store, config=SchedulerConfig(cancel_grace_s=0.1))
"""


def write_jobs(folder: Path, body: str) -> Path:
    (folder / "jobs.py").write_text(HEAD + textwrap.dedent(body), encoding="utf-8")
    return folder


def flowrun(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; it must end with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "flowrun", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def in_shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``$FLOWRUN`` is the command.

    Its output is buffered: what a task prints reaches a pipe when the command flushes it. A task
    whose own ``print`` meets a broken pipe fails, as in any program.
    """
    environment = {**os.environ, "FLOWRUN": f"{sys.executable} -m flowrun"}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
