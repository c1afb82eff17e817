"""Masks and what is done to them: pure functions on tensors, and the Ticket that stages hand on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""Parameter name -> boolean tensor of the parameter's shape; True where it is kept."""


@dataclass(frozen=True)
class Ticket:
    """A subnetwork as a search hands it on.

    Attributes:
        state: the plain network's whole state_dict at hand-over; pruned places are not zeroed, BatchNorm included.
        masks: the weights to train.
        gem: the subset of `masks` that was switched on when the search ended (before unflagging), or None for a
            method that knows no such difference.
        facts: what the search has to say for the summary, by name (JSON values).
    """

    state: dict[str, Tensor]
    masks: Masks
    gem: Masks | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def untrained(self) -> Masks:
        """The masks under which the ticket is judged before any weight of it was trained."""
        return self.masks if self.gem is None else self.gem


def ceil_count(fraction: float, n: int) -> int:
    """⌈fraction · n⌉, unmoved by the last bits of a floating-point product (0.1 · 30 is 3)."""
    return math.ceil(fraction * n - 1e-12 * n)


def floor_count(fraction: float, n: int) -> int:
    """⌊fraction · n⌋, unmoved by the last bits of a floating-point product (0.29 · 100 is 29)."""
    return math.floor(fraction * n + 1e-12 * n)


def prune_lowest(rank: Tensor, in_play: Tensor, fraction: float) -> Tensor:
    """Remove every place in play whose rank is at most the ⌈fraction · n⌉-th lowest of the n in play.

    Ties at that rank all go, so that more than the fraction may. Source: Rare Gems, Algorithm 1.

    Args:
        rank: (N,) what places are ordered by.
        in_play: (N,) bool.
        fraction: in [0, 1].

    Returns:
        (N,) bool, the places that stay in play.
    """
    candidates = rank[in_play]
    count = ceil_count(fraction, candidates.numel())
    if count < 1:
        return in_play.clone()
    return in_play & (rank > candidates.kthvalue(count).values)


def prune_exactly(rank: Tensor, in_play: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Remove exactly the `count` lowest-ranked places in play; which of those tied at the boundary go is drawn.

    Args:
        rank: (N,) what places are ordered by.
        in_play: (N,) bool, at least `count` of them True.
        count: how many go, at least 0.
        generator: on the CPU; for the ties.

    Returns:
        (N,) bool, the places that stay in play.
    """
    if count < 1:
        return in_play.clone()
    boundary = rank[in_play].kthvalue(count).values
    removed = in_play & (rank < boundary)
    tied = (in_play & (rank == boundary)).nonzero().squeeze(1)
    drawn = torch.randperm(tied.numel(), generator=generator)[: count - int(removed.sum())]
    removed[tied[drawn.to(tied.device)]] = True
    return in_play & ~removed


def keep_highest(scores: Mapping[str, Tensor], density: float, generator: torch.Generator) -> Masks:
    """Keep the ⌊density · N⌋ highest of all weights, at least one; likewise, apart from them, of all biases.

    Args:
        scores: parameter name -> what places are ordered by.
        density: in (0, 1].
        generator: on the CPU; decides among equals.
    """
    masks: Masks = {}
    for biases in (False, True):
        ranks = {name: score for name, score in scores.items() if is_bias(name) == biases}
        if ranks:
            flat = torch.cat([rank.flatten() for rank in ranks.values()])
            kept = max(1, floor_count(density, flat.numel()))
            mask = prune_exactly(flat, torch.ones_like(flat, dtype=torch.bool), flat.numel() - kept, generator)
            parts = mask.split([rank.numel() for rank in ranks.values()])
            masks |= {name: part.view_as(ranks[name]) for name, part in zip(ranks, parts)}
    return {name: masks[name] for name in scores}


def random_masks(like: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator) -> Masks:
    """Masks with exactly so many places of each tensor kept, drawn uniformly."""
    masks: Masks = {}
    for name, tensor in like.items():
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        mask[torch.randperm(tensor.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = mask.view(tensor.shape).to(tensor.device)
    return masks


def total(masks: Masks) -> int:
    """How many weights there are, kept or not (biases, which are counted apart, left out)."""
    return sum(mask.numel() for name, mask in masks.items() if not is_bias(name))


def remaining(masks: Masks) -> int:
    """How many weights are kept (biases left out)."""
    return sum(int(mask.sum()) for name, mask in masks.items() if not is_bias(name))


def per_layer(masks: Masks) -> dict[str, tuple[int, int]]:
    """Layer -> (weights kept, weights in all), biases left out."""
    return {
        name.removesuffix(".weight"): (int(mask.sum()), mask.numel())
        for name, mask in masks.items()
        if not is_bias(name)
    }


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is a bias."""
    return name.rpartition(".")[2] == "bias"


def weight_beside(name: str) -> str:
    """The name of the weight beside a bias; of a weight, its own."""
    return f"{name.rpartition('.')[0]}.weight"


def masked_state(state: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with each named parameter multiplied by its mask (or other factor); the rest as it is."""
    return {name: value * factors[name] if name in factors else value for name, value in state.items()}
