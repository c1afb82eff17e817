"""Gradual magnitude pruning: prune the smallest weights of a training network, by a cubic schedule.

Source: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017 (arXiv
1710.01878), §3.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.masking import prunable_parameters
from trainers.algorithms.random_mask import allocate
from trainers.tickets.ticket import Ticket
from trainers.training.moving_masks import PeriodicMasks, update_steps
from utils.errors import counted
from utils.masks import Masks, all_kept, kept_count, prune_apart, prune_exactly, weights_then_biases
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Train the network, and prune its smallest weights every `update_every` steps until the target is reached."""
    steps = update_steps(config, len(data.train))
    if len(steps) < 3:
        told = f"update_every {config.update_every}: the first {steps.stop - 1} steps (update_until) have room for"
        room = f"{counted(len(steps), 'pruning')}, too few for a cubic schedule"
        warnings.warn(f"{told} {room}; lower update_every, or train longer", stacklevel=2)
    return GradualPruning.searched(net, all_kept(prunable_parameters(net)), data, config, run, "prune").ticket()


def planned_prunings(config: Config, _whole: int, _layers: Sequence[int]) -> str:
    """Say when it prunes."""
    return (
        f"every {config.update_every} steps, by a cubic schedule, up to {100 * config.update_until:g}% of the training"
    )


class GradualPruning(PeriodicMasks):
    """Prunes at every update step to the density that the schedule has there.

    Args:
        network, masks, steps, random_at: as for `PeriodicMasks`.
        config: `target_sparsity` and `prune_type` too.
    """

    @torch.no_grad()
    def change_masks(self) -> None:
        """Prune the smallest weights, of each layer or of the network, to the density that is due."""
        density = density_at(self.step / self.update_steps[-1], self._config.density)
        generator = self.random_at(self.step)
        magnitudes = {name: parameter.detach().abs() for name, parameter in zip(self.masks, self._masked)}
        if self._config.prune_type == "LocalBottomK":
            self.set_masks(smallest_of_layers_pruned(magnitudes, self.masks, density, generator))
        else:

            def surplus(unpruned: int, whole: int) -> int:
                return max(0, unpruned - kept_count(density, whole))

            self.set_masks(prune_apart(magnitudes, self.masks, surplus, generator))


def density_at(share: float, target: float) -> float:
    """Return the density d + (1 − d)(1 − t)³ after the share t of the prunings; 1 before the first, d after the last.

    Source: Zhu & Gupta, equation 1, with an initial sparsity of 0.
    """
    return target + (1.0 - target) * (1.0 - share) ** 3


def smallest_of_layers_pruned(
    magnitudes: dict[str, Tensor], masks: Masks, density: float, generator: torch.Generator
) -> Masks:
    """Prune the smallest weights of every layer, so that all layers have the density; ⌊dN⌋ weights remain in all.

    Args:
        magnitudes: parameter name -> magnitudes, of its shape.
        masks: of the unpruned weights; none of the pruned ones comes back.
        density: in (0, 1].
        generator: on the CPU; breaks ties.
    """
    pruned = dict(masks)
    for names in weights_then_biases(masks):
        sizes = {name: masks[name].numel() for name in names}
        unpruned = {name: count for name in sizes if (count := int(masks[name].sum()))}
        if unpruned:
            wanted = min(kept_count(density, sum(sizes.values())), sum(unpruned.values()))
            # A layer's share by the density, but no more than it still has: the others take the rest.
            raw = [sizes[name] / count for name, count in unpruned.items()]
            for name, count in zip(unpruned, allocate(raw, [*unpruned.values()], wanted)):
                mask, ranks = masks[name], magnitudes[name].flatten()
                kept = prune_exactly(ranks, mask.flatten(), unpruned[name] - count, generator)
                pruned[name] = kept.view_as(mask)
    return pruned
