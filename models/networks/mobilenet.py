"""MobileNetV2 for small images: stem and second stage have stride 1; a shortcut projects if only the width changes.
ReLU as in the published Rare Gems code, where the paper has ReLU6.

Source: Sandler et al., CVPR 2018 (arXiv 1801.04381), Table 2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BATCH_NORMS, FullyConnected
from models.spec import ModelSpec

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, blocks, stride of the first block) of each stage."""


class InvertedResidual(nn.Module):
    """A widening 1×1, a depthwise 3×3 and a linear narrowing 1×1 convolution; with stride 1 also a shortcut.

    Args:
        channels_in: input channels.
        channels: output channels.
        expansion: inner channels per input channel.
        stride: stride of the depthwise convolution.
        spec: layer options.
    """

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int, spec: ModelSpec) -> None:
        super().__init__()
        norm, inner = BATCH_NORMS[spec.batch_norm], expansion * channels_in
        self.conv1, self.bn1 = nn.Conv2d(channels_in, inner, 1, bias=spec.bias), norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=spec.bias)
        self.bn2 = norm(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels, 1, bias=spec.bias), norm(channels)
        self._adds = stride == 1
        self.shortcut = nn.Sequential()
        if self._adds and channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=spec.bias), norm(channels))

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(images) if self._adds else out


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks between a stem of 32 channels and a head of 1280.

    The last maps have an eighth of the image's sides, where the network for large images has a 32nd.

    Args:
        spec: classes, image shape, layer options.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        norm, channels, head = BATCH_NORMS[spec.batch_norm], spec.scaled(32), spec.scaled(1280)
        self.conv1, self.bn1 = nn.Conv2d(spec.channels, channels, 3, padding=1, bias=spec.bias), norm(channels)
        blocks = []
        for expansion, base, count, stride in STAGES:
            width = spec.scaled(base)
            for place in range(count):
                blocks.append(InvertedResidual(channels, width, expansion, 1 if place else stride, spec))
                channels = width
        self.layers = nn.Sequential(*blocks)
        self.conv2, self.bn2 = nn.Conv2d(channels, head, 1, bias=spec.bias), norm(head)
        self.linear = FullyConnected(head, spec.classes, 1, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        out = self.layers(F.relu(self.bn1(self.conv1(images))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1)).flatten(1)
