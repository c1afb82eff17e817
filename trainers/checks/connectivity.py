"""Connectivity of a mask: thin layers, dead layers, and weights that are cut off from input or output.

A mask can keep weights that compute nothing: all paths through them end in a pruned weight. Counting them makes a
ticket look denser than it is.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.masking import layer_parameters, prunable_parameters
from utils.environment import device_of_doubles
from utils.masks import Masks, is_bias, per_layer, thin_layers, total


def warn_of_thin_layers(masks: Masks, when: str, said: set[str]) -> None:
    """Warn, once per layer, if it keeps less than one weight per filter on average.

    Args:
        masks: the current masks.
        when: the moment in words, for the message.
        said: layers that were already warned about; this call adds its own.
    """
    thin = {name: counts for name, counts in thin_layers(masks).items() if name not in said}
    if thin:
        said.update(thin)
        listed = ", ".join(f"{name} ({kept} for {filters})" for name, (kept, filters) in thin.items())
        warnings.warn(f"{when}, these layers keep less than one weight a filter: {listed}", stacklevel=2)


def connectivity(net: nn.Module, masks: Masks, shape: tuple[int, ...]) -> dict[str, Any]:
    """Measure how much of a ticket lies on a path from input to output.

    A kept weight is effective if the summed output has a non-zero gradient with respect to it, in the network of
    |w| · mask, for an input of ones, in double precision. In that network normalisation and bounded activations are the
    identity, and max pooling is average pooling.

    Args:
        net: plain, of the ticket's architecture; only its layers are used.
        masks: of the ticket.
        shape: (channels, height, width) of an image.

    Returns:
        `effective_weights_remaining`, `effective_weights_remaining_percent`, `dead_layers` and `thin_layers` (names).
        Dead layers keep no weight; thin ones keep less than one per filter on average. Biases are not counted.

    Source: effective density: Vysogorets & Kempe, JMLR 2023 (arXiv 2107.02306).
    """
    device = device_of_doubles(str(next(net.parameters()).device))
    flow = deepcopy(net).to(device).double().eval().requires_grad_(True)
    weights = prunable_parameters(flow)
    with torch.no_grad():
        for name, weight in layer_parameters(flow).items():
            weight.abs_()
            if name in masks:
                weight.mul_(masks[name].to(weight.device))
    with _AllPathsOpen():
        output = flow(torch.ones(1, *shape, dtype=torch.float64, device=device)).sum()
    gradients = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
    effective = sum(
        int((masks[name].to(device) & (gradient != 0)).sum())
        for name, gradient in zip(weights, gradients)
        if name in masks and not is_bias(name) and gradient is not None
    )
    return {
        "effective_weights_remaining": effective,
        "effective_weights_remaining_percent": 100.0 * effective / total(masks),
        "dead_layers": [name for name, (kept, _) in per_layer(masks).items() if not kept],
        "thin_layers": list(thin_layers(masks)),
    }


_AS_IDENTITY = frozenset({
    functional.batch_norm, functional.group_norm, functional.layer_norm, functional.instance_norm, functional.hardtanh,
    functional.relu6, functional.hardswish, functional.hardsigmoid, torch.sigmoid,
})  # fmt: skip


class _AllPathsOpen(TorchFunctionMode):
    """Replaces the functions that could hide a path that is there, whether a layer calls them or a network itself.

    Normalisation does so by negative scales and shifts, activations with an upper bound by their saturation, and max
    pooling by the entries of a window that are not its maximum for this one input.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _AS_IDENTITY:
            return args[0]
        replaced = _average_pooling if function is functional.max_pool2d else function
        return replaced(*args, **(kwargs or {}))


def _average_pooling(
    images: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """Average where max pooling with these arguments takes the maximum; a dilated window keeps its maximum."""
    if dilation not in (1, (1, 1)):
        return functional.max_pool2d(images, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return functional.avg_pool2d(images, kernel_size, stride, padding, ceil_mode)
