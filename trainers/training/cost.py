"""The cost of finding and training a ticket, by stage: epochs, steps, images, FLOPs and memory.

FLOPs are those of PyTorch's counter: products of matrices and convolutions, a multiplication and an addition as two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.masking import prunable_parameters
from utils.memory import peak_memory, reset_peak_memory

BACKWARD_AND_FORWARD = 3
"""FLOPs of a training step over those of its forward pass: the backward pass is assumed to cost twice as much."""


class Cost:
    """The cost of a stage so far, saved with its position.

    Args:
        device: whose peak memory is tracked.
        totals: as saved; None for a fresh stage.

    Attributes:
        totals: `epochs`, `steps`, `images`, `exposure` (layer -> sum over images of its density at the time),
            `peak_memory_bytes`, and, with a teacher, `teacher_images`: those that went forward through it, times
            its FLOPs over those of the network.
    """

    def __init__(self, device: torch.device, totals: Mapping[str, Any] | None = None) -> None:
        self._device = device
        fresh = {"epochs": 0, "steps": 0, "images": 0, "exposure": {}, "peak_memory_bytes": 0}
        self.totals: dict[str, Any] = dict(totals or fresh)
        reset_peak_memory(device)

    def count(self, steps: int, images: int, densities: Mapping[str, float], teacher_share: float = 0.0) -> None:
        """Add an epoch: its numbers of steps and images, and each layer's density in it.

        Args:
            steps: of the epoch.
            images: that were trained on, over all ranks.
            densities: layer -> fraction of its weights in the forward pass, in [0, 1]; a layer left out is dense.
            teacher_share: as in `Training`.
        """
        own = self.totals
        own["epochs"] += 1
        own["steps"] += steps
        own["images"] += images
        if teacher_share:
            own["teacher_images"] = own.get("teacher_images", 0) + round(images * teacher_share)
        before = own["exposure"]
        own["exposure"] = {name: before.get(name, 0.0) + images * share for name, share in densities.items()}
        own["peak_memory_bytes"] = max(own["peak_memory_bytes"], peak_memory(self._device))


def forward_flops(net: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """FLOPs of one image's forward pass: prunable layer -> its own, and `""` -> the whole network's.

    Args:
        net: plain.
        shape: (channels, height, width) of an image.
    """
    counted = deepcopy(net).eval().requires_grad_(True)
    one = next(counted.parameters())
    image = torch.zeros(1, *shape, device=one.device, dtype=one.dtype)
    # Attention without fused kernels, of which the counter knows nothing: without gradients it would take them.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        counted(image)
    modules = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    layers = {name.rpartition(".")[0] for name in prunable_parameters(net)}
    return {"": counter.get_total_flops(), **{name: modules.get(name, 0) for name in layers}}


def activation_bytes(net: nn.Module, images: torch.Tensor) -> int:
    """Bytes that a training-mode forward pass keeps for the backward pass, without parameters and buffers.

    Args:
        net: its BatchNorm statistics change.
        images: (B, C, H, W).

    Returns:
        Bytes of all distinct storages that autograd saves.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = net.train()(images)  # kept alive while counting, so that no storage is reused
    del output
    return sum(kept.values())


def scoring_flops(net: nn.Module, images: torch.Tensor, backward: int = 1) -> int:
    """FLOPs of a forward pass over a batch and `backward` backward passes, each counted as two forward passes.

    Args:
        net: plain.
        images: (B, C, H, W); only the shape counts.
        backward: backward passes, or as many as the passes are worth.
    """
    return forward_flops(net, tuple(images.shape[1:]))[""] * len(images) * (1 + 2 * backward)


def summed(costs: Iterable[Mapping[str, Any]], flops: Mapping[str, int], seconds: float) -> dict[str, Any]:
    """Add up the costs of stages, for the summary.

    Training FLOPs are three times the forward pass's for every image. Masked FLOPs count each prunable layer times its
    density at the time. A teacher adds its forward pass for every image that it has seen. No present kernel skips
    pruned weights: masked FLOPs are what a kernel that does would need.

    Args:
        costs: the `totals` of the stages.
        flops: as returned by `forward_flops`.
        seconds: spent in them.

    Returns:
        `epochs`, `steps`, `images`, `seconds`, `training_flops_dense`, `training_flops_masked` and
        `peak_memory_bytes`, the highest of any stage.
    """
    costs = list(costs)
    images = sum(cost["images"] for cost in costs)
    taught = flops[""] * sum(cost.get("teacher_images", 0) for cost in costs)
    prunable = sum(count for name, count in flops.items() if name)
    exposed = sum(flops.get(name, 0) * share for cost in costs for name, share in _exposure(cost, flops).items())
    return {
        "epochs": sum(cost["epochs"] for cost in costs),
        "steps": sum(cost["steps"] for cost in costs),
        "images": images,
        "seconds": seconds,
        "training_flops_dense": BACKWARD_AND_FORWARD * flops[""] * images + taught,
        "training_flops_masked": round(BACKWARD_AND_FORWARD * ((flops[""] - prunable) * images + exposed)) + taught,
        "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in costs), default=0),
    }


def _exposure(cost: Mapping[str, Any], flops: Mapping[str, int]) -> dict[str, float]:
    """Layer -> images times density; a layer without a recorded density counts as dense."""
    return {name: cost["exposure"].get(name, float(cost["images"])) for name in flops if name}
