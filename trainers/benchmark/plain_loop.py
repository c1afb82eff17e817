"""A plain implementation of Gem-Miner: the reference of `trainers.benchmark` for results and times.

It follows the algorithm step by step, without optimisation: scores and flags are parameters of every layer, the
loss sums the penalty layer by layer, scores are clamped layer by layer, every step reads the loss back, a pruning sorts
all scores, images are transformed one by one, and every epoch is evaluated before and after rounding, at the batch size
of the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data.spec import DataSpec, ImageSet


class Rounded(torch.autograd.Function):
    """1 where the score is above one half; the gradient passes through as if it were the score."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (scores > 0.5).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class PlainMaskedConv(nn.Module):
    """A convolution whose scores and flags are parameters; all weights are unpruned at first.

    Args:
        layer: a convolution without biases, whose weights are frozen.
        scores: of the shape of its weights, in [0, 1].
    """

    def __init__(self, layer: nn.Conv2d, scores: Tensor) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.scores = nn.Parameter(scores.clone())
        self.flag = nn.Parameter(torch.ones_like(scores), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer._conv_forward(images, self.layer.weight * Rounded.apply(self.scores) * self.flag, None)


def plainly_masked(net: nn.Module, scores: dict[str, Tensor]) -> list[PlainMaskedConv]:
    """Replace the convolutions of a plain network, in place, by masked ones; return these in network order.

    Args:
        net: its convolutions have no biases.
        scores: layer -> its scores.
    """
    layers = []
    for name, layer in [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]:
        layers.append(PlainMaskedConv(layer, scores[name]))
        net.set_submodule(name, layers[-1])
    return layers


def search_step(net: nn.Module, layers: list[PlainMaskedConv], optimizer: Any, lmbda: float, batch: Any) -> float:
    """Take one search step; return the loss of the task, without the penalty.

    Args:
        net: whose convolutions are `layers`.
        layers: masked.
        optimizer: of their scores.
        lmbda: λ of the penalty λ · Σ s², over all scores.
        batch: normalised images (B, C, H, W), and labels (B,).

    Source: Rare Gems (arXiv 2202.12002), Algorithm 1.
    """
    images, labels = batch
    for layer in layers:
        layer.scores.data = torch.clamp(layer.scores.data, 0.0, 1.0)
    optimizer.zero_grad()
    loss = F.cross_entropy(net(images), labels)
    penalty = 0.0
    for layer in layers:
        penalty = penalty + (layer.scores**2).sum()
    (loss + lmbda * penalty).backward()
    optimizer.step()
    return loss.item()


def tuning_step(net: nn.Module, masks: dict[str, Tensor], optimizer: Any, batch: Any) -> float:
    """Take one fine-tuning step; return the loss.

    Args:
        net: plain.
        masks: parameter name -> 1 where the weight is kept, 0 where it is pruned, float.
        optimizer: of all parameters.
        batch: normalised images (B, C, H, W), and labels (B,).
    """
    images, labels = batch
    optimizer.zero_grad()
    loss = F.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()
    for name, parameter in net.named_parameters():
        if name in masks:
            parameter.data = parameter.data * masks[name]
    return loss.item()


def prune(layers: list[PlainMaskedConv], rate: float) -> None:
    """Prune the lowest fraction of the unpruned scores by sorting them all; ties at the threshold go too.

    Args:
        layers: masked; their flags change.
        rate: fraction of the unpruned weights of all layers together, in (0, 1].
    """
    unpruned = torch.cat([layer.scores.detach()[layer.flag == 1].flatten() for layer in layers])
    threshold = torch.sort(unpruned.abs()).values[int(np.ceil(rate * unpruned.numel())) - 1]
    for layer in layers:
        layer.flag.data = layer.flag.data * (layer.scores.detach().abs() > threshold).float()


@torch.no_grad()
def accuracy(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return top-1 accuracy in percent."""
    net.eval()
    correct, count = 0, 0
    for images, labels in batches:
        correct += (net(images).argmax(1) == labels).sum().item()
        count += len(labels)
    net.train()
    return 100.0 * correct / count


class OneByOne(Dataset):
    """Images that are transformed one at a time."""

    def __init__(self, images: ImageSet, spec: DataSpec, augmented: bool) -> None:
        self._pixels = images.images.cpu().permute(0, 2, 3, 1).numpy()
        self._labels = images.labels.cpu()
        augment = [transforms.RandomCrop(spec.shape[1:], padding=spec.pad)] if spec.pad and augmented else []
        augment += [transforms.RandomHorizontalFlip()] if spec.flip and augmented else []
        self._transform = transforms.Compose(
            [*augment, transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self._pixels[index]
        return self._transform(Image.fromarray(pixels.squeeze())), self._labels[index]


def batches(images: ImageSet, spec: DataSpec, batch_size: int, augmented: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of batches: shuffled and augmented for training, in order for evaluation."""
    dataset, device = OneByOne(images, spec, augmented), images.images.device
    for part, labels in DataLoader(dataset, batch_size, shuffle=augmented, num_workers=0):
        yield part.to(device), labels.to(device)
