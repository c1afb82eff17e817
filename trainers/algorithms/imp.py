"""Iterative magnitude pruning: train, prune the smallest weights, rewind the others, repeat.

    m <- 1
    for round 0, 1, ..., R:                                     R = ⌈ln d / ln(1 − q)⌉ prunings, q = `prune_rate`;
                                                                with `imp_rounds`: that less one
        train w under m for `iter_period` epochs; in round 0, w₀ <- w after step `imp_rewind_iter`
        if this is round R: the trained network is the result
        m <- m without the ⌈q·n⌉ smallest |w| of the n unpruned weights of the network
        w <- w₀ in all unpruned entries                         with `imp_no_rewind`: w stays

Only prunable weights rewind; BatchNorm carries on. Every round has a fresh optimizer and its schedule from the start.
`imp_rounds` has the files that a round leaves, and the start from another run's round.

Source: Frankle & Carbin, ICLR 2019 (arXiv 1803.03635), Strategy 1; rewinding: Frankle et al., ICML 2020 (arXiv
1912.05671); keeping the weights and rewinding only the learning rate: Renda et al., ICLR 2020 (arXiv 2003.02389).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.algorithms.imp_rounds import first_round, keep_round, last_values, rewind_step
from trainers.checks.connectivity import warn_of_thin_layers
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train
from trainers.training.weights import WeightTraining
from utils.masks import Masks, ceil_count, kept_count, prune_apart
from utils.run.run import Run


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Train rounds of `iter_period` epochs and prune between rounds; the last round is the trained ticket.

    Args:
        net: plain, with its weights drawn; trained in place.
        data: what to train on.
        config: `imp_*`, `prune_rate`, the target, and the options of the search.
        run: where the stages `search/round_N` are stored.

    Returns:
        The subnetwork that the last round starts from, with a recipe whose stage is that round: `train_ticket` finds
        the stage finished, and control networks are trained as long as a round.

    Raises:
        UserError: see `rewind_step`, `first_round` and `train`, which also raises Stopped and Diverged.
    """
    recipe = Recipe.of_search(config, epochs=config.iter_period, gamma=config.lr_gamma, first_epoch=0)
    snapshot_step = rewind_step(config, recipe.epochs * len(data.train))
    number, ticket, rewound = first_round(net, config, run, snapshot_step)
    thin: set[str] = set()
    asked = f"{config.imp_rounds} rounds of prune_rate {config.prune_rate:g} were asked for, whatever the target"
    facts = {"density_reason": asked} if config.imp_rounds > 0 else {}
    while True:
        stage = f"search/round_{number}"
        ticket = replace(ticket, recipe=replace(recipe, stage=stage), facts=facts)
        training = Round(net, ticket, snapshot_step if number == 0 and not rewound else None)
        train(run, stage, training, data, recipe.epochs)
        rewound = rewound or training.snapshot
        trained = Ticket(plain_state(net), ticket.masks)
        keep_round(run, number, trained, rewound, config)
        if number >= config.imp_prunings:
            return ticket
        number += 1
        masks = smallest_pruned(trained, number, config, run)
        warn_of_thin_layers(masks, f"in round {number}", thin)
        ticket = Ticket({**trained.state, **(last_values(trained, ticket) if config.imp_no_rewind else rewound)}, masks)


def planned_prunings(config: Config, whole: int, layers: Sequence[int]) -> list[tuple[str, int]]:
    """List before which rounds it prunes, and how many weights then remain.

    Args:
        config: `prune_rate`, `imp_rounds` and the target.
        whole: number of prunable weights, N.
        layers: how many weights of each layer are unpruned in round 0.
    """
    planned, left = [], sum(layers)
    for number in range(1, config.imp_prunings + 1):
        left -= pruned_before(number, config, left, whole)
        planned.append((f"before round {number}", left))
    return planned


def pruned_before(number: int, config: Config, unpruned: int, whole: int) -> int:
    """Return how many of n unpruned weights are pruned before a round: ⌈q·n⌉, but none below the target, nor the last.

    Args:
        number: of the round, from 1 to `imp_prunings`; the last one leaves ⌊dN⌋ if there is a target.
        config: `prune_rate` (q), `imp_rounds` and the target.
        unpruned: n.
        whole: N.
    """
    count = min(ceil_count(config.prune_rate, unpruned), unpruned - 1)
    if config.imp_rounds > 0:
        return count
    above_target = unpruned - kept_count(config.density, whole)
    return above_target if number == config.imp_prunings else min(count, above_target)


class Round(WeightTraining):
    """The training of a round; in round 0 it takes the snapshot that later rounds rewind to.

    Args:
        network: plain; the ticket's state is loaded into it.
        ticket: to train, with its recipe.
        snapshot_step: the optimizer step after which to take the snapshot; 0: before the first; None: never.

    Attributes:
        snapshot: the prunable weights at that step, by name.
    """

    def __init__(self, network: nn.Module, ticket: Ticket, snapshot_step: int | None) -> None:
        super().__init__(network, ticket, ticket.recipe)
        self._snapshot_step, self._steps = snapshot_step, 0
        self.snapshot: dict[str, Tensor] = {}
        self._take_snapshot()

    def after_step(self) -> None:
        """Mask pruned weights, count the step, and take the snapshot at its step."""
        super().after_step()
        self._steps += 1
        self._take_snapshot()

    def _take_snapshot(self) -> None:
        if self._steps == self._snapshot_step:
            weights = prunable_parameters(self.network).items()
            self.snapshot = {name: weight.detach().clone() for name, weight in weights}

    def state(self) -> dict[str, Any]:
        """The state of a Training, the steps so far and the snapshot."""
        return {**super().state(), "steps": self._steps, "snapshot": self.snapshot}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self._steps = state["steps"]
        device = next(self.network.parameters()).device
        self.snapshot = {name: weight.to(device) for name, weight in state["snapshot"].items()}
        shapes = {name: weight.shape for name, weight in prunable_parameters(self.network).items()}
        if self.snapshot and {name: weight.shape for name, weight in self.snapshot.items()} != shapes:
            raise ValueError("the snapshot is of another network")


@torch.no_grad()
def smallest_pruned(ticket: Ticket, number: int, config: Config, run: Run) -> Masks:
    """The masks of round `number`: prunes the smallest magnitudes of the network's unpruned weights (`pruned_before`).

    Ties are broken at random.

    Args:
        ticket: the trained network of the round before, and its masks.
        number: of the round to come, from 1 to `imp_prunings`.
        config: as for `pruned_before`.
        run: its random stream breaks the ties.
    """
    magnitudes = {name: ticket.state[name].abs() for name in ticket.masks}
    how_many = partial(pruned_before, number, config)
    return prune_apart(magnitudes, ticket.masks, how_many, run.rng(f"search/round_{number}", "prune"))
