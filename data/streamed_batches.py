"""Batches of images that are decoded as they are needed, by worker processes; flips and normalising on the device.

What is random is drawn in the main process, at the start of an epoch: the order, a flip for each image, and the seed of
each image's crop. So batches depend neither on the number of workers nor on which of them is first.
"""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import resized_crop

from data.class_folders import Part
from data.decode import middle_square, read_image
from data.normalise import Batch, Normalise
from data.spec import DataSpec, ImageFiles
from data.split import batch_cuts, some_of_every_class
from utils.distributed.collectives import own_part, own_share
from utils.distributed.launch import launched
from utils.errors import UserError

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
# Evaluated images are brought to 256 pixels for a square of 224, and to as much more than the square at other sizes.
MARGIN = 256 / 224


def files_of(part: Part) -> ImageFiles:
    """The files of a split, to be streamed."""
    return ImageFiles(part.root, np.array([os.fsencode(name) for name in part.names]), torch.tensor(part.labels))


class StreamedPlainBatches:
    """A split in order, its images' middle squares, normalised, for evaluation; of several ranks each gets its own.

    Args:
        images: the split.
        spec: its statistics and the size of the squares.
        batch_size: as in training, which is known to fit.
        device: where the batches go.
        workers: processes that decode, as far as there are processors for them; 0: this one does.
    """

    def __init__(self, images: ImageFiles, spec: DataSpec, batch_size: int, device: str, workers: int) -> None:
        self._stream = _Stream(images, spec, device, workers)
        self._normalise = Normalise(spec, self._stream.device)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        cuts = list(own_share(batch_cuts(len(self), self._batch_size)))
        for images, labels in self._stream.batches(torch.arange(len(self)), cuts):
            yield self._normalise(images), labels


class StreamedTrainBatches:
    """Batches of the training split, as `data.batches.TrainBatches` gives them.

    With the spec's `zoom`, an image is a random part of 8 to 100% of its file's, brought to the spec's size.

    Args:
        images: the split.
        spec: its statistics and augmentation.
        batch_size: of every batch but the last (see `data.split.batch_cuts`).
        device: where the batches go.
        workers: processes that decode, as far as there are processors for them; 0: this one does.
    """

    def __init__(self, images: ImageFiles, spec: DataSpec, batch_size: int, device: str, workers: int) -> None:
        self.images = images
        self.spec = spec
        self.batch_size = batch_size
        self._cuts = batch_cuts(len(images), batch_size)
        self._stream = _Stream(images, spec, device, workers)
        self._normalise = Normalise(spec, self.device)

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self._stream.device

    def __len__(self) -> int:
        return len(self._cuts)

    def size(self, step: int) -> int:
        """How many images the batch of this step (0-based in its epoch) has."""
        return self._cuts[step].stop - self._cuts[step].start

    def epoch(self, generator: torch.Generator, first_step: int = 0, shared: bool = False) -> Iterator[Batch]:
        """The batches of one epoch from `first_step` on, each image once in the whole epoch.

        Args:
            generator: of this epoch, on the CPU.
            first_step: how many batches to leave out, neither decoding them nor drawing anything differently.
            shared: give only this rank's part of each batch, which may be empty.
        """
        count, cuts = len(self.images), self._cuts[first_step:]
        order = torch.randperm(count, generator=generator)
        crops = torch.randint(2**62, (count,), generator=generator) if self.spec.zoom else None
        flipped = torch.rand(count, 1, 1, 1, generator=generator) < (0.5 if self.spec.flip else 0.0)
        flips = flipped.to(self.device)
        if shared:
            cuts = [own_part(cut.start, cut.stop) for cut in cuts]
        for (images, labels), cut in zip(self._stream.batches(order, cuts, crops), cuts):
            yield self._normalise(torch.where(flips[cut], images.flip(-1), images)), labels

    def unaugmented(self) -> StreamedTrainBatches:
        """The same images, shuffled alike, neither zoomed nor flipped."""
        plain = replace(self.spec, zoom=False, flip=False)
        return StreamedTrainBatches(self.images, plain, self.batch_size, str(self.device), self._stream.workers)

    def stratified(self, per_class: int, generator: torch.Generator) -> Batch:
        """So many images of every class (all it has, where it has fewer), not augmented, in random order."""
        chosen = some_of_every_class(self.images.labels, per_class, generator)
        images, labels = zip(*self._stream.batches(chosen, batch_cuts(len(chosen), self.batch_size)))
        return self._normalise(torch.cat(images)), torch.cat(labels)


class _Stream:
    """Decodes chosen images of a split, and moves them to the device, some batches ahead."""

    def __init__(self, images: ImageFiles, spec: DataSpec, device: str, workers: int) -> None:
        self.device = torch.device(device)
        self._decoder = _Decoder(images, spec.shape[1])
        self._labels = images.labels.to(self.device)
        self.workers = usable_workers(workers)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(
        self, chosen: Tensor, cuts: list[slice], crops: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, H, W) uint8 and labels (B,) on the device.

        Args:
            chosen: indices of images, in order.
            cuts: of them, each a batch.
            crops: the seed of each one's crop; None for the squares in their middles.

        Raises:
            UserError: an image cannot be read.
        """
        work = [(chosen[cut].numpy(), None if crops is None else crops[cut].numpy()) for cut in cuts]
        loader = DataLoader(
            self._decoder,
            batch_size=None,  # a batch is one piece of work: one hand-over between processes, and not one an image
            sampler=work,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # or it would draw from PyTorch's own
        )
        where = chosen.to(self.device)
        for cut, images in zip(cuts, loader):
            if isinstance(images, UserError):
                raise images
            yield images.to(self.device, non_blocking=True), self._labels[where[cut]]


class _Decoder(Dataset):
    """(indices, crop seeds or None) -> images (B, 3, size, size) uint8, or what is wrong with one of them."""

    def __init__(self, images: ImageFiles, size: int) -> None:
        self._images = images
        self._size = size

    def __getitem__(self, work: tuple[np.ndarray, np.ndarray | None]) -> Tensor | UserError:
        indices, crops = work
        seeds = [None] * len(indices) if crops is None else crops.tolist()
        if not len(indices):  # of a batch of fewer images than ranks
            return torch.empty(0, 3, self._size, self._size, dtype=torch.uint8)
        try:
            return torch.stack([self._image(index, seed) for index, seed in zip(indices.tolist(), seeds)])
        except UserError as error:
            return error  # raised in a worker, it would arrive wrapped in a traceback

    def _image(self, index: int, seed: int | None) -> Tensor:
        pixels, size = read_image(self._images.path(index)), self._size
        if seed is None:
            return middle_square(pixels, size, round(size * MARGIN))
        return resized_crop(pixels, *crop_box(*pixels.shape[1:], seed), [size, size], antialias=True)


def usable_workers(asked: int) -> int:
    """So many, but no more than there are processors for this process and its like: decoding keeps one busy."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, max(1, there // launched().local_world))


def crop_box(height: int, width: int, seed: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part: 8 to 100% of the area, its sides 3:4 to 4:3.

    Args:
        height, width: of the image.
        seed: which alone decides.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015 (arXiv 1409.4842), §6.
    """
    draw = random.Random(seed)
    for _ in range(10):
        area = height * width * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < high <= height and 0 < wide <= width:
            return draw.randint(0, height - high), draw.randint(0, width - wide), high, wide
    # An image so narrow that none fitted: of its middle, as much as has such sides.
    high, wide = min(height, round(width * RATIO[1])), min(width, round(height * RATIO[1]))
    return (height - high) // 2, (width - wide) // 2, max(1, high), max(1, wide)


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ctrl-C reaches all processes, but the run wants to finish its step, and for that its workers have to live."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
