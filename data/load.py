"""Loads a data set by name and divides it into batches of its splits.

`load_data` is what a run calls. It asks the set's module in `data.sets` for a `Source`, and `divide` makes `Splits` of
it: whole sets move to the device as uint8 (`data.batches`), image files are streamed (`data.streamed_batches`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from args_helper import Config
from data import DATASETS
from data.batches import PlainBatches, TrainBatches
from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError, counted
from utils.rng import derive_rng

if TYPE_CHECKING:
    from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches  # torchvision takes a second to import


@dataclass(frozen=True)
class Splits:
    """The batches that a run trains on, the ones it may select by, and the ones it only reports.

    Attributes:
        spec: the data set's declaration.
        train: augmented and shuffled batches.
        val: held out of training, never augmented; None if nothing is held out.
        test: never augmented, and never used to select anything.
    """

    spec: DataSpec
    train: TrainBatches | StreamedTrainBatches
    val: PlainBatches | StreamedPlainBatches | None
    test: PlainBatches | StreamedPlainBatches

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each split."""
        return {"train": len(self.train.images), "val": len(self.val or ()), "test": len(self.test)}


def divide(source: Source, config: Config) -> Splits:
    """Hold out the validation images, chosen by the seed, and move sets in memory to the device.

    Without a validation set of its own, `source.val_size` training images are drawn uniformly over all classes. With
    `use_full_data` there is no validation split, even if the set has its own.

    Args:
        source: the set as read.
        config: decides seed, batch size, device and workers; its `auto` values are decided.

    Returns:
        The batches of all splits.

    Raises:
        UserError: there is no training image left, or no test image; or `decode_on` is cuda for a set in memory, or
            without a GPU.
    """
    train, val = source.train, source.val
    if config.use_full_data:
        val = None
    elif val is None:
        order = torch.randperm(len(train), generator=derive_rng(config.effective_seed, "data", "split"))
        train, val = train.subset(order[source.val_size :].sort().values), train.subset(order[: source.val_size])
    if not len(train) or not len(source.test):
        raise UserError(
            f"the data in {config.data} are too few: {counted(len(train), 'image')} to train on and "
            f"{len(source.test)} to test on"
        )
    spec, size, device = source.spec, config.batch_size, config.torch_device
    in_memory, on_device = isinstance(train, ImageSet), config.decode_on == "cuda"
    if on_device and (in_memory or not device.startswith("cuda")):
        reason = f"{config.dataset} is held in memory" if in_memory else f"the device is {device}"
        raise UserError(
            f"decode_on: cuda decodes images on the GPU that are read batch by batch, but {reason}; leave it at cpu"
        )
    if in_memory:
        held_out, test = (PlainBatches(part.to(device), spec) if part else None for part in (val, source.test))
        return Splits(spec, TrainBatches(train.to(device), spec, size), held_out, test)
    from data.streamed_batches import StreamedPlainBatches, StreamedTrainBatches  # torchvision takes a second to import

    how = (spec, size, device, config.workers, on_device)
    held_out, test = (StreamedPlainBatches(part, *how) if part else None for part in (val, source.test))
    return Splits(spec, StreamedTrainBatches(train, *how), held_out, test)


def declared_spec(dataset: str) -> DataSpec:
    """Return the `DataSpec` of a named data set without reading its files, for a network that is built without data.

    Args:
        dataset: a name in `DATASETS`.

    Raises:
        UserError: the spec depends on the files.
    """
    spec = import_module(DATASETS[dataset]).SPEC
    if spec is None:
        raise UserError(f"the shape of the images of dataset {dataset} is known only once they are read")
    return spec


def load_data(config: Config) -> Splits:
    """Read a config's data set and divide it into train, val and test, on the config's device.

    Args:
        config: its `auto` values are decided (see `trainers.results.run_folder.decided`).

    Returns:
        The batches of all splits; of several ranks, each gets the same splits.

    Raises:
        UserError: the data are missing and cannot be downloaded, or cannot be read.
    """
    source = import_module(DATASETS[config.dataset]).load(config)
    return divide(source, config)
