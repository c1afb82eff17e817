"""One file of a packed tree: how images are encoded, and written so that a finished file is not written again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import simplejpeg
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.decode import decode_jpeg, is_plain_jpeg, opened, read_image, shorter_side, size_of, surplus_over
from data.image_files import stamp
from data.packs.pack import INDEX
from data.statistics import channel_histograms
from utils.errors import UserError
from utils.files import digest, safetensors_header, safetensors_parts, write_atomic

QUALITY = 90
"""Of JPEG, from 1 to 100."""
_LONGEST_OF_JPEG = 65_500
_BYTES_A_PIXEL = 0.5  # more than a JPEG of this quality takes on average


@dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
        side: the length to which longer shorter sides are resized; 0: none are.
        raw: whether pixels are stored as they are, not as JPEG.
        of_train: whether the statistics are of the images `train/<class>/*` only.
    """

    side: int
    raw: bool
    of_train: bool


def is_training_image(name: str) -> bool:
    """Return whether a path in a tree is that of an image to train on: deeper ones are not read."""
    return name.startswith("train/") and name.count("/") == 2


def pack_shard(
    path: Path, source: Path, names: Sequence[str], how: Storage, skip_broken: bool, pool: ThreadPoolExecutor
) -> tuple[str, list[str]]:
    """Write a file of images, unless it is there already with all of them unchanged.

    Args:
        path: the file.
        source: the top of the tree.
        names: of the images, relative to it.
        how: they are stored.
        skip_broken: leave out images that cannot be read; otherwise the file is not written if there are any.
        pool: of the threads that encode.

    Returns:
        The file's digest, and a message for each image that cannot be read.
    """
    stamps = [(name, _stamp(source / name)) for name in names]
    made_of = hashlib.sha256(json.dumps([astuple(how), stamps]).encode()).hexdigest()
    with suppress(Exception):  # anything may stand in a file that was there before
        there = json.loads(safetensors_header(path)["about"])
        whole = there["sha256"] == _sha256(load_file(path))
        if there["made_of"] == made_of and whole and not there["broken"]:  # a broken image may be readable by now
            return digest(path), []
    encoded = list(pool.map(partial(_encoded, source, how=how), names))
    broken = [image for image in encoded if isinstance(image, str)]
    images = [image for image in encoded if not isinstance(image, str)]
    if broken and not skip_broken:
        return "", broken
    parts = {
        "images": torch.cat([content for content, _, _ in images] or [torch.empty(0, dtype=torch.uint8)]),
        "ends": torch.tensor([len(content) for content, _, _ in images], dtype=torch.int64).cumsum(0),
        "sizes": torch.tensor([size for _, size, _ in images], dtype=torch.int64).view(-1, 2),
        "kept": torch.tensor([not isinstance(image, str) for image in encoded]),
        "histogram": sum((counts for _, _, counts in images), torch.zeros(3, 256, dtype=torch.int64)),
    }
    del encoded, images  # the parts hold all of them
    about = {"made_of": made_of, "broken": broken, "sha256": _sha256(parts)}
    # An index that was there before describes other files; without it, the folder is no pack until all is written.
    outdated = partial((path.parent / INDEX).unlink, missing_ok=True)
    write_atomic(path, safetensors_parts(parts, {"about": json.dumps(about)}), outdated)
    return digest(path), broken


def _sha256(parts: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for part in safetensors_parts(parts, {}):
        found.update(part)
    return found.hexdigest()


def _encoded(source: Path, name: str, how: Storage) -> tuple[Tensor, tuple[int, int], Tensor] | str:
    """Encode an image: its bytes, its height and width, and each channel's histogram; or say what is wrong with it."""
    path, as_it_is = source / name, None
    try:
        with opened(path) as (content, image), suppress(ValueError):  # a damaged JPEG that PIL can read is written anew
            size = size_of(image)
            if is_plain_jpeg(image) and not how.raw and (not how.side or min(size) <= how.side):
                pixels, as_it_is = decode_jpeg(content, *size), torch.from_numpy(content)
        if as_it_is is None:
            pixels = read_image(path, partial(surplus_over, how.side) if how.side else None)
        if how.side and min(pixels.shape[1:]) > how.side:
            pixels = shorter_side(pixels, how.side)
        if max(pixels.shape) > _LONGEST_OF_JPEG and not how.raw:
            raise UserError(f"{path} is too long for a JPEG: {max(pixels.shape):,} pixels; crop or remove it")
    except UserError as error:
        return str(error)
    counts = channel_histograms(pixels if not how.of_train or is_training_image(name) else pixels[:, :0])
    if as_it_is is not None:
        encoded = as_it_is
    elif how.raw:
        encoded = pixels.permute(1, 2, 0).flatten()
    else:
        jpeg = simplejpeg.encode_jpeg(pixels.permute(1, 2, 0).contiguous().numpy(), QUALITY, colorsubsampling="420")
        encoded = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
    return encoded, tuple(pixels.shape[1:]), counts


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        return stamp(path)
    except UserError:
        return None  # it is named later, with all others that cannot be read


def likely_bytes(path: Path, how: Storage) -> float:
    """Return about how many bytes an image will take; 0 if it cannot be read."""
    try:
        with opened(path) as (content, image):
            height, width = size_of(image)
            shrunk = min(1.0, how.side / min(height, width)) if how.side else 1.0
            if is_plain_jpeg(image) and not how.raw and shrunk == 1.0:
                return len(content)
            pixels = height * width * shrunk**2
            return 3 * pixels if how.raw else min(len(content), _BYTES_A_PIXEL * pixels)
    except UserError:
        return 0.0  # it is named later, with all others that cannot be read
