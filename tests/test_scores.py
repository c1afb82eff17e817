"""Scores as they are learned and judged: penalties, decay, projection, what is frozen, rounding, a row's figures."""

import math

import pytest
import torch
from torch import Tensor, nn

import trainers.training.scores as scores_module
from args_helper import parse_args
from data.batches import PlainBatches, TrainBatches
from data.load import Splits
from data.spec import DataSpec, ImageSet
from models.folding import FoldedNetwork
from models.initialise import WeightDraw, draw_scores, draw_weights
from models.layers import FullyConnected, Round, Soft, TopKInLayer
from models.masking import masked_layers, to_masked
from tests.toys import images, splits
from trainers.training.loop import train_step
from trainers.training.scores import PENALTIES, ScoreTraining

ROUNDED = ("--hc_quantized", "true")


class Toy(nn.Module):
    """A convolution, a batch norm and two linear layers, of both kinds: 18 + 128 + 12 weights, 2 + 4 + 3 biases."""

    def __init__(self, bias: bool, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(2, affine=affine)
        self.hidden = FullyConnected(32, 4, 1, bias=bias)
        self.out = nn.Linear(4, 3, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu().flatten(1)
        return self.out(self.hidden(features[:, :, None, None]).flatten(1).relu())


def learning(*words: str, rule: Round | Soft | None = None, bias: bool = False, affine: bool = False) -> ScoreTraining:
    """A ScoreTraining of a Toy with drawn weights and uniform scores."""
    net = Toy(bias, affine)
    draw_weights(net, torch.Generator().manual_seed(1), WeightDraw("kaiming_normal"))
    draw_scores(to_masked(net), torch.Generator().manual_seed(2), "unif")
    return ScoreTraining(net, rule or Round(0.5), parse_args(["--algo", "hc", *words]))


def take_steps(training: ScoreTraining, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        batch = images(8, seed + step)
        train_step(training, step, batch.images.float() / 128 - 1, batch.labels)


def drawing(stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(5)


def set_scores(training: ScoreTraining, values: Tensor | float) -> Tensor:
    training.flat.scores.data.copy_(torch.as_tensor(values))
    return training.flat.scores.detach()


@pytest.fixture
def judged(monkeypatch) -> list:
    """Every network that is evaluated, as (its state_dict, the batches); the n-th evaluation gives 10 n percent."""
    calls = []

    def evaluate(network: nn.Module, batches: object, precision: str) -> float:
        calls.append(({name: value.clone() for name, value in network.state_dict().items()}, batches))
        return 10.0 * len(calls)

    monkeypatch.setattr(scores_module, "evaluate", evaluate)
    monkeypatch.setattr(FoldedNetwork, "refreshed", lambda self: self._network)  # folding has tests of its own
    return calls


def kept_in(state: dict[str, Tensor], training: ScoreTraining) -> dict[str, Tensor]:
    """What the weights of an evaluated network are, relative to the weights of the one that is trained."""
    own = training.network.state_dict()
    return {name: state[f"{name}.weight"] / own[f"{name}.weight"] for name in masked_layers(training.network)}


# ---- penalties -----------------------------------------------------------------------------------------------------

# Of the scores 0, 1/4, 1/2, 1 beside the weights 1, -2, 3, 1/2: the value, and its derivative by every score.
BY_HAND = {
    "L2": (1.0, 1.0, 1.3125, [0.0, 0.5, 1.0, 2.0]),
    "L1": (1.0, 1.0, 1.75, [0.0, 1.0, 1.0, 1.0]),
    "L1_L2": (1.0, 1.0, 3.0625, [0.0, 1.5, 2.0, 3.0]),
    "var_red_1": (1.0, 1.0, 0.4375, [1.0, 0.5, 0.0, -1.0]),
    "var_red_2": (1.0, 1.0, 3.0, [1.0, 2.0, 0.0, -0.25]),
    "bin_entropy": (1.0, 1.0, 0.5623351446 + math.log(2), [0.0, math.log(3), 0.0, 0.0]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_penalty_has_the_value_and_the_slope_found_by_hand(name):
    a, b, value, slope = BY_HAND[name]
    scores = torch.tensor([0.0, 0.25, 0.5, 1.0], requires_grad=True)
    found = PENALTIES[name](scores, torch.tensor([1.0, -2.0, 3.0, 0.5]), a, b)
    found.backward()
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert scores.grad.tolist() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_every_penalty_is_checked_by_hand():
    assert set(PENALTIES) == set(BY_HAND)


def test_var_red_1_raises_s_to_alpha_and_one_minus_s_to_alpha_prime():
    scores = torch.tensor([0.0, 0.25, 0.5, 1.0], requires_grad=True)
    found = PENALTIES["var_red_1"](scores, torch.ones(4), 2.0, 3.0)
    found.backward()
    assert found.item() == pytest.approx(0.0263671875 + 0.03125)
    assert scores.grad.tolist() == pytest.approx([0.0, 0.10546875, -0.0625, 0.0])


def test_bin_entropy_is_nothing_at_0_and_1_and_its_gradient_is_finite_there():
    scores = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    found = PENALTIES["bin_entropy"](scores, torch.ones(4), 1.0, 1.0)
    found.backward()
    assert found.item() == 0.0
    assert scores.grad.tolist() == [0.0] * 4


def test_a_penalty_reaches_the_gradient_times_lambda_also_of_pruned_scores():
    training = learning("--regularization", "var_red_1", "--lmbda", "0.25", "--alpha", "2", "--alpha_prime", "3")
    scores = set_scores(training, torch.linspace(0, 1, 158))
    training.flat.flags[::2] = False
    training.penalty().backward()
    expected = 0.25 * (2 * scores * (1 - scores) ** 3 - 3 * scores**2 * (1 - scores) ** 2)
    torch.testing.assert_close(training.flat.scores.grad, expected)


def test_var_red_2_pairs_every_score_with_its_own_weight_and_bias():
    training = learning("--regularization", "var_red_2", "--lmbda", "2", bias=True)
    set_scores(training, 0.25)
    training.penalty().backward()
    layers = masked_layers(training.network).values()
    for layer in layers:
        torch.testing.assert_close(layer.scores.grad, 2 * layer.weight.square() * 0.5)
        torch.testing.assert_close(layer.bias_scores.grad, 2 * layer.bias.square() * 0.5)
    assert all(layer.weight.grad is None for layer in layers)


@pytest.mark.parametrize("name", ["L1", "var_red_1", "var_red_2", "bin_entropy", "none"])
def test_a_step_adds_the_penalty_to_the_gradient_and_not_to_the_loss(name):
    trainings = [learning("--lr", "0.1", "--wd", "0", "--momentum", "0") for _ in range(2)]
    trainings[1] = learning("--lr", "0.1", "--wd", "0", "--momentum", "0", "--regularization", name, "--lmbda", "0.3")
    batch = images(8, 0)
    losses = [train_step(one, 0, batch.images.float() / 128 - 1, batch.labels)[0] for one in trainings]
    assert losses[0] == losses[1]
    start = learning().flat.scores
    if name != "none":
        weights = torch.cat([layer.weight.flatten() for layer in masked_layers(trainings[0].network).values()])
        PENALTIES[name](start, weights, 1.0, 1.0).backward()
    without, with_penalty = (one.flat.scores.detach() for one in trainings)
    torch.testing.assert_close(with_penalty, without - 0.1 * 0.3 * start.grad)


# ---- L2 as a weight decay ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["L2", "L1_L2"])
def test_l2_as_a_weight_decay_learns_what_l2_in_the_loss_does(name, optimizer):
    common = ("--optimizer", optimizer, "--lr", "0.05", "--wd", "0.01")
    decayed = learning(*common, "--regularization", name, "--lmbda", "0.03")
    added = learning(*common)
    added.penalty = lambda: 0.03 * PENALTIES[name](added.flat.scores, torch.empty(0), 1.0, 1.0)
    plain = learning(*common)
    for training in (decayed, added, plain):
        take_steps(training, 6)
    torch.testing.assert_close(decayed.flat.scores, added.flat.scores, rtol=1e-5, atol=1e-6)
    assert (decayed.flat.scores - plain.flat.scores).abs().max() > 1e-3


def test_l2_costs_no_work_in_a_step_and_l1_l2_only_that_of_l1():
    assert learning("--regularization", "L2").penalty() is None
    assert learning().penalty() is None
    both = learning("--regularization", "L1_L2", "--lmbda", "0.5")
    assert both.penalty().item() == pytest.approx(0.5 * both.flat.scores.sum().item(), rel=1e-5)


def test_weight_decay_and_its_momentum_act_on_the_scores_of_pruned_weights_too():
    training = learning("--lr", "0.1", "--wd", "0.5", "--momentum", "0.9")
    training.flat.flags.fill_(False)  # no gradient from the task
    before = training.flat.scores.detach().clone()
    take_steps(training, 2)
    first = before * (1 - 0.1 * 0.5)
    second = first - 0.1 * (0.9 * 0.5 * before + 0.5 * first)
    torch.testing.assert_close(training.flat.scores.detach(), second)


def test_a_pruned_score_learns_nothing_from_the_task_and_a_score_under_the_threshold_does():
    training = learning("--lr", "0.1", "--wd", "0", "--momentum", "0")
    training.flat.flags[::2] = False
    before = training.flat.scores.detach().clone()
    take_steps(training, 1)
    moved = training.flat.scores != before
    assert not moved[::2].any()
    assert moved[1::2][before[1::2] <= 0.5].any()


# ---- projection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "inside"),
    [
        ((), [True] * 7),
        (("--project_freq", "3"), [True, False, False, True, False, False, True]),
        (("--project_freq", "3", "--differentiate_clamp", "true"), [True] * 7),
    ],
)
def test_scores_are_projected_before_the_forward_pass_every_project_freq_steps(words, inside):
    training = learning("--lr", "30", "--momentum", "0", *words)
    set_scores(training, training.flat.scores.detach() * 3 - 1)
    seen = []
    training.network.register_forward_pre_hook(
        lambda *_: seen.append(bool(((training.flat.scores >= 0) & (training.flat.scores <= 1)).all()))
    )
    take_steps(training, 7)
    assert seen == inside


def test_scores_are_projected_at_the_end_of_the_epoch():
    training = learning("--lr", "30", "--momentum", "0", "--project_freq", "100")
    take_steps(training, 3)
    before = training.flat.scores.detach().clone()
    assert before.min() < 0
    assert before.max() > 1
    training.after_steps()
    assert torch.equal(training.flat.scores.detach(), before.clamp(0, 1))


# ---- what learns ---------------------------------------------------------------------------------------------------


def parameters_apart_from_scores(training: ScoreTraining) -> dict[str, Tensor]:
    named = training.network.named_parameters()
    return {name: value.detach().clone() for name, value in named if not name.endswith("scores")}


def test_weights_biases_and_batch_norm_scales_stay_frozen_and_batch_norm_statistics_move():
    training = learning("--lr", "1", "--wd", "0.1", bias=True, affine=True)
    before, mean = parameters_apart_from_scores(training), training.network.norm.running_mean.clone()
    assert {"norm.weight", "norm.bias", "conv.weight", "conv.bias"} <= before.keys()
    take_steps(training, 3)
    after = parameters_apart_from_scores(training)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(training.network.get_parameter(name).grad is None for name in before)  # nor is work spent on them
    assert not torch.equal(training.network.norm.running_mean, mean)


def test_with_freeze_weights_off_weights_and_biases_learn_and_batch_norm_scales_do_not():
    training = learning("--lr", "0.1", "--freeze_weights", "false", bias=True, affine=True)
    before, scores = parameters_apart_from_scores(training), training.flat.scores.detach().clone()
    take_steps(training, 3)
    after = parameters_apart_from_scores(training)
    assert {name for name in before if torch.equal(before[name], after[name])} == {"norm.weight", "norm.bias"}
    assert not torch.equal(training.flat.scores.detach(), scores)


def test_weights_that_learn_decay_by_wd_alone_and_not_by_the_penalty_on_the_scores():
    words = ("--lr", "0.1", "--wd", "0.5", "--momentum", "0", "--regularization", "L2", "--lmbda", "1")
    training = learning(*words, "--freeze_weights", "false")
    training.flat.flags.fill_(False)
    weight, scores = training.network.conv.weight.detach().clone(), training.flat.scores.detach().clone()
    take_steps(training, 1)
    torch.testing.assert_close(training.network.conv.weight.detach(), weight * (1 - 0.1 * 0.5))
    torch.testing.assert_close(training.flat.scores.detach(), scores * (1 - 0.1 * (0.5 + 2 * 1)))


def test_bias_scores_are_learned_and_penalised_only_where_there_are_biases():
    assert learning().flat.scores.numel() == 158
    penalised = learning("--regularization", "L1", bias=True)
    penalised.penalty().backward()
    assert torch.equal(penalised.flat.scores.grad[158:], torch.full((9,), 1e-3))
    training = learning("--lr", "0.1", "--wd", "0", bias=True)
    assert [layer.bias_scores.numel() for layer in masked_layers(training.network).values()] == [2, 4, 3]
    before = training.network.out.bias_scores.detach().clone()
    take_steps(training, 1)
    assert (training.network.out.bias_scores.detach() != before).all()


def test_the_learning_rate_warms_up_and_then_follows_the_policy():
    training = learning("--lr", "0.4", "--epochs", "6", "--warmup_length", "2", "--lr_policy", "cosine_lr")
    halves = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [training.lr(epoch) for epoch in range(6)] == pytest.approx([0.2, 0.4, *(0.4 * half for half in halves)])


def test_multistep_divides_at_the_given_milestones_by_the_given_gamma():
    words = ("--lr_policy", "multistep_lr", "--milestones", "1", "3", "--gamma", "0.5")
    training = learning("--lr", "0.4", "--epochs", "4", *words)
    assert [training.lr(epoch) for epoch in range(4)] == pytest.approx([0.4, 0.2, 0.2, 0.1])


def test_labels_are_smoothed_as_the_config_says():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    log_p = logits.log_softmax(1)[0]
    expected = -(0.7 * log_p[0] + 0.1 * log_p.sum())
    found = learning("--label_smoothing", "0.3").loss(logits, labels, torch.empty(0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


# ---- how scores are rounded to be judged -------------------------------------------------------------------------


def test_naive_switches_on_what_lies_strictly_above_the_threshold_and_is_in_play(judged):
    training = learning(*ROUNDED, rule=Round(0.25))
    scores = set_scores(training, torch.tensor([0.0, 0.25, 0.26, 1.0]).repeat(40)[:158])
    training.flat.flags[3] = False
    expected = scores > 0.25
    expected[3] = False
    assert torch.equal(training.naive_mask(), expected)
    row = training.measure(splits(24), drawing)
    assert kept_in(judged[0][0], training)["conv"].flatten().tolist() == expected[:18].float().tolist()
    assert row["model_sparsity"] == pytest.approx(100 * int(expected.sum()) / 158)


def test_without_rounding_in_the_forward_pass_naive_rounds_at_the_rules_threshold():
    training = learning(rule=Soft(0.25))
    scores = set_scores(training, torch.linspace(0, 1, 158))
    assert torch.equal(training.naive_mask(), scores > 0.25)


def test_prob_keeps_each_weight_with_its_score_as_probability(judged):
    training = learning("--round", "prob", "--num_test", "300", rule=Soft())
    scores = set_scores(training, torch.cat([torch.zeros(20), torch.ones(20), torch.full((118,), 0.3)]))
    training.flat.flags[-18:] = False
    row = training.measure(splits(24, val=False), drawing)
    draws = torch.stack([torch.cat([part.flatten() for part in kept_in(s, training).values()]) for s, _ in judged[:-1]])
    frequencies = draws.mean(0)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    assert frequencies[:20].eq(0).all()
    assert frequencies[20:40].eq(1).all()
    assert frequencies[-18:].eq(0).all()
    assert frequencies[40:140].mean().item() == pytest.approx(0.3, abs=0.01)
    assert (frequencies[40:140] - 0.3).abs().max() < 0.15
    assert row["model_sparsity"] == pytest.approx(100 * frequencies.mean().item(), rel=1e-4)
    assert torch.equal(scores, training.flat.scores.detach())


@pytest.mark.parametrize("rule", [Round(0.5), Soft()])
def test_naive_prob_draws_the_first_linear_layer_alone(judged, rule):
    training = learning("--round", "naive_prob", "--num_test", "100", rule=rule)
    set_scores(training, torch.cat([torch.full((18,), 0.9), torch.full((128,), 0.3), torch.full((12,), 0.1)]))
    training.measure(splits(24, val=False), drawing)
    kept = [kept_in(state, training) for state, _ in judged[:100]]
    assert all(one["conv"].eq(1).all() for one in kept)
    assert all(one["out"].eq(0).all() for one in kept)
    assert torch.stack([one["hidden"] for one in kept]).mean().item() == pytest.approx(0.3, abs=0.02)


def test_all_ones_switches_on_all_that_is_in_play(judged):
    training = learning("--round", "all_ones", rule=Soft())
    set_scores(training, 0.0)
    training.flat.flags[:9] = False
    row = training.measure(splits(24), drawing)
    kept = kept_in(judged[0][0], training)
    assert kept["conv"].flatten().tolist() == [0.0] * 9 + [1.0] * 9
    assert kept["hidden"].eq(1).all()
    assert row["model_sparsity"] == pytest.approx(100 * 149 / 158)


def test_noise_of_the_given_deviation_is_added_to_the_scores_before_they_are_rounded(judged):
    training = learning("--noise", "true", "--noise_ratio", "0.2", "--num_test", "300", rule=Round(0.5))
    set_scores(training, 0.6)
    training.flat.flags[:58] = False
    row = training.measure(splits(24, val=False), drawing)
    expected = 0.5 * (1 + math.erf(0.1 / 0.2 / math.sqrt(2)))  # the chance that 0.6 plus noise lies above 0.5
    assert row["model_sparsity"] == pytest.approx(100 * 100 / 158 * expected, abs=0.5)
    assert len(judged) == 301
    assert training.flat.scores.eq(0.6).all()


@pytest.mark.parametrize("words", [("--noise", "true"), ("--noise_ratio", "0.2")])
def test_noise_needs_both_of_its_options(judged, words):
    training = learning(*words, "--num_test", "3")
    row = training.measure(splits(24, val=False), drawing)
    assert len(judged) == 1
    assert row["test_acc"] == row["test_acc_before_rounding"]


def test_num_test_draws_are_different_and_their_accuracies_averaged(judged):
    training = learning("--round", "prob", "--num_test", "3", rule=Soft())
    data = splits(24)
    row = training.measure(data, drawing)
    assert [batches for _, batches in judged] == [data.test] * 3 + [data.val] * 3 + [data.test]
    assert row["test_acc"] == (10 + 20 + 30) / 3
    assert row["val_acc"] == (40 + 50 + 60) / 3
    assert row["test_acc_before_rounding"] == 70
    weights = [state["hidden.weight"] for state, _ in judged]
    assert not torch.equal(weights[0], weights[1])
    assert all(torch.equal(weights[draw], weights[draw + 3]) for draw in range(3))


def test_without_chance_num_test_judges_once(judged):
    learning("--num_test", "5", rule=Soft()).measure(splits(24, val=False), drawing)
    assert len(judged) == 2


def test_the_draws_of_a_rounding_are_those_of_the_stream_rounding():
    training, asked = learning("--round", "prob", rule=Soft()), []
    training.measure(splits(24), lambda stream: asked.append(stream) or torch.Generator().manual_seed(0))
    assert asked == ["rounding"]


# ---- before and after rounding -----------------------------------------------------------------------------------


def test_rounded_in_the_forward_pass_is_judged_once_for_both_columns(judged):
    data = splits(24)
    row = learning(*ROUNDED).measure(data, drawing)
    assert [batches for _, batches in judged] == [data.test, data.val]
    assert row["test_acc_before_rounding"] == row["test_acc"] == 10
    assert row["val_acc"] == 20


@pytest.mark.parametrize("words", [("--round", "prob"), ("--round", "all_ones"), ("--noise", "--noise_ratio", "0.1")])
def test_another_rounding_than_the_forward_pass_is_judged_beside_it(judged, words):
    training = learning(*ROUNDED, *words)
    row = training.measure(splits(24, val=False), drawing)
    assert (row["test_acc"], row["test_acc_before_rounding"]) == (10, 20)
    layers = masked_layers(training.network)
    assert all(torch.equal(judged[1][0][f"{name}.weight"], layers[name].effective_weight()) for name in layers)


def test_a_rule_that_ranks_within_a_layer_is_judged_layer_by_layer(judged):
    training = learning("--round", "all_ones", rule=TopKInLayer(0.3))
    training.measure(splits(24, val=False), drawing)
    for name, layer in masked_layers(training.network).items():
        assert torch.equal(judged[1][0][f"{name}.weight"], layer.effective_weight())
        assert int((layer.effective_weight() != 0).sum()) == layer.scores.numel() - int(0.7 * layer.scores.numel())


def test_unrounded_scores_are_judged_as_they_are_and_rounded(judged):
    training = learning(rule=Soft())
    training.flat.flags[::3] = False
    row = training.measure(splits(24, val=False), drawing)
    assert row["val_acc"] is None
    assert (row["test_acc"], row["test_acc_before_rounding"]) == (10, 20)
    layers = masked_layers(training.network)
    after, before = judged[0][0], judged[1][0]
    for name, layer in layers.items():
        torch.testing.assert_close(before[f"{name}.weight"], layer.weight * layer.scores * layer.flag)
        torch.testing.assert_close(after[f"{name}.weight"], layer.weight * ((layer.scores > 0.5) & layer.flag))


def test_soft_scores_and_their_rounding_can_answer_differently():
    one = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    one[1].weight.data.copy_(torch.tensor([[3.0], [1.0]]))
    spec = DataSpec(shape=(1, 1, 1), classes=("a", "b"), mean=(0.0,), std=(1.0,))
    white = ImageSet(torch.full((4, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    training = ScoreTraining(to_masked(one), Soft(), parse_args([]))
    set_scores(training, torch.tensor([0.4, 0.6]))  # 1.2 against 0.6; rounded, 0 against 1
    plain = PlainBatches(white, spec)
    row = training.measure(Splits(spec, TrainBatches(white, spec, 4), plain, plain), drawing)
    assert (row["test_acc_before_rounding"], row["test_acc"], row["val_acc"]) == (100.0, 0.0, 0.0)
    assert row["model_sparsity"] == 50.0


def test_biases_are_judged_under_their_own_scores(judged):
    training = learning(*ROUNDED, bias=True)
    layer = training.network.out
    layer.bias_scores.data.copy_(torch.tensor([0.9, 0.2, 0.9]))
    layer.bias_flag[2] = False
    layer.bias.data.fill_(5.0)
    training.measure(splits(24), drawing)
    assert judged[0][0]["out.bias"].tolist() == [5.0, 0.0, 0.0]


def test_what_is_judged_has_the_batch_norm_statistics_of_the_moment(judged):
    training = learning(affine=True)
    take_steps(training, 2)
    training.measure(splits(24), drawing)
    state, own = judged[0][0], training.network.state_dict()
    assert all(torch.equal(state[name], own[name]) for name in state if name.startswith("norm."))
    assert own["norm.running_mean"].abs().min() > 0


@pytest.mark.parametrize(("name", "value"), [("none", 0.0), ("L2", 0.25), ("L1_L2", 0.75), ("var_red_1", 0.25)])
def test_the_row_has_lambda_times_the_whole_penalty(name, value):
    training = learning("--regularization", name, "--lmbda", "0.1")
    set_scores(training, 0.5)
    assert training.measure(splits(24), drawing)["regularization_loss"] == pytest.approx(0.1 * 158 * value, rel=1e-5)


def test_measuring_changes_nothing_of_the_training():
    training = learning("--round", "prob", "--num_test", "2", rule=Soft(), affine=True)
    training.network.train()
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.measure(splits(24), drawing)
    after = training.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert training.network.training


# ---- what is logged ------------------------------------------------------------------------------------------------


def test_the_densities_logged_are_of_weights_in_play_and_of_each_layers_weights_that_are_switched_on():
    training = learning(bias=True)
    set_scores(training, 1.0)
    training.flat.scores.data[-1] = 0.0  # a bias: not counted
    with torch.no_grad():
        training.flat.split(training.flat.scores)["out.weight"].fill_(0.0)
    training.flat.flags[:9] = False  # half of the convolution
    training.flat.flags[158:] = False
    scalars, histograms = training.describe()
    expected = {
        "weights_in_play_percent": 100 * 149 / 158,
        "layers/conv": 50.0,
        "layers/hidden": 100.0,
        "layers/out": 0.0,
    }
    assert scalars == pytest.approx(expected)
    assert histograms == {}


def test_histograms_show_scores_in_play_and_leave_out_layers_without_any():
    training = learning()
    training.flat.flags[:17] = False
    training.network.out.flag.fill_(False)
    histograms = training.histograms()
    assert set(histograms) == {"scores/conv", "scores/hidden"}
    assert torch.equal(histograms["scores/conv"], training.flat.scores.detach()[17:18])
