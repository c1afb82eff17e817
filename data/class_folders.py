"""Finds the classes of a data set stored as one folder per class, and their image files.

It only lists names. `data.decoded_cache` or `data.streamed_batches` opens the files. All lists are sorted, because the
order in which a file system lists a folder differs between machines, and labels and splits follow from the order here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Part:
    """The image files of one split.

    Attributes:
        root: the folder that the names are relative to.
        names: the file names.
        labels: the class index of each file.
    """

    root: Path
    names: list[str]
    labels: list[int]

    @property
    def paths(self) -> list[Path]:
        """The paths of the files, in order."""
        return [self.root / name for name in self.names]


def find_root(data: Path, folders: Sequence[str], title: str, advice: str) -> Path:
    """Find the folder with `train/` and `val/`: one of `folders` inside `data`, or `data` itself.

    Args:
        data: the folder the user gave.
        folders: names that the set's folder may have.
        title: the set's name, for the message.
        advice: where to get the set, for the message.

    Returns:
        The first that fits; `data` itself comes last.

    Raises:
        UserError: none of these folders has both.
    """
    for place in (*(data / name for name in folders), data):
        if (place / "train").is_dir() and (place / "val").is_dir():
            return place
    raise UserError(
        f"{title} is not in {data}: there is no folder {data / folders[0]} with train and val in it; {advice}, or name "
        "the folder that has it with --data"
    )


def find_classes(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in a folder, without hidden ones; a name's position is its label."""
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry)))


def find_part(folder: Path, classes: Sequence[str], layout: str, inner: str = "", aside: str = "") -> Part:
    """List the images in the class folders of a split; a class folder may be missing.

    Warns about images in folders inside a class folder, which are not read, and about empty class folders.

    Args:
        folder: the split's folder.
        classes: the class names, in the order of the labels.
        layout: the expected layout, for the message.
        inner: the name of a folder that may hold a class's images inside the class folder.
        aside: the name of a folder that is not a class.

    Returns:
        The images, class by class, and sorted by name within a class; the names are relative to `folder`.

    Raises:
        UserError: a class is not one of `classes`, or there are no images at all.
    """
    strange = sorted(set(find_classes(folder)) - {*classes, aside})
    if strange:
        raise UserError(f"{folder} has a class '{strange[0]}' that train/ has not{did_you_mean(strange[0], classes)}")
    part, empty, deeper = Part(folder, [], []), [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        place = f"{name}/{inner}" if inner and (folder / name / inner).is_dir() else name
        images = image_names(folder / place)
        part.names.extend(f"{place}/{image}" for image in images)
        part.labels.extend([label] * len(images))
        empty += [] if images else [name]
        deeper += [f"{place}/{child}" for child in find_classes(folder / place) if _has_images(folder / place / child)]
    if not part.names:
        raise UserError(f"there are no images in {folder}; {layout} under --data")
    if deeper:
        warnings.warn(f"images in folders inside a class are not read: {_listed(folder, deeper)}", stacklevel=2)
    if empty:
        warnings.warn(f"classes without images: {_listed(folder, empty)}", stacklevel=2)
    return part


def image_names(folder: Path) -> list[str]:
    """Return the sorted names of the image files in a folder, by their extensions, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name) and not _hidden(entry))


def is_image(name: str) -> bool:
    """Return whether a file has an image's extension, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in IMG_EXTENSIONS


def _has_images(folder: Path) -> bool:
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def _hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")


def _listed(folder: Path, names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(str(folder / name) for name in names[:6]) + more
