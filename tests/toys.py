"""A network of 228 weights on random 4×4 images of three classes, and what is said of a call that is refused."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from data.batches import PlainBatches, TrainBatches
from data.load import Splits
from data.spec import DataSpec, ImageSet
from models.initialise import WeightDraw, draw_weights
from utils.errors import UserError

SPEC = DataSpec(shape=(1, 4, 4), classes=("a", "b", "c"), mean=(0.5,), std=(0.25,))


class Toy(nn.Module):
    """A convolution, an affine batch norm and a linear layer: 36 + 192 weights, 4 + 3 biases; one can follow each."""

    def __init__(self, bias: bool = False, seed: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(64, 3, bias=bias)
        draw_weights(self, seeded(seed), WeightDraw("kaiming_normal"))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(images)).relu().flatten(1))


def spec_of(*shape: int, classes: int = 10) -> DataSpec:
    """Images of a shape (C, H, W) that are not normalised."""
    return DataSpec(shape, tuple(map(str, range(classes))), (0.0,) * shape[0], (1.0,) * shape[0])


def bools(text: str) -> Tensor:
    """`1101` as a boolean vector."""
    return torch.tensor([sign == "1" for sign in text])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, seed: int) -> ImageSet:
    generator = seeded(seed)
    pixels = torch.randint(256, (count, *SPEC.shape), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.randint(len(SPEC.classes), (count,), generator=generator))


def splits(count: int, batch_size: int = 8, *, val: bool = True, spec: DataSpec = SPEC) -> Splits:
    """Make `count` training images, and 30 for validation (without `val`: none) and testing."""
    plain = [PlainBatches(images(30, seed), spec) for seed in (1, 2)]
    return Splits(spec, TrainBatches(images(count, 0), spec, batch_size), plain[0] if val else None, plain[1])


def complaint(call: Callable[..., object], *given: object, **options: object) -> str:
    """What the `UserError` says that a call has to end with."""
    with pytest.raises(UserError) as raised:
        call(*given, **options)
    return str(raised.value)


def whole(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All images and all labels of an epoch or of a split."""
    images, labels = zip(*batches)
    return torch.cat(images), torch.cat(labels)
