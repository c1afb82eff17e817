"""Normalises uint8 pixels to the input of a network."""

from __future__ import annotations

import torch
from torch import Tensor

from data.spec import DataSpec

Batch = tuple[Tensor, Tensor]
"""(images (B, C, H, W) float32, normalised; labels (B,) int64)."""
ROWS_IN_CACHE = 256
"""Rows that a CPU takes through all steps at once: as float32, those of 224 pixels fill a third of 2 MiB."""


class Normalise:
    """Normalises uint8 images (B, C, H, W) to float32 with mean 0 and standard deviation 1 of each channel.

    The result is (pixel / 255 − mean) / std, as torchvision's `ToTensor` and `Normalize` compute it, up to rounding.

    Args:
        spec: the mean and standard deviation over the training set.
        device: the images' device.
    """

    def __init__(self, spec: DataSpec, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (spec.mean, spec.std))
        self._scale, self._shift = 1.0 / (255.0 * std), -mean / std

    def __call__(self, images: Tensor) -> Tensor:
        # Convolutions are fastest in channels_last, and the other layers keep the memory format of their input.
        if images.stride(1) == 1:  # they are so already, and a CPU is fastest along whole rows of pixels
            batch, channels, height, width = images.shape
            scale, shift = (values.flatten().repeat(width) for values in (self._scale, self._shift))
            rows = images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
            result = torch.empty(rows.shape, device=rows.device)
            at_once = ROWS_IN_CACHE if rows.device.type == "cpu" else max(1, len(rows))
            for into, pixels in zip(result.split(at_once), rows.split(at_once)):
                into.copy_(pixels).mul_(scale).add_(shift)
            return result.view(batch, height, width, channels).permute(0, 3, 1, 2)
        scaled = images.float().mul_(self._scale).add_(self._shift)
        return scaled.contiguous(memory_format=torch.channels_last)
