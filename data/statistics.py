"""Mean and standard deviation of pixels, from histograms: their sums are exact, without a floating-point copy."""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[float, float, float]


def channel_histograms(images: Tensor) -> Tensor:
    """Count how often every value occurs in every channel.

    Args:
        images: (3, height, width) or (n, 3, height, width) uint8.

    Returns:
        (3, 256) int64.
    """
    channels = images.movedim(-3, 0)
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])


def statistics_of(histograms: Tensor) -> tuple[Triple, Triple]:
    """Return each channel's mean and standard deviation, with pixels in [0, 1].

    Args:
        histograms: (3, 256).

    Returns:
        No standard deviation is below 1/255, so that a channel of one value is not divided by 0.
    """
    pixel = torch.arange(256, dtype=torch.float64) / 255
    share = histograms.double() / histograms.sum(1, keepdim=True).clamp_min(1)
    mean = share @ pixel
    deviation = (share @ pixel.square() - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(deviation.tolist())
