"""Learning-rate and pruning schedules as pure functions of the epoch: no state to save, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

# Number of epochs -> the epochs at which the published recipes divide the learning rate.
PUBLISHED_MILESTONES = {100: (50, 80), 150: (80, 120), 160: (80, 120), 200: (100, 150), 300: (150, 250)}


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Return the default milestones of `multistep_lr`: the published ones, else a half and two thirds of `epochs`."""
    # Not before the first epoch: a single epoch is trained at the whole learning rate.
    return PUBLISHED_MILESTONES.get(epochs, (max(1, epochs // 2), max(1, 2 * epochs // 3)))


def lr_factor(
    policy: str, epochs: int, gamma: float = 0.1, milestones: Sequence[int] | None = None, warmup: int = 0
) -> Callable[[int], float]:
    """Return the factor of the initial learning rate as a function of the epoch.

    Args:
        policy: `constant_lr`, `cosine_lr` (half a cosine from 1 to 0 over all epochs) or `multistep_lr`.
        epochs: length of the training.
        gamma: factor at each milestone of `multistep_lr`.
        milestones: epochs at which `multistep_lr` applies `gamma`; by default `default_milestones(epochs)`.
        warmup: epochs over which the factor first rises linearly from 1/warmup to 1; the cosine then spans the
            remaining epochs, while milestones do not move.

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
    """Return the epochs (0-based) after whose evaluation a gradual search prunes: e > start with e mod period = 0.

    Args:
        epochs: length of the search.
        period: epochs between two prunings, at least 1.
        start: no epoch up to this one prunes.

    Returns:
        The epochs, each below `epochs`; empty if the first lies beyond the end.
    """
    first = (start // period + 1) * period
    return range(first, epochs, period)


def pruning_rate(density: float, prunings: int) -> float:
    """Return the fraction p of the unpruned weights that each of `prunings` prunings removes to reach `density`.

    Args:
        density: fraction of the weights that remain at the end, in (0, 1].
        prunings: at least 1.

    Returns:
        p in [0, 1).

    Source: Rare Gems (arXiv 2202.12002), Algorithm 1: (1 - p)^prunings = density.
    """
    return 1.0 - density ** (1.0 / prunings)
