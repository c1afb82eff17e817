"""Masked layers, the rules by which scores become masks, and batch-norm types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.masks import kth_lowest

# ---- rules: scores and flags -> the factor of the weights ----------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """The mask forward; backward, the gradient as if the mask were the scores, where the gate lets it through.

    Source: Bengio et al. 2013 (arXiv 1308.3432); Rare Gems, Algorithm 1.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)  # the flag buffer itself: nothing is kept that was not there anyway
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gate,) = ctx.saved_tensors
        return gradient * gate, None, None


class Rule(Protocol):
    """How the scores and flags of a layer become the factor of its weights."""

    def mask(self, scores: Tensor, flag: Tensor) -> Tensor:
        """What is switched on, bool, of the scores' shape, which is the weight's or the bias's own."""

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        """What the weights are multiplied with, of the scores' shape and differentiable by them."""


@dataclass(frozen=True)
class Round:
    """1[s > threshold] · f forward, the gradient straight through wherever the flag is set.

    A flagged score under the threshold still learns, and can come back.

    Attributes:
        threshold: a number, or a tensor of no dimensions that its owner may change between steps.

    Source: Rare Gems, Algorithm 1.
    """

    threshold: float | Tensor = 0.5

    def mask(self, scores: Tensor, flag: Tensor) -> Tensor:
        """What is switched on, bool."""
        return (scores > self.threshold) & flag

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return _StraightThrough.apply(scores, self.mask(scores, flag), flag)


@dataclass(frozen=True)
class Soft:
    """s · f: the scores themselves as the mask, rounded only when the search is over (`hc_quantized: False`).

    Attributes:
        threshold: at which they are rounded then.
    """

    threshold: float = 0.5

    def mask(self, scores: Tensor, flag: Tensor) -> Tensor:
        """What is switched on once rounded, bool."""
        return (scores > self.threshold) & flag

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return scores * flag


@dataclass(frozen=True)
class TopKInLayer:
    """1 for all but the int((1 − kept) · n) smallest |s| of the layer; the gradient straight through, times sign(s).

    Attributes:
        kept: the fraction of each layer that is switched on, in [0, 1].

    Source: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020 (arXiv 1911.13299).
    """

    kept: float

    def mask(self, scores: Tensor, _flag: Tensor) -> Tensor:
        """What is switched on, bool; among equals the first go."""
        magnitudes = scores.abs().flatten()
        dropped = int((1 - self.kept) * scores.numel())
        if dropped < 1:
            return torch.ones_like(scores, dtype=torch.bool)
        boundary = kth_lowest(magnitudes, dropped)
        tied = magnitudes == boundary
        tied_and_dropped = tied & (tied.cumsum(0) <= dropped - (magnitudes < boundary).sum())
        return ((magnitudes >= boundary) & ~tied_and_dropped).view_as(scores)

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return _StraightThrough.apply(scores, self.mask(scores, flag), scores.detach().sign())


@dataclass(frozen=True)
class GlobalThreshold:
    """1[|s| > θ] with one θ for all weights of the network, and one for all biases; straight through, times sign(s).

    Attributes:
        threshold: θ of the weights, a tensor of no dimensions that its owner keeps where it belongs.
        of_biases: the same of the biases, which are told by their one dimension.

    Source: Rare Gems (arXiv 2202.12002), §5 (global edge-popup).
    """

    threshold: Tensor
    of_biases: Tensor

    def mask(self, scores: Tensor, _flag: Tensor) -> Tensor:
        """What is switched on, bool."""
        return scores.abs() > (self.of_biases if scores.dim() == 1 else self.threshold)

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return _StraightThrough.apply(scores, self.mask(scores, flag), scores.detach().sign())


# ---- layers --------------------------------------------------------------------------------------------------------


class _Masked:
    """What a masked layer has beside its plain counterpart: `scores` and `flag` for the weight, the same for a bias.

    Attributes:
        scores: parameter of the weight's shape, in [0, 1].
        flag: boolean buffer of the weight's shape, True where the weight is still in play.
        bias_scores, bias_flag: the same for the bias; None without one, and where the bias is left unmasked.
        rule: how scores and flags become the factor of the weights.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    flag: Tensor
    bias_flag: Tensor | None

    def _add_scores(self) -> None:
        self.rule: Rule = Round()
        self.scores = nn.Parameter(torch.ones_like(self.weight))
        self.register_buffer("flag", torch.ones_like(self.weight, dtype=torch.bool))
        has_bias = self.bias is not None
        self.bias_scores = nn.Parameter(torch.ones_like(self.bias)) if has_bias else None
        self.register_buffer("bias_flag", torch.ones_like(self.bias, dtype=torch.bool) if has_bias else None)

    def effective_weight(self) -> Tensor:
        """The weight times its factor, as the forward pass uses it."""
        return self.weight * self.rule(self.scores, self.flag)

    def effective_bias(self) -> Tensor | None:
        """The bias times its factor, as it is where it is left unmasked, or None."""
        return self.bias if self.bias_scores is None else self.bias * self.rule(self.bias_scores, self.bias_flag)


class SubnetConv(_Masked, nn.Conv2d):
    """A 2-d convolution under a learned mask; arguments as for `torch.nn.Conv2d`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_scores()

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.effective_weight(), self.effective_bias())


class SubnetLinear(_Masked, nn.Linear):
    """A linear layer under a learned mask; arguments as for `torch.nn.Linear`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_scores()

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.effective_weight(), self.effective_bias())


class FullyConnected(nn.Conv2d):
    """A linear layer kept as a 1×1 convolution on (B, C, 1, 1), the form that published state_dicts have.

    A type of its own because `round: naive_prob` treats the first linear layer apart. Arguments as for
    `torch.nn.Conv2d`.
    """


class MaskedFullyConnected(SubnetConv):
    """`FullyConnected` under a learned mask; arguments as for `torch.nn.Conv2d`."""


class DenseConv(nn.Conv2d):
    """A convolution that stays dense: its type takes it out of all that is masked, pruned and counted."""


class DenseLinear(nn.Linear):
    """A linear layer that stays dense."""


# ---- batch norm ----------------------------------------------------------------------------------------------------

BATCH_NORMS: dict[str, Callable[[int], nn.Module]] = {
    # No scale and shift: nothing but the mask is learned in a search, and fine-tuning trains weights alone.
    "NonAffineBatchNorm": partial(nn.BatchNorm2d, affine=False),
    # Two published names of one layer: scale and shift, frozen in a search and trained in fine-tuning.
    "AffineBatchNorm": nn.BatchNorm2d,
    "LearnedBatchNorm": nn.BatchNorm2d,
}
