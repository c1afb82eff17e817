"""A run folder belongs to one process at a time; the lock of a process that has died is free at once."""

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
except ImportError:  # there is none on Windows
    fcntl = None

PATIENCE = 6.0
"""Seconds until a lock counts as another's: the data workers of a process that was killed outlive it by up to 5."""


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder, which has to be there, for the time within.

    Args:
        folder: of a run.
        patience: seconds to wait for it.

    Raises:
        UserError: another process is at work in it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another process: let it end, or stop it first") from error
    except NotImplementedError:  # not every network file system has locks
        warnings.warn(f"the file system of {folder} has no locks: see to it that no two processes use it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process is at work in a folder now."""
    try:
        with locked(folder, patience=0):
            return False
    except UserError:
        return True


class Claim:
    """A lock that a child process can be given: it is held until all who have it are gone, however they went.

    Args:
        path: of the lock's file, which stays.

    Attributes:
        handles: what a child is given (`pass_fds`), so that it holds the claim as well.
    """

    def __init__(self, path: Path) -> None:
        self.handles: tuple[int, ...] = ()
        self._lock: FileLock | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if fcntl is None:  # a child cannot hold it there
            self._lock = FileLock(path)
            self._lock.acquire(timeout=0)
            return
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                os.close(handle)
                raise Timeout(str(path)) from error
            warnings.warn(f"the file system of {path.parent} has no locks: start one process only", stacklevel=3)
        self.handles = (handle,)

    @classmethod
    def of(cls, path: Path) -> Claim | None:
        """The claim to what this file stands for, or None: another has it."""
        try:
            return cls(path)
        except Timeout:
            return None

    def release(self) -> None:
        """Give it up; a child that was given it keeps it until it ends."""
        for handle in self.handles:
            os.close(handle)  # unlocking it would take it from the child, too
        self.handles = ()
        if self._lock is not None:
            self._lock.release()
