"""Masks: pure functions on tensors.

A mask is True where an entry is kept. Pruning is by rank: the lowest go first, so an algorithm passes its scores, or
their negatives. Biases are pruned apart from weights and counted apart, as densities are those of the weights.

Functions that prune or count read from the device, so they wait for it: they are for use between epochs. Within a step
only `kth_lowest` may be used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""Parameter name -> boolean tensor of the parameter's shape; True where the weight or bias is kept."""


def ceil_count(fraction: float, n: int) -> int:
    """Return ⌈fraction · n⌉, robust to floating-point rounding of the product (0.1 · 30 is 3)."""
    # The product of doubles is off by about 1e-16 · n: the slack is well above that, and well below one entry.
    return math.ceil(fraction * n - 1e-12 * n)


def floor_count(fraction: float, n: int) -> int:
    """Return ⌊fraction · n⌋, robust to floating-point rounding of the product (0.29 · 100 is 29)."""
    return math.floor(fraction * n + 1e-12 * n)


def kept_count(density: float, n: int) -> int:
    """Return how many of n entries a density keeps: ⌊density · n⌋, at least one."""
    return max(1, floor_count(density, n))


def kth_lowest(values: Tensor, k: int) -> Tensor:
    """Return the k-th lowest value as a tensor without dimensions, and without waiting for the device.

    Args:
        values: (N,).
        k: from 1 to N.
    """
    # On a GPU `kthvalue` takes up to twenty times as long as sorting. Some PyTorch versions also refuse it in
    # deterministic mode, because the index it returns for ties varies; that index is not used here.
    return values.kthvalue(k).values if values.device.type == "cpu" else values.sort().values[k - 1]


def prune_lowest(rank: Tensor, unpruned: Tensor, fraction: float) -> Tensor:
    """Prune every entry whose rank is at most the ⌈fraction · n⌉-th lowest of the n unpruned entries.

    All ties at that rank are pruned, so more than the fraction may be. Source: Rare Gems, Algorithm 1.

    Args:
        rank: (N,) the values that order the entries.
        unpruned: (N,) bool.
        fraction: in [0, 1].

    Returns:
        (N,) bool, the entries that stay unpruned.
    """
    candidates = rank[unpruned]
    count = ceil_count(fraction, candidates.numel())
    if count < 1:
        return unpruned.clone()
    return unpruned & (rank > kth_lowest(candidates, count))


def prune_exactly(rank: Tensor, unpruned: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Prune exactly the `count` lowest-ranked unpruned entries; choose among ties at the boundary at random.

    Args:
        rank: (N,) the values that order the entries.
        unpruned: (N,) bool, at least `count` of them True.
        count: how many entries to prune, at least 0.
        generator: on the CPU; breaks the ties.

    Returns:
        (N,) bool, the entries that stay unpruned.
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
    """Prune the lowest-ranked weights of the whole network, and separately the lowest-ranked biases.

    Args:
        ranks: parameter name -> the values that order its entries.
        unpruned: the masks so far, of the same names; pruned entries stay pruned.
        how_many: (unpruned entries, all entries) -> entries to prune; called for the weights, then for the biases.
        generator: on the CPU; breaks the ties.

    Returns:
        New masks with the names, shapes and order of `ranks`.
    """
    masks: Masks = {}
    for names in weights_then_biases(ranks):
        flat = torch.cat([ranks[name].flatten() for name in names])
        before = torch.cat([unpruned[name].flatten() for name in names])
        mask = prune_exactly(flat, before, how_many(int(before.sum()), before.numel()), generator)
        parts = mask.split([ranks[name].numel() for name in names])
        masks |= {name: part.view_as(ranks[name]) for name, part in zip(names, parts)}
    return {name: masks[name] for name in ranks}


def keep_highest(scores: Mapping[str, Tensor], density: float, generator: torch.Generator) -> Masks:
    """Keep the ⌊density · N⌋ highest-scored weights of the network, at least one; the same separately for biases.

    Args:
        scores: parameter name -> the values that order its entries.
        density: in (0, 1].
        generator: on the CPU; breaks the ties.

    Returns:
        Masks with the names and shapes of the scores.
    """
    return prune_apart(scores, all_kept(scores), lambda _, whole: whole - kept_count(density, whole), generator)


def random_masks(like: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator) -> Masks:
    """Draw masks uniformly that keep exactly `counts[name]` entries of each tensor.

    Args:
        like: parameter name -> a tensor of the mask's shape and device.
        counts: parameter name -> entries to keep, from 0 to all.
        generator: on the CPU, so that every device gets the same masks.
    """
    masks: Masks = {}
    for name, tensor in like.items():
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        mask[torch.randperm(tensor.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = mask.view(tensor.shape).to(tensor.device)
    return masks


def total(masks: Masks) -> int:
    """Count all weights, kept or not; biases are counted separately and left out."""
    return sum(mask.numel() for name, mask in masks.items() if not is_bias(name))


def remaining(masks: Masks) -> int:
    """Count the kept weights; biases are left out."""
    return sum(int(mask.sum()) for name, mask in masks.items() if not is_bias(name))


def per_layer(masks: Masks) -> dict[str, tuple[int, int]]:
    """Return layer name -> (weights kept, all weights); biases are left out."""
    return {
        name.removesuffix(".weight"): (int(mask.sum()), mask.numel())
        for name, mask in masks.items()
        if not is_bias(name)
    }


def all_kept(like: Mapping[str, Tensor]) -> Masks:
    """Make the masks of the dense network, which keep every entry."""
    return {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in like.items()}


def thin_layers(masks: Masks) -> dict[str, tuple[int, int]]:
    """Return layer name -> (weights kept, filters) for layers that keep less than one weight per filter on average."""
    filters = {name.removesuffix(".weight"): mask.shape[0] for name, mask in masks.items()}
    counts = {name: (kept, filters[name]) for name, (kept, _) in per_layer(masks).items()}
    return {name: (kept, count) for name, (kept, count) in counts.items() if kept < count}


def is_bias(name: str) -> bool:
    """Return whether a parameter of this name is a bias."""
    return name.rpartition(".")[2] == "bias"


def weights_then_biases(names: Iterable[str]) -> list[list[str]]:
    """Divide the names of parameters into those of weights and those of biases; a part that is empty is left out."""
    return [list(part) for _, part in groupby(sorted(names, key=is_bias), key=is_bias)]


def weight_beside(name: str) -> str:
    """Return the name of the weight in the same layer as this bias; a weight's name is returned unchanged."""
    return f"{name.rpartition('.')[0]}.weight"


def masked_state(state: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply each named parameter of a state_dict by its mask (or other factor); keep the rest unchanged."""
    return {name: value * factors[name] if name in factors else value for name, value in state.items()}
