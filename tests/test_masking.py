"""Masking as a transformation of any network, and all scores of a network as one vector."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models.layers import (
    DenseConv,
    DenseLinear,
    FullyConnected,
    MaskedFullyConnected,
    Round,
    Soft,
    SubnetConv,
    SubnetLinear,
)
from models.masking import (
    FlatScores,
    keep_dense,
    layer_parameters,
    leave_biases,
    masked_layers,
    plain_state,
    prunable_parameters,
    set_rule,
    to_masked,
    to_plain,
)
from utils.errors import UserError

SCORE_NAMES = {"scores", "flag", "bias_scores", "bias_flag"}


def small_network(bias: bool = True) -> nn.Sequential:
    """Three layers, two of them with a bias unless asked otherwise, one of every kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(FullyConnected(4, 3, 1, bias=False), nn.Flatten()),
        nn.Linear(3, 2, bias=bias),
    )


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def kind_of(name: str) -> str:
    return name.rpartition(".")[2]


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


# ---- to_masked, to_plain -------------------------------------------------------------------------------------------


def test_every_layer_becomes_its_own_masked_control_network_and_back():
    network = small_network()
    before = [type(module) for module in network.modules()]
    assert to_masked(network) is network
    assert [type(layer) for layer in masked_layers(network).values()] == [
        SubnetConv,
        MaskedFullyConnected,
        SubnetLinear,
    ]
    assert to_plain(network) is network
    assert [type(module) for module in network.modules()] == before


def test_names_and_their_order_stay_as_they_were():
    network = small_network()
    modules, state = [name for name, _ in network.named_modules()], list(network.state_dict())
    to_masked(network)
    assert [name for name, _ in network.named_modules()] == modules
    assert [name for name in network.state_dict() if kind_of(name) not in SCORE_NAMES] == state
    assert list(masked_layers(network)) == ["0", "4.0", "5"]
    to_plain(network)
    assert list(network.state_dict()) == state


def test_weights_are_the_very_same_parameters_there_and_back():
    network = small_network()
    before = dict(network.named_parameters())
    before["5.weight"].requires_grad_(False)
    for swap in (to_masked, to_plain):
        now = dict(swap(network).named_parameters())
        assert all(now[name] is parameter for name, parameter in before.items())
        assert not now["5.weight"].requires_grad
        assert now["0.weight"].requires_grad


def test_scores_and_flags_begin_as_ones_of_the_weights_type():
    network = to_masked(small_network().double())
    for layer in masked_layers(network).values():
        assert torch.equal(layer.scores, torch.ones_like(layer.weight))
        assert layer.scores.dtype == torch.float64
        assert layer.flag.dtype == torch.bool
        assert bool(layer.flag.all())
        assert layer.bias is None or (bool((layer.bias_scores == 1).all()) and bool(layer.bias_flag.all()))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_stays_in_its_mode(training):
    network = to_masked(small_network().train(training))
    assert all(module.training == training for module in network.modules())


def test_masking_twice_changes_nothing_more():
    network = to_masked(small_network())
    layers = masked_layers(network)
    layers["0"].scores.data.fill_(0.25)
    to_masked(network)
    assert all(masked_layers(network)[name] is layer for name, layer in layers.items())
    assert bool((masked_layers(network)["0"].scores == 0.25).all())


def test_a_layer_with_a_forward_of_its_own_is_left_alone():
    class Doubled(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return 2 * super().forward(features)

    network = nn.Sequential(Doubled(3, 3), nn.Linear(3, 2))
    own = network[0]
    to_masked(network)
    assert network[0] is own
    assert list(masked_layers(network)) == ["1"]


# ---- layers that stay dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "left"),
    [
        (True, False, ["4.0", "5"]),
        (False, True, ["0", "4.0"]),
        (True, True, ["4.0"]),
        (False, False, ["0", "4.0", "5"]),
    ],
)
def test_ends_that_stay_dense_are_neither_masked_nor_pruned_and_compute_as_before(first, last, left):
    network = small_network()
    before, parameters = network(images(3, 2, 8, 8)), dict(network.named_parameters())
    assert keep_dense(network, first, last) is network
    assert (type(network[0]) is DenseConv, type(network[5]) is DenseLinear) == (first, last)
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in prunable_parameters(network))) == left
    assert [*layer_parameters(network)] == ["0.weight", "0.bias", "4.0.weight", "5.weight", "5.bias"]
    assert list(masked_layers(to_masked(network))) == left
    assert all(parameter is parameters[name] for name, parameter in layer_parameters(network).items())
    assert torch.equal(network(images(3, 2, 8, 8)), before)
    to_plain(network)
    assert (type(network[0]) is DenseConv, type(network[5]) is DenseLinear) == (first, last)


def test_a_fully_connected_convolution_can_stay_dense():
    network = keep_dense(small_network()[:5], False, True)
    assert type(network[4][0]) is DenseConv
    assert list(prunable_parameters(network)) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    "network", [nn.Sequential(nn.ReLU()), keep_dense(nn.Sequential(nn.Linear(2, 2)), True, True)], ids=["none", "dense"]
)
def test_a_network_without_a_layer_to_mask_is_refused(network):
    with pytest.raises(UserError, match="the network has nothing to mask"):
        to_masked(network)


def test_a_layer_with_two_names_cannot_stay_dense_and_stops_nothing_that_swaps_no_layer():
    shared = nn.Linear(2, 2)
    network = nn.Sequential(shared, nn.ReLU(), shared)
    assert keep_dense(network, False, False)[0] is shared
    with pytest.raises(UserError, match="cannot mask layer '2', which is also 0"):
        keep_dense(network, True, False)


def test_biases_that_are_left_alone_are_neither_masked_nor_flattened_and_always_switched_on():
    network = small_network()
    before, biases = network(images(3, 2, 8, 8)), {"0.bias", "5.bias"}
    assert leave_biases(network) is network
    for swap in (to_masked, to_plain, to_masked, deepcopy):  # the layers keep it through all of them
        network = swap(network)
        assert list(prunable_parameters(network)) == ["0.weight", "4.0.weight", "5.weight"]
        assert biases < layer_parameters(network).keys()
        assert not {"0.bias_scores", "5.bias_flag"} & network.state_dict().keys()
        assert torch.equal(network(images(3, 2, 8, 8)), before)
    flat = FlatScores(network)
    assert flat.segments == [slice(0, 90)]
    flat.flags.fill_(False)
    assert torch.equal(network(images(3, 2, 8, 8)), network[5].bias.expand(3, 2))


# ---- what is kept in the swap --------------------------------------------------------------------------------------

GEOMETRIES = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (1, 2)},
    "same": {"padding": "same"},
    "dilation": {"dilation": (1, 2)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "no bias": {"bias": False},
    "oblong kernel": {"kernel_size": (1, 3)},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_a_convolution_keeps_its_geometry(options):
    network = nn.Sequential(nn.Conv2d(4, 8, **{"kernel_size": 3, **options}))
    described, wanted = network[0].extra_repr(), network(images(2, 4, 9, 7))
    for swap in (to_masked, to_plain):
        swap(network)
        assert network[0].extra_repr() == described
        assert torch.equal(network(images(2, 4, 9, 7)), wanted)


def test_a_torchvision_network_works_masked():
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None, num_classes=5).eval()
    batch = images(2, 3, 32, 32)
    plain, count = network(batch), sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules())
    to_masked(network)
    layers = masked_layers(network)
    assert len(layers) == count == 53
    assert torch.equal(network(batch), plain)

    for layer in layers.values():
        layer.scores.data.copy_(torch.rand(layer.scores.shape))
    network.train()(batch).square().sum().backward()
    assert all(layer.scores.grad is not None and bool(layer.scores.grad.any()) for layer in layers.values())


def test_a_masked_network_is_the_plain_one_with_its_weights_multiplied():
    network = to_masked(small_network())
    generator = torch.Generator().manual_seed(2)
    for layer in masked_layers(network).values():
        layer.scores.data.copy_(torch.rand(layer.scores.shape, generator=generator))
        layer.flag.copy_(torch.rand(layer.flag.shape, generator=generator) < 0.8)
    masks = {f"{name}.weight": (layer.scores > 0.5) & layer.flag for name, layer in masked_layers(network).items()}
    masked = network(images(2, 2, 6, 6))
    to_plain(network)
    for name, mask in masks.items():
        network.get_parameter(name).data.mul_(mask)
    assert torch.equal(network(images(2, 2, 6, 6)), masked)


def test_a_layer_that_is_used_under_two_names_is_refused():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    network.append(network[0])
    with pytest.raises(UserError, match="cannot mask layer '2', which is also 0"):
        to_masked(network)
    assert not masked_layers(network)


def test_a_network_that_is_one_layer_is_refused():
    with pytest.raises(UserError, match="is the whole network"):
        to_masked(nn.Linear(3, 2))


# ---- prunable parameters, rules, state -----------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [lambda network: network, to_masked], ids=["plain", "masked"])
def test_the_prunable_parameters_are_weights_and_biases_of_layers_but_not_of_batch_norms(swap):
    network = swap(small_network())
    prunable = prunable_parameters(network)
    assert list(prunable) == ["0.weight", "0.bias", "4.0.weight", "5.weight", "5.bias"]
    assert all(network.get_parameter(name) is parameter for name, parameter in prunable.items())


def test_every_layer_gets_the_rule():
    network, rule = to_masked(small_network()), Soft()
    assert all(layer.rule == Round(0.5) for layer in masked_layers(network).values())
    set_rule(network, rule)
    assert all(layer.rule is rule for layer in masked_layers(network).values())


def test_the_plain_state_fits_the_plain_network_and_holds_unmasked_weights():
    plain = small_network()
    network = to_masked(deepcopy(plain))
    network.train()(images(2, 2, 6, 6))  # moves the running statistics
    for layer in masked_layers(network).values():
        layer.scores.data.fill_(0.0)
        layer.flag.fill_(False)
    state = plain_state(network)
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], parameter) for name, parameter in plain.named_parameters())
    assert torch.equal(state["1.running_mean"], network[1].running_mean)
    assert bool(state["1.running_mean"].any())


def test_the_plain_state_is_a_copy():
    network = to_masked(small_network())
    state = plain_state(network)
    kept = state["0.weight"].clone()
    network[0].weight.data.zero_()
    network[1].running_var.zero_()
    assert torch.equal(state["0.weight"], kept)
    assert bool((state["1.running_var"] == 1).all())
    assert not any(value.requires_grad for value in state.values())


def test_the_plain_state_keeps_a_buffer_of_the_users_own_that_is_called_scores():
    network = nn.Sequential(nn.Linear(3, 2))
    network.register_buffer("scores", torch.ones(2))
    assert list(plain_state(to_masked(network))) == list(to_plain(network).state_dict())


def test_what_is_prunable_is_what_is_masked():
    class Doubled(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            return 2 * super().forward(features)

    network = to_masked(nn.Sequential(Doubled(3, 3), nn.Linear(3, 2)))
    assert list(prunable_parameters(network)) == list(FlatScores(network).split(torch.zeros(8)))


# ---- flat scores ---------------------------------------------------------------------------------------------------


def flat_network(bias: bool = True) -> tuple[nn.Sequential, FlatScores]:
    """A masked network with drawn scores and a few flags off, flattened."""
    network = to_masked(small_network(bias))
    generator = torch.Generator().manual_seed(3)
    for layer in masked_layers(network).values():
        for kind in ("", "bias_") if layer.bias is not None else ("",):
            scores, flag = getattr(layer, f"{kind}scores"), getattr(layer, f"{kind}flag")
            scores.data.copy_(torch.rand(scores.shape, generator=generator))
            flag.copy_(torch.rand(flag.shape, generator=generator) < 0.8)
    return network, FlatScores(network)


def parts(network: nn.Module, kind: str) -> list[Tensor]:
    """Scores or flags of the network's layers: weights' in network order, then biases'."""
    layers = masked_layers(network).values()
    return [getattr(one, kind) for one in layers] + [
        getattr(one, f"bias_{kind}") for one in layers if one.bias is not None
    ]


def test_flattening_keeps_every_score_and_flag_weights_first_then_biases():
    network, _ = flat_network()
    wanted = {
        kind: torch.cat([part.detach().flatten() for part in parts(network, kind)]) for kind in ("scores", "flag")
    }
    again = FlatScores(network)
    assert torch.equal(again.scores, wanted["scores"])
    assert torch.equal(again.flags, wanted["flag"])
    assert again.flags.dtype == torch.bool
    assert not bool(again.flags.all())
    assert again.scores.numel() == 72 + 12 + 6 + 4 + 2


def test_the_layers_scores_and_flags_are_views_of_the_whole():
    network, flat = flat_network()
    assert {address(part) for part in parts(network, "scores")} == {address(flat.scores)}
    assert {address(part) for part in parts(network, "flag")} == {address(flat.flags)}
    flat.scores.data.copy_(torch.arange(96) / 96)
    flat.flags.fill_(False)
    assert torch.equal(torch.cat([part.detach().flatten() for part in parts(network, "scores")]), torch.arange(96) / 96)
    assert not any(bool(part.any()) for part in parts(network, "flag"))
    masked_layers(network)["5"].bias_scores.data.fill_(7.0)
    masked_layers(network)["5"].bias_flag.fill_(True)
    assert flat.scores[-2:].tolist() == [7.0, 7.0]
    assert flat.flags.nonzero().flatten().tolist() == [94, 95]


def test_a_backward_pass_fills_the_one_gradient():
    network, flat = flat_network()
    assert {address(part.grad) for part in parts(network, "scores")} == {address(flat.scores.grad)}
    network(images(2, 2, 6, 6)).square().sum().backward()
    assert {address(part.grad) for part in parts(network, "scores")} == {address(flat.scores.grad)}

    control = to_masked(small_network())
    control.load_state_dict(network.state_dict())
    control[1].reset_running_stats()
    control(images(2, 2, 6, 6)).square().sum().backward()
    assert torch.equal(flat.scores.grad, torch.cat([part.grad.flatten() for part in parts(control, "scores")]))
    assert flat.scores.grad.count_nonzero() > 20


def test_an_optimizer_of_the_whole_moves_the_layers_scores_and_keeps_the_views():
    network, flat = flat_network()
    before = [part.detach().clone() for part in parts(network, "scores")]
    optimizer = torch.optim.SGD([flat.scores], lr=0.1)
    for _ in range(2):
        network(images(2, 2, 6, 6)).square().sum().backward()
        gradients = [part.grad.clone() for part in parts(network, "scores")]
        optimizer.step()
        before = [old - 0.1 * gradient for old, gradient in zip(before, gradients)]
        optimizer.zero_grad(set_to_none=False)
    for part, wanted in zip(parts(network, "scores"), before):
        torch.testing.assert_close(part.detach(), wanted)
    assert not bool(flat.scores.grad.any())


def test_loading_a_state_keeps_the_views():
    network, flat = flat_network()
    other, wanted = flat_network()
    wanted.scores.data.mul_(0.5)
    wanted.flags.logical_not_()
    network.load_state_dict(other.state_dict())
    assert torch.equal(flat.scores, wanted.scores)
    assert torch.equal(flat.flags, wanted.flags)
    assert {address(part) for part in parts(network, "scores")} == {address(flat.scores)}
    assert {address(part) for part in parts(network, "flag")} == {address(flat.flags)}
    assert {address(part.grad) for part in parts(network, "scores")} == {address(flat.scores.grad)}


def test_flattening_leaves_the_state_and_the_output_as_they_were():
    network = to_masked(small_network()).eval()
    network[0].scores.data.copy_(torch.rand(network[0].scores.shape))
    names, out = list(network.state_dict()), network(images(2, 2, 6, 6))
    FlatScores(network)
    assert list(network.state_dict()) == names
    assert torch.equal(network(images(2, 2, 6, 6)), out)


@pytest.mark.parametrize(("bias", "segments"), [(True, [slice(0, 90), slice(90, 96)]), (False, [slice(0, 90)])])
def test_the_segments_are_the_weights_and_the_biases_if_there_are_any(bias, segments):
    _, flat = flat_network(bias)
    assert flat.segments == segments


def test_splitting_gives_views_by_parameter_name_and_shape():
    network, flat = flat_network()
    whole = torch.arange(96.0)
    split = flat.split(whole)
    assert list(split) == ["0.weight", "4.0.weight", "5.weight", "0.bias", "5.bias"]
    assert {name: part.shape for name, part in split.items()} == {
        name: parameter.shape for name, parameter in prunable_parameters(network).items()
    }
    assert split["4.0.weight"].flatten().tolist() == list(range(72, 84))
    assert split["5.bias"].tolist() == [94.0, 95.0]
    split["0.bias"].fill_(-1.0)
    assert whole[90:94].tolist() == [-1.0] * 4
