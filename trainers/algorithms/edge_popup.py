"""Edge-popup per layer (`ep`), with one threshold for the network (`global_ep`), or a rising one (`global_ep_iter`).

Weights w stay as drawn. The search learns scores s of either sign, without bounds, and ranks |s| at every step:

    for each batch:
        θ <- a threshold of each layer (`ep`) or of the network, so that the wanted fraction has |s| > θ
        loss = CE(network of w · 1[|s| > θ])
        s <- optimizer's step along g · w · sign(s)           g: gradient of the effective weight; straight through
    ticket = 1[|s| > θ] at the end

No weight is pruned for good: one that falls under θ still learns and may come back. `ep` keeps the fraction k = d of
every layer and `global_ep` prunes r = 1 − d of the network, unless `prune_rate` sets k or r. `global_ep_iter` raises r
after every pruning epoch: r = 1 − (1 − p)^j, j counting the prunings so far; the first applies from the start.

Source: Ramanujan et al., CVPR 2020 (arXiv 1911.13299), §3; the global and the gradual variant: Rare Gems (arXiv
2202.12002), §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from args_helper import Config
from data.load import Splits
from models.build import mask_with_scores
from models.layers import GlobalThreshold, Rule, TopKInLayer
from models.masking import plain_state
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train
from trainers.training.scores import ScoreTraining
from utils.masks import ceil_count, kth_lowest
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Learn a score for every weight; keep the weights with the largest |score| of each layer or of the network.

    Args:
        net: plain, with its weights drawn; its layers are masked in place.
        data: what to learn on.
        config: the options of the search.
        run: where the search is stored.

    Returns:
        The ticket, without a gem: what is switched on at the end is what is trained.

    Raises:
        UserError: `pretrained` does not fit the network, or see `train`, which also raises Stopped and Diverged.
    """
    mask_with_scores(net, config, "signed")
    search = EdgePopup(net, config)
    search.flat.flags.fill_(True)  # those of `pretrained` do not apply: edge-popup prunes nothing for good
    train(run, "search", search, data, config.epochs, config.start_epoch)

    search.before_epoch(config.epochs)  # apply a pruning scheduled after the last epoch
    reason = "weights that tie at the threshold all go"
    if config.override_prune_rate:
        reason = f"prune_rate {config.prune_rate:g} was asked for, whatever the target"
    elif config.algo == "ep":
        reason = "of every layer the int((1 − k)·n) smallest go, so that its count is rounded up"
    return Ticket(plain_state(net), search.flat.split(search.naive_mask()), facts={"density_reason": reason})


def planned_prunings(config: Config, whole: int, _layers: Sequence[int]) -> list[tuple[str, int]]:
    """List from which epochs on how many of the `whole` weights are switched on, as pairs (when, weights)."""
    planned = {}
    for number, epoch in enumerate(config.prunings, start=1):
        # Of the prunings before the start, the last counts.
        begins = max(config.start_epoch, 0 if number == 1 else epoch + 1)
        pruned = ceil_count(1.0 - (1.0 - config.pruning_rate) ** number, whole)
        planned[f"from epoch {begins}"] = max(1, whole - pruned)  # a weight stays
    return [*planned.items()]


class EdgePopup(ScoreTraining):
    """Learns scores of either sign and ranks their magnitudes at every forward pass.

    Args:
        network: masked, on its device.
        config: the options of the search.
    """

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__(network, self._rule(network, config), config)
        self._switched_off: list[int] = []
        self.before_epoch(0)

    @staticmethod
    def _rule(network: nn.Module, config: Config) -> Rule:
        if config.algo == "ep":
            return TopKInLayer(config.prune_rate if config.override_prune_rate else config.density)
        device = next(network.parameters()).device
        return GlobalThreshold(torch.zeros((), device=device), torch.zeros((), device=device))

    def pruned_fraction(self, epoch: int) -> float:
        """The fraction r of the network's weights that is switched off in this epoch (0-based).

        With `global_ep_iter`, r = 1 − (1 − p)^k after k prunings; the first pruning applies from the start.
        """
        config = self._config
        if config.algo == "global_ep":
            return config.prune_rate if config.override_prune_rate else 1.0 - config.density
        return 1.0 - (1.0 - config.pruning_rate) ** max(1, sum(pruned < epoch for pruned in config.prunings))

    def before_epoch(self, epoch: int) -> None:
        """Set how many weights and biases are switched off from this epoch on."""
        if isinstance(self.rule, GlobalThreshold):
            fraction, sizes = self.pruned_fraction(epoch), [part.stop - part.start for part in self.flat.segments]
            counts = [ceil_count(fraction, size) for size in sizes]
            self._switched_off = [min(counts[0], sizes[0] - 1), *counts[1:]]  # a weight stays
            self.project()

    def before_step(self, _step: int) -> None:
        """Update the thresholds to the current scores before every forward pass."""
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Set each threshold θ to the ⌈r·n⌉-th smallest |s| of the weights or biases; scores have no bounds."""
        if isinstance(self.rule, GlobalThreshold):
            thresholds = (self.rule.threshold, self.rule.of_biases)
            for part, threshold, count in zip(self.flat.segments, thresholds, self._switched_off):
                magnitudes = self.flat.scores[part].abs()
                threshold.copy_(kth_lowest(magnitudes, count) if count else magnitudes.new_full((), -1.0))

    def state(self) -> dict[str, Any]:
        """The state of a Training, and how many weights and biases are switched off in this epoch."""
        names = ("switched_off", "biases_switched_off")
        return {**super().state(), **dict(zip(names, self._switched_off))}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self._switched_off = [state[name] for name in ("switched_off", "biases_switched_off") if name in state]
        self.project()
