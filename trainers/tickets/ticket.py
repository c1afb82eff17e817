"""The ticket: the result of a search, and the only thing that it hands on.

The pipeline measures it, writes it, trains it, and makes control networks of it, for all algorithms by the same code.
"""

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
    """A subnetwork that a search found.

    `masks` and `gem` map a parameter's name to a boolean tensor of its shape, for the same prunable weights (and
    biases, with `bias`). All tensors are on one device.

    Attributes:
        state: the plain network's whole state_dict after the search, BatchNorm included; pruned weights are not zeroed.
        masks: the weights to train.
        gem: the subset of `masks` that was switched on when the search ended (before unflagging), or None for
            algorithms without this distinction.
        facts: what the search adds to the summary, by name (JSON values).
        recipe: how to train it, if the algorithm decides that; None: by the options for fine-tuning.
    """

    state: dict[str, Tensor]
    masks: Masks
    gem: Masks | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def untrained(self) -> Masks:
        """The masks for the accuracy before training: the gem, or the masks if there is none."""
        return self.masks if self.gem is None else self.gem

    def to(self, device: torch.device) -> Ticket:
        """The same ticket on another device."""
        moved = [part and {name: value.to(device) for name, value in part.items()} for part in (
            self.state, self.masks, self.gem
        )]  # fmt: skip
        return replace(self, state=moved[0], masks=moved[1], gem=moved[2])
