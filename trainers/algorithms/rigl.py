"""Dynamic sparse training: `rigl` grows weights by their gradient, `set` at random.

A sparse network with Erdős–Rényi-kernel densities trains. Every `update_every` steps each layer drops a fraction of its
unpruned weights, those of smallest magnitude, and grows as many pruned ones, at 0. The fraction starts at
`drop_fraction` and falls to 0, by half a cosine, at `update_until` of the training.

Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020 (arXiv 1911.11134), Algorithm 1; SET:
Mocanu et al., Nature Communications 2018 (arXiv 1707.04780), in the form in which Evci et al. compare to it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from trainers.algorithms.random_mask import find_erk_ticket
from trainers.tickets.ticket import Ticket
from trainers.training.cost import forward_flops
from trainers.training.moving_masks import PeriodicMasks, update_steps
from utils.masks import per_layer, prune_exactly
from utils.run.run import Run


def find_by_gradient(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Drop the smallest weights of every layer, and grow those with the largest gradients."""
    training = _trained(Rigged, net, data, config, run)
    # The gradients of pruned weights, which no other step needs: those of a whole layer take a forward pass's FLOPs.
    steps = len(data.train)
    images = sum(data.train.size(step % steps) for step in training.update_steps if step >= config.start_epoch * steps)
    flops = forward_flops(net, data.spec.shape)
    pruned = sum(flops[name] * (1 - kept / size) for name, (kept, size) in per_layer(training.masks).items())
    return training.ticket(scoring_flops=round(images * pruned))


def find_at_random(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Drop the smallest weights of every layer, and grow as many at random."""
    return _trained(Evolving, net, data, config, run).ticket()


def planned_prunings(config: Config, _whole: int, _layers: Sequence[int]) -> str:
    """Say when and how much the masks change."""
    until = f"{100 * config.update_until:g}% of the training"
    share = f"{100 * config.drop_fraction:g}% of each layer's weights, then fewer"
    return f"none; {share}, are replaced every {config.update_every} steps up to {until}"


class Evolving(PeriodicMasks):
    """Replaces the smallest weights of every layer by others, chosen at random.

    Args:
        network, masks, steps, random_at: as for `PeriodicMasks`.
        config: `drop_fraction` too.
    """

    replaces_step = True

    @torch.no_grad()
    def change_masks(self) -> None:
        """Replace the fraction α/2 · (1 + cos(π t/T)) of each layer's unpruned weights, t being the step of T."""
        generator = self.random_at(self.step)
        share = 0.5 * self._config.drop_fraction * (1.0 + math.cos(math.pi * self.step / self.update_steps.stop))
        parameters = dict(zip(self.masks, self._masked))
        self.set_masks({
            name: replaced(mask, parameters[name].abs(), self.growth(parameters[name], generator), share, generator)
            for name, mask in self.masks.items()
        })  # fmt: skip

    def growth(self, parameter: Tensor, generator: torch.Generator) -> Tensor:
        """Return the ranks by which pruned weights are grown, of the parameter's shape: the highest first."""
        return torch.rand(parameter.shape, generator=generator).to(parameter.device)


class Rigged(Evolving):
    """Replaces the smallest weights of every layer by those with the largest gradients."""

    def growth(self, parameter: Tensor, _generator: torch.Generator) -> Tensor:
        """Return the magnitudes of the gradient, of the parameter's shape."""
        return parameter.grad.abs()


def replaced(mask: Tensor, magnitudes: Tensor, growth: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Drop the ⌊share · n⌋ smallest of a layer's n unpruned weights, and grow as many of all others.

    A weight that has just been dropped may be grown again.

    Args:
        mask: bool, True where a weight is unpruned.
        magnitudes: of the mask's shape; the lowest are dropped.
        growth: of the mask's shape; the highest are grown.
        share: in [0, 1].
        generator: on the CPU; breaks ties.

    Returns:
        A mask of the same shape and count.
    """
    count = math.floor(share * int(mask.sum()))
    survivors = prune_exactly(magnitudes.flatten(), mask.flatten(), count, generator)
    candidates = ~survivors
    grown = prune_exactly(growth.flatten(), candidates, int(candidates.sum()) - count, generator)
    return (survivors | grown).view_as(mask)


def _trained(kind: type[Evolving], net: nn.Module, data: Splits, config: Config, run: Run) -> Evolving:
    if config.update_every >= (last := update_steps(config, len(data.train)).stop - 1):
        told = f"update_every {config.update_every}: masks may change in the first {last} steps only (update_until), so"
        once = f"{config.algo} changes them once, at step {last}, where it replaces next to no weight"
        warnings.warn(f"{told} {once}; lower update_every, or train longer", stacklevel=3)
    return kind.searched(net, find_erk_ticket(net, data, config, run).masks, data, config, run, "grow")
