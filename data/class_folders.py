"""Finds the classes of a data set stored as one folder per class, and their image files.

The folders are on the disk, or in a packed tree (`data.packs`). Only names are listed here. `data.decoded_cache` or
`data.streamed_batches` reads the images. All lists are sorted, because the order in which a file system lists a folder
differs between machines, and labels and splits follow from the order here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from data.image_files import ImageFiles
from data.packs.folder import PackedFolder, PackedImages
from data.packs.pack import SHARD, is_pack, read_pack
from utils.errors import UserError, did_you_mean, first_of


@dataclass(frozen=True)
class DiskFolder:
    """A folder on the disk, as the functions below see it; its counterpart is `data.packs.folder.PackedFolder`.

    Attributes:
        path: where it is; it may be absent.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> DiskFolder:
        return DiskFolder(self.path / name)

    def is_dir(self) -> bool:
        """Whether it is there."""
        return self.path.is_dir()

    def folders(self) -> list[str]:
        """The sorted names of the folders in it, without hidden ones."""
        return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name[0] != ".")

    def images(self) -> list[str]:
        """The sorted names of the image files in it, by their extensions, without hidden ones."""
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if is_image(entry.name) and entry.name[0] != "." and not entry.is_dir()
        )

    def has_images(self) -> bool:
        """Whether it has image files at any depth."""
        return any(is_image(name) for _, _, names in os.walk(self.path) for name in names)

    def joined(self, places: Sequence[str], images: Sequence[list[str]], labels: Sequence[int]) -> ImageFiles:
        """The images of folders in it, place by place, with a label for each place."""
        names = [f"{place}/{name}" for place, inside in zip(places, images) for name in inside]
        return ImageFiles.of(self.path, names, np.repeat(labels, list(map(len, images))))


def open_folder(path: Path) -> DiskFolder | PackedFolder:
    """Open a folder of images: one on the disk, or the top of a packed tree.

    Raises:
        UserError: the packed tree is damaged, or not whole.
    """
    if is_pack(path):
        return PackedFolder(read_pack(path))
    if (path / SHARD.format(0)).is_file():  # the index is written last, so that no part is taken for the whole
        raise UserError(f"{path} has packed images but no index: packing did not end; start it again to go on with it")
    return DiskFolder(path)


def find_root(data: Path, folders: Sequence[str], title: str, advice: str) -> DiskFolder | PackedFolder:
    """Find the folder with `train/` and `val/`: one of `folders` inside `data`, or `data` itself.

    Args:
        data: the folder the user gave, or a pack of it.
        folders: names that the set's folder may have.
        title: the set's name, for the message.
        advice: where to get the set, for the message.

    Returns:
        The first that fits; `data` itself comes last.

    Raises:
        UserError: none of these folders has both.
    """
    top = open_folder(data)
    for place in (*(open_folder(data / name) for name in folders), *(top / name for name in folders), top):
        if (place / "train").is_dir() and (place / "val").is_dir():
            return place
    raise UserError(
        f"{title} is not in {data}: there is no folder {data / folders[0]} with train and val in it; {advice}, or name "
        "the folder that has it with --data"
    )


def find_part(
    folder: DiskFolder | PackedFolder, classes: Sequence[str], layout: str, inner: str = "", aside: str = ""
) -> ImageFiles | PackedImages:
    """List the images in the class folders of a split; a class folder may be missing or empty, with a warning.

    Warns about images in folders inside a class folder too, which are not read.

    Args:
        folder: the split's folder.
        classes: the names of their folders; a name's position is its label.
        layout: the expected layout, for the message.
        inner: the name of a folder that may hold a class's images inside the class folder.
        aside: the name of a folder that is not a class.

    Returns:
        The images, class by class, and sorted by name within a class.

    Raises:
        UserError: a class is not one of `classes`, or there are no images at all.
    """
    strange = sorted({*folder.folders()} - {*classes, aside})
    if strange:
        raise UserError(f"the class '{strange[0]}' is in {folder} but not in train/{did_you_mean(strange[0], classes)}")
    labels = [label for label, name in enumerate(classes) if (folder / name).is_dir()]
    places = [classes[label] for label in labels]
    places = [f"{name}/{inner}" if inner and (folder / name / inner).is_dir() else name for name in places]
    images = [(folder / place).images() for place in places]
    deeper = [f"{place}/{child}" for place in places for child in (folder / place).folders()]
    deeper = [place for place in deeper if (folder / place).has_images()]
    empty = [classes[label] for label, inside in zip(labels, images) if not len(inside)]
    if len(empty) == len(labels):
        raise UserError(f"there are no images in {folder}; {layout} under --data")
    if deeper:
        warnings.warn(f"images in folders inside a class are not read: {listed(folder, deeper)}", stacklevel=2)
    if without := [*empty, *(name for name in classes if not (folder / name).is_dir())]:
        warnings.warn(f"classes without images: {listed(folder, without)}", stacklevel=2)
    return folder.joined(places, images, labels)


def is_image(name: str) -> bool:
    """Return whether a file has an image's extension, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in (*IMG_EXTENSIONS, ".gif")


def listed(folder: DiskFolder | PackedFolder | Path, names: Sequence[str]) -> str:
    """Name the first of some folders in a folder, for a message."""
    return first_of([f"{folder}/{name}" for name in names])
