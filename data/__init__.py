"""Data sets by name. The table holds plain strings, so that listing the names imports nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from args_helper import Config
    from data.loader import Splits
    from data.spec import DataSpec

DATASETS = {
    "Digits": "data.digits",
    "MNIST": "data.mnist",
    "CIFAR10": "data.cifar",
    "CIFAR100": "data.cifar100",
    "TinyImageNet": "data.tiny_imagenet",
    "ImageNet": "data.imagenet",
    "Caltech101": "data.caltech101",
    "ImageFolder": "data.image_folder",
}
"""Name -> module with `SPEC` (None where only the files tell it) and `load(config) -> Source`."""

DEFINED_BY_PATH = frozenset({"ImageFolder"})
"""The data sets that are whatever lies in the folder `data`; the others are the same wherever they lie."""

OF_FOLDERS = ("TinyImageNet", "ImageNet", "Caltech101", "ImageFolder")
"""The data sets that lie in folders of images, which `image_size` brings to a size; those of the others have one."""


def declared_spec(dataset: str) -> DataSpec:
    """Shape and classes of a named data set, without its files.

    Raises:
        UserError: only its files tell.
    """
    from utils.errors import UserError

    spec = import_module(DATASETS[dataset]).SPEC
    if spec is None:
        raise UserError(f"the shape of the images of dataset {dataset} is known only once they are read")
    return spec


def load_data(config: Config) -> Splits:
    """Read a config's data set and divide it into train, val and test, on the config's device.

    Raises:
        UserError: the data cannot be had, or cannot be read.
    """
    from data.loader import divide

    source = import_module(DATASETS[config.dataset]).load(config)
    return divide(source, config)
