"""Install what of some dependency groups has a wheel for the Python that runs this.

    python .ci/wheels.py data examples

The newest Python is often ahead of some packages; the tests that need them are then skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    """Install one after the other, as one that is missing must not keep out the others."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    groups = tomllib.loads(PROJECT.read_text())["dependency-groups"]
    for name in [name for group in sys.argv[1:] for name in groups[group]]:
        if subprocess.run([*pip, name], check=False).returncode:
            print(f"{name} cannot be installed here; the tests that need it will be skipped.")


if __name__ == "__main__":
    main()
