"""Sets that torchvision reads, and downloads on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision

from args_helper import Config
from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError

HELD_OUT = 5000


def load_fetched(name: str, spec: DataSpec, config: Config, files: str) -> Source:
    """A set of torchvision's with its own training and test part; 5,000 training images are for validation.

    Args:
        name: of its class in `torchvision.datasets`.
        spec: what the set declares.
        config: its `data` is the folder that has the set, or gets it.
        files: what to put where, by hand, ending before "into <folder>".

    Raises:
        UserError: it is not there and cannot be downloaded, or what is there cannot be read.
    """
    root, kind = Path(config.data), getattr(torchvision.datasets, name)
    try:
        train, test = (_in_memory(kind(str(root), train=train, download=True), spec) for train in (True, False))
    # torchvision asserts and raises all kinds of errors where a file is cut off or of another kind.
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{_title(name)} is not in {root} and cannot be downloaded ({why}); put {files} into {root}, or name the "
            "folder that has it with --data"
        ) from error
    return Source(spec, train, test, None, HELD_OUT)


def _in_memory(part: Any, spec: DataSpec) -> ImageSet:
    """Images (n, C, H, W), from (n, H, W, 3) or grey (n, H, W), and labels (n,).

    Raises:
        ValueError: they are of another set, or damaged.
    """
    images = torch.as_tensor(part.data)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    found = ImageSet(images.contiguous(), torch.as_tensor(part.targets))
    if images.dtype != torch.uint8 or images.shape[1:] != spec.shape or found.labels.shape != images.shape[:1]:
        raise ValueError(f"its images are {tuple(images.shape)} and its labels {tuple(found.labels.shape)}")
    if not len(found) or found.labels.min() < 0 or found.labels.max() >= len(spec.classes):
        raise ValueError("it has no images, or labels of no class")
    return found


def _title(name: str) -> str:
    """CIFAR10 as its makers write it, CIFAR-10."""
    return name.replace("CIFAR", "CIFAR-")
