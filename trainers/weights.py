"""A Training of weights under fixed masks: fine-tuning, and all else that trains a plain network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from data.loader import Splits
from trainers.loop import Draw, Training, evaluate, train
from utils.masks import Masks, Ticket, remaining, total
from utils.optim import build_optimizer, decay_groups
from utils.run import Row, Run
from utils.schedules import lr_factor

if TYPE_CHECKING:
    from args_helper import Config


class WeightTraining(Training):
    """Trains the weights that the masks keep; the others are exactly 0 at every step.

    Args:
        network: plain.
        masks: of the parameters that are masked; a parameter without one is trained whole.
        optimizer: over the network's parameters.
        lr: the learning rate of every epoch.
        label_smoothing: of the cross-entropy.
    """

    def __init__(self, network: nn.Module, masks: Masks, *args: object) -> None:
        super().__init__(network, *args)
        parameters = dict(network.named_parameters())
        self._masked = [parameters[name] for name in masks]
        self._factors = [mask.to(parameters[name]) for name, mask in masks.items()]
        self._percent = 100.0 * remaining(masks) / total(masks)
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Take back what momentum and decay did to pruned weights."""
        torch._foreach_mul_(self._masked, self._factors)

    def measure(self, data: Splits, _draw: Draw) -> Row:
        """Accuracy on test and val."""
        return {
            "test_acc": evaluate(self.network, data.test),
            "val_acc": evaluate(self.network, data.val),
            "model_sparsity": self._percent,
        }


def fine_tune(run: Run, stage: str, network: nn.Module, ticket: Ticket, data: Splits, config: Config) -> Row:
    """Train a ticket by the config's recipe for fine-tuning, with fresh momentum, from its state on.

    Args:
        run: where it is kept.
        stage: its name.
        network: plain, of the ticket's architecture, on its device; afterwards it is the trained ticket.
        ticket: what to train.
        data: what to train on.
        config: `fine_tune_*`, `momentum`, `nesterov`, `no_bn_decay`, `label_smoothing`.

    Returns:
        The row of the last epoch.

    Source: Rare Gems (arXiv 2202.12002), §3.
    """
    network.load_state_dict(ticket.state)
    network.requires_grad_(True)
    groups = decay_groups(network, config.fine_tune_wd, config.no_bn_decay)
    name, lr = config.fine_tune_optimizer, config.fine_tune_lr
    optimizer = build_optimizer(name, groups, lr, config.momentum, config.nesterov)
    factor = lr_factor(config.fine_tune_lr_policy, config.tuning_epochs, config.gamma, config.milestones)
    training = WeightTraining(
        network, ticket.masks, optimizer, lambda epoch: lr * factor(epoch), config.label_smoothing
    )
    train(run, stage, training, data, config.tuning_epochs)
    return run.rows(stage)[-1]
