"""Time the reading of photographs against torchvision's `ImageFolder`: `python -m trainers.benchmark.loading`.

    python -m trainers.benchmark.loading [--images 2000 --repeats 5 --json FILE]

It writes a tree of JPEGs of 500×375 pixels to a temporary folder and packs it. Every side reads one epoch of training
batches of 224×224 pixels, randomly cropped, mirrored and normalised, in one process on one thread, so that its images a
second are those of a core. With a CUDA GPU, two more sides decode on it. The sides take turns, so that other load on
the machine hits all of them. Each has a process of its own, whose memory no other has set up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from args_helper import Config, config_of
from data.load import load_data
from data.normalise import Batch
from data.packs.pack import FORMAT, INDEX, SHARD, read_pack
from data.packs.packing import pack_folder
from data.sets.imagenet import SPEC
from models.build import build_model
from trainers.benchmark.timings import at_least, ratios, spread, written
from utils.errors import UserError
from utils.files import write_json
from utils.markdown import markdown_table
from utils.memory import keep_freed_memory, peak_memory

BATCH = 100
CLASSES = 20
MANY = 1_000_000
STEPS = 6
"""Training steps of which the waiting is measured."""


def write_tree(root: Path, count: int) -> None:
    """Write `count` JPEGs of 500×375 pixels to train/ and a few to val/: parts of scikit-learn's two photographs."""
    draw, photographs = np.random.default_rng(0), load_sample_images().images
    for number in range(count + 2 * CLASSES):
        whole = photographs[number % 2]
        top, left = draw.integers(whole.shape[0] - 375 + 1), draw.integers(whole.shape[1] - 500 + 1)
        part = whole[top : top + 375, left : left + 500] * draw.uniform(0.8, 1.0)
        split = "train" if number < count else "val"
        place = root / split / f"class_{number // 2 % CLASSES:02}" / f"{number:06}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part.astype(np.uint8)).save(place, quality=96)


def theirs(root: Path) -> Iterable[Batch]:
    """One epoch of torchvision's `ImageFolder`, with PIL, in a DataLoader."""
    transform = Compose([RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(SPEC.mean, SPEC.std)])
    return DataLoader(ImageFolder(str(root / "train"), transform), BATCH, shuffle=True)


def theirs_with_memory_kept(root: Path) -> Iterable[Batch]:
    """The same, in a process that keeps freed memory as this project's do."""
    keep_freed_memory()
    return theirs(root)


def ours(root: Path) -> Iterable[Batch]:
    """One epoch of this project's batches of the same images, from a folder or a pack."""
    keep_freed_memory()
    return load_data(_config(root)).train.epoch(torch.Generator().manual_seed(0))


def ours_on_gpu(root: Path) -> Iterable[Batch]:
    """The same, decoded and cropped on the GPU."""
    keep_freed_memory()
    yield from load_data(_config(root, device="cuda", decode_on="cuda")).train.epoch(torch.Generator().manual_seed(0))
    torch.cuda.synchronize()


def _config(root: Path, **options: Any) -> Config:
    return config_of({"dataset": "ImageNet", "data": str(root), "workers": 0, "batch_size": BATCH, "device": "cpu",
                      "use_full_data": True, "arch": "ResNet18", **options})  # fmt: skip


Side = tuple[Callable[[Path], Iterable[Batch]], Path]
"""How an epoch is read, and from where."""


def sides_of(tree: Path, packed: Path, raw: Path) -> dict[str, Side]:
    """Name -> the sides to compare on one tree of images and its two packs; the first is what ratios refer to."""
    sides = {
        "torchvision's ImageFolder": (theirs, tree), "the same, freed memory kept": (theirs_with_memory_kept, tree),
        "a folder": (ours, tree), "packed, JPEG": (ours, packed), "packed, raw": (ours, raw),
    }  # fmt: skip
    on_gpu = {"a folder, on the GPU": (ours_on_gpu, tree), "packed, JPEG, on the GPU": (ours_on_gpu, packed)}
    return sides | (on_gpu if torch.cuda.is_available() else {})


def images_a_second(sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """Time an epoch of every side; a row has the median, lowest and highest, and the same of the ratio to the first."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    with ExitStack() as running:
        processes = {name: running.enter_context(_fresh_process()) for name in sides}
        for turn in range(repeats + 1):
            for name, side in sides.items():
                rate = processes[name].submit(_rate, *side).result()
                if turn:  # the first one warms up
                    taken[name].append(rate)
    first = next(iter(taken.values()))
    return [
        {"side": name, "n": repeats, "images_a_second": spread(rates), "ratio": ratios(rates, first)}
        for name, rates in taken.items()
    ]


def _rate(epoch: Callable[[Path], Iterable[Batch]], root: Path) -> float:
    torch.set_num_threads(1)
    started = time.perf_counter()
    count = sum(len(images) for images, _ in epoch(root))
    return count / (time.perf_counter() - started)


def memory_growth(root: Path) -> float:
    """Return by how many MiB the process's peak memory grows from the fifth epoch on, over twenty more.

    Call it in a process of its own: what a process did before may have had a higher peak. In the first epochs a batch
    may still find no room among what was freed.
    """
    torch.set_num_threads(1)
    peaks = []
    for _ in range(25):
        for _ in ours(root):
            pass
        peaks.append(peak_memory(torch.device("cpu")))
    return (peaks[-1] - peaks[4]) / 2**20


def _fresh_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"))


def share_of_waiting(root: Path) -> float:
    """Return the share of the time, in percent, that ResNet-18's training steps on this CPU wait for images."""
    config = _config(root, workers=1, batch_size=32)
    data = load_data(config)
    network, waited = build_model(config, data.spec).train(), 0.0
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    batches = (batch for _ in range(STEPS + 1) for batch in data.train.epoch(torch.Generator()))
    next(batches)  # starts the thread that decodes
    started = time.perf_counter()
    for _ in range(STEPS):
        asked = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - asked
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return 100 * waited / (time.perf_counter() - started)


def seconds_to_the_first_batch(root: Path, folder: Path) -> float:
    """Return the seconds from opening a pack of a million images to its first batch; it repeats one file of images.

    Args:
        root: a pack whose first file is repeated.
        folder: where to make the large pack.
    """
    pack, folder = read_pack(root), folder / "many"
    folder.mkdir()
    ends = load_file(root / SHARD.format(0))["ends"]
    copies, count = MANY // len(ends), MANY // len(ends) * len(ends)
    for number in range(copies):
        os.link(root / SHARD.format(0), folder / SHARD.format(number))
    folders = [(f"{split}/n{name:08}", (at + 1) * count // 2_000) for at, (split, name) in enumerate(
        (split, name) for split in ("train", "val") for name in range(1_000)
    )]  # fmt: skip
    names = [f"ILSVRC2012_{number:08}.JPEG".encode() for number in range(count)]
    about = pack.about.model_copy(update={"folders": folders, "digests": pack.about.digests[:1] * copies})
    parts = {
        "names": torch.frombuffer(bytearray(b"".join(names)), dtype=torch.uint8),
        "name_ends": torch.tensor(list(map(len, names))).cumsum(0),
        "first": torch.arange(copies + 1) * len(ends),
        "ends": ends.repeat(copies),
        "sizes": pack.sizes[: len(ends)].repeat(copies, 1),
    }
    save_file(parts, folder / INDEX, {FORMAT: json.dumps(about.model_dump())})
    started = time.perf_counter()
    next(iter(ours(folder)))
    return time.perf_counter() - started


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    own = argparse.ArgumentParser(prog="python -m trainers.benchmark.loading")
    own.add_argument("--images", type=partial(at_least, 2 * CLASSES), default=2_000)
    own.add_argument("--repeats", type=partial(at_least, 1), default=5)
    own.add_argument("--json", type=Path)
    given = own.parse_args(argv)
    scratch = Path(tempfile.mkdtemp(prefix="loading"))
    try:
        tree, packed, raw = scratch / "tree", scratch / "packed", scratch / "raw"
        write_tree(tree, given.images)
        for target, pixels in ((packed, False), (raw, True)):
            pack_folder(config_of({"pack": str(tree), "image_size": 256, "pack_to": str(target), "pack_raw": pixels}))
        rows = images_a_second(sides_of(tree, packed, raw), given.repeats)
        with _fresh_process() as alone:
            growth = alone.submit(memory_growth, packed).result()
        others = {
            "growth_of_peak_memory_mib": growth,
            "seconds_to_first_batch_of_a_million": seconds_to_the_first_batch(packed, scratch),
            "waiting_of_resnet18_percent": share_of_waiting(packed),
        }
        cells = [
            [row["side"], written(row["images_a_second"], 0), written(row["ratio"], 2), str(row["n"])] for row in rows
        ]
        print(markdown_table(["side", "images a second and core", "ratio", "n"], cells))
        print("\n".join(f"{name}: {value:.3g}" for name, value in others.items()))
        if given.json:
            write_json(given.json, {"sides": rows, **others})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
