"""Splits and batches: whole sets as uint8 on the device; cropping, flipping and normalising there, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from data.spec import DataSpec, ImageSet, Source
from utils.run import derive_rng

if TYPE_CHECKING:
    from args_helper import Config

Batch = tuple[Tensor, Tensor]
"""(images (B, C, H, W) float32, normalised; labels (B,) int64)."""


@dataclass(frozen=True)
class Splits:
    """What a run trains on, what it may choose by, and what it only reports.

    Attributes:
        spec: of the data set.
        train: batches, augmented and shuffled.
        val: held out of training, never augmented; None when nothing was held out.
        test: never augmented, and nothing is ever selected on it.
    """

    spec: DataSpec
    train: TrainBatches
    val: PlainBatches | None
    test: PlainBatches


def divide(source: Source, config: Config) -> Splits:
    """Hold the validation set out of the training set by the seed, and move everything to the device."""
    train, val = source.train, source.val
    if config.use_full_data:
        val = None
    elif val is None:
        order = torch.randperm(len(train), generator=derive_rng(config.effective_seed, "data", "split"))
        train, val = train.subset(order[source.val_size :].sort().values), train.subset(order[: source.val_size])
    spec, device = source.spec, config.torch_device
    return Splits(
        spec,
        TrainBatches(train.to(device), spec, config.batch_size),
        PlainBatches(val.to(device), spec) if val else None,
        PlainBatches(source.test.to(device), spec),
    )


class PlainBatches:
    """A split in order, normalised, for evaluation.

    Args:
        images: the split.
        spec: its statistics.
    """

    def __init__(self, images: ImageSet, spec: DataSpec) -> None:
        self._set = images
        self._normalise = Normalise(spec, images.images.device)
        # On a CPU, batches of 250 keep activations in the cache; a GPU wants to be filled.
        self._size = 250 if images.images.device.type == "cpu" else 2000

    def __len__(self) -> int:
        return len(self._set)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in zip(self._set.images.split(self._size), self._set.labels.split(self._size)):
            yield self._normalise(images), labels


class TrainBatches:
    """Batches of the training split. All that is random in an epoch is drawn at its start; a step only indexes.

    Args:
        images: the split.
        spec: its statistics and augmentation.
        batch_size: of every batch but the last, which has what is left.
    """

    def __init__(self, images: ImageSet, spec: DataSpec, batch_size: int) -> None:
        self.images = images
        self.spec = spec
        self.batch_size = batch_size
        self._normalise = Normalise(spec, images.images.device)
        # Black before normalising, as when PIL pads. Channels last: one index then fetches a pixel's channels.
        self._padded = F.pad(images.images, (spec.pad,) * 4).permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, generator: torch.Generator, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on, each image once in the whole epoch.

        Args:
            generator: of this epoch, on the CPU, so that the draws are the same on every device.
            first_step: how many batches to leave out, without drawing anything differently.
        """
        count, device = len(self.images), self._padded.device
        order = torch.randperm(count, generator=generator).to(device)
        rows, columns = (places.to(device) for places in self._crops(count, generator))
        for start in range(first_step * self.batch_size, count, self.batch_size):
            drawn = slice(start, start + self.batch_size)
            chosen = order[drawn]
            images = self._padded[chosen[:, None, None], rows[drawn, :, None], columns[drawn, None, :]]
            yield self._normalise(images.permute(0, 3, 1, 2)), self.images.labels[chosen]

    def unaugmented(self) -> TrainBatches:
        """The same images, shuffled alike, neither cropped nor flipped."""
        return TrainBatches(self.images, replace(self.spec, pad=0, flip=False), self.batch_size)

    def stratified(self, per_class: int, generator: torch.Generator) -> Batch:
        """So many images of every class (all it has, where it has fewer), not augmented, in random order."""
        order = torch.randperm(len(self.images), generator=generator)
        labels = self.images.labels.cpu()[order]
        chosen = torch.cat([order[labels == label][:per_class] for label in labels.unique()])
        batch = self.images.subset(chosen[torch.randperm(len(chosen), generator=generator)].to(self._padded.device))
        return self._normalise(batch.images), batch.labels

    def _crops(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The rows (count, H) and columns (count, W) of the padded images to take; mirrored columns are a flip."""
        _, height, width = self.spec.shape
        offsets = torch.randint(2 * self.spec.pad + 1, (2, count, 1), generator=generator)
        flipped = torch.rand(count, 1, generator=generator) < (0.5 if self.spec.flip else 0.0)
        across = torch.arange(width)
        columns = offsets[1] + torch.where(flipped, width - 1 - across, across)
        return offsets[0] + torch.arange(height), columns


class Normalise:
    """Images uint8 (B, C, H, W) to float32 with mean 0 and deviation 1 over the training set, channel by channel.

    Args:
        spec: its statistics.
        device: of the images.
    """

    def __init__(self, spec: DataSpec, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std))
        self._scale, self._shift = 1.0 / (255.0 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift).contiguous()
