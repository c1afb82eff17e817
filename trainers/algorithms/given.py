"""A ticket from a file: of an earlier run, or someone else's claim as a state_dict whose zeros are the mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from data.loader import Splits
from models.masking import plain_state, prunable_parameters
from models.pretrained import load_weights, read_state
from utils.errors import UserError
from utils.masks import Ticket, weight_beside
from utils.run import Run
from utils.tickets import is_ticket_file, read_ticket

if TYPE_CHECKING:
    from args_helper import Config


def find_ticket(net: nn.Module, _data: Splits, config: Config, _run: Run) -> Ticket:
    """The ticket in the file `ticket`, to be trained and checked by this run's own options.

    Raises:
        UserError: see `load_ticket`.
    """
    return load_ticket(net, Path(config.ticket))


def load_ticket(net: nn.Module, path: Path) -> Ticket:
    """The ticket in a file, on the network's device.

    Args:
        net: plain; it takes up the ticket's state.
        path: a ticket file, or a state_dict whose zeros are the mask.

    Raises:
        UserError: no such file, nothing in it that fits the network, or no zeros in it.
    """
    device = next(net.parameters()).device
    if not path.is_file():
        raise UserError(f"there is no file {path} (ticket)")
    if is_ticket_file(path):
        found, _ = read_ticket(path)
        load_weights(net, found.state, path)
        for masks in (found.masks, found.gem or {}):
            _check_fit(net, masks, path)
        return Ticket(plain_state(net), found.to(device).masks, found.to(device).gem)
    return _claimed(net, path)


def _claimed(net: nn.Module, path: Path) -> Ticket:
    """The ticket of a state_dict: weights that are exactly 0 are pruned.

    What stood in the pruned places is not known; it is filled in as this run draws weights, so that a twin whose mask
    is permuted finds weights of the same kind there.
    """
    drawn = plain_state(net)
    load_weights(net, read_state(path), path)
    state = plain_state(net)
    masks = {name: state[name] != 0 for name in prunable_parameters(net)}
    if all(bool(mask.all()) for mask in masks.values()):
        raise UserError(f"{path} is a state_dict without a zero: its zeros would be the mask")
    dead = [name for name, mask in masks.items() if weight_beside(name) == name and not bool(mask.any())]
    if len(dead) == sum(weight_beside(name) == name for name in masks):
        raise UserError(f"{path} is a state_dict of nothing but zeros")
    filled = {name: state[name].where(mask, drawn[name]) for name, mask in masks.items()}
    return Ticket({**state, **filled}, masks)


def _check_fit(net: nn.Module, masks: dict, path: Path) -> None:
    shapes = {name: parameter.shape for name, parameter in prunable_parameters(net).items()}
    wrong = [name for name, mask in masks.items() if shapes.get(name) != mask.shape]
    if wrong or (masks and set(masks) != set(shapes)):
        missing = [name for name in shapes if name not in masks]
        raise UserError(f"the masks in {path} do not fit the network: {', '.join([*wrong, *missing][:6])}")
