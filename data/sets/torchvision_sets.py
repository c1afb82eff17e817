"""Loads the sets that torchvision reads, and downloads on first use; the modules of MNIST and CIFAR call it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torchvision

from args_helper import Config
from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError
from utils.files import make_folder
from utils.run.lock import locked

HELD_OUT = 5000


def load_fetched(name: str, spec: DataSpec, config: Config, files: str) -> Source:
    """Load a torchvision set with its own training and test split; hold out 5,000 training images for validation.

    Args:
        name: the set's class in `torchvision.datasets`.
        spec: the set's declaration.
        config: its `data` is the folder that holds the set, or to which it is downloaded.
        files: the files to fetch by hand, for the message "put FILES into FOLDER".

    Returns:
        Both splits in memory, on the CPU, as uint8; `val` is None, and `val_size` 5,000.

    Raises:
        UserError: the set is not found and cannot be downloaded, or its files cannot be read.
    """
    root, kind = Path(config.data), getattr(torchvision.datasets, name)

    def read(download: bool) -> list[ImageSet]:
        return [_in_memory(kind(str(root), train=train, download=download), spec) for train in (True, False)]

    try:
        try:
            train, test = read(download=False)
        except Exception:
            inner = root / name / "raw"
            made = [path for path in (inner, *inner.parents) if not path.exists()]
            make_folder(root)
            # Another process may be downloading into the same files.
            with locked(root, patience=-1), _without_leftovers(root, made):
                train, test = read(download=True)
    # For truncated or wrong files torchvision raises AssertionError and many other errors.
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        title = name.replace("CIFAR", "CIFAR-")  # as its authors write it
        raise UserError(
            f"{title} is not in {root} and cannot be downloaded ({why}); put {files} into {root}, or name the "
            "folder that has it with --data"
        ) from error
    return Source(spec, train, test, None, HELD_OUT)


@contextmanager
def _without_leftovers(root: Path, made: Sequence[Path]) -> Iterator[None]:
    """Remove, when the block fails, the folders made for it, innermost first, unless they hold more than the lock."""
    try:
        yield
    except Exception:
        for path in made:
            with suppress(OSError):  # it is not empty, or was never made
                if path == root and [one.name for one in root.iterdir()] == [".lock"]:
                    (root / ".lock").unlink()  # held until then, so that no other process is inside
                path.rmdir()
        raise


def _in_memory(part: Any, spec: DataSpec) -> ImageSet:
    """Convert images (n, H, W, 3), or grey (n, H, W), to (n, C, H, W), and labels to (n,).

    Raises:
        ValueError: the files are of another set, or damaged.
    """
    images = torch.as_tensor(part.data)
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    found = ImageSet(images.contiguous(), torch.as_tensor(part.targets))
    if images.dtype != torch.uint8 or images.shape[1:] != spec.shape or found.labels.shape != images.shape[:1]:
        raise ValueError(f"its images are {tuple(images.shape)} and its labels {tuple(found.labels.shape)}")
    if not len(found) or found.labels.min() < 0 or found.labels.max() >= len(spec.classes):
        raise ValueError("it has no images, or labels of no class")
    return found
