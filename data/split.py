"""Dividing a set: into batches, and class by class."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_cuts(count: int, size: int) -> list[slice]:
    """The places of `count` images in batches of `size`, the last of what is left.

    One image that is left joins the batch before it: BatchNorm has no variance of a single one.
    """
    whole = count - 1 if count % size == 1 and count > size else count
    cuts = [slice(start, min(start + size, count)) for start in range(0, whole, size)]
    return cuts if whole == count else [*cuts[:-1], slice(cuts[-1].start, count)]


def some_of_every_class(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """The indices, in random order, of so many of every class, or of all it has, where it has fewer.

    Args:
        labels: (n,) on the CPU.
        per_class: how many.
        generator: on the CPU.
    """
    order = torch.randperm(len(labels), generator=generator)
    drawn = labels[order]
    chosen = torch.cat([order[drawn == label][:per_class] for label in labels.unique()])
    return chosen[torch.randperm(len(chosen), generator=generator)]


def part_every_class(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide every class: the indices of what is left, and of a share of each, rounded; both in order.

    Args:
        labels: (n,) on the CPU.
        share: in [0, 1].
        generator: on the CPU.
    """
    order = torch.randperm(len(labels), generator=generator)
    drawn = labels[order]
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[drawn == label]
        taken[members[: round(share * len(members))]] = True
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()
