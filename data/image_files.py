"""Image files on the disk, which are read one by one when needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.decode import is_plain_jpeg, opened, read_image, size_of, whole_jpeg
from utils.errors import UserError


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are not held in memory, and their labels.

    Attributes:
        root: the folder that the names are relative to.
        names: (n,) file names as bytes: a million `Path`s would take gigabytes.
        labels: (n,) int64.
    """

    root: Path
    names: np.ndarray[Any, np.dtype[np.bytes_]]
    labels: Tensor

    @classmethod
    def of(cls, root: Path, names: Sequence[str], labels: Sequence[int]) -> ImageFiles:
        """Make it of names and labels in lists."""
        return cls(root, np.array([os.fsencode(name) for name in names]), torch.tensor(labels, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageFiles:
        """Return the files and labels at these indices."""
        return ImageFiles(self.root, self.names[indices.numpy()], self.labels[indices])

    def path(self, index: int) -> Path:
        """Return the path of the file at an index."""
        return self.root / os.fsdecode(self.names[index])

    def pixels(self, index: int, surplus: Callable[[int, int], float] | None = None) -> Tensor:
        """Read the image at an index, (3, height, width) uint8; see `read_image`."""
        try:
            return read_image(self.path(index), surplus)
        except UserError as error:
            raise UserError(f"{error}; --check_data {self.root} names all such images") from error

    def encoded(self, index: int, surplus: Callable[[int, int], float]) -> Tensor | None:
        """Return the bytes of a JPEG to decode to its full size; None: use `pixels`. See `StoredImages`."""
        with suppress(UserError), opened(self.path(index)) as (content, image):
            return whole_jpeg(content, *size_of(image), surplus) if is_plain_jpeg(image) else None
        return None

    def stamps(self, root: Path) -> list[tuple[str, int, int]]:
        """Return each file's path relative to `root`, its size, and its modification time; contents are not read.

        Raises:
            UserError: a file is not there.
        """
        return [(str(path.relative_to(root)), *stamp(path)) for path in map(self.path, range(len(self)))]


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes and its modification time in ns.

    Raises:
        UserError: it is not there, or is a link to nothing.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} is not a readable image ({error.strerror}); mend or remove it") from error
    return found.st_size, found.st_mtime_ns
