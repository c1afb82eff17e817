"""`lmbda: auto`: the strength that it finds, the threshold that holds the target, and BatchNorm's own statistics."""

import json
import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from conftest import SMALL, read_rows, same_bits, summary_of, timeless
from small_sets import put_tree
from torch import nn
from toys import Toy, complaint, splits

from args_helper import parse_args
from data.load import load_data
from models.build import build_model
from models.masking import plain_state, to_masked
from trainers.algorithms.auto_lambda import AutoLambda
from trainers.algorithms.gem_miner import GemMiner
from trainers.checks.connectivity import effective_masks
from trainers.tickets.file import TICKET, read_ticket
from trainers.tickets.ticket import Ticket
from trainers.training.batchnorm import with_own_statistics
from trainers.training.position import restore
from utils.rng import derive_rng

AUTO = ["--lmbda", "auto", "--epochs", "8", "--iter_period", "1", "--wd", "0", "--lr", "0.1"]
STEPS = 50


def _search(*words: str, net: nn.Module | None = None, steps: int = STEPS) -> GemMiner:
    config = parse_args([*AUTO, *words])
    return GemMiner(to_masked(net or Toy()), config, AutoLambda(config, steps))


# ---- the strength --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "expected"), [
    ("", math.log(2) * (1 - 0.9) / (2 * 4 * STEPS * 0.1)),  # half of 8 epochs
    ("--epochs 20", math.log(2) * (1 - 0.9) / (2 * 200 * 0.1)),  # a tenth would be 100 steps
    ("--epochs 80", math.log(2) * (1 - 0.9) / (2 * 8 * STEPS * 0.1)),  # a tenth
    ("--momentum 0.5", math.log(2) * (1 - 0.5) / (2 * 4 * STEPS * 0.1)),
    ("--optimizer adam", math.log(2) / (2 * 4 * STEPS * 0.1)),
    ("--start_epoch 4", math.log(2) * 0.1 / (2 * 2 * STEPS * 0.1)),  # of the 4 epochs that are left
    ("--epochs 2", math.log(2) * 0.1 / (2 * 1 * STEPS * 0.1)),  # never less than an epoch
    ("--momentum 0.99", (1 - 0.99**0.5) ** 2 / (2 * 0.1)),  # more would carry scores past 0
    ("--lr_policy multistep_lr --milestones 1", math.log(2) * 0.1 / (2 * STEPS * (0.1 + 3 * 0.01))),
])  # fmt: skip
def test_lambda_follows_from_the_learning_rates_before_the_arrival(words, expected):
    assert AutoLambda(parse_args([*AUTO, *words.split()]), STEPS).first == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_score_that_no_gradient_holds_halves_before_the_arrival(optimizer):
    search = _search("--optimizer", optimizer)
    search.flat.scores.data.fill_(1.0)
    for _ in range(4 * STEPS):
        search.optimizer.step()
    # With momentum the decay of the first steps is felt about ten steps later.
    assert search.flat.scores.detach().unique().item() == pytest.approx(0.5, rel=0.1 if optimizer == "sgd" else 0.01)


def test_the_expected_density_falls_from_a_half_to_the_target_before_the_arrival():
    auto = AutoLambda(parse_args([*AUTO, "--target_sparsity", "5", "--start_epoch", "4", "--epochs", "8"]), STEPS)
    assert [auto.expected_density(epoch) for epoch in (4, 5, 6, 7)] == pytest.approx([1 - 2**-0.5, 0.05, 0.05, 0.05])


@pytest.mark.parametrize(("density", "factor"), [(0.2, 4**0.15), (0.05, 1.0), (1.0, 10**0.15)])
def test_lambda_grows_where_more_is_on_than_expected_and_falls_again_to_where_it_began(density, factor):
    auto = AutoLambda(parse_args([*AUTO, "--target_sparsity", "5"]), STEPS)
    grown = auto.steered(auto.first, 6, density)
    assert grown == pytest.approx(auto.first * factor)
    fallen = auto.steered(grown, 6, 0.05 / (density / 0.05))  # as much less than expected as it was more
    assert fallen == pytest.approx(grown * max(0.1, 0.05 / density) ** 0.15)
    assert auto.steered(fallen, 6, 0.0) == auto.first


@pytest.mark.parametrize(("words", "critical"), [("", (1 - 0.9**0.5) ** 2 / 0.2), ("--optimizer adam", 1 / 0.2)])
def test_lambda_is_not_raised_to_where_momentum_carries_scores_past_0(words, critical):
    auto = AutoLambda(parse_args([*AUTO, "--target_sparsity", "5", *words.split()]), STEPS)
    lmbda = auto.first
    for epoch in range(2, 40):
        lmbda = auto.steered(lmbda, epoch, 1.0)
    assert lmbda == pytest.approx(critical)


def test_lambda_is_part_of_the_checkpoint_and_earlier_checkpoints_begin_with_the_first():
    search = _search()
    search.set_lambda(7 * search.lmbda)
    stored = search.state()
    resumed, older = _search(), _search()
    restore(resumed, stored, "here")
    assert resumed.lmbda == search.lmbda and resumed.optimizer.param_groups[0]["weight_decay"] == 2 * search.lmbda
    del stored["lmbda"]
    restore(older, stored, "here")
    assert older.lmbda == older._auto.first and older.optimizer.param_groups[0]["weight_decay"] == 2 * older.lmbda
    del stored["tied"]  # every version stores it
    assert "tied" in complaint(restore, _search(), stored, "here")


@pytest.mark.parametrize("target", [5.0, 1.44, 0.59, 0.3])
@pytest.mark.parametrize("epochs", [40, 150, 300])
def test_under_constant_gradients_the_search_comes_to_its_target_and_stays(epochs, target):
    steps, net = 20, nn.Sequential(nn.Linear(200, 100, bias=False), nn.Flatten())
    words = f"--epochs {epochs} --lr_policy cosine_lr --target_sparsity {target} --prune_type ExactBottomK"
    search = _search(*words.split(), net=net, steps=steps)
    draw = torch.Generator().manual_seed(0)
    search.flat.scores.data.uniform_(generator=draw)
    # As many as a power law has pull by more than λ; by 352/20 more than in searches on CIFAR-10, with their steps.
    rank = torch.randperm(search.weights, generator=draw).add(1) / search.weights
    pull = torch.where(rank < 0.5, (rank / 0.0145) ** (-1 / 0.87), -1.0) * 1e-4 * 352 / steps
    on = []
    for epoch in range(epochs):
        for group in search.optimizer.param_groups:
            group["lr"] = search.lr(epoch)
        for step in range(steps):
            search.before_step(step)
            search.flat.scores.grad.copy_(-pull)
            search.update()
        search.after_steps()
        on.append(100 * int(search.naive_mask().sum()) / search.weights)
        search.after_epoch(epoch, lambda _: draw)
    assert all(target - 0.01 <= share < 1.3 * target for share in on[epochs // 2 :]), on
    assert on[-1] == pytest.approx(target, abs=0.01)
    assert search.lmbda == search.optimizer.param_groups[0]["weight_decay"] / 2


# ---- the threshold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scores", "pruned", "on", "threshold"), [
    ([0.9, 0.8, 0.7, 0.2], 0, 3, 0.5),  # more than the target: the usual threshold
    ([0.9, 0.3, 0.2, 0.1], 0, 2, 0.2),  # fewer would be on: the second highest comes with it
    ([0.9, 0.3, 0.2, 0.1], 1, 2, 0.1),  # the highest is pruned: the next two
    ([0.9, 0.3, 0.0, 0.0], 2, 2, -1.0),  # no more than the target are unpruned: all are on, even those at 0
])  # fmt: skip
def test_the_threshold_gives_way_where_fewer_than_the_target_would_be_on(scores, pruned, on, threshold):
    search = _search("--target_sparsity", "50", net=nn.Sequential(nn.Linear(4, 1, bias=False), nn.Flatten()))
    search.flat.scores.data.copy_(torch.tensor(scores))
    search.flat.flags[:pruned] = False
    search._flags_changed()
    assert int(search.naive_mask().sum()) == on
    assert float(search.rule.threshold) == pytest.approx(threshold)


@pytest.mark.parametrize("words", [
    "--target_sparsity 20", "--target_sparsity 1", "--optimizer adam --lr 0.01", "--arch FC --hidden_size 40",
    "--arch Conv2 --width 0.1 --bias", "--prune_type BottomK", "--epochs 3", "--iter_period 3 --lr_policy cosine_lr",
])  # fmt: skip
def test_a_search_ends_at_its_target_with_every_weight_of_it_switched_on(words, ran):
    own = ["--lmbda", "auto", "--epochs", "6", "--device", "cpu", "--prune_type", "ExactBottomK", *words.split()]
    folder = ran(*own, "--skip_fine_tune")
    summary = summary_of(folder)
    target = int(summary["target_sparsity"] / 100 * summary["weights_total"])
    assert summary["gem_weights_remaining"] == summary["weights_remaining"]
    assert summary["weights_remaining"] == target or ("BottomK" in words and summary["weights_remaining"] <= target)
    rows = read_rows(folder / "acc_and_sparsity.csv")
    least = 100 * (target - 1) / summary["weights_total"]
    assert all(float(row["model_sparsity"]) >= least for row in rows) or "BottomK" in words
    assert all(0 <= float(row["threshold"] or 0) <= 0.5 for row in rows)
    assert summary["lmbda"] > 0


def test_a_search_stopped_in_an_epoch_goes_on_to_the_same_bits(same_after_a_stop):
    words = [*SMALL, "--lmbda", "auto", "--device", "cpu", "--skip_sanity_checks"]
    assert same_after_a_stop(15, *words)  # of 6 looks an epoch: in the third


@pytest.mark.parametrize(("words", "told"), [
    ("--regularization L1", "lmbda auto is that of the penalty L2, not of L1"),
    ("--hc_quantized false", "lmbda auto needs rounded scores: set hc_quantized"),
    ("--bottom_k_on_forward", "lmbda auto and bottom_k_on_forward both move the threshold: choose one"),
    ("--invert_sanity_check", "lmbda auto keeps the highest scores switched on"),
    ("--override_prune_rate --prune_rate 0.2", "lmbda auto holds the target, which override_prune_rate leaves aside"),
    ("--prune_type FixThresholding", "lmbda auto holds the target, of which FixThresholding knows nothing"),
    ("--lmbda atuo", "'atuo' is neither auto nor a number"), ("--lmbda -1", "-1 is too small"),
])  # fmt: skip
def test_what_auto_cannot_be_used_with_and_what_is_no_lambda_is_told(words, told):
    assert told in complaint(parse_args, [*AUTO, *words.split()])


@pytest.mark.parametrize(("before", "after"), [("auto", "0.001"), ("0.001", "auto")])
def test_a_search_that_has_begun_does_not_change_between_auto_and_a_number(before, after, tmp_path):
    (tmp_path / "config.yml").write_text(parse_args([*SMALL, "--lmbda", before]).to_yaml())
    resumed = ["--resume", str(tmp_path), "--resume_anyway"]
    assert "lmbda" in complaint(parse_args, [*resumed, "--lmbda", after])
    assert parse_args([*resumed, "--lr", "0.3"]).lr == 0.3


# ---- BatchNorm's statistics ----------------------------------------------------------------------------------------


def test_the_statistics_of_a_ticket_are_those_of_its_own_masks():
    net, data = Toy(), splits(32)
    net.other_name = net.norm
    gem = {name: torch.rand(value.shape, generator=derive_rng(3)) < 0.5 for name, value in net.named_parameters() if
           name in ("conv.weight", "out.weight")}  # fmt: skip
    ticket = Ticket(plain_state(net), {name: torch.ones_like(mask) for name, mask in gem.items()}, gem)
    renewed = with_own_statistics(ticket, net, data.train.epoch(derive_rng(1)))
    with torch.no_grad():
        convolved = deepcopy(net).conv
        convolved.weight.mul_(gem["conv.weight"])
        maps = torch.cat([convolved(batch) for batch, _ in data.train.epoch(derive_rng(1))])
    for name in ("norm.running_mean", "other_name.running_mean"):
        assert renewed.state[name].tolist() == pytest.approx(maps.mean((0, 2, 3)).tolist(), abs=1e-5)
    halves = with_own_statistics(ticket, net, data.train.epoch(derive_rng(1)), accumulate=2)
    assert torch.allclose(halves.state["norm.running_mean"], renewed.state["norm.running_mean"], atol=1e-6)
    assert not same_bits(halves.state["norm.running_var"], renewed.state["norm.running_var"])  # within the halves
    assert same_bits(renewed.state["conv.weight"], ticket.state["conv.weight"])
    assert same_bits(net.state_dict(), plain_state(net)) and renewed.masks is ticket.masks


def test_any_algorithm_can_have_them_and_published_configs_do_not(ran):
    words = ["--algo", "snip", "--device", "cpu", "--skip_fine_tune"]
    folders = ran(*words, name="old"), ran(*words, "--renew_batchnorm", name="new")
    old, new = (timeless(folder)["ticket"]["others/float32"] for folder in folders)
    assert old.shape == new.shape and not torch.equal(old, new)
    assert parse_args([]).renew_batchnorm is False


def test_they_are_those_of_augmented_images_as_the_search_sees_them(ran, tmp_path):
    put_tree(tmp_path, each=40, height=16, width=16)  # cropped and flipped at this size
    words = ["--dataset", "ImageFolder", "--data", str(tmp_path), "--batch_size", "16", "--device", "cpu"]
    words += ["--algo", "random", "--renew_batchnorm", "--skip_fine_tune"]
    found, _ = read_ticket(ran(*words) / TICKET)
    config = parse_args([*SMALL, *words])
    data = load_data(config)
    rng = derive_rng(config.seed, "search", "statistics", 0, 0)
    expected = with_own_statistics(found, build_model(config, data.spec), data.train.epoch(rng))
    assert same_bits(found.state, expected.state)


# ---- weights that compute nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("remaining", "kept"), [
    (3, [[1, 1, 0, 0], [1, 0]]),  # the second output weight has no input, and then the input weight .6 no output
    (2, [[1, 0, 0, 0], [0, 1]]),  # none of the prunings leaves a path: the highest scores
])  # fmt: skip
def test_a_pruning_leaves_no_weight_that_is_cut_off_while_another_is_on_a_path(remaining, kept):
    plain = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    config = parse_args([*AUTO, "--target_sparsity", str(100 * remaining / 6), "--prune_type", "ExactBottomK"])
    effective = partial(effective_masks, deepcopy(plain), shape=(2,))
    search = GemMiner(to_masked(plain), config, AutoLambda(config, STEPS), effective)
    order = [0.9, 0.5, 0.1, 0.6, 0.8, 0.7] if remaining == 3 else [0.9, 0.3, 0.6, 0.4, 0.7, 0.8]
    search.flat.scores.data = torch.tensor(order)
    search._prune(last=True, generator=torch.Generator())
    assert [mask.flatten().tolist() for mask in search.flat.split(search.flat.flags).values()] == kept


# ---- any network ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["--lr 0.1", "--optimizer adam --lr 0.01"])
@pytest.mark.parametrize("density", ["5", "0.3"])
@pytest.mark.parametrize("arch", ["FC", "Conv4 --width 0.5", "resnet32 --width 0.5", "vgg16 --width 0.25"])
def test_the_gem_has_the_density_that_is_asked_for(done, places, trial, tmp_path, arch, density, optimizer):
    put_tree(tmp_path / "in", each=64, height=32, width=32)
    words = f"--arch {arch} {optimizer} --target_sparsity {density} --dataset ImageFolder --data {tmp_path / 'in'}"
    own = "--lmbda auto --epochs 8 --iter_period 1 --wd 0 --lr_policy cosine_lr --batch_size 16 --skip_fine_tune"
    own += " --init signed_constant --device cpu --threads 1"
    done(*words.split(), *own.split(), *places)
    found = summary_of(trial())
    assert 100 * found["gem_weights_remaining"] / found["weights_total"] == pytest.approx(float(density), rel=0.05)


# ---- against a sweep -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_auto_is_at_least_as_accurate_as_the_best_of_a_sweep(ran):
    def mean(lmbda: str) -> tuple[float, float]:
        own = "--width 0.5 --epochs 20 --iter_period 2 --batch_size 64 --target_sparsity 3 --num_trial 3".split()
        own += "--lr_policy cosine_lr --fine_tune_epochs 10 --unflag_before_finetune --skip_sanity_checks".split()
        folder = ran(*own, "--device", "cpu", "--lmbda", lmbda, name=lmbda)
        figures = json.loads((folder.parent / "trials.json").read_text())["figures"]
        return figures["test_acc_before_finetune"]["mean"], figures["test_acc_after_finetune"]["mean"]

    swept = [mean(lmbda) for lmbda in ("5e-4", "1e-3", "2e-3", "4e-3")]
    before, after = mean("auto")
    assert before >= max(one for one, _ in swept) - 1.0
    assert after >= max(one for _, one in swept) - 1.0  # within the spread of a trial
