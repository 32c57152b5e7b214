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
        self.path = path
        self.users = 0
        self.held: set[int] = set()
        self._asking = threading.Lock()
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self.descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)

    def lock(self) -> int:
        """Hold a byte that nobody else holds, and return its place."""
        with self._asking:
            while True:
                owner = secrets.randbelow(_MOST_OWNERS) + 1
                if self._locked(owner, shared=False):  # pragma: no branch - taken once in 2**40
                    self.held.add(owner)
                    return owner

    def unlock(self, owner: int) -> None:
        """Hold it no more."""
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
                os.lseek(self.descriptor, owner, os.SEEK_SET)
                msvcrt.locking(self.descriptor, msvcrt.LK_NBLCK, 1)
            else:
                kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
                fcntl.lockf(self.descriptor, kind | fcntl.LOCK_NB, 1, owner)
        except OSError:
            return False
        return True

    def _unlocked(self, owner: int) -> None:
        if sys.platform == "win32":  # pragma: no cover - runs on Windows only
            os.lseek(self.descriptor, owner, os.SEEK_SET)
            with contextlib.suppress(OSError):
                msvcrt.locking(self.descriptor, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, owner)


_FILES: dict[str, _LockFile] = {}
_lock = threading.Lock()


def _forget_parent() -> None:
    """Let a forked child begin anew: it has none of the locks that its parent holds."""
    global _lock  # noqa: PLW0603 - another thread of the parent's may have held it
    _lock = threading.Lock()
    for file in _FILES.values():
        os.close(file.descriptor)
    _FILES.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_forget_parent)


class Ownership:
    """This store's claim to its runs.

    Args:
        path: The database, links resolved, so that all who use it find one lock file: it is
            beside it, with ``-owners`` added to its name.

    Attributes:
        owner: The number under which this store owns runs.

    Raises:
        StoreFileError: The lock file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._key = str(path)
        self._open = True
        lock_path = path.with_name(f"{path.name}-owners")
        with _lock:
            file = _FILES.get(self._key)
            if file is None:
                try:
                    file = _FILES[self._key] = _LockFile(lock_path)
                except OSError as error:
                    msg = f"the lock file {str(lock_path)!r} cannot be used: {error}"
                    raise StoreFileError(msg) from error
            file.users += 1
            self._file = file
            self.owner = file.lock()

    def is_alive(self, owner: int | None) -> bool:
        """Return whether that owner still lives, in this process or in another."""
        return owner is not None and self._file.is_held(owner)

    def close(self) -> None:
        """Give the claim up."""
        with _lock:
            if not self._open:
                return
            self._open = False
            self._file.unlock(self.owner)
            self._file.users -= 1
            if not self._file.users:
                del _FILES[self._key]
                os.close(self._file.descriptor)
