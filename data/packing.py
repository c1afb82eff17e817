"""`--pack FOLDER`: write all images of a tree of class folders into a few large files; `data.packed` reads them.

`--check_data FOLDER` decodes them all in the same way, and writes nothing.

Each file of a thousand images is written atomically, and at the end the index. So packing that was interrupted goes on
where it was: a file whose images are still the same is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import simplejpeg
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from args_helper import Config
from data.class_folders import is_image
from data.decode import decode_jpeg, is_plain_jpeg, opened, read_image, shorter_side, size_of, surplus_over
from data.packed import FORMAT, INDEX, SHARD, About, is_pack, read_pack
from data.statistics import channel_histograms, statistics_of
from data.streamed_batches import usable_workers
from utils.errors import UserError
from utils.files import safetensors_header, write_atomic

PER_SHARD = 1_000
QUALITY = 90
"""Of JPEG, from 1 to 100."""
_LONGEST_OF_JPEG = 65_500
_SHOWN = 20
_SAMPLED = 100
_BYTES_A_PIXEL = 0.5  # more than a JPEG of this quality takes on average


# ---- the two modes -------------------------------------------------------------------------------------------------


def pack_folder(config: Config) -> None:
    """Pack the images of the folder `pack` into `pack_to`, by default a folder beside it.

    Raises:
        UserError: there are no images, an image cannot be read (all of them are named) and `skip_broken` is off, or
            the disk has too little room.
    """
    source = Path(config.pack)
    target = Path(config.pack_to or f"{os.path.normpath(source)}_packed_{config.image_size or 'native'}")
    files = _image_files(source, without=target)
    for scratch in target.glob(".*.part"):  # of a process that was killed
        scratch.unlink(missing_ok=True)
    how = _How(config.image_size, config.pack_raw, "train/" if any(name.startswith("train/") for name in files) else "")
    _refuse_a_full_disk(target, source, files, how)
    digests, broken = [], []
    with _pool(config) as pool, _bar(len(files), "packing") as bar:
        for number, start in enumerate(range(0, len(files), PER_SHARD)):
            part = files[start : start + PER_SHARD]
            digest, problems = _pack_shard(target / SHARD.format(number), source, part, how, config.skip_broken, pool)
            digests.append(digest)
            broken += problems
            bar.update(len(part))
    if broken and not config.skip_broken:
        raise UserError(_told(broken, len(files)) + "; --skip_broken leaves them out")
    _write_index(target, source, files, how, digests, broken)
    for number in range(len(digests), len(digests) + len(list(target.glob("images_*")))):  # of a larger tree before
        (target / SHARD.format(number)).unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {len(files) - len(broken):,} images, {size / 2**20:,.1f} MiB; train on them with --data {target}")
    if broken:
        print(f"left out {_told(broken, len(files))}")


def check_data(config: Config) -> None:
    """Decode every image of the folder `check_data`, or verify the checksums of a packed one.

    Raises:
        UserError: there are no images, or some cannot be read; the message names them.
    """
    root = Path(config.check_data)
    if is_pack(root):
        digests = read_pack(root).about.digests
        with _pool(config) as pool, _bar(len(digests), "checking") as bar:
            found = list(_followed(pool.map(_digest, (root / SHARD.format(n) for n in range(len(digests)))), bar))
        broken = [SHARD.format(n) for n, (one, other) in enumerate(zip(digests, found)) if one != other]
        if broken:
            raise UserError(f"{root}: {', '.join(broken)} changed since the images were packed; pack them anew")
        print(f"{root}: all {len(digests):,} files are as they were written")
        return
    files = _image_files(root)
    with _pool(config) as pool, _bar(len(files), "checking") as bar:
        broken = [problem for problem in _followed(pool.map(partial(_problem, root), files), bar) if problem]
    if broken:
        raise UserError(_told(broken, len(files)))
    print(f"{root}: all {len(files):,} images can be read")


def _pool(config: Config) -> ThreadPoolExecutor:
    # Threads suffice: decoding, resizing and encoding do not hold Python's lock.
    return ThreadPoolExecutor(max(1, usable_workers(config.workers)))


def _bar(total: int, what: str) -> tqdm:
    return tqdm(total=total, desc=what, unit=" images", leave=False, disable=None)


def _followed(results: Iterator, bar: tqdm) -> Iterator:
    for result in results:
        bar.update()
        yield result


def _problem(root: Path, name: str) -> str | None:
    try:
        read_image(root / name)
    except UserError as error:
        return str(error)
    return None


def _told(broken: Sequence[str], count: int) -> str:
    more = [f"and {len(broken) - _SHOWN:,} more"] if len(broken) > _SHOWN else []
    return "\n  ".join([f"{len(broken):,} of {count:,} images cannot be read:", *broken[:_SHOWN], *more])


def _image_files(root: Path, without: Path | None = None) -> list[str]:
    """The paths of all image files of a tree, relative to its top, folder by folder and sorted, without hidden ones."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    found: dict[str, list[str]] = {}
    for folder, inner, names in os.walk(root, followlinks=True):
        above = {os.path.realpath(folder), *map(str, Path(os.path.realpath(folder)).parents)}
        inner[:] = [
            name
            for name in inner
            if not name.startswith(".")
            and Path(folder, name) != without
            and os.path.realpath(os.path.join(folder, name)) not in above  # a link to a folder that it is in: a loop
        ]
        images = sorted(name for name in names if is_image(name) and not name.startswith("."))
        if images:
            found[os.path.relpath(folder, root)] = images
    if not found:
        raise UserError(f"there are no images in {root}")
    return [f"{folder}/{name}" for folder in sorted(found) for name in found[folder]]


# ---- a file of images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _How:
    """How images are stored.

    Attributes:
        side: the length to which longer shorter sides are resized; 0: none are.
        raw: whether pixels are stored as they are, not as JPEG.
        counted: the statistics are of the images whose path begins so.
    """

    side: int
    raw: bool
    counted: str


def _pack_shard(
    path: Path, source: Path, names: Sequence[str], how: _How, skip_broken: bool, pool: ThreadPoolExecutor
) -> tuple[str, list[str]]:
    """Write a file of images, unless it is there already; return its digest and what is wrong with images.

    It is not written if images are broken, unless these are to be left out.
    """
    stamps = [(name, *_stat(source / name)) for name in names]
    made_of = hashlib.sha256(json.dumps([astuple(how), stamps]).encode()).hexdigest()
    with suppress(Exception):  # anything may stand in a file that was there before
        there = json.loads(safetensors_header(path)["about"])
        whole = there["sha256"] == hashlib.sha256(save(load_file(path))).hexdigest()
        if there["made_of"] == made_of and whole and (skip_broken or not there["broken"]):
            return _digest(path), there["broken"]
    encoded = list(pool.map(partial(_encoded, source, how=how), names))
    broken = [image for image in encoded if isinstance(image, str)]
    images = [image for image in encoded if not isinstance(image, str)]
    if broken and not skip_broken:
        return "", broken
    parts = {
        "images": torch.cat([content for content, _, _ in images] or [torch.empty(0, dtype=torch.uint8)]),
        "ends": torch.tensor([len(content) for content, _, _ in images]).cumsum(0),
        "sizes": torch.tensor([size for _, size, _ in images]).view(-1, 2),
        "kept": torch.tensor([not isinstance(image, str) for image in encoded]),
        "histogram": sum((counts for _, _, counts in images), torch.zeros(3, 256, dtype=torch.int64)),
    }
    about = {"made_of": made_of, "broken": broken, "sha256": hashlib.sha256(save(parts)).hexdigest()}
    write_atomic(path, save(parts, {"about": json.dumps(about)}))
    return _digest(path), broken


def _encoded(source: Path, name: str, how: _How) -> tuple[Tensor, tuple[int, int], Tensor] | str:
    """Encode an image: its bytes, its height and width, and each channel's histogram; or say what is wrong with it."""
    path, as_it_is = source / name, None
    try:
        with opened(path) as (content, image), suppress(ValueError):  # a damaged JPEG that PIL can read is written anew
            if is_plain_jpeg(image) and not how.raw and (not how.side or min(size_of(image)) <= how.side):
                pixels, as_it_is = decode_jpeg(content), torch.from_numpy(content)
        if as_it_is is None:
            pixels = read_image(path, partial(surplus_over, how.side) if how.side else None)
        if how.side and min(pixels.shape[1:]) > how.side:
            pixels = shorter_side(pixels, how.side)
        if max(pixels.shape) > _LONGEST_OF_JPEG and not how.raw:
            raise UserError(f"{path} is too long for a JPEG: {max(pixels.shape):,} pixels; crop or remove it")
    except UserError as error:
        return str(error)
    counts = channel_histograms(pixels if name.startswith(how.counted) else pixels[:, :0])
    if as_it_is is not None:
        encoded = as_it_is
    elif how.raw:
        encoded = pixels.permute(1, 2, 0).flatten()
    else:
        encoded = torch.frombuffer(bytearray(_jpeg(pixels)), dtype=torch.uint8)
    return encoded, tuple(pixels.shape[1:]), counts


def _jpeg(pixels: Tensor) -> bytes:
    return simplejpeg.encode_jpeg(pixels.permute(1, 2, 0).contiguous().numpy(), QUALITY, colorsubsampling="420")


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1  # a link to nothing: it is named with all others that cannot be read
    return found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_a_full_disk(target: Path, source: Path, files: Sequence[str], how: _How) -> None:
    """Raises: UserError: the disk has less room than the images are likely to need."""
    some = files[:: max(1, len(files) // _SAMPLED)]
    needed = sum(_likely_bytes(source / name, how) for name in some) / len(some) * len(files)
    there = sum(path.stat().st_size for path in target.glob(SHARD.format(0).replace("00000", "*")))
    above = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(above).free + there
    if free < needed:
        gib = [f"{size / 2**30:,.1f} GiB" for size in (needed, free)]
        raise UserError(f"packing {len(files):,} images into {target} takes about {gib[0]}, and {gib[1]} are free")


def _likely_bytes(path: Path, how: _How) -> float:
    try:
        with opened(path) as (content, image):
            height, width = size_of(image)
            shrunk = min(1.0, how.side / min(height, width)) if how.side else 1.0
            pixels = height * width * shrunk**2
            return 3 * pixels if how.raw else min(len(content), _BYTES_A_PIXEL * pixels)
    except UserError:
        return 0.0  # it is named later, with all others that cannot be read


# ---- the index -----------------------------------------------------------------------------------------------------


def _write_index(
    target: Path, source: Path, files: Sequence[str], how: _How, digests: list[str], broken: list[str]
) -> None:
    """Write the index of all files of images that are there."""
    ends, sizes, kept, counts = [], [], [], torch.zeros(3, 256, dtype=torch.int64)
    for number in range(len(digests)):
        with safe_open(str(target / SHARD.format(number)), framework="pt") as shard:
            ends.append(shard.get_tensor("ends"))
            sizes.append(shard.get_tensor("sizes"))
            kept.append(shard.get_tensor("kept"))
            counts += shard.get_tensor("histogram")
    names = [name for name, there in zip(files, torch.cat(kept).tolist()) if there]
    if not names:
        raise UserError(_told(broken, len(files)))
    folders = Counter(os.path.dirname(name) for name in names)  # in order, as the names are
    encoded = [os.fsencode(os.path.basename(name)) for name in names]
    mean, std = statistics_of(counts)
    about = About(
        source=str(source.resolve()), side=how.side, raw=how.raw, digests=digests, left_out=broken, mean=mean, std=std,
        folders=list(zip(folders, accumulate(folders.values()))),
    )  # fmt: skip
    parts = {
        "names": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
        "name_ends": torch.tensor(list(map(len, encoded))).cumsum(0),
        "first": torch.tensor([0, *map(len, ends)]).cumsum(0),
        "ends": torch.cat(ends),
        "sizes": torch.cat(sizes),
    }
    write_atomic(target / INDEX, save(parts, {FORMAT: json.dumps(about.model_dump())}))
