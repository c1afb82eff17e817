"""What a ticket costs and what of it is connected, worked out by hand on small networks."""

import warnings
from copy import deepcopy

import pytest
import torch
from conftest import same_bits
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import deform_conv2d

from args_helper import parse_args
from data.spec import DataSpec
from models.build import build_model
from models.masking import FlatScores, keep_dense, prunable_parameters, to_masked
from trainers.checks.connectivity import connectivity, warn_of_thin_layers
from trainers.training.cost import Cost, activation_bytes, forward_flops, scoring_flops, summed
from utils.masks import all_kept


class Small(nn.Module):
    """A 3×3 convolution from 2 to 4 channels on 6×6, batch norm, a mean, a linear layer to 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 3, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(images)).relu().mean((2, 3)))


CONV, OUT = 2 * 4 * 2 * 9 * 36, 2 * 4 * 3  # a multiplication and an addition each
FLOPS = {"": CONV + OUT, "conv": CONV, "out": OUT}


def counted(*epochs: tuple, begun: dict | None = None) -> dict:
    """The totals after some epochs, each (steps, images, densities) and, if there is one, a teacher."""
    cost = Cost(torch.device("cpu"), begun)
    for epoch in epochs:
        cost.count(*epoch)
    return cost.totals


def test_forward_flops_are_those_of_convolutions_and_products():
    net = Small()
    running = net.norm.running_mean.clone()
    assert forward_flops(net, (2, 6, 6)) == FLOPS
    assert torch.equal(net.norm.running_mean, running)
    assert scoring_flops(net, torch.zeros(5, 2, 6, 6)) == 3 * 5 * (CONV + OUT)


def test_the_ledger_weighs_every_layer_by_its_density_at_the_time():
    first = counted((10, 100, {"conv": 1.0, "out": 0.5}), (10, 100, {"conv": 0.5, "out": 0.5}))
    found = summed([first, counted((3, 30, {}))], FLOPS, 12.5)  # of the second, every layer is whole
    assert found.pop("peak_memory_bytes") > 10**7  # a process with torch in it
    assert found == {
        "epochs": 3, "steps": 23, "images": 230, "seconds": 12.5, "training_flops_dense": 3 * 230 * (CONV + OUT),
        "training_flops_masked": 3 * (CONV * (100 + 50 + 30) + OUT * (50 + 50 + 30)),
    }  # fmt: skip


def test_a_teacher_costs_a_dense_forward_pass_of_every_image_it_sees():
    taught = counted((10, 100, {"conv": 0.5}, True), (10, 20, {"conv": 0.5}, True))
    found = summed([counted((10, 100, {"conv": 0.5})), taught], FLOPS, 1.0)
    assert found["training_flops_dense"] == (3 * 220 + 120) * (CONV + OUT)
    assert found["training_flops_masked"] == 3 * 220 * (CONV // 2 + OUT) + 120 * (CONV + OUT)


def test_what_is_counted_goes_on_from_what_was_saved():
    after = counted((4, 40, {"conv": 0.5}), begun=counted((4, 40, {"conv": 0.25})))
    assert (after["exposure"], after["steps"]) == ({"conv": 30.0}, 8)


def test_memory_that_is_used_meanwhile_is_seen():
    cost = Cost(torch.device("cpu"))
    cost.count(1, 1, {})
    before = cost.totals["peak_memory_bytes"]
    _big = torch.ones(64 * 2**20)  # 256 MiB
    cost.count(1, 1, {})
    assert cost.totals["peak_memory_bytes"] - before > 200 * 2**20


def test_a_search_keeps_the_activations_of_the_dense_network_and_its_masked_weights_once():
    spec = DataSpec((3, 16, 16), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    dense = build_model(parse_args([]), spec)
    masked = to_masked(deepcopy(dense)).requires_grad_(False)
    FlatScores(masked)
    images = torch.randn(16, *spec.shape)
    weights = 4 * sum(weight.numel() for weight in prunable_parameters(dense).values())
    assert 0 < activation_bytes(masked, images) - activation_bytes(dense, images) <= 1.01 * weights


# ---- connections ---------------------------------------------------------------------------------------------------


def test_weights_without_a_way_to_input_and_output_do_not_count_as_effective():
    net = Small()
    masks = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in prunable_parameters(net).items()}
    masks["conv.weight"][0, 0, 1, 1] = True  # to channel 0, which goes on to class 1
    masks["conv.weight"][1, 0, 1, 1] = True  # to channel 1, which goes nowhere
    masks["out.weight"][1, 0] = True
    masks["out.weight"][2, 3] = True  # from channel 3, to which nothing comes
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert connectivity(net, masks, (2, 6, 6)) == {
        "effective_weights_remaining": 2, "effective_weights_remaining_percent": pytest.approx(100 * 2 / 84),
        "dead_layers": [], "thin_layers": ["conv", "out"],
    }  # fmt: skip
    assert same_bits(net.state_dict(), before)
    masks["out.weight"].zero_()
    found = connectivity(net, masks, (2, 6, 6))
    assert (found["effective_weights_remaining"], found["dead_layers"]) == (0, ["out"])


def test_negative_weights_of_a_layer_that_stays_dense_cut_nothing_off():
    net = keep_dense(Small(), first=True, last=False)
    net.conv.weight.data.fill_(-1.0)
    assert connectivity(net, all_kept({"out.weight": net.out.weight}), (2, 6, 6))["effective_weights_remaining"] == 12


def test_forward_flops_of_attention_are_counted_whole():
    net = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))  # 5 tokens of 8 numbers
    products = 5 * 8 * 24 + 2 * (5 * 5 * 8) + 5 * 8 * 8 + 2 * (5 * 8 * 16)  # projections in and out, attention, MLP
    assert forward_flops(net, (5, 2, 4))[""] == 2 * products


class Calling(nn.Module):
    """Calls a function, as many networks of others do instead of having a layer for it."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


class Gated(nn.Module):
    """Squeeze-and-excitation: 2×2 weights scale what 2×2 others let through, again and again."""

    def __init__(self, blocks=1):
        super().__init__()
        self.ways, self.gates = (nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(blocks)) for _ in range(2))
        self.out = nn.Linear(2, 3)

    def forward(self, images):
        for way, gate in zip(self.ways, self.gates):
            images = way(images) * gate(images.mean((2, 3), keepdim=True)).sigmoid()
        return self.out(images.mean((2, 3)))


def weights_of(net):
    return {name: weight for name, weight in prunable_parameters(net).items() if name.endswith("weight")}


def test_a_gate_that_is_pruned_lets_through_and_deep_ones_do_not_overflow():
    net = Gated(blocks=12)
    masks = all_kept(weights_of(net))
    assert connectivity(net, masks, (2, 4, 4))["effective_weights_remaining"] == 12 * 8 + 6
    masks["gates.5.weight"].zero_()
    assert connectivity(net, masks, (2, 4, 4))["effective_weights_remaining"] == 12 * 8 + 6 - 4
    masks["out.weight"].zero_()
    assert connectivity(net, masks, (2, 4, 4))["effective_weights_remaining"] == 0


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Sigmoid()])
def test_a_bias_or_the_middle_of_a_sigmoid_is_no_way_from_the_input(between):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), between, nn.Linear(5, 3))
    masks = all_kept(weights_of(net))
    assert connectivity(net, masks, (1, 2, 2))["effective_weights_remaining"] == 20 + 15
    masks["1.weight"][1:] = False  # leaves one of five units
    assert connectivity(net, masks, (1, 2, 2))["effective_weights_remaining"] == 4 + 3


def test_a_network_that_cannot_be_differentiated_twice_has_its_effective_weights_too():
    offset, kernel = torch.zeros(1, 2, 2, 2, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[..., None, None]
    deformed = Calling(lambda images: deform_conv2d(images, offset, kernel))
    net = nn.Sequential(nn.Conv2d(2, 5, 1), deformed, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(5, 3))
    masks = all_kept(weights_of(net))
    masks["4.weight"][:, 0] = False
    assert connectivity(net, masks, (2, 2, 2))["effective_weights_remaining"] == 8 + 12


def test_the_values_of_weights_cut_nothing_off():
    net = Gated()
    masks = all_kept(weights_of(net))
    for parameter in net.parameters():
        parameter.data.zero_()
    assert connectivity(net, masks, (2, 4, 4))["effective_weights_remaining"] == 8 + 6


@pytest.mark.parametrize(("layer", "features"), [
    (nn.ReLU6(), 8), (nn.Hardswish(), 8), (nn.Sigmoid(), 8), (nn.Hardsigmoid(), 8), (nn.Tanh(), 8),
    (nn.GroupNorm(1, 2), 8), (nn.BatchNorm2d(2), 8), (Calling(torch.tanh), 8),
    (Calling(lambda images: images.clamp(0, 1)), 8),
    # On 2×2 maps each of the four entries that are pooled reads other weights of the convolution.
    (nn.MaxPool2d(2), 2), (nn.AdaptiveMaxPool2d(1), 2), (Calling(lambda images: functional.max_pool2d(images, 2)), 2),
])  # fmt: skip
def test_saturation_normalisation_and_max_pooling_cut_nothing_off(layer, features):
    conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    conv.weight.data.fill_(1000.0)
    net, weights = nn.Sequential(conv, layer, nn.Flatten(), nn.Linear(features, 3, bias=False)), 18 + 3 * features
    assert connectivity(net, all_kept(prunable_parameters(net)), (1, 2, 2))["effective_weights_remaining"] == weights


def test_a_thin_layer_is_warned_of_once():
    masks = {"a.weight": torch.ones(4, 2, dtype=torch.bool), "b.weight": torch.zeros(3, 4, dtype=torch.bool)}
    masks["b.weight"][0, :2] = True
    said, text = set(), r"after epoch 3, these layers keep less than one weight a filter: b \(2 for 3\)"
    with pytest.warns(UserWarning, match=text):
        warn_of_thin_layers(masks, "after epoch 3", said)
    with warnings.catch_warnings(action="error"):
        warn_of_thin_layers(masks, "after epoch 4", said)
