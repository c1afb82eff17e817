"""The memory of this process: what the C library keeps of it, and the most that was in use."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's options: more free memory than this at the heap's end, and blocks as large as this, go back to the
system when they are freed."""
USUAL_BLOCK = 32 * 2**20
"""What glibc raises its MMAP_THRESHOLD to by itself, in bytes, and its TRIM_THRESHOLD to twice as much."""


def keep_freed_memory(kept: bool = True) -> None:
    """Make glibc keep freed memory for the next tensors, or, if not `kept`, return it to the system as it usually does.

    A step frees its activations, and the next one allocates as much again. To return that memory and take it back page
    by page takes time; `trainers.benchmark.loading` measures how much. Other C libraries stay as they are.
    """
    if set_option := _of_the_c_library("mallopt"):
        if not kept or not set_option(MMAP_THRESHOLD, 2**31 - 1):  # which an old glibc refuses
            set_option(MMAP_THRESHOLD, USUAL_BLOCK)
        set_option(TRIM_THRESHOLD, -1 if kept else 2 * USUAL_BLOCK)


def reset_peak_memory(device: torch.device) -> None:
    """Make `peak_memory` count from here on, if the operating system can."""
    if trim := _of_the_c_library("malloc_trim"):
        trim(0)  # what is freed and kept is no memory in use
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")  # 5 sets VmHWM, which `peak_memory` reads, to the current RSS


def peak_memory(device: torch.device) -> int:
    """Return the peak since `reset_peak_memory` in bytes: of allocated GPU tensors, else of the process's RSS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _of_the_c_library(function: str) -> Callable[..., int] | None:
    """Return a function of the C library; None if it has no such function, as outside Linux."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        return getattr(ctypes.CDLL(None), function)
    return None
