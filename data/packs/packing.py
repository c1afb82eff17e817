"""`--pack FOLDER`: write all images of a tree of class folders into a few large files; `data.packs.pack` reads them.

Each file of images is written atomically, and at the end the index. So packing that was interrupted goes on where it
was: a file whose images are still the same is kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from args_helper import Config
from data.class_folders import DiskFolder, listed
from data.packs.checking import image_files, progress, told_of
from data.packs.pack import FORMAT, INDEX, SHARD, About
from data.packs.shards import Storage, is_training_image, likely_bytes, pack_shard
from data.sets.tiny_imagenet import ANNOTATIONS
from data.statistics import statistics_of
from data.threads import thread_pool
from utils.errors import UserError, printable
from utils.files import make_folder, write_atomic
from utils.run.lock import locked

PER_SHARD, BYTES_PER_SHARD = 1_000, 2**28
"""The most images in a file, and bytes that they may have in the folder: a file is made in memory."""
_SAMPLED = 100
# The folder may hold files of others, which stay.
_OWN_SHARD = re.compile(r"images_\d{5,}\.safetensors")
_OWN_SCRATCH = re.compile(r"\.(images_\d{5,}|index)\.safetensors\..*\.part")


def pack_folder(config: Config) -> None:
    """Pack the images of the folder `pack` into `pack_to`, by default a folder beside it.

    Raises:
        UserError: there are no images, an image cannot be read (all of them are named) and `skip_broken` is off, the
            classes of some are not their folders, `pack_to` is a folder of some, the disk has too little room, or
            another process is packing into the same folder.
    """
    source = Path(os.path.abspath(config.pack))
    target = Path(config.pack_to or f"{source}_packed_{config.image_size or 'native'}")
    if target.resolve() == source.resolve():
        raise UserError(f"pack_to {target} is the folder to pack itself: name another")
    if target.resolve().is_relative_to(source.resolve()) and DiskFolder(target).has_images():  # else left out
        raise UserError(f"pack_to {target} is in the folder to pack, and has images: name a folder without any")
    if annotated := next(chain(source.glob(f"val/{ANNOTATIONS}"), source.glob(f"*/val/{ANNOTATIONS}")), None):
        raise UserError(
            f"--pack {source}: {annotated} names the classes of images, and a pack has none but their folders; "
            "./load_tiny_imagenet.sh arranges the set by class"
        )
    files = image_files(source, without=target)
    how = Storage(config.image_size, config.pack_raw, of_train=any(map(is_training_image, files)))
    _refuse_a_full_disk(target, source, files, how)
    make_folder(target)
    with locked(target):
        _pack(source, target, files, how, config)


def _pack(source: Path, target: Path, files: Sequence[str], how: Storage, config: Config) -> None:
    for path in target.glob(".*.part"):  # of a process that was killed
        if _OWN_SCRATCH.fullmatch(path.name):
            path.unlink(missing_ok=True)
    digests, broken = [], []
    with thread_pool(config.workers) as pool, progress(None, len(files), "packing") as bar:
        for number, part in enumerate(_parts(source, files)):
            digest, problems = pack_shard(target / SHARD.format(number), source, part, how, config.skip_broken, pool)
            digests.append(digest)
            broken += problems
            bar.update(len(part))
    if broken and not config.skip_broken:
        raise UserError(told_of(broken, len(files)) + "; --skip_broken leaves them out")
    _write_index(target, source, files, how, digests, broken)
    for path in {*_shards(target)} - {target / SHARD.format(n) for n in range(len(digests))}:
        path.unlink()  # of a larger tree, packed before
    size = sum(path.stat().st_size for path in target.iterdir())
    told = f"{len(files) - len(broken):,} images, {size / 2**20:,.1f} MiB; train on them with --data {target}"
    print(printable(f"{target}: {told}"))
    if broken:
        print(printable(f"left out: {told_of(broken, len(files))}"))


def _parts(source: Path, files: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divide the images, in order, into those of each file."""
    start = size = 0
    for number, name in enumerate(files):
        own = os.path.getsize(source / name) if os.path.exists(source / name) else 0
        if number > start and (number - start == PER_SHARD or size + own > BYTES_PER_SHARD):
            yield files[start:number]
            start, size = number, 0
        size += own
    yield files[start:]


def _shards(target: Path) -> list[Path]:
    return [path for path in target.glob("images_*.safetensors") if _OWN_SHARD.fullmatch(path.name)]


def _refuse_a_full_disk(target: Path, source: Path, files: Sequence[str], how: Storage) -> None:
    """Raises: UserError: the disk has less room than the images are likely to need."""
    some = files[:: max(1, len(files) // _SAMPLED)]
    needed = sum(likely_bytes(source / name, how) for name in some) / len(some) * len(files)
    there = sum(path.stat().st_size for path in _shards(target))
    above = next(folder for folder in (target, *target.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(above).free + there
    if free < needed:
        gib = [f"{size / 2**30:,.1f} GiB" for size in (needed, free)]
        raise UserError(f"packing {len(files):,} images into {target} takes about {gib[0]}, and {gib[1]} are free")


def _write_index(
    target: Path, source: Path, files: Sequence[str], how: Storage, digests: list[str], broken: list[str]
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
        raise UserError(told_of(broken, len(files)))
    folders = Counter(map(os.path.dirname, names))  # in order, as the names are
    if lost := sorted({*map(os.path.dirname, files)} - {*folders}):
        told = f"folders without a readable image, which the pack leaves out: {listed(source, lost)}"
        warnings.warn(told, stacklevel=2)
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
