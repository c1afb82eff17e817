"""Pixels to what a network takes."""

from __future__ import annotations

import torch
from torch import Tensor

from data.spec import DataSpec

Batch = tuple[Tensor, Tensor]
"""(images (B, C, H, W) float32, normalised; labels (B,) int64)."""


class Normalise:
    """Images uint8 (B, C, H, W) to float32 with mean 0 and deviation 1 over the training set, channel by channel.

    Args:
        spec: its statistics.
        device: of the images.
    """

    def __init__(self, spec: DataSpec, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std))
        self._scale, self._shift = 1.0 / (255.0 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        # Channels last is what convolutions are fastest in; the rest of a network keeps to the form it is given.
        scaled = images.float().mul_(self._scale).add_(self._shift)
        return scaled.contiguous(memory_format=torch.channels_last)
