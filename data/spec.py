"""What a data set declares about itself, and the splits that training sees."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False


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
class Source:
    """A data set as it was read, before anything is held out.

    Attributes:
        spec: what it declares.
        train, test: as the data set itself divides them.
        val: a validation set of its own, if it has one.
        val_size: how many training images to hold out for validation where it has none.
    """

    spec: DataSpec
    train: ImageSet
    test: ImageSet
    val: ImageSet | None
    val_size: int
