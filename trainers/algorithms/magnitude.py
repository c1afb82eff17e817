"""Magnitude at initialisation: keep the weights with the largest initial magnitude.

Source: Han et al., NeurIPS 2015 (arXiv 1506.02626), for the criterion; as a baseline at initialisation Frankle et al.,
ICLR 2021 (arXiv 2009.08576).
"""

from __future__ import annotations

from torch import nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state, prunable_parameters
from trainers.tickets.ticket import Ticket
from utils.masks import keep_highest
from utils.run.run import Run


def find_ticket(net: nn.Module, _data: Splits, config: Config, run: Run) -> Ticket:
    """Keep the ⌊dN⌋ weights of largest magnitude in the network; ties are broken at random."""
    scores = {name: parameter.detach().abs() for name, parameter in prunable_parameters(net).items()}
    return Ticket(plain_state(net), keep_highest(scores, config.density, run.rng("search", "ties")))
