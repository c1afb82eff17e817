"""The loop all training goes through: order, figures, no waiting in a step, stopping and going on, evaluation."""

import itertools
import signal
from copy import deepcopy
from dataclasses import replace
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
from models.masking import to_masked
from tests import toys
from tests.toys import SPEC, Toy
from trainers.algorithms.hypercube import GemMiner
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.training.loop import evaluate, train, train_step
from trainers.training.scores import ScoreTraining
from trainers.training.training import Training
from trainers.training.weights import WeightTraining
from utils.distributed import collectives as ranks
from utils.errors import Stopped
from utils.run.checkpoints import Keeping
from utils.run.run import Run

AUGMENTED = replace(SPEC, pad=1, flip=True)
STEPS = 4  # of an epoch of 28 images in batches of 8; the last has 4
COLUMNS = [
    "phase", "epoch", "lr", "test_acc_before_rounding", "test_acc", "val_acc", "train_acc", "train_loss",
    "regularization_loss", "model_sparsity", "seconds",
]  # fmt: skip


def splits(batch_size: int = 8, val: bool = True) -> Splits:
    return toys.splits(28, batch_size, val=val, spec=AUGMENTED)


def masks() -> dict[str, Tensor]:
    generator, net = torch.Generator().manual_seed(3), Toy()
    return {
        name: torch.rand(net.get_parameter(name).shape, generator=generator) < 0.5
        for name in ("conv.weight", "out.weight")
    }


def training_weights(optimizer: str = "sgd", lr: float = 0.05) -> WeightTraining:
    net = Toy()
    words = ["--fine_tune_optimizer", optimizer, "--fine_tune_lr", str(lr), "--fine_tune_wd", "0.01"]
    given = Ticket({name: value.clone() for name, value in net.state_dict().items()}, masks())
    training = WeightTraining(net, given, Recipe.of_tuning(parse_args(words)))
    training.lr = lambda epoch: lr / (1 + epoch)
    return training


def training_scores(*words: str, rule: Round | Soft | None = None) -> ScoreTraining:
    net = to_masked(Toy())
    draw_scores(net, torch.Generator().manual_seed(2), "unif")
    config = parse_args(["--algo", "hc", "--lr", "0.3", "--epochs", "3", "--lr_policy", "cosine_lr", *words])
    return ScoreTraining(net, rule or Round(0.5), config)


def mining_gems(*words: str) -> GemMiner:
    net = to_masked(Toy())
    draw_scores(net, torch.Generator().manual_seed(2), "unif")
    return GemMiner(net, parse_args(["--lr", "0.3", "--epochs", "3", "--iter_period", "1", *words]))


KINDS = {
    "weights by sgd": lambda: training_weights("sgd"),
    "weights by adam": lambda: training_weights("adam", 0.01),
    "scores by sgd": lambda: training_scores("--regularization", "L2"),
    "scores by adam": lambda: training_scores("--optimizer", "adam", "--regularization", "bin_entropy"),
    "soft scores": lambda: training_scores("--project_freq", "3", "--round", "prob", "--num_test", "2", rule=Soft()),
    "scores and weights": lambda: training_scores("--freeze_weights", "false", "--regularization", "var_red_2"),
}


def begun(folder: Path, **options: object) -> Run:
    return Run(folder, folder / "events", 7, **options)


@pytest.fixture
def run(tmp_path):
    with begun(tmp_path / "run").until_stopped() as run:
        yield run


class Recording(Training):
    """Writes down what the loop calls, in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, torch.optim.SGD(network.parameters(), 0.1), lambda epoch: 0.1)
        self.calls = []
        network.register_forward_pre_hook(lambda *_: self._note("forward" if network.training else "evaluation"))

    def _note(self, call: str) -> None:
        self.calls.append(call)

    def before_epoch(self, epoch: int) -> None:
        self._note(f"before epoch {epoch}")

    def before_step(self, step: int) -> None:
        self._note(f"before step {step}")

    def penalty(self) -> None:
        self._note("penalty")

    def after_step(self) -> None:
        self._note("after step")

    def after_steps(self) -> None:
        self._note("after steps")

    def measure(self, data: Splits, draw: object) -> dict:
        self._note("measure")
        self.network.eval()
        return {"test_acc": 1.0, "val_acc": None, "model_sparsity": 100.0}

    def after_epoch(self, epoch: int, draw: object) -> None:
        self._note(f"after epoch {epoch}")


# ---- the order and the figures -------------------------------------------------------------------------------------


def test_an_epoch_trains_then_measures_then_prunes(run):
    training = Recording(Toy())
    train(run, "search", training, splits(batch_size=14), 2)
    step = ["forward", "penalty", "after step"]
    assert training.calls == [
        call
        for epoch in (0, 1)
        for call in [
            f"before epoch {epoch}", "before step 0", *step, "before step 1", *step,
            "after steps", "measure", f"after epoch {epoch}",
        ]
    ]  # fmt: skip


def test_a_row_has_the_columns_of_the_table_and_is_in_it(run):
    train(run, "finetune", training_weights(), splits(), 2)
    rows = run.rows("finetune")
    assert [list(row) for row in rows] == [COLUMNS] * 2
    assert [(row["phase"], row["epoch"]) for row in rows] == [("finetune", 0), ("finetune", 1)]
    lines = (run.folder / "acc_and_sparsity.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[2] == ",".join("" if value is None else str(value) for value in rows[1].values())


def test_training_loss_and_accuracy_are_those_summed_up_by_hand(run):
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
            right += sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels))
        assert row["train_loss"] == pytest.approx(loss_sum / 28, rel=1e-5)
        assert row["train_acc"] == pytest.approx(100 * right / 28)
        assert row["lr"] == 0.05 / (1 + epoch)


def test_the_optimizer_uses_the_learning_rate_of_the_epoch(run):
    training, after = training_weights(lr=9.0), []
    training.lr = [0.1, 0.0].__getitem__
    weight = training.network.conv.weight
    training.after_epoch = lambda epoch, draw: after.append(weight.detach().clone())
    start = weight.detach().clone()
    train(run, "finetune", training, splits(), 2)
    assert not torch.equal(start, after[0])
    assert torch.equal(after[0], after[1])


def test_the_loss_of_a_row_is_without_the_penalty(run):
    training = training_weights()
    training.penalty = lambda: 1000 + 0 * training.network.conv.weight.sum()
    train(run, "finetune", training, splits(), 1)
    assert run.rows("finetune")[0]["train_loss"] < 10


def test_the_penalty_is_part_of_the_gradient():
    plain, penalised = training_weights(), training_weights()
    penalised.penalty = lambda: 2 * penalised.network.conv.weight.sum()
    batch = next(splits().train.epoch(torch.Generator().manual_seed(0)))
    for training in (plain, penalised):
        train_step(training, 0, *batch)
    difference = plain.network.conv.weight - penalised.network.conv.weight
    torch.testing.assert_close(difference, 0.05 * 2 * masks()["conv.weight"].float())
    assert torch.equal(plain.network.out.weight, penalised.network.out.weight)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts):
    whole, split = training_weights(), training_weights()
    split.accumulate = parts
    for training in (whole, split):  # without batch norm, whose statistics are of a part
        training.network.norm = nn.Identity()
    images, labels = next(splits().train.epoch(torch.Generator().manual_seed(0)))
    counts = [train_step(training, 0, images, labels) for training in (whole, split)]
    torch.testing.assert_close(*counts)
    torch.testing.assert_close(split.network.conv.weight, whole.network.conv.weight)
    torch.testing.assert_close(split.network.out.weight, whole.network.out.weight)


@pytest.mark.parametrize(
    ("count", "parts", "most"),
    [(8, 1, 8), (8, 4, 2), (11, 4, 3), (10, 4, 3), (9, 4, 2), (7, 2, 4), (3, 8, 3), (0, 2, 0)],
)
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


def test_the_row_is_measured_before_the_pruning_of_its_epoch(run):
    training = mining_gems("--target_sparsity", "4", "--hc_quantized", "true", "--prune_type", "BottomK")
    shares = []
    training.after_epoch = lambda epoch, draw: (
        shares.append(100 * training._share(training.naive_mask())),
        GemMiner.after_epoch(training, epoch, draw),
    )
    train(run, "search", training, splits(), 3)
    assert [row["model_sparsity"] for row in run.rows("search")] == pytest.approx(shares)
    assert training._share(training.naive_mask()) * 100 < shares[-1] / 2


def test_a_step_leaves_gradients_as_zeros_in_place():
    training = training_scores("--regularization", "L1")
    gradient = training.network.conv.scores.grad
    batch, labels = next(splits().train.epoch(torch.Generator().manual_seed(0)))
    for step in range(2):
        train_step(training, step, batch, labels)
        assert training.network.conv.scores.grad.data_ptr() == gradient.data_ptr()
        assert not training.flat.scores.grad.any()


def test_a_training_can_end_its_stage_before_the_last_epoch(run):
    training = training_weights()
    training.after_epoch = lambda epoch, draw: setattr(training, "over", epoch == 1)
    train(run, "search", training, splits(), 5)
    assert [row["epoch"] for row in run.rows("search")] == [0, 1]
    assert run.load("search")["done"]


def test_a_stage_can_begin_at_a_later_epoch(run):
    train(run, "search", training_weights(), splits(), 4, first_epoch=2)
    assert [(row["epoch"], row["lr"]) for row in run.rows("search")] == [(2, 0.05 / 3), (3, 0.05 / 4)]


def test_every_figure_there_is_goes_to_the_log_and_none_that_is_not(run, monkeypatch):
    logged = []
    monkeypatch.setattr(run, "log", lambda *what: logged.append(what))
    training = training_weights()
    training.describe = lambda: ({"more": 3.0}, {"weights": torch.ones(2)})
    train(run, "finetune", training, splits(val=False), 1)
    ((stage, epoch, scalars, histograms),) = logged
    row = run.rows("finetune")[0]
    assert (stage, epoch, scalars["more"], list(histograms)) == ("finetune", 0, 3.0, ["weights"])
    assert (scalars["loss/train"], scalars["accuracy/test"]) == (row["train_loss"], row["test_acc"])
    assert not {"accuracy/val", "accuracy/test_before_rounding"} & set(scalars)


def test_every_epoch_says_one_plain_line_where_there_is_no_terminal(run, capsys):
    train(run, "finetune", training_weights(), splits(), 2)
    rows, lines = run.rows("finetune"), capsys.readouterr().out.splitlines()
    row = rows[1]
    assert len(lines) == 2
    assert lines[1] == (
        f"finetune 2/2  loss {row['train_loss']:.3f}  train {row['train_acc']:.1f}%  test {row['test_acc']:.1f}%  "
        f"remaining {row['model_sparsity']:.2f}%"
    )


# ---- no waiting for the device in a step ---------------------------------------------------------------------------


class CountWaits(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    WAITING = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


UNWAITING = {
    **KINDS,
    "L1": lambda: training_scores("--regularization", "L1_L2"),
    "var_red_1": lambda: training_scores("--regularization", "var_red_1", "--differentiate_clamp", "true"),
    "moving threshold": lambda: mining_gems("--hc_quantized", "true", "--bottom_k_on_forward", "true"),
}


@pytest.mark.parametrize("kind", UNWAITING)
def test_no_step_waits_for_the_device(kind):
    training, data = UNWAITING[kind](), splits()
    meter = torch.zeros(3)
    with CountWaits() as waits:
        for step, batch in enumerate(data.train.epoch(torch.Generator().manual_seed(0))):
            meter += train_step(training, step, *batch)
    assert waits.count == 0
    assert meter[2] == 28


@pytest.mark.parametrize("kind", ["weights by sgd", "scores by adam"])
def test_an_epoch_of_many_steps_waits_no_more_often_than_one_of_few(kind, tmp_path):
    counts = []
    for batch_size in (14, 4):
        with begun(tmp_path / str(batch_size)).until_stopped() as run, CountWaits() as waits:
            train(run, "search", KINDS[kind](), splits(batch_size), 1)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_a_step_that_waits_would_be_noticed():
    training = training_weights()
    training.after_step = lambda: training.network.conv.weight.sum().item()
    batch = next(splits().train.epoch(torch.Generator().manual_seed(0)))
    with CountWaits() as waits:
        train_step(training, 0, *batch)
    assert waits.count == 1


# ---- stopping and going on -----------------------------------------------------------------------------------------


def stop_in_step(training: Training, number: int) -> None:
    """Let SIGTERM arrive in the number-th step (0-based, over all epochs) of a training."""
    before_step, steps = training.before_step, itertools.count()

    def stopping(step: int) -> None:
        if next(steps) == number:
            signal.raise_signal(signal.SIGTERM)
        before_step(step)

    training.before_step = stopping


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same_bits(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return one == other


@pytest.mark.parametrize("stop", [(0, 0, 1), (6, 1, 3), (3, 1, 0), (11, 3, 0)], ids=["1st", "inner", "end", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_stage_goes_on_to_the_very_bits_of_an_undisturbed_one(kind, stop, tmp_path):
    step, *position = stop
    undisturbed, first, second = (KINDS[kind]() for _ in range(3))
    with begun(tmp_path / "whole").until_stopped() as whole:
        train(whole, "search", undisturbed, splits(), 3)

    stop_in_step(first, step)
    with begun(tmp_path / "parts").until_stopped() as run, pytest.raises(Stopped) as stopped:
        train(run, "search", first, splits(), 3)
    stored = run.load("search")
    assert [stored["epoch"], stored["step"]] == position
    assert stopped.value.exit_code == 128 + signal.SIGTERM

    with begun(tmp_path / "parts").until_stopped() as run:
        train(run, "search", second, splits(), 3)
    assert same_bits(second.state(), undisturbed.state())
    assert same_bits(without_seconds(run.rows("search")), without_seconds(whole.rows("search")))
    assert run.load("search")["done"]


def test_two_trainings_that_differ_would_be_noticed():
    one, other = training_weights(), training_weights()
    assert same_bits(one.state(), other.state())
    other.network.out.weight.data[0, 0] += 1e-7
    assert not same_bits(one.state(), other.state())


def test_an_epoch_that_is_gone_on_with_is_not_begun_again(tmp_path):
    for stop in (0, None):
        training = Recording(Toy())
        if stop is not None:
            stop_in_step(training, stop)
        with begun(tmp_path).until_stopped() as run:
            if stop is None:
                train(run, "search", training, splits(), 1)
            else:
                with pytest.raises(Stopped):
                    train(run, "search", training, splits(), 1)
    assert training.calls[:2] == ["before step 1", "forward"]
    assert "before epoch 0" not in training.calls


def test_a_stage_that_ended_early_and_was_stopped_there_stays_ended(tmp_path):
    first, second = training_weights(), training_weights()
    first.after_epoch = lambda epoch, draw: setattr(first, "over", True)
    stop_in_step(first, STEPS - 1)
    with begun(tmp_path).until_stopped() as run, pytest.raises(Stopped):
        train(run, "search", first, splits(), 3)
    with begun(tmp_path).until_stopped() as run:
        train(run, "search", second, splits(), 3)
    assert [row["epoch"] for row in run.rows("search")] == [0]
    assert same_bits(second.state(), first.state())


def test_the_seconds_of_an_interrupted_epoch_add_up(tmp_path, monkeypatch):
    clock = itertools.count(step=5)  # five seconds from one look at it to the next
    for module in ("loop", "position"):
        monkeypatch.setattr(f"trainers.training.{module}.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    first, second = training_weights(), training_weights()
    stop_in_step(first, 5)
    with begun(tmp_path).until_stopped() as run, pytest.raises(Stopped):
        train(run, "finetune", first, splits(), 3)
    with begun(tmp_path).until_stopped() as run:
        train(run, "finetune", second, splits(), 3)
    assert [row["seconds"] for row in run.rows("finetune")] == [5.0, 10.0, 5.0]


def test_a_finished_stage_returns_at_once_with_what_it_had_come_to(tmp_path, monkeypatch):
    with begun(tmp_path).until_stopped() as run:
        finished = training_weights()
        train(run, "search", finished, splits(), 2)
    again = training_weights()
    monkeypatch.setattr("trainers.training.loop.train_step", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(again, "measure", lambda *_: pytest.fail("it was measured"))
    with begun(tmp_path).until_stopped() as later:
        monkeypatch.setattr(later, "save", lambda *_: pytest.fail("it was stored again"))
        train(later, "search", again, splits(), 2)
    assert same_bits(again.state(), finished.state())
    assert later.rows("search") == run.rows("search")


def test_stages_of_one_run_are_kept_apart(run):
    one, other = training_weights(), training_weights()
    train(run, "finetune", one, splits(), 1)
    train(run, "check/mask_shuffle", other, splits(), 1)
    assert not same_bits(one.network.state_dict(), other.network.state_dict())  # another order of the images
    assert len(run.rows("finetune")) == len(run.rows("check/mask_shuffle")) == 1
    assert (run.folder / "acc_and_sparsity_mask_shuffle.csv").read_text().count("check/mask_shuffle") == 1


# ---- checkpoints that are kept -------------------------------------------------------------------------------------


def checkpoints(run: Run) -> set[str]:
    return {path.name for path in (run.folder / "checkpoints").iterdir()}


def test_checkpoints_are_kept_every_so_many_epochs(tmp_path):
    with begun(tmp_path, keeping=Keeping(copies_every=2, last=1)).until_stopped() as run:
        train(run, "check/mask_shuffle", training_weights(), splits(), 5)
    kept = {"check-mask_shuffle_epoch_001.pt", "check-mask_shuffle_epoch_003.pt"}
    assert checkpoints(run) == {"check-mask_shuffle.pt"} | kept


def test_checkpoints_are_kept_at_the_epochs_asked_for_of_the_stage_asked_for(tmp_path):
    with begun(tmp_path, keeping=Keeping(copies_at={"search": [{0, 2}]}, last=1)).until_stopped() as run:
        states = []
        training = training_weights()
        training.after_epoch = lambda epoch, draw: states.append(deepcopy(training.network.state_dict()))
        train(run, "search", training, splits(), 3)
        train(run, "finetune", training_weights(), splits(), 3)
    assert checkpoints(run) == {"search.pt", "finetune.pt", "search_epoch_000.pt", "search_epoch_002.pt"}
    kept = torch.load(run.folder / "checkpoints" / "search_epoch_000.pt", weights_only=True)
    assert (kept["epoch"], kept["step"], len(kept["rows"])) == (1, 0, 1)
    assert same_bits(kept["training"]["network"], dict(states[0]))


def test_without_being_asked_a_stage_keeps_its_last_two_checkpoints(run):
    train(run, "search", training_weights(), splits(), 3)
    assert checkpoints(run) == {"search.pt", "search.1.pt"}


# ---- evaluation ----------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Answers with the class whose number an image holds, and notes the modes it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes = []

    def forward(self, batch: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        return F.one_hot(batch.flatten().long(), 3).float()


def uneven() -> list[tuple[Tensor, Tensor]]:
    """Five images in batches of four and one, of which the first, the second and the last are told right."""
    told, true = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 0, 1, 1])
    return [(told[:4].view(4, 1), true[:4]), (told[4:].view(1, 1), true[4:])]


def test_accuracy_is_the_percentage_of_images_and_not_the_mean_over_batches():
    assert evaluate(Constant(), uneven()) == pytest.approx(60.0)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_is_in_evaluation_and_inference_mode_and_restores_the_mode(mode):
    net = Constant().train(mode)
    evaluate(net, uneven())
    assert net.modes == [(False, True)] * 2
    assert net.training is mode
    assert not torch.is_inference_mode_enabled()


def test_evaluation_leaves_batch_norm_statistics_alone():
    net = Toy()
    before = deepcopy(net.state_dict())
    evaluate(net, splits().test)
    assert same_bits(dict(net.state_dict()), dict(before))


class Narrow(Constant):
    """Has memory for so many images at once."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def forward(self, batch: Tensor) -> Tensor:
        if len(batch) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().forward(batch)


def test_a_batch_that_does_not_fit_into_memory_is_evaluated_in_parts():
    net, batches = Narrow(1), [*uneven(), *uneven()]
    assert evaluate(net, batches) == pytest.approx(60.0)
    assert len(net.modes) == len(batches) // 2 * 5  # every image once
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(Narrow(0), uneven())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_evaluation_is_in_the_precision_that_it_is_given(precision):
    net, seen = Toy(), []
    net.out.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.dtype))
    evaluate(net, splits().test, precision)
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("make", [training_weights, training_scores])
def test_a_row_is_measured_in_the_precision_of_its_training(make, monkeypatch):
    training, used = make(), []
    for module in ("scores", "weights"):
        monkeypatch.setattr(
            f"trainers.training.{module}.evaluate", lambda _net, _data, precision: used.append(precision) or 50.0
        )
    training.precision = "bf16"
    training.measure(splits(), lambda stream: torch.Generator())
    assert set(used) == {"bf16"}


def test_there_is_no_accuracy_without_batches():
    assert evaluate(Constant(), None) is None
