"""Algorithms by name. The table holds plain strings, so that listing the names imports nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, meant

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


def load_algorithm(name: str) -> FindTicket:
    """The function of a registered algorithm, or that of a user's own `path/to/file.py:function`.

    Raises:
        UserError: the file cannot be imported, or has no such function.
    """
    place, _, function = ALGORITHMS.get(name, name).rpartition(":")
    if name in ALGORITHMS:
        return getattr(import_module(place), function)
    path = Path(place)
    spec = spec_from_file_location(f"algorithm_{path.stem}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does; dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is not our code: whatever it raises is said with its place
        raise UserError(f"algo {name}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"algo {name}: {path} has no function '{function}'{meant(function, known)}")
    return found
