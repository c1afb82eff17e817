"""Folded networks compute what the networks do in evaluation, before and after these have changed."""

from __future__ import annotations

import pytest
import torch
from conftest import same_bits
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from args_helper import parse_args
from data.spec import DataSpec
from models.build import build_model
from models.folding import FoldedNetwork

SPEC = DataSpec((3, 32, 32), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


def agree(net: nn.Module, folded: FoldedNetwork, seed: int) -> None:
    """Move every parameter and statistic from where it was, and compare the answers."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) * (0.5 if "var" in name else 0.05))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(4, *SPEC.shape, generator=generator)
    torch.testing.assert_close(folded.refreshed()(images), net.eval()(images), rtol=1e-4, atol=1e-4)
    assert same_bits(net.state_dict(), before)


@pytest.mark.parametrize("arch", ["resnet20", "cResNet18", "vgg16", "MobileNetV2", "WideResNet28", "Conv4"])
@pytest.mark.parametrize("options", ["", "--bias --bn_type AffineBatchNorm"])
def test_a_folded_network_answers_as_the_network_does(arch: str, options: str) -> None:
    net = build_model(parse_args(["--arch", arch, "--width", "0.25", *options.split()]), SPEC)
    folded = FoldedNetwork(net)
    for seed in (1, 2):
        agree(net, folded, seed)
    graph = folded.refreshed()
    used = [graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    if arch != "WideResNet28":  # its norms stand before the convolutions
        assert not any(isinstance(module, nn.BatchNorm2d) for module in used)


class Branching(nn.Module):
    """Cannot be traced: it looks at what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images if images.sum() > 0 else -images)).mean((2, 3))


class Twice(nn.Module):
    """One convolution before two norms, and one whose output is used twice: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.other, self.third = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        out = self.second(self.conv(self.first(self.conv(images))))
        other = self.other(out)
        return (self.third(other) + other).mean((2, 3))


class Normed(Twice):
    """A convolution before two norms in a row: the first is folded; and one whose weight is used elsewhere: none is."""

    def forward(self, images: Tensor) -> Tensor:
        out = self.second(self.first(self.conv(images)))
        return (self.third(self.other(out)) + self.other.weight.sum()).mean((2, 3))


class Scaled(nn.Sequential):
    """Has a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        self.scale = torch.tensor([2.0])

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * self.scale * torch.tensor(0.5))


def hooked(place: int | None) -> nn.Module:
    """A convolution and a norm, with a hook on one of them or on the whole."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    (net if place is None else net[place]).register_forward_hook(lambda _, __, out: out * 2 + 1)
    return net


# The fifth computes the weights of its convolution anew at every call.
@pytest.mark.parametrize("net", [
    Branching(), Twice(), Normed(), Scaled(), nn.Sequential(weight_norm(nn.Conv2d(3, 2, 3)), nn.BatchNorm2d(2)),
    hooked(0), hooked(1), hooked(None),
])  # fmt: skip
def test_what_cannot_be_folded_is_used_as_it_is(net: nn.Module) -> None:
    agree(net, FoldedNetwork(net), 3)
