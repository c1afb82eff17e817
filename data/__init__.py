"""Data sets by name: plain strings, so that listing them imports nothing. `data.load` reads one."""

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
"""Name -> module with `SPEC` (None where only the files tell it) and `load(config) -> Source`."""

DEFINED_BY_PATH = frozenset({"ImageFolder"})
"""The data sets that are whatever lies in the folder `data`; the others are the same wherever they lie."""

OF_FOLDERS = ("TinyImageNet", "ImageNet", "Caltech101", "ImageFolder")
"""The data sets that lie in folders of images, which `image_size` brings to a size; those of the others have one."""
