"""Concrete ticket search: learn relaxed Bernoulli masks under a density budget, weighted to balance the gradients.

Weights w stay as they are. The search learns a logit α per weight; σ(α) is the probability that the weight is kept:

    α <- log(d / (1 − d))
    for each batch:                                                   not augmented; BatchNorm by the batch's statistics
        m = σ((log u − log(1 − u) + τα) / τ)                          u uniform in (0, 1), drawn anew; τ = 2/3
        task = distance of the network of w · m to the dense network on this batch            by `cts_loss`
        c = 100 · (Σσ(α) / (1.1·d·N) − 1)                             above 0: more weights are expected than the budget
        λ <- 0.99 · λ + 0.01 · (‖∇task‖ / ‖∇c‖ if c > 0, else 0)      λ starts at the first of these values
        α <- the optimizer's step along ∇task + λ∇c
    ticket = the ⌊dN⌋ weights of highest α

Source: Arora & Teuscher, "Concrete Ticket Search", 2025 (arXiv 2512.07142); the relaxation: Maddison et al., ICLR 2017
(arXiv 1611.00712).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.masking import masked_layers, plain_state, prunable_parameters, to_masked
from trainers.algorithms import CTS_SEARCH
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.compile import compile_in_place
from trainers.training.loop import train
from trainers.training.scores import ScoreTraining
from trainers.training.training import Draw
from trainers.training.weights import train_ticket
from utils.distributed.collectives import world_size
from utils.masks import all_kept, keep_highest
from utils.run.run import Row, Run

TEMPERATURE = 2 / 3
SLACK = 1.1
"""The budget is 1.1 times the target density."""
CONSTRAINT_SCALE = 100.0
KEPT_OF_MULTIPLIER = 0.99
DROP_AFTER = 0.88
"""The share of the epochs after which the learning rate drops to a tenth."""
TASK_SCALE = {"kl": 1e2, "ce": 1e2, "loss": 1e4}


def find_ticket(net: nn.Module, data: Splits, config: Config, run: Run) -> Ticket:
    """Learn a logit for every weight, frozen as drawn or after `rewind_epoch` dense epochs; keep the ⌊dN⌋ highest.

    Fine-tuning of a rewound ticket starts at that epoch.

    Args:
        net: plain, with its weights drawn; its layers are masked in place.
        data: the search takes its training images without augmentation.
        config: the options of the search; those of the fine-tuning too, for the dense epochs before it.
        run: where the stages `search/dense` and `search` are stored.

    Returns:
        The ticket with the recipe of its fine-tuning.

    Raises:
        UserError, Stopped, Diverged: see `train`.
    """
    _warn_of_other_options(config)
    recipe = Recipe.of_tuning(config, first_epoch=config.rewind_epoch)
    if config.rewind_epoch:
        dense = Ticket(plain_state(net), all_kept(prunable_parameters(net)))
        until = replace(recipe, first_epoch=0, stop=config.rewind_epoch)
        train_ticket(run, "search/dense", net, dense, data, until)

    teacher = deepcopy(net)
    if config.compile == "on":
        compile_in_place(teacher, config.torch_device)
    search = ConcreteSearch(to_masked(net), teacher, config, run)
    train(run, "search", search, replace(data, train=data.train.unaugmented()), config.epochs)

    logits = {name: part.clone() for name, part in search.flat.split(search.flat.scores.detach()).items()}
    masks = keep_highest(logits, config.density, run.rng("search", "ties"))
    return Ticket(plain_state(net), masks, recipe=recipe)


def _warn_of_other_options(config: Config) -> None:
    """Warn that given options replace the authors'; options that all runs of a sweep share count as given."""
    if config.cts_loss == "loss" and config.accumulate * world_size() > 1:
        told = "cts_loss loss compares the losses of each part of a batch (accumulate, processes), not of the whole one"
        warnings.warn(told, stacklevel=3)
    own = {name: getattr(config, name) for name in CTS_SEARCH}
    others = [f"{name} {own[name]} ({theirs})" for name, theirs in CTS_SEARCH.items() if own[name] != theirs]
    if others:
        warnings.warn(
            f"cts searches with {', '.join(others)}: as given; its authors' values are in brackets. Leave these "
            "options out to use those or, where the runs of a sweep share them, give the run of cts its authors'",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Concrete:
    """A differentiable sample of the mask: σ((logistic noise + τα)/τ).

    Attributes:
        noise: shape of the layer's weight or bias -> its noise; `ConcreteSearch` redraws it before every step. By
            shape, because a rule is not told whose scores it gets, and a layer's weight and bias differ in it.

    Source: Maddison et al., ICLR 2017 (arXiv 1611.00712), for the binary concrete distribution.
    """

    noise: Mapping[torch.Size, Tensor]

    def mask(self, scores: Tensor, _flag: Tensor) -> Tensor:
        """The likelier value of every mask entry, bool."""
        return scores > 0

    def __call__(self, scores: Tensor, _flag: Tensor) -> Tensor:
        return torch.sigmoid((self.noise[scores.shape] + TEMPERATURE * scores) / TEMPERATURE)


class ConcreteSearch(ScoreTraining):
    """Learns logits α under a budget: c(α) = 100 · (Σσ(α) / (1.1·d·N) − 1) is penalised while it is positive.

    Args:
        network: masked, on its device.
        teacher: the plain dense network.
        config: the options of the search.
        run: its random streams draw the noise.

    Attributes:
        teacher_share: 1, as every batch also goes through the dense network; 0 for `cts_loss: ce`, which does without.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, config: Config, run: Run) -> None:
        super().__init__(network, Concrete({}), config)
        self._run, self._epoch = run, 0
        self.teacher_share = float(config.cts_loss != "ce")
        self._teacher = teacher.train().requires_grad_(False)  # batch statistics, like the student
        scores = self.flat.scores
        self._budget = SLACK * config.density * scores.numel()
        self._noise = torch.zeros_like(scores)
        self._multiplier = scores.new_zeros(())
        self._has_multiplier = False
        with torch.no_grad():
            scores.fill_(math.log(config.density / (1 - config.density)))
        noises = self.flat.split(self._noise)
        for name, layer in masked_layers(network).items():
            own = [noises[f"{name}.{kind}"] for kind in ("weight", "bias") if f"{name}.{kind}" in noises]
            layer.rule = Concrete({noise.shape: noise for noise in own})

    @staticmethod
    def recipe(config: Config) -> Recipe:
        """The recipe of the search; the learning rate drops at 88% of the epochs unless `milestones` are given."""
        recipe, drop = Recipe.of_search(config), max(1, int(DROP_AFTER * config.epochs))
        return replace(recipe, milestones=(drop,)) if recipe.milestones is None else recipe

    # ---- steps -------------------------------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        """Store the epoch, for the seed of the noise."""
        self._epoch = epoch

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Draw logistic noise, log u − log(1 − u)."""
        # On the device, so that no step copies N numbers from the host. The seed is the run's: resuming draws the same.
        seed = self._run.rng("search", "noise", self._epoch, step).initial_seed()
        generator = torch.Generator(self._noise.device).manual_seed(seed)
        self._noise.uniform_(1e-7, 1 - 1e-7, generator=generator).logit_()

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The distance to the dense network (`kl`, `loss`) or the cross-entropy (`ce`), scaled like the authors'.

        Args:
            logits: (B, classes) of the masked network.
            labels: (B,) class numbers.
            images: (B, C, H, W), for the dense network.

        Returns:
            100 · KL(masked ‖ dense) averaged over the images, 10⁴ · |CE/CE_dense − 1|, or 100 · CE; without dimensions.
            `label_smoothing` applies to CE; KL reads no label.
        """
        how = self._config.cts_loss
        if how == "ce":
            return TASK_SCALE[how] * super().loss(logits, labels, images)
        with torch.no_grad():
            dense = self.through(self._teacher, images)
        if how == "loss":
            ratio = super().loss(logits, labels, images) / super().loss(dense, labels, images)
            return TASK_SCALE[how] * (ratio - 1).abs()
        # Reverse KL(masked ‖ dense): the authors' best.
        student, target = logits.log_softmax(1), dense.log_softmax(1)
        return TASK_SCALE[how] * F.kl_div(target, student, reduction="batchmean", log_target=True)

    @torch.no_grad()
    def update(self) -> None:
        """Add λ∇c to the gradient and step; λ averages ‖∇task‖/‖∇c‖ while the budget is exceeded, and 0 otherwise."""
        task, chance = self.flat.scores.grad, torch.sigmoid(self.flat.scores)
        excess = chance.sum() / self._budget - 1
        slope = CONSTRAINT_SCALE / self._budget * chance * (1 - chance)
        present = torch.where(excess > 0, task.norm() / slope.norm(), 0.0)
        before = self._multiplier if self._has_multiplier else present
        # Tensor work only: choosing by `torch.where` instead of `if` keeps the step from waiting for the device.
        self._multiplier = KEPT_OF_MULTIPLIER * before + (1 - KEPT_OF_MULTIPLIER) * present
        self._has_multiplier = True
        task.add_(self._multiplier * slope)
        super().update()

    def project(self) -> None:
        """Do nothing: logits have no bounds."""

    # ---- an epoch ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, data: Splits, draw: Draw) -> Row:
        """Accuracy with every weight times its probability of being kept, and with the ⌊dN⌋ likeliest weights."""
        logits = self.flat.split(self.flat.scores.detach())
        kept = keep_highest(logits, self._config.density, draw("ties"))
        mask = torch.cat([part.flatten() for part in kept.values()])
        chance = torch.sigmoid(self.flat.scores)
        excess = chance.sum() / self._budget - 1
        return {
            "test_acc_before_rounding": self._accuracy(chance, data.test),
            "test_acc": self._accuracy(mask, data.test),
            "val_acc": self._accuracy(mask, data.val),
            "regularization_loss": float(self._multiplier * CONSTRAINT_SCALE * excess),
            "model_sparsity": 100.0 * self.flat.share(mask),
        }

    def layer_densities(self) -> dict[str, float]:
        """Empty: all weights take part, each by a fraction."""
        return {}

    # ---- what is logged and saved ------------------------------------------------------------------------------------

    def describe(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The expected weights remaining, in percent, and the multiplier λ."""
        expected = 100.0 * torch.sigmoid(self.flat.scores.detach()).mean()
        return {"weights_expected_percent": float(expected), "multiplier": float(self._multiplier)}, {}

    def state(self) -> dict[str, Any]:
        """The state of a Training, the epoch and the multiplier."""
        own = {"epoch": self._epoch, "multiplier": float(self._multiplier), "has_multiplier": self._has_multiplier}
        return {**super().state(), **own}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self._epoch, self._has_multiplier = state["epoch"], state["has_multiplier"]
        self._multiplier = self.flat.scores.new_tensor(state["multiplier"])
