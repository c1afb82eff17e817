"""Tiny ImageNet: 200 classes of ImageNet, 64×64; `load_tiny_imagenet.sh` downloads it.

Source: Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", CS 231N, Stanford, 2015.
"""

from __future__ import annotations

import os
from pathlib import Path

from args_helper import Config
from data.class_folders import DiskFolder, find_part, find_root
from data.decoded_cache import read_decoded
from data.image_files import ImageFiles
from data.packs.folder import PackedFolder
from data.spec import DataSpec, Source, StoredImages, as_found, numbered
from utils.errors import UserError

# Crops and flips as for CIFAR; the published code rotates images by up to 20° instead of cropping them.
SPEC = DataSpec(
    shape=(3, 64, 64),
    classes=numbered(200),
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
    pad=4,
    flip=True,
)
FOLDERS = ("tiny-imagenet-200", "tinyimagenet")
LAYOUT = "Tiny ImageNet has train/<class>/*.JPEG and val/<class>/*.JPEG in tiny-imagenet-200"
ANNOTATIONS = "val_annotations.txt"


def load(config: Config) -> Source:
    """Read 100,000 training images, of which a tenth is held out for validation, and 10,000 test images.

    The test images are the ones the authors call the validation set: the labels of their test set were never
    published. Both folder layouts are read: as unpacked, and as `load_tiny_imagenet.sh` arranges them.

    Raises:
        UserError: the data set is not found, or cannot be read.
    """
    root = find_root(Path(config.data), FOLDERS, "Tiny ImageNet", "get it with ./load_tiny_imagenet.sh")
    classes = tuple((root / "train").folders())
    parts = {"train": find_part(root / "train", classes, LAYOUT, inner="images"), "test": _test_part(root, classes)}
    sets = read_decoded(root.path, parts, config.image_size or SPEC.shape[1], config)
    spec = as_found(SPEC, classes, config.image_size, "Tiny ImageNet")
    return Source(spec, sets["train"], sets["test"], None, len(sets["train"]) // 10)


def _test_part(root: DiskFolder | PackedFolder, classes: tuple[str, ...]) -> StoredImages:
    if (root.path / "val" / ANNOTATIONS).is_file() and (root / "val" / "images").is_dir():
        return _annotated(root.path / "val", classes)
    return find_part(root / "val", classes, LAYOUT)


def _annotated(folder: Path, classes: tuple[str, ...]) -> ImageFiles:
    """List the files of `images/` with their classes, from the annotation lines `<image> <class> <box>`."""
    labels, there = {name: label for label, name in enumerate(classes)}, {*DiskFolder(folder / "images").images()}
    text = os.fsdecode((folder / ANNOTATIONS).read_bytes())  # file names may not be UTF-8
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for line in lines or [[]]:
        if len(line) < 2 or line[0] not in there or line[1] not in labels:
            raise UserError(
                f"{folder / ANNOTATIONS}: '{' '.join(line)}' is no image of images/ with a class of train/; get the "
                "set anew with ./load_tiny_imagenet.sh"
            )
    if len(lines) != len(there) or len({line[0] for line in lines}) != len(there):  # a file that was cut off, for one
        raise UserError(
            f"{folder / ANNOTATIONS} has {len(lines):,} lines for the {len(there):,} images of images/, and each needs "
            "one of its own; get the set anew with ./load_tiny_imagenet.sh"
        )
    return ImageFiles.of(folder, [f"images/{line[0]}" for line in lines], [labels[line[1]] for line in lines])
