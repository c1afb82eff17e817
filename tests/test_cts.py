"""Concrete ticket search: its samples, its budget and its losses by hand, and whole runs."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, read_rows, summary_of
from torch import nn

from args_helper import parse_args
from models.masking import to_masked
from trainers.algorithms.cts import Concrete, ConcreteSearch
from trainers.training.loop import train_step
from utils.run.run import Run

DENSITY = 0.25


def _search(tmp_path: Path, *words: str) -> ConcreteSearch:
    """A search over a linear layer of 2 × 4 weights, whose teacher is another one."""
    config = parse_args(["--algo", "cts", "--target_sparsity", str(100 * DENSITY), *words])
    student, teacher = (nn.Sequential(nn.Linear(4, 2, bias=False)) for _ in range(2))
    student[0].weight.data = torch.arange(8.0).view(2, 4) / 4 - 1
    teacher[0].weight.data = -student[0].weight.data.flip(0)
    return ConcreteSearch(to_masked(student), teacher, config, Run(tmp_path / "run", tmp_path / "logs", 1))


def test_logits_begin_at_the_odds_of_the_density_and_the_learning_rate_drops_after_88_percent(tmp_path):
    search = _search(tmp_path, "--epochs", "50")
    assert [search.lr(epoch) for epoch in (0, 43, 44, 49)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert _search(tmp_path, "--epochs", "1").lr(0) == pytest.approx(0.1)
    assert _search(tmp_path, "--epochs", "50", "--milestones", "").lr(49) == pytest.approx(0.1)
    assert torch.sigmoid(search.flat.scores).tolist() == pytest.approx([DENSITY] * 8)


def test_a_sample_is_the_relaxed_bernoulli_variable():
    noise = torch.tensor([0.3, -1.2, 2.0])
    logits = torch.tensor([0.5, 1.0, -3.0], requires_grad=True)
    factor = Concrete({noise.shape: noise})(logits, torch.ones(3, dtype=torch.bool))
    expected = [1 / (1 + math.exp(-(n + 2 / 3 * a) / (2 / 3))) for n, a in zip(noise.tolist(), logits.tolist())]
    assert factor.tolist() == pytest.approx(expected)
    factor.sum().backward()
    assert logits.grad.tolist() == pytest.approx([f * (1 - f) for f in expected])


def test_noise_is_logistic_and_another_in_every_step_and_the_same_when_a_step_is_repeated(tmp_path):
    search, draws = _search(tmp_path), []
    for epoch, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        search.before_epoch(epoch)
        search.before_step(step)
        draws.append(search._noise.clone())
    assert torch.equal(draws[0], draws[3])
    assert not any(torch.equal(draws[0], other) for other in draws[1:3])
    search._noise.resize_(100_000)
    search.before_step(5)
    assert abs(float(search._noise.mean())) < 0.02
    assert float(search._noise.std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("how", ["kl", "loss", "ce"])
def test_the_loss_against_the_dense_network_by_hand(how, smoothing, tmp_path):
    search = _search(tmp_path, "--cts_loss", how, "--label_smoothing", str(smoothing))
    images, labels = torch.tensor([[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 1.0, 3.0]]), torch.tensor([0, 1])
    logits = torch.tensor([[0.2, -0.4], [1.0, 0.5]])
    dense = images @ search._teacher[0].weight.T
    p, q = logits.softmax(1), dense.softmax(1)
    entropy = partial(F.cross_entropy, label_smoothing=smoothing)
    expected = {
        "kl": 100 * (p * (p / q).log()).sum(1).mean(), "ce": 100 * entropy(logits, labels),
        "loss": 1e4 * (entropy(logits, labels) / entropy(dense, labels) - 1).abs(),
    }[how]  # fmt: skip
    asked = []
    search._teacher.register_forward_hook(lambda _net, given, _logits: asked.append(len(given[0])))
    assert float(search.loss(logits, labels, images)) == pytest.approx(float(expected), rel=1e-5)
    assert asked == ([2] if search.teacher_share else [])  # and is paid for
    assert search.teacher_share == (how != "ce")


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_dense_network_is_as_precise_as_the_masked_one(precision, kind, tmp_path):
    search, kinds = _search(tmp_path, "--precision", precision), []
    for network in (search.network, search._teacher):
        network[0].register_forward_hook(lambda _module, _inputs, output: kinds.append(output.dtype))
    train_step(search, 0, torch.randn(6, 4), torch.arange(6) % 2)
    assert kinds == [kind, kind]


def test_the_dense_network_is_compiled_for_the_batches_that_the_masked_one_is_compiled_for(tmp_path):
    search, compiled = _search(tmp_path), []
    search.full_batch = 4
    for network in (search.network, search._teacher):
        network._compiled_call_impl = lambda images, net=network: (compiled.append(len(images)), net.forward(images))[1]
    for count in (4, 3):
        train_step(search, 0, torch.randn(count, 4), torch.arange(count) % 2)
    assert compiled == [4, 4]


def test_the_dense_network_is_compiled_where_the_masked_one_is(monkeypatch, done, places):
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: called.append((self, options)))
    for wanted, count in (("on", 2), ("off", 0)):
        done(*CTS, *places, "--compile", wanted, "--name", wanted, "--epochs", 1, "--skip_fine_tune")
        assert len({id(net) for net, _ in called}) == count
        assert all(options == {"dynamic": False, "mode": None} for _, options in called)
        called.clear()


def test_the_multiplier_follows_the_ratio_of_gradients_while_the_budget_is_exceeded(tmp_path):
    search, budget, task, multiplier = _search(tmp_path), 1.1 * DENSITY * 8, torch.arange(1.0, 9.0), None
    for level in (0.3, 0.4, 0.1):  # chances: above the budget of 0.275 twice, then under it
        search.flat.scores.data.fill_(math.log(level / (1 - level)))
        search.flat.scores.grad.copy_(task)
        search.update()
        slope = 100 / budget * level * (1 - level)
        ratio = float(task.norm()) / (slope * math.sqrt(8)) if 8 * level > budget else 0.0
        multiplier = ratio if multiplier is None else 0.99 * multiplier + 0.01 * ratio
        assert search.flat.scores.grad.tolist() == pytest.approx((task + multiplier * slope).tolist(), rel=1e-5)


def test_a_budget_that_is_exceeded_pulls_the_chances_down_to_it(tmp_path):
    search = _search(tmp_path, "--cts_loss", "ce")
    search.flat.scores.data.fill_(2.0)
    images, labels = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    for step in range(600):
        train_step(search, step, images, labels)
    assert float(torch.sigmoid(search.flat.scores.detach()).mean()) == pytest.approx(1.1 * DENSITY, abs=0.06)


# ---- whole runs ----------------------------------------------------------------------------------------------------

CTS = [*SMALL, "--algo", "cts", "--epochs", "2", "--fine_tune_epochs", "3", "--skip_sanity_checks"]


def test_options_other_than_its_authors_are_named_in_the_run(done, places):
    # SMALL states lr 0.1 and wd 0, which are theirs too.
    words = [*CTS, *places, "--epochs", 1, "--skip_fine_tune", "--regularization"]
    others = done(*words, "L2", "--optimizer", "sgd", "--lr", 0.05, "--name", "others").err
    told = "cts searches with optimizer sgd (adam), lr 0.05 (0.1), regularization L2 (none): as given"
    assert others.count(told) == 1
    assert "cts searches" not in done(*words, "none", "--name", "theirs").err


def test_a_rewound_ticket_is_trained_from_the_epoch_it_was_frozen_at(ran):
    folder = ran(*CTS, "--rewind_epoch", 2, "--bias")
    rows = [(row["phase"], row["epoch"]) for row in read_rows(folder / "acc_and_sparsity.csv")]
    assert rows == [("search/dense", "0"), ("search/dense", "1"), ("search", "0"), ("search", "1"), ("finetune", "2")]
    summary = summary_of(folder)
    assert summary["weights_remaining"] == int(0.2 * summary["weights_total"])


def test_a_stopped_search_draws_the_same_noise_when_it_goes_on(same_after_a_stop):
    assert same_after_a_stop(9, *CTS)  # of 6 looks an epoch: in the second
