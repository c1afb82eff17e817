"""Draws of weights and scores: their values, spread, fans and seeds."""

import math

import pytest
import torch
from scipy.stats import beta
from torch import Tensor, nn

from args_helper import OPTIONS, Config
from models.initialise import WeightDraw, draw_scores, draw_weights
from models.masking import masked_layers, prunable_parameters, to_masked
from tests.toys import seeded
from utils.options.types import choices_of

SMALL = torch.Size((60, 5, 3, 3))  # fan_in 45, fan_out 540
LARGE = torch.Size((100, 200, 3, 1))  # fan_in 600, fan_out 300; 60,000 weights


def drawn(how: WeightDraw, shape: torch.Size = LARGE, seed: int = 0) -> Tensor:
    return how.parameter("layer.weight", shape, seeded(seed))


@pytest.fixture(params=choices_of(OPTIONS["init"]))
def init(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- constants, by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "shape", "constant"), [
    (("fan_in", "relu", 1.0), SMALL, 0.21081851),  # √2 / √45
    (("fan_out", "relu", 1.0), SMALL, 0.06085806),  # √2 / √540
    (("fan_in", "linear", 1.0), SMALL, 0.14907120),  # 1 / √45
    (("fan_in", "tanh", 1.0), SMALL, 0.24845200),  # 5/3 / √45
    (("fan_in", "relu", 0.25), SMALL, 0.42163702),  # √2 / √(45/4)
    # A linear layer has its features as fans.
    (("fan_in",), torch.Size((8, 50)), 0.2), (("fan_out",), torch.Size((8, 50)), 0.5),
])  # fmt: skip
def test_the_constants_are_the_gain_over_the_root_of_the_fan(arguments, shape, constant):
    for init, values in (("signed_constant", [-constant, constant]), ("unsigned_constant", [constant])):
        weights = drawn(WeightDraw(init, *arguments), shape)
        assert weights.unique().tolist() == pytest.approx(values, rel=1e-6)
        assert weights.shape == shape


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_xavier_constant_is_the_deviation_of_xavier_normal_whatever_gain_and_mode(mode):
    values = drawn(WeightDraw("xavier_constant", mode, "relu"), SMALL).unique().tolist()
    assert values == pytest.approx([-0.05847053, 0.05847053], rel=1e-6)  # √(2 / (45 + 540))


@pytest.mark.parametrize("init", ["signed_constant", "xavier_constant"])
def test_signs_are_a_fair_coin_at_every_place(init):
    signs = drawn(WeightDraw(init)).sign()
    assert abs(signs.mean()) < 4 / math.sqrt(signs.numel())
    neighbours = signs.flatten()
    assert abs((neighbours[1:] * neighbours[:-1]).mean()) < 4 / math.sqrt(signs.numel())


# ---- spread --------------------------------------------------------------------------------------------------------

# What the mean of the second and of the fourth power has to be, and the variances of first, second and fourth power.
STANDARD_NORMAL = (1.0, 3.0), (1, 2, 96)
UP_TO_ONE = (1 / 3, 1 / 5), (1 / 3, 4 / 45, 16 / 225)


@pytest.mark.parametrize(("how", "scale", "moments"), [
    # Deviation for the large shape with ReLU: √(2/600) by fan_in, √(2/300) by fan_out; Xavier: √(2/900).
    (WeightDraw("kaiming_normal", "fan_in"), 0.0577350, STANDARD_NORMAL),
    (WeightDraw("kaiming_normal", "fan_out"), 0.0816497, STANDARD_NORMAL),
    (WeightDraw("kaiming_normal", "fan_in", "linear"), 0.0408248, STANDARD_NORMAL),
    (WeightDraw("xavier_normal", "fan_in"), 0.0471405, STANDARD_NORMAL),
    (WeightDraw("xavier_normal", "fan_out", "tanh", 0.25), 0.0471405, STANDARD_NORMAL),
    (WeightDraw("kaiming_uniform", "fan_in"), 0.1, UP_TO_ONE),  # √(6/600)
    (WeightDraw("kaiming_uniform", "fan_out"), 0.1414214, UP_TO_ONE),
    (WeightDraw("standard", "fan_in"), 0.0408248, UP_TO_ONE),  # 1 / √600
    (WeightDraw("standard", kept=0.0), 0.0408248, UP_TO_ONE),
    (WeightDraw("standard", "fan_out", "tanh", 0.25), 0.0408248, UP_TO_ONE),
])  # fmt: skip
def test_a_draw_has_the_spread_and_the_tails_of_its_distribution(how, scale, moments):
    unit, (means, variances) = drawn(how) / scale, moments
    for power, mean, variance in zip((1, 2, 4), (0.0, *means), variances):
        assert unit.pow(power).mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / unit.numel()))
    assert moments is STANDARD_NORMAL or 0.999 < unit.abs().max() <= 1.0


def test_a_bias_is_uniform_within_one_over_the_root_of_fan_in_whatever_the_init(init):
    shape = torch.Size((20000, 4, 5, 5))
    bias = WeightDraw(init, "fan_out", "tanh", 0.25).parameter("layer.bias", shape, seeded())
    assert bias.shape == (20000,)
    assert 0.0999 < bias.abs().max() <= 0.1
    assert bias.square().mean().item() == pytest.approx(0.01 / 3, rel=0.03)


# ---- the config's draw ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", choices_of(OPTIONS["nonlinearity"]))
@pytest.mark.parametrize("mode", choices_of(OPTIONS["mode"]))
def test_every_init_that_can_be_asked_for_is_drawn_as_asked(init, mode, nonlinearity):
    asked = WeightDraw.of(Config(init=init, mode=mode, nonlinearity=nonlinearity))
    assert torch.equal(drawn(asked, SMALL), drawn(WeightDraw(init, mode, nonlinearity), SMALL))


def test_scale_fan_multiplies_the_fan_with_what_prune_rate_leaves_for_three_inits_only(init):
    plain = drawn(WeightDraw.of(Config(init=init, prune_rate=0.75)), SMALL)
    scaled = drawn(WeightDraw.of(Config(init=init, prune_rate=0.75, scale_fan=True)), SMALL)
    factor = 2.0 if init in ("signed_constant", "unsigned_constant", "kaiming_normal") else 1.0
    torch.testing.assert_close(scaled, factor * plain)


# ---- networks and seeds --------------------------------------------------------------------------------------------


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 10))


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in prunable_parameters(network).values()])


def test_every_weight_and_bias_is_drawn_in_network_order_from_the_one_generator(init):
    network, how, generator = small_network(), WeightDraw(init), seeded(5)
    draw_weights(network, seeded(5), how)
    for name, parameter in prunable_parameters(network).items():
        shape = network.get_parameter(name.replace("bias", "weight")).shape
        assert torch.equal(parameter, how.parameter(name, shape, generator))


def test_a_draw_leaves_all_else_and_the_parameters_themselves_in_place():
    plain, masked = small_network(), to_masked(small_network())
    masked[0].scores.data.fill_(0.3)
    parameters = {name: id(parameter) for name, parameter in masked.named_parameters()}
    for network in (plain, masked):
        draw_weights(network, seeded(), WeightDraw("standard"))
    assert torch.equal(weights_of(plain), weights_of(masked))
    assert masked[0].scores.eq(0.3).all()
    assert masked[1].weight.eq(1).all()
    assert {name: id(parameter) for name, parameter in masked.named_parameters()} == parameters
    masked[0].flag.fill_(False)
    draw_scores(masked, seeded(), "unif")
    assert torch.equal(weights_of(plain), weights_of(masked))
    assert (masked[0].flag.any(), masked[3].flag.all()) == (False, True)


def test_a_draw_leaves_pytorchs_own_random_stream_alone():
    before = torch.get_rng_state()
    network = to_masked(small_network())
    torch.set_rng_state(before)
    for init in choices_of(OPTIONS["init"]):
        draw_weights(network, seeded(), WeightDraw(init))
    for how in choices_of(OPTIONS["score_init"]):
        draw_scores(network, seeded(), how)
    assert torch.equal(torch.get_rng_state(), before)


# ---- scores --------------------------------------------------------------------------------------------------------


def scores_of(how: str, seed: int = 0, bias: bool = False) -> tuple[Tensor, Tensor]:
    """All weight scores, 48,000 of them in two layers, and all bias scores."""
    network = to_masked(nn.Sequential(nn.Linear(200, 200, bias=bias), nn.Linear(200, 40, bias=bias)))
    draw_scores(network, seeded(seed), how)
    layers = masked_layers(network).values()
    biases = [layer.bias_scores.detach() for layer in layers if bias]
    return torch.cat([layer.scores.detach().flatten() for layer in layers]), torch.cat([torch.empty(0), *biases])


@pytest.mark.parametrize(("how", "values"), [("half", [0.5]), ("all_one", [1.0]), ("bern", [0.0, 1.0])])
def test_constant_scores_are_the_same_everywhere_and_bern_is_a_fair_coin(how, values):
    scores = torch.cat(scores_of(how, bias=True))
    assert scores.unique().tolist() == values
    assert scores.mean().item() == pytest.approx(sum(values) / len(values), abs=2 / math.sqrt(scores.numel()))


@pytest.mark.parametrize(("how", "a", "b", "mean", "variance"), [
    ("unif", 1.0, 1.0, 1 / 2, 1 / 12), ("skew", 1.0, 5.0, 1 / 6, 5 / (36 * 7)),
    ("bimodal", 0.1, 0.1, 1 / 2, 0.01 / (0.04 * 1.2)),  # 0.2083, near the 1/4 of a coin
])  # fmt: skip
def test_scores_have_the_moments_and_the_distribution_of_their_beta(how, a, b, mean, variance):
    scores, _ = scores_of(how)
    scores, n = scores.double(), scores.numel()
    assert 0.0 <= scores.min() < scores.max() <= 1.0
    assert scores.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert scores.var().item() == pytest.approx(variance, rel=0.03)
    for low, high in [*((-1, high) for high in (1e-6, 0.001, 0.03, 0.2, 0.5, 0.8)), (0.03, 0.97), (0.2, 0.8)]:
        share = float(beta.cdf(high, a, b) - beta.cdf(low, a, b))
        inside = ((scores > low) & (scores <= high)).double().mean().item()
        assert inside == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))


@pytest.mark.parametrize("how", choices_of(OPTIONS["score_init"]))
def test_the_seed_decides_and_biases_are_scored_after_all_weights_whose_scores_stay(how):
    without, none = scores_of(how, bias=False)
    weights, biases = scores_of(how, bias=True)
    assert torch.equal(weights, without)
    assert (none.numel(), biases.numel()) == (0, 240)
    if how not in ("half", "all_one"):
        assert len(biases.unique()) > 1
        assert not torch.equal(scores_of(how, seed=1)[0], weights)
