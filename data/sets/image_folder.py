"""A user's folder of images: `train/<class>/*`, `test/<class>/*` and, optionally, `val/<class>/*`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from args_helper import Config
from data.class_folders import Part, find_classes, find_part
from data.decoded_cache import read_decoded
from data.spec import DataSpec, Source
from utils.errors import UserError

SPEC = None
LAYOUT = "an ImageFolder has train/<class>/*.jpg, test/<class>/*.jpg and, if you like, val/<class>/*.jpg"
# Random shifts by up to an eighth suit small images, which the object fills. Larger images are photographs, which a
# black border that wide would distort, so they are only mirrored.
LARGEST_PADDED = 64


def load(config: Config) -> Source:
    """Read the folder `config.data`; images are resized to `image_size` squares, or with 0 keep their common size.

    The decoded images are cached beside the data, in one file, until a file's name, size or modification time changes.

    Raises:
        UserError: the folder or its images are missing, a split has unknown classes, or an image cannot be read.
    """
    root = Path(config.data)
    classes, parts = _find(root)
    sets = read_decoded(root, parts, config.image_size, config)
    spec = _spec(sets["train"].images, classes)
    return Source(spec, sets["train"], sets["test"], sets.get("val"), len(sets["train"]) // 10)


def _find(root: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """Find the classes, which are the folders in `train/`, and the files of each split."""
    for name in ("train", "test"):
        if not (root / name).is_dir():
            raise UserError(f"there is no folder {root / name}; {LAYOUT} under --data")
    classes = find_classes(root / "train")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    return classes, {name: find_part(root / name, classes, LAYOUT) for name in splits}


def _spec(images: Tensor, classes: tuple[str, ...]) -> DataSpec:
    """Compute the statistics of the training images; pad small images by an eighth of their size, mirror all.

    A histogram of the 256 values gives exact sums without a floating-point copy of all images.

    Args:
        images: (n, 3, H, W) uint8, the training split before validation images are held out.
        classes: the class names, in the order of the labels.

    Returns:
        The spec; no standard deviation is below 1/255, so that a channel of one value is not divided by 0.
    """
    histogram = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    pixel = torch.arange(256, dtype=torch.float64) / 255
    share = histogram / histogram.sum(1, keepdim=True)
    mean = share @ pixel
    deviation = (share @ pixel.square() - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
    shape = tuple(images.shape[1:])
    pad = min(shape[1:]) // 8 if max(shape[1:]) <= LARGEST_PADDED else 0
    return DataSpec(shape, classes, tuple(mean.tolist()), tuple(deviation.tolist()), pad, flip=True)
