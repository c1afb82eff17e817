"""Masked layers, the rules that turn scores into masks, the BatchNorm types, and what networks share.

A masked layer computes with w · rule(scores, flag) in place of its weight w, and the same for a bias that is masked.
`models.masking` puts these layers into a network; an algorithm chooses the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.masks import kth_lowest

# ---- rules: scores and flags -> factors of the weights -------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """Straight-through estimator: returns the mask; its backward pass sends gradient · gate to the scores.

    The gradient of a mask is 0 almost everywhere, so it is replaced. With g the gradient of the effective weight
    w · mask, autograd hands on g · w, and the scores get g · w · gate. Scores, mask and gate have the weight's shape;
    the gate is the flag (bool) or the sign of the scores.

    Source: Bengio et al. 2013 (arXiv 1308.3432); Rare Gems, Algorithm 1.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)  # usually the flag buffer itself, so this takes no extra memory
        return mask.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gate,) = ctx.saved_tensors
        return gradient * gate, None, None


class Rule(Protocol):
    """Turns the scores and flags of a layer's weight or bias into a mask, and into the factor in the forward pass.

    Scores and flags have the shape of the parameter: (out, in, h, w) or (out, in) of a weight, (out,) of a bias. Layers
    call the rule in every forward pass, which may be compiled: it may not read a value from the device, nor change
    anything. A rule that needs a changing threshold holds a tensor, into which its owner writes between steps.
    """

    def mask(self, scores: Tensor, flag: Tensor) -> Tensor:
        """Return the mask: bool, of the scores' shape, which is the weight's or the bias's shape."""

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        """Return the factor of the weights, of the scores' shape and differentiable with respect to the scores."""


@dataclass(frozen=True)
class Round:
    """Round scores s under flags f: factor 1[s > threshold] · f, straight-through gradient where the flag is set.

    A flagged score at or below the threshold still gets a gradient, so its weight can come back.

    Attributes:
        threshold: a number, or a tensor without dimensions that its owner may change between steps.

    Source: Rare Gems, Algorithm 1.
    """

    threshold: float | Tensor = 0.5

    def mask(self, scores: Tensor, flag: Tensor) -> Tensor:
        """Return the mask, bool."""
        return (scores > self.threshold) & flag

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return _StraightThrough.apply(scores, self.mask(scores, flag), flag)


class Soft(Round):
    """Use the scores themselves, s · f, as the factor; they are rounded only after the search (`hc_quantized: False`).

    `threshold` and `mask` are those of the rounding after the search.
    """

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return scores * flag


@dataclass(frozen=True)
class TopKInLayer:
    """Keep all but the int((1 − kept) · n) smallest |s| of each layer; straight-through gradient times sign(s).

    Attributes:
        kept: the fraction of each layer's scores to keep, in [0, 1].

    Source: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020 (arXiv 1911.13299).
    """

    kept: float

    def mask(self, scores: Tensor, _flag: Tensor) -> Tensor:
        """Return the mask, bool; among ties the first entries are dropped."""
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
    """Keep |s| > θ, with one θ for all weights and one for all biases; straight-through gradient times sign(s).

    Attributes:
        threshold: θ of the weights, a tensor without dimensions that its owner updates.
        of_biases: the same for biases, which are recognised by having one dimension.

    Source: Rare Gems (arXiv 2202.12002), §5 (global edge-popup).
    """

    threshold: Tensor
    of_biases: Tensor

    def mask(self, scores: Tensor, _flag: Tensor) -> Tensor:
        """Return the mask, bool."""
        return scores.abs() > (self.of_biases if scores.dim() == 1 else self.threshold)

    def __call__(self, scores: Tensor, flag: Tensor) -> Tensor:
        return _StraightThrough.apply(scores, self.mask(scores, flag), scores.detach().sign())


# ---- layers --------------------------------------------------------------------------------------------------------


class _Masked:
    """What a masked layer adds to its plain counterpart: scores, flags and a rule; arguments as for the counterpart.

    Attributes:
        bias_is_free: whether the bias is unmasked.
        scores: parameter of the weight's shape, in [0, 1].
        flag: boolean buffer of the weight's shape, True where the weight is unpruned.
        bias_scores, bias_flag: the same for the bias; None without a bias or for an unmasked one.
        rule: turns scores and flags into the factor of the weights.
    """

    bias_is_free = False
    rule: Rule = Round()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_scores()

    def add_scores(self) -> None:
        """Add scores and flags of ones, on the device of weight and bias; those that there were are replaced."""
        for prefix, parameter in (("", self.weight), ("bias_", None if self.bias_is_free else self.bias)):
            scores = None if parameter is None else nn.Parameter(torch.ones_like(parameter))
            flag = None if parameter is None else torch.ones_like(parameter, dtype=torch.bool)
            self.register_parameter(f"{prefix}scores", scores)
            self.register_buffer(f"{prefix}flag", flag)

    def effective_weight(self) -> Tensor:
        """Return the weight times its factor, as the forward pass uses it."""
        return self.weight * self.rule(self.scores, self.flag)

    def effective_bias(self) -> Tensor | None:
        """Return the bias times its factor, an unmasked bias unchanged, or None without a bias."""
        return self.bias if self.bias_scores is None else self.bias * self.rule(self.bias_scores, self.bias_flag)


class SubnetConv(_Masked, nn.Conv2d):
    """A 2-d convolution under a learned mask; arguments, and shapes of images, as for `torch.nn.Conv2d`."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.effective_weight(), self.effective_bias())


class SubnetLinear(_Masked, nn.Linear):
    """A linear layer under a learned mask; arguments as for `torch.nn.Linear`."""

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.effective_weight(), self.effective_bias())


class FullyConnected(nn.Conv2d):
    """A linear layer as a 1×1 convolution on (B, C, 1, 1), the shape that published state_dicts have.

    It is a separate type because `round: naive_prob` treats the first linear layer differently. Arguments as for
    `torch.nn.Conv2d`.
    """


class MaskedFullyConnected(SubnetConv):
    """`FullyConnected` under a learned mask; arguments as for `torch.nn.Conv2d`."""


class DenseConv(nn.Conv2d):
    """A convolution that stays dense: because of its type it is not masked, pruned or counted."""


class DenseLinear(nn.Linear):
    """A linear layer that stays dense."""


def projection_strides(channels: int, stride: int) -> tuple[int, int]:
    """Divide the stride of a 1×1 convolution: into that of the pixels it is given, and its own.

    The result is the same. With less than 8 channels in channels_last, the gradient of a strided one overflows a buffer
    on processors with AVX2 and without AVX-512: it is wrong, or the process crashes.

    Args:
        channels: of its input.
        stride: the whole.

    Source: seen with PyTorch 2.14; oneDNN's issue 6035.
    """
    return (stride, 1) if channels < 8 else (1, stride)


# ---- BatchNorm -----------------------------------------------------------------------------------------------------

BATCH_NORMS: dict[str, Callable[[int], nn.Module]] = {
    # Without scale and shift: a search learns only the mask, and fine-tuning trains only weights.
    "NonAffineBatchNorm": partial(nn.BatchNorm2d, affine=False),
    # Two published names of one layer: its scale and shift are frozen in a search and trained in fine-tuning.
    "AffineBatchNorm": nn.BatchNorm2d,
    "LearnedBatchNorm": nn.BatchNorm2d,
}
