"""The ticket: all that a search hands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trainers.tickets.recipe import Recipe
from utils.masks import Masks


@dataclass(frozen=True)
class Ticket:
    """A subnetwork as a search hands it on.

    Attributes:
        state: the plain network's whole state_dict at hand-over; pruned places are not zeroed, BatchNorm included.
        masks: the weights to train.
        gem: the subset of `masks` that was switched on when the search ended (before unflagging), or None for a
            method that knows no such difference.
        facts: what the search has to say for the summary, by name (JSON values).
        recipe: how it is trained, where the algorithm has a say in that; None: as the options for fine-tuning say.
    """

    state: dict[str, Tensor]
    masks: Masks
    gem: Masks | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def untrained(self) -> Masks:
        """The masks under which the ticket is judged before any weight of it was trained."""
        return self.masks if self.gem is None else self.gem

    def to(self, device: torch.device) -> Ticket:
        """The same on another device."""
        moved = [part and {name: value.to(device) for name, value in part.items()} for part in (
            self.state, self.masks, self.gem
        )]  # fmt: skip
        return replace(self, state=moved[0], masks=moved[1], gem=moved[2])
