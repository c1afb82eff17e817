"""How fast the parts of a search are, beside a plain loop that computes the same: `python -m trainers.benchmark`.

    python -m trainers.benchmark [--arch resnet20 --dataset CIFAR10 --batch_size 128 --device cpu ...]

Takes every option of `main.py`, and `--repeats N`, `--images N` (of an epoch and of an evaluation), `--only PART` and
`--json FILE`.
Both sides take turns on the same weights and the same batches, so that whatever else the machine does falls on both.
Figures are medians with their spread; what to trust is the ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch

from args_helper import Config, parse_args
from data import load_data
from data.loader import PlainBatches, Splits, TrainBatches
from trainers.benchmark_sides import Call, Sides, endless, parts
from trainers.folders import resolved
from trainers.ledger import BACKWARD_AND_FORWARD, activation_bytes, forward_flops
from utils.environment import describe_environment, device_of_doubles, peak_memory, reset_peak_memory
from utils.errors import UserError, meant
from utils.files import write_json

SETTING = (
    "--dataset CIFAR10 --batch_size 128 --epochs 150 --lr 0.1 --lr_policy cosine_lr --wd 0 --hc_quantized "
    "--regularization L2 --lmbda 1e-4 --prune_type BottomK --init signed_constant --target_sparsity 1.44 "
    "--override_prune_rate --prune_rate 0.2"
).split()
LONG = ("evaluation pass", "evaluation of an epoch", "search epoch")
"""Parts that are measured a quarter as often."""
COMPARED_STEPS = 8
TOLERANCE = 1e-5


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare_figures(config: Config, data: Splits) -> dict[str, float]:
    """How far losses of the first steps, and then the masks of a pruning, are apart: relative, and in places.

    In double precision: in single, a score that comes to lie within rounding of 0.5 may fall to either side, and the
    losses part from that step on. On MPS, which has no double precision, both are computed on the CPU.
    """
    if (device := device_of_doubles(config.device)) != config.device:
        config = config.model_copy(update={"device": device})
        data = load_data(config)
    sides, apart = Sides(config, data, torch.float64), 0.0
    batches = endless(lambda seed: data.train.epoch(torch.Generator().manual_seed(seed)))
    for _ in range(COMPARED_STEPS):
        images, labels = next(batches)
        images = images.double()
        plain = sides.plain_step(images.contiguous(), labels)
        apart = max(apart, abs(float(sides.our_step(images, labels)) - plain) / abs(plain))
    differing = int((sides.our_pruning() != sides.plain_pruning()).sum())
    return {"steps": COMPARED_STEPS, "relative_difference_of_losses": apart, "differing_places_of_masks": differing}


def measure(sides: Sides, repeats: int, only: str | None = None) -> list[dict[str, Any]]:
    """Every part's times, or those of one part only: ours and the plain one's in turns.

    Raises:
        UserError: there is no such part.
    """
    rows, chosen = [], parts(sides)
    if only is not None:
        if only not in chosen:
            raise UserError(f"--only: there is no part '{only}': {', '.join(chosen)}{meant(only, chosen)}")
        chosen = {only: chosen[only]}
    for name, (ours, plain, images) in chosen.items():
        taken: dict[str, list[float]] = {"ours": [], "plain": []}
        rounds = max(3, repeats // 4) if name in LONG else repeats
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


def against_the_device(sides: Sides, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the device can do, what of it a search step reaches, if it was measured, and memory."""
    data, device, best = sides.data, sides.data.train.device, peaks(sides.data.train.device)
    flops = BACKWARD_AND_FORWARD * forward_flops(sides.dense, data.spec.shape)[""] * sides.config.batch_size
    steps = [row["ours_ms"] / 1e3 for row in rows if row["part"] == "search step"]
    speed = flops / steps[0] / 1e9 if steps else 0.0
    reached = {"search_step_gflops": speed, "share_of_matmul_peak": speed / best["matmul_gflops"]} if steps else {}
    images = next(data.train.epoch(torch.Generator()))[0]
    kept = activation_bytes(sides.ours.network, images) / activation_bytes(deepcopy(sides.dense), images)
    return {
        **best, "step_gflop": flops / 1e9, **reached, "activation_memory_to_dense": kept,
        "peak_memory_mb": peak_memory(device) / 2**20,
    }  # fmt: skip


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
    own.add_argument("--only")
    own.add_argument("--json", type=Path)
    mine, rest = own.parse_known_args(argv)
    try:
        config = resolved(parse_args([*SETTING, *rest]))
        data = _shortened(load_data(config), mine.images, config.batch_size)
        reset_peak_memory(data.train.device)
        figures = compare_figures(config, data)
        sides = Sides(config, data)
        rows = measure(sides, mine.repeats, mine.only)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    extra = {
        **figures,
        **against_the_device(sides, rows),
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
