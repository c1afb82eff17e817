"""What torchrun says, in environment variables, to the processes that it starts; who of them speaks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

HEAD_START = 2.0
"""Seconds that the first rank has for saying what went wrong: when it has ended, torchrun ends the others."""


@dataclass(frozen=True)
class Launch:
    """A process among those that were started together; the defaults are those of one that was started alone.

    Attributes:
        rank, world: which one of how many.
        local_rank, local_world: which one of how many on this machine.
        restart: how often torchrun has started them again.
        may_restart: whether torchrun was told to start them again when one ends.
        by_torchrun: whether it was torchrun that has started this one.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    restart: int = 0
    may_restart: bool = False
    by_torchrun: bool = False

    @property
    def command(self) -> str:
        """What such processes are started with, in front of `main.py`."""
        if self.world == 1:
            return "python"
        # How several machines find one another is their user's to know.
        return f"torchrun --nproc-per-node={self.local_world}{' ...' if self.world > self.local_world else ''}"


def launched() -> Launch:
    """How this process was started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # Slurm and others set RANK as well, and mean something else
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    numbers = [int(os.environ[name]) for name in names]
    return Launch(*numbers, may_restart=int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0, by_torchrun=True)


@contextmanager
def printed_once() -> Iterator[None]:
    """Within: only the first rank prints."""
    if launched().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def wait_for_first() -> None:
    """Let the first rank say what went wrong; a rank that is still there afterwards has something of its own to say."""
    if launched().rank:
        time.sleep(HEAD_START)
