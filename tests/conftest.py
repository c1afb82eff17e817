"""Fixtures and helpers that tests share: a small run that starts in a second, and ways to call the program."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
import torch
from safetensors.torch import load_file

from utils.run.run import Run
from utils.run.stopping import Stopping

PROJECT = Path(__file__).resolve().parent.parent

# A quarter of ResNet-20's width on 8×8 digits: every stage runs, and an epoch takes 0.1 to 0.2 seconds.
SMALL = (
    "--arch resnet20 --width 0.25 --dataset Digits --batch_size 256 --epochs 4 --fine_tune_epochs 2 --iter_period 1 "
    "--target_sparsity 20 --prune_type BottomK --hc_quantized --init signed_constant --lr 0.1 --wd 0 "
    "--regularization L2 --lmbda 1e-4 --threads 1"
).split()


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's GPUs from all tests, unless those marked `gpu` are selected by `-m gpu`."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Outcome(NamedTuple):
    """The result of a call of the program."""

    code: int
    out: str
    err: str


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Options that keep a run's folders inside the test's temporary folder."""
    return ["--results_dir", str(tmp_path / "results"), "--log_dir", str(tmp_path / "runs")]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Call `main.py` in this process."""
    import main

    show = warnings.showwarning

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        return Outcome(main.main([str(word) for word in argv]), *capsys.readouterr())

    with warnings.catch_warnings(action="always"):
        yield run
    warnings.showwarning = show


@pytest.fixture
def done(call: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Call `main.py`, which has to succeed."""

    def run(*argv: object) -> Outcome:
        outcome = call(*argv)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


@pytest.fixture
def refusal(call: Callable[..., Outcome]) -> Callable[..., str]:
    """Call `main.py`, which has to end with exit code 2, and return what it says on stderr."""

    def run(*argv: object) -> str:
        outcome = call(*argv)
        assert outcome.code == 2, outcome.err
        return outcome.err

    return run


def start(*argv: object, cwd: Path = PROJECT) -> subprocess.Popen[str]:
    """Start `python main.py` in its own process; its output can be read line by line."""
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *map(str, argv)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def alone(*argv: object) -> str:
    """Run `main.py` in its own process, which has to succeed; return what it prints."""
    process = start(*argv)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder (trial_1) of a small finished run, made in its own process."""
    root = tmp_path_factory.mktemp("finished")
    (root / "screen.txt").write_text(alone(*SMALL, "--results_dir", root / "results", "--log_dir", root / "runs"))
    return root / "results" / "trial_1"


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """A function that raises this error, whatever it is given."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every download fail."""
    monkeypatch.setattr(urllib.request, "urlopen", raising(urllib.error.URLError("no route to host")))


def epoch_row(epoch: int, val_acc: float | None = None) -> dict[str, Any]:
    """A row of a search's table of epochs; its other numbers are ones."""
    others = ("lr", "test_acc", "train_acc", "train_loss", "model_sparsity", "seconds")
    return {"phase": "search", "epoch": epoch, "val_acc": val_acc, **dict.fromkeys(others, 1.0)}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a run's table."""
    with path.open() as file:
        return list(csv.DictReader(file))


def timeless(folder: Path) -> dict[str, object]:
    """Return all results of a run without times: tables, summary, ticket, and each stage's checkpoint."""
    tables = {path.name: [{**row, "seconds": ""} for row in read_rows(path)] for path in folder.glob("*.csv")}
    summary = json.loads((folder / "summary.json").read_text())
    summary = {name: value for name, value in summary.items() if "seconds" not in name}
    for figures in summary["cost"].values():  # times and peak memory differ from run to run
        del figures["seconds"], figures["peak_memory_bytes"]
    newest = [path for path in folder.glob("checkpoints/*.pt") if "." not in path.stem]  # .1: the previous one
    states = {path.name: torch.load(path, weights_only=True).get("training") for path in newest}
    return {"tables": tables, "summary": summary, "ticket": load_file(folder / "ticket.safetensors"), **states}


def same_bits(one: object, other: object) -> bool:
    """Compare nested containers of tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


def summary_of(folder: Path) -> dict[str, Any]:
    """Read the summary of a run."""
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def trial(tmp_path: Path) -> Callable[..., Path]:
    """The folder of the first trial of the run of a name, where `places` keep it."""
    return lambda name="": tmp_path / "results" / name / "trial_1"


def opened(folder: Path, seed: int = 7, **options: object) -> Run:
    """A run in a folder, with its events in it too."""
    return Run(folder, folder / "events", seed, **options)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that handles signals, in a folder of its own."""
    with opened(tmp_path / "run").until_stopped() as run:
        yield run


@pytest.fixture
def ran(done: Callable[..., Outcome], places: list[str], trial: Callable[..., Path]) -> Callable[..., Path]:
    """Make a small run, which has to succeed, and return the folder of its first trial."""

    def run(*words: object, name: str = "") -> Path:
        done(*SMALL, *places, *(["--name", name] if name else []), *words)
        return trial(name)

    return run


@pytest.fixture
def same_after_a_stop(
    call: Callable[..., Outcome], places: list[str], trial: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., bool]:
    """Whether a run that is asked to stop at its n-th look goes on to the bits of an undisturbed one."""

    def compared(look: int, *words: object) -> bool:
        codes, looks = [call(*words, *places, "--name", "whole").code], itertools.count(1)
        with monkeypatch.context() as stopping:
            stopping.setattr(Stopping, "asked", property(lambda _: 130 if next(looks) == look else 0))
            codes.append(call(*words, *places, "--name", "stopped").code)
        codes.append(call("--resume", trial("stopped")).code)
        assert codes == [0, 130, 0]
        return same_bits(timeless(trial("stopped")), timeless(trial("whole")))

    return compared


def script(name: str, home: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Call a shell script of the project, for one trial."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "TRIALS": "1", "HOME": str(home)}
    return subprocess.run(["bash", PROJECT / name, *options], capture_output=True, text=True, env=environment)


def interrupted(after: str, *argv: object, signum: int = signal.SIGTERM) -> tuple[int, str]:
    """Send a run of its own process a signal after a line that begins so; return its exit code and what it said."""
    process = start(*argv)
    next(line for line in process.stdout if line.startswith(after))
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    return process.returncode, err
