"""Masks: pure functions on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""Parameter name -> boolean tensor of the parameter's shape; True where it is kept."""


def ceil_count(fraction: float, n: int) -> int:
    """⌈fraction · n⌉, unmoved by the last bits of a floating-point product (0.1 · 30 is 3)."""
    return math.ceil(fraction * n - 1e-12 * n)


def floor_count(fraction: float, n: int) -> int:
    """⌊fraction · n⌋, unmoved by the last bits of a floating-point product (0.29 · 100 is 29)."""
    return math.floor(fraction * n + 1e-12 * n)


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """The k-th lowest value, a tensor of no dimensions; the device is not waited for.

    Args:
        values: (N,).
        k: from 1 to N.
    """
    # On a GPU `kthvalue` takes up to twenty times as long as sorting, and PyTorch has versions that refuse it where
    # operations have to be deterministic, for its index among equals, which nobody reads here.
    return values.kthvalue(k).values if values.device.type == "cpu" else values.sort().values[k - 1]


def prune_lowest(rank: Tensor, unpruned: Tensor, fraction: float) -> Tensor:
    """Remove every place in play whose rank is at most the ⌈fraction · n⌉-th lowest of the n in play.

    Ties at that rank all go, so that more than the fraction may. Source: Rare Gems, Algorithm 1.

    Args:
        rank: (N,) what places are ordered by.
        unpruned: (N,) bool.
        fraction: in [0, 1].

    Returns:
        (N,) bool, the places that stay in play.
    """
    candidates = rank[unpruned]
    count = ceil_count(fraction, candidates.numel())
    if count < 1:
        return unpruned.clone()
    return unpruned & (rank > kth_lowest(candidates, count))


def prune_exactly(rank: Tensor, unpruned: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Remove exactly the `count` lowest-ranked places in play; which of those tied at the boundary go is drawn.

    Args:
        rank: (N,) what places are ordered by.
        unpruned: (N,) bool, at least `count` of them True.
        count: how many go, at least 0.
        generator: on the CPU; for the ties.

    Returns:
        (N,) bool, the places that stay in play.
    """
    if count < 1:
        return unpruned.clone()
    boundary = kth_lowest(rank[unpruned], count)
    removed = unpruned & (rank < boundary)
    tied = (unpruned & (rank == boundary)).nonzero().squeeze(1)
    drawn = torch.randperm(tied.numel(), generator=generator)[: count - int(removed.sum())]
    removed[tied[drawn.to(tied.device)]] = True
    return unpruned & ~removed


def prune_apart(
    ranks: Mapping[str, Tensor], unpruned: Masks, how_many: Callable[[int, int], int], generator: torch.Generator
) -> Masks:
    """Remove the lowest-ranked of all weights of the network; likewise, apart from them, of all biases.

    Args:
        ranks: parameter name -> what places are ordered by.
        unpruned: of the same names; places that are not in play stay so.
        how_many: (places in play, places in all) -> how many go; asked for the weights, then for the biases.
        generator: on the CPU; decides among equals.
    """
    masks: Masks = {}
    for biases in (False, True):
        names = [name for name in ranks if is_bias(name) == biases]
        if names:
            flat = torch.cat([ranks[name].flatten() for name in names])
            before = torch.cat([unpruned[name].flatten() for name in names])
            mask = prune_exactly(flat, before, how_many(int(before.sum()), before.numel()), generator)
            parts = mask.split([ranks[name].numel() for name in names])
            masks |= {name: part.view_as(ranks[name]) for name, part in zip(names, parts)}
    return {name: masks[name] for name in ranks}


def keep_highest(scores: Mapping[str, Tensor], density: float, generator: torch.Generator) -> Masks:
    """Keep the ⌊density · N⌋ highest of all weights, at least one; likewise, apart from them, of all biases.

    Args:
        scores: parameter name -> what places are ordered by.
        density: in (0, 1].
        generator: on the CPU; decides among equals.
    """
    return prune_apart(
        scores, all_kept(scores), lambda _, whole: whole - max(1, floor_count(density, whole)), generator
    )


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


def all_kept(like: Mapping[str, Tensor]) -> Masks:
    """The masks of the dense network: everything is kept."""
    return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in like.items()}


def thin_layers(masks: Masks) -> dict[str, tuple[int, int]]:
    """Layer -> (weights kept, filters), for the layers that keep less than one weight a filter on average."""
    counts = {
        name.removesuffix(".weight"): (int(mask.sum()), mask.shape[0])
        for name, mask in masks.items()
        if not is_bias(name)
    }
    return {name: (kept, filters) for name, (kept, filters) in counts.items() if kept < filters}


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is a bias."""
    return name.rpartition(".")[2] == "bias"


def weight_beside(name: str) -> str:
    """The name of the weight beside a bias; of a weight, its own."""
    return f"{name.rpartition('.')[0]}.weight"


def masked_state(state: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict with each named parameter multiplied by its mask (or other factor); the rest as it is."""
    return {name: value * factors[name] if name in factors else value for name, value in state.items()}
