"""What only a CUDA GPU can show: `python -m pytest -m gpu`, some minutes on one; two GPUs for what is between them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, SMALL, alone, read_rows, same_bits, summary_of, timeless
from torch import Tensor, nn

from args_helper import parse_args
from data.image_files import ImageFiles
from data.load import load_data
from data.spec import DataSpec
from data.streamed_batches import StreamedTrainBatches
from models.build import build_model
from models.initialise import draw_scores
from models.layers import TopKInLayer
from models.masking import plain_state, prunable_parameters, to_masked
from tests.small_sets import put, put_noise
from tests.test_ranks import torchrun
from tests.test_streamed_batches import SPEC
from trainers.algorithms import ALGORITHMS
from trainers.algorithms.cts import ConcreteSearch
from trainers.algorithms.edge_popup import EdgePopup
from trainers.algorithms.gem_miner import GemMiner
from trainers.tickets.file import read_ticket
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.compile import compile_in_place
from trainers.training.loop import train_step
from trainers.training.training import Training
from trainers.training.weights import WeightTraining
from utils.masks import all_kept, prune_exactly, prune_lowest
from utils.memory import peak_memory, reset_peak_memory
from utils.run.run import Run

DEVICE = "cuda"
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")]

SHORT = [*SMALL, "--skip_sanity_checks", "--epochs", "2", "--fine_tune_epochs", "2", "--device", DEVICE]
NETWORK = """
from torch import nn
def small(spec):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, spec.classes, bias=False),
    )
"""
"""Compiled in seconds, and with BatchNorm, whose buffers a compiled step writes to."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is left of the test before; cuBLAS reads how it has to be deterministic once in a process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = False
    torch._dynamo.reset()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """Options for a network that is compiled in seconds."""
    (tmp_path / "small.py").write_text(NETWORK)
    return ["--arch", f"{tmp_path}/small.py:small"]


@contextmanager
def unwaiting() -> Iterator[None]:
    """Within: waiting for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- trainings by hand ---------------------------------------------------------------------------------------------


def mining(net: nn.Module, words: list[str]) -> GemMiner:
    draw_scores(to_masked(net), torch.Generator().manual_seed(2), "unif")
    return GemMiner(net, parse_args(words))


def popping(net: nn.Module, words: list[str]) -> EdgePopup:
    draw_scores(to_masked(net), torch.Generator().manual_seed(2), "signed")
    return EdgePopup(net, parse_args([*words, "--algo", "global_ep"]))


def concrete(net: nn.Module, words: list[str]) -> ConcreteSearch:
    teacher, run = build_model(parse_args(words)).to(DEVICE), Run(Path("unused"), Path("unused"), 1)
    if net._compiled_call_impl is not None:
        compile_in_place(teacher, DEVICE)
    return ConcreteSearch(to_masked(net), teacher, parse_args([*words, "--algo", "cts"]), run)


def tuning(net: nn.Module, words: list[str]) -> WeightTraining:
    masks = {name: weight > 0 for name, weight in prunable_parameters(net).items()}
    return WeightTraining(net, Ticket(plain_state(net), masks), Recipe.of_tuning(parse_args(words)))


KINDS = {
    "Gem-Miner": mining,
    "Gem-Miner, moving threshold": lambda net, words: mining(net, [*words, "--bottom_k_on_forward", "true"]),
    "Gem-Miner, entropy": lambda net, words: mining(net, [*words, "--regularization", "bin_entropy"]),
    "edge-popup": popping, "CTS": concrete, "weights": tuning,
    "weights by Adam": lambda net, words: tuning(net, [*words, "--fine_tune_optimizer", "adam"]),
}  # fmt: skip


def losses_of(training: Training, words: list[str]) -> Tensor:
    """(steps,) the losses of an epoch, of whose steps none but the first two may wait for the GPU."""
    data = load_data(parse_args([*words, "--device", DEVICE]))
    batches, losses = data.train.epoch(torch.Generator().manual_seed(0)), []
    training.full_batch = data.train.size(0)
    for step in range(2):  # the first ones allocate
        losses.append(train_step(training, step, *next(batches))[0])
    with unwaiting():
        for step, batch in enumerate(batches, start=2):
            losses.append(train_step(training, step, *batch)[0])
    return torch.stack(losses).cpu()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_gpu(kind, precision):
    words = [*SMALL, "--precision", precision]
    losses = losses_of(KINDS[kind](build_model(parse_args(words)).to(DEVICE).train(), words), words)
    assert len(losses) == 6 and bool(losses.isfinite().all())


def test_a_step_that_waits_would_be_noticed():
    value = torch.ones(2, device=DEVICE)
    with unwaiting(), pytest.raises(RuntimeError, match="synchroniz"):
        value.sum().item()


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_come_without_waiting(workers, tmp_path):
    files, found = ImageFiles.of(tmp_path, put_noise(tmp_path, 24), range(24)), []
    for device in ("cpu", f"{DEVICE}:0"):  # a thread names its GPU by number, as runs do
        batches = StreamedTrainBatches(files, SPEC, 5, device, workers).epoch(torch.Generator().manual_seed(0))
        taken = [next(batches)]  # what is drawn for an epoch is moved before its first batch
        with unwaiting():
            taken += batches
        found.append([(images.cpu(), labels.cpu()) for images, labels in taken])
    assert len(found[0]) == 5
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("workers", [0, 2])
def test_jpegs_decoded_on_the_gpu_come_without_waiting_and_differ_by_rounding(workers, tmp_path, monkeypatch):
    pytest.importorskip("torchcodec", minversion="0.17")
    rows, columns = np.mgrid[0:48, 0:64]
    for number in range(24):
        pixels = np.stack([4 * rows, 3 * columns, 0 * rows + 10 * number], 2).astype(np.uint8)
        put(tmp_path / f"{number}.jpg", pixels, quality=95, subsampling=0)
    files, found = ImageFiles.of(tmp_path, [f"{number}.jpg" for number in range(24)], range(24)), []
    busy = torch.ones(4096, 4096, device=DEVICE)
    for on_device, products in ((False, 0), (True, 0), (True, 5)):
        spec, taken = replace(SPEC, shape=(3, 32, 32)), []
        if on_device:  # no image may be left to the CPU
            monkeypatch.delattr(ImageFiles, "pixels", raising=False)
        # Of 12 batches, 5 are begun before the first is given up, whose memory the others may then use.
        batches = StreamedTrainBatches(files, spec, 2, f"{DEVICE}:0", workers, on_device)
        epoch = batches.epoch(torch.Generator().manual_seed(0))
        for first in (True, False):
            with nullcontext() if first else unwaiting():  # what is drawn for an epoch is moved before its first batch
                for images, _ in islice(epoch, 1 if first else None):
                    for _ in range(products):  # the images are read late, when they have been given up
                        busy @ busy
                    taken.append(images.double().sum((1, 2, 3)) / images[0].numel())
                    del images
        found.append(torch.cat(taken).cpu())
    on_cpu, on_gpu, while_busy = found
    assert len(on_cpu) == 24 and torch.equal(on_gpu, while_busy)
    assert (on_gpu - on_cpu).abs().max() < 1


@pytest.mark.parametrize("kind", ["Gem-Miner", "edge-popup", "CTS", "weights"])
def test_a_recorded_graph_computes_what_the_network_does(kind, small):
    words, found = [*SMALL, *small, "--batch_size", "64", "--lr", "0.01", "--fine_tune_lr", "0.01"], []
    for compiled in (False, True):
        net = build_model(parse_args(words)).to(DEVICE).train()
        if compiled:
            compile_in_place(net, DEVICE)
        training, data = KINDS[kind](net, words), load_data(parse_args([*words, "--device", DEVICE]))
        training.full_batch = 64
        batches = data.train.epoch(torch.Generator().manual_seed(0))
        found.append(torch.stack([train_step(training, step, *batch) for step, batch in enumerate(batches)]).cpu())
    assert len(found[0]) == 21  # a short one among them
    torch.testing.assert_close(found[1][:8, 0], found[0][:8, 0], rtol=0.01, atol=0.1)
    torch.testing.assert_close(found[1][:, 0], found[0][:, 0], rtol=0.2, atol=1.0)


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_goes_from_search_to_summary(algo, compiled, small, done, places, trial):
    words = [*SHORT, *small, *places, "--compile", compiled]
    if algo == "given":
        done(*words, "--name", "first", "--algo", "random", "--skip_fine_tune")
        words += ["--ticket", trial("first") / "ticket.safetensors"]
    assert "not compiled" not in done(*words, "--algo", algo).err
    summary = summary_of(trial())
    assert summary["algo"] == algo and 0 < summary["weights_remaining"] <= summary["weights_total"]


@pytest.mark.parametrize("algo", ["hc_iter", "imp --imp_rounds 2 --prune_rate 0.4 --imp_rewind_iter 4", "cts"])
def test_a_stopped_run_goes_on_to_the_very_bits_of_an_undisturbed_one(algo, call, done, places, trial, monkeypatch):
    words, steps = [*SHORT, *places, "--deterministic", "--algo", *algo.split()], []
    done(*words, "--name", "whole")

    def stopping(*args: object) -> Tensor:
        steps.append(args[1])
        if len(steps) in (3, 10):  # within an epoch, with momentum and a meter to be taken up
            signal.raise_signal(signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr("trainers.training.loop.train_step", stopping)
    assert call(*words, "--name", "stopped").code == 128 + signal.SIGTERM
    assert [call("--resume", trial("stopped")).code for _ in range(2)] == [128 + signal.SIGTERM, 0]
    assert same_bits(timeless(trial("stopped")), timeless(trial("whole")))


def test_less_precise_products_come_to_about_the_same(done, places, trial):
    losses = {}
    for precision in ("fp32", "tf32", "bf16"):
        done(*SHORT, *places, "--precision", precision, "--name", precision)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        losses[precision] = float(read_rows(trial(precision) / "acc_and_sparsity.csv")[0]["train_loss"])
    assert losses["tf32"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05) and losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize(("algo", "apart"), [
    ("hc_iter", 0.02), ("ep", 0.02), ("snip", 0.002), ("grasp", 0.01), ("synflow", 0.002), ("random_erk", 0.0),
])  # fmt: skip
def test_a_short_run_comes_to_what_it_comes_to_on_the_cpu(algo, apart, done, places, trial):
    rows, masks = [], []
    for device in ("cpu", DEVICE):
        words = [*SHORT, *places, "--algo", algo, "--lr", "0.01", "--fine_tune_lr", "0.01"]
        done(*words, "--name", f"on_{device}", "--device", device)
        folder = trial(f"on_{device}")
        rows.append(read_rows(folder / "acc_and_sparsity.csv"))
        ticket, _ = read_ticket(folder / "ticket.safetensors")
        masks.append(torch.cat([mask.flatten() for mask in ticket.masks.values()]))
    assert float((masks[0] != masks[1]).float().mean()) <= apart
    for one, other in zip(*rows, strict=True):
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=0.05)


def test_a_finished_run_is_exported_and_evaluated(done, places, trial, monkeypatch):
    monkeypatch.setattr("trainers.export.savings.SECONDS", 0.1)
    done(*SHORT, *places, "--export")
    folder = trial()
    apart = json.loads((folder / "export" / "export.json").read_text())["largest_difference_of_logits"]
    assert apart and max(apart.values()) < 1e-3
    out = done(*SHORT, *places, "--evaluate", "--pretrained", folder / "export" / "model.safetensors").out
    told = float(out.partition("test accuracy")[2].partition("%")[0])
    assert told == pytest.approx(summary_of(folder)["test_acc_after_finetune"], abs=0.3)


# ---- prunings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [50, 10**6])
def test_prunings_are_those_that_sorting_makes_on_both_devices(levels):
    draw = torch.Generator().manual_seed(0)
    rank = torch.randint(levels, (20_000,), generator=draw) / levels  # with few levels, most of them tie
    unpruned = torch.rand(20_000, generator=draw) < 0.7
    count, ordered = 3000, rank[unpruned].sort().values
    lowest = unpruned & (rank > ordered[count - 1])
    kept = TopKInLayer(0.3).mask(rank, unpruned)
    assert int(kept.sum()) == 20_000 - int(0.7 * 20_000)
    assert float(rank[kept].min()) >= float(rank[~kept].max())
    found = []
    for device in ("cpu", DEVICE):
        there, flags = rank.to(device), unpruned.to(device)
        assert torch.equal(prune_lowest(there, flags, count / len(ordered)).cpu(), lowest)
        assert torch.equal(TopKInLayer(0.3).mask(there, flags).cpu(), kept)
        found.append(prune_exactly(there, flags, count, torch.Generator().manual_seed(1)).cpu())
    assert torch.equal(*found)
    assert int(found[0].sum()) == len(ordered) - count
    assert bool((lowest <= found[0]).all())


# ---- memory, and several GPUs --------------------------------------------------------------------------------------


def step_bytes(training: Training, images: Tensor, labels: Tensor) -> int:
    """What a step takes on top of what is there before it."""
    train_step(training, 0, images, labels)
    reset_peak_memory(images.device)
    before = peak_memory(images.device)
    train_step(training, 1, images, labels)
    return peak_memory(images.device) - before


def test_a_search_takes_little_more_memory_than_the_dense_network():
    spec = DataSpec((3, 224, 224), tuple(map(str, range(1000))), (0.5,) * 3, (0.5,) * 3)
    words = ["--arch", "ResNet50", "--regularization", "L2", "--lmbda", "1e-4"]
    images = torch.randn(32, *spec.shape, device=DEVICE).contiguous(memory_format=torch.channels_last)
    labels, taken = torch.zeros(32, dtype=torch.int64, device=DEVICE), []
    for masked in (False, True):
        net = build_model(parse_args(words), spec).to(DEVICE).train()
        dense = Ticket(plain_state(net), all_kept(prunable_parameters(net)))
        training = mining(net, words) if masked else WeightTraining(net, dense, Recipe.of_tuning(parse_args(words)))
        taken.append(step_bytes(training, images, labels))
        del net, dense, training
    assert taken[0] > 2**30  # activations, most of it
    assert taken[1] <= 1.1 * taken[0]


@needs_two
def test_a_run_on_the_second_gpu_takes_nothing_on_the_first(places):
    words = [*SHORT, *places, "--gpu", "1"]
    code = f"import main, torch; code = main.main({words}); print(code, torch._C._cuda_hasPrimaryContext(0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


@needs_two
def test_two_gpus_come_to_what_one_does(places, trial):
    words = [*SHORT, *places, "--lr", "0.01", "--fine_tune_lr", "0.01"]
    out, _ = (process := torchrun([*words, "--name", "two"])).communicate(timeout=300)
    assert process.returncode == 0, out
    alone(*words, "--name", "one", "--accumulate", "2")
    for one, other in zip(*(read_rows(trial(name) / "acc_and_sparsity.csv") for name in ("one", "two"))):
        assert float(other["train_loss"]) == pytest.approx(float(one["train_loss"]), rel=0.02)
