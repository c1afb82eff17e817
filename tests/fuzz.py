"""Try thousands of bad inputs: each works or ends in one message; none runs code, hangs, or changes other files.

    python -m tests.fuzz --cases 10000 [--only NAME ...]

Every case calls `main.main` with untrusted files or words (`tests.untrusted_inputs`) in its own folder, beside a
canary and files that existed before. An audit hook sees what a case writes, renames or removes elsewhere, and every
process that it starts. The cases are the same every time; a failing case is minimised.
"""

import argparse
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from args_helper import parse_args
from data.packs.folder import PackedImages
from data.packs.pack import INDEX, SHARD, read_pack
from data.sets.imagenet import SPEC
from data.streamed_batches import StreamedPlainBatches
from tests.fuzz_sandbox import EVALUATE, TINY, Place, Watch
from tests.small_sets import put_mnist
from tests.untrusted_inputs import CLASSES, CONFIGS, SWEEPS, WORDS, checkpoints, json_files, mutated, tensor_files
from trainers.results.run_folder import folder_of
from utils.errors import UserError


def try_words(place: Place, words: list[str], content: bytes | None = None) -> None:
    """Try a command line, or a config file; what is accepted prints as an equal config with a run in `results_dir`."""
    with place.fresh() as folder:
        given, printed = folder / "given.yml", folder / "printed.yml"
        given.write_bytes(content or b"")
        # The last word takes effect.
        argv = [*words, *(["--config", str(given)] if content is not None else []), "--print-config"]
        outcome = place.tried(*argv)
        if outcome.code == 0 and not outcome.out.startswith("usage"):
            config = parse_args(argv)
            inside = os.path.normpath(folder_of(config)) if not config.resume else config.results_dir
            assert Path(inside).is_relative_to(os.path.normpath(config.results_dir))
            printed.write_text(outcome.out)
            unlike = {"config", "subfolder", "print_config", "resume", "sweep", "resume_anyway"}
            again = parse_args(["--config", str(printed)])
            assert again.model_dump(exclude=unlike) == config.model_dump(exclude=unlike)


def try_sweep(place: Place, content: bytes) -> None:
    """Try the plan of a sweep."""
    with place.fresh() as folder:
        (folder / "sweep.yml").write_bytes(content)
        place.tried("--sweep", folder / "sweep.yml", "--dry_run", "--results_dir", folder / "results")


def try_file(place: Place, content: bytes, name: str = "net.pt", flag: str = "--pretrained") -> None:
    """Try a network, a search's checkpoint or a ticket."""
    with place.fresh() as folder:
        (folder / name).write_bytes(content)
        place.tried(*EVALUATE, "--dataset", "Digits", flag, folder / name)


try_ticket = partial(try_file, name="ticket.safetensors", flag="--ticket")


def try_resume(place: Place, content: bytes) -> None:
    """Resume a run from a checkpoint, for a step; if that fails, the run must stay as it was."""
    with place.fresh() as folder:
        run = shutil.copytree(place.run, folder / "results" / "trial_1")
        for path in (run / "summary.json", run / "ticket.safetensors", *run.glob("checkpoints/*")):
            path.unlink()
        (run / "checkpoints" / "search.pt").write_bytes(content)
        before = _contents(run)
        told = place.tried("--resume", run, "--max_time", "1s", "--log_dir", folder / "runs", codes=(0, 2, 3, 75))
        assert told.code != 2 or _contents(run) == before, told


def _contents(folder: Path) -> dict[str, bytes]:
    own = (".lock", "config.yml")  # config.yml is rewritten, with the flags of the attempt
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in own}


def try_run(place: Place, content: bytes, name: str, trials: int) -> None:
    """Try a file of the last of some finished trials."""
    with place.fresh() as folder:
        for trial in range(1, trials + 1):
            run = shutil.copytree(place.run, folder / "results" / f"trial_{trial}")
        (run / name).write_bytes(content)
        place.tried(*TINY, "--results_dir", folder / "results", "--log_dir", folder / "runs", "--save_model")
        place.tried("--resume", run, "--print-config")


LAYOUTS = {
    "ImageFolder": ("train", "test"), "TinyImageNet": ("train", "val"), "ImageNet": ("train", "val"),
    "Caltech101": ("101_ObjectCategories",),
}  # fmt: skip


def try_images(place: Place, case: tuple[str, list[Any], int]) -> None:
    """Try a folder of images twice: first by decoding, then perhaps from the cache of decoded images."""
    dataset, parts, size = case
    with place.fresh() as folder:
        for name, classes in zip(LAYOUTS[dataset], parts):
            _put(folder / "data" / name, classes, place.root)
        argv = place.evaluation(dataset, folder / "data", size)
        first = place.tried(*argv)
        assert first.code != 0 or place.tried(*argv).out == first.out


def _put(path: Path, content: Any, root: Path) -> None:
    """Write a file, a pipe, a folder of these, or a link to a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            _put(path / name, inner, root)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"canary": root / "canary", "bird": root / "canary/bird.txt"}.get(content, content))


def try_cache(place: Place, content: bytes) -> None:
    """Try a cache of decoded images beside its image folder; a cache that does not fit must be ignored."""
    with place.fresh() as folder:
        data = shutil.copytree(place.images, folder / "data")
        (data / ".decoded_8.safetensors").write_bytes(content)
        assert place.tried(*place.evaluation("ImageFolder", data)).code == 0


def try_pack(place: Place, case: tuple[Path, bytes, str]) -> None:
    """Try a pack of which one file has another content, also as a GPU decodes it, and pack anew into its folder."""
    path, content, dataset = case
    with place.fresh() as folder:
        data = shutil.copytree(path.parent, folder / "data")
        (data / path.name).write_bytes(content)
        place.tried(*place.evaluation(dataset, data))
        with suppress(UserError):
            pack = read_pack(data)
            images = PackedImages(pack, torch.arange(len(pack.sizes)), torch.zeros(len(pack.sizes)))
            list(StreamedPlainBatches(images, SPEC, 4, "cpu", 0, on_device=True))
        place.tried("--check_data", data)
        assert place.tried("--pack", place.kept / "tree", "--pack_to", data, "--workers", 0).code == 0


def try_packing(place: Place, case: tuple[list[Any], bool]) -> None:
    """Try to pack any folder, and to train on what was packed."""
    parts, skip = case
    with place.fresh() as folder:
        for name, classes in zip(("train", "val"), parts):
            _put(folder / "data" / name, classes, place.root)
        place.tried("--check_data", folder / "data", "--workers", 0)
        words = ["--pack", folder / "data", "--pack_to", folder / "packed", "--workers", 0, f"--skip_broken={skip}"]
        if place.tried(*words).code == 0:
            place.tried(*place.evaluation("ImageNet", folder / "packed"))


def try_mnist(place: Place, case: tuple[str, bytes]) -> None:
    """Try one of the files in which torchvision stores MNIST."""
    name, content = case
    with place.fresh() as folder:
        raw = put_mnist(folder)
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(content)
        place.tried(*EVALUATE, "--dataset", "MNIST", "--data", folder, "--pretrained", place.model)


# ---- all fuzzers ---------------------------------------------------------------------------------------------------

MNIST_FILES = [
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
    "../processed/training.pt", "../processed/test.pt",
]  # fmt: skip
MNIST_RAW = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(2 * 28 * 28)
SIDES = [8, 8, 8, 0, 1, 100]
PARTS = st.lists(CLASSES, min_size=2, max_size=2)


def _pack_files(place: Place) -> st.SearchStrategy[tuple[Path, bytes, str]]:
    """Draw another content for one file of a pack, and the data set to read the pack as."""
    files = [pack / name for pack in place.packs for name in (INDEX, SHARD.format(0))]
    datasets = st.sampled_from(["ImageFolder", "ImageNet"])
    return st.one_of([st.tuples(st.just(path), tensor_files(path), datasets) for path in files])


FUZZERS = {
    "configs": (lambda place, content: try_words(place, [], content), lambda _: CONFIGS),
    "command lines": (try_words, lambda _: WORDS),
    "sweeps": (try_sweep, lambda _: SWEEPS),
    "tickets": (try_ticket, lambda place: tensor_files(place.ticket) | tensor_files(place.model)),
    "tickets, pickled": (partial(try_file, name="ticket.pt", flag="--ticket"), lambda place: checkpoints(place.search)),
    "networks": (try_file, lambda place: checkpoints(place.search)),
    "checkpoints": (try_resume, lambda place: checkpoints(place.search)),
    "summaries": (partial(try_run, name="summary.json", trials=2),
                  lambda place: json_files(place.run / "summary.json")),
    "run folders": (partial(try_run, name="config.yml", trials=1),
                    lambda place: CONFIGS | mutated((place.run / "config.yml").read_bytes())),
    "image folders": (try_images, lambda _: st.tuples(st.sampled_from([*LAYOUTS]), PARTS, st.sampled_from(SIDES))),
    "decoded images": (try_cache, lambda place: tensor_files(place.cache)),
    "packs": (try_pack, _pack_files),
    "packing": (try_packing, lambda _: st.tuples(PARTS, st.booleans())),
    "MNIST": (try_mnist, lambda place: st.tuples(
        st.sampled_from(MNIST_FILES), mutated(MNIST_RAW) | mutated(MNIST_RAW[:16]) | checkpoints(place.search),
    )),
}  # fmt: skip
"""Name -> the function that tries a case, and place -> the strategy that draws cases."""


def run(name: str, place: Place, cases: int) -> int:
    """Try this many cases of one fuzzer; return how many were tried.

    Raises:
        AssertionError, or any exception that `main.main` let through: for the smallest failing case.
    """
    attempt, strategy = FUZZERS[name]
    tried = 0
    checks = list(HealthCheck)

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=checks)
    @given(strategy(place))
    def check(case: Any) -> None:
        nonlocal tried
        tried += 1
        attempt(place, case)

    with patch.object(urllib.request, "urlopen", side_effect=urllib.error.URLError("no route to host")):
        check()
    return tried


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Try thousands of bad inputs, and see that each ends in one message.")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--only", nargs="*", choices=FUZZERS, metavar="NAME", help="of a fuzzer")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), Watch())
        for name in asked.only or FUZZERS:
            started = time.perf_counter()
            print(f"{name}: {run(name, place, asked.cases):,} cases, {time.perf_counter() - started:.0f} s", flush=True)
