"""Batches of images that threads decode, crop and flip when needed; they are normalised on the device.

All random numbers are drawn at the start of an epoch: the order, and each image's flip and crop seed. So batches do
not depend on the number of threads, nor on which of them is fastest. Decoding and resizing do not hold Python's lock.
For photographs that may not fit into the memory: ImageNet, Caltech-101, and packed ones of a user's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import islice

import torch
from torch import Tensor

from data.batches import TrainingSplit
from data.crops import crop_box
from data.decode import middle_square, resized
from data.device_decode import device_decoder
from data.normalise import Batch, Normalise
from data.packs.folder import warn_if_enlarged
from data.spec import DataSpec, StoredImages
from data.split import batch_cuts, some_of_every_class
from data.threads import thread_pool
from utils.distributed.collectives import own_part, own_share
from utils.distributed.launch import usable_workers
from utils.errors import is_out_of_memory

# For evaluation, the shorter side is resized to 256 pixels for a square of 224, and in this ratio for other sizes.
MARGIN = 256 / 224


class StreamedPlainBatches:
    """The central squares of a split for evaluation, in order and normalised; each rank gets its share of the batches.

    Args:
        images: the split.
        spec: the data set's statistics, and the size of the squares.
        batch_size: as in training, because that is known to fit.
        device: the device of the batches.
        workers: number of decoding threads, limited by the processors; 0: decode without threads, when asked.
        on_device: decode JPEGs on the device.
    """

    def __init__(
        self, images: StoredImages, spec: DataSpec, batch_size: int, device: str, workers: int, on_device: bool = False
    ) -> None:
        self._stream = _Stream(images, spec, device, workers, on_device)
        self._normalise = Normalise(spec, self._stream.device)
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of images, not of batches."""
        return len(self._stream)

    def __iter__(self) -> Iterator[Batch]:
        cuts = list(own_share(batch_cuts(len(self), self._batch_size)))
        for images, labels in self._stream.batches(torch.arange(len(self)), cuts):
            yield self._normalise(images), labels


class StreamedTrainBatches(TrainingSplit):
    """Batches of the training split, with the interface of `data.batches.TrainBatches`.

    If the spec has `zoom`, an image is a random crop of 8 to 100% of its file's area, resized to the spec's shape.

    Args:
        images: the split.
        spec: the data set's statistics and augmentation.
        batch_size: as for `TrainingSplit`.
        device: the device of the batches.
        workers: number of decoding threads, limited by the processors; 0: decode without threads, when asked.
        on_device: decode JPEGs on the device, and crop them there.
    """

    def __init__(
        self, images: StoredImages, spec: DataSpec, batch_size: int, device: str, workers: int, on_device: bool = False
    ) -> None:
        super().__init__(images, spec, batch_size, torch.device(device))
        self._stream = _Stream(images, spec, device, workers, on_device)

    def epoch(self, generator: torch.Generator, first_step: int = 0, shared: bool = False) -> Iterator[Batch]:
        """Yield the batches of one epoch from `first_step` on; a whole epoch has each image once.

        Args:
            generator: this epoch's, on the CPU.
            first_step: how many batches to skip without decoding; the random numbers of the others do not change.
            shared: yield only this rank's part of each batch, which may be empty.

        Yields:
            Images (B, 3, H, W) float32, normalised, and labels (B,) int64, on the device.

        Raises:
            UserError: an image cannot be read.
        """
        count, cuts = len(self.images), self._cuts[first_step:]
        order = torch.randperm(count, generator=generator)
        # A seed per image, not a crop: the crop depends on the image's size, which only the decoding worker knows.
        crops = torch.randint(2**62, (count,), generator=generator) if self.spec.zoom else None
        flipped = torch.rand(count, generator=generator) < (0.5 if self.spec.flip else 0.0)
        if shared:
            cuts = [own_part(cut.start, cut.stop) for cut in cuts]
        for images, labels in self._stream.batches(order, cuts, crops, flipped):
            yield self._normalise(images), labels

    def unaugmented(self) -> StreamedTrainBatches:
        """Return batches of the same images, shuffled in the same way, but neither zoomed nor flipped."""
        plain = replace(self.spec, zoom=False, flip=False)
        stream = self._stream
        return StreamedTrainBatches(
            self.images, plain, self.batch_size, str(self.device), stream.workers, stream.on_device
        )

    def stratified(self, per_class: int, generator: torch.Generator) -> Batch:
        """Draw `per_class` images of every class (all of a smaller class), not augmented, in random order."""
        chosen = some_of_every_class(self.images.labels, per_class, generator)
        images, labels = zip(*self._stream.batches(chosen, batch_cuts(len(chosen), self.batch_size)))
        return self._normalise(torch.cat(images)), torch.cat(labels)


class _Stream:
    """Decodes chosen images of a split some batches ahead, and moves them to the device.

    Args:
        images: the split.
        spec: its shape gives the side of the squares.
        device: of the batches.
        workers: number of decoding threads, limited by the processors; 0: none.
        on_device: decode JPEGs on the device.
    """

    def __init__(self, images: StoredImages, spec: DataSpec, device: str, workers: int, on_device: bool) -> None:
        self.device, self.on_device = torch.device(device), on_device
        self._decode = device_decoder(self.device) if on_device else None
        self._images = images
        self._size, self._larger = spec.shape[1], round(spec.shape[1] * MARGIN)
        warn_if_enlarged(images, self._larger)
        self._labels = images.labels.to(self.device)
        self.workers = usable_workers(workers)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(
        self, chosen: Tensor, cuts: list[slice], crops: Tensor | None = None, flipped: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, H, W) uint8 and labels (B,) on the device.

        Args:
            chosen: indices of images, in order.
            cuts: slices of `chosen`, one per batch.
            crops: the crop seed of each chosen image, in the same order; None: the central squares.
            flipped: whether each chosen image is mirrored; None: none is.

        Raises:
            UserError: an image cannot be read.
        """
        work = [tuple(None if part is None else part[cut] for part in (chosen, crops, flipped)) for cut in cuts]
        where = chosen.to(self.device)
        for cut, (images, decoded) in zip(cuts, self._decoded(work)):
            if decoded is not None:  # the memory belongs to the thread's stream, which must not use it again too early
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(decoded)
                images.record_stream(stream)
            # Any other device might still read from memory that is not pinned when it has been freed.
            yield images.to(self.device, non_blocking=self.device.type == "cuda"), self._labels[where[cut]]

    def _decoded(
        self, work: list[tuple[Tensor, Tensor | None, Tensor | None]]
    ) -> Iterator[tuple[Tensor, torch.cuda.Event | None]]:
        """Yield the batches in order; threads work on two for each of them."""
        if not self.workers:
            yield from map(self._batch, work)
            return
        numbers, left = iter(range(self.workers)), iter(work)
        pool = thread_pool(self.workers, partial(self._begin_thread, numbers))
        try:
            ahead = deque(pool.submit(self._batch, one) for one in islice(left, 2 * self.workers))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(self._batch, one) for one in islice(left, 1))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin_thread(self, numbers: Iterator[int]) -> None:
        if self.device.type == "cuda":  # otherwise memory would be pinned through GPU 0, and take some of its own
            torch.cuda.set_device(self.device)
            if self.on_device:  # the decoder waits for its stream: on the common one it would wait for training steps
                torch.cuda.set_stream(_side_stream(self.device, next(numbers)))

    def _batch(self, work: tuple[Tensor, Tensor | None, Tensor | None]) -> tuple[Tensor, torch.cuda.Event | None]:
        """Decode (indices; crop seeds or None; which are mirrored, or None) to (B, 3, size, size) uint8.

        Returns:
            The batch, and what to wait for before it is read, if it was decoded on a GPU.
        """
        indices, crops, flipped = work
        count = len(indices)  # 0 if the batch has fewer parts than ranks
        seeds = [None] * count if crops is None else crops.tolist()
        mirrored = [False] * count if flipped is None else flipped.tolist()
        where = self.device if self.on_device else "cpu"
        # As decoders leave pixels and convolutions want them: the three values of a pixel are neighbours in memory.
        batch = torch.empty(count, self._size, self._size, 3, dtype=torch.uint8, device=where).permute(0, 3, 1, 2)
        for place, pixels, seed, mirror in zip(batch, self._pixels(indices.tolist(), seeds), seeds, mirrored):
            image = self._square(pixels, seed)
            place.copy_(image.flip(-1) if mirror else image)
        if batch.is_cuda:
            return batch, torch.cuda.current_stream(self.device).record_event()
        return batch.pin_memory() if self.device.type == "cuda" else batch, None

    def _pixels(self, indices: list[int], seeds: list[int | None]) -> Iterable[Tensor]:
        """Decode the images that squares are cut from: one by one on the CPU, or JPEGs in one batch on the device."""
        surplus = list(map(self._surplus, seeds))
        if self._decode is None:
            return map(self._images.pixels, indices, surplus)
        encoded = list(map(self._images.encoded, indices, surplus))
        try:
            decoded = iter(self._decode([jpeg for jpeg in encoded if jpeg is not None]))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return map(self._images.pixels, indices, surplus)  # one is damaged: the CPU names it
        return (
            self._images.pixels(index, larger) if jpeg is None else next(decoded)
            for jpeg, index, larger in zip(encoded, indices, surplus)
        )

    def _surplus(self, seed: int | None) -> Callable[[int, int], float]:
        """Return (height, width) -> by how much an image is larger than its square needs (see `read_image`)."""
        if seed is None:
            return lambda *sides: min(sides) / self._larger
        return lambda *sides: min(crop_box(*sides, seed)[2:]) / self._size

    def _square(self, pixels: Tensor, seed: int | None) -> Tensor:
        if seed is None:
            return middle_square(pixels, self._size, self._larger)
        top, left, high, wide = crop_box(*pixels.shape[1:], seed)
        return resized(pixels[:, top : top + high, left : left + wide], self._size, self._size)


@cache
def _side_stream(device: torch.device, _number: int) -> torch.cuda.Stream:
    """Return the stream of the decoding thread of this number; PyTorch keeps what a stream has freed for it alone."""
    return torch.cuda.Stream(device)
