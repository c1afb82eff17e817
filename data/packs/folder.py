"""The folders and images of a packed tree, as `data.class_folders` looks at them; the counterparts of those on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packs.pack import Pack
from data.spec import StoredImages


@dataclass(frozen=True)
class PackedFolder:
    """A folder in a packed tree, as `data.class_folders` looks at it.

    Attributes:
        pack: the whole tree.
        place: its path in it; "" is the top.
    """

    pack: Pack
    place: str = ""

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> PackedFolder:
        return PackedFolder(self.pack, f"{self.place}/{name}" if self.place else name)

    @property
    def path(self) -> Path:
        """Where it would be on the disk, below the folder of the pack."""
        return self.pack.root / self.place

    def is_dir(self) -> bool:
        """Whether it is there."""
        return self.place in self.pack.inside

    def folders(self) -> list[str]:
        """The sorted names of the folders in it."""
        return self.pack.inside.get(self.place, [])

    def images(self) -> range:
        """The images in it."""
        return self.pack.images_in(self.place)

    def has_images(self) -> bool:
        """Whether it has images at any depth."""
        return self.is_dir()  # a pack has no empty folders

    def joined(self, _places: Sequence[str], images: Sequence[range], labels: Sequence[int]) -> PackedImages:
        """The images of folders in it, place by place, with a label for each place."""
        indices = torch.cat([torch.arange(part.start, part.stop) for part in images])
        counts = torch.tensor([len(part) for part in images])
        return PackedImages(self.pack, indices, torch.tensor(labels).repeat_interleave(counts))


@dataclass(frozen=True)
class PackedImages:
    """Images of a pack, and their labels; the counterpart of `data.image_files.ImageFiles`.

    Attributes:
        pack: where they are.
        indices: (n,) int64, their positions in the pack.
        labels: (n,) int64.
    """

    pack: Pack
    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> PackedImages:
        """Return the images and labels at these indices."""
        return PackedImages(self.pack, self.indices[indices], self.labels[indices])

    def path(self, index: int) -> Path:
        """Where the image at an index lay in the tree, below the folder of the pack."""
        return self.pack.path(int(self.indices[index]))

    def pixels(self, index: int, surplus: Callable[[int, int], float] | None = None) -> Tensor:
        """Read the image at an index, (3, height, width) uint8; raises `UserError` if it is damaged."""
        return self.pack.pixels(int(self.indices[index]), surplus)

    def encoded(self, index: int, surplus: Callable[[int, int], float]) -> Tensor | None:
        """Return the bytes of a JPEG to decode to its full size; None: use `pixels`. See `StoredImages`."""
        return self.pack.encoded(int(self.indices[index]), surplus)

    def stamps(self, _root: Path) -> list[Any]:
        """Return the digests of the pack's files, and which images these are."""
        return [self.pack.about.digests, self.indices.tolist()]


def warn_if_enlarged(images: StoredImages, side: int) -> None:
    """Warn if packing has made images smaller than they are asked for; enlarged, they are blurred.

    Args:
        images: packed ones, or files, which are as they were given.
        side: the length, in pixels, that shorter sides are resized to.
    """
    if isinstance(images, PackedImages):
        packed, sizes = images.pack.about.side, images.pack.sizes
        if 0 < packed < side and bool((sizes.amin(1) == packed).any()):  # else all were smaller before
            warnings.warn(
                f"{images.pack.root} was packed with image_size {packed}, and its images are enlarged to {side}, which "
                f"blurs them: pack them anew with --image_size {side} or more",
                stacklevel=2,
            )
