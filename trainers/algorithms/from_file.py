"""Tickets from a file: a ticket file of an earlier run, or any state_dict, whose zeros are the mask.

`find_ticket` is the algorithm `given`; `--evaluate --ticket` reads tickets by `ticket_for` too. Which of the two kinds
a file is shows in its contents, not in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from args_helper import OPTIONS, Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from models.state_files import load_weights, read_state
from trainers.tickets.file import made_with, read_ticket
from trainers.tickets.format import is_ticket_file, require_file
from trainers.tickets.ticket import Ticket
from utils.errors import UserError, abbreviate
from utils.masks import Masks, remaining
from utils.run.run import Run


def find_ticket(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Load the ticket in the file `ticket`, to be trained and checked by this run's options.

    Raises:
        UserError: see `ticket_for`.
    """
    return ticket_for(net, config, run.rng("ticket", "last layer"))


def ticket_for(net: nn.Module, config: Config, generator: torch.Generator) -> Ticket:
    """Load the ticket in the file `ticket` onto the network's device.

    If the data have another number of classes, the last layer is redrawn: its weights as this run draws them, its mask
    at random with the ticket's density in that layer. If the network's BatchNorms have scales and shifts, and the
    ticket's have none, they begin at 1 and 0.

    Args:
        net: plain; the ticket's state is loaded into it.
        config: its `ticket` is a ticket file, or a state_dict whose zeros are the mask.
        generator: on the CPU; draws the mask of a redrawn last layer.

    Returns:
        The ticket: of a ticket file with its gem, but without the recipe and facts of the run that wrote it.

    Raises:
        UserError: the file does not exist or does not fit the network; or the state_dict has no zeros, or only zeros.
    """
    require_file(path := Path(config.ticket))
    if not is_ticket_file(path):
        return _claimed(net, path, generator)
    found, about = read_ticket(path)
    try:
        load_weights(net, {**_new_scales(net, found.state), **found.state}, path)
        masks, gem = _fitted(net, found, path, generator)
    except UserError as error:
        raise UserError(f"{_cause(about, config)}{error}{made_with(about)}") from error
    return Ticket(plain_state(net), masks, gem).to(next(net.parameters()).device)


def _cause(about: Mapping[str, Any], config: Config) -> str:
    """Begin a message that a ticket does not fit: name the options of its network that are given otherwise."""
    options = about.get("options")
    of_network = ("arch", "width", "hidden_size", "bias") if isinstance(options, dict) and options else ()
    made = {name: options.get(name, OPTIONS[name].default) for name in of_network}
    return "".join(
        f"the ticket is of {name} {abbreviate(made[name])}, and {_instead(name, made[name], getattr(config, name))}; "
        for name in made
        if made[name] != getattr(config, name)
    )


def _instead(name: str, made: Any, given: Any) -> str:
    """Say what to do about an option of a ticket's network. One that names a file is never taken from the ticket."""
    if ".py:" in str(made):
        return f"a ticket does not choose which code runs: give --{name} {abbreviate(made)} if you trust that file"
    return f"--{name} says {given}: leave --{name} out"


def _new_scales(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's scales (1) and shifts (0) of BatchNorms that have none in the ticket's state, for `bn_type`."""
    return {
        f"{layer}.{name}": parameter.detach()
        for layer, module in net.named_modules()
        if f"{layer}.running_mean" in state
        for name, parameter in module.named_parameters(recurse=False)
        if f"{layer}.{name}" not in state
    }


def _claimed(net: nn.Module, path: Path, generator: torch.Generator) -> Ticket:
    """Make a ticket from a state_dict: weights that are exactly 0 are pruned.

    The values of the pruned weights are unknown. They are filled in as this run draws weights, so that control
    networks with permuted masks find weights of the same kind there.
    """
    drawn = plain_state(net)
    found = read_state(path)
    load_weights(net, found, path)
    masks = {name: found[name] != 0 for name in prunable_parameters(net)}
    if all(bool(mask.all()) for mask in masks.values()):
        raise UserError(f"{path} is a state_dict without a zero: its zeros would be the mask")
    if not remaining(masks):
        raise UserError(f"{path} is a state_dict of nothing but zeros")
    masks, _ = _fitted(net, Ticket(found, masks), path, generator)
    ticket = Ticket(plain_state(net), masks).to(next(net.parameters()).device)
    filled = {name: ticket.state[name].where(mask, drawn[name]) for name, mask in ticket.masks.items()}
    return replace(ticket, state={**ticket.state, **filled})


def _fitted(net: nn.Module, ticket: Ticket, path: Path, generator: torch.Generator) -> tuple[Masks, Masks | None]:
    """The ticket's masks and gem; a layer of another shape gets random masks of the same density."""
    shapes = {name: parameter.shape for name, parameter in prunable_parameters(net).items()}
    wrong = [name for name in {**ticket.masks, **shapes} if name not in shapes or name not in ticket.masks]
    if wrong:
        raise UserError(f"the masks in {path} do not fit the network: {', '.join(wrong[:6])}")
    masks, gem = dict(ticket.masks), ticket.gem and dict(ticket.gem)
    for name in shapes:
        if masks[name].shape == shapes[name]:
            continue
        order = torch.randperm(shapes[name].numel(), generator=generator)
        for kind in (masks, gem):
            if kind is not None:  # one order for both, so that the gem stays a subset of the masks
                count = round(float(kind[name].float().mean()) * len(order))
                kind[name] = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, order[:count], True)
                kind[name] = kind[name].view(shapes[name])
    return masks, gem
