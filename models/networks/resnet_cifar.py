"""ResNets for small images: three stages of basic blocks, a 3×3 stem, shortcuts without weights.

Source: He et al., CVPR 2016 (arXiv 1512.03385), §4.2: depth 6n + 2, option-A shortcuts.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BATCH_NORMS, FullyConnected
from models.spec import ModelSpec


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut that subsamples by slicing and pads missing channels with zeros.

    Half of the missing channels are padded before the others, half after them (option A has no weights to prune).

    Args:
        channels_in: input channels.
        channels: output channels, at least as many.
        stride: of the first convolution and the shortcut.
        spec: layer options.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, spec: ModelSpec) -> None:
        super().__init__()
        norm = BATCH_NORMS[spec.batch_norm]
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=spec.bias)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=spec.bias)
        self.bn2 = norm(channels)
        self._stride = stride
        self._missing = channels - channels_in

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        if self._stride == 1 and not self._missing:
            return images
        before = self._missing // 2
        subsampled = images[:, :, :: self._stride, :: self._stride]
        return F.pad(subsampled, (0, 0, 0, 0, before, self._missing - before))


class CifarResNet(nn.Module):
    """A ResNet of three stages, whose maps have the image's sides, a half and a quarter of them.

    Args:
        spec: classes, image shape, layer options.
        blocks: number of basic blocks in each stage.
        stem: channels of the stem and the first stage; each further stage doubles them.
    """

    def __init__(self, spec: ModelSpec, blocks: int, stem: int = 16) -> None:
        super().__init__()
        widths = [spec.scaled(stem * factor) for factor in (1, 2, 4)]
        self.conv1 = nn.Conv2d(spec.channels, widths[0], 3, padding=1, bias=spec.bias)
        self.bn1 = BATCH_NORMS[spec.batch_norm](widths[0])
        self.layer1 = self._stage(widths[0], widths[0], 1, blocks, spec)
        self.layer2 = self._stage(widths[0], widths[1], 2, blocks, spec)
        self.layer3 = self._stage(widths[1], widths[2], 2, blocks, spec)
        self.fc = FullyConnected(widths[2], spec.classes, 1, bias=spec.bias)

    @staticmethod
    def _stage(channels_in: int, channels: int, stride: int, blocks: int, spec: ModelSpec) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride, spec)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1, spec) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.fc(F.adaptive_avg_pool2d(out, 1)).flatten(1)


def resnet20(spec: ModelSpec) -> CifarResNet:
    """ResNet-20: 0.27 million weights on CIFAR-10."""
    return CifarResNet(spec, blocks=3)


def resnet32(spec: ModelSpec) -> CifarResNet:
    """ResNet-32: 0.46 million weights on CIFAR-10."""
    return CifarResNet(spec, blocks=5)


def resnet32_double(spec: ModelSpec) -> CifarResNet:
    """ResNet-32 with twice the channels: 1.8 million weights on CIFAR-10."""
    return CifarResNet(spec, blocks=5, stem=32)
