"""``python -m benchmarks``: measure, tell, and fail if a target is missed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import ROOT, Bench
from benchmarks.suite import Suite


def main() -> int:
    """Return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the floors, in two minutes")
    parser.add_argument("--only", metavar="NAME", help="only what has this in its name")
    parser.add_argument("--sizes", help="numbers of tasks, with commas between")
    parser.add_argument("--repetitions", type=int, help="processes of each candidate")
    chosen = parser.parse_args()
    sizes = tuple(map(int, chosen.sizes.split(","))) if chosen.sizes else None
    began = time.monotonic()
    # On the disk of the project: a folder in memory would make every disk look fast.
    with TemporaryDirectory(prefix=".scratch-", dir=ROOT / "benchmarks") as folder:
        bench = Bench(Path(folder), timeout_s=60 if chosen.quick else 300)
        suite = Suite(
            bench,
            quick=chosen.quick,
            only=chosen.only or "",
            sizes=sizes,
            repetitions=chosen.repetitions,
        )
        suite.run()
    print(f"\n{time.monotonic() - began:.0f} s, load now {os.getloadavg()[0]:.1f}")
    return 1 if suite.missed else 0


if __name__ == "__main__":
    sys.exit(main())
