"""Time the parts of a search against a plain loop that computes the same: `python -m trainers.benchmark`.

    python -m trainers.benchmark [--arch resnet20 --dataset CIFAR10 --batch_size 128 --device cpu ...]

Takes every option of `main.py`, and `--repeats N`, `--images N` (per epoch and per evaluation), `--only PART` and
`--json FILE`. Without `--precision`, one run measures every precision that may be faster on the device.
All sides take turns on the same weights and on batches of the same size, so that other load on the machine hits all of
them. Times are medians with lowest and highest; the ratios are more reliable.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from args_helper import Config, parse_args
from data.batches import PlainBatches, TrainBatches
from data.load import Splits, load_data
from trainers.benchmark.sides import PARTS, OurSide, PlainSide, Start, images_of
from trainers.benchmark.timings import at_least, ratios, spread, written
from trainers.results.run_folder import resolved
from trainers.training.cost import BACKWARD_AND_FORWARD, activation_bytes, forward_flops
from utils.environment import describe_environment, device_of_doubles
from utils.errors import UserError, did_you_mean
from utils.files import write_json
from utils.markdown import markdown_table
from utils.memory import peak_memory, reset_peak_memory
from utils.run.run import Row

SETTING = (
    "--dataset CIFAR10 --batch_size 128 --epochs 150 --lr 0.1 --lr_policy cosine_lr --wd 0 --hc_quantized "
    "--regularization L2 --lmbda 1e-4 --prune_type BottomK --init signed_constant --target_sparsity 1.44"
).split()
OF_THE_PLAIN_LOOP = (
    "algo", "regularization", "hc_quantized", "prune_type", "bias", "fine_tune_optimizer", "round", "noise",
)  # fmt: skip
"""Options that the plain loop has one value of: that of SETTING."""
LONG = ("evaluation pass", "evaluation of an epoch", "search epoch", "fine-tune epoch")
"""Parts that are timed a quarter as often."""
WARM_UP_ON_GPU = 3
"""Turns before the timed ones: the first compiles, and the next two record the CUDA graph. On a CPU one is enough."""
TIME, RATIO = ("ms", "low", "high"), ("ratio", "ratio_low", "ratio_high")
COMPARED_STEPS = 8
TOLERANCE = 1e-5


# ---- the comparison ------------------------------------------------------------------------------------------------


def compare_sides(config: Config, data: Splits) -> dict[str, float]:
    """Compare the losses of the first steps (largest relative difference) and then the masks of a pruning (entries).

    In double precision: in single precision a score within rounding error of 0.5 may fall to either side, and the
    losses differ from that step on. On MPS, which has no double precision, both sides are computed on the CPU.

    Args:
        config: resolved.
        data: whole data sets in memory.

    Returns:
        `steps`, `relative_difference_of_losses` (at most `TOLERANCE` is accepted) and `differing_entries_of_masks`
        (0 is accepted).
    """
    if (device := device_of_doubles(config.device)) != config.device:
        config = config.model_copy(update={"device": device})
        data = load_data(config)
    start, single = Start(config, data, torch.float64), config.model_copy(update={"precision": "fp32"})
    ours, plain, apart = OurSide(start, single, data), PlainSide(start, single, data), []
    for _ in range(COMPARED_STEPS):
        images, labels = ours.data_batch()
        images = images.double()
        loss = plain.search_step((images.contiguous(), labels))
        apart.append(abs(float(ours.search_step((images, labels))) - loss) / abs(loss))
    differing = int((ours.pruning() != plain.pruning()).sum())
    largest = float(torch.tensor(apart).max())  # NaN if one of them is, unlike Python's max
    return {"steps": COMPARED_STEPS, "relative_difference_of_losses": largest, "differing_entries_of_masks": differing}


def measure(sides: dict[str, OurSide | PlainSide], repeats: int, only: str | None = None) -> list[dict[str, Any]]:
    """Time every part, or one part only; all sides take turns.

    Args:
        sides: by name; the others are compared to `plain`.
        repeats: how often a part is timed; the LONG ones a quarter as often.
        only: name of a part.

    Returns:
        One row per part: `part`, `n`, `images`, and under each side's name a dictionary of `ms`, `low`, `high` and,
        except for `plain`, the `ratio` to it, `ratio_low`, `ratio_high`.
    """
    data, rows = sides["plain"].data, []
    for part in [only] if only else PARTS:
        taken: dict[str, list[float]] = {name: [] for name in sides}
        rounds = max(3, repeats // 4) if part in LONG else repeats
        warm_up = WARM_UP_ON_GPU if data.train.device.type == "cuda" else 1
        for turn in range(warm_up + rounds):
            for name, side in sides.items():
                side.prepare_process()
                seconds = _timed(getattr(side, PARTS[part]), data.train.device)
                if turn >= warm_up:
                    taken[name].append(seconds)
        row: dict[str, Any] = {"part": part, "n": rounds, "images": images_of(part, data)}
        for name, values in taken.items():
            row[name] = dict(zip(TIME, spread([1e3 * seconds for seconds in values])))
            if name != "plain":
                row[name] |= zip(RATIO, ratios(taken["plain"], values))
        rows.append(row)
    return rows


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peaks(device: torch.device) -> dict[str, float]:
    """Measure the device's peak: matrix products in GFLOP/s, copies in GB/s (read and written)."""
    size = 2048 if device.type == "cpu" else 8192
    one, copied = torch.randn(size, size, device=device), torch.empty(2**26, device=device)
    source = torch.ones_like(copied)
    product = min(_timed(lambda: one @ one, device) for _ in range(5))
    copy = min(_timed(lambda: copied.copy_(source), device) for _ in range(5))
    return {"matmul_gflops": 2 * size**3 / product / 1e9, "copy_gb_s": 2 * 4 * 2**26 / copy / 1e9}


def against_the_device(start: Start, sides: dict[str, OurSide | PlainSide], rows: list[dict[str, Any]]) -> Row:
    """Measure the device's peak, the GFLOP/s of a search step in each precision, and memory.

    Args:
        start: of the sides.
        sides: by name, as in `measure`.
        rows: as returned by `measure`; without a row "search step" there is no GFLOP/s of it.

    Returns:
        Name -> value, in the unit that the name ends in; `activation_memory_to_dense` is a ratio, and
        `peak_memory_mb` (MiB) covers the whole benchmark.
    """
    data, ours = sides["plain"].data, {name: side for name, side in sides.items() if name != "plain"}
    flops = BACKWARD_AND_FORWARD * forward_flops(start.dense, data.spec.shape)[""] * data.train.size(0)
    steps = [row for row in rows if row["part"] == "search step"]
    reached = {f"search_step_gflops_{name}": flops / row[name]["ms"] / 1e6 for row in steps for name in ours}
    images, trained = next(data.train.epoch(torch.Generator()))[0], next(iter(ours.values())).search.network
    kept = activation_bytes(trained, images) / activation_bytes(deepcopy(start.dense), images)
    return {
        **peaks(data.train.device), "step_gflop": flops / 1e9, **reached, "activation_memory_to_dense": kept,
        "peak_memory_mb": peak_memory(data.train.device) / 2**20,
    }  # fmt: skip


# ---- display -------------------------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]], precisions: Sequence[str], extra: Row) -> str:
    """Return a Markdown table of the parts, two columns a precision, and the other measurements line by line."""
    titles = ["part", "plain, ms", *(title for name in precisions for title in (f"{name}, ms", "ratio")), "n"]
    table = []
    for row in rows:
        cells = [row["part"], _cell(row["plain"], TIME, 1)]
        for name in precisions:
            cells += [_cell(row[name], TIME, 1), _cell(row[name], RATIO, 2)]
        table.append([*cells, str(row["n"])])
    others = [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}" for name, value in extra.items()
    ]
    return "\n".join([markdown_table(titles, table), *others])


def _cell(measured: dict[str, float], names: Sequence[str], digits: int) -> str:
    return written([measured[name] for name in names], digits)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--repeats", type=partial(at_least, 1), default=20)
    own.add_argument("--images", type=partial(at_least, 0), default=0)
    own.add_argument("--only")
    own.add_argument("--json", type=Path)
    mine, rest = own.parse_known_args(argv)
    try:
        if mine.only and mine.only not in PARTS:
            meant = did_you_mean(mine.only, PARTS)
            raise UserError(f"--only: there is no part '{mine.only}': {', '.join(PARTS)}{meant}")
        has_file = any(word.partition("=")[0] == "--config" for word in rest)  # the flags of SETTING would override it
        config = resolved(parse_args([*([] if has_file else SETTING), *rest]))
        _refuse_what_the_plain_loop_lacks(config)
        data = _shortened(load_data(config), mine.images, config)
        reset_peak_memory(data.train.device)
        agreement = compare_sides(config, data)
        precisions, start = _precisions(config), Start(config, data)
        ours = {name: OurSide(start, config.model_copy(update={"precision": name}), data) for name in precisions}
        sides = {"plain": PlainSide(start, config, data), **ours}
        rows = measure(sides, mine.repeats, mine.only)
        compiled = ours[precisions[0]].config.compile
        extra = {**agreement, **against_the_device(start, sides, rows), "compile": compiled}
        print(report(rows, precisions, extra))
        if mine.json:
            write_json(mine.json, {**describe_environment(config.torch_device), **extra, "parts": rows})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not agreement["relative_difference_of_losses"] <= TOLERANCE or agreement["differing_entries_of_masks"]:
        print("error: the two sides do not compute the same", file=sys.stderr)
        return 1
    return 0


def _refuse_what_the_plain_loop_lacks(config: Config) -> None:
    """Raises: UserError: an option asks for a search that the plain loop does not have."""
    plain = parse_args(SETTING)
    for name in OF_THE_PLAIN_LOOP:
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"--{name}: the plain loop has only {getattr(plain, name)}; leave the option out")
    if config.lmbda == "auto":
        raise UserError("--lmbda: the plain loop has a fixed λ; give a number")


def _precisions(config: Config) -> list[str]:
    """Return the precision that was asked for, or all that may be faster on the device."""
    if "precision" in config.model_fields_set:
        return [config.precision]
    return ["fp32", "tf32", "bf16"] if config.torch_device.startswith("cuda") else ["fp32", "bf16"]


def _shortened(data: Splits, images: int, config: Config) -> Splits:
    """Keep the first `images` images of train and test (0: all), without validation.

    Raises:
        UserError: the set is streamed.
    """
    if not isinstance(data.test, PlainBatches):
        raise UserError(f"--dataset {config.dataset}: the plain loop needs a set that is held in memory")
    count = images or len(data.train.images)
    train = data.train.images.subset(torch.arange(min(count, len(data.train.images)), device=data.train.device))
    test = data.test.images.subset(torch.arange(min(count, len(data.test)), device=data.train.device))
    return Splits(data.spec, TrainBatches(train, data.spec, config.batch_size), None, PlainBatches(test, data.spec))


if __name__ == "__main__":
    sys.exit(main())
