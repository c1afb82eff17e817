"""`--check_data FOLDER`: decode every image of a tree of class folders, or verify a packed one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from args_helper import Config
from data.class_folders import is_image, listed
from data.decode import read_image
from data.packs.pack import SHARD, is_pack, read_pack
from data.threads import in_threads, thread_pool
from utils.errors import UserError, counted, printable
from utils.files import digest

_SHOWN = 20


def check_data(config: Config) -> None:
    """Decode every image of the folder `check_data`, or verify the checksums of a packed one.

    Raises:
        UserError: there are no images, or some cannot be read; the message names them.
    """
    root = Path(config.check_data)
    if is_pack(root):
        digests = read_pack(root).about.digests
        names = [SHARD.format(number) for number in range(len(digests))]
        with thread_pool(config.workers) as pool:
            found = progress(pool.map(digest, (root / name for name in names)), len(names), "checking", "files")
            broken = [name for name, one, other in zip(names, digests, found) if one != other]
        if broken:
            raise UserError(f"{root}: {', '.join(broken)} changed since the images were packed; pack them anew")
        print(printable(f"{root}: {counted(len(digests), 'file')}, as written"))
        return
    files = image_files(root)
    with thread_pool(config.workers) as pool:
        found = in_threads(pool, partial(_problem, root), files)
        broken = list(filter(None, progress(found, len(files), "checking")))
    if broken:
        raise UserError(told_of(broken, len(files)))
    print(printable(f"{root}: {counted(len(files), 'image')}, all can be read"))


def progress(results: Iterable | None, total: int, what: str, unit: str = "images") -> tqdm:
    """Return the results, counted up to `total` by a bar that is shown on a terminal only; None: `update` counts."""
    return tqdm(results, total=total, desc=what, unit=f" {unit}", leave=False, disable=None)


def _problem(root: Path, name: str) -> str | None:
    try:
        read_image(root / name)
    except UserError as error:
        return str(error)
    return None


def told_of(broken: Sequence[str], count: int) -> str:
    """Name the first images that cannot be read, of `count` in all."""
    more = [f"and {len(broken) - _SHOWN:,} more"] if len(broken) > _SHOWN else []
    return "\n  ".join([f"{len(broken):,} of {count:,} images cannot be read:", *broken[:_SHOWN], *more])


def _raise(error: OSError) -> None:
    raise UserError(f"cannot look into {error.filename}: {error.strerror}")


def image_files(root: Path, without: Path | None = None) -> list[str]:
    """List all image files of a tree, folder by folder and sorted, without hidden ones; links are followed.

    Warns about folders without images and folders in them: a pack has none, and its labels count without them.

    Args:
        root: the top of the tree.
        without: a folder in it to leave out.

    Returns:
        Their paths relative to the top.

    Raises:
        UserError: there are none, or a folder cannot be looked into.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}")
    found: dict[str, list[str]] = {}
    empty = []
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder).resolve()
        # A link to a folder above, on the disk or on the way here, would be a loop.
        skipped = {here, *here.parents, *(above.resolve() for above in Path(folder).parents)}
        skipped.add(without and without.resolve())
        is_leaf = not inner
        inner[:] = [name for name in inner if not name.startswith(".") and (here / name).resolve() not in skipped]
        images = sorted(name for name in names if is_image(name) and not name.startswith("."))
        if images:
            found[os.path.relpath(folder, root)] = images
        elif is_leaf:
            empty.append(os.path.relpath(folder, root))
    if not found:
        raise UserError(f"there are no images in {root}")
    if empty:
        warnings.warn(f"folders without images, which a pack leaves out: {listed(root, sorted(empty))}", stacklevel=2)
    return [f"{folder}/{name}" for folder in sorted(found) for name in found[folder]]
