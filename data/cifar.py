"""CIFAR-10, read by torchvision, which downloads it on first use.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError

if TYPE_CHECKING:
    from args_helper import Config

SPEC = DataSpec(
    shape=(3, 32, 32),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    pad=4,
    flip=True,
)
HELD_OUT = 5000


def load(config: Config) -> Source:
    """50,000 images for training, of which 5,000 are for validation, and 10,000 for testing.

    Raises:
        UserError: it is not there and cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10

    root = Path(config.data)
    try:
        parts = [CIFAR10(str(root), train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"CIFAR-10 is not in {root} and cannot be downloaded ({error}); put cifar-10-python.tar.gz, or the folder "
            f"cifar-10-batches-py that it unpacks to, into {root}, or name the folder that has it with --data"
        ) from error
    train, test = (
        ImageSet(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in parts
    )
    return Source(SPEC, train, test, None, HELD_OUT)
