"""Decodes image files into memory once, and caches them in one file beside the data until the files change.

For folders of images that fit into memory as uint8 (`TinyImageNet`, `ImageFolder`); ImageNet is streamed instead. The
cache saves decoding in later runs; a run with a missing, stale or read-only cache has the same images.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from args_helper import Config
from data.decode import middle_square, surplus_over
from data.packs.folder import warn_if_enlarged
from data.spec import ImageSet, StoredImages
from data.threads import in_threads, thread_pool
from utils.errors import UserError
from utils.files import SCRATCH, safetensors_parts, write_atomic

# The name in the folder of the data, such as `.decoded_64.safetensors` or `.decoded_native.safetensors`.
CACHE = ".decoded_{size}.safetensors"
# Raise this when decoding changes, so that caches of older versions are not used.
DECODING = 3
# Largest decoded set: more would not fit beside the network on typical machines.
LARGEST_BYTES = 8 * 2**30
# Seconds after its last write when a half-written cache is taken for one of a process that was killed.
ABANDONED = 600


def read_decoded(root: Path, parts: dict[str, StoredImages], size: int, config: Config) -> dict[str, ImageSet]:
    """Read all images of all splits into memory, from the cache or by decoding them in `workers` threads.

    Args:
        root: the folder of the cache file.
        parts: split -> its files; has to include "train".
        size: resize images to squares of this size; 0: leave them as they are, all of one size.
        config: its `workers` is the number of threads.

    Returns:
        Split -> images (n, 3, height, width) uint8, and labels.

    Raises:
        UserError: an image cannot be read, sizes differ, or the decoded set is larger than `LARGEST_BYTES`.
    """
    warn_if_enlarged(parts["train"], size)
    cache = root / CACHE.format(size=size or "native")
    fingerprint = _fingerprint(root, parts)
    decoded = _read_cache(cache, fingerprint, parts, size)
    if decoded is None:
        shape = (size, size) if size else tuple(parts["train"].pixels(0).shape[1:])
        _refuse_too_large(sum(map(len, parts.values())), shape)
        # Each image is copied into the result at once: a list of all images would be a second copy. Threads suffice,
        # because PIL decodes and PyTorch resizes without holding Python's lock.
        decoded = {name: torch.empty(len(part), 3, *shape, dtype=torch.uint8) for name, part in parts.items()}
        with thread_pool(config.workers) as pool:
            for name, part in parts.items():
                for _ in in_threads(pool, partial(_fill, decoded[name], part, size), range(len(part))):
                    pass
        _write_cache(cache, fingerprint, decoded)
    return {name: ImageSet(decoded[name], part.labels) for name, part in parts.items()}


def _refuse_too_large(count: int, shape: tuple[int, ...]) -> None:
    height, width = shape
    if count * 3 * height * width > LARGEST_BYTES:
        raise UserError(
            f"{count:,} images of {width}×{height} take more than {LARGEST_BYTES / 2**30:.0f} GiB decoded; "
            "give a smaller --image-size, or pack the images (--pack), and photographs are read from the disk"
        )


def _fill(places: Tensor, part: StoredImages, size: int, index: int) -> None:
    """Write an image, decoded, to its place among those of its part, (n, 3, height, width)."""
    place = places[index]
    if size:
        pixels = middle_square(part.pixels(index, partial(surplus_over, size)), size)
    else:
        pixels = part.pixels(index)
    if pixels.shape != place.shape:
        own, others = (f"{image.shape[2]}×{image.shape[1]}" for image in (pixels, place))
        told = f"{part.path(index)} is {own} where others are {others}"
        raise UserError(f"{told}; give --image-size to bring all to one size")
    place.copy_(pixels)


# ---- the cache -----------------------------------------------------------------------------------------------------


def _fingerprint(root: Path, parts: dict[str, StoredImages]) -> str:
    """Hash every file's name, size and modification time, and the version of the decoding; contents are not read.

    Labels are not in the cache: they follow from the names, and are taken from `parts` at every reading.
    """
    listing = [stamp for part in parts.values() for stamp in part.stamps(root)]
    return hashlib.sha256(json.dumps([DECODING, listing]).encode()).hexdigest()


def _read_cache(cache: Path, fingerprint: str, parts: dict[str, StoredImages], size: int) -> dict[str, Tensor] | None:
    if not cache.is_file():
        return None
    try:
        with safe_open(str(cache), framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            decoded = {name: file.get_tensor(name) for name in parts}
    except (OSError, SafetensorError, OverflowError, RuntimeError, TypeError):
        return None  # a damaged cache is written again
    return decoded if _is_whole(decoded, parts, size) else None


def _is_whole(decoded: dict[str, Tensor], parts: dict[str, StoredImages], size: int) -> bool:
    """Return whether an untrusted cache holds uint8 images of one size, as many as there are files.

    Args:
        decoded: split -> what the cache holds for it.
        parts: split -> its files.
        size: side of the squares; 0: any common size.
    """
    wanted = (3, size, size) if size else (3, *decoded["train"].shape[2:4])
    return min(wanted) > 0 and all(
        found.dtype == torch.uint8 and found.shape == (len(parts[name]), *wanted) and len(wanted) == 3
        for name, found in decoded.items()
    )


def _write_cache(cache: Path, fingerprint: str, decoded: dict[str, Tensor]) -> None:
    for left in cache.parent.glob(f".{cache.name}.*{SCRATCH}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:  # else another run may be writing it
                left.unlink()
    try:
        write_atomic(cache, safetensors_parts(decoded, {"fingerprint": fingerprint}))
    except UserError as error:
        warnings.warn(f"the decoded images are not cached: {error}", stacklevel=2)
