"""Loading an algorithm's function by name.

Apart from the table, which imports nothing, so that listing the algorithms does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

from torch import nn

from args_helper import Config
from data.load import Splits
from trainers.algorithms import ALGORITHMS
from trainers.tickets.ticket import Ticket
from utils.run.run import Run
from utils.user_code import load_function, reported

FindTicket = Callable[[nn.Module, Splits, Config, Run], Ticket]
"""(plain network on its device with its weights drawn, data, options, run) -> the ticket.

The function may mask the network in place and train it by `train`, which stores stages and resumes them. It draws all
that is random from `run.rng`. On resume it is called again from its top, so it may keep nothing between its stages
but what `train` restores. Every rank calls it and has to reach the same stages.
"""


def load_algorithm(name: str) -> FindTicket:
    """Return the function of a registered algorithm or of a user's `path/to/file.py:function`.

    Raises:
        UserError: the file cannot be used or has no such function. A user's function raises it too when it fails.
    """
    if name in ALGORITHMS:
        return resolve_name(ALGORITHMS[name].function)
    path = Path(name.rpartition(":")[0])
    return reported(path, f"the algorithm in {path} failed")(load_function(name))
