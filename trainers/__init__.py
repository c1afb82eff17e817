"""Find tickets, train them under masks and run their sanity checks; `pipeline` combines these steps.

Read `pipeline` first, then `tickets.ticket`, then `training.training` and `training.loop`, then one algorithm. Every
mode of `main.py` is a function here that takes the options (a `Config`) and prints its result. This file imports
nothing at once, so that `args_helper` can read the table of algorithms without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.notebook import mine
    from trainers.tickets.file import load_ticket

__all__ = ["load_ticket", "mine"]

_PUBLIC = {"load_ticket": "trainers.tickets.file", "mine": "trainers.notebook"}
"""Name that notebooks import from here -> the module that defines it; imported, with torch, on first use."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
