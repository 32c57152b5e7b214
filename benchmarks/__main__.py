"""``python -m benchmarks``: measure, tell, and fail if a target is missed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.findings import Findings
from benchmarks.machine import described
from benchmarks.measure import ROOT, Bench
from benchmarks.peer_suite import PeerSuite
from benchmarks.suite import Suite

_RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    """Return 1 if a target is missed."""
    chosen = _arguments()
    sizes = tuple(map(int, chosen.sizes.split(","))) if chosen.sizes else ()
    findings = Findings(machine=described())
    print(", ".join(findings.machine.values()))
    findings.machine["took"] = "not finished"
    if not (chosen.only or sizes or chosen.part):
        _RESULTS.mkdir(exist_ok=True)
        findings.file = _RESULTS / ("quick.md" if chosen.quick else "all.md")
    began = time.monotonic()
    # On the disk of the project: a folder in memory would make every disk look fast.
    with TemporaryDirectory(prefix=".scratch-", dir=ROOT / "benchmarks") as folder:
        bench = Bench(Path(folder), timeout_s=60 if chosen.quick else 120)
        if chosen.part != "peers":
            Suite(bench, findings, chosen.quick, chosen.only, sizes, chosen.repetitions).run()
        if chosen.part != "floors" and not chosen.quick:
            PeerSuite(bench, findings, chosen.only, sizes, chosen.repetitions).run()
    findings.machine["took"] = f"{(time.monotonic() - began) / 60:.0f} minutes"
    findings.machine["load"] += f" and {os.getloadavg()[0]:.1f} after"
    if findings.file is not None:
        findings.save(findings.file)
        print(f"\nThe table is in {findings.file}")
    print(f"\n{time.monotonic() - began:.0f} s, {findings.machine['load']}")
    if findings.missed:
        print(f"{len(findings.missed)} of the figures miss their target.")
    return 1 if findings.missed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the floors, with 1,000 tasks")
    parser.add_argument("--only", metavar="NAME", default="", help="what begins with this")
    parser.add_argument("--part", choices=["floors", "peers"], help="only one of the two")
    parser.add_argument("--sizes", help="numbers of tasks, with commas between")
    parser.add_argument("--repetitions", type=int, default=0, help="processes of each candidate")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
