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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from models.masking import layer_parameters, prunable_parameters
from utils.environment import device_of_doubles
from utils.masks import Masks, is_bias, per_layer, remaining, thin_layers, total


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

    Args:
        net, masks, shape: as for `effective_masks`.

    Returns:
        `effective_weights_remaining`, `effective_weights_remaining_percent`, `dead_layers` and `thin_layers` (names).
        Dead layers keep no weight; thin ones keep less than one per filter on average. Biases are not counted.

    Source: effective density: Vysogorets & Kempe, JMLR 2023 (arXiv 2107.02306).
    """
    effective = remaining(effective_masks(net, masks, shape))
    return {
        "effective_weights_remaining": effective,
        "effective_weights_remaining_percent": 100.0 * effective / total(masks),
        "dead_layers": [name for name, (kept, _) in per_layer(masks).items() if not kept],
        "thin_layers": list(thin_layers(masks)),
    }


def effective_masks(net: nn.Module, masks: Masks, shape: tuple[int, ...]) -> Masks:
    """Return masks that keep only the weights on a path from input to output; those of biases are unchanged.

    A kept weight is effective if the share of the output that grows with the input depends on it: ∂²(summed output) /
    ∂(weight) ∂(input) ≠ 0. This is asked of a network in double precision with positive weights, whatever the ticket's
    are, for an input of ones. In it, normalisation and bounded activations are linear, max pooling is average pooling,
    and each layer's output is scaled to at most 1. (Vysogorets & Kempe take the gradient of the summed output, which
    also counts what a bias reaches; it is taken here where the second derivative is not there.)

    Args:
        net: plain, of the ticket's architecture; only its layers are used, not their values.
        masks: of the ticket.
        shape: (channels, height, width) of an image.
    """
    device = device_of_doubles(str(next(net.parameters()).device))
    flow = deepcopy(net).to(device).double().eval().requires_grad_(True)
    weights = prunable_parameters(flow)
    drawing = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in layer_parameters(flow).items():
            # Drawn, because with equal weights the sums of opposite paths, as in attention, could be 0.
            weight.copy_(0.5 + torch.rand(weight.shape, generator=drawing, dtype=torch.float64))
            if name in masks:
                weight.mul_(masks[name].to(weight.device))
    scale = torch.ones((), dtype=torch.float64, device=device, requires_grad=True)
    with torch.enable_grad(), _AllPathsOpen(), sdpa_kernel(SDPBackend.MATH):  # only it can be differentiated twice
        output = flow(scale.expand(1, *shape)).sum()
        try:
            (slope,) = torch.autograd.grad(output, scale, create_graph=True)
            gradients = torch.autograd.grad(slope, list(weights.values()), retain_graph=True, allow_unused=True)
        except RuntimeError:  # a function has no second derivative, as deformable convolutions
            gradients = torch.autograd.grad(output, list(weights.values()), allow_unused=True)
    effective = {name: mask if is_bias(name) else torch.zeros_like(mask) for name, mask in masks.items()}
    for name, gradient in zip(weights, gradients):
        if name in masks and not is_bias(name) and gradient is not None:
            effective[name] = masks[name] & (gradient != 0).to(masks[name].device)
    return effective


_SCALED = frozenset({functional.linear, functional.conv1d, functional.conv2d, functional.conv3d})
_AS_IDENTITY = frozenset({
    functional.batch_norm, functional.group_norm, functional.layer_norm, functional.instance_norm, functional.hardtanh,
    functional.relu6, functional.hardswish, torch.tanh, Tensor.tanh, torch.clamp, Tensor.clamp,
})  # fmt: skip
_GATES = frozenset({torch.sigmoid, Tensor.sigmoid, functional.hardsigmoid})


class _AllPathsOpen(TorchFunctionMode):
    """Replaces the functions that could hide a path that is there, whether a layer calls them or a network itself.

    Normalisation does so by negative scales and shifts, activations with an upper bound by their saturation, and max
    pooling by the entries of a window that are not its maximum for this one input. Gates multiply activations: many in
    a row would overflow if each layer's output were not scaled.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _AS_IDENTITY:
            return args[0]
        if function in _GATES:
            return args[0] + 0.5  # a gate without input is half open
        output = _AVERAGES.get(function, function)(*args, **(kwargs or {}))
        return output / output.detach().amax().clamp(min=1e-100) if function in _SCALED else output


def _average_pooling(
    images: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:  # fmt: skip
    """Average where max pooling with these arguments takes the maximum; a dilated window keeps its maximum."""
    if dilation not in (1, (1, 1)):
        return functional.max_pool2d(images, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return functional.avg_pool2d(images, kernel_size, stride, padding, ceil_mode)


_AVERAGES = {
    functional.max_pool2d: _average_pooling,
    functional.adaptive_max_pool2d: lambda images, size, return_indices=False: functional.adaptive_avg_pool2d(
        images, size
    ),
}
