"""Try thousands of bad inputs: each works or ends in one message; none runs code, hangs, or changes other files.

    python -m tests.fuzz --cases 10000 [--only NAME ...]

Every case calls `main.main` with untrusted files or words (`tests.untrusted_inputs`) in its own folder, beside a
canary and files that existed before. An audit hook sees what a case writes, renames or removes elsewhere, and every
process that it starts. The cases are the same every time; a failing case is minimised.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from args_helper import parse_args
from tests import untrusted_inputs
from tests.fuzz_sandbox import EVALUATE, TINY, Outcome, Place, Watch
from tests.small_sets import put_mnist
from trainers.results.run_folder import folder_of


def try_config(place: Place, content: bytes) -> None:
    """Try a config file; an accepted one prints as an equal config, and its run stays inside `results_dir`."""
    with place.fresh() as folder:
        file = folder / "some.yml"
        file.write_bytes(content)
        given = ["--config", str(file)]
        _check_config(given, folder / "some.yml", place.tried(*given, "--print-config"))


def try_words(place: Place, words: list[str]) -> None:
    """Try a command line, as `try_config` does."""
    with place.fresh() as folder:
        argv = [*words, "--print-config"]  # last, so that it takes effect
        _check_config(argv, folder / "some.yml", place.tried(*argv))


def _check_config(argv: list[str], file: Path, outcome: Outcome) -> None:
    if outcome.code == 0 and not outcome.out.startswith("usage"):
        config = parse_args(argv)
        inside = os.path.normpath(folder_of(config)) if not config.resume else config.results_dir
        assert Path(inside).is_relative_to(os.path.normpath(config.results_dir))
        file.write_text(outcome.out)
        again = parse_args(["--config", str(file)])
        assert again.model_dump(exclude={"config", "subfolder"}) == config.model_dump(
            exclude={"config", "subfolder", "print_config", "resume", "sweep", "resume_anyway"}
        ) | {name: getattr(again, name) for name in ("print_config", "resume", "sweep", "resume_anyway")}


def try_ticket(place: Place, content: bytes) -> None:
    """Try a ticket, or a state_dict with zeros."""
    _try_file(place, content, "ticket.safetensors", "--ticket")


def try_ticket_pickle(place: Place, content: bytes) -> None:
    """Try a ticket that `torch.save` wrote."""
    _try_file(place, content, "ticket.pt", "--ticket")


def try_pretrained(place: Place, content: bytes) -> None:
    """Try a network or a search's checkpoint."""
    _try_file(place, content, "net.pt", "--pretrained")


def _try_file(place: Place, content: bytes, name: str, flag: str) -> None:
    with place.fresh() as folder:
        (folder / name).write_bytes(content)
        place.tried(*EVALUATE, "--dataset", "Digits", flag, folder / name)


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


def try_summary(place: Place, content: bytes) -> None:
    """Try the `summary.json` of a trial beside a finished one."""
    with place.fresh() as folder:
        for trial in (1, 2):
            shutil.copytree(place.run, folder / "results" / f"trial_{trial}")
        (folder / "results" / "trial_2" / "summary.json").write_bytes(content)
        place.tried(*TINY, "--results_dir", folder / "results", "--log_dir", folder / "runs", "--save_model")


def try_run_config(place: Place, content: bytes) -> None:
    """Try the `config.yml` of a run."""
    with place.fresh() as folder:
        run = shutil.copytree(place.run, folder / "results" / "trial_1")
        (run / "config.yml").write_bytes(content)
        place.tried(*TINY, "--results_dir", folder / "results", "--log_dir", folder / "runs", "--save_model")
        place.tried("--resume", run, "--print-config")


LAYOUTS = {
    "ImageFolder": ("train", "test"),
    "TinyImageNet": ("train", "val"),
    "ImageNet": ("train", "val"),
    "Caltech101": ("101_ObjectCategories",),
}


def try_images(place: Place, case: tuple[str, list[dict[str, Any]], int]) -> None:
    """Try a folder of images twice: first by decoding, then perhaps from the cache of decoded images."""
    dataset, parts, size = case
    with place.fresh() as folder:
        for name, classes in zip(LAYOUTS[dataset], parts):
            for label, entries in classes.items():
                _put_class(folder / "data" / name / label, entries, place.root)
        argv = [*EVALUATE, "--dataset", dataset, "--data", folder / "data", "--image_size", size]
        first = place.tried(*argv, "--pretrained", place.colour)
        if first.code == 0:
            assert place.tried(*argv, "--pretrained", place.colour).out == first.out


def _put_class(folder: Path, entries: list[tuple[str, bytes | str]], root: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.name.startswith("link"):
        folder.symlink_to(root / "canary" if "canary" in folder.name else folder.name)
        return
    folder.mkdir()
    for name, content in entries:
        path = folder / name
        if os.path.lexists(path):
            continue
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "pipe":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        else:
            targets = {"canary": root / "canary/bird.txt", "nothing": "nowhere", "itself": name, "device": "/dev/zero"}
            path.symlink_to(targets[content.rpartition(" ")[2]])


def try_cache(place: Place, content: bytes) -> None:
    """Try a cache of decoded images beside its image folder; a cache that does not fit must be ignored."""
    with place.fresh() as folder:
        data = shutil.copytree(place.images, folder / "data")
        (data / ".decoded_8.safetensors").write_bytes(content)
        argv = [*EVALUATE, "--dataset", "ImageFolder", "--data", data, "--image_size", 8]
        assert place.tried(*argv, "--pretrained", place.colour).code == 0


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


FUZZERS = (
    "configs", "command lines", "tickets", "tickets, pickled", "networks", "checkpoints", "summaries", "run folders",
    "image folders", "decoded images", "MNIST",
)  # fmt: skip


def fuzzers(place: Place) -> dict[str, tuple[Callable[[Place, Any], None], SearchStrategy[Any]]]:
    """Return name -> the function that tries a case, and the strategy that draws cases."""
    ticket, state = (untrusted_inputs.tensor_files(path.read_bytes()) for path in (place.ticket, place.model))
    checkpoint = untrusted_inputs.checkpoints(place.search.read_bytes())
    parts = st.lists(untrusted_inputs.CLASSES, min_size=2, max_size=2)
    sizes = st.sampled_from([8, 8, 8, 0, 1, 100])
    mnist = untrusted_inputs.mutated(MNIST_RAW) | untrusted_inputs.mutated(MNIST_RAW[:16]) | checkpoint
    return {
        "configs": (try_config, untrusted_inputs.CONFIGS),
        "command lines": (try_words, untrusted_inputs.WORDS),
        "tickets": (try_ticket, ticket | state),
        "tickets, pickled": (try_ticket_pickle, checkpoint),
        "networks": (try_pretrained, checkpoint),
        "checkpoints": (try_resume, checkpoint),
        "summaries": (try_summary, untrusted_inputs.json_files((place.run / "summary.json").read_bytes())),
        "run folders": (
            try_run_config,
            untrusted_inputs.CONFIGS | untrusted_inputs.mutated((place.run / "config.yml").read_bytes()),
        ),
        "image folders": (try_images, st.tuples(st.sampled_from(list(LAYOUTS)), parts, sizes)),
        "decoded images": (try_cache, untrusted_inputs.tensor_files(place.cache.read_bytes())),
        "MNIST": (try_mnist, st.tuples(st.sampled_from(MNIST_FILES), mnist)),
    }


def run(name: str, place: Place, cases: int) -> int:
    """Try this many cases of one fuzzer; return how many were tried.

    Raises:
        AssertionError, or any exception that `main.main` let through: for the smallest failing case.
    """
    attempt, strategy = fuzzers(place)[name]
    tried = 0

    @settings(
        max_examples=cases, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
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
    parser.add_argument("--only", nargs="*", metavar="NAME", help="of a fuzzer")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), Watch())
        for name in asked.only or FUZZERS:
            started = time.perf_counter()
            print(f"{name}: {run(name, place, asked.cases):,} cases, {time.perf_counter() - started:.0f} s", flush=True)
