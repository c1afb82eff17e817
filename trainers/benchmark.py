"""How fast the parts of a search are, beside a plain loop that computes the same: `python -m trainers.benchmark`.

    python -m trainers.benchmark [--arch resnet20 --dataset CIFAR10 --batch_size 128 --device cpu ...]

Takes every option of `main.py`, and `--repeats N`, `--images N` (of an epoch and of an evaluation) and `--json FILE`.
Both sides take turns on the same weights and the same batches, so that whatever else the machine does falls on both.
Figures are medians with their spread; what to trust is the ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from args_helper import Config, parse_args
from data import load_data
from data.loader import PlainBatches, Splits, TrainBatches
from models import build_model
from models.folding import FoldedNetwork
from models.initialise import draw_scores
from models.masking import masked_layers, plain_state, prunable_parameters, to_masked
from trainers import plain_loop
from trainers.algorithms.hypercube import GemMiner
from trainers.compiling import prepared
from trainers.folders import resolved
from trainers.ledger import BACKWARD_AND_FORWARD, activation_bytes, forward_flops
from trainers.loop import evaluate, train_step
from trainers.weights import WeightTraining
from utils.environment import describe_environment, peak_memory, reset_peak_memory
from utils.errors import UserError
from utils.files import write_json
from utils.masks import Ticket, random_masks
from utils.recipe import Recipe

SETTING = (
    "--dataset CIFAR10 --batch_size 128 --epochs 150 --lr 0.1 --lr_policy cosine_lr --wd 0 --hc_quantized "
    "--regularization L2 --lmbda 1e-4 --prune_type BottomK --init signed_constant --target_sparsity 1.44 "
    "--override_prune_rate --prune_rate 0.2"
).split()
COMPARED_STEPS = 8
TOLERANCE = 1e-5

Call = Callable[[], Any]


# ---- the two sides -------------------------------------------------------------------------------------------------


class Sides:
    """The same search twice: ours, and written plainly.

    Args:
        config: resolved.
        data: whole sets in memory.
    """

    def __init__(self, config: Config, data: Splits) -> None:
        self.data = data
        net = build_model(config, data.spec).to(config.torch_device)
        self.dense, plain = deepcopy(net), deepcopy(net)
        to_masked(net)
        draw_scores(net, torch.Generator().manual_seed(0), config.score_init)
        scores = {name: layer.scores.detach().clone() for name, layer in masked_layers(net).items()}
        self.config = prepared(config, net, data)
        self.ours = GemMiner(net.train(), self.config)
        self.ours.full_batch = config.batch_size
        self.layers = plain_loop.plainly_masked(plain, scores)
        self.plain = plain.to(config.torch_device).train()
        learned = [layer.scores for layer in self.layers]
        self.optimizer = torch.optim.SGD(learned, config.lr, config.momentum, weight_decay=config.wd)

    def our_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """A step of the search; the loss of the task, left on the device."""
        return train_step(self.ours, 0, images, labels)[0] / len(labels)

    def plain_step(self, images: Tensor, labels: Tensor) -> float:
        """A step of the search; the loss of the task."""
        step = (self.plain, self.layers, self.optimizer, self.config.lmbda)
        return plain_loop.search_step(*step, (images, labels))

    def our_pruning(self) -> Tensor:
        """The flags after a pruning, which is then taken back."""
        self.ours._prune(last=False, generator=torch.Generator())
        flags = self.ours.flat.flags.clone()
        self.ours.flat.flags.fill_(True)
        return flags

    def plain_pruning(self) -> Tensor:
        """The flags after a pruning, which is then taken back."""
        plain_loop.prune(self.layers, self.config.prune_rate)
        flags = torch.cat([layer.flag.detach().flatten() for layer in self.layers]).bool()
        for layer in self.layers:
            layer.flag.data = torch.ones_like(layer.flag)
        return flags

    def our_epoch(self) -> None:
        """An epoch of the search with its evaluation."""
        for images, labels in self.data.train.epoch(torch.Generator().manual_seed(1)):
            self.our_step(images, labels)
        self.ours.after_steps()
        self.ours.measure(self.data, lambda stream: torch.Generator())

    def plain_epoch(self) -> None:
        """The same; with rounding in the forward pass, before and after it are the same network, evaluated twice."""
        for images, labels in plain_loop.batches(self.data.train.images, self.data.spec, self._batch, self._device):
            self.plain_step(images, labels)
        for _ in ("before rounding", "after rounding"):
            self.plain_evaluation()

    def plain_evaluation(self) -> float:
        """One pass over the test images, normalised beforehand."""
        images, labels = self.test_batch()
        return plain_loop.accuracy(self.plain, images, labels, self._batch)

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """All test images in one, normalised."""
        if not hasattr(self, "_test"):
            images, labels = zip(*self.data.test)
            self._test = torch.cat(images).contiguous(), torch.cat(labels)
        return self._test

    @property
    def _batch(self) -> int:
        return self.config.batch_size

    @property
    def _device(self) -> torch.device:
        return self.data.train.device


def parts(sides: Sides) -> dict[str, tuple[Call, Call, int]]:
    """Part -> ours, the plain one, and the images that one call of either goes through (0: none)."""
    data, batch_size = sides.data, sides.config.batch_size
    batch = next(data.train.epoch(torch.Generator().manual_seed(0)))
    plain_batch = (batch[0].contiguous(), batch[1])
    our_tuning, plain_tuning = _tuning_steps(sides, batch, plain_batch)
    ours, plain = _endless(lambda seed: data.train.epoch(torch.Generator().manual_seed(seed))), _endless(
        lambda _: plain_loop.batches(data.train.images, data.spec, batch_size, data.train.device)
    )  # fmt: skip
    folded = FoldedNetwork(deepcopy(sides.dense))
    sides.test_batch()
    return {
        "search step": (lambda: sides.our_step(*batch), lambda: sides.plain_step(*plain_batch), batch_size),
        "fine-tune step": (our_tuning, plain_tuning, batch_size),
        "data batch": (lambda: next(ours), lambda: next(plain), batch_size),
        "pruning": (sides.our_pruning, sides.plain_pruning, 0),
        "evaluation pass": (
            lambda: evaluate(folded.refreshed(), data.test), sides.plain_evaluation, len(data.test)
        ),
        "search epoch": (sides.our_epoch, sides.plain_epoch, len(data.train.images)),
    }  # fmt: skip


def _endless(epoch: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    seed = 0
    while True:
        yield from epoch(seed := seed + 1)


def _tuning_steps(sides: Sides, batch: Any, plain_batch: Any) -> tuple[Call, Call]:
    net, plain, recipe = deepcopy(sides.dense), deepcopy(sides.dense).train(), Recipe.of_tuning(sides.config)
    counts = {name: weight.numel() // 20 for name, weight in prunable_parameters(net).items()}
    masks = random_masks(prunable_parameters(net), counts, torch.Generator().manual_seed(0))
    prepared(sides.config, net, sides.data)
    training = WeightTraining(net.train(), Ticket(plain_state(net), masks), recipe)
    training.full_batch = sides.config.batch_size
    optimizer = torch.optim.SGD(plain.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.wd)
    factors = {name: mask.float() for name, mask in masks.items()}
    return (
        lambda: train_step(training, 0, *batch),
        lambda: plain_loop.tuning_step(plain, factors, optimizer, plain_batch),
    )


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare_figures(config: Config, data: Splits) -> dict[str, float]:
    """How far losses of the first steps, and then the masks of a pruning, are apart: relative, and in places."""
    sides, apart = Sides(config, data), 0.0
    batches = _endless(lambda seed: data.train.epoch(torch.Generator().manual_seed(seed)))
    for _ in range(COMPARED_STEPS):
        images, labels = next(batches)
        plain = sides.plain_step(images.contiguous(), labels)
        apart = max(apart, abs(float(sides.our_step(images, labels)) - plain) / abs(plain))
    differing = int((sides.our_pruning() != sides.plain_pruning()).sum())
    return {"steps": COMPARED_STEPS, "relative_difference_of_losses": apart, "differing_places_of_masks": differing}


def measure(sides: Sides, repeats: int) -> list[dict[str, Any]]:
    """Every part's times, ours and the plain one's in turns."""
    rows = []
    for name, (ours, plain, images) in parts(sides).items():
        taken: dict[str, list[float]] = {"ours": [], "plain": []}
        rounds = repeats if name not in ("search epoch", "evaluation pass") else max(3, repeats // 4)
        for turn in range(rounds + 1):
            for side, call in (("ours", ours), ("plain", plain)):
                seconds = _timed(call, sides.data.train.device)
                if turn:  # the first one warms up, and compiles
                    taken[side].append(seconds)
        ratios = [slow / fast for fast, slow in zip(taken["ours"], taken["plain"])]
        row: dict[str, Any] = {"part": name, "n": rounds, "images": images}
        for label, values in (("ours_ms", taken["ours"]), ("plain_ms", taken["plain"])):
            row |= {label: 1e3 * median(values), f"{label}_low": 1e3 * min(values), f"{label}_high": 1e3 * max(values)}
        row |= {"ratio": median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
        row["images_a_second"] = images / median(taken["ours"]) if images else None
        rows.append(row)
    return rows


def _timed(call: Call, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(device: torch.device) -> dict[str, float]:
    """What the device can do at best: products of matrices in GFLOP/s, copies in GB/s (read and written)."""
    size = 2048 if device.type == "cpu" else 8192
    one, copied = torch.randn(size, size, device=device), torch.empty(2**26, device=device)
    source = torch.ones_like(copied)
    product = min(_timed(lambda: one @ one, device) for _ in range(5))
    copy = min(_timed(lambda: copied.copy_(source), device) for _ in range(5))
    return {"matmul_gflops": 2 * size**3 / product / 1e9, "copy_gb_s": 2 * 4 * 2**26 / copy / 1e9}


# ---- for the eyes --------------------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]], extra: dict[str, Any]) -> str:
    """A Markdown table of the parts, and what else was measured."""
    lines = [
        "| part | ours, ms (low–high) | plain, ms (low–high) | ratio (low–high) | images/s | n |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["part"],
            *(f"{row[one]:.1f} ({row[f'{one}_low']:.1f}–{row[f'{one}_high']:.1f})" for one in ("ours_ms", "plain_ms")),
            f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})",
            f"{row['images_a_second']:,.0f}" if row["images_a_second"] else "–",
            str(row["n"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}" for name, value in extra.items()
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--repeats", type=int, default=20)
    own.add_argument("--images", type=int, default=0)
    own.add_argument("--json", type=Path)
    mine, rest = own.parse_known_args(argv)
    try:
        config = resolved(parse_args([*SETTING, *rest]))
        data = _shortened(load_data(config), mine.images, config.batch_size)
        device = data.train.device
        reset_peak_memory(device)
        figures = compare_figures(config, data)
        sides = Sides(config, data)
        rows = measure(sides, mine.repeats)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    flops = BACKWARD_AND_FORWARD * forward_flops(sides.dense, data.spec.shape)[""] * config.batch_size
    best = peaks(device)
    reached = flops / (rows[0]["ours_ms"] / 1e3) / 1e9
    images = next(data.train.epoch(torch.Generator()))[0]
    kept = activation_bytes(sides.ours.network, images) / activation_bytes(deepcopy(sides.dense), images)
    extra = {
        **figures,
        **best,
        "search_step_gflops": reached,
        "share_of_matmul_peak": reached / best["matmul_gflops"],
        "activation_memory_to_dense": kept,
        "peak_memory_mb": peak_memory(device) / 2**20,
        "compile": sides.config.compile,
        "precision": config.precision,
    }
    print(report(rows, extra))
    if mine.json:
        write_json(mine.json, {**describe_environment(config.torch_device), **extra, "parts": rows})
    agree = figures["relative_difference_of_losses"] <= TOLERANCE and not figures["differing_places_of_masks"]
    if config.precision == "fp32" and not agree:
        print("error: the two sides do not compute the same", file=sys.stderr)
        return 1
    return 0


def _shortened(data: Splits, images: int, batch_size: int) -> Splits:
    """The first so many images of train and test (0: all), without validation."""
    count = images or len(data.train.images)
    train = data.train.images.subset(torch.arange(min(count, len(data.train.images)), device=data.train.device))
    test = data.test.images.subset(torch.arange(min(count, len(data.test)), device=data.train.device))
    return Splits(data.spec, TrainBatches(train, data.spec, batch_size), None, PlainBatches(test, data.spec))


if __name__ == "__main__":
    sys.exit(main())
