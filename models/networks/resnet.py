"""ResNets and wide ResNets, for large images (7×7 stem) and small ones (3×3 stem).

Layers have torchvision's names, but in networks for small images a block's projection is called `shortcut` instead of
`downsample`, as in published state_dicts.

Source: He et al., CVPR 2016 (arXiv 1512.03385), Table 1, option-B shortcuts; a bottleneck strides in its 3×3
convolution (Goyal et al. 2017, arXiv 1706.02677, §5.1). Wide: Zagoruyko & Komodakis, BMVC 2016 (arXiv 1605.07146).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BATCH_NORMS, FullyConnected, projection_strides
from models.spec import ModelSpec


@dataclass(frozen=True)
class Layout:
    """The settings that all blocks of a network share.

    Attributes:
        spec: layer options.
        small: whether the network is for small images.
        inner: factor of a bottleneck's inner width.
    """

    spec: ModelSpec
    small: bool = False
    inner: int = 1

    def conv(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Make a convolution whose padding keeps the image size at stride 1; `kernel`, its side in pixels, is odd."""
        return nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=self.spec.bias)

    def norm(self, channels: int) -> nn.Module:
        """Make the BatchNorm that the spec names."""
        return BATCH_NORMS[self.spec.batch_norm](channels)


class Block(nn.Module):
    """Base of both kinds of block: a shortcut, which is a 1×1 convolution with BatchNorm if the shape changes."""

    def _add_shortcut(self, layout: Layout, channels_in: int, channels: int, stride: int) -> None:
        self._projection = None
        if stride != 1 or channels_in != channels:
            self._projection = "shortcut" if layout.small else "downsample"
            self._every, stride = projection_strides(channels_in, stride)
            projection = nn.Sequential(layout.conv(channels_in, channels, 1, stride), layout.norm(channels))
            self.add_module(self._projection, projection)

    def _shortcut(self, images: Tensor) -> Tensor:
        if not self._projection:
            return images
        return self.get_submodule(self._projection)(images[..., :: self._every, :: self._every])


class BasicBlock(Block):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, layout: Layout, channels_in: int, base: int, stride: int) -> None:
        # (B, channels_in, H, W) -> (B, channels, H / stride, W / stride), rounded up
        channels = layout.spec.scaled(base)
        super().__init__()
        self.conv1, self.bn1 = layout.conv(channels_in, channels, 3, stride), layout.norm(channels)
        self.conv2, self.bn2 = layout.conv(channels, channels, 3), layout.norm(channels)
        self._add_shortcut(layout, channels_in, channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(images))


class Bottleneck(Block):
    """A 1×1, a 3×3 and a four times wider 1×1 convolution, and a shortcut.

    Args:
        layout: the network's.
        channels_in: input channels.
        base: inner channels before `width` and the layout's `inner`; the block has 4 · base output channels, scaled.
        stride: of the 3×3 convolution.
    """

    expansion = 4

    def __init__(self, layout: Layout, channels_in: int, base: int, stride: int) -> None:
        inner, channels = layout.spec.scaled(base * layout.inner), layout.spec.scaled(base * self.expansion)
        super().__init__()
        self.conv1, self.bn1 = layout.conv(channels_in, inner, 1), layout.norm(inner)
        self.conv2, self.bn2 = layout.conv(inner, inner, 3, stride), layout.norm(inner)
        self.conv3, self.bn3 = layout.conv(inner, channels, 1), layout.norm(channels)
        self._add_shortcut(layout, channels_in, channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self._shortcut(images))


class ResNet(nn.Module):
    """A ResNet; each stage has twice the channels of the one before.

    Maps have 1/4, 1/8, 1/16 and 1/32 of the image's sides in the stages, with the small stem 1, 1/2, 1/4 and 1/8.

    Args:
        layout: layer options and kind of stem.
        block: `BasicBlock` or `Bottleneck`.
        depths: number of blocks in each stage.
        base: channels of the stem and, times the block's expansion, of the first stage.
    """

    def __init__(
        self, layout: Layout, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], base: int = 64
    ) -> None:
        super().__init__()
        spec, channels = layout.spec, layout.spec.scaled(base)
        stem = {"kernel": 3} if layout.small else {"kernel": 7, "stride": 2}
        self.conv1, self.bn1 = layout.conv(spec.channels, channels, **stem), layout.norm(channels)
        self.maxpool = nn.Identity() if layout.small else nn.MaxPool2d(3, 2, padding=1)
        self._stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, depth in enumerate(depths):
            blocks = []
            for place in range(depth):
                stride = 2 if stage > 0 and place == 0 else 1
                blocks.append(block(layout, channels, base * 2**stage, stride))
                channels = spec.scaled(base * 2**stage * block.expansion)
            self.add_module(self._stages[stage], nn.Sequential(*blocks))
        self.fc = FullyConnected(channels, spec.classes, 1, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        out = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for stage in self._stages:
            out = self.get_submodule(stage)(out)
        return self.fc(F.adaptive_avg_pool2d(out, 1)).flatten(1)


def resnet18(spec: ModelSpec) -> ResNet:
    """ResNet-18: 11.7 million weights for the 1000 classes of ImageNet, 11.3 for the 200 of Tiny ImageNet."""
    return ResNet(Layout(spec), BasicBlock, (2, 2, 2, 2))


def resnet50(spec: ModelSpec) -> ResNet:
    """ResNet-50: 25.5 million weights on ImageNet."""
    return ResNet(Layout(spec), Bottleneck, (3, 4, 6, 3))


def resnet101(spec: ModelSpec) -> ResNet:
    """ResNet-101: 44.4 million weights on ImageNet."""
    return ResNet(Layout(spec), Bottleneck, (3, 4, 23, 3))


def wide_resnet50_2(spec: ModelSpec) -> ResNet:
    """ResNet-50 with bottlenecks twice as wide: 68.8 million weights on ImageNet."""
    return ResNet(Layout(spec, inner=2), Bottleneck, (3, 4, 6, 3))


def wide_resnet101_2(spec: ModelSpec) -> ResNet:
    """ResNet-101 with bottlenecks twice as wide: 126.7 million weights on ImageNet."""
    return ResNet(Layout(spec, inner=2), Bottleneck, (3, 4, 23, 3))


def small_resnet18(spec: ModelSpec) -> ResNet:
    """ResNet-18 with a 3×3 stem and no pooling: 11.2 million weights on CIFAR-10."""
    return ResNet(Layout(spec, small=True), BasicBlock, (2, 2, 2, 2))


def small_resnet50(spec: ModelSpec) -> ResNet:
    """ResNet-50 with a 3×3 stem and no pooling: 23.5 million weights on CIFAR-10."""
    return ResNet(Layout(spec, small=True), Bottleneck, (3, 4, 6, 3))
