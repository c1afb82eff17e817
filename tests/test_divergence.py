"""Runs that fall ill: the step, the rate and the layer are told, and the last good checkpoint stays."""

import warnings

import pytest
import torch
from torch import nn

from tests.conftest import opened
from tests.test_loop import splits, training_weights
from trainers.training.divergence import NotFinite, check_finite, warn_of_collapse
from trainers.training.loop import train
from utils.errors import Diverged


@pytest.mark.parametrize(
    ("accuracies", "is_told"),
    [([60, 11], True), ([60, 30, 9], True), ([60, 13], False), ([15, 10], False), ([60, 10, 10], False), ([8], False)],
)  # chance is 10
@pytest.mark.parametrize("name", ["val_acc", "train_acc"])
def test_a_fall_to_chance_is_told_when_it_happens(accuracies, is_told, name):
    row = {"val_acc": None, "train_acc": 50.0, "model_sparsity": 5.0}
    rows = [{**row, "epoch": epoch, name: accuracy} for epoch, accuracy in enumerate(accuracies)]
    with warnings.catch_warnings(record=True, action="always") as caught:
        warn_of_collapse("search", rows, 10)
    assert [f"search has collapsed: {name} fell to" in str(one.message) for one in caught] == [True] * is_told


def test_a_loss_or_a_parameter_that_is_not_finite_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_finite(net, torch.tensor(1.0))
    with pytest.raises(NotFinite, match="the loss"):
        check_finite(net, torch.tensor(float("nan")))
    net[1].weight.data[0, 1] = float("inf")
    with pytest.raises(NotFinite, match=r"1\.weight"):
        check_finite(net, torch.tensor(1.0))


@pytest.mark.parametrize(("epoch", "step", "accumulate"), [(0, 0, 1), (1, 2, 1), (1, 2, 2)])
def test_a_training_that_diverges_tells_where_and_keeps_the_checkpoint_of_before(tmp_path, epoch, step, accumulate):
    training, position = training_weights(), {}
    training.accumulate = accumulate

    def poison(number):  # on the step itself: a run from the checkpoint meets it again
        if (position["epoch"], number) == (epoch, step):
            training.network.conv.weight.data[0] = float("nan")

    training.before_epoch = lambda number: position.update(epoch=number)
    training.before_step = poison
    with opened(tmp_path).until_stopped() as run, pytest.raises(Diverged) as raised:
        train(run, "finetune", training, splits(), 3)
    assert str(raised.value).startswith(
        f"finetune has diverged: conv.weight, after the step before, is not finite in epoch {epoch}, step {step}, at lr"
    )
    stored = run.load("finetune")
    assert (stored["epoch"], stored["step"]) == (epoch, 0)
    assert all(value.isfinite().all() for value in stored["training"]["network"].values())


def test_weights_that_are_not_finite_are_told_before_the_first_step(tmp_path):
    training = training_weights()
    training.network.conv.weight.data[0] = float("nan")
    with opened(tmp_path).until_stopped() as run, pytest.raises(Diverged, match=r"cannot begin: conv\.weight is not"):
        train(run, "finetune", training, splits(), 3)


def test_what_does_not_come_again_is_told_as_such(tmp_path):
    training, times = training_weights(), iter([True])
    training.after_steps = lambda: next(times, False) and training.network.conv.weight.data.fill_(float("nan"))
    with opened(tmp_path).until_stopped() as run, pytest.raises(Diverged, match="though not when this was run again"):
        train(run, "finetune", training, splits(), 3)


@pytest.mark.parametrize(("algo", "stage"), [("training", "search"), ("rigl", "search"), ("imp", "search/round_0")])
def test_a_rate_that_is_far_too_high_ends_the_program_with_a_code_of_its_own_and_names_the_first_layer(
    algo, stage, call, places
):
    words = "--arch FC --epochs 3 --batch_size 256 --optimizer sgd --lr 1e30 --threads 1 --target_sparsity 50".split()
    code, _, err = call("--algo", algo, *words, *places)
    said = f"{stage} has diverged: the output of layer linear.2 is not finite in epoch 0, step 1, at lr 1e+30"
    assert (code, err.count(said)) == (3, 1)
