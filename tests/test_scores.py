"""Scores as they are learned and judged: penalties, decay, projection, what is frozen, rounding, a row's figures."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from args_helper import parse_args
from data.batches import PlainBatches, TrainBatches
from data.load import Splits
from data.spec import DataSpec, ImageSet
from models.initialise import WeightDraw, draw_scores, draw_weights
from models.layers import FullyConnected, Round, Soft, TopKInLayer
from models.masking import masked_layers, to_masked
from tests.conftest import same_bits
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


def take_steps(training: ScoreTraining, steps: int) -> None:
    for step in range(steps):
        batch = images(8, step)
        train_step(training, step, batch.images.float() / 128 - 1, batch.labels)


def set_scores(training: ScoreTraining, values: Tensor | float) -> Tensor:
    training.flat.scores.data.copy_(torch.as_tensor(values))
    return training.flat.scores.detach()


def drawing(stream: str) -> torch.Generator:
    assert stream == "rounding"
    return torch.Generator().manual_seed(5)


def measured(training: ScoreTraining) -> dict:
    """The row of data without images to validate on."""
    return training.measure(splits(24, val=False), drawing)


@pytest.fixture
def judged(monkeypatch) -> list:
    """Every network that is evaluated, as (its state_dict, the batches); the n-th evaluation gives 10 n percent."""
    calls = []

    def evaluate(network: nn.Module, batches: object, precision: str) -> float:
        calls.append((deepcopy(network.state_dict()), batches))
        return 10.0 * len(calls)

    monkeypatch.setattr("trainers.training.scores.evaluate", evaluate)
    # Folding has tests of its own.
    monkeypatch.setattr("models.folding.FoldedNetwork.refreshed", lambda self: self._network)
    return calls


def kept_in(state: dict[str, Tensor], training: ScoreTraining) -> Tensor:
    """What the weights of an evaluated network are, relative to the weights of the one that is trained; flat."""
    layers = masked_layers(training.network).items()
    return torch.cat([(state[f"{name}.weight"] / layer.weight.detach()).flatten() for name, layer in layers])


# ---- penalties -----------------------------------------------------------------------------------------------------


# Of the scores 0, 1/4, 1/2, 1 beside the weights 1, -2, 3, 1/2: α, α′, the value, and its derivative by every score.
@pytest.mark.parametrize(("name", "a", "b", "value", "slope"), [
    ("L2", 1.0, 1.0, 1.3125, [0.0, 0.5, 1.0, 2.0]), ("L1", 1.0, 1.0, 1.75, [0.0, 1.0, 1.0, 1.0]),
    ("L1_L2", 1.0, 1.0, 3.0625, [0.0, 1.5, 2.0, 3.0]), ("var_red_1", 1.0, 1.0, 0.4375, [1.0, 0.5, 0.0, -1.0]),
    ("var_red_1", 2.0, 3.0, 0.0263671875 + 0.03125, [0.0, 0.10546875, -0.0625, 0.0]),
    ("var_red_2", 1.0, 1.0, 3.0, [1.0, 2.0, 0.0, -0.25]),
    ("bin_entropy", 1.0, 1.0, 0.5623351446 + math.log(2), [0.0, math.log(3), 0.0, 0.0]),
])  # fmt: skip
def test_a_penalty_has_the_value_and_the_slope_found_by_hand(name, a, b, value, slope):
    scores = torch.tensor([0.0, 0.25, 0.5, 1.0], requires_grad=True)
    found = PENALTIES[name](scores, torch.tensor([1.0, -2.0, 3.0, 0.5]), a, b)
    found.backward()
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert scores.grad.tolist() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_a_broken_power_of_scores_outside_their_range_is_a_number_and_does_not_pull():
    scores = torch.tensor([-0.01, 0.5, 1.01], requires_grad=True)
    found = PENALTIES["var_red_1"](scores, torch.ones(3), 1.5, 2.5)
    found.backward()
    assert found.item() == pytest.approx(0.0625) and scores.grad.tolist() == pytest.approx([0, -0.125, 0])


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
    for layer in masked_layers(training.network).values():
        torch.testing.assert_close(layer.scores.grad, 2 * layer.weight.square() * 0.5)
        torch.testing.assert_close(layer.bias_scores.grad, 2 * layer.bias.square() * 0.5)
        assert layer.weight.grad is None


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["L2", "L1_L2"])
def test_l2_as_a_weight_decay_learns_what_l2_in_the_loss_does(name, optimizer):
    common = ("--optimizer", optimizer, "--lr", "0.05", "--wd", "0.01")
    decayed, added = learning(*common, "--regularization", name, "--lmbda", "0.03"), learning(*common)
    added.penalty = lambda: 0.03 * PENALTIES[name](added.flat.scores, torch.empty(0), 1.0, 1.0)
    for training in (decayed, added):
        take_steps(training, 6)
    torch.testing.assert_close(decayed.flat.scores, added.flat.scores, rtol=1e-5, atol=1e-6)


def test_l2_costs_no_work_in_a_step_and_l1_l2_only_that_of_l1():
    assert learning("--regularization", "L2").penalty() is learning().penalty() is None
    both = learning("--regularization", "L1_L2", "--lmbda", "0.5")
    assert both.penalty().item() == pytest.approx(0.5 * both.flat.scores.sum().item(), rel=1e-5)


def test_pruned_weights_decay_by_wd_and_their_scores_by_the_penalty_too_both_with_momentum():
    words = ("--lr", "0.1", "--wd", "0.5", "--momentum", "0.9", "--regularization", "L2", "--lmbda", "1")
    training = learning(*words, "--freeze_weights", "false")
    training.flat.flags.fill_(False)  # no gradient from the task
    learned = {training.network.conv.weight: 0.5, training.flat.scores: 0.5 + 2 * 1}
    before = [part.detach().clone() for part in learned]
    take_steps(training, 2)
    for (part, decay), start in zip(learned.items(), before):
        first = start * (1 - 0.1 * decay)
        torch.testing.assert_close(part.detach(), first - 0.1 * decay * (0.9 * start + first))


# ---- what learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "inside"), [
    ((), [True] * 7), (("--project_freq", "3"), [True, False, False, True, False, False, True]),
    (("--project_freq", "3", "--differentiate_clamp", "true"), [True] * 7),
])  # fmt: skip
def test_scores_are_projected_before_the_forward_pass_every_project_freq_steps_and_after_the_last(words, inside):
    training, seen = learning("--lr", "30", "--momentum", "0", *words), []
    scores = set_scores(training, training.flat.scores.detach() * 3 - 1)
    training.network.register_forward_pre_hook(lambda *_: seen.append(torch.equal(scores, scores.clamp(0, 1))))
    take_steps(training, 7)
    assert seen == inside
    last = scores.clone()
    assert last.min() < 0 and last.max() > 1
    training.after_steps()
    assert torch.equal(scores, last.clamp(0, 1))


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_scores_and_batch_norm_statistics_move_and_weights_and_biases_unless_they_are_frozen(freeze):
    training = learning("--lr", "0.1", "--freeze_weights", freeze, bias=True, affine=True)
    before = deepcopy(training.network.state_dict())
    take_steps(training, 3)
    parameters = {name: part for name, part in training.network.named_parameters() if name.partition(".")[0] != "norm"}
    learned = {name for name in parameters if freeze == "false" or name.endswith("scores")}
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    after = training.network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == learned | statistics
    assert {name for name, part in training.network.named_parameters() if part.grad is not None} == learned


def test_the_learning_rate_warms_up_and_then_follows_the_policy():
    training = learning("--lr", "0.4", "--epochs", "4", "--warmup_length", "2", "--lr_policy", "cosine_lr")
    assert [training.lr(epoch) for epoch in range(4)] == pytest.approx([0.2, 0.4, 0.4, 0.2])


# ---- how scores are rounded to be judged ---------------------------------------------------------------------------


def test_naive_switches_on_what_lies_strictly_above_the_threshold_and_is_unpruned(judged):
    training = learning(*ROUNDED, rule=Round(0.25))
    on = set_scores(training, torch.tensor([0.0, 0.25, 0.26, 1.0]).repeat(40)[:158]) > 0.25
    training.flat.flags[3] = on[3] = False
    assert torch.equal(training.naive_mask(), on)
    row = measured(training)
    assert torch.equal(kept_in(judged[0][0], training), on.float())
    assert row["model_sparsity"] == pytest.approx(100 * int(on.sum()) / 158)


def test_prob_keeps_each_weight_with_its_score_as_probability(judged):
    training = learning("--round", "prob", "--num_test", "300", rule=Soft())
    scores = set_scores(training, torch.cat([torch.zeros(20), torch.ones(20), torch.full((118,), 0.3)])).clone()
    training.flat.flags[-18:] = False
    row = measured(training)
    draws = torch.stack([kept_in(state, training) for state, _ in judged[:-1]])
    frequencies = draws.mean(0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert frequencies[[*range(40), *range(140, 158)]].tolist() == [0.0] * 20 + [1.0] * 20 + [0.0] * 18
    assert frequencies[40:140].mean().item() == pytest.approx(0.3, abs=0.01)
    assert (frequencies[40:140] - 0.3).abs().max() < 0.15
    assert row["model_sparsity"] == pytest.approx(100 * frequencies.mean().item(), rel=1e-4)
    assert torch.equal(scores, training.flat.scores.detach())


@pytest.mark.parametrize("rule", [Round(0.5), Soft()])
def test_naive_prob_draws_the_first_linear_layer_alone(judged, rule):
    training = learning("--round", "naive_prob", "--num_test", "100", rule=rule)
    set_scores(training, torch.cat([torch.full((18,), 0.9), torch.full((128,), 0.3), torch.full((12,), 0.1)]))
    measured(training)
    conv, hidden, out = torch.stack([kept_in(state, training) for state, _ in judged[:100]]).split([18, 128, 12], 1)
    assert (conv.min(), out.max()) == (1, 0)
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.02)


def test_all_ones_switches_on_all_that_is_unpruned(judged):
    training = learning("--round", "all_ones", rule=Soft())
    set_scores(training, 0.0)
    training.flat.flags[:9] = False
    row = measured(training)
    assert kept_in(judged[0][0], training).tolist() == [0.0] * 9 + [1.0] * 149
    assert row["model_sparsity"] == pytest.approx(100 * 149 / 158)


def test_noise_of_the_given_deviation_is_added_to_the_scores_before_they_are_rounded(judged):
    training = learning("--noise", "true", "--noise_ratio", "0.2", "--num_test", "300", rule=Round(0.5))
    set_scores(training, 0.6)
    training.flat.flags[:58] = False
    row = measured(training)
    expected = 0.5 * (1 + math.erf(0.1 / 0.2 / math.sqrt(2)))  # the chance that 0.6 plus noise lies above 0.5
    assert row["model_sparsity"] == pytest.approx(100 * 100 / 158 * expected, abs=0.5)
    assert len(judged) == 301
    assert training.flat.scores.eq(0.6).all()


@pytest.mark.parametrize("words", [("--noise", "true"), ("--noise_ratio", "0.2")])
def test_noise_needs_both_of_its_options_and_without_chance_num_test_judges_once(judged, words):
    row = measured(learning(*words, "--num_test", "3"))
    assert len(judged) == 1
    assert row["test_acc"] == row["test_acc_before_rounding"]


def test_num_test_draws_are_different_and_their_accuracies_averaged(judged):
    data = splits(24)
    row = learning("--round", "prob", "--num_test", "3", rule=Soft()).measure(data, drawing)
    assert [batches for _, batches in judged] == [data.test] * 3 + [data.val] * 3 + [data.test]
    accuracies = (row["test_acc"], row["val_acc"], row["test_acc_before_rounding"])
    assert accuracies == ((10 + 20 + 30) / 3, (40 + 50 + 60) / 3, 70)
    first, second, third, *again = [state["hidden.weight"] for state, _ in judged[:6]]
    assert not torch.equal(first, second) and same_bits(again, [first, second, third])


# ---- before and after rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "rule"), [
    (("--round", "prob"), Round(0.5)), (("--round", "all_ones"), Round(0.5)),
    (("--noise", "--noise_ratio", "0.1"), Round(0.5)),
    (("--round", "all_ones"), TopKInLayer(0.3)),  # it ranks within a layer
])  # fmt: skip
def test_another_rounding_than_the_forward_pass_is_judged_beside_it(judged, words, rule):
    training = learning(*ROUNDED, *words, rule=rule)
    row = measured(training)
    assert (row["test_acc"], row["test_acc_before_rounding"]) == (10, 20)
    layers = masked_layers(training.network)
    assert all(torch.equal(judged[1][0][f"{name}.weight"], layers[name].effective_weight()) for name in layers)


def test_unrounded_scores_are_judged_as_they_are_and_rounded_with_the_statistics_of_the_moment(judged):
    training = learning(rule=Soft(0.25), affine=True)
    training.flat.flags[::3] = False
    take_steps(training, 2)
    row = measured(training)
    assert (row["test_acc"], row["test_acc_before_rounding"], row["val_acc"]) == (10, 20, None)
    (after, _), (before, _) = judged
    for name, layer in masked_layers(training.network).items():
        torch.testing.assert_close(before[f"{name}.weight"], layer.weight * layer.scores * layer.flag)
        torch.testing.assert_close(after[f"{name}.weight"], layer.weight * ((layer.scores > 0.25) & layer.flag))
    for state in (before, after):
        assert torch.equal(state["norm.running_mean"], training.network.norm.running_mean)
        assert state["norm.running_mean"].abs().min() > 0


def test_soft_scores_and_their_rounding_can_answer_differently():
    one = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    one[1].weight.data.copy_(torch.tensor([[3.0], [1.0]]))
    spec = DataSpec(shape=(1, 1, 1), classes=("a", "b"), mean=(0.0,), std=(1.0,))
    white = ImageSet(torch.full((4, 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    training, plain = ScoreTraining(to_masked(one), Soft(), parse_args([])), PlainBatches(white, spec)
    set_scores(training, torch.tensor([0.4, 0.6]))  # 1.2 against 0.6; rounded, 0 against 1
    row = training.measure(Splits(spec, TrainBatches(white, spec, 4), plain, plain), drawing)
    wanted = {"test_acc_before_rounding": 100.0, "test_acc": 0.0, "val_acc": 0.0, "model_sparsity": 50.0}
    assert {name: row[name] for name in wanted} == wanted


def test_biases_are_judged_under_their_own_scores(judged):
    training = learning(*ROUNDED, bias=True)
    layer = training.network.out
    layer.bias_scores.data.copy_(torch.tensor([0.9, 0.2, 0.9]))
    layer.bias_flag[2] = False
    layer.bias.data.fill_(5.0)
    measured(training)
    assert judged[0][0]["out.bias"].tolist() == [5.0, 0.0, 0.0]


@pytest.mark.parametrize(("name", "value"), [("none", 0.0), ("L2", 0.25), ("L1_L2", 0.75), ("var_red_1", 0.25)])
def test_the_row_has_lambda_times_the_whole_penalty(name, value):
    training = learning("--regularization", name, "--lmbda", "0.1")
    set_scores(training, 0.5)
    assert measured(training)["regularization_loss"] == pytest.approx(0.1 * 158 * value, rel=1e-5)


def test_measuring_changes_nothing_of_the_training():
    training = learning("--round", "prob", "--num_test", "2", rule=Soft(), affine=True)
    training.network.train()
    before = deepcopy(training.network.state_dict())
    measured(training)
    assert same_bits(before, training.network.state_dict())
    assert training.network.training


# ---- what is logged ------------------------------------------------------------------------------------------------


def test_the_densities_logged_are_of_unpruned_weights_and_of_each_layers_weights_that_are_switched_on():
    training = learning(bias=True)
    scores = set_scores(training, torch.linspace(0.6, 1, 167))
    scores[146:158] = scores[-1] = 0.0  # the last layer, and a bias that is not counted
    training.flat.flags[:9] = False  # half of the convolution
    training.flat.flags[158:] = False
    layers = {"layers/conv": 50.0, "layers/hidden": 100.0, "layers/out": 0.0}
    assert training.describe() == ({"unpruned_percent": pytest.approx(100 * 149 / 158), **layers}, {})
    training.network.out.flag.fill_(False)
    assert same_bits(training.histograms(), {"scores/conv": scores[9:18], "scores/hidden": scores[18:146]})
