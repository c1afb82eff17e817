"""Folded networks compute what the networks do in evaluation, before and after these have changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from args_helper import parse_args
from data.spec import DataSpec
from models.build import build_model
from models.folding import FoldedNetwork

SPEC = DataSpec((3, 32, 32), ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)


def _trained_a_little(net: nn.Module, seed: int) -> None:
    """Move every parameter and statistic from where it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator) * (0.5 if "var" in name else 0.05))


@pytest.mark.parametrize("arch", ["resnet20", "cResNet18", "vgg16", "MobileNetV2", "WideResNet28", "Conv4"])
@pytest.mark.parametrize("options", ["", "--bias --bn_type AffineBatchNorm"])
def test_a_folded_network_answers_as_the_network_does(arch: str, options: str) -> None:
    net = build_model(parse_args(["--arch", arch, "--width", "0.25", *options.split()]), SPEC)
    images = torch.randn(4, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    folded = FoldedNetwork(net)
    for seed in (1, 2):
        _trained_a_little(net, seed)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with torch.inference_mode():
            expected = net.eval()(images)
            found = folded.refreshed()(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    norms = [module for module in folded.refreshed().modules() if isinstance(module, nn.BatchNorm2d)]
    used = {node.target for node in folded.refreshed().graph.nodes if node.op == "call_module"}
    if arch in ("resnet20", "cResNet18", "vgg16", "MobileNetV2"):
        assert not norms or not {name for name, one in folded.refreshed().named_modules() if one in norms} & used


class Branching(nn.Module):
    """Cannot be traced: it looks at what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images if images.sum() > 0 else -images)).mean((2, 3))


class Twice(nn.Module):
    """One convolution before two norms, and one whose output is used twice: neither can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.other, self.third = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        out = self.second(self.conv(self.first(self.conv(images))))
        other = self.other(out)
        return (self.third(other) + other).mean((2, 3))


@pytest.mark.parametrize("kind", [Branching, Twice])
def test_what_cannot_be_folded_is_used_as_it_is(kind: type[nn.Module]) -> None:
    net = kind()
    _trained_a_little(net, 3)
    images = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    found = FoldedNetwork(net).refreshed()(images)
    torch.testing.assert_close(found, net.eval()(images))
