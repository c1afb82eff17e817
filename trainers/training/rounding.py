"""Rounds scores to masks for evaluation, by the options `round`, `noise` and `num_test`.

Flat masks are (N + N_bias,) bool, in the order of `FlatScores`. With scores s, flags f, and s′ = s, or with `noise`
s′ = s + noise_ratio · N(0, 1), the options make the masks

    naive       f · (the rule's mask of s′), which for Gem-Miner is 1[s′ > t]
    prob        f · Bernoulli(s′)
    naive_prob  prob in the first linear layer, naive in all others
    all_ones    f
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from args_helper import Config
from models.layers import MaskedFullyConnected, Rule, SubnetLinear
from models.masking import FlatScores, masked_layers


def is_noisy(config: Config) -> bool:
    """Whether noise is added to scores before they are rounded."""
    return config.noise and config.noise_ratio > 0


def is_random(config: Config) -> bool:
    """Whether masks are drawn, so that `num_test` of them are evaluated, and not a single one."""
    return is_noisy(config) or config.round in ("prob", "naive_prob")


def naive_mask(flat: FlatScores, rule: Rule, scores: Tensor) -> Tensor:
    """The flat mask that the rule makes of these scores and the flags, (N + N_bias,) bool.

    Args:
        flat: its flags are used, not its scores.
        rule: called once per weight and masked bias, with tensors of their shapes.
        scores: (N + N_bias,), perhaps with noise.
    """
    flags = flat.split(flat.flags)
    return torch.cat([rule.mask(part, flags[name]).flatten() for name, part in flat.split(scores).items()])


def rounded_masks(
    network: nn.Module, flat: FlatScores, rule: Rule, config: Config, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield `num_test` masks by the option `round`, or a single one if nothing is random.

    Args:
        network: masked.
        flat: its flags and its scores, in [0, 1] if masks are drawn from them.
        rule: for naive rounding.
        config: `round`, `noise`, `noise_ratio` and `num_test`.
        generator: on the CPU, so that the draws are the same on every device.

    Returns:
        The masks, (N + N_bias,) bool, one at a time.
    """
    scores, noisy, random = flat.scores.detach(), is_noisy(config), is_random(config)
    for _ in range(config.num_test if random else 1):
        noise = torch.randn(scores.shape, generator=generator).to(scores.device) if noisy else 0.0
        perturbed = scores + config.noise_ratio * noise
        chance = torch.rand(scores.shape, generator=generator).to(scores.device) if random else None
        if config.round == "all_ones":
            mask = torch.ones_like(flat.flags)
        elif config.round == "prob":
            mask = chance < perturbed
        else:
            mask = naive_mask(flat, rule, perturbed)
        if config.round == "naive_prob":
            _draw_first_linear(network, flat, mask, chance < perturbed)
        yield mask & flat.flags


def _draw_first_linear(network: nn.Module, flat: FlatScores, mask: Tensor, drawn: Tensor) -> None:
    """Copy the entries of the first linear layer from `drawn` to `mask`."""
    layers = masked_layers(network).items()
    first = next((name for name, layer in layers if isinstance(layer, (MaskedFullyConnected, SubnetLinear))), None)
    parts = flat.split(drawn)
    for name, part in flat.split(mask).items():
        if name.rpartition(".")[0] == first:
            part.copy_(parts[name])
