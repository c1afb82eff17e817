"""Schedules as pure functions of the epoch: learning rates and prunings. No state, nothing to save, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# Epochs at which the published recipes divide the learning rate, by length of training.
PUBLISHED_MILESTONES = {100: (50, 80), 150: (80, 120), 160: (80, 120), 200: (100, 150), 300: (150, 250)}


def default_milestones(epochs: int) -> tuple[int, ...]:
    """The epochs at which `multistep_lr` steps down when none are given; a half and two thirds for unusual lengths."""
    return PUBLISHED_MILESTONES.get(epochs, (epochs // 2, 2 * epochs // 3))


def lr_factor(
    policy: str, epochs: int, gamma: float = 0.1, milestones: Sequence[int] | None = None, warmup: int = 0
) -> Callable[[int], float]:
    """What the initial learning rate is multiplied with in each epoch.

    Args:
        policy: `constant_lr`, `cosine_lr` (half a cosine from 1 to 0 over all epochs) or `multistep_lr`.
        epochs: length of the training.
        gamma: factor of each step of `multistep_lr`.
        milestones: epochs of those steps; by default `default_milestones(epochs)`.
        warmup: epochs over which the factor first rises linearly, from 1/warmup to 1; the cosine then runs over the
            rest, while milestones stay where they are.

    Returns:
        A function from the epoch (0-based) to the factor.
    """
    steps = default_milestones(epochs) if milestones is None else tuple(milestones)

    def after_warmup(epoch: int) -> float:
        if policy == "cosine_lr":
            return 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))
        if policy == "multistep_lr":
            return gamma ** sum(epoch >= step for step in steps)
        return 1.0

    return lambda epoch: (epoch + 1) / warmup if epoch < warmup else after_warmup(epoch)


def pruning_epochs(epochs: int, period: int, start: int = 0) -> range:
    """The epochs (0-based) after whose evaluation a gradual search prunes: e > start with e mod period = 0."""
    first = (start // period + 1) * period
    return range(first, epochs, period)


def pruning_rate(density: float, prunings: int) -> float:
    """The fraction p of the weights in play that each of `prunings` prunings removes to end at `density`.

    Source: Rare Gems (arXiv 2202.12002), Algorithm 1: (1 - p)^prunings = density.
    """
    return 1.0 - density ** (1.0 / prunings)
