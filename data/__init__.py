"""The table of data sets, as plain strings, so that listing them imports nothing; `data.load` reads a set.

Read `data.spec` first (what a data set declares and returns), then `data.load` (how it is split and put on the device),
then `data.batches` (how a training step gets its images).
"""

DATASETS = {
    "Digits": "data.sets.digits",
    "MNIST": "data.sets.mnist",
    "CIFAR10": "data.sets.cifar10",
    "CIFAR100": "data.sets.cifar100",
    "TinyImageNet": "data.sets.tiny_imagenet",
    "ImageNet": "data.sets.imagenet",
    "Caltech101": "data.sets.caltech101",
    "ImageFolder": "data.sets.image_folder",
}
"""Name -> module with `SPEC` (None if it depends on the files) and `load(config) -> Source`."""

DEFINED_BY_PATH = frozenset({"ImageFolder"})
"""Data sets whose content is whatever the folder `data` holds; the others are the same in any folder."""

OF_FOLDERS = ("TinyImageNet", "ImageNet", "Caltech101", "ImageFolder")
"""Data sets stored as folders of images, which `image_size` resizes; the images of the others have a fixed size."""
