"""AC/DC: alternate between training the whole network and training its largest weights only.

Source: Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks", NeurIPS 2021 (arXiv
2106.12379), Algorithm 1; lengths of the last phases and the reset of momentum as in the authors' runs on ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import prunable_parameters
from trainers.tickets.ticket import Ticket
from trainers.training.moving_masks import MovingMasks
from utils.masks import all_kept, keep_highest, kept_count
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Train dense, then in turn the ⌊dN⌋ largest weights of the network and all weights; end with the largest."""
    return Alternating.searched(net, all_kept(prunable_parameters(net)), data, config, run, "prune").ticket()


def planned_prunings(config: Config, whole: int, _layers: Sequence[int]) -> list[tuple[str, int]]:
    """List the epochs before which it prunes; between two of them, all weights train again for a phase."""
    epochs = range(config.start_epoch, config.epochs)
    sparse = {epoch: is_sparse(epoch, config.epochs, config.acdc_phase) for epoch in epochs}
    starts = [epoch for epoch in epochs if sparse[epoch] and not sparse.get(epoch - 1)]
    return [(f"before epoch {epoch}", kept_count(config.density, whole)) for epoch in starts]


class Alternating(MovingMasks):
    """Prunes at the start of every sparse phase, and lets all weights train in a dense one.

    Args:
        network, masks, steps, random_at: as for `MovingMasks`.
        config: `acdc_phase` and `target_sparsity` too.
    """

    @torch.no_grad()
    def before_epoch(self, epoch: int) -> None:
        """Prune to the target, or unprune all weights, if a phase begins.

        In a dense phase, weights that were pruned begin at 0, and all weights without momentum.
        """
        super().before_epoch(epoch)
        was_sparse = not all(kept == size for kept, size in self._layers.values())
        now_sparse = is_sparse(epoch, self._config.epochs, self._config.acdc_phase)
        if now_sparse and not was_sparse:
            magnitudes = {name: parameter.detach().abs() for name, parameter in zip(self.masks, self._masked)}
            self.set_masks(keep_highest(magnitudes, self._config.density, self.random_at(self.step)))
        elif was_sparse and not now_sparse:
            self.set_masks(all_kept(self.masks))
            self.optimizer.state.clear()


def is_sparse(epoch: int, epochs: int, share: float) -> bool:
    """Whether an epoch (0-based) belongs to a sparse phase.

    A dense warm-up of two phases comes first; two phases that are dense and three that are sparse come last, or as many
    as half of the training has room for; between them, sparse and dense phases take turns.

    Args:
        epoch: in question.
        epochs: of the training.
        share: length of a phase as a fraction of the training.
    """
    phase = max(1, round(share * epochs))
    left = epochs - max(1, min(3 * phase, epochs // 2)) - epoch  # until the last sparse phase
    return left <= 0 or (left > 2 * phase <= epoch and (epoch // phase) % 2 == 0)
