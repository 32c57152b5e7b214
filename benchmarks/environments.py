"""The peers' environments, made when they are first needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.peers import Peer

FOLDER = Path(__file__).resolve().parent / ".venvs"
_TIMEOUT_S = 600
_LINES_SHOWN = 2


class PeerError(Exception):
    """A peer cannot be installed here."""


def prepared(peer: Peer) -> Path:
    """Return the Python of a peer's environment; what is installed is what is newest today.

    Raises:
        PeerError: It cannot be installed.
    """
    folder = FOLDER / f"{peer.module}-{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / "bin" / "python"
    stamp = folder / ".prepared"
    wanted = hashlib.sha256(" ".join(peer.requirements).encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return python
    print(f"installing {peer.title}", flush=True)
    _must([sys.executable, "-m", "venv", "--clear", str(folder)])
    _must([str(python), "-m", "pip", "install", "--quiet", "--upgrade", "pip"])
    _must([str(python), "-m", "pip", "install", "--quiet", *peer.requirements])
    stamp.write_text(wanted, encoding="ascii")
    return python


def version(python: Path, distribution: str) -> str:
    """Return the version of what is installed in an environment."""
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return _must([str(python), "-c", code]).strip()


def _must(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        msg = f"not installed after {_TIMEOUT_S} s"
        raise PeerError(msg) from error
    if done.returncode:
        raise PeerError(" / ".join(done.stderr.strip().splitlines()[-_LINES_SHOWN:]))
    return done.stdout
