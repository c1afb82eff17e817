"""The machine a run is on: its device, and what has to be known to repeat the run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from utils.distributed.collectives import world_size
from utils.errors import UserError

PACKAGES = ("torchvision", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors")
PROJECT = Path(__file__).resolve().parent.parent


def choose_device(wanted: str, gpu: int, no_cuda: bool) -> str:
    """`cpu`, `cuda` or `mps` for what was wanted; `auto` is CUDA where there is such a GPU.

    Raises:
        UserError: a device was named that is not there.
    """
    if wanted == "auto":
        return "cuda" if not no_cuda and gpu < torch.cuda.device_count() else "cpu"
    if wanted == "cuda" and gpu >= torch.cuda.device_count():
        first = "--gpu 0 or " if torch.cuda.device_count() else ""
        raise UserError(f"device cuda: there is no GPU number {gpu} here; give {first}--device cpu")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: there is none here; give --device cpu")
    return wanted


def device_name(device: str) -> str:
    """The device in words, such as `cpu (2 threads)`."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{device} ({torch.get_num_threads()} threads)" if device == "cpu" else device


def device_of_doubles(device: str) -> str:
    """Where to compute in float64 for a device: on itself, or, as MPS has no float64, on the CPU."""
    return "cpu" if device.startswith("mps") else device


def describe_environment(device: str) -> dict[str, Any]:
    """Versions, commit, machine and device, as JSON values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"torch": torch.__version__, **{name: _version(name) for name in PACKAGES}},
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "device": device_name(device),
        "world_size": world_size(),
        "cuda": torch.version.cuda if device.startswith("cuda") else None,
    }


def mixed(precision: str, device: torch.device) -> torch.autocast:
    """Within: convolutions and matrix products in bfloat16 where `precision` is `bf16`; else nothing is different."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def be_deterministic(wanted: bool) -> None:
    """Let PyTorch take only operations that give the same bits at every run, or the fastest; before a GPU is used."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products on a GPU need it
    # Batches have one size, but for the last: trying out cuDNN's convolutions pays. Which is fastest is left to chance.
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def naming_nondeterminism() -> Iterator[None]:
    """Within: an operation that cannot be deterministic, where it has to be, is an error that names it.

    Raises:
        UserError: there was one.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(.+?) does not have a deterministic implementation", str(error))
        if not found:
            raise
        raise UserError(f"deterministic: {found[1]} has no deterministic implementation on this device") from error


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors allocated on a GPU, else resident in this process; the most since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git says of the project; None where it is no checkout or there is no git."""
    try:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
