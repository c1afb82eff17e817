"""Divides a set into batches, and draws or divides images class by class."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_cuts(count: int, size: int) -> list[slice]:
    """Cut `count` images into batches of `size`; the last batch has the remainder.

    A remainder of one image joins the batch before it, because BatchNorm has no variance of one image.

    Args:
        count: number of images.
        size: at least 1. With 1, or with a single image, batches of one image remain.

    Returns:
        Slices of range(count), in order, without gaps; none is empty.
    """
    whole = count - 1 if count % size == 1 and count > size else count
    cuts = [slice(start, min(start + size, count)) for start in range(0, whole, size)]
    return cuts if whole == count else [*cuts[:-1], slice(cuts[-1].start, count)]


def some_of_every_class(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of `per_class` images of every class (all of a smaller class), in random order.

    Args:
        labels: (n,) on the CPU.
        per_class: number of images of a class.
        generator: on the CPU.

    Returns:
        (m,) int64, m ≤ per_class · classes, without repetition.
    """
    order = torch.randperm(len(labels), generator=generator)
    drawn = labels[order]
    chosen = torch.cat([order[drawn == label][:per_class] for label in labels.unique()])
    return chosen[torch.randperm(len(chosen), generator=generator)]


def part_every_class(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a share of every class; return the sorted indices of the images not drawn, and of those drawn.

    Args:
        labels: (n,) on the CPU.
        share: in [0, 1]; the number of images of each class is rounded.
        generator: on the CPU.

    Returns:
        Two int64 tensors that together hold every index once.
    """
    order = torch.randperm(len(labels), generator=generator)
    drawn = labels[order]
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = order[drawn == label]
        taken[members[: round(share * len(members))]] = True
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()
