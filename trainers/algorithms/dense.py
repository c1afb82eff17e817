"""Dense training: the reference for every ticket, as a ticket that keeps all weights.

Being a ticket, it is trained, measured and summarised by the code that all others are; its recipe makes that training
follow the options of the search instead of those of fine-tuning.
"""

from __future__ import annotations

from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from utils.masks import all_kept
from utils.run.run import Run


def find_ticket(net: nn.Module, _data: Splits, config: Config, _run: Run) -> Ticket:
    """Return the dense network as a ticket, to be trained by `epochs`, `optimizer`, `lr`, `lr_policy` and `wd`."""
    return Ticket(plain_state(net), all_kept(prunable_parameters(net)), recipe=Recipe.of_search(config))
