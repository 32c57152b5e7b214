"""Where the figures come from."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from pathlib import Path

from flowrun import __version__


def described() -> dict[str, str]:
    """Return the machine and the versions, in words."""
    return {
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "system": _system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": f"SQLite {sqlite3.sqlite_version}",
        "flowrun": f"flowrun {__version__}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load": f"load average {os.getloadavg()[0]:.1f} before",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
