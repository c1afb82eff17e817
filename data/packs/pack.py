"""A packed tree of images: all images of class folders in a few large files, which are read by memory map.

    index.safetensors           the folders and, for every image, its name and where it lies
    images_00000.safetensors    the encoded images, one after another, up to a thousand in a file; 00001, ...

`data.packs.packing` writes it. An image is a JPEG, or raw pixels. A file of images opens without reading it: the
first batch does not wait for a million names, and a shuffled epoch reads only the images' own bytes.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from torch import Tensor

from data.decode import MOST_PIXELS, decode_jpeg, whole_jpeg
from utils.errors import UserError, abbreviate, is_out_of_memory
from utils.files import safetensors_header

INDEX = "index.safetensors"
SHARD = "images_{:05}.safetensors"
FORMAT = "rare gems images 1"


class About(BaseModel):
    """The header of an index.

    Attributes:
        source: the folder that was packed.
        side: the length, in pixels, to which longer shorter sides were resized; 0: all images keep their size.
        raw: whether pixels are stored as they are; otherwise as JPEG.
        folders: every folder with images, sorted, and the number of images in it and in those before it.
        digests: of each file of images.
        left_out: files that could not be read.
        mean, std: of each channel over the images `train/<class>/*`, or without any over all; in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    side: int = Field(ge=0)
    raw: bool
    folders: list[tuple[str, int]]
    digests: list[str]
    left_out: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Pack:
    """A packed tree.

    Attributes:
        root: the folder with its files.
        about: its header.
        names: (bytes,) uint8, the file names of all images one after another.
        name_ends: (n,) int64, where each image's name ends in `names`.
        first: (files + 1,) int64, the number of images in the files before each.
        ends: (n,) int64, where each image ends in its file.
        sizes: (n, 2) int64, height and width of each image.
        inside: folder -> the sorted names of the folders in it.
    """

    root: Path
    about: About
    names: Tensor
    name_ends: Tensor
    first: Tensor
    ends: Tensor
    sizes: Tensor
    inside: dict[str, list[str]]
    _open: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def images_in(self, place: str) -> range:
        """The images that lie in a folder itself."""
        folders = self.about.folders
        at = bisect_left(folders, place, key=itemgetter(0))
        if at == len(folders) or folders[at][0] != place:
            return range(0)
        return range(folders[at - 1][1] if at else 0, folders[at][1])

    def path(self, index: int) -> Path:
        """Where an image lay in the tree, below the folder of the pack."""
        place, _ = self.about.folders[bisect_right(self.about.folders, index, key=itemgetter(1))]
        start = int(self.name_ends[index - 1]) if index else 0
        return self.root / place / os.fsdecode(self.names[start : int(self.name_ends[index])].numpy().tobytes())

    def pixels(self, index: int, surplus: Callable[[int, int], float] | None = None) -> Tensor:
        """Read an image, (3, height, width) uint8; a JPEG is decoded to less where there is a surplus (`read_image`).

        Raises:
            UserError: it is damaged.
        """
        try:
            stored, (height, width) = self._stored(index), self.sizes[index].tolist()
            if self.about.raw:
                return stored.view(height, width, 3).permute(2, 0, 1)
            return decode_jpeg(stored.numpy(), height, width, surplus)
        except Exception as error:  # a damaged file can make a decoder raise anything
            if is_out_of_memory(error):
                raise
            told = abbreviate(str(error).partition("\n")[0])
            raise UserError(f"{self.path(index)} is damaged in its pack ({told}); pack the images anew") from error

    def encoded(self, index: int, surplus: Callable[[int, int], float]) -> Tensor | None:
        """Return the bytes of a JPEG to decode to its full size; None: use `pixels`. See `StoredImages`."""
        if self.about.raw:
            return None
        with suppress(Exception):  # a damaged file can raise anything; `pixels` tells what
            return whole_jpeg(self._stored(index).numpy(), *self.sizes[index].tolist(), surplus)
        return None

    def _stored(self, index: int) -> Tensor:
        """Return an image's bytes, (n,) uint8."""
        number = int(torch.searchsorted(self.first, index, right=True)) - 1
        start = int(self.ends[index - 1]) if index > int(self.first[number]) else 0
        return self._shard(number)[start : int(self.ends[index])]

    def _shard(self, number: int) -> Tensor:
        if number not in self._open:
            with safe_open(str(self.root / SHARD.format(number)), framework="pt") as file:
                # A memory map, of which nothing is read yet; slices of `get_slice` leak memory.
                self._open[number] = file.get_tensor("images")
        return self._open[number]


def is_pack(folder: Path) -> bool:
    """Return whether a folder holds a packed tree."""
    return FORMAT in safetensors_header(folder / INDEX)


def read_pack(root: Path) -> Pack:
    """Open a packed tree; of the images nothing is read.

    Raises:
        UserError: its index is damaged, or a file of images is missing.
    """
    try:
        with safe_open(str(root / INDEX), framework="pt") as file:
            about = About.model_validate(json.loads(file.metadata()[FORMAT]))  # names may not be UTF-8
            parts = {name: file.get_tensor(name) for name in ("names", "name_ends", "first", "ends", "sizes")}
        _validate(about, **parts)
        missing = [name for name in map(SHARD.format, range(len(about.digests))) if not (root / name).is_file()]
        if missing:
            raise ValueError(f"{missing[0]} is missing")
    except Exception as error:  # an untrusted file may cause any
        raise UserError(f"{root / INDEX} is damaged: {abbreviate(str(error))}; pack the images anew") from error
    return Pack(root, about, **parts, inside=_tree([place for place, _ in about.folders]))


def _validate(about: About, names: Tensor, name_ends: Tensor, first: Tensor, ends: Tensor, sizes: Tensor) -> None:
    """Raises: ValueError: the parts of an index do not fit together."""
    count = len(ends)
    stops = torch.tensor([0, *(stop for _, stop in about.folders)])
    places = [place for place, _ in about.folders]
    fits = (
        names.dtype == torch.uint8
        and {part.dtype for part in (name_ends, first, ends, sizes)} == {torch.int64}
        and (names.dim(), name_ends.shape, ends.dim(), sizes.shape) == (1, (count,), 1, (count, 2))
        and first.shape == (len(about.digests) + 1,)
        and _rises(first, count) and _rises(stops, count) and int(stops[0]) == 0
        and _rises(torch.cat([name_ends.new_zeros(1), name_ends]), len(names))
        and places == sorted(set(places)) and not any(".." in place.split("/") for place in places)
        and (not count or int(ends.min()) > 0) and bool((sizes > 0).all())
        and (not count or float(sizes.double().prod(1).max()) <= MOST_PIXELS)
    )  # fmt: skip
    if not fits:
        raise ValueError("its parts do not fit together")


def _rises(values: Tensor, last: int) -> bool:
    return int(values[0]) == 0 and int(values[-1]) == last and bool((values.diff() >= 0).all())


def _tree(places: Sequence[str]) -> dict[str, list[str]]:
    """Folder -> the sorted names of the folders in it, for all folders on the way to `places`."""
    inside: dict[str, set[str]] = {"": set()}
    for place in places:
        while place:
            above, _, name = place.rpartition("/")
            inside.setdefault(place, set())
            inside.setdefault(above, set()).add(name)
            place = above
    return {folder: sorted(names) for folder, names in inside.items()}
