"""The machine of a run: its device, and the versions needed to repeat the run."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
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
    """Return `cpu`, `cuda` or `mps`; `auto` chooses CUDA if the GPU with this number exists.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `mps`; `auto` never chooses MPS.
        gpu: number of the GPU, from 0.
        no_cuda: forbids `auto` to choose CUDA; a device that is named is used all the same.

    Raises:
        UserError: the named device does not exist.
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
    """Describe the device, such as `cpu (2 threads)`."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device == "cpu" else device


def device_of_doubles(device: str) -> str:
    """Return the device for float64 computations: the device itself, but the CPU for MPS, which has no float64."""
    return "cpu" if device.startswith("mps") else device


def describe_environment(device: str) -> dict[str, Any]:
    """Collect versions, commit, machine and device as JSON values."""
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
    """Return a context that computes convolutions and matrix products in bfloat16 if `precision` is `bf16`.

    Weights and gradients stay float32. Gradients are not scaled, because bfloat16 has the range of float32.

    Args:
        precision: `fp32`, `tf32` or `bf16`; the first two leave the context without effect.
        device: of the forward pass.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def be_deterministic(wanted: bool) -> None:
    """Make PyTorch use deterministic operations only, or else the fastest; call it before a GPU is used.

    Later, an operation that has no deterministic implementation raises RuntimeError (see `naming_nondeterminism`).
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on a GPU need it
    # All batches but the last have one size, so benchmarking cuDNN's algorithms pays; which one wins varies by run.
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def naming_nondeterminism() -> Iterator[None]:
    """Turn PyTorch's error about a nondeterministic operation inside the block into a `UserError` that names it.

    Raises:
        UserError: an operation has no deterministic implementation although one is required.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(.+?) does not have a deterministic implementation", str(error))
        if not found:
            raise
        raise UserError(f"deterministic: {found[1]} has no deterministic implementation on this device") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """Return git's output for the project; None if it is not a checkout or git is missing."""
    try:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
