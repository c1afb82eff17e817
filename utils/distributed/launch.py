"""How torchrun started this process, from its environment variables, its share of the processors, and which one prints.

It imports no torch, and is used before a process group exists, such as for the message of a wrong option.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

HEAD_START = 2.0
"""Seconds that rank 0 has to print an error: once it has ended, torchrun ends the other ranks."""


@dataclass(frozen=True)
class Launch:
    """This process's position among those started together; the defaults describe a single process.

    Attributes:
        rank, world: the rank, and the number of ranks.
        local_rank, local_world: the same on this machine.
        restart: how often torchrun has restarted the processes.
        may_restart: whether torchrun restarts them when one ends (`--max-restarts`).
        by_torchrun: whether torchrun started this process.
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
        """The command that starts such processes, up to `main.py`."""
        if self.world == 1:
            return "python"
        # "...": only the user knows the rendezvous options of several machines.
        return f"torchrun --nproc-per-node={self.local_world}{' ...' if self.world > self.local_world else ''}"


def launched() -> Launch:
    """Return how this process was started."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # Slurm and others set RANK too, with another meaning
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    numbers = [int(os.environ[name]) for name in names]
    return Launch(*numbers, may_restart=int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0, by_torchrun=True)


def usable_workers(asked: int) -> int:
    """Limit the number of workers to this process's share of the processors, because each keeps one busy."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, max(1, there // launched().local_world))


@contextmanager
def printed_once() -> Iterator[None]:
    """Discard the standard output of all ranks but rank 0 for the block."""
    if launched().rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def wait_for_first() -> None:
    """Give rank 0 time to print its error; a rank that still runs afterwards has an error of its own to print."""
    if launched().rank:
        time.sleep(HEAD_START)
