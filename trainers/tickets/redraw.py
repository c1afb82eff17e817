"""Weights that a ticket need not carry: drawn from a seed, they can be drawn again, and are known by their hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from models.initialise import WeightDraw
from models.masking import layer_parameters
from trainers.tickets.format import digest_of
from utils.masks import weight_beside
from utils.rng import derive_rng

Shapes = Mapping[str, tuple[int, ...]]


def draw_of(state: Mapping[str, Tensor], network: nn.Module, config: Config) -> dict[str, Any] | None:
    """What it takes to draw a state's weights again; None where they are no longer those that the config draws.

    Whether they were trained, rewound, or loaded from elsewhere need not be known: what is drawn is compared.

    Args:
        state: of the network.
        network: plain; its layers' names and their order are looked at.
        config: that drew its weights, or not.

    Returns:
        JSON values: the seed, the arguments of `WeightDraw`, the parameters' names in the order of the draw, and the
        SHA-256 of what is drawn.
    """
    names = list(layer_parameters(network))
    how = WeightDraw.arguments_of(config)
    drawn = _drawn({"seed": config.init_seed, **how, "names": names}, {name: state[name].shape for name in names})
    digest = digest_of(drawn.values())
    if digest != digest_of(state[name] for name in names):
        return None
    return {"seed": config.init_seed, **how, "names": names, "sha256": digest, "torch": torch.__version__}


def drawn_again(draw: Mapping[str, Any], shapes: Shapes) -> dict[str, Tensor]:
    """The weights that `draw_of` told how to draw.

    Raises:
        ValueError: other weights are drawn here, or it tells of no draw.
    """
    drawn = _drawn(draw, {name: torch.Size(shapes[name]) for name in draw["names"]})
    if digest_of(drawn.values()) != draw["sha256"]:
        raise ValueError(
            f"its weights are drawn from a seed, and with this version of PyTorch ({torch.__version__}; it was written "
            f"with {str(draw.get('torch'))[:40]}) or on this kind of processor other weights are drawn; have it "
            "written with --store_weights"
        )
    return drawn


def _drawn(draw: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    how = WeightDraw(**{name: draw[name] for name in ("init", "mode", "nonlinearity", "kept")})
    generator = derive_rng(draw["seed"], "init", "weights")
    return {name: how.parameter(name, shapes[weight_beside(name)], generator) for name in draw["names"]}
