"""Training of weights under masks that change while the weights train."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from args_helper import Config
from data.load import Splits
from models.masking import plain_state
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import train
from trainers.training.weights import WeightTraining
from utils.errors import UserError
from utils.masks import Masks, per_layer
from utils.run.run import Run

RandomAt = Callable[[int], torch.Generator]
"""Step of the training -> the generator for a change of the masks at it."""


class MovingMasks(WeightTraining):
    """Trains the unpruned weights, and changes the masks now and then.

    Pruned weights are 0 and have neither gradient nor momentum, so that a weight that is grown starts from 0 afresh.

    Args:
        network: plain, on its device.
        masks: to begin with.
        config: how to train, by the options of the search.
        steps: of an epoch.
        random_at: makes the generators that break ties and choose at random.

    Attributes:
        masks: of the weights that train at present.
        step: the number of steps that were taken, from the first epoch of the schedule on.
    """

    younger_state = ("counted", "summed")

    def __init__(self, network: nn.Module, masks: Masks, config: Config, steps: int, random_at: RandomAt) -> None:
        self._config, recipe = config, Recipe.of_search(config)
        self._begun = Ticket(plain_state(network), masks, recipe=recipe)
        super().__init__(network, self._begun, recipe)
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.random_at = random_at
        self.step = recipe.first_epoch * steps
        self._counted: int = 0
        self._summed: dict[str, float] = {}

    @classmethod
    def searched(cls, net: nn.Module, masks: Masks, data: Splits, config: Config, run: Run, stream: str) -> Self:
        """Train a network in the stage `search`, to its end.

        Args:
            net: plain, on its device.
            masks: to begin with.
            data: what to train on.
            config: as for the class.
            run: where the stage is stored.
            stream: name of the random stream for the changes of the masks.
        """
        training = cls(net, masks, config, len(data.train), partial(run.rng, "search", stream, 0))
        train(run, "search", training, data, config.epochs, config.start_epoch)
        return training

    def before_step(self, _step: int) -> None:
        """Count the layers' densities in the forward pass of this step."""
        self._counted += 1
        for name, share in super().layer_densities().items():
            self._summed[name] = self._summed.get(name, 0.0) + share

    def update(self) -> None:
        """Take the optimizer's step on the unpruned weights."""
        torch._foreach_mul_([parameter.grad for parameter in self._masked], self._factors)
        super().update()

    def after_step(self) -> None:
        """Mask the pruned weights and count the step."""
        super().after_step()
        self.step += 1

    def before_epoch(self, _epoch: int) -> None:
        """Begin to average the layers' densities."""
        self._counted, self._summed = 0, {}

    def layer_densities(self) -> dict[str, float]:
        """The density of every masked layer, averaged over the steps of the epoch."""
        return {name: share / self._counted for name, share in self._summed.items()}

    @torch.no_grad()
    def set_masks(self, masks: Masks) -> None:
        """Prune and grow weights: those that are pruned lose their value and momentum."""
        self.masks = masks
        for factors, mask in zip(self._factors, masks.values()):
            factors.copy_(mask)
        self._layers = per_layer(masks)
        self.mask_weights()
        for parameter, factors in zip(self._masked, self._factors):
            # `get`: looking up a parameter without a state would make it an empty one, which no checkpoint may have.
            for kept in self.optimizer.state.get(parameter, {}).values():
                if isinstance(kept, Tensor) and kept.shape == parameter.shape:
                    kept.mul_(factors)

    def ticket(self, **facts: Any) -> Ticket:
        """Return the masks, on the weights that the training began with; its own training has been done already."""
        return replace(self._begun, masks=self.masks, facts=facts)

    def state(self) -> dict[str, Any]:
        """The state of a Training, the masks, the steps so far, and the densities of those of this epoch."""
        own = {"masks": self.masks, "step": self.step, "counted": self._counted, "summed": self._summed}
        return {**super().state(), **own}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        super().load_state(state)
        self.step = state["step"]
        self._counted, self._summed = state.get("counted", 0), dict(state.get("summed", {}))
        self.set_masks({name: state["masks"][name].bool().to(mask.device) for name, mask in self.masks.items()})


class PeriodicMasks(MovingMasks):
    """Changes the masks every `update_every` steps, up to the fraction `update_until` of the training.

    Args:
        network, masks, steps, random_at: as for `MovingMasks`.
        config: `update_every` and `update_until` too.

    Attributes:
        update_steps: the steps before which the masks change.

    Raises:
        UserError: all of them lie before the first step, or the training has only one.
    """

    replaces_step = False
    """Whether a change of the masks takes the place of the optimizer's step."""

    def __init__(self, network: nn.Module, masks: Masks, config: Config, steps: int, random_at: RandomAt) -> None:
        super().__init__(network, masks, config, steps, random_at)
        self.update_steps = update_steps(config, steps)
        if self.update_steps[0] >= config.epochs * steps:
            raise UserError(
                f"algo {config.algo} changes masks between steps, and this training has only one: lengthen it"
            )
        if self.step > self.update_steps[-1]:
            raise UserError(
                f"start_epoch {config.start_epoch} lies after the last change of the masks, at step "
                f"{self.update_steps[-1]} (update_until, update_every): begin earlier, or change them for longer"
            )

    @abstractmethod
    def change_masks(self) -> None:
        """Change the masks; called between the backward pass and the optimizer's step of an update step."""

    def update(self) -> None:
        """Take the optimizer's step, and change the masks before it, or in its place, if this is an update step."""
        is_due = self.step in self.update_steps
        if is_due:
            self.change_masks()
        if not (is_due and self.replaces_step):
            super().update()


def update_steps(config: Config, steps: int) -> range:
    """Return the steps (0-based) of the training at which the masks change.

    Args:
        config: `update_every`, `update_until`, `epochs`.
        steps: of an epoch.
    """
    whole = config.epochs * steps
    end = max(1, min(int(config.update_until * whole), whole - 1))  # the last step is whole − 1
    every = min(config.update_every, end)
    return range(every, end + 1, every)
