"""A user's folder of images: `train/<class>/*`, `test/<class>/*` and, optionally, `val/<class>/*`."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from args_helper import Config
from data.class_folders import find_part, open_folder
from data.decoded_cache import read_decoded
from data.packs.folder import PackedFolder
from data.spec import DataSpec, Source
from data.statistics import channel_histograms, statistics_of
from utils.errors import UserError, did_you_mean, nearest

SPEC = None
SPLITS = ("train", "val", "test")
ALSO_VAL = {"validation": "val", "dev": "val"}
LAYOUT = "an ImageFolder has train/<class>/*.jpg, test/<class>/*.jpg and, if you like, val/<class>/*.jpg"
# Random shifts by up to an eighth suit small images, which the object fills. Larger images are photographs, which a
# black border that wide would distort, so they are only mirrored.
LARGEST_PADDED = 64


def load(config: Config) -> Source:
    """Read the folder `config.data`; images are resized to `image_size` squares, or with 0 keep their common size.

    The decoded images are cached beside the data, in one file, until a file's name, size or modification time changes.
    Packed photographs (`--pack`) of an `image_size` above 64 are streamed instead, and augmented as ImageNet's.

    Raises:
        UserError: the folder or its images are missing, a split has unknown classes, or an image cannot be read.
    """
    root = open_folder(Path(config.data))
    splits = [name for name in SPLITS if (root / name).is_dir()]
    others = [name for name in root.folders() if name.lower() not in splits] if root.is_dir() else []
    others = [name for name in others if (root / name).has_images()]
    for name in ("train", "test"):
        if name not in splits:
            hint = f"; rename {root / near} to it" if (near := nearest(name, others)) else ""
            raise UserError(f"there is no folder {root / name}{hint}; {LAYOUT} under --data")
    for name in others:
        meant = did_you_mean(ALSO_VAL.get(name.lower(), name), {*SPLITS} - {*splits})
        warnings.warn(f"{root / name} is not read{meant}", stacklevel=2)
    classes = tuple((root / "train").folders())
    if len(classes) == 1:
        raise UserError(f"{root / 'train'} has one class only, '{classes[0]}': a network tells two or more apart")
    sets = {name: find_part(root / name, classes, LAYOUT) for name in splits}
    if isinstance(root, PackedFolder) and config.image_size > LARGEST_PADDED:
        about, shape = root.pack.about, (3, config.image_size, config.image_size)
        spec = DataSpec(shape, classes, about.mean, about.std, flip=True, zoom=True)
    else:
        sets = read_decoded(root.path, sets, config.image_size, config)
        spec = _spec(sets["train"].images, classes)
    return Source(spec, sets["train"], sets["test"], sets.get("val"), len(sets["train"]) // 10)


def _spec(images: Tensor, classes: tuple[str, ...]) -> DataSpec:
    """Compute the statistics of the training images; pad small images by an eighth of their size, mirror all.

    Args:
        images: (n, 3, H, W) uint8, the training split before validation images are held out.
        classes: the class names, in the order of the labels.
    """
    shape = tuple(images.shape[1:])
    pad = min(shape[1:]) // 8 if max(shape[1:]) <= LARGEST_PADDED else 0
    return DataSpec(shape, classes, *statistics_of(channel_histograms(images)), pad, flip=True)
