"""Algorithms by name. The table holds plain strings, so that listing the names imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import Diverged, Stopped, UserError
from utils.own import complaint, load_function

if TYPE_CHECKING:
    from torch import nn

    from args_helper import Config
    from data.loader import Splits
    from utils.masks import Ticket
    from utils.run import Run

    FindTicket = Callable[[nn.Module, Splits, Config, Run], Ticket]

ALGORITHMS = {
    "hc": "trainers.algorithms.hypercube:find_ticket",
    "hc_iter": "trainers.algorithms.hypercube:find_ticket",
    "ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep": "trainers.algorithms.edge_popup:find_ticket",
    "global_ep_iter": "trainers.algorithms.edge_popup:find_ticket",
    "cts": "trainers.algorithms.cts:find_ticket",
    "imp": "trainers.algorithms.imp:find_ticket",
    "training": "trainers.algorithms.dense:find_ticket",
    "smart_ratio": "trainers.algorithms.smart_ratio:find_ticket",
    "random": "trainers.algorithms.random_mask:find_uniform_ticket",
    "random_erk": "trainers.algorithms.random_mask:find_erk_ticket",
    "random_subnet": "trainers.algorithms.random_mask:find_random_subnet",
    "magnitude": "trainers.algorithms.magnitude:find_ticket",
    "snip": "trainers.algorithms.snip:find_ticket",
    "grasp": "trainers.algorithms.grasp:find_ticket",
    "synflow": "trainers.algorithms.synflow:find_ticket",
    "given": "trainers.algorithms.given:find_ticket",
}
"""Name -> module:function with the signature `find_ticket(net, data, config, run) -> Ticket`."""

CTS_SEARCH = {"optimizer": "adam", "lr": 0.1, "lr_policy": "multistep_lr", "wd": 0.0}
"""How the authors of `cts` run its search: what these options are for it unless they are given."""


def load_algorithm(name: str) -> FindTicket:
    """The function of a registered algorithm, or that of a user's own `path/to/file.py:function`.

    Raises:
        UserError: the file cannot be used, or has no such function; or, when the user's own is called, it fails.
    """
    if name not in ALGORITHMS:
        return _guarded(load_function(name), Path(name.rpartition(":")[0]))
    module, _, function = ALGORITHMS[name].partition(":")
    return getattr(import_module(module), function)


def _guarded(find_ticket: FindTicket, path: Path) -> FindTicket:
    def guarded(*args: Any) -> Ticket:
        try:
            return find_ticket(*args)
        except (UserError, Stopped, Diverged):
            raise
        except Exception as error:
            raise UserError(f"the algorithm in {path} failed: {complaint(error, path)}") from error

    return guarded
