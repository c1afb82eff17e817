"""Several processes that share a run: what they tell one another, and that together they come to what one comes to."""

import io
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing import start_processes

import main
from tests.conftest import PROJECT, SMALL, raising, read_rows, same_bits, timeless
from trainers.training.batchnorm import average_statistics
from utils.distributed import collectives as ranks
from utils.distributed import launch
from utils.distributed.consistency import assert_same_on_all_ranks
from utils.distributed.launch import Launch, launched
from utils.errors import DistributedError, UserError, resume_command
from utils.run.progress import Progress

SHORT = [*SMALL, "--skip_sanity_checks"]
# Of 1,294 images the last batch has two, which stay together: the second rank has no part of it.
UNEVEN = [*SHORT, "--batch_size", "646"]


def said(rank: int, world: int, port: int, **more: str) -> dict[str, str]:
    """What torchrun would tell a process on the only machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port,
               "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0, "TORCHELASTIC_RUN_ID": "none",
               "MASTER_ADDR": "127.0.0.1"}  # fmt: skip
    return {name: str(value) for name, value in (numbers | more).items()}


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def shared(function: Callable[[], Any], world: int, port: int) -> list[Any]:
    """What a function returns on each of so many ranks, or the text of the error that it ends with."""

    def joined() -> Any:
        try:
            with ranks.process_group(torch.device("cpu"), "nccl"):
                return function()
        except (UserError, DistributedError) as error:
            return f"{type(error).__name__}: {error}"

    return forked(joined, world, port)


def forked(function: Callable[[], Any], world: int, port: int) -> list[Any]:
    """What a function returns in each of so many processes, which are told that torchrun has started them.

    An error in one of them is raised here, and ends the others.
    """
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def work(rank: int) -> None:
        os.environ |= said(rank, world, port)
        Progress.set_lock(RLock())  # a thread of this process may hold the one that forked processes share
        queue.put((rank, function()))

    start_processes(work, nprocs=world, start_method="fork")  # which have imported everything by then
    answers = dict(queue.get() for _ in range(world))
    return [answers[rank] for rank in range(world)]


# ---- what ranks tell one another -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0] * 4), (1, [1, 0, 0, 0]), (3, [3, 0, 0, 0]), (4, [2, 2, 0, 0]), (7, [3, 2, 2, 0]),
                         (8, [2, 2, 2, 2]), (11, [3, 3, 3, 2])],
)  # fmt: skip
def test_every_rank_has_two_images_of_a_batch_or_none_and_together_they_have_all(count, sizes, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(list(range(100))[ranks.own_part(7, 7 + count)])
    assert [len(part) for part in parts] == sizes
    assert list(chain(*parts)) == list(range(7, 7 + count))


def everything_told() -> list[Any]:
    rank = ranks.rank()
    calls = []

    @ranks.rank_zero_only
    def inner() -> str:
        calls.append("inner")
        return f"of {rank}"

    @ranks.rank_zero_only
    def outer() -> tuple[str, bool]:
        return inner(), ranks.is_distributed()

    agreement = ranks.Agreement()
    tensors = [torch.tensor([1.0, rank]), torch.tensor([[2.0]]), torch.tensor([rank, 1])]
    ranks.all_reduce_in_place(tensors)
    told = [ranks.broadcast(rank + 5), ranks.all_gather(rank), outer(), calls]
    agreed = [agreement.soon(rank, 0), agreement.soon(9, 0), agreement.soon(0, rank)]
    return [*told, [tensor.tolist() for tensor in tensors], *agreed, agreement.now(0, 0), agreement.now(0, 0)]


def test_what_ranks_tell_one_another(port):
    same = [5, [0, 1, 2], ("of 0", False)]
    sums, agreed = [[3.0, 3.0], [[6.0]], [3, 3]], [[0, 0], [2, 0], [0, 0], [0, 2], [0, 0]]
    answers = shared(everything_told, 3, port)
    assert answers == [[*same, ["inner"] if rank == 0 else [], sums, *agreed] for rank in range(3)]


def test_what_goes_wrong_on_the_first_is_told_on_all(port):
    write = ranks.rank_zero_only(raising(UserError("the disk is full")))
    assert shared(write, 2, port) == ["UserError: the disk is full"] * 2


def test_a_rank_that_differs_ends_all_and_is_named(port):
    def one_differs() -> str:
        net = nn.Linear(3, 2)
        for parameter in net.parameters():
            parameter.data.fill_(0.5)
        assert_same_on_all_ranks(net.state_dict(), "at first")
        net.bias.data[1] += 1e-7 * (ranks.rank() == 1)
        assert_same_on_all_ranks(net.state_dict(), "after epoch 3 of search")
        return "nobody has noticed"

    one, other = shared(one_differs, 2, port)
    said = "DistributedError: rank 1 has another bias than rank 0 has, after epoch 3 of search: the run ends"
    assert one == other and one.startswith(said)


def test_views_of_one_tensor_are_sent_once(port):
    def sent() -> int:
        flat = torch.arange(5.0)
        views = ranks.broadcast((flat[:2], flat[2:]) if ranks.rank() == 0 else None)
        return len({view.untyped_storage().data_ptr() for view in views})

    assert shared(sent, 2, port) == [1, 1]


@pytest.mark.parametrize(
    ("norm", "shape", "count"), [(nn.BatchNorm1d, (2, 1), 1), (nn.InstanceNorm2d, (1, 1, 1, 2), 0)]
)
def test_running_statistics_are_averaged(norm, shape, count, port):
    def statistics() -> list[list[float]]:
        net = nn.Sequential(norm(1, track_running_stats=True), norm(1, track_running_stats=False))
        # Means 1 and 2, variances 2 and 8; momentum 0.1.
        net(torch.tensor([0.0, 2.0]).view(shape) * (1 + ranks.rank()))
        average_statistics(net)
        return [value.tolist() for value in net.buffers()]

    assert shared(statistics, 2, port) == [[pytest.approx([0.15]), pytest.approx([0.9 + 0.1 * 5]), count]] * 2


# ---- how processes are started -------------------------------------------------------------------------------------


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets variables of the environment."""
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_only_what_torchrun_says_counts(tell):
    tell({"RANK": "3", "WORLD_SIZE": "4"})
    assert launched() == Launch()
    tell(said(1, 4, 1, LOCAL_WORLD_SIZE="2", LOCAL_RANK="1", TORCHELASTIC_MAX_RESTARTS="2"))
    assert launched() == Launch(1, 4, 1, 2, 0, True, True)
    assert resume_command(Path("here")) == "torchrun --nproc-per-node=2 ... main.py --resume here"


ASKED = [("multiprocessing_distributed: true", 1), ("world_size: 4\nrank: 0", 1), ("rank: -1", 0)]


@pytest.mark.parametrize(("asked", "is_told"), ASKED)
def test_a_file_that_asks_for_several_processes_is_told_how_to_start_them_in_one_line(asked, is_told, call, tmp_path):
    (tmp_path / "old.yml").write_text(f"{asked}\ndist_backend: nccl\nevaluate: true\npretrained: none.pt\n")
    told = call("--config", tmp_path / "old.yml").err.splitlines()[:-1]
    assert [line.startswith("warning: one process does all the work") for line in told] == [True] * is_told
    assert all("torchrun --nproc-per-node=2 main.py" in line for line in told)


@pytest.mark.parametrize(("words", "message"), [
    (["--evaluate", "--pretrained", "a"], "evaluate runs in one process"),
    (["--sweep", "a.yml"], "sweep runs in one process"),
    (["--batch_size", "3"], "batch_size 3 is less than two images for each of the 2 processes"),
])  # fmt: skip
def test_what_cannot_be_shared_is_refused(words, message, call, places, tell):
    tell(said(0, 2, 1))
    outcome = call("--device", "cpu", *words, *places)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"error: {message}")


def test_others_let_the_first_speak(call, tell, monkeypatch):
    monkeypatch.setattr(launch, "HEAD_START", 0.0)
    tell(said(1, 2, 1))
    outcome = call("--print_config")
    assert (outcome.code, outcome.out) == (0, "")
    assert call("--evaluate", "--pretrained", "a").err.startswith("rank 1: error: evaluate runs in one process")


# ---- whole runs ----------------------------------------------------------------------------------------------------


def at(place: Path) -> list[str]:
    return ["--results_dir", str(place / "results"), "--log_dir", str(place / "runs"), "--device", "cpu"]


def of_trial(place: Path) -> Path:
    return place / "results" / "trial_1"


def states(place: Path, stage: str) -> dict[str, torch.Tensor]:
    network = torch.load(of_trial(place) / "checkpoints" / f"{stage}.pt", weights_only=True)["training"]["network"]
    return {name: value.float() for name, value in network.items()}


def learned(place: Path, stage: str) -> dict[str, torch.Tensor]:
    """Without statistics of batch norm: of halves one after another, or averaged."""
    return {name: value for name, value in states(place, stage).items() if not re.search("running_|tracked", name)}


def masks_of(place: Path) -> dict[str, torch.Tensor]:
    ticket = load_file(of_trial(place) / "ticket.safetensors")
    return {name: mask for name, mask in ticket.items() if name.startswith("mask/")}


def columns(place: Path, *names: str) -> torch.Tensor:
    """These columns of the table of epochs, row by row."""
    rows = read_rows(of_trial(place) / "acc_and_sparsity.csv")
    return torch.tensor([[float(row[name]) for name in names] for row in rows], dtype=torch.float64)


def test_two_ranks_come_to_what_one_process_comes_to_that_accumulates_two_parts(tmp_path, port, call):
    def printing() -> tuple[int, str]:
        with redirect_stdout(io.StringIO()) as printed:
            return main.main([*UNEVEN, *at(two)]), printed.getvalue()

    one, two = tmp_path / "one", tmp_path / "two"
    (first, printed), second = forked(printing, 2, port)
    assert (first, second) == (0, (0, ""))
    assert "hc_iter, trial 1" in printed
    assert call(*UNEVEN, *at(one), "--accumulate", "2").code == 0
    names = ("train_loss", "train_acc", "model_sparsity", "regularization_loss")
    torch.testing.assert_close(columns(two, *names), columns(one, *names), atol=1e-5, rtol=1e-6)
    for stage in ("search", "finetune"):
        torch.testing.assert_close(learned(one, stage), learned(two, stage), atol=1e-5, rtol=1e-5)
    assert same_bits(masks_of(one), masks_of(two))
    alone, shared = (json.loads((of_trial(place) / "summary.json").read_text()) for place in (one, two))
    assert (alone["world_size"], shared["world_size"]) == (1, 2)
    assert alone["weights_remaining"] == shared["weights_remaining"]
    assert alone["cost"]["search"]["images"] == shared["cost"]["search"]["images"]


def torchrun(words: list[str], *options: str) -> subprocess.Popen[str]:
    """Start two processes by torchrun, as its users do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *options, str(PROJECT / "main.py")]
    env, pipe = {**os.environ, "OMP_NUM_THREADS": "1"}, subprocess.PIPE
    return subprocess.Popen([*command, *words], stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env)


def worker(launcher: int, rank: int) -> int:
    """The number of a process that torchrun has started."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}".encode() in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:  # it has ended meanwhile, or is another's
            continue
    raise AssertionError(f"there is no rank {rank}")


LONGER = [*SHORT, "--epochs", "12", "--iter_period", "3", "--accumulate", "2", "--batch_size", "100"]


def ended(process: subprocess.Popen[str], signum: int = 0, rank: int | None = None) -> str:
    """What a run prints that is sent a signal, or a rank of which is, in the middle of its search."""
    for said in process.stdout if signum else ():
        if said.startswith("search 6/12"):
            os.kill(process.pid if rank is None else worker(process.pid, rank), signum)
            break
    out, _ = process.communicate(timeout=300)
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    out = ended(process := torchrun([*LONGER, *at(place)]))
    assert process.returncode == 0, out
    return place


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_loses_a_rank_is_started_again_and_comes_to_the_same_end(rank, undisturbed, tmp_path):
    out = ended(process := torchrun([*LONGER, *at(tmp_path)], "--max-restarts=1"), signal.SIGKILL, rank)
    assert process.returncode == 0, out
    assert "started again by torchrun (1): going on from the last checkpoint" in out
    assert "Traceback" not in out
    assert same_bits(timeless(of_trial(tmp_path)), timeless(of_trial(undisturbed)))


@pytest.mark.slow
def test_a_run_that_is_stopped_stores_its_step_and_goes_on(undisturbed, tmp_path):
    out = ended(torchrun([*LONGER, *at(tmp_path)]), signal.SIGTERM)
    command = f"torchrun --nproc-per-node=2 main.py --resume {of_trial(tmp_path)}"
    assert out.count(f"stopped by SIGTERM; go on with: {command}") == 1
    out = ended(process := torchrun(["--resume", str(of_trial(tmp_path)), "--device", "cpu"]))
    assert process.returncode == 0, out
    names = ("train_loss", "train_acc", "model_sparsity", "lr")
    assert torch.equal(columns(tmp_path, *names), columns(undisturbed, *names))
    assert same_bits(masks_of(tmp_path), masks_of(undisturbed))


@pytest.mark.slow
def test_a_training_that_diverges_is_told_on_all_ranks_alike(tmp_path, port):
    def diverging() -> tuple[int, str]:
        launch.HEAD_START = 0.0
        with redirect_stderr(io.StringIO()) as told:
            code = main.main([*SHORT, *at(tmp_path), "--algo", "training", "--arch", "FC", "--lr", "1e30"])
        return code, told.getvalue().removeprefix("rank 1: ")

    first, second = forked(diverging, 2, port)
    assert first == second
    assert first[0] == 3 and "search has diverged: the output of layer" in first[1]


@pytest.mark.slow
def test_a_run_that_is_stored_within_epochs_comes_to_the_same_end(undisturbed, tmp_path, port):
    assert forked(lambda: main.main([*LONGER, *at(tmp_path), "--checkpoint_every", "0.05s"]), 2, port) == [0, 0]
    torch.testing.assert_close(states(tmp_path, "finetune"), states(undisturbed, "finetune"), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["imp --imp_rounds 2 --prune_rate 0.4", "cts --rewind_epoch 1", "snip", "ep"])
def test_other_algorithms_are_shared_as_well(algo, tmp_path, port, call):
    words, one, two = [*SHORT, "--algo", *algo.split()], tmp_path / "one", tmp_path / "two"
    assert forked(lambda: main.main([*words, *at(two)]), 2, port) == [0, 0]
    assert call(*words, *at(one), "--accumulate", "2").code == 0
    torch.testing.assert_close(columns(two, "train_loss"), columns(one, "train_loss"), atol=1e-4, rtol=1e-6)
