"""The types of a data set: its declaration, images in memory or stored, and a set as read.

A module in `data.sets` declares a `DataSpec` as `SPEC`, and its `load(config)` returns a `Source`. Networks and batches
know no more of a data set than its `DataSpec`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """The shape, classes, statistics and augmentation of a data set.

    Attributes:
        shape: (channels, height, width) of an image.
        classes: the class names, in the order of the labels.
        mean, std: average and standard deviation of each channel over the training set, with pixels in [0, 1].
        pad: black pixels added on every side of a training image before a random crop to its size; 0: no crop.
        flip: whether training images are mirrored with probability 1/2.
        zoom: whether training images are random crops of the image files instead (see `data.streamed_batches`).
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False
    zoom: bool = False

    @property
    def task(self) -> str:
        """The images and classes in words; the same for all data with this shape of images and these class names."""
        names = hashlib.sha256("\0".join(self.classes).encode()).hexdigest()[:8]
        return f"images of {'×'.join(map(str, self.shape))} in {len(self.classes)} classes ({names})"


def numbered(count: int) -> tuple[str, ...]:
    """Make placeholder class names, for sets whose class names are only known from their folders."""
    return tuple(f"class {number}" for number in range(count))


def as_found(spec: DataSpec, classes: tuple[str, ...], size: int, title: str) -> DataSpec:
    """Adapt a declared spec to the classes found on disk and to the image size the user asked for.

    Warns if the number of classes differs: a part of a set can be trained on, but its metrics are not comparable.

    Args:
        spec: the declared spec.
        classes: the classes found.
        size: side of the square images; 0: the declared shape.
        title: the set's name.

    Returns:
        The spec with these classes and this size; statistics and augmentation stay those declared.
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
        """Return the images and labels at these indices."""
        return ImageSet(self.images[indices], self.labels[indices])

    def to(self, device: str) -> ImageSet:
        """Return the same set on another device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


class StoredImages(Protocol):
    """Images that are not held in memory: `data.image_files.ImageFiles` or `data.packs.folder.PackedImages`.

    Attributes:
        labels: (n,) int64.
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> StoredImages:
        """Return the images and labels at these indices."""

    def path(self, index: int) -> Path:
        """Return where an image is, for messages."""

    def pixels(self, index: int, surplus: Callable[[int, int], float] | None = None) -> Tensor:
        """Read an image, (3, height, width) uint8.

        Args:
            index: of the image.
            surplus: (height, width) -> by how much the image is larger than needed; a JPEG may then be decoded to a
                half, a quarter or an eighth of its size, which is faster.

        Raises:
            UserError: it cannot be read.
        """

    def encoded(self, index: int, surplus: Callable[[int, int], float]) -> Tensor | None:
        """Return the bytes of an upright JPEG in grey or RGB, (n,) uint8, that is to be decoded to its full size.

        Args:
            index: of the image.
            surplus: as for `pixels`.

        Returns:
            None if it is another image, or damaged: `pixels` reads it, or says what is wrong.
        """

    def stamps(self, root: Path) -> list[Any]:
        """Return JSON values that change when the images do, paths relative to `root`."""


@dataclass(frozen=True)
class Source:
    """A data set as read, before anything is held out.

    Attributes:
        spec: the set's declaration.
        train, test: the set's own split; in memory, or to be streamed if they do not fit.
        val: the set's own validation set, or None.
        val_size: how many training images to hold out for validation if `val` is None.
    """

    spec: DataSpec
    train: ImageSet | StoredImages
    test: ImageSet | StoredImages
    val: ImageSet | StoredImages | None
    val_size: int
