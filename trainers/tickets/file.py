"""Write a ticket with what it takes to redraw its weights, read it back complete, and load it into any network.

Most searches leave the weights as drawn. Their tickets need only the seed, not four bytes per weight; weights that are
drawn again are verified by their hash.

The pipeline writes a run's ticket twice: after the search, and again with the accuracies once it is trained. For
users, `from trainers import load_ticket` is the way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import Config
from models.initialise import WeightDraw
from models.masking import layer_parameters
from models.state_files import load_weights
from trainers.tickets.format import read_stored, write_stored
from trainers.tickets.ticket import Ticket
from utils.errors import UserError
from utils.files import digest_of
from utils.masks import Masks, masked_state, remaining, total, weight_beside
from utils.rng import derive_rng

TICKET = "ticket.safetensors"
"""The name of a run's ticket file in its folder."""


def write_ticket(
    path: Path, ticket: Ticket, network: nn.Module, config: Config, metrics: Mapping[str, Any]
) -> dict[str, int]:
    """Write a ticket; if its weights are those that the config draws, store only how to redraw them.

    Args:
        path: a `.safetensors` file.
        ticket: of the network.
        network: plain.
        config: of the run.
        metrics: known by now, for the header; accuracies in percent.

    Returns:
        The sizes of the file and its parts, as `write_stored` returns them.

    Raises:
        UserError: the file cannot be written.
    """
    kept, whole = remaining(ticket.masks), total(ticket.masks)
    about = {
        "config_hash": config.config_hash,
        "algo": config.algo,
        "trial": config.trial_num,
        "options": config.of_network(),
        "weights_remaining": kept,
        "weights_total": whole,
        "density": kept / whole,
        **metrics,
    }
    return write_stored(path, ticket, about, None if config.store_weights else draw_of(ticket.state, network, config))


def read_ticket(path: Path) -> tuple[Ticket, dict[str, Any]]:
    """Read a ticket onto the CPU, redrawing weights that are not stored, and what its header says `about` it.

    Raises:
        UserError: the file does not exist, is no ticket or is damaged, or this machine draws other weights.
    """
    stored = read_stored(path)
    if stored.draw is None:
        return stored.ticket, stored.about
    try:
        return stored.with_weights(drawn_again(stored.draw, stored.shapes)), stored.about
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be loaded: {error}") from error


def read_own_ticket(path: Path, network: nn.Module) -> Ticket:
    """Read a run's own ticket onto the CPU; weights that are not stored are those of the run's fresh network.

    On another machine these may differ from the ones that the ticket was found on; its masks do not.

    Raises:
        UserError: the file does not exist, is no ticket or is damaged.
    """
    stored, own = read_stored(path), network.state_dict()
    return stored.with_weights(
        {name: own[name].to("cpu", copy=True) for name in (stored.draw or {"names": ()})["names"]}
    )


def load_ticket(path: str | Path, model: nn.Module, gem: bool = False) -> Masks:
    """Load a ticket into a network: its weights, with the pruned ones set to 0, and BatchNorm.

    Args:
        path: the ticket's file.
        model: any network whose parameters and buffers have the names and shapes of the ticket's, on any device.
        gem: load only the weights that the search had switched on, whose accuracy before training is reported; they
            can be fewer than the weights to train.

    Returns:
        The masks that were loaded: parameter name -> boolean tensor of its shape, on the parameter's device. Multiply
        the parameters by them after every training step.

    Raises:
        UserError: the file cannot be used, or does not fit the network, which is then unchanged.
    """
    ticket, about = read_ticket(Path(path))
    masks = ticket.untrained if gem else ticket.masks
    device = next(model.parameters()).device
    try:
        load_weights(model, masked_state(ticket.state, masks), path, adapt=False)
    except UserError as error:
        raise UserError(f"{error}{made_with(about)}") from error
    return {name: mask.to(device) for name, mask in masks.items()}


def made_with(about: Mapping[str, Any]) -> str:
    """Name the network and data that a ticket was found with, to end a message that it does not fit."""
    options = about.get("options")
    if not isinstance(options, dict) or not options:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in options.items())[:500]
    return f" (it was made with {''.join(letter for letter in told if letter.isprintable())})"


# ---- weights that follow from a seed -------------------------------------------------------------------------------


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


def drawn_again(draw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
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
