"""Redraws weights that a ticket file does not store, from their seed, and verifies them by their hash.

Most searches leave the weights as drawn. Their tickets need only the seed, not four bytes per weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from models.initialise import WeightDraw
from models.masking import layer_parameters
from utils.files import digest_of
from utils.masks import weight_beside
from utils.rng import derive_rng

Shapes = Mapping[str, tuple[int, ...]]


def draw_of(state: Mapping[str, Tensor], network: nn.Module, config: Config) -> dict[str, Any] | None:
    """Describe how to redraw a state's weights; None if they are not those that the config draws.

    The weights are drawn and compared, so that it does not matter whether they were trained, rewound or loaded.

    Args:
        state: of the network.
        network: plain; only the names and order of its layers are used.
        config: whose draw the weights are compared with.

    Returns:
        JSON values: the seed, the fields of `WeightDraw`, the parameters' names in drawing order, the SHA-256 of the
        drawn weights, and PyTorch's version.
    """
    names = list(layer_parameters(network))
    draw = {"seed": config.init_seed, **asdict(WeightDraw.of(config)), "names": names}
    digest = digest_of(_drawn(draw, {name: state[name].shape for name in names}).values())
    if digest != digest_of(state[name] for name in names):
        return None
    return {**draw, "sha256": digest, "torch": torch.__version__}


def drawn_again(draw: Mapping[str, Any], shapes: Shapes) -> dict[str, Tensor]:
    """Redraw the weights that `draw_of` described.

    Args:
        draw: what it returned, perhaps from an untrusted file.
        shapes: parameter name -> its shape, for the whole state.

    Returns:
        Parameter name -> float32 tensor on the CPU.

    Raises:
        ValueError: this machine draws other weights, or `draw` is invalid.
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
