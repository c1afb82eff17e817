"""Wide ResNets for small images: BatchNorm and ReLU come before each convolution.

Source: Zagoruyko & Komodakis, BMVC 2016 (arXiv 1605.07146): depth 6n + 4, stages k times as wide.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BATCH_NORMS, FullyConnected, projection_strides
from models.spec import ModelSpec


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; if the shape changes, it is a 1×1 convolution of the activated input.

    Args:
        channels_in: input channels.
        channels: output channels.
        stride: of the first convolution and the shortcut.
        spec: layer options.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, spec: ModelSpec) -> None:
        super().__init__()
        norm = BATCH_NORMS[spec.batch_norm]
        self.bn1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=spec.bias)
        self.bn2 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=spec.bias)
        self._projects = channels_in != channels or stride != 1
        if self._projects:
            self._every, stride = projection_strides(channels_in, stride)
            self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        active = F.relu(self.bn1(images))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if not self._projects:
            return out + images
        return out + self.convShortcut(active[..., :: self._every, :: self._every])


class Stage(nn.Module):
    """Four blocks of one width, as a separate module because of the published names (`block1.layer.0`)."""

    def __init__(self, channels_in: int, channels: int, stride: int, spec: ModelSpec) -> None:
        super().__init__()
        first = BasicBlock(channels_in, channels, stride, spec)
        self.layer = nn.Sequential(first, *(BasicBlock(channels, channels, 1, spec) for _ in range(3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


class WideResNet28(nn.Module):
    """WRN-28-2: 1.46 million weights on CIFAR-10.

    Depth 28 with n = 4 blocks in each of three stages, k = 2 times as wide as 16, 32 and 64 channels. The stages' maps
    have the image's sides, a half and a quarter of them.

    Args:
        spec: classes, image shape, layer options.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        stem, *widths = (spec.scaled(channels) for channels in (16, 32, 64, 128))
        self.conv1 = nn.Conv2d(spec.channels, stem, 3, padding=1, bias=spec.bias)
        self.block1 = Stage(stem, widths[0], 1, spec)
        self.block2 = Stage(widths[0], widths[1], 2, spec)
        self.block3 = Stage(widths[1], widths[2], 2, spec)
        self.bn1 = BATCH_NORMS[spec.batch_norm](widths[2])
        self.fc = FullyConnected(widths[2], spec.classes, 1, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        out = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(out)), 1)).flatten(1)
