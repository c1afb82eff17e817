"""Small networks without BatchNorm: VGG-like ConvN, and the fully connected FC.

Source: Frankle & Carbin, ICLR 2019 (arXiv 1803.03635), Figure 2; Conv8: Ramanujan et al., CVPR 2020 (arXiv 1911.13299).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.layers import FullyConnected
from models.spec import ModelSpec


class Conv(nn.Module):
    """Pairs of 3×3 convolutions, each pair followed by 2×2 max pooling, and three linear layers.

    Args:
        spec: classes, image shape, layer options.
        pairs: number of pairs; the first has 64 channels, and each further pair twice as many. Each halves the sides of
            the maps, rounded down.

    Raises:
        UserError: the images are too small for the poolings.
    """

    def __init__(self, spec: ModelSpec, pairs: int) -> None:
        super().__init__()
        spec.check_poolings(pairs)
        stages, channels = [], spec.channels
        for width in (spec.scaled(64 * 2**pair) for pair in range(pairs)):
            stages += [nn.Conv2d(channels, width, 3, padding=1, bias=spec.bias), nn.ReLU()]
            stages += [nn.Conv2d(width, width, 3, padding=1, bias=spec.bias), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        features = channels * math.prod(size // 2**pairs for size in spec.shape[1:])
        hidden = spec.scaled(256)
        self.convs = nn.Sequential(*stages)
        self.linear = nn.Sequential(
            FullyConnected(features, hidden, 1, bias=spec.bias),
            nn.ReLU(),
            FullyConnected(hidden, hidden, 1, bias=spec.bias),
            nn.ReLU(),
            FullyConnected(hidden, spec.classes, 1, bias=spec.bias),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        return self.linear(self.convs(images).flatten(1)[:, :, None, None]).flatten(1)


class FC(nn.Module):
    """Two hidden layers of `hidden_size` units on the flattened image.

    Args:
        spec: classes, image shape, layer options; `width` scales the hidden layers too.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden = spec.scaled(spec.hidden_size)
        self.linear = nn.Sequential(
            nn.Linear(math.prod(spec.shape), hidden, bias=spec.bias),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=spec.bias),
            nn.ReLU(),
            nn.Linear(hidden, spec.classes, bias=spec.bias),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        return self.linear(images.flatten(1))


def conv2(spec: ModelSpec) -> Conv:
    """Two convolutions, three linear layers."""
    return Conv(spec, pairs=1)


def conv4(spec: ModelSpec) -> Conv:
    """Four convolutions, three linear layers."""
    return Conv(spec, pairs=2)


def conv6(spec: ModelSpec) -> Conv:
    """Six convolutions, three linear layers."""
    return Conv(spec, pairs=3)


def conv8(spec: ModelSpec) -> Conv:
    """Eight convolutions, three linear layers."""
    return Conv(spec, pairs=4)
