"""Draws weights and scores, always on the CPU, so that a seed gives the same network on any device.

`build_model` draws the weights of a run, the searches draw their scores, and the check `weight_reinit` and ticket files
draw weights again. Each parameter takes its numbers from one generator in network order, so the order is part of the
result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from models.masking import layer_parameters, masked_layers
from utils.masks import is_bias, weight_beside

# Whatever a notebook has set as PyTorch's default type and device: others would give other numbers.
_SINGLE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@dataclass(frozen=True)
class WeightDraw:
    """The distribution that weights are drawn from.

    Attributes:
        init: `signed_constant` (± gain/√fan with equal probability), `unsigned_constant` (+ gain/√fan),
            `kaiming_normal`, `kaiming_uniform`, `xavier_normal`, `xavier_constant` (± the standard deviation of
            xavier_normal) or `standard` (PyTorch's default: Kaiming-uniform with a = √5).
        mode: `fan_in` or `fan_out`.
        nonlinearity: a name that `torch.nn.init.calculate_gain` knows.
        kept: in (0, 1]; multiplies the fan (`scale_fan`) of signed_constant, unsigned_constant and kaiming_normal.

    Source: He et al. 2015 (arXiv 1502.01852), Glorot & Bengio 2010; signed constants: Ramanujan et al., CVPR 2020,
    and Zhou et al., NeurIPS 2019.
    """

    init: str
    mode: str = "fan_in"
    nonlinearity: str = "relu"
    kept: float = 1.0

    @classmethod
    def of(cls, config: Config) -> WeightDraw:
        """Make the distribution that a config asks for."""
        return cls(config.init, config.mode, config.nonlinearity, 1.0 - config.prune_rate if config.scale_fan else 1.0)

    def parameter(self, name: str, weight_shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Draw a weight of shape (out, in, ...), or its layer's bias (out,), always from U[−1/√fan_in, 1/√fan_in].

        Args:
            name: of the parameter; ending in `.bias` for a bias.
            weight_shape: of the layer's weight, for its bias too: the fan is the weight's.
            generator: on the CPU.

        Returns:
            float32 on the CPU.
        """
        fan_in, fan_out = _fans(weight_shape)
        if is_bias(name):
            return _uniform(weight_shape[:1], 1.0 / math.sqrt(fan_in), generator)
        gain, fan = nn.init.calculate_gain(self.nonlinearity), fan_in if self.mode == "fan_in" else fan_out
        # Nothing is kept of the fan only where the distribution does not scale it.
        kaiming = gain / math.sqrt(self.kept * fan) if self.kept else math.nan
        xavier = math.sqrt(2.0 / (fan_in + fan_out))
        draw, scale = {
            "signed_constant": (_signed_constant, kaiming),
            "unsigned_constant": (_constant, kaiming),
            "kaiming_normal": (_normal, kaiming),
            "kaiming_uniform": (_uniform, math.sqrt(3.0) * (gain / math.sqrt(fan))),
            "xavier_normal": (_normal, xavier),
            "xavier_constant": (_signed_constant, xavier),
            "standard": (_uniform, 1.0 / math.sqrt(fan_in)),
        }[self.init]
        return draw(weight_shape, scale, generator)


def draw_weights(network: nn.Module, generator: torch.Generator, how: WeightDraw) -> None:
    """Draw every weight and bias of the convolutions and linear layers again, in place, in network order.

    Args:
        network: plain or masked, on any device; layers that stay dense and biases without a mask are drawn too.
        generator: on the CPU.
        how: the distribution.
    """
    for name, parameter in layer_parameters(network).items():
        if not parameter.is_meta:  # on the meta device a parameter has a shape and no values
            shape = network.get_parameter(weight_beside(name)).shape
            parameter.data.copy_(how.parameter(name, shape, generator))


def draw_scores(network: nn.Module, generator: torch.Generator, how: str) -> None:
    """Draw the scores of all masked layers in place: first for all weights, then for all biases, in network order.

    Args:
        network: masked.
        generator: on the CPU.
        how: `unif` U[0, 1], `half` (all 0.5), `all_one`, `bern` (0 or 1 with equal probability), `bimodal`
            Beta(0.1, 0.1), `skew` Beta(1, 5), or `signed` U[−1/√fan_in, 1/√fan_in] (Kaiming-uniform with a = √5; for
            biases U[−1, 1]).
    """
    layers = masked_layers(network).values()
    scores = [layer.scores for layer in layers] + [layer.bias_scores for layer in layers]
    for parameter in scores:
        if parameter is not None:
            parameter.data.copy_(_SCORE_DRAWS[how](parameter.shape, generator))


def _bernoulli(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator, **_SINGLE)


def _bimodal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    # Jöhnk 1964: given X + Y <= 1, X / (X + Y) is Beta(a, b) for X = U^(1/a), Y = V^(1/b). Computed in logarithms, as
    # U^10 underflows; for a = b = 0.1 nearly every pair is accepted. PyTorch's Beta takes no generator.
    drawn = torch.empty(shape, dtype=torch.float64, device="cpu")
    flat = drawn.view(-1)
    missing = torch.arange(flat.numel(), device="cpu")
    while missing.numel():
        x, y = 10.0 * torch.rand((2, missing.numel()), generator=generator, dtype=torch.float64, device="cpu").log()
        accepted = torch.logaddexp(x, y) <= 0
        flat[missing[accepted]] = torch.sigmoid(x - y)[accepted]
        missing = missing[~accepted]
    return drawn.float()


def _skew(shape: torch.Size, generator: torch.Generator) -> Tensor:
    # Inverts the distribution function of Beta(1, 5), 1 - (1 - s)^5; 1 - u is uniform because u is.
    return 1.0 - torch.rand(shape, generator=generator, **_SINGLE) ** 0.2


def _signed(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return _uniform(shape, 1.0 / math.sqrt(_fans(shape)[0]) if len(shape) > 1 else 1.0, generator)


_SCORE_DRAWS = {
    "unif": lambda shape, generator: torch.rand(shape, generator=generator, **_SINGLE),
    "half": lambda shape, generator: torch.full(shape, 0.5, **_SINGLE),
    "all_one": lambda shape, generator: torch.ones(shape, **_SINGLE),
    "bern": _bernoulli,
    "bimodal": _bimodal,
    "skew": _skew,
    "signed": _signed,
}


def _fans(shape: torch.Size) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight of shape (out, in, ...)."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def _constant(shape: torch.Size, scale: float, _generator: torch.Generator) -> Tensor:
    return torch.full(shape, scale, **_SINGLE)


def _signed_constant(shape: torch.Size, scale: float, generator: torch.Generator) -> Tensor:
    return (_bernoulli(shape, generator) * 2 - 1) * scale


def _normal(shape: torch.Size, scale: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, **_SINGLE) * scale


def _uniform(shape: torch.Size, scale: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, **_SINGLE).uniform_(-scale, scale, generator=generator)
