"""A run folder belongs to one process at a time; the lock of a process that has died is free at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

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
