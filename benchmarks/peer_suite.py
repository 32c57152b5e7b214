"""flowrun beside its peers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.environments import PeerError, prepared, version
from benchmarks.findings import Line
from benchmarks.jobs import FLOWRUN, Job
from benchmarks.peers import PEERS
from benchmarks.shapes import SHAPES, SIZES

if TYPE_CHECKING:
    from benchmarks.findings import Findings
    from benchmarks.measure import Bench
    from benchmarks.peers import Peer

_KINDS = {
    "sync": "sync tasks",
    "inline": "one thread",
    "at-once": "async tasks",
    "durable-normal": "durable, NORMAL",
    "durable-full": "durable, FULL",
}
_AHEAD = 1.0
_NOT_CONCURRENT = {("hamilton", "sync"), ("hamilton", "inline")}  # its synchronous driver
_SLOW_S = 3.0
_MOST_S = 25.0
_ENDED_AFTER_S = 60.0
_MORE_THAN_LINEAR = 1.2


@dataclass
class PeerSuite:
    """Each peer on every shape and size that it can do in reasonable time.

    Attributes:
        bench: Starts the processes.
        findings: Where the figures go.
        only: Measure only peers that have this in their name.
        sizes: Other sizes than usual.
        repetitions: Other repetitions than usual.
    """

    bench: Bench
    findings: Findings
    only: str = ""
    sizes: tuple[int, ...] = ()
    repetitions: int = 0

    def run(self) -> None:
        """Measure everything that was asked for."""
        self.bench.timeout_s = _ENDED_AFTER_S
        for peer in PEERS:
            if peer.module.startswith(self.only):
                self._peer(peer)

    def _peer(self, peer: Peer) -> None:
        try:
            python = self.bench.pythons[peer.module] = prepared(peer)
            self.findings.versions[peer.title] = version(python, peer.distribution)
        except PeerError as error:
            self._reason(peer, "all", f"cannot be installed: {error}")
            return
        for kind, what in _KINDS.items():
            problem = self.bench.answer(Job(peer.module, kind, "chain", 3)).problem
            if problem:
                self._reason(peer, what, problem)
                continue
            began = time.monotonic()  # only now: the first process has compiled the modules
            self.bench.compare(Job(FLOWRUN, kind, "chain", 3), peer.module, 1)
            start_s = time.monotonic() - began
            for shape in SHAPES:
                self._shape(peer, Job(FLOWRUN, kind, shape, 0), start_s)

    def _reason(self, peer: Peer, what: str, reason: str) -> None:
        self.findings.add(Line(f"{peer.title}, {what}", "-", None, None, reason, excused=True))

    def _shape(self, peer: Peer, job: Job, start_s: float) -> None:
        """Go up in size until it cannot, or would take too long.

        Args:
            peer: The peer.
            job: What it is to do.
            start_s: What a process of each of the two takes in any case, together.
        """
        what = f"{peer.title}, {_KINDS[job.kind]}"
        before, pair_s = 0, 0.0
        for size in self.sizes or SIZES:
            place = f"{job.shape} {size:,}"
            expected_s = 0.0
            if before:
                growth = size / before * _MORE_THAN_LINEAR
                expected_s = max(0.0, pair_s - start_s) * growth
                if expected_s > _MOST_S:
                    told = (
                        f"not tried: {before:,} tasks took both sides {pair_s:.0f} s, so these"
                        f" would take about {expected_s:.0f} s, more than {_MOST_S:.0f} s"
                    )
                    self.findings.add(Line(what, place, None, None, told, excused=True))
                    return
            times = self.repetitions or (1 if start_s + expected_s > _SLOW_S else 3)
            began = time.monotonic()
            found = self.bench.compare(replace(job, size=size), peer.module, times)
            before, pair_s = size, (time.monotonic() - began) / max(1, len(found.theirs))
            at_most = None if (peer.module, job.kind) in _NOT_CONCURRENT else _AHEAD
            self.findings.compared(what, found, at_most, per=size, place=place)
            if found.problem:
                return
