"""Dense training: the reference every ticket is measured against, as a ticket that keeps everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from data.loader import Splits
from models.masking import plain_state, prunable_parameters
from utils.masks import Ticket, all_kept
from utils.recipe import Recipe
from utils.run import Run

if TYPE_CHECKING:
    from args_helper import Config


def find_ticket(net: nn.Module, _data: Splits, config: Config, _run: Run) -> Ticket:
    """The whole network, to be trained by `epochs`, `optimizer`, `lr`, `lr_policy` and `wd`."""
    return Ticket(plain_state(net), all_kept(prunable_parameters(net)), recipe=Recipe.of_search(config))
