"""Random masks: uniform (`random`), Erdős–Rényi-kernel (`random_erk`) and Bernoulli (`random_subnet`).

Uniform and ERK masks have exact counts: a share is computed for each layer, `allocate` makes whole numbers of the
shares, and so many entries of the layer are drawn. Biases, where they are pruned, are counted apart from the weights.

Source: ERK: Evci et al., "Rigging the Lottery", ICML 2020 (arXiv 1911.11134), §3; Mocanu et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.checks.controls import CHECKS
from trainers.tickets.ticket import Ticket
from utils.masks import kept_count, random_masks, weights_then_biases
from utils.run.run import Run


def find_uniform_ticket(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Keep ⌊dN⌋ weights, drawn uniformly, with the same density in every layer.

    The densities differ by less than one weight a layer, so that the counts are whole numbers and add up to ⌊dN⌋.
    """
    return _drawn(net, config, run, lambda shape: 1.0)


def find_erk_ticket(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Keep ⌊dN⌋ random weights, layer densities proportional to the sum over the product of the layer's dimensions.

    For a convolution of shape (out, in, h, w): (out + in + h + w) / (out · in · h · w). So small layers stay denser.
    """
    return _drawn(net, config, run, lambda shape: sum(shape) / math.prod(shape))


def find_random_subnet(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Keep each weight with probability `prune_rate`, then apply the sanity checks that the options ask for.

    `shuffle` permutes and `reinit` redraws: the masks with `chg_mask`, the weights with `chg_weight`. With neither of
    the two, `shuffle` permutes the masks and `reinit` redraws the weights.

    Args:
        net: plain, with its weights drawn; unchanged.
        config: `prune_rate`, the probability, in (0, 1]; `shuffle`, `reinit`, `chg_mask` and `chg_weight`.
        run: its random streams draw the masks, and what the checks permute or redraw.

    Returns:
        The ticket, with the names of the checks applied among its facts. Its count is random, about `prune_rate` · N.
    """
    coins = run.rng("search", "masks")
    masks = {
        name: (torch.rand(parameter.shape, generator=coins) < config.prune_rate).to(parameter.device)
        for name, parameter in prunable_parameters(net).items()
    }
    ticket = Ticket(plain_state(net), masks)
    applied = []
    if config.shuffle or config.reinit:
        if config.chg_mask or (config.shuffle and not config.chg_weight):
            applied.append("mask_shuffle")  # redrawing a mask with its count: the same distribution
        if config.chg_weight or (config.reinit and not config.chg_mask):
            applied.append("weight_shuffle" if config.shuffle else "weight_reinit")
    for name in applied:
        ticket = CHECKS[name](ticket, config, run.rng("search", name))
    reason = "each weight is kept by a chance of its own, prune_rate"
    return replace(ticket, facts={"checks_applied": applied, "density_reason": reason})


def _drawn(net: nn.Module, config: Config, run: Run, raw_density: Callable[[torch.Size], float]) -> Ticket:
    """Draw masks with ⌊dN⌋ weights, at least one, divided among layers by their densities; the same apart for biases.

    `raw_density` maps the shape of a layer's weight or bias to its density, up to a common factor.
    """
    parameters, counts = prunable_parameters(net), {}
    for names in weights_then_biases(parameters):
        sizes = [parameters[name].numel() for name in names]
        raw = [raw_density(parameters[name].shape) for name in names]
        counts |= zip(names, allocate(raw, sizes, kept_count(config.density, sum(sizes))))
    return Ticket(plain_state(net), random_masks(parameters, counts, run.rng("search", "masks")))


def allocate(raw: Sequence[float], sizes: Sequence[int], wanted: int) -> list[int]:
    """Divide `wanted` kept entries among layers in proportion to raw · size; no layer gets more than its size.

    What a full layer cannot take goes to the others. Remainders go to the largest fractions first, so that the total is
    exact.

    Args:
        raw: density of each layer up to a common factor, above 0.
        sizes: entries of each layer, in the same order.
        wanted: entries to keep in all, from 1 to the sum of the sizes.

    Returns:
        The entries to keep in each layer; they add up to `wanted`.
    """
    full: set[int] = set()
    while True:
        rest = wanted - sum(sizes[i] for i in full)
        open_layers = [i for i in range(len(sizes)) if i not in full]
        scale = rest / sum(raw[i] * sizes[i] for i in open_layers) if open_layers else 0.0
        overfull = {i for i in open_layers if scale * raw[i] >= 1.0}
        if not overfull:
            break
        full |= overfull
    exact = [float(size) if i in full else scale * raw[i] * size for i, size in enumerate(sizes)]
    counts = [math.floor(share + 1e-9) for share in exact]  # a share of 2.9999999999 is a 3 that was rounded
    by_fraction = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    for i in by_fraction[: wanted - sum(counts)]:
        counts[i] += 1
    return counts
