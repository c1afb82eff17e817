"""Detects divergence: non-finite values, and an accuracy that collapses to chance.

A run that is not finite ends; one that falls to chance goes on, with a warning. `check_finite` is cheap and runs at
every checkpoint and end of an epoch. When it fails, the loop repeats the steps since the last checkpoint under
`watched`, which finds the layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.distributed import collectives as ranks

AT_CHANCE = 1.2
"""An accuracy of up to this multiple of chance counts as chance."""


class NotFinite(Exception):
    """A value is infinite or not a number; the text names it."""


def check_finite(network: nn.Module, loss: Tensor) -> None:
    """Check that a loss and all parameters are finite, with one read from the device.

    Args:
        network: whose parameters to check.
        loss: without dimensions, on the network's device; summed over an epoch, it shows any step's failure.

    Raises:
        NotFinite: a value is not finite, or so large that its square is not.
    """
    parameters = dict(network.named_parameters())
    norms = torch.stack([loss, *torch._foreach_norm([value.detach() for value in parameters.values()])])
    broken = norms.isfinite().logical_not().tolist()
    if any(broken):
        raise NotFinite(next(name for name, is_broken in zip(("the loss", *parameters), broken) if is_broken))


@contextmanager
def watched(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Within the context, check every layer's parameters and output in every forward pass, which is slow.

    Args:
        network: its forward pass may not run compiled, or the layers' hooks would not be called.
        optimizer: before whose steps the ranks compare what they found.

    Raises:
        NotFinite: before an optimizer step, names the first value that was not finite; on all ranks.
    """
    leaves = {name: module for name, module in network.named_modules() if not any(module.children())}
    found: list[str] = []
    with ExitStack() as hooks:
        for name, module in leaves.items():
            hooks.enter_context(module.register_forward_hook(partial(_look, name, found)))
        hooks.enter_context(optimizer.register_step_pre_hook(lambda *_: _tell(found)))
        yield


def _look(layer: str, found: list[str], module: nn.Module, _inputs: Any, output: Any) -> None:
    for name, value in module.named_parameters(recurse=False):
        if not bool(value.isfinite().all()):
            found.append(f"{layer}.{name}, after the step before,")
    if isinstance(output, Tensor) and not bool(output.isfinite().all()):
        found.append(f"the output of layer {layer}")


def _tell(found: list[str]) -> None:
    for first in ranks.all_gather(found[:1]):  # one rank's part of the batch may be finite where another's is not
        if first:
            raise NotFinite(first[0])


def warn_of_collapse(stage: str, rows: Sequence[Mapping[str, Any]], classes: int) -> None:
    """Warn in the epoch in which accuracy falls to chance after having been well above it.

    That is when it was at 2 × chance or more in some epoch before, and falls from above 1.2 × chance to no more than
    that. On val, or on the training batches where nothing is held out.

    Args:
        stage: whose rows these are.
        rows: so far, by epoch.
        classes: number of classes of the data; chance is one over it.
    """
    name = "train_acc" if rows[-1]["val_acc"] is None else "val_acc"
    chance = 100.0 / classes
    *before, now = (row[name] for row in rows)
    if before and max(before) >= 2 * chance and now <= AT_CHANCE * chance < before[-1]:
        warnings.warn(
            f"{stage} has collapsed: {name} fell to {now:.1f}% in epoch {rows[-1]['epoch']}, where chance is "
            f"{chance:.3g}%, after {before[-1]:.1f}% in the epoch before; {rows[-1]['model_sparsity']:.2f}% of the "
            "weights remain",
            stacklevel=2,
        )
