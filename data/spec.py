"""What a data set declares about itself, and the splits that training sees."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """Shape, classes, statistics and augmentation of a data set.

    Attributes:
        shape: (channels, height, width) of an image.
        classes: their names, in the order of the labels.
        mean, std: of each channel over the training set, pixels in [0, 1].
        pad: training images are padded by so many black pixels on every side and cropped back at random; 0: never.
        flip: whether training images are mirrored, every other one by chance.
        zoom: whether training images are random parts of their files' images instead (see `data.streamed_batches`).
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    zoom: bool = False


def numbered(count: int) -> tuple[str, ...]:
    """Stand-ins for the names of classes that are known only once a set's folders are read."""
    return tuple(f"class {number}" for number in range(count))


def as_found(spec: DataSpec, classes: tuple[str, ...], size: int, title: str) -> DataSpec:
    """What a set declares, with the classes whose folders were found, and images of the size that was asked for.

    Warns of another number of classes: a part of a set can be trained on, but its figures are not the set's.

    Args:
        spec: as declared.
        classes: as found.
        size: of squares; 0: as declared.
        title: of the set.
    """
    if len(classes) != len(spec.classes):
        warnings.warn(f"{title} has {len(spec.classes)} classes, but {len(classes)} were found", stacklevel=3)
    return replace(spec, classes=classes, shape=(3, size, size) if size else spec.shape)


@dataclass(frozen=True)
class ImageSet:
    """Images and labels in memory, on one device.

    Attributes:
        images: (n, channels, height, width) uint8.
        labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images and labels at these indices."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: str) -> ImageSet:
        """The same on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageFiles:
    """Images that stay on the disk, and their labels.

    Attributes:
        root: the folder that the names are relative to.
        names: (n,) of the files, as bytes: a million `Path`s in every process that decodes would take gigabytes.
        labels: (n,) int64.
    """

    root: Path
    names: np.ndarray[Any, np.dtype[np.bytes_]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageFiles:
        """The files and labels at these indices."""
        return ImageFiles(self.root, self.names[indices.numpy()], self.labels[indices])

    def path(self, index: int) -> Path:
        """Of the file at an index."""
        return self.root / os.fsdecode(self.names[index])


@dataclass(frozen=True)
class Source:
    """A data set as it was read, before anything is held out.

    Attributes:
        spec: what it declares.
        train, test: as the data set itself divides them; in memory, or files to be streamed where they do not fit.
        val: a validation set of its own, if it has one.
        val_size: how many training images to hold out for validation where it has none.
    """

    spec: DataSpec
    train: ImageSet | ImageFiles
    test: ImageSet | ImageFiles
    val: ImageSet | ImageFiles | None
    val_size: int
