"""VGG with BatchNorm and one linear layer, the variant for small images.

Source: Simonyan & Zisserman, ICLR 2015 (arXiv 1409.1556), Table 1, column D; one linear layer replaces its three.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import BATCH_NORMS, FullyConnected
from models.spec import ModelSpec

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) of each stage; each stage ends in a pooling."""


class VGG16(nn.Module):
    """VGG-16: 14.7 million weights on CIFAR-10.

    Stages of 3×3 convolutions, each followed by 2×2 max pooling; then average pooling and a linear classifier.

    Args:
        spec: classes, image shape, layer options.

    Raises:
        UserError: the images are too small for the poolings.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        spec.check_poolings(len(STAGES))
        layers, channels = [], spec.channels
        for base, convolutions in STAGES:
            width = spec.scaled(base)
            for _ in range(convolutions):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=spec.bias)
                layers += [convolution, BATCH_NORMS[spec.batch_norm](width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = FullyConnected(channels, spec.classes, 1, bias=spec.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(images), 1)).flatten(1)
