"""Splits and batches: whole sets as uint8 on the device; cropping, flipping and normalising there, in batches.

Sets too large for that are streamed, by `data.streamed_batches`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from data.normalise import Batch, Normalise
from data.spec import DataSpec, ImageSet
from data.split import batch_cuts, some_of_every_class
from utils.distributed.collectives import own_part, own_share


def batch_for_evaluation(device: str, shape: tuple[int, int, int]) -> int:
    """How many images to evaluate at once.

    On a CPU, small batches keep activations in the cache. A GPU wants to be filled, by large images or many small
    ones: memory grows with the pixels.

    Args:
        device: `cpu`, `cuda` or `mps`.
        shape: (C, H, W) of an image.
    """
    return 100 if device == "cpu" else min(2_000, max(1, 2_000 * 32 * 32 // (shape[1] * shape[2])))


class PlainBatches:
    """A split in order, normalised, for evaluation; of several ranks each gets its own of the batches.

    Args:
        images: the split.
        spec: its statistics.
    """

    def __init__(self, images: ImageSet, spec: DataSpec) -> None:
        self.images = images
        self._normalise = Normalise(spec, images.images.device)
        self._size = batch_for_evaluation(images.images.device.type, spec.shape)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        batches = zip(self.images.images.split(self._size), self.images.labels.split(self._size))
        for images, labels in own_share(batches):
            yield self._normalise(images), labels


class TrainBatches:
    """Batches of the training split. All that is random in an epoch is drawn at its start; a step only indexes.

    Args:
        images: the split.
        spec: its statistics and augmentation.
        batch_size: of every batch but the last (see `data.split.batch_cuts`).
    """

    def __init__(self, images: ImageSet, spec: DataSpec, batch_size: int) -> None:
        _, height, width = spec.shape
        # Black before normalising, as when PIL pads; padding by nothing would copy all the same.
        padded = F.pad(images.images, (spec.pad,) * 4) if spec.pad else images.images
        # Held once: the images are a view of the padded ones.
        self.images = ImageSet(padded.narrow(2, spec.pad, height).narrow(3, spec.pad, width), images.labels)
        self.spec = spec
        self.batch_size = batch_size
        self._cuts = batch_cuts(len(images), batch_size)
        self._normalise = Normalise(spec, images.images.device)
        # Every crop of every image, (n, 2·pad + 1, 2·pad + 1, C, H, W): one index then copies whole rows of pixels.
        self._crops = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.images.images.device

    def size(self, step: int) -> int:
        """How many images the batch of this step (0-based in its epoch) has."""
        return self._cuts[step].stop - self._cuts[step].start

    def epoch(self, generator: torch.Generator, first_step: int = 0, shared: bool = False) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on, each image once in the whole epoch.

        Args:
            generator: of this epoch, on the CPU, so that the draws are the same on every device and rank.
            first_step: how many batches to leave out, without drawing anything differently.
            shared: give only this rank's part of each batch, which may be empty.
        """
        count, device = len(self.images), self.device
        order = torch.randperm(count, generator=generator).to(device)
        down, right = torch.randint(2 * self.spec.pad + 1, (2, count), generator=generator).to(device)
        flipped = torch.rand(count, 1, 1, 1, generator=generator) < (0.5 if self.spec.flip else 0.0)
        flipped = flipped.to(device)
        for cut in self._cuts[first_step:]:
            drawn = own_part(cut.start, cut.stop) if shared else cut
            chosen = order[drawn]
            images = self._crops[chosen, down[drawn], right[drawn]]
            if self.spec.flip:
                images = torch.where(flipped[drawn], images.flip(-1), images)
            yield self._normalise(images), self.images.labels[chosen]

    def unaugmented(self) -> TrainBatches:
        """The same images, shuffled alike, neither cropped nor flipped."""
        return TrainBatches(self.images, replace(self.spec, pad=0, flip=False), self.batch_size)

    def stratified(self, per_class: int, generator: torch.Generator) -> Batch:
        """So many images of every class (all it has, where it has fewer), not augmented, in random order."""
        chosen = some_of_every_class(self.images.labels.cpu(), per_class, generator)
        batch = self.images.subset(chosen.to(self.device))
        return self._normalise(batch.images), batch.labels
