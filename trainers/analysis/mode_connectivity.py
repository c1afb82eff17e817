"""Linear mode connectivity: measure loss and accuracy along the path between two networks, without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from data.normalise import Batch
from models.layers import Soft
from models.state_files import State
from trainers.analysis.evaluate import nonzero_percent
from trainers.analysis.network_file import NetworkFile, opened_network, read_network
from trainers.results.curves import TEST, TRAIN, write_png
from trainers.results.run_folder import free_file
from trainers.training.batchnorm import renew_statistics
from trainers.training.rounding import naive_mask, rounded_masks
from utils.errors import UserError
from utils.files import write_csv
from utils.masks import masked_state
from utils.rng import derive_rng
from utils.run.run import Row

POINTS = 11
"""Points on the path, both ends included."""

StatePath = Callable[[float], State]
"""t in [0, 1] -> the state of the plain network at t."""


def connect_modes(config: Config) -> None:
    """Measure the straight path from the network in `pretrained` to that in `pretrained2`, and its barriers.

    Write `mode_connect.csv`, one row per point, and `mode_connect.png` beside the config's trials.

    Raises:
        UserError: a file cannot be used or does not fit the network, or only one of them holds scores.

    Source: Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020 (arXiv 1912.05671).
    """
    config, data, net = opened_network(config)
    first, second = (read_network(net, path) for path in (config.pretrained, config.pretrained2))
    if (first.flat is None) != (second.flat is None):
        with_scores, without = (config.pretrained, config.pretrained2)[:: -1 if first.flat is None else 1]
        raise UserError(
            f"mode_connect: there are scores in {with_scores} and none in {without}; both have them or none"
        )
    path = straight_path(first.state, second.state) if first.flat is None else masked_path(first, second, config)
    # A file's BatchNorm statistics belong to the network with rounded scores. They do not fit a random mask or soft
    # scores: on Digits, the error at such an end was 53% and hid the whole barrier.
    are_others = first.flat is not None and config.how_to_connect != "round"
    rows = measured_path(net, path, data, config.effective_seed, renew_ends=are_others)
    table = free_file(config, "mode_connect.csv", ".png")
    write_csv(table, rows)
    draw_path(table.with_suffix(".png"), rows, f"{config.arch} on {config.dataset}: {_kind(first, config)}")
    print(_screen(config, rows, _kind(first, config)))
    print(f"  table and plot         {table}, {table.with_suffix('.png').name}")


# ---- paths ---------------------------------------------------------------------------------------------------------


def straight_path(first: State, second: State) -> StatePath:
    """Return the path (1 − t) a + t b of weights and statistics; integers, such as batch counts, are the first's.

    Args:
        first, second: states a and b, of one architecture and on one device.
    """
    # lerp is exact at both ends and wherever a = b: frozen weights with the same initial values do not change.
    return lambda t: {
        name: value.lerp(second[name], t) if value.is_floating_point() else value for name, value in first.items()
    }


def masked_path(first: NetworkFile, second: NetworkFile, config: Config) -> StatePath:
    """Return the path of the weights, multiplied at each t by the path of the masks.

    Args:
        first, second: networks with scores, of one architecture.
        config: `how_to_connect` makes the masks at the ends, `interpolate` those between them.
    """
    generators = [derive_rng(config.effective_seed, "mode_connect", stream) for stream in ("first", "second", "path")]
    ends = [end_factors(file, config, generator) for file, generator in zip((first, second), generators)]
    factors = factor_path(*ends, config.interpolate, generators[2])
    weights = straight_path(first.state, second.state)
    return lambda t: masked_state(weights(t), first.flat.split(factors(t)))


def end_factors(file: NetworkFile, config: Config, generator: torch.Generator) -> Tensor:
    """Return the factors of the weights at one end, (N + N_bias,) float, by the option `how_to_connect`.

    Args:
        file: a network with scores s and flags f.
        config: `how_to_connect`: `linear` takes s · f, `round` 1[s > t] · f, `prob` one draw of Bernoulli(s) · f.
        generator: on the CPU; for `prob`.
    """
    scores = file.flat.scores.detach()
    if config.how_to_connect == "linear":
        return Soft()(scores, file.flat.flags)
    rule = file.rule(config)
    if config.how_to_connect == "round":
        return naive_mask(file.flat, rule, scores).to(scores.dtype)
    once = config.model_copy(update={"round": "prob", "noise": False, "num_test": 1})
    return next(rounded_masks(file.masked, file.flat, rule, once, generator)).to(scores.dtype)


def factor_path(
    first: Tensor, second: Tensor, interpolate: str, generator: torch.Generator
) -> Callable[[float], Tensor]:
    """Return a function from t to the factors between two ends, (N,) each.

    Args:
        first, second: the ends.
        interpolate: `linear`: (1 − t) a + t b; `prob`: each entry from b with probability t, else from a. An entry
            changes once along the path, at a random t, so that neighbouring points are neighbouring networks.
        generator: on the CPU; for `prob`.
    """
    if interpolate == "linear":
        return lambda t: first.lerp(second, t)
    turn = torch.rand(first.shape, generator=generator).to(first.device)
    return lambda t: torch.where(turn < t, second, first)


# ---- measuring a path ----------------------------------------------------------------------------------------------


def measured_path(net: nn.Module, path: StatePath, data: Splits, seed: int, renew_ends: bool = False) -> list[Row]:
    """Measure loss and accuracy (percent) on train, not augmented, and test, at evenly spaced t from 0 to 1.

    Args:
        net: plain, of the path's architecture.
        path: t -> state.
        data: to measure on.
        seed: of the order of the images from which BatchNorm statistics are estimated.
        renew_ends: estimate BatchNorm statistics anew at the ends too.

    Returns:
        A row per point: `t`, `weights_remaining_percent`, and `loss` (mean cross-entropy) and `acc` of both splits.
    """
    # Shuffled: a set that is sorted by class would give batches with the statistics of one class each.
    shuffled = partial(derive_rng, seed, "mode_connect", "batches")
    rows = []
    for point in range(POINTS):
        t = point / (POINTS - 1)
        net.load_state_dict(path(t))
        # Interpolated BatchNorm statistics fit no network: activations midway vary less than at the ends, and would be
        # scaled as if they did not. So the statistics of each network on the path are estimated anew, on augmented
        # images, as if it had been trained. Source: Jordan et al., REPAIR, 2023 (arXiv 2211.08403).
        if renew_ends or 0 < t < 1:
            renew_statistics(net, data.train.epoch(shuffled()))
        row = {"t": t, "weights_remaining_percent": nonzero_percent(net, net.state_dict())}
        for split, batches in (("train", data.train.unaugmented().epoch(shuffled())), ("test", data.test)):
            row[f"{split}_loss"], row[f"{split}_acc"] = loss_and_accuracy(net, batches)
        rows.append(row)
    return rows


@torch.inference_mode()
def loss_and_accuracy(net: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return mean cross-entropy (without label smoothing) and top-1 accuracy in percent, in evaluation mode.

    Args:
        net: plain; left in evaluation mode.
        batches: normalised images (B, C, H, W) and labels (B,), on the network's device; at least one.
    """
    net.eval()
    losses, correct, count = [], [], 0
    for images, labels in batches:
        logits = net(images)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
        count += len(labels)
    return sum(torch.stack(losses).tolist()) / count, 100.0 * int(sum(correct)) / count


def barrier(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return how far a path rises above the straight line between its ends, and where.

    Frankle et al. (§3) take the rise above the mean of the ends, which is the same if both ends are equally good.

    Args:
        places: t, from 0 to 1.
        values: losses or errors at these t.

    Returns:
        The greatest rise, at least 0, and its t.
    """
    rises = [value - ((1 - t) * values[0] + t * values[-1]) for t, value in zip(places, values)]
    return max(zip(rises, places), key=lambda rise: rise[0])


# ---- display -------------------------------------------------------------------------------------------------------


def _kind(file: NetworkFile, config: Config) -> str:
    if file.flat is None:
        return "weights"
    ends = {"prob": "masks drawn from the scores", "linear": "the scores", "round": "rounded masks"}
    return f"{ends[config.how_to_connect]}, interpolate {config.interpolate}"


def _screen(config: Config, rows: Sequence[Row], kind: str) -> str:
    places = [row["t"] for row in rows]
    lines = [
        f"{config.arch} on {config.dataset}, the path of {kind}",
        f"  t = 0                  {config.pretrained}",
        f"  t = 1                  {config.pretrained2}",
        f"  {'':<21}{'t = 0':>9}{'t = 1':>9}{'worst':>9}{'at t':>6}{'barrier':>10}{'at t':>6}",
    ]
    for split in ("train", "test"):
        losses, errors = [row[f"{split}_loss"] for row in rows], [100.0 - row[f"{split}_acc"] for row in rows]
        for label, values, digits in ((f"{split} loss", losses, 4), (f"{split} error, %", errors, 2)):
            worst, at = max(zip(values, places), key=lambda one: one[0])
            height, where = barrier(places, values)
            ends = "".join(f"{value:9.{digits}f}" for value in (values[0], values[-1], worst))
            lines.append(f"  {label:<21}{ends}{at:6.1f}{height:10.{digits}f}{where:6.1f}")
    return "\n".join(lines)


def draw_path(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss (top) and accuracy (bottom) along the path from one network (t = 0) to another (t = 1).

    Args:
        path: the PNG to write.
        rows: points in order of t, with t, train_loss, test_loss, train_acc and test_acc.
        title: of the plot.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for axes, kind in ((above, "loss"), (below, "acc")):
        for split, color, thickness in (("test", TEST, 1.5), ("train", TRAIN, 1)):
            places, values = zip(*((row["t"], row[f"{split}_{kind}"]) for row in rows))
            axes.plot(places, values, ".-", color=color, label=split, linewidth=thickness, markersize=5)
    above.set(ylabel="loss", title=title)
    above.set_ylim(bottom=0)
    below.set(ylabel="accuracy (%)", ylim=(0, 101), xlabel="t: from the first network to the second")
    above.legend(loc="best", frameon=False)
    write_png(path, figure)
