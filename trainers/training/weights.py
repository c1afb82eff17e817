"""Training of weights under fixed masks: fine-tuning, and all other training of a plain network.

The network is an ordinary one without masked layers: pruned weights are set to 0 after each step, so that any tool can
load the result. Their gradients are computed all the same; no step is cheaper for being sparse.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.load import Splits
from models.folding import FoldedNetwork
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import teacher_of
from trainers.training.cost import forward_flops
from trainers.training.loop import evaluate, train
from trainers.training.optim import decay_groups, optimizer_of
from trainers.training.training import Draw, Training
from utils.masks import per_layer
from utils.run.run import Row, Run


class WeightTraining(Training):
    """Trains the weights that the masks keep; the others are exactly 0 at every step.

    Args:
        network: plain; the ticket's state is loaded into it.
        ticket: to train; a parameter without a mask is trained in full.
        recipe: how to train.
        teacher: a network of the same classes, on the network's device, in evaluation mode; None: there is none.
    """

    def __init__(self, network: nn.Module, ticket: Ticket, recipe: Recipe, teacher: nn.Module | None = None) -> None:
        network.load_state_dict(ticket.state)
        network.requires_grad_(True)
        optimizer = optimizer_of(recipe, decay_groups(network, recipe.wd, recipe.no_bn_decay))
        super().__init__(network, optimizer, recipe)
        self._folded = FoldedNetwork(network)
        self._recipe = recipe
        self._teacher = None if teacher is None else FoldedNetwork(teacher).refreshed()
        parameters = dict(network.named_parameters())
        self._masked = [parameters[name] for name in ticket.masks]
        self._factors = [mask.to(parameters[name]) for name, mask in ticket.masks.items()]
        self._layers = per_layer(ticket.masks)  # counted once: the masks are fixed
        self.mask_weights()

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The task loss; with a teacher, (1 − α) · task loss + α · T² · KL(teacher ‖ network), of logits divided by T.

        α is the recipe's `teacher_weight`, and T its `teacher_temperature`. Arguments and result as in `Training`.

        Source: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), §2.
        """
        task = super().loss(logits, labels, images)
        if self._teacher is None:
            return task
        temperature = self._recipe.teacher_temperature
        with torch.no_grad():
            target = (self.through(self._teacher, images) / temperature).log_softmax(1)
        own = (logits / temperature).log_softmax(1)
        distance = temperature**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)
        return torch.lerp(task, distance, self._recipe.teacher_weight)

    def after_step(self) -> None:
        """Undo what momentum and weight decay did to pruned weights."""
        self.mask_weights()

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set every pruned weight to exactly 0."""
        torch._foreach_mul_(self._masked, self._factors)

    def layer_densities(self) -> dict[str, float]:
        """The density of every masked layer."""
        return {name: kept / size for name, (kept, size) in self._layers.items()}

    def measure(self, data: Splits, _draw: Draw) -> Row:
        """Accuracy on test and val, and the density in percent."""
        kept, sizes = (sum(counts) for counts in zip(*self._layers.values()))
        folded = self._folded.refreshed()
        return {
            "test_acc": evaluate(folded, data.test, self.precision),
            "val_acc": evaluate(folded, data.val, self.precision),
            "model_sparsity": 100.0 * kept / sizes,
        }


def train_ticket(run: Run, stage: str, network: nn.Module, ticket: Ticket, data: Splits, recipe: Recipe) -> Row:
    """Train a ticket from its state, with fresh momentum; return at once if the stage is finished.

    Args:
        run: where the stage is stored.
        stage: its name.
        network: plain, of the ticket's architecture, on its device; afterwards it holds the trained ticket.
        ticket: what to train.
        data: what to train on.
        recipe: how to train; control networks get the recipe of their ticket.

    Returns:
        The row of the last epoch.

    Source: Rare Gems (arXiv 2202.12002), §3.
    """
    if not recipe.augment:
        data = replace(data, train=data.train.unaugmented())
    teacher = None
    if recipe.teacher:
        teacher = teacher_of(recipe.teacher, data.spec, network).to(data.train.device)
    training = WeightTraining(network, ticket, recipe, teacher)
    if teacher is not None:
        own, other = (forward_flops(net, data.spec.shape)[""] for net in (network, teacher))
        training.teacher_share = other / own
    train(run, stage, training, data, recipe.epochs if recipe.stop is None else recipe.stop, recipe.first_epoch)
    return run.rows(stage)[-1]
