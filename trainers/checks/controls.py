"""Sanity checks, Ticket -> Ticket: each makes a control network, which is then trained exactly as the ticket was.

If mask and weights matter, the control networks are less accurate than the ticket.

A check gets (ticket, the run's options, a generator on the CPU). It changes prunable parameters or their masks only:
BatchNorm and biases without a mask stay as in the ticket, and so does the number of kept entries in every layer. The
control network has no gem, recipe or facts of its own; whoever trains it takes the ticket's recipe. Nothing is stored:
a resumed run derives it again from the same random stream.

Source: Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?", ICLR 2021
(arXiv 2009.08576); Rare Gems (arXiv 2202.12002), §5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from args_helper import Config
from models.initialise import WeightDraw
from trainers.tickets.ticket import Ticket
from utils.masks import weight_beside


def weight_reinit(ticket: Ticket, config: Config, generator: torch.Generator) -> Ticket:
    """Keep the masks and redraw the weights by the run's own init."""
    draw = WeightDraw.of(config)
    state = dict(ticket.state)
    for name in ticket.masks:
        shape = ticket.state[weight_beside(name)].shape
        state[name] = draw.parameter(name, shape, generator).to(state[name])
    return Ticket(state, ticket.masks)


def mask_shuffle(ticket: Ticket, _config: Config, generator: torch.Generator) -> Ticket:
    """Keep the weights and permute each layer's mask: a random ticket with the same count in every layer."""
    masks = {}
    for name, mask in ticket.masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        masks[name] = mask.flatten()[order].view_as(mask)
    return Ticket(ticket.state, masks)


def weight_shuffle(ticket: Ticket, _config: Config, generator: torch.Generator) -> Ticket:
    """Keep the masks and permute each layer's kept weights among its kept entries."""
    state = dict(ticket.state)
    for name, mask in ticket.masks.items():
        survivors = ticket.state[name][mask]
        order = torch.randperm(survivors.numel(), generator=generator).to(mask.device)
        state[name] = ticket.state[name].clone()
        state[name][mask] = survivors[order]
    return Ticket(state, ticket.masks)


CHECKS: dict[str, Callable[[Ticket, Config, torch.Generator], Ticket]] = {
    "weight_reinit": weight_reinit,
    "mask_shuffle": mask_shuffle,
    "weight_shuffle": weight_shuffle,
}
"""Name -> check, in the order in which their control networks are trained; the names are those of their stages."""
