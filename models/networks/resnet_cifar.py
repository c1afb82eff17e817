"""ResNets for small images: three stages of basic blocks, a 3×3 stem, shortcuts without weights.

Source: He et al., CVPR 2016 (arXiv 1512.03385), §4.2: depth 6n + 2, option-A shortcuts.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.networks.resnet import BasicBlock, Layout, ResNet
from models.spec import ModelSpec


class PaddedBlock(BasicBlock):
    """Two 3×3 convolutions and a shortcut that subsamples by slicing and pads missing channels with zeros.

    Half of the missing channels are padded before the others, half after them (option A has no weights to prune).
    """

    def _add_shortcut(self, _layout: Layout, channels_in: int, channels: int, stride: int) -> None:
        self._stride, self._missing = stride, channels - channels_in

    def _shortcut(self, images: Tensor) -> Tensor:
        if self._stride == 1 and not self._missing:
            return images
        before = self._missing // 2
        subsampled = images[:, :, :: self._stride, :: self._stride]
        return F.pad(subsampled, (0, 0, 0, 0, before, self._missing - before))


def _of_three_stages(spec: ModelSpec, blocks: int, base: int = 16) -> ResNet:
    return ResNet(Layout(spec, small=True), PaddedBlock, (blocks,) * 3, base)


def resnet20(spec: ModelSpec) -> ResNet:
    """ResNet-20: 0.27 million weights on CIFAR-10."""
    return _of_three_stages(spec, blocks=3)


def resnet32(spec: ModelSpec) -> ResNet:
    """ResNet-32: 0.46 million weights on CIFAR-10."""
    return _of_three_stages(spec, blocks=5)


def resnet32_double(spec: ModelSpec) -> ResNet:
    """ResNet-32 with twice the channels: 1.8 million weights on CIFAR-10."""
    return _of_three_stages(spec, blocks=5, base=32)
