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
_SLOW_S = 5.0
_NEXT_SIZE = 20  # a size that is ten times as large takes longer, and building may be worse


@dataclass
class PeerSuite:
    """Each peer on every shape and size that it can do.

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
            for shape in SHAPES:
                self._shape(peer, Job(FLOWRUN, kind, shape, 0))

    def _reason(self, peer: Peer, what: str, reason: str) -> None:
        self.findings.add(Line(f"{peer.title}, {what}", "-", None, None, reason, excused=True))

    def _shape(self, peer: Peer, job: Job) -> None:
        """Go up in size until it cannot, or would take too long."""
        what = f"{peer.title}, {_KINDS[job.kind]}"
        slow = False
        for size in self.sizes or SIZES:
            place = f"{job.shape} {size:,}"
            if size > peer.largest:
                return
            times = 1 if slow else self.repetitions or 3
            began = time.monotonic()
            found = self.bench.compare(replace(job, size=size), peer.module, times)
            pair_s = (time.monotonic() - began) / max(1, len(found.theirs))
            self.findings.compared(what, found, _AHEAD, per=size, place=place)
            if found.problem:
                return
            slow = pair_s > _SLOW_S
            if pair_s * _NEXT_SIZE > self.bench.timeout_s:
                return
