"""The loop all training goes through: order, figures, no waiting in a step, stopping and going on, evaluation."""

import itertools
import signal
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from args_helper import parse_args
from data.load import Splits
from models.initialise import draw_scores
from models.layers import Round, Soft
from models.masking import prunable_parameters, to_masked
from tests import toys
from tests.conftest import opened, same_bits
from trainers.algorithms.gem_miner import GemMiner
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import evaluate, train, train_step
from trainers.training.scores import ScoreTraining
from trainers.training.training import Training
from trainers.training.weights import WeightTraining
from utils.distributed import collectives as ranks
from utils.errors import Stopped


def splits(batch_size: int = 8) -> Splits:
    """Four steps an epoch, the last of which has four images."""
    return toys.splits(28, batch_size, spec=replace(toys.SPEC, pad=1, flip=True))


def masks() -> dict[str, Tensor]:
    draw, parameters = toys.seeded(3), prunable_parameters(toys.Toy())
    return {name: torch.rand(part.shape, generator=draw) < 0.5 for name, part in parameters.items()}


def training_weights(optimizer: str = "sgd", lr: float = 0.05) -> WeightTraining:
    net = toys.Toy()
    words = ["--fine_tune_optimizer", optimizer, "--fine_tune_lr", str(lr), "--fine_tune_wd", "0.01"]
    given = Ticket({name: value.clone() for name, value in net.state_dict().items()}, masks())
    training = WeightTraining(net, given, Recipe.of_tuning(parse_args(words)))
    training.lr = lambda epoch: lr / (1 + epoch)
    return training


def test_a_restored_optimizer_follows_the_options_of_this_run():
    one, other = training_weights(), training_weights()
    other.optimizer.param_groups[0].update(weight_decay=0.5, momentum=0.1)
    other.load_state(one.state())
    group = other.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.5, 0.1)


def scored() -> nn.Module:
    draw_scores(net := to_masked(toys.Toy()), torch.Generator().manual_seed(2), "unif")
    return net


def training_scores(*words: str, rule: Round | Soft | None = None) -> ScoreTraining:
    config = parse_args(["--algo", "hc", "--lr", "0.3", "--epochs", "3", "--lr_policy", "cosine_lr", *words])
    return ScoreTraining(scored(), rule or Round(0.5), config)


KINDS = {
    "weights by sgd": lambda: training_weights("sgd"),
    "weights by adam": lambda: training_weights("adam", 0.01),
    "scores by sgd": lambda: training_scores("--regularization", "L2"),
    "scores by adam": lambda: training_scores("--optimizer", "adam", "--regularization", "bin_entropy"),
    "soft scores": lambda: training_scores("--project_freq", "3", "--round", "prob", "--num_test", "2", rule=Soft()),
    "scores and weights": lambda: training_scores("--freeze_weights", "false", "--regularization", "var_red_2"),
}


def a_batch() -> tuple[Tensor, Tensor]:
    return next(splits().train.epoch(torch.Generator().manual_seed(0)))


class Recording(Training):
    """Writes down what the loop calls, in order, with the epoch or the step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, torch.optim.SGD(network.parameters(), 0.1), Recipe.of_search(parse_args([])))
        self.calls = []
        hooks = "before_epoch before_step forward penalty update after_step after_steps layer_densities after_epoch"
        for hook in hooks.split():
            setattr(self, hook, partial(self._called, hook, getattr(self, hook)))

    def _called(self, hook: str, does: Callable, *given: object) -> object:
        self.calls.append(" ".join([hook, *(str(one) for one in given if isinstance(one, int))]))
        return does(*given)

    def measure(self, data: Splits, draw: object) -> dict:
        self.calls.append("measure")
        self.network.eval()
        return {"test_acc": 1.0, "val_acc": None, "model_sparsity": 100.0}


# ---- the order and the figures -------------------------------------------------------------------------------------


def test_an_epoch_trains_then_measures_then_prunes(run):
    training = Recording(toys.Toy())
    train(run, "search", training, splits(batch_size=14), 2)
    step = ["forward", "penalty", "update", "after_step"]
    assert training.calls == list(itertools.chain(*(
        [f"before_epoch {epoch}", "before_step 0", *step, "before_step 1", *step, "after_steps", "measure",
         "layer_densities", f"after_epoch {epoch}"]  # an epoch costs what it trained, not what its pruning leaves
        for epoch in (0, 1)
    )))  # fmt: skip


def test_training_loss_and_accuracy_are_those_summed_up_by_hand_at_the_learning_rate_of_the_epoch(run):
    training, data = training_weights(), splits()
    net = deepcopy(training.network)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)
    train(run, "finetune", training, data, 2)
    for epoch, row in enumerate(run.rows("finetune")):
        loss_sum, right = 0.0, 0
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + epoch)
        for batch, labels in data.train.epoch(run.rng("finetune", "batches", epoch)):
            logits = net(batch)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, mask in masks().items():
                net.get_parameter(name).data.mul_(mask)
            loss_sum += loss.item() * len(labels)
            right += int((logits.argmax(1) == labels).sum())
        wanted = {"lr": 0.05 / (1 + epoch), "train_loss": loss_sum / 28, "train_acc": 100 * right / 28}
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_the_penalty_is_part_of_the_gradient_and_not_of_the_loss():
    plain, penalised = training_weights(), training_weights()
    penalised.penalty = lambda: 2 * penalised.network.conv.weight.sum()
    assert torch.equal(*[train_step(training, 0, *a_batch()) for training in (plain, penalised)])
    difference = plain.network.conv.weight - penalised.network.conv.weight
    torch.testing.assert_close(difference, 0.05 * 2 * masks()["conv.weight"].float())
    assert torch.equal(plain.network.out.weight, penalised.network.out.weight)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    whole, split = training_weights(), training_weights()
    split.accumulate = parts
    for training in (whole, split):  # without batch norm, whose statistics are of a part
        training.network.norm = nn.Identity()
    torch.testing.assert_close(*[train_step(training, 0, *a_batch()) for training in (whole, split)])
    torch.testing.assert_close(split.network.state_dict(), whole.network.state_dict())


PARTS = [(8, 1, 8), (8, 4, 2), (11, 4, 3), (10, 4, 3), (9, 4, 2), (7, 2, 4), (3, 8, 3), (0, 2, 0)]


@pytest.mark.parametrize(("count", "parts", "most"), PARTS)
def test_the_size_that_most_parts_have_is_what_is_compiled(count, parts, most, run, monkeypatch):
    sizes = [len(part) for part in torch.arange(count).tensor_split(ranks.in_parts(count, parts))]
    assert sizes.count(most) == max(map(sizes.count, sizes))
    monkeypatch.setattr(ranks, "own_part", lambda start, stop: slice(3, 3 + count))
    monkeypatch.setattr("trainers.training.loop._train", lambda *_: None)
    training = training_weights()
    training.accumulate = parts
    train(run, "search", training, splits(), 1)
    assert training.full_batch == most


def test_a_batch_of_all_the_images_there_are_is_a_full_one(run):
    training = training_weights()
    train(run, "search", training, splits(batch_size=100), 1)
    assert training.full_batch == 28


def test_every_epoch_says_one_plain_line_where_there_is_no_terminal(run, capsys):
    train(run, "finetune", training_weights(), splits(), 2)
    assert capsys.readouterr().out.splitlines() == [
        f"finetune {row['epoch'] + 1}/2  loss {row['train_loss']:.3f}  train {row['train_acc']:.1f}%  "
        f"test {row['test_acc']:.1f}%  remaining {row['model_sparsity']:.2f}%"
        for row in run.rows("finetune")
    ]


# ---- no waiting for the device in a step ---------------------------------------------------------------------------


WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


class CountWaits(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) in [f"aten.{name}.default" for name in WAITING]
        return func(*args, **(kwargs or {}))


UNWAITING = {
    **KINDS,
    "L1": lambda: training_scores("--regularization", "L1_L2"),
    "var_red_1": lambda: training_scores("--regularization", "var_red_1", "--differentiate_clamp", "true"),
    "moving threshold": lambda: GemMiner(scored(), parse_args(["--hc_quantized", "--bottom_k_on_forward"])),
}


@pytest.mark.parametrize("kind", UNWAITING)
def test_no_step_waits_for_the_device(kind):
    training, meter = UNWAITING[kind](), torch.zeros(3)
    with CountWaits() as waits:
        for step, batch in enumerate(splits().train.epoch(torch.Generator().manual_seed(0))):
            meter += train_step(training, step, *batch)
    assert waits.count == 0
    assert meter[2] == 28


@pytest.mark.parametrize("kind", ["weights by sgd", "scores by adam"])
def test_an_epoch_of_many_steps_waits_no_more_often_than_one_of_few(kind, tmp_path):
    counts = []
    for batch_size in (14, 4):
        with opened(tmp_path / str(batch_size)).until_stopped() as run, CountWaits() as waits:
            train(run, "search", KINDS[kind](), splits(batch_size), 1)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


# ---- stopping and going on -----------------------------------------------------------------------------------------


def trained(folder: Path, training: Training, epochs: int = 3) -> list[dict]:
    """Train the search of the run in this folder; return its rows without their seconds."""
    with opened(folder).until_stopped() as run:
        train(run, "search", training, splits(), epochs)
    return [{**row, "seconds": None} for row in run.rows("search")]


def stopped(folder: Path, training: Training, number: int) -> Stopped:
    """Let SIGTERM arrive in the number-th step (0-based, over all epochs) of a training; return how it ends."""
    before_step, steps = training.before_step, itertools.count()

    def stopping(step: int) -> None:
        if next(steps) == number:
            signal.raise_signal(signal.SIGTERM)
        before_step(step)

    training.before_step = stopping
    with pytest.raises(Stopped) as raised:
        trained(folder, training)
    return raised.value


@pytest.mark.parametrize("stop", [(0, 0, 1), (6, 1, 3), (3, 1, 0), (11, 3, 0)], ids=["1st", "inner", "end", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_stage_goes_on_to_the_very_bits_of_an_undisturbed_one(kind, stop, tmp_path):
    step, *position = stop
    undisturbed, first, second = (KINDS[kind]() for _ in range(3))
    rows = trained(tmp_path / "whole", undisturbed)
    assert stopped(tmp_path / "parts", first, step).exit_code == 128 + signal.SIGTERM
    stored = opened(tmp_path / "parts").load("search")
    assert [stored["epoch"], stored["step"]] == position
    assert trained(tmp_path / "parts", second) == rows
    assert same_bits(second.state(), undisturbed.state())
    assert opened(tmp_path / "parts").load("search")["done"]


def test_a_stage_that_ended_early_and_was_stopped_there_stays_ended(tmp_path):
    first, second = training_weights(), training_weights()
    first.after_epoch = lambda epoch, draw: setattr(first, "over", True)
    stopped(tmp_path, first, 3)
    assert [row["epoch"] for row in trained(tmp_path, second)] == [0]
    assert same_bits(second.state(), first.state())
    assert opened(tmp_path).load("search")["done"]


def test_the_seconds_of_an_interrupted_epoch_add_up(tmp_path, monkeypatch):
    clock = itertools.count(step=5)  # five seconds from one look at it to the next
    for module in ("loop", "position"):
        monkeypatch.setattr(f"trainers.training.{module}.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for step in (5, 0):  # both in the second epoch
        stopped(tmp_path, training_weights(), step)
    trained(tmp_path, training_weights())
    assert [row["seconds"] for row in opened(tmp_path).load("search")["rows"]] == [5.0, 15.0, 5.0]


def test_a_finished_stage_returns_at_once_with_what_it_had_come_to(tmp_path, monkeypatch):
    finished, again = training_weights(), training_weights()
    rows = trained(tmp_path, finished)
    for called in ("loop.train_step", "weights.WeightTraining.measure", "position.Position.save"):
        monkeypatch.setattr(f"trainers.training.{called}", lambda *_, called=called: pytest.fail(called))
    assert trained(tmp_path, again) == rows
    assert same_bits(again.state(), finished.state())


# ---- evaluation ----------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Answers with the class whose number an image holds, has memory for `most` images, and notes its modes."""

    def __init__(self, most: int = 9) -> None:
        super().__init__()
        self.most, self.modes = most, []

    def forward(self, batch: Tensor) -> Tensor:
        if len(batch) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return F.one_hot(batch.flatten().long(), 3).float()


def uneven() -> list[tuple[Tensor, Tensor]]:
    """Five images in batches of four and one, of which the first, the second and the last are told right."""
    told, true = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 0, 1, 1])
    return [(told[:4].view(4, 1), true[:4]), (told[4:].view(1, 1), true[4:])]


def test_accuracy_is_the_percentage_of_images_and_not_the_mean_over_batches():
    assert evaluate(Constant(), uneven()) == pytest.approx(60.0)
    assert evaluate(Constant(), None) is None


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_is_in_evaluation_and_inference_mode_and_restores_the_mode(mode):
    net = Constant().train(mode)
    evaluate(net, uneven())
    assert net.modes == [(False, True)] * 2
    assert (net.training, torch.is_inference_mode_enabled()) == (mode, False)


def test_a_batch_that_does_not_fit_into_memory_is_evaluated_in_parts():
    net, batches = Constant(most=1), [*uneven(), *uneven()]
    assert evaluate(net, batches) == pytest.approx(60.0)
    assert len(net.modes) == len(batches) // 2 * 5  # every image once
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(Constant(most=0), uneven())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_evaluation_is_in_the_precision_that_it_is_given(precision):
    net, seen = toys.Toy(), []
    net.out.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.dtype))
    evaluate(net, splits().test, precision)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("make", [training_weights, training_scores])
def test_a_row_is_measured_in_the_precision_of_its_training(make, monkeypatch):
    training, used = make(), []
    module = type(training).__module__
    monkeypatch.setattr(f"{module}.evaluate", lambda _net, _data, precision: used.append(precision) or 50.0)
    training.precision = "bf16"
    training.measure(splits(), lambda stream: torch.Generator())
    assert set(used) == {"bf16"}
