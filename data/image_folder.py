"""A folder of images: `train/<class>/*`, `test/<class>/*` and, if there is one, `val/<class>/*`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from data.spec import DataSpec, ImageSet, Source
from utils.errors import UserError, meant
from utils.files import write_atomic

if TYPE_CHECKING:
    from args_helper import Config

SPEC = None
CACHE = ".decoded_{size}.safetensors"
LAYOUT = "train/<class>/*.jpg, test/<class>/*.jpg and, if you like, val/<class>/*.jpg"
# What a decoded set may take: more would not fit beside the network on the machines this is for.
LARGEST_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Part:
    """The files of one split: paths, and the index of each one's class."""

    paths: list[Path]
    labels: list[int]


def load(config: Config) -> Source:
    """Read the folder `config.data`; images of one size stay as they are, or all become `image_size` squares.

    The decoded images are cached beside the data, in one file, until a name, a size or a time in the folder changes.

    Raises:
        UserError: no such folder, no images, classes that differ between splits, an image that cannot be read.
    """
    root = Path(config.data)
    classes, parts = _find(root)
    cache = root / CACHE.format(size=config.image_size or "native")
    fingerprint = _fingerprint(root, parts)
    decoded = _read_cache(cache, fingerprint)
    if decoded is None:
        size = config.image_size or _native_size(parts["train"].paths[0])
        decoded = {name: _decode(part.paths, size, config) for name, part in parts.items()}
        _write_cache(cache, fingerprint, decoded)
    sets = {name: ImageSet(decoded[name], torch.tensor(part.labels)) for name, part in parts.items()}
    spec = _spec(sets["train"].images, classes)
    return Source(spec, sets["train"], sets["test"], sets.get("val"), len(sets["train"]) // 10)


def _find(root: Path) -> tuple[tuple[str, ...], dict[str, Part]]:
    """The classes, which are the folders of `train/`, and the files of each split."""
    for name in ("train", "test"):
        if not (root / name).is_dir():
            raise UserError(f"there is no folder {root / name}; an ImageFolder has {LAYOUT} under --data")
    classes = tuple(sorted(folder.name for folder in (root / "train").iterdir() if _is_class(folder)))
    parts = {name: _part(root / name, classes) for name in ("train", "val", "test") if (root / name).is_dir()}
    return classes, parts


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _part(folder: Path, classes: tuple[str, ...]) -> Part:
    strange = sorted(child.name for child in folder.iterdir() if _is_class(child) and child.name not in classes)
    if strange:
        raise UserError(f"{folder} has a class '{strange[0]}' that train/ has not{meant(strange[0], classes)}")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS and not path.name.startswith(".")
    ]
    if not files:
        raise UserError(f"there are no images in {folder}; an ImageFolder has {LAYOUT} under --data")
    return Part([path for path, _ in files], [label for _, label in files])


def _native_size(path: Path) -> tuple[int, int]:
    """(height, width) of the first image, which all others then must have."""
    with _opened(path) as image:
        return image.height, image.width


def _decode(paths: list[Path], size: int | tuple[int, int], config: Config) -> Tensor:
    """Read images as RGB, (n, 3, height, width) uint8, a thread each."""
    height, width = (size, size) if isinstance(size, int) else size
    if len(paths) * 3 * height * width > LARGEST_BYTES:
        raise UserError(
            f"{len(paths):,} images of {height}×{width} take more than {LARGEST_BYTES / 2**30:.0f} GiB decoded; "
            "give a smaller --image-size"
        )
    with ThreadPoolExecutor(max(1, config.workers)) as pool:
        return torch.stack(list(pool.map(partial(_read_image, size=size), paths)))


def _read_image(path: Path, size: int | tuple[int, int]) -> Tensor:
    with _opened(path) as image:
        try:
            pixels = pil_to_tensor(_eight_bits(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} is not a readable image ({error}); mend or remove it") from error
    if isinstance(size, int):
        return center_crop(resize(pixels, [size], antialias=True), [size, size])
    if tuple(pixels.shape[1:]) != size:
        raise UserError(
            f"{path} is {pixels.shape[1]}×{pixels.shape[2]} where others are {size[0]}×{size[1]}; give --image-size to "
            "bring all to one size"
        )
    return pixels


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey scaled to eight bits, which PIL would cut off; any other image as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}); mend or remove it") from error


def _spec(images: Tensor, classes: tuple[str, ...]) -> DataSpec:
    """Statistics of the training images, and crops by an eighth of their size and flips as augmentation."""
    histogram = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    pixel = torch.arange(256, dtype=torch.float64) / 255
    share = histogram / histogram.sum(1, keepdim=True)
    mean = share @ pixel
    deviation = (share @ pixel.square() - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
    shape = tuple(images.shape[1:])
    return DataSpec(shape, classes, tuple(mean.tolist()), tuple(deviation.tolist()), min(shape[1:]) // 8, flip=True)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _fingerprint(root: Path, parts: dict[str, Part]) -> str:
    """A hash of every file's name, size and time of change."""
    listing = [(str(path.relative_to(root)), *_stat(path)) for path in _all_paths(parts.values())]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _all_paths(parts: Iterable[Part]) -> Iterable[Path]:
    return (path for part in parts for path in part.paths)


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _read_cache(cache: Path, fingerprint: str) -> dict[str, Tensor] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(str(cache), framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError):
        return None  # a damaged cache is only a cache


def _write_cache(cache: Path, fingerprint: str, decoded: dict[str, Tensor]) -> None:
    try:
        write_atomic(cache, save(decoded, {"fingerprint": fingerprint}))
    except UserError as error:
        warnings.warn(f"the decoded images are not cached: {error}", stacklevel=2)
