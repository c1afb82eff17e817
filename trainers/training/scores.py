"""Training of scores: what all algorithms that learn a mask by gradient share.

`ScoreTraining` is the base of `GemMiner`, `EdgePopup` and `ConcreteSearch`. They choose the rule that makes masks of
scores, and override `project` (what keeps scores in range) and the hooks that prune or redraw.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from data.batches import PlainBatches
from data.load import Splits
from models.folding import FoldedNetwork
from models.layers import Rule, Soft
from models.masking import FlatScores, layer_parameters, masked_layers, plain_state, set_rule, to_plain
from trainers.tickets.recipe import Recipe
from trainers.training.loop import evaluate
from trainers.training.optim import optimizer_of
from trainers.training.rounding import is_noisy, naive_mask, rounded_masks
from trainers.training.tensorboard import MaskMoves
from trainers.training.training import Draw, Training
from utils.masks import is_bias, masked_state
from utils.run.run import Row

# ---- penalties -----------------------------------------------------------------------------------------------------

Penalty = Callable[[Tensor, Tensor, float, float], Tensor]
"""(scores in [0, 1], their weights, α, α′) -> the penalty, a scalar."""


def _var_red_1(scores: Tensor, _weights: Tensor, a: float, b: float) -> Tensor:
    # Between two projections scores may leave [0, 1], where a broken power is not a number.
    s = torch.where((scores < 0) | (scores > 1), 0.0, scores)
    return (s**a * (1 - s) ** b).sum()


def _bin_entropy(scores: Tensor, _weights: Tensor, _a: float, _b: float) -> Tensor:
    # At 0 and 1 the entropy is 0 and its slope infinite: such scores are excluded, also from the gradient.
    inside = (scores > 0) & (scores < 1)
    s = torch.where(inside, scores, 0.5)
    return -torch.where(inside, s * s.log() + (1 - s) * (1 - s).log(), 0.0).sum()


PENALTIES: dict[str, Penalty] = {
    "L2": lambda s, _w, _a, _b: s.square().sum(),
    "L1": lambda s, _w, _a, _b: s.abs().sum(),
    "L1_L2": lambda s, _w, _a, _b: s.abs().sum() + s.square().sum(),
    "var_red_1": _var_red_1,
    "var_red_2": lambda s, w, _a, _b: (w.square() * s * (1 - s)).sum(),
    "bin_entropy": _bin_entropy,
}
"""R(s) by name. Source: Rare Gems (arXiv 2202.12002), §3 and appendix."""

# The part of a penalty that is no weight decay. L2's gradient 2λs is one, and costs no work per step.
_BEYOND_DECAY = {"none": "none", "L2": "none", "L1_L2": "L1"}


# ---- training ------------------------------------------------------------------------------------------------------


class ScoreTraining(Training):
    """Learns the scores of a masked network; its weights are frozen unless `freeze_weights` is off.

    BatchNorm scales and shifts, if any, are frozen. Scores are projected to [0, 1].

    Args:
        network: masked, on its device; must not be moved or copied afterwards.
        rule: turns scores into the factors of the weights in the forward pass.
        config: optimizer, schedule, penalty and rounding.
        lmbda: λ, the strength of the penalty; None: the config's.

    Attributes:
        flat: all scores as one parameter and all flags as one tensor, (N + N_bias,) each; the layers hold views.
        rule: as given.
        lmbda: λ, see `set_lambda`.
        pruned_now: whether the epoch that has just ended pruned; a subclass sets it in `after_epoch`.
    """

    decoupled_decay = False
    """Whether Adam's weight decay of the scores is AdamW's: it then multiplies them, whatever their gradients are."""

    def __init__(self, network: nn.Module, rule: Rule, config: Config, lmbda: float | None = None) -> None:
        self._plain = to_plain(deepcopy(network))
        self._folded = FoldedNetwork(self._plain)
        self.flat = FlatScores(network)
        self.rule = rule
        set_rule(network, rule)
        self._config = config
        self.lmbda = config.lmbda if lmbda is None else lmbda
        self._penalty = PENALTIES.get(config.regularization)
        self._penalty_in_loss = PENALTIES.get(_BEYOND_DECAY.get(config.regularization, config.regularization))
        recipe = self.recipe(config)
        optimizer = self._optimizer(network, recipe)
        super().__init__(network, optimizer, recipe)
        self.flat.share_gradient()  # the line above has given the flat scores another gradient tensor
        self.pruned_now = False
        self._moves = MaskMoves()

    @staticmethod
    def recipe(config: Config) -> Recipe:
        """The recipe by which the scores are trained."""
        return Recipe.of_search(config)

    def _optimizer(self, network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
        config = self._config
        network.requires_grad_(False)
        for scores in self.flat.parts:
            scores.requires_grad_(True)
        groups: list[dict[str, Any]] = [{"params": [self.flat.scores], "weight_decay": self._decay(recipe.wd)}]
        if self.decoupled_decay and recipe.optimizer == "adam":
            groups[0]["decoupled_weight_decay"] = True
        if not config.freeze_weights:
            weights = [weight.requires_grad_(True) for weight in layer_parameters(network).values()]
            groups.append({"params": weights, "weight_decay": recipe.wd})
        return optimizer_of(recipe, groups)

    def _decay(self, wd: float) -> float:
        # λ · Σs² has the gradient 2λs, which is a (coupled) weight decay of 2λ.
        return wd + (2 * self.lmbda if "L2" in self._config.regularization else 0.0)

    def set_lambda(self, lmbda: float) -> None:
        """Change the strength of the penalty, between two steps."""
        self.lmbda = lmbda
        self.optimizer.param_groups[0]["weight_decay"] = self._decay(self.recipe(self._config).wd)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def penalty(self) -> Tensor | None:
        """λR(s) without its part that is a weight decay; None if nothing else is left."""
        return None if self._penalty_in_loss is None else self._weighed(self._penalty_in_loss)

    def before_step(self, step: int) -> None:
        """Project the scores every `project_freq` steps."""
        if self._config.differentiate_clamp or step % self._config.project_freq == 0:
            self.project()

    def after_steps(self) -> None:
        """Project the scores for the evaluation."""
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Clamp every score to [0, 1]."""
        self.flat.scores.clamp_(0.0, 1.0)

    def _weighed(self, penalty: Penalty) -> Tensor:
        config = self._config
        return self.lmbda * penalty(self.flat.scores, self._flat_weights(), config.alpha, config.alpha_prime)

    def _flat_weights(self) -> Tensor:
        """Weights and biases in the order of the flat scores, (N + N_bias,)."""
        if self._config.regularization != "var_red_2":
            return self.flat.scores.detach()  # no other penalty reads them
        layers = masked_layers(self.network).values()
        biases = [layer.bias for layer in layers if layer.bias_scores is not None]
        return torch.cat([part.detach().flatten() for part in [*(layer.weight for layer in layers), *biases]])

    # ---- an epoch ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(self, data: Splits, draw: Draw) -> Row:
        """Accuracy of the forward pass as trained, and under rounded masks, averaged over `num_test` draws."""
        config = self._config
        masks = list(rounded_masks(self.network, self.flat, self.rule, config, draw("rounding")))
        tests = [self._accuracy(mask, data.test) for mask in masks]
        vals = [self._accuracy(mask, data.val) for mask in masks] if data.val else []
        # If the forward pass already rounds, naively and without noise, rounding changes no bit.
        same = not isinstance(self.rule, Soft) and config.round == "naive" and not is_noisy(config)
        before = tests[0] if same else self._accuracy(self._factors(), data.test)
        return {
            "test_acc_before_rounding": before,
            "test_acc": sum(tests) / len(tests),
            "val_acc": sum(vals) / len(vals) if vals else None,
            "regularization_loss": float(self._weighed(self._penalty)) if self._penalty else 0.0,
            "model_sparsity": 100.0 * sum(map(self.flat.share, masks)) / len(masks),
        }

    def naive_mask(self) -> Tensor:
        """The flat mask of the subnetwork that the rule switches on at the current scores."""
        return naive_mask(self.flat, self.rule, self.flat.scores.detach())

    def _factors(self) -> Tensor:
        """The flat factors of weights and biases in the forward pass; a rule takes one layer at a time."""
        scores, flags = self.flat.split(self.flat.scores), self.flat.split(self.flat.flags)
        return torch.cat([self.rule(part, flags[name]).flatten() for name, part in scores.items()])

    def _accuracy(self, factors: Tensor, batches: PlainBatches | None) -> float | None:
        """Accuracy of the plain network with its weights multiplied by these flat factors.

        Args:
            factors: (N + N_bias,), bool for a mask or float.
            batches: None: the accuracy is None.
        """
        self._plain.load_state_dict(masked_state(plain_state(self.network), self.flat.split(factors)))
        return evaluate(self._folded.refreshed(), batches, self.precision)

    def layer_densities(self) -> dict[str, float]:
        """The density of every layer in the forward pass; while scores are not rounded, that of scores above 0."""
        masks = self.flat.split(self._factors() != 0)
        names = [name for name in masks if not is_bias(name)]
        shares = torch.stack([masks[name].float().mean() for name in names]).tolist()
        return {name.removesuffix(".weight"): share for name, share in zip(names, shares)}

    def describe(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Unpruned weights and the density of every layer, in percent, and how many weights switched on or off.

        After a pruning also histograms of the scores.
        """
        by_layer = {f"layers/{name}": 100.0 * share for name, share in self.layer_densities().items()}
        mask = self.naive_mask()[self.flat.segments[0]]
        moves = self._moves.look(mask, self.pruned_now)
        scalars = {"unpruned_percent": 100.0 * self.flat.share(self.flat.flags), **by_layer, **moves}
        return scalars, self.histograms() if self.pruned_now else {}

    def state(self) -> dict[str, Any]:
        """The state of a Training, and the masks that the next ones are compared with."""
        return {**super().state(), "moves": self._moves.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self._moves.load_state(state["moves"], self.flat.scores.device)

    def histograms(self) -> dict[str, Tensor]:
        """The scores of the unpruned weights of every layer."""
        return {
            f"scores/{name}": layer.scores.detach()[layer.flag]
            for name, layer in masked_layers(self.network).items()
            if bool(layer.flag.any())
        }
