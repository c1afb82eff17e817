"""Training under masks: pruned weights stay 0, the others learn as by hand, the recipe is the one for fine-tuning."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainers.training.loop as loop_module
from args_helper import parse_args
from data.load import Splits
from models.initialise import WeightDraw, draw_weights
from tests.toys import Toy, splits
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import evaluate
from trainers.training.weights import WeightTraining, train_ticket
from utils.run.run import Run


def ticket(bias: bool = False) -> Ticket:
    """Half of the weights of a network whose batch norm has seen something; nothing of its state is 0."""
    net, generator = Toy(bias), torch.Generator().manual_seed(4)
    draw_weights(net, generator, WeightDraw("kaiming_normal"))
    net.norm.running_mean.copy_(torch.tensor([0.5, -0.5, 1.0, 2.0]))
    net.norm.running_var.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0]))
    net.norm.num_batches_tracked.fill_(7)
    net.norm.weight.data.copy_(torch.tensor([0.5, 1.5, 1.0, 2.0]))
    net.norm.bias.data.fill_(0.25)
    masked = [name for name in net.state_dict() if not name.startswith("norm")]
    masks = {name: torch.rand(net.state_dict()[name].shape, generator=generator) < 0.5 for name in masked}
    return Ticket({name: value.clone() for name, value in net.state_dict().items()}, masks)


def tuning(*words: str) -> Recipe:
    return Recipe.of_tuning(parse_args(["--fine_tune_epochs", "2", *words]))


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path, tmp_path / "events", 7).until_stopped() as run:
        yield run


@pytest.fixture
def steps(monkeypatch) -> list:
    """The network's parameters after every step of training."""
    seen, take = [], loop_module.train_step

    def recorded(training: WeightTraining, *rest: object) -> Tensor:
        counted = take(training, *rest)
        seen.append({name: part.detach().clone() for name, part in training.network.named_parameters()})
        return counted

    monkeypatch.setattr(loop_module, "train_step", recorded)
    return seen


# ---- pruned weights ------------------------------------------------------------------------------------------------

RECIPES = {
    "sgd": ("--momentum", "0"),
    "momentum and decay": ("--fine_tune_wd", "0.1"),
    "nesterov": ("--fine_tune_wd", "0.1", "--nesterov"),
    "adam": ("--fine_tune_optimizer", "adam", "--fine_tune_wd", "0.1"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_pruned_weights_are_exactly_0_after_every_step(recipe, run, steps):
    given, net = ticket(bias=True), Toy(bias=True)
    train_ticket(run, "finetune", net, given, splits(20), tuning("--fine_tune_lr", "0.05", *RECIPES[recipe]))
    assert len(steps) == 6
    for parameters in steps:
        for name, mask in given.masks.items():
            assert parameters[name][~mask].eq(0).all(), name
            assert parameters[name][mask].ne(0).all(), name
    assert all(given.state[name][~mask].ne(0).any() for name, mask in given.masks.items())


def test_pruned_weights_are_0_before_the_first_step():
    net, given = Toy(), ticket()
    WeightTraining(net, given, tuning())
    for name, mask in given.masks.items():
        assert torch.equal(net.state_dict()[name], given.state[name] * mask)


def trained_by_hand(
    run: Run, given: Ticket, data: Splits, decay: float, nesterov: bool, undecayed: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Two epochs of SGD, lr 0.1, momentum 0.9, on masks times weights: no weight is ever set to 0."""
    net = Toy()
    net.load_state_dict(given.state)
    values = {name: part.detach().clone().requires_grad_() for name, part in net.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in values.items()}
    net.train()
    for epoch in range(2):
        for batch, labels in data.train.epoch(run.rng("finetune", "batches", epoch)):
            effective = {name: value * given.masks.get(name, 1.0) for name, value in values.items()}
            loss = F.cross_entropy(torch.func.functional_call(net, effective, batch), labels)
            for (name, value), slope in zip(values.items(), torch.autograd.grad(loss, list(values.values()))):
                slope = slope + (0.0 if name in undecayed else decay) * value.detach()
                velocity[name] = 0.9 * velocity[name] + slope
                value.data -= 0.1 * (slope + 0.9 * velocity[name] if nesterov else velocity[name])
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("no_bn_decay", [False, True])
def test_survivors_and_batch_norm_learn_as_by_sgd_without_zeroing(nesterov, no_bn_decay, run):
    given, net, data = ticket(), Toy(), splits(20)
    words = ("--fine_tune_lr", "0.1", "--fine_tune_wd", "0.3")
    switches = ("--nesterov", str(nesterov).lower(), "--no_bn_decay", str(no_bn_decay).lower())
    train_ticket(run, "finetune", net, given, data, tuning(*words, *switches))
    spared = ("norm.weight", "norm.bias") if no_bn_decay else ()
    expected = trained_by_hand(run, given, data, 0.3, nesterov, spared)
    for name, part in net.named_parameters():
        mask = given.masks.get(name, torch.ones_like(part, dtype=torch.bool))
        torch.testing.assert_close(part.detach()[mask], expected[name][mask], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(part.detach()[mask], given.state[name][mask], atol=1e-3)


# ---- what is taken over and what is fresh ------------------------------------------------------------------------


def test_batch_norm_statistics_go_on_from_the_tickets(run):
    given, net, data = ticket(), Toy(), splits(20, batch_size=20)
    train_ticket(run, "finetune", net, given, data, tuning("--fine_tune_epochs", "1"))
    ((batch, _),) = data.train.epoch(run.rng("finetune", "batches", 0))
    out = F.conv2d(batch, given.state["conv.weight"] * given.masks["conv.weight"], padding=1)
    old = given.state
    torch.testing.assert_close(net.norm.running_mean, 0.9 * old["norm.running_mean"] + 0.1 * out.mean((0, 2, 3)))
    torch.testing.assert_close(net.norm.running_var, 0.9 * old["norm.running_var"] + 0.1 * out.var((0, 2, 3)))
    assert net.norm.num_batches_tracked == 8


def test_parameters_that_a_search_froze_are_trained_again(run):
    net, given = Toy(), ticket()
    net.requires_grad_(False)
    train_ticket(run, "finetune", net, given, splits(20), tuning())
    changed = {name for name, part in net.named_parameters() if not torch.equal(part, given.state[name])}
    assert changed == {"conv.weight", "norm.weight", "norm.bias", "out.weight"}


def test_what_the_network_was_before_makes_no_difference(tmp_path):
    given, results = ticket(), []
    for number, used in enumerate([False, True]):
        net = Toy()
        with Run(tmp_path / str(number), tmp_path / "events", 7).until_stopped() as run:
            if used:
                train_ticket(run, "check/mask_shuffle", net, given, splits(20), tuning("--fine_tune_lr", "0.5"))
            train_ticket(run, "finetune", net, given, splits(20), tuning("--fine_tune_wd", "0.1"))
        results.append(net.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_ticket_itself_is_not_trained(run):
    given, same = ticket(), ticket()
    train_ticket(run, "finetune", Toy(), given, splits(20), tuning("--fine_tune_lr", "0.5"))
    assert all(torch.equal(given.state[name], same.state[name]) for name in same.state)
    assert all(torch.equal(given.masks[name], same.masks[name]) for name in same.masks)


# ---- the recipe ----------------------------------------------------------------------------------------------------


def test_labels_are_smoothed_as_the_config_says(run):
    given, net, data = ticket(), Toy(), splits(20, batch_size=20)
    words = ("--fine_tune_epochs", "1", "--fine_tune_lr", "1e-9", "--label_smoothing", "0.3")
    row = train_ticket(run, "finetune", net, given, data, tuning(*words))
    ((batch, labels),) = data.train.epoch(run.rng("finetune", "batches", 0))
    log_p = net.train()(batch).log_softmax(1)
    expected = -(0.7 * log_p[range(20), labels] + 0.1 * log_p.sum(1)).mean().item()
    assert row["train_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("optimizer", "other"), [("adam", "sgd"), ("sgd", "adam")])
def test_the_optimizer_is_that_of_fine_tuning(optimizer, other, run, steps):
    given = ticket()
    words = ("--optimizer", other, "--fine_tune_optimizer", optimizer, "--fine_tune_lr", "0.01", "--fine_tune_wd", "0")
    train_ticket(run, "finetune", Toy(), given, splits(20), tuning(*words))
    moved = (steps[0]["out.weight"] - given.state["out.weight"]).abs()[given.masks["out.weight"]]
    by_the_learning_rate = (moved - 0.01).abs().le(1e-5)  # as Adam's first step is, whatever the gradient
    assert by_the_learning_rate.all() if optimizer == "adam" else not by_the_learning_rate.all()


def test_the_learning_rate_is_that_of_fine_tuning_over_its_own_epochs(run):
    words = ("--lr", "5", "--epochs", "60", "--fine_tune_epochs", "4", "--fine_tune_lr", "0.2")
    train_ticket(run, "finetune", Toy(), ticket(), splits(20), tuning(*words, "--fine_tune_lr_policy", "cosine_lr"))
    rates = [0.1 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [row["lr"] for row in run.rows("finetune")] == pytest.approx(rates)


def test_multistep_divides_at_the_given_milestones_by_the_given_gamma(run):
    words = ("--fine_tune_epochs", "4", "--fine_tune_lr", "0.2", "--milestones", "1", "3", "--gamma", "0.5")
    train_ticket(run, "finetune", Toy(), ticket(), splits(20), tuning(*words, "--fine_tune_lr_policy", "multistep_lr"))
    assert [row["lr"] for row in run.rows("finetune")] == pytest.approx([0.2, 0.1, 0.1, 0.05])


def test_without_epochs_of_its_own_fine_tuning_takes_those_of_the_search(run):
    recipe = Recipe.of_tuning(parse_args(["--epochs", "3", "--iter_period", "1"]))
    assert train_ticket(run, "finetune", Toy(), ticket(), splits(20), recipe)["epoch"] == 2


def test_the_row_is_the_last_epochs_and_not_the_best(run, monkeypatch):
    accuracies = iter([90.0, 80.0, 50.0, 40.0])  # test and val of two epochs
    monkeypatch.setattr("trainers.training.weights.evaluate", lambda network, batches, precision: next(accuracies))
    row = train_ticket(run, "finetune", Toy(), ticket(), splits(20), tuning())
    assert (row["epoch"], row["test_acc"], row["val_acc"]) == (1, 50.0, 40.0)


def test_the_row_has_the_accuracies_of_the_network_that_is_handed_back_and_its_density(run):
    given, net, data = ticket(bias=True), Toy(bias=True), splits(20)
    row = train_ticket(run, "finetune", net, given, data, tuning("--fine_tune_lr", "0.1"))
    assert (row["test_acc"], row["val_acc"]) == (evaluate(net, data.test), evaluate(net, data.val))
    assert row["test_acc"] != row["val_acc"]
    kept = sum(int(given.masks[name].sum()) for name in ("conv.weight", "out.weight"))
    assert row["model_sparsity"] == pytest.approx(100 * kept / 228)
    assert row["test_acc_before_rounding"] is None
    assert row["regularization_loss"] == 0.0


def test_a_finished_fine_tuning_hands_back_the_trained_network_again(tmp_path):
    nets, rows = [Toy(), Toy()], []
    for net in nets:
        with Run(tmp_path, tmp_path / "events", 7).until_stopped() as run:
            rows.append(train_ticket(run, "finetune", net, ticket(), splits(20), tuning()))
    states = [net.state_dict() for net in nets]
    assert rows[0] == rows[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
