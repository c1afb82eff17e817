"""The base class of what a stage trains: a network, its optimizer, and hooks for steps and epochs.

`loop.train` calls the hooks in this order:

    before_epoch                    not when an epoch is resumed in its middle
        before_step                 then for each part of the batch:
            forward, loss           and the backward pass
        penalty                     after the gradients are summed over the ranks; then its backward pass
        before_update               then the optimizer's update, which ends with gradients of zero
        after_step
    after_steps                     then BatchNorm's statistics are averaged over the ranks
    measure, layer_densities        the row of the epoch, and its cost
    after_epoch                     prunings; may set `over`
    describe                        what TensorBoard shows besides the row
    state                           if a checkpoint is due, here or between two steps

Between `before_epoch` and `after_steps` no hook may read from the device: no `.item()`, no `if` on a tensor, no
indexing by a mask; only an algorithm that moves its masks within an epoch may, at the few steps at which it does so. On
a GPU the host queues steps ahead, and one read makes it wait for all of them. On several ranks,
every hook has to do the same on each, and to draw random numbers only from the generators it is given or the run's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from data.load import Splits
from trainers.tickets.recipe import Recipe
from trainers.training.optim import flat_gradients
from utils.environment import mixed
from utils.run.run import Row

Draw = Callable[[str], torch.Generator]
"""Name of a random stream -> its generator for this stage and epoch."""


class Training:
    """What one stage trains, and the state to save. `train` owns the loop; `Run` decides where and when to save.

    Args:
        network: whose forward pass is trained.
        optimizer: over the parameters that learn.
        recipe: its learning rates, label smoothing, precision and number of parts of a batch.

    Attributes:
        lr: epoch (0-based) -> its learning rate.
        precision: of forward passes, in training and in evaluation.
        over: set at the end of an epoch to end the stage early.
        younger_state: names in `state` that checkpoints of earlier versions may lack.
        accumulate: number of parts in which a batch goes through the network; its gradient is their mean.
        teacher_share: FLOPs of the forward pass of a second network, which every image also goes through, over those
            of the dense network that is trained; 0: there is none.
        full_batch: number of images that go through the network at once in a full batch.
        gradients: a flat tensor per dtype; the gradients of all parameters that learn are views; ranks all-reduce it.
    """

    over = False
    younger_state: tuple[str, ...] = ()
    teacher_share = 0.0
    full_batch: int | None = None

    def __init__(self, network: nn.Module, optimizer: Optimizer, recipe: Recipe) -> None:
        self.network = network
        self.optimizer = optimizer
        self.lr = recipe.rate
        self._label_smoothing = recipe.label_smoothing
        self.precision = recipe.precision
        self.accumulate = recipe.accumulate
        # Allocated before the first step: otherwise, the first backward pass of a compiled network would make them
        # outputs of its recorded CUDA graph, whose memory the next replay overwrites.
        self.gradients = flat_gradients([one for group in optimizer.param_groups for one in group["params"]])

    # ---- hooks of a step, beside forward, backward and the optimizer's update; none may wait for the device ----------

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits, in single precision."""
        return self.through(self.network, images)

    def through(self, network: nn.Module, images: Tensor) -> Tensor:
        """The logits of `network`, in single precision, computed as for the network that is trained.

        Args:
            network: on the images' device.
            images: (B, C, H, W), normalised.

        Returns:
            (B, classes); of float64 if the network is.
        """
        # A compiled network is compiled for full batches: a short one would compile it again.
        is_short = self.full_batch is not None and len(images) != self.full_batch
        forward = network.forward if is_short else network
        with mixed(self.precision, images.device):
            logits = forward(images)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The task loss; `penalty` is added to it for the gradient.

        Args:
            logits: (B, classes), as `forward` returned them.
            labels: (B,) class numbers.
            images: (B, C, H, W), for a loss that compares with another network.

        Returns:
            The mean over the B images, without dimensions. The loop weights the means of parts by their sizes.
        """
        return F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)

    def penalty(self) -> Tensor | None:
        """A penalty to add to the loss, beyond the optimizer's weight decay; None for no penalty."""
        return None

    def before_step(self, step: int) -> None:
        """Called before the forward pass of every step (0-based in its epoch)."""

    def update(self) -> None:
        """Take the optimizer's step, with the gradients of the whole batch; an algorithm may add to them first."""
        self.optimizer.step()

    def after_step(self) -> None:
        """Called after the optimizer's update."""

    # ---- hooks of an epoch -------------------------------------------------------------------------------------------

    def before_epoch(self, epoch: int) -> None:
        """Called once before the first step of an epoch, not again when a stopped epoch is resumed."""

    def after_steps(self) -> None:
        """Called after the last step of an epoch, before the network is evaluated."""

    def measure(self, data: Splits, draw: Draw) -> Row:
        """The metrics of this epoch's row, without those of its training.

        Args:
            data: whose test and val splits to measure on.
            draw: generators of this stage and epoch.

        Returns:
            Values by the names in `EpochRow`: at least `test_acc`, `val_acc` (None without val) and `model_sparsity`.
        """
        raise NotImplementedError

    def after_epoch(self, epoch: int, draw: Draw) -> None:
        """Called after the epoch's evaluation; prunings belong here.

        Args:
            epoch: 0-based in its stage; the epoch that has just been trained and measured.
            draw: generators of this stage and epoch.
        """

    def layer_densities(self) -> dict[str, float]:
        """Layer -> the fraction of its weights that takes part in the forward pass, for the costs."""
        return {}

    def describe(self) -> tuple[dict[str, float], dict[str, Tensor]]:
        """More to log of the epoch: scalars by tag, and tensors to plot as histograms."""
        return {}, {}

    # ---- state in a checkpoint ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the stage depends on: tensors, numbers, strings and containers of them.

        Called on a fresh training too: names, types and shapes in a checkpoint have to be those of the fresh state,
        except where that is empty or None.
        """
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "over": self.over}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, in place; weight decay, momentum and the like follow this run's options."""
        self.network.load_state_dict(state["network"])
        kept = {"params", "lr"}  # the learning rate is set every epoch
        # Before it is loaded: whether the optimizer is fused decides where it keeps its count of steps.
        groups = [
            {**stored, **{name: value for name, value in own.items() if name not in kept}}
            for stored, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        self._check_optimizer()
        self.over = state["over"]

    def _check_optimizer(self) -> None:
        """Raises: ValueError: state that the optimizer loaded unchecked does not have its parameter's shape."""
        for parameter, kept in self.optimizer.state.items():
            names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(self.optimizer, Adam) else {"momentum_buffer"}
            fits = all(
                (value is None and name == "momentum_buffer")
                or (isinstance(value, Tensor) and value.shape == (parameter.shape if name != "step" else ()))
                for name, value in kept.items()
            )  # fmt: skip
            if set(kept) != names or not fits:
                raise ValueError(f"the optimizer's state of a parameter of shape {tuple(parameter.shape)} is another's")
