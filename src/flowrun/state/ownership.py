"""Which runs belong to a living process: known by a lock that the kernel drops with its holder.

Every open store holds one byte of a lock file beside the database. A clock or a process id would
be a guess; a lock is not: it is gone at once when its process is, ``kill -9`` included.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from typing import TYPE_CHECKING

from flowrun.errors import StoreFileError

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":  # pragma: no cover - runs on Windows only
    import msvcrt
else:
    import fcntl

_MOST_OWNERS = 2**40


class _LockFile:
    """The lock file of one database, opened once per process.

    A POSIX lock is lost when its process closes *any* descriptor of the file, so all stores of
    a process share this one, and it is closed with the last of them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.users = 0
        self.held: set[int] = set()
        self._asking = threading.Lock()
        self._descriptors: list[int] = []
        self._can_claim = False

    def open(self, *, claims: bool) -> None:
        """Open the file, unless it is open; for a claim it is created and opened for writing.

        The descriptor of a reader that opened it before stays open: closing it would drop locks.

        Raises:
            OSError: The file cannot be used.
        """
        if self._can_claim or (self._descriptors and not claims):
            return
        flags = os.O_RDWR | os.O_CREAT if claims else os.O_RDONLY
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._descriptors.append(os.open(self._path, flags, 0o600))
        self._can_claim = claims

    def close(self) -> None:
        """Close the file, which gives up every lock on it."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def lock(self) -> int:
        """Lock a byte that no other owner holds, and return its offset."""
        with self._asking:
            owner = 0
            while not owner or not self._locked(owner, shared=False):
                owner = secrets.randbelow(_MOST_OWNERS) + 1
            self.held.add(owner)
            return owner

    def unlock(self, owner: int) -> None:
        """Release the byte."""
        with self._asking:
            self.held.discard(owner)
            self._unlocked(owner)

    def is_held(self, owner: int) -> bool:
        """Return whether a living process holds that byte."""
        with self._asking:  # on Windows the place to lock is the descriptor's position
            if owner in self.held:
                return True
            # A shared lock, so that two who look at the same time do not see each other.
            if not self._locked(owner, shared=True):
                return True
            self._unlocked(owner)
            return False

    def _locked(self, owner: int, *, shared: bool) -> bool:
        try:
            if sys.platform == "win32":  # pragma: no cover - runs on Windows only
                os.lseek(self._descriptors[-1], owner, os.SEEK_SET)
                msvcrt.locking(self._descriptors[-1], msvcrt.LK_NBLCK, 1)
            else:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.lockf(self._descriptors[-1], kind | fcntl.LOCK_NB, 1, owner)
        except OSError:
            return False
        return True

    def _unlocked(self, owner: int) -> None:
        if sys.platform == "win32":  # pragma: no cover - runs on Windows only
            os.lseek(self._descriptors[-1], owner, os.SEEK_SET)
            with contextlib.suppress(OSError):
                msvcrt.locking(self._descriptors[-1], msvcrt.LK_UNLCK, 1)
        else:
            fcntl.lockf(self._descriptors[-1], fcntl.LOCK_UN, 1, owner)


_FILES: dict[str, _LockFile] = {}
_lock = threading.Lock()


def _forget_parent() -> None:
    """Let a forked child begin anew: it has none of the locks that its parent holds."""
    global _lock  # noqa: PLW0603 - another thread of the parent's may have held it
    _lock = threading.Lock()
    for file in _FILES.values():
        file.close()
    _FILES.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_forget_parent)


class Ownership:
    """The claim of a store to its runs, and its view of the claims of other stores.

    Args:
        path: The database, links resolved, so that all who use it find one lock file: it is
            beside it, with ``-owners`` added to its name.
        claims: Whether the store makes a claim. If not, it only looks, and creates no file.

    Attributes:
        owner: The number under which this store owns runs; 0 without a claim.

    Raises:
        StoreFileError: The lock file cannot be used.
    """

    def __init__(self, path: Path, *, claims: bool = True) -> None:
        self._key = str(path)
        self._open = True
        lock_path = path.with_name(f"{path.name}-owners")
        with _lock:
            file = _FILES.setdefault(self._key, _LockFile(lock_path))
            try:
                file.open(claims=claims)
            except OSError as error:
                if not file.users:
                    del _FILES[self._key]
                msg = f"the lock file {str(lock_path)!r} cannot be used: {error}"
                raise StoreFileError(msg) from error
            file.users += 1
            self._file = file
            self.owner = file.lock() if claims else 0

    def is_alive(self, owner: object) -> bool:
        """Return whether that owner still lives, in this process or in another."""
        return isinstance(owner, int) and self._file.is_held(owner)

    def close(self) -> None:
        """Release the claim."""
        with _lock:
            if not self._open:
                return
            self._open = False
            if self.owner:
                self._file.unlock(self.owner)
            self._file.users -= 1
            if not self._file.users:
                del _FILES[self._key]
                self._file.close()
