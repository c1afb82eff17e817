"""Tickets to take home: written with what it takes to draw their weights again, read whole, put into any network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from args_helper import Config
from models.state_files import load_weights
from trainers.tickets.format import Stored, read_stored, write_stored
from trainers.tickets.redraw import draw_of, drawn_again
from trainers.tickets.ticket import Ticket
from utils.errors import UserError
from utils.masks import Masks, masked_state, remaining, total

TICKET = "ticket.safetensors"
"""A run's ticket, in its folder."""


def write_ticket(
    path: Path, ticket: Ticket, network: nn.Module, config: Config, figures: Mapping[str, Any]
) -> dict[str, int]:
    """Write a ticket; weights that are those of the config's draw are not stored, but the draw.

    Args:
        path: a `.safetensors` file.
        ticket: of the network.
        network: plain.
        config: of the run.
        figures: what is known of it by now, for the header.

    Returns:
        The sizes of the file and its parts, as `write_stored` has them.
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
        **figures,
    }
    return write_stored(path, ticket, about, None if config.store_weights else draw_of(ticket.state, network, config))


def read_ticket(path: Path) -> tuple[Ticket, dict[str, Any]]:
    """A ticket, its weights drawn again where only their draw is stored; on the CPU; and what was written about it.

    Raises:
        UserError: no such file, no ticket in it, it is damaged, or other weights are drawn here.
    """
    stored = read_stored(path)
    return _whole(stored, path), stored.about


def _whole(stored: Stored, path: Path) -> Ticket:
    if stored.draw is None:
        return stored.ticket
    try:
        return stored.with_weights(drawn_again(stored.draw, stored.shapes))
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be taken up: {error}") from error


def load_ticket(path: str | Path, model: nn.Module, gem: bool = False) -> Masks:
    """Put a ticket into a network: its weights, those that it prunes being 0, and BatchNorm.

    Args:
        path: the ticket's file.
        model: any network whose parameters and buffers have the names and shapes of the ticket's, on any device.
        gem: put in only what the search had switched on, which is what the accuracy before training is of, where that
            is fewer than what is to be trained.

    Returns:
        The masks that were put in: parameter name -> boolean tensor of its shape, on the parameter's device. Multiply
        the parameters by them after every step of a training.

    Raises:
        UserError: the file cannot be used, or does not fit the network, which is then left as it was.
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
    """The network and the data a ticket was found with, in words, to end a message of a misfit."""
    options = about.get("options")
    if not isinstance(options, dict) or not options:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in options.items())[:500]
    return f" (it was made with {''.join(letter for letter in told if letter.isprintable())})"
