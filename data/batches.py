"""Batches of splits that are held on the device as uint8, and cropped, flipped and normalised there.

`data.streamed_batches` streams sets that are too large for this. `data.load.divide` makes the batches of a run, and the
loop in `trainers.training.loop` iterates over them. On a CPU as on a GPU, pixels stay uint8 until a batch is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from data.normalise import Batch, Normalise
from data.spec import DataSpec, ImageSet, StoredImages
from data.split import batch_cuts, some_of_every_class
from utils.distributed.collectives import own_part, own_share


def batch_for_evaluation(device: str, shape: tuple[int, int, int]) -> int:
    """Return how many images to evaluate at once.

    On a CPU, small batches keep activations in the cache. A GPU is fast only when it is full, and memory grows with
    the number of pixels, so large images make small batches.

    Args:
        device: `cpu`, `cuda` or `mps`.
        shape: (C, H, W) of an image.

    Returns:
        On a CPU 100; else 2,000 images of up to 32×32, or fewer larger ones with no more pixels in all, at least 1.
    """
    return 100 if device == "cpu" else min(2_000, max(1, 2_000 * 32 * 32 // (shape[1] * shape[2])))


class PlainBatches:
    """The batches of a split for evaluation, in order and normalised; each rank gets its share of the batches.

    Args:
        images: the split.
        spec: the data set's statistics and image shape.
    """

    def __init__(self, images: ImageSet, spec: DataSpec) -> None:
        self.images = images
        self._normalise = Normalise(spec, images.images.device)
        self._size = batch_for_evaluation(images.images.device.type, spec.shape)

    def __len__(self) -> int:
        """Return the number of images, not of batches."""
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        batches = zip(self.images.images.split(self._size), self.images.labels.split(self._size))
        for images, labels in own_share(batches):
            yield self._normalise(images), labels


class TrainingSplit:
    """A training split, divided into the batches of an epoch; the base for images in memory and for streamed ones.

    Args:
        images: the split.
        spec: the data set's statistics and augmentation.
        batch_size: size of every batch but the last (see `data.split.batch_cuts`).
        device: the device of the batches.
    """

    def __init__(self, images: ImageSet | StoredImages, spec: DataSpec, batch_size: int, device: torch.device) -> None:
        self.images, self.spec, self.batch_size, self.device = images, spec, batch_size, device
        self._cuts = batch_cuts(len(images), batch_size)
        self._normalise = Normalise(spec, device)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, which is the number of its steps."""
        return len(self._cuts)

    def size(self, step: int) -> int:
        """Return the number of images in the batch of this step (0-based in its epoch)."""
        return self._cuts[step].stop - self._cuts[step].start


class TrainBatches(TrainingSplit):
    """Batches of the training split. All random numbers of an epoch are drawn at its start; a step only indexes.

    Args:
        images: the split.
        spec: the data set's statistics and augmentation.
        batch_size: as for `TrainingSplit`.
    """

    def __init__(self, images: ImageSet, spec: DataSpec, batch_size: int) -> None:
        _, height, width = spec.shape
        # Zeros before normalising are black, as with PIL's padding. `F.pad` would copy even for a pad of 0.
        padded = F.pad(images.images, (spec.pad,) * 4) if spec.pad else images.images
        # The images are a view of the padded ones, so memory holds them once.
        view = padded.narrow(2, spec.pad, height).narrow(3, spec.pad, width)
        super().__init__(ImageSet(view, images.labels), spec, batch_size, padded.device)
        # A view of every crop of every image, (n, 2·pad + 1, 2·pad + 1, C, H, W): indexing it copies whole pixel rows.
        self._crops = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def epoch(self, generator: torch.Generator, first_step: int = 0, shared: bool = False) -> Iterator[Batch]:
        """Yield the batches of one epoch from `first_step` on; a whole epoch has each image once.

        Args:
            generator: this epoch's, on the CPU, so that it draws the same numbers on every device and rank.
            first_step: how many batches to skip; the random numbers of the others do not change.
            shared: yield only this rank's part of each batch, which may be empty.

        Yields:
            Images (B, C, H, W) float32, cropped, flipped and normalised, and labels (B,) int64, on the device.
        """
        count, device = len(self.images), self.device
        order = torch.randperm(count, generator=generator).to(device)
        # The top left corner of each image's crop in its padded image: (n,) each, in [0, 2·pad].
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
        """Return batches of the same images, shuffled in the same way, but neither cropped nor flipped."""
        return TrainBatches(self.images, replace(self.spec, pad=0, flip=False), self.batch_size)

    def stratified(self, per_class: int, generator: torch.Generator) -> Batch:
        """Draw `per_class` images of every class (all of a smaller class), not augmented, in random order.

        For methods that score weights on a few images at initialisation (GraSP), not for training.

        Args:
            per_class: number of images of a class, at least 1.
            generator: on the CPU.

        Returns:
            One batch of at most `per_class` · classes images.
        """
        chosen = some_of_every_class(self.images.labels.cpu(), per_class, generator)
        batch = self.images.subset(chosen.to(self.device))
        return self._normalise(batch.images), batch.labels
