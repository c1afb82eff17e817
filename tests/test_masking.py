"""Masking as a transformation of any network, and all scores of a network as one vector."""

import warnings
from copy import deepcopy

import pytest
import torch
from conftest import same_bits
from torch import Tensor, nn
from toys import complaint

from models import masking
from models.layers import DenseConv, DenseLinear, FullyConnected, MaskedFullyConnected, SubnetConv, SubnetLinear
from models.masking import FlatScores, masked_layers, plain_state, prunable_parameters, to_masked, to_plain


def small_network() -> nn.Sequential:
    """Three layers, two of them with a bias, one of every kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Sequential(FullyConnected(4, 3, 1, bias=False), nn.Flatten()), nn.Linear(3, 2),
    )  # fmt: skip


class Doubled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, features: Tensor) -> Tensor:
        return 2 * super().forward(features)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- to_masked, to_plain -------------------------------------------------------------------------------------------


def test_every_layer_becomes_its_own_masked_control_network_and_back():
    network = small_network()
    network[5].weight.requires_grad_(False)
    plain, state, parameters = list(network.modules()), list(network.state_dict()), masking.layer_parameters(network)
    names = [name for name, _ in network.named_modules()]
    assert to_masked(network) is network
    masked = {name: type(layer) for name, layer in masked_layers(network).items()}
    assert [*masked.items()] == [("0", SubnetConv), ("4.0", MaskedFullyConnected), ("5", SubnetLinear)]
    assert [name for name in network.state_dict() if not name.endswith(("scores", "flag"))] == state
    for swap in (lambda same: same, to_plain):
        now = dict(swap(network).named_parameters())
        assert [name for name, _ in network.named_modules()] == names
        assert all(now[name] is parameter for name, parameter in parameters.items())
        assert not now["5.weight"].requires_grad and now["0.weight"].requires_grad
    assert list(network.state_dict()) == state and list(map(type, network.modules())) == list(map(type, plain))


def test_scores_and_flags_begin_as_ones_of_the_weights_type_and_flags_are_buffers_that_do_not_learn():
    for layer in masked_layers(to_masked(small_network().double())).values():
        own = {kind: of for kind, of in (("", layer.weight), ("bias_", layer.bias)) if of is not None}
        assert {name for name, _ in layer.named_buffers()} == {f"{kind}flag" for kind in own}
        names = {f"{kind}{what}" for kind in own for what in ("scores", "flag")}
        assert layer.state_dict().keys() - {"weight", "bias"} == names
        for kind, of in own.items():
            scores, flags = (layer.state_dict()[f"{kind}{what}"] for what in ("scores", "flag"))
            assert (scores.dtype, scores.shape, scores.unique().tolist()) == (torch.float64, of.shape, [1.0])
            assert (flags.dtype, flags.shape, flags.all()) == (torch.bool, of.shape, True)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_stays_in_its_mode(training):
    assert all(module.training == training for module in to_masked(small_network().train(training)).modules())


def test_masking_twice_changes_nothing_more():
    network = to_masked(small_network())
    layers = masked_layers(network)
    layers["0"].scores.data.fill_(0.25)
    assert masked_layers(to_masked(network)) == layers
    assert bool((network[0].scores == 0.25).all())


def test_a_layer_with_a_forward_of_its_own_is_left_alone_and_not_prunable():
    network = nn.Sequential(Doubled(3, 3), nn.Linear(3, 2))
    own = network[0]
    assert to_masked(network)[0] is own
    assert list(masked_layers(network)) == ["1"]
    assert [*prunable_parameters(network)] == [*FlatScores(network).split(torch.ones(8))] == ["1.weight", "1.bias"]


# ---- layers that stay dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last", "left"), [
    (True, False, ["4.0", "5"]), (False, True, ["0", "4.0"]), (True, True, ["4.0"]), (False, False, ["0", "4.0", "5"]),
])  # fmt: skip
def test_ends_that_stay_dense_are_neither_masked_nor_pruned_and_compute_as_before(first, last, left):
    network = small_network()
    before, parameters = network(images(3, 2, 8, 8)), dict(network.named_parameters())
    assert masking.keep_dense(network, first, last) is network
    assert (type(network[0]) is DenseConv, type(network[5]) is DenseLinear) == (first, last)
    assert list(dict.fromkeys(name.rpartition(".")[0] for name in prunable_parameters(network))) == left
    assert [*masking.layer_parameters(network)] == ["0.weight", "0.bias", "4.0.weight", "5.weight", "5.bias"]
    assert list(masked_layers(to_masked(network))) == left
    assert all(parameter is parameters[name] for name, parameter in masking.layer_parameters(network).items())
    assert torch.equal(network(images(3, 2, 8, 8)), before)
    to_plain(network)
    assert (type(network[0]) is DenseConv, type(network[5]) is DenseLinear) == (first, last)


SHARED = nn.Linear(2, 2)
TIED = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
TIED[1].weight = TIED[0].weight
EMBEDDED = nn.Sequential(nn.Embedding(2, 2), nn.Linear(2, 2))
EMBEDDED[1].weight = EMBEDDED[0].weight
NAMED = nn.Sequential(nn.Linear(2, 2))
NAMED.tied = NAMED[0].weight
WHOLE = nn.Sequential(nn.Linear(2, 2))
WHOLE.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
with warnings.catch_warnings(action="ignore"):
    NORMED = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)))


@pytest.mark.parametrize(("network", "says"), [
    (nn.Sequential(nn.ReLU()), "the network has nothing to mask"),
    (TIED, "cannot mask 1.weight, which is also 0.weight"),
    (masking.keep_dense(nn.Sequential(nn.Linear(2, 2)), True, True), "the network has nothing to mask"),
    (WHOLE, "parameter count of the network is torch.int64"), (NORMED, "the weight of layer 0 is no parameter"),
    (nn.Linear(3, 2), "is the whole network"),
    (nn.Sequential(SHARED, nn.ReLU(), SHARED), "cannot mask 0.weight, which is also 2.weight"),
    (EMBEDDED, "cannot mask 1.weight, which is also 0.weight"), (NAMED, "cannot mask 0.weight, which is also tied"),
], ids=["none", "one weight", "dense", "integers", "normed", "one layer", "two names", "shared", "a name"])  # fmt: skip
def test_what_cannot_be_masked_is_refused_and_left_as_it_was(network, says):
    assert says in complaint(to_masked, network)
    assert not masked_layers(network)


def test_weights_of_other_layers_are_told_of(recwarn):
    masking.warn_of_unmasked(masking.keep_dense(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), True, False))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"^16 weights have no masks, .*: 1.in_proj_weight, 1.out_proj.weight$"):
        masking.warn_of_unmasked(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)))


def test_a_layer_with_two_names_cannot_stay_dense():
    network = nn.Sequential(SHARED, nn.ReLU(), SHARED)
    assert "cannot mask layer '2', which is also 0" in complaint(masking.keep_dense, network, True, False)


def test_biases_that_are_left_alone_are_neither_masked_nor_flattened_and_always_switched_on():
    network = small_network()
    before, biases = network(images(3, 2, 8, 8)), {"0.bias", "5.bias"}
    assert masking.leave_biases(network) is network
    for swap in (to_masked, to_plain, to_masked, deepcopy):  # the layers keep it through all of them
        network = swap(network)
        assert list(prunable_parameters(network)) == ["0.weight", "4.0.weight", "5.weight"]
        assert biases < masking.layer_parameters(network).keys()
        assert not {"0.bias_scores", "5.bias_flag"} & network.state_dict().keys()
        assert torch.equal(network(images(3, 2, 8, 8)), before)
    flat = FlatScores(network)
    assert flat.segments == [slice(0, 90)]
    flat.flags.fill_(False)
    assert torch.equal(network(images(3, 2, 8, 8)), network[5].bias.expand(3, 2))


# ---- what is kept in the swap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {}, {"stride": (2, 1)}, {"padding": (1, 2)}, {"padding": "same"}, {"dilation": (1, 2)}, {"groups": 2},
    {"groups": 4}, {"padding": 1, "padding_mode": "reflect"}, {"padding": 2, "padding_mode": "circular"},
    {"bias": False}, {"kernel_size": (1, 3)},
], ids=str)  # fmt: skip
def test_a_convolution_keeps_its_geometry(options):
    network = nn.Sequential(nn.Conv2d(4, 8, **{"kernel_size": 3, **options}))
    described, wanted = network[0].extra_repr(), network(images(2, 4, 9, 7))
    for swap in (to_masked, to_plain):
        swap(network)
        assert network[0].extra_repr() == described
        assert torch.equal(network(images(2, 4, 9, 7)), wanted)


def test_a_layer_keeps_its_hooks_and_what_a_user_has_added_to_it():
    network = small_network()
    network[5].register_forward_hook(lambda _, __, out: out * network[5].gain)
    network[5].gain = nn.Parameter(torch.tensor(2.0))
    wanted, own = network(images(3, 2, 8, 8)), dict(vars(network[5]))
    for swap in (to_masked, to_plain, to_masked):
        assert torch.equal(swap(network)(images(3, 2, 8, 8)), wanted)
    assert vars(to_plain(network)[5]).keys() == own.keys()


def drawn_network() -> nn.Sequential:
    """A masked network with drawn scores and a few flags off."""
    network = to_masked(small_network())
    generator = torch.Generator().manual_seed(5)
    for one in (*parts(network, "scores"), *parts(network, "flag")):
        chances = torch.rand(one.shape, generator=generator)
        one.data.copy_(chances < 0.8 if one.dtype == torch.bool else chances)
    return network


def parts(network: nn.Module, kind: str) -> list[Tensor]:
    """Scores or flags of the network's layers: weights' in network order, then biases'."""
    found = [getattr(layer, f"{of}{kind}") for of in ("", "bias_") for layer in masked_layers(network).values()]
    return [one for one in found if one is not None]


def together(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_a_masked_network_is_the_plain_one_with_its_weights_multiplied():
    network = drawn_network()
    masks = [(scores > 0.5) & flag for scores, flag in zip(parts(network, "scores"), parts(network, "flag"))]
    masked = network(images(2, 2, 6, 6))
    for name, mask in zip(("0.weight", "4.0.weight", "5.weight", "0.bias", "5.bias"), masks):
        to_plain(network).get_parameter(name).data.mul_(mask)
    assert torch.equal(network(images(2, 2, 6, 6)), masked)


# ---- the plain state ----------------------------------------------------------------------------------------------


def test_the_plain_state_is_a_copy_of_unmasked_weights_that_fits_the_plain_network():
    plain = small_network()
    network = to_masked(deepcopy(plain))
    network.train()(images(2, 2, 6, 6))  # moves the running statistics
    for one in (*parts(network, "scores"), *parts(network, "flag")):
        one.data.zero_()
    state = plain_state(network)
    wanted = {**plain.state_dict(), **deepcopy(network[1]).state_dict(prefix="1.")}
    network[0].weight.data.zero_()
    network[1].running_mean.zero_()
    assert list(state) == list(plain.state_dict()) and same_bits(state, wanted)
    assert bool(state["1.running_mean"].any()) and not any(value.requires_grad for value in state.values())


def test_the_plain_state_keeps_a_buffer_of_the_users_own_that_is_called_scores():
    network = nn.Sequential(nn.Linear(3, 2))
    network.register_buffer("scores", torch.ones(2))
    assert list(plain_state(to_masked(network))) == list(to_plain(network).state_dict())


# ---- flat scores ---------------------------------------------------------------------------------------------------


def addresses(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def all_are_views(network: nn.Module, flat: FlatScores) -> bool:
    """Whether scores, flags and gradients of the layers lie in the memory of the whole ones."""
    scores, flags = parts(network, "scores"), parts(network, "flag")
    found = [addresses(one) for one in (scores, flags, [score.grad for score in scores])]
    return found == [addresses([whole]) for whole in (flat.scores, flat.flags, flat.scores.grad)]


def test_flattening_keeps_every_score_and_flag_weights_first_then_biases_and_the_output():
    network = drawn_network()
    names, out = list(network.state_dict()), network(images(2, 2, 6, 6))
    scores, flags = together(parts(network, "scores")), together(parts(network, "flag"))
    flat = FlatScores(network)
    assert same_bits([flat.scores.data, flat.flags], [scores, flags]) and all_are_views(network, flat)
    assert same_bits([together(parts(network, "scores")), together(parts(network, "flag"))], [scores, flags])
    assert flat.flags.dtype == torch.bool and not bool(flat.flags.all())
    assert flat.scores.numel() == 72 + 12 + 6 + 4 + 2
    assert list(network.state_dict()) == names
    assert torch.equal(network(images(2, 2, 6, 6)), out)


def test_a_backward_pass_fills_the_one_gradient():
    network, control = drawn_network(), drawn_network()
    flat = FlatScores(network)
    for one in (network, control):
        one(images(2, 2, 6, 6)).square().sum().backward()
    assert all_are_views(network, flat)
    assert torch.equal(flat.scores.grad, together([part.grad for part in parts(control, "scores")]))
    assert flat.scores.grad.count_nonzero() > 20


def test_splitting_gives_views_by_parameter_name_and_shape():
    network, whole = drawn_network(), torch.arange(96.0)
    flat = FlatScores(network)
    split = flat.split(whole)
    assert flat.segments == [slice(0, 90), slice(90, 96)]
    assert list(split) == ["0.weight", "4.0.weight", "5.weight", "0.bias", "5.bias"]
    assert all(part.shape == network.get_parameter(name).shape for name, part in split.items())
    assert split["4.0.weight"].flatten().tolist() == list(range(72, 84))
    assert split["5.bias"].tolist() == [94.0, 95.0]
    split["0.bias"].fill_(-1.0)
    assert whole[90:94].tolist() == [-1.0] * 4
