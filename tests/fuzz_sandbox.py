"""The sandbox for the cases of `tests.fuzz`, and a watch on what they write and start."""

import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import main
from tests.conftest import Outcome
from tests.small_sets import put_images

SECONDS = 30
"""Time limit of a case; the largest input, a quarter of a gigabyte of pixels, takes a few seconds."""
TINY = (
    "--arch FC --hidden_size 4 --dataset Digits --epochs 2 --fine_tune_epochs 1 --batch_size 256 --iter_period 1 "
    "--target_sparsity 50 --prune_type BottomK --hc_quantized --skip_sanity_checks --threads 1 --device cpu"
).split()
EVALUATE = "--evaluate --arch FC --hidden_size 4 --device cpu --threads 1 --workers 0".split()


class TooLong(BaseException):
    """A case took too long."""


class Watch:
    """Records files written and processes started while `free` is set; files under `free` are allowed."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.free: Path | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, about: tuple[Any, ...]) -> None:
        if self.free is None:
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen"):
            if "git" not in str(about[0]):  # git reads the commit for environment.json
                self.found.append(f"{event} {about}")
        elif event == "open" and isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._count(event, about[0])
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
            for path in about[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self._count(event, path)

    def _count(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            fine = "__pycache__" in place or place.startswith(("/proc/", os.devnull))
            if not fine and not Path(place).is_relative_to(self.free):
                self.found.append(f"{event} {place}")


class Place:
    """The sandbox: each case has `case/` to itself; `kept/` and `canary/` must not change.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path, watch: Watch) -> None:
        self.root, self._watch = root, watch
        for name in ("kept", "canary", "work/canary"):
            (root / name).mkdir(parents=True)
        (root / "canary" / "bird.txt").write_text("alive")
        self.case, self.kept = root / "case", root / "kept"
        argv = [*TINY, "--results_dir", self.kept / "results", "--log_dir", self.kept / "runs", "--save_model"]
        assert self.call(argv).code == 0
        self.run = self.kept / "results" / "trial_1"
        self.ticket, self.model = self.run / "ticket.safetensors", self.run / "model.safetensors"
        self.search = self.run / "checkpoints" / "search.pt"
        # The same network for colour images, and a few such images.
        self.colour, self.images = self.kept / "colour.safetensors", self.kept / "images"
        save_file({**load_file(self.model), "linear.0.weight": torch.ones(4, 3 * 8 * 8)}, self.colour)
        put_images(self.images, dict.fromkeys(("train/a", "train/b", "test/a", "test/b"), 1))
        assert self.call(self.evaluation("ImageFolder", self.images)).code == 0
        self.cache = self.images / ".decoded_8.safetensors"
        put_images(self.kept / "tree", dict.fromkeys(("train/a", "train/b", "test/a", "val/a"), 2), ending="jpg")
        self.packs = [self.kept / "packed", self.kept / "packed_raw"]
        for pack, raw in zip(self.packs, ("False", "True")):
            assert self.call(["--pack", self.kept / "tree", "--pack_to", pack, "--pack_raw", raw]).code == 0

    def evaluation(self, dataset: str, data: Path, size: int = 8) -> list[Any]:
        """Return the command line that evaluates the network for colour images on a folder."""
        return [*EVALUATE, "--dataset", dataset, "--data", data, "--image_size", size, "--pretrained", self.colour]

    def call(self, argv: list[Any]) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        try:
            with chdir(self.root / "work"), redirect_stdout(out), redirect_stderr(err):
                code = main.main([str(word) for word in argv])
        except SystemExit as ended:  # of --help
            code = ended.code
        return Outcome(code, out.getvalue(), err.getvalue())

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """Create the folder of a case, and remove it when the context closes."""
        self.case.mkdir()
        self._watch.found.clear()
        try:
            yield self.case
        finally:
            shutil.rmtree(self.case)

    def tried(self, *argv: Any, codes: tuple[int, ...] = (0, 2)) -> Outcome:
        """Call `main.py`, and assert that it behaves: one message at most, no traceback, no change outside the case.

        Args:
            argv: the command line.
            codes: allowed exit codes.
        """
        before = self._state()
        with _limited(SECONDS):
            self._watch.free = self.case.resolve()
            try:
                outcome = self.call(list(argv))
            finally:
                self._watch.free = None
        found, self._watch.found = self._watch.found, []
        told = len(re.findall(r"^error: ", outcome.err, re.MULTILINE))
        assert outcome.code in codes, outcome
        assert told == (outcome.code == 2) and "Traceback" not in outcome.out + outcome.err, outcome
        assert len(outcome.err) < 20_000, "a message that nobody reads to its end"
        assert not found and self._state() == before, found
        return outcome

    def _state(self) -> list[tuple[str, int, int]]:
        paths = [path for top in ("kept", "canary", "work") for path in (self.root / top).rglob("*")]
        stats = [(str(path), path.lstat()) for path in sorted(paths)]
        return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
