"""Locks that give a folder to one process at a time; the lock of a process that died is free at once."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no fcntl
    fcntl = None

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems without locks answer."""

PATIENCE = 6.0
"""Seconds to wait for a lock: the data workers of a killed process outlive it, and its lock, by up to 5."""


@contextmanager
def locked(folder: Path, patience: float | None = None) -> Iterator[None]:
    """Lock an existing folder for the block.

    Args:
        folder: of a run, a pack, a downloaded set or a part of a sweep.
        patience: seconds to wait for the lock; -1: until it is free.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE if patience is None else patience)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another process: let it end, or stop it first") from error
    except (NotImplementedError, OSError) as error:  # some network file systems have no locks
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        warnings.warn(f"the file system of {folder} has no locks: see to it that no two processes use it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder now."""
    try:
        with locked(folder, patience=0):
            return False
    except UserError:
        return True


class Claim:
    """A lock that a child process can inherit; it is held until the last holder ends, even if it is killed.

    Args:
        path: the lock file, which is not deleted.

    Attributes:
        handles: file descriptors to pass to a child (`pass_fds`), so that it holds the claim too.
    """

    def __init__(self, path: Path) -> None:
        self.handles: tuple[int, ...] = ()
        self._lock: FileLock | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:  # on Windows a child cannot inherit it
            self._lock = FileLock(path)
            self._lock.acquire(timeout=0)
            return
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(handle)
                raise Timeout(str(path)) from error
            warnings.warn(f"the file system of {path.parent} has no locks: start one process only", stacklevel=3)
        self.handles = (handle,)

    @classmethod
    def of(cls, path: Path) -> Claim | None:
        """Take the claim of this lock file; return None if another process holds it."""
        try:
            return cls(path)
        except Timeout:
            return None

    def release(self) -> None:
        """Release the claim; a child that inherited it holds it until the child ends."""
        for handle in self.handles:
            os.close(handle)  # an explicit unlock would also release the child's
        self.handles = ()
        if self._lock is not None:
            self._lock.release()
