"""Optimizers by name, their parameter groups, and flat gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from trainers.tickets.recipe import Recipe


def optimizer_of(recipe: Recipe, groups: Iterable[dict[str, Any]]) -> Optimizer:
    """SGD (momentum without dampening) or Adam with coupled weight decay: wd · w is added to the gradient.

    Args:
        recipe: its `optimizer`, `lr`, `momentum` and `nesterov`; the loop sets the learning rate before every epoch.
        groups: parameter groups, each with `params` and `weight_decay`.
    """
    groups = [{**group, "params": list(group["params"])} for group in groups]
    # Fused: one kernel for all tensors, and Adam does not read its step counter back from a tensor at every step.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if recipe.optimizer == "adam":
        return Adam(groups, lr=recipe.lr, fused=fused)
    return SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


def decay_groups(network: nn.Module, weight_decay: float, no_bn_decay: bool = False) -> list[dict[str, Any]]:
    """Group a network's parameters under one weight decay; with `no_bn_decay`, those of BatchNorm without it.

    Returns:
        One or two groups with `params` and `weight_decay`, none of them empty.
    """
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for parameter in module.parameters(recurse=False)
    }
    decayed = [p for p in network.parameters() if not (no_bn_decay and id(p) in norms)]
    spared = [p for p in network.parameters() if no_bn_decay and id(p) in norms]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def flat_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Give every parameter a gradient of zeros.

    Ranks then sum one tensor per dtype, instead of one per parameter.

    Args:
        parameters: that learn, on one device.

    Returns:
        One tensor (n,) per dtype; the gradients are views of them.
    """
    flats = []
    for dtype in dict.fromkeys(one.dtype for one in parameters):
        alike = [one for one in parameters if one.dtype == dtype]
        flats.append(torch.zeros(sum(one.numel() for one in alike), device=alike[0].device, dtype=dtype))
        for one, part in zip(alike, flats[-1].split([one.numel() for one in alike])):
            # Fused optimizers need a gradient with the strides of its parameter.
            one.grad = part.as_strided(one.shape, torch.empty_like(one, device="meta").stride())
    return flats
