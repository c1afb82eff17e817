"""Caltech-101: photographs of 101 kinds of things, 31 to 800 of each, to which an ImageNet ticket can be transferred.

Source: L. Fei-Fei, R. Fergus, P. Perona, "Learning generative visual models from few training examples", 2004.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from args_helper import Config
from data.class_folders import DiskFolder, find_part, open_folder
from data.packs.folder import PackedFolder
from data.sets import imagenet
from data.spec import Source, as_found, numbered
from data.split import part_every_class
from utils.errors import UserError
from utils.rng import derive_rng

# The statistics and augmentation of ImageNet, with which a transferred network was trained.
SPEC = replace(imagenet.SPEC, classes=numbered(101))
FOLDERS = ("caltech101/101_ObjectCategories", "101_ObjectCategories")
BACKGROUND = "BACKGROUND_Google"
LAYOUT = "Caltech-101 has 101_ObjectCategories/<class>/*.jpg"
# The test split is the same for every seed, so that the accuracies of all trials are measured on the same images.
TEST_SEED = 0


def load(config: Config) -> Source:
    """Split every class: a fifth for testing, a fifth, drawn by the run's seed, for validation, the rest for training.

    The folder of background pictures is left out. With `use_full_data` the validation fifth joins the training set.

    Raises:
        UserError: the data set is not found.
    """
    root = _root(Path(config.data))
    classes = tuple(name for name in root.folders() if name != BACKGROUND)
    everything = find_part(root, classes, LAYOUT, aside=BACKGROUND)
    rest, tested = part_every_class(everything.labels, 1 / 5, derive_rng(TEST_SEED, "data", "test"))
    train, test, val = everything.subset(rest), everything.subset(tested), None
    if not config.use_full_data:
        # A quarter of the remaining four fifths is a fifth of the class.
        rest, held_out = part_every_class(train.labels, 1 / 4, derive_rng(config.effective_seed, "data", "split"))
        train, val = train.subset(rest), train.subset(held_out)
    # val_size 0: `data.load.divide` would draw over all classes at once, and small classes could go without.
    return Source(as_found(SPEC, classes, config.image_size, "Caltech-101"), train, test, val, 0)


def _root(data: Path) -> DiskFolder | PackedFolder:
    for folder in FOLDERS:
        for place in (open_folder(data / folder), open_folder(data) / folder):
            if place.is_dir():
                return place
    raise UserError(
        f"Caltech-101 is not in {data}: there is no folder {data / FOLDERS[0]}; get caltech-101.zip from "
        "https://data.caltech.edu/records/mzrjq-6wc02 and unpack it and the 101_ObjectCategories.tar.gz in it there, "
        "or name the folder that has 101_ObjectCategories with --data"
    )
