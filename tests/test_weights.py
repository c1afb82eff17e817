"""Training under masks: pruned weights stay 0, the others learn as by hand, the recipe is the one for fine-tuning."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from args_helper import OPTIONS, parse_args
from data.load import Splits
from models.initialise import WeightDraw, draw_weights
from tests.conftest import opened, same_bits
from tests.toys import SPEC, Toy, splits
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import evaluate, train_step
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


def test_a_recipe_without_augmentation_takes_the_images_as_they_are(tmp_path):
    def trained(name: str, data: Splits, *words: str) -> list[Tensor]:
        net = Toy()
        with opened(tmp_path / name).until_stopped() as run:
            train_ticket(run, "finetune", net, ticket(), data, tuning("--fine_tune_lr", "0.1", *words))
        return list(net.state_dict().values())

    augmented = splits(20, spec=dataclasses.replace(SPEC, pad=1, flip=True))
    plain = trained("plain", splits(20))
    assert same_bits(trained("as they are", augmented, "--no-fine_tune_augment"), plain)
    assert not same_bits(trained("augmented", augmented), plain)


# ---- pruned weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [
    ("--momentum", "0"), ("--fine_tune_wd", "0.1"), ("--fine_tune_wd", "0.1", "--nesterov"),
    ("--fine_tune_wd", "0.1", "--fine_tune_optimizer", "adam"),
], ids=str)  # fmt: skip
def test_pruned_weights_are_exactly_0_before_the_first_step_and_after_every_one(words, run, monkeypatch):
    given, net, steps = ticket(bias=True), Toy(bias=True), []

    def look(step: int) -> None:
        steps.append(step)
        for name, mask in given.masks.items():
            assert torch.equal(net.get_parameter(name) != 0, mask), name

    def looking(training: WeightTraining, step: int, *rest: object) -> Tensor:
        look(step)
        counted = train_step(training, step, *rest)
        look(step)
        return counted

    monkeypatch.setattr("trainers.training.loop.train_step", looking)
    train_ticket(run, "finetune", net, given, splits(20), tuning("--fine_tune_lr", "0.05", *words))
    assert steps == [0, 0, 1, 1, 2, 2] * 2


def trained_by_hand(run: Run, given: Ticket, data: Splits, nesterov: bool, undecayed: list[str]) -> dict[str, Tensor]:
    """Two epochs of SGD, lr 0.1, momentum 0.9, decay 0.3, on masks times weights: no weight is ever set to 0."""
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
                slope = slope + (0.0 if name in undecayed else 0.3) * value.detach()
                velocity[name] = 0.9 * velocity[name] + slope
                value.data -= 0.1 * (slope + 0.9 * velocity[name] if nesterov else velocity[name])
    return {name: value.detach() for name, value in values.items()}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("no_bn_decay", [False, True])
def test_survivors_and_batch_norm_learn_as_by_sgd_without_zeroing(nesterov, no_bn_decay, run):
    given, net, data = ticket(), Toy(), splits(20)
    # What the network was before makes no difference, nor does a search that froze it.
    train_ticket(run, "check/mask_shuffle", net, given, data, tuning("--fine_tune_lr", "0.5"))
    net.requires_grad_(False)
    words = f"--fine_tune_lr 0.1 --fine_tune_wd 0.3 --nesterov {nesterov} --no_bn_decay {no_bn_decay}"
    train_ticket(run, "finetune", net, given, data, tuning(*words.split()))
    expected = trained_by_hand(run, given, data, nesterov, ["norm.weight", "norm.bias"] if no_bn_decay else [])
    for name, part in net.named_parameters():
        mask = given.masks.get(name, torch.ones_like(part, dtype=torch.bool))
        torch.testing.assert_close(part.detach()[mask], expected[name][mask], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(part.detach()[mask], given.state[name][mask], atol=1e-3)
    assert same_bits([given.state, given.masks], [ticket().state, ticket().masks])  # the ticket itself is not trained


def test_batch_norm_statistics_go_on_from_the_tickets(run):
    given, net, data = ticket(), Toy(), splits(20, batch_size=20)
    train_ticket(run, "finetune", net, given, data, tuning("--fine_tune_epochs", "1"))
    ((batch, _),) = data.train.epoch(run.rng("finetune", "batches", 0))
    old, out = given.state, F.conv2d(batch, given.state["conv.weight"] * given.masks["conv.weight"], padding=1)
    torch.testing.assert_close(net.norm.running_mean, 0.9 * old["norm.running_mean"] + 0.1 * out.mean((0, 2, 3)))
    torch.testing.assert_close(net.norm.running_var, 0.9 * old["norm.running_var"] + 0.1 * out.var((0, 2, 3)))
    assert net.norm.num_batches_tracked == 8


# ---- the recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "other"), [(torch.optim.Adam, "sgd"), (torch.optim.SGD, "adam")])
def test_the_optimizer_is_that_of_fine_tuning(kind, other):
    recipe = tuning("--optimizer", other, "--fine_tune_optimizer", kind.__name__.lower())
    assert type(WeightTraining(Toy(), ticket(), recipe).optimizer) is kind


@pytest.mark.parametrize(("words", "rates"), [
    ("--epochs 60 --fine_tune_epochs 4 --fine_tune_lr_policy cosine_lr",
     [0.1 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]),
    ("--fine_tune_epochs 4 --fine_tune_lr_policy multistep_lr --milestones 1 3 --gamma 0.5", [0.2, 0.1, 0.1, 0.05]),
    ("--epochs 3 --iter_period 1 --fine_tune_lr_policy constant_lr", [0.2] * 3),  # as long as the search
])  # fmt: skip
def test_the_learning_rate_is_that_of_fine_tuning_over_its_own_epochs(words, rates, run):
    recipe = Recipe.of_tuning(parse_args(["--lr", "5", "--fine_tune_lr", "0.2", *words.split()]))
    row = train_ticket(run, "finetune", Toy(), ticket(), splits(20), recipe)
    assert [row["lr"] for row in run.rows("finetune")] == pytest.approx(rates)
    assert row["epoch"] == len(rates) - 1


def test_what_no_row_tells_of_may_have_been_changed_within_the_training():
    recipe, of_a_search = tuning(), {"lr", "lr_gamma", "wd", "lmbda"}
    rows = [{"lr": recipe.rate(epoch)} for epoch in range(2)]
    told = {"gamma", "milestones", "skip_fine_tune", "fine_tune_epochs", "fine_tune_lr", "fine_tune_lr_policy"}
    changeable = {name for name, field in OPTIONS.items() if field.json_schema_extra["changeable"]}
    followed = {name for name in changeable if recipe.was_followed(rows, f"{name} 1 → 2")}
    assert followed == told | of_a_search and not recipe.was_followed(rows[:1], "lr 1 → 2")


def test_the_row_has_the_accuracies_of_the_network_that_is_handed_back_and_its_density(run):
    given, net, data = ticket(bias=True), Toy(bias=True), splits(20)
    row = train_ticket(run, "finetune", net, given, data, tuning("--fine_tune_lr", "0.1"))
    kept = sum(int(given.masks[name].sum()) for name in ("conv.weight", "out.weight"))
    wanted = {
        "test_acc": evaluate(net, data.test), "val_acc": evaluate(net, data.val), "test_acc_before_rounding": None,
        "model_sparsity": 100 * kept / 228, "regularization_loss": 0.0,
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted
    assert row["test_acc"] != row["val_acc"]
