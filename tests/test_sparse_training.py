"""Sparse training: which weights `rigl`, `set`, `gmp`, `acdc` drop and grow, when, and that a stopped run goes on."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import SMALL, read_rows, same_bits, summary_of
from safetensors.torch import load_file
from torch import Tensor
from toys import Toy, bools, images

from args_helper import Config, parse_args
from data.split import batch_cuts
from models.masking import prunable_parameters
from trainers.algorithms.acdc import Alternating, is_sparse
from trainers.algorithms.gradual_magnitude import GradualPruning, density_at, smallest_of_layers_pruned
from trainers.algorithms.rigl import Evolving, Rigged, replaced
from trainers.training.loop import train_step
from trainers.training.moving_masks import MovingMasks, update_steps
from utils.errors import UserError
from utils.masks import Masks, all_kept, per_layer, remaining
from utils.rng import derive_rng

ALGORITHMS = ("rigl", "set", "gmp", "acdc")
SPARSE = "--device cpu --update_every 2 --epochs 6 --acdc_phase 0.2 --momentum 0.9 --skip_sanity_checks".split()
STEPS = 3
"""Steps of an epoch of the toy."""


def _config(*words: str) -> Config:
    common = "--algo rigl --lr 0.1 --epochs 4 --target_sparsity 25 --wd 0.01 --update_every 2"
    return parse_args([*common.split(), *words])


def _half(net: Toy) -> Masks:
    generator = derive_rng(1, "half")
    return {name: torch.rand(part.shape, generator=generator) < 0.5 for name, part in prunable_parameters(net).items()}


def _training(kind: type[Any], config: Config, net: Toy, masks: Masks) -> Any:
    return kind(net, masks, config, STEPS, lambda step: derive_rng(step, "masks"))


def _step(training: MovingMasks) -> None:
    batch = images(8, training.step)
    train_step(training, 0, batch.images / 255.0, batch.labels)


# ---- what is dropped and grown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "after"), [
    (0.0, "11110000"),
    (0.49, "11010100"),  # ⌊0.49 · 4⌋ = 1: magnitude 1 goes, growth 7 is the highest of all others
    (0.5, "01010110"),  # magnitudes 1 and 3 go, growths 7 and 5 come
    (1.0, "00010111"),  # a weight that was just dropped may come back: growth 6
])  # fmt: skip
def test_the_smallest_weights_are_replaced_by_those_of_highest_growth(share, after):
    magnitudes = torch.tensor([3.0, 5.0, 1.0, 4.0, 0.0, 0.0, 0.0, 0.0])
    growth = torch.tensor([1.0, 0.0, 2.0, 6.0, 3.0, 7.0, 5.0, 4.0])
    assert replaced(bools("11110000"), magnitudes, growth, share, derive_rng(0)).tolist() == bools(after).tolist()


def test_rigl_drops_by_magnitude_and_grows_by_gradient_in_place_of_a_step():
    net = Toy()
    training = _training(Rigged, _config("--drop_fraction", "0.5"), net, _half(net))
    for _ in range(2):
        _step(training)  # steps 0 and 1: none is a multiple of 2 above 0
    before, masks = {name: part.detach().clone() for name, part in training.network.named_parameters()}, training.masks
    gradients: dict[str, Tensor] = {}
    change = training.change_masks

    def spied() -> None:
        gradients.update({name: part.grad.clone() for name, part in prunable_parameters(net).items()})
        change()

    training.change_masks = spied
    _step(training)
    share = 0.25 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 10)).item())  # the last update step is 8, the next 10
    for name, mask in masks.items():
        count, now = int(share * mask.sum()), training.masks[name]
        dropped, grown = mask & ~now, now & ~mask
        assert int(now.sum()) == int(mask.sum()) and 0 < int(grown.sum()) <= count
        assert before[name].abs()[dropped].max() <= before[name].abs()[mask & now].max()
        assert gradients[name].abs()[grown].min() >= gradients[name].abs()[~mask & ~now].max()
        after = dict(net.named_parameters())[name]
        assert after[~now].eq(0).all() and after[grown].eq(0).all()
        assert torch.equal(after[mask & now], before[name][mask & now])  # no optimizer step was taken
        assert training.optimizer.state[after]["momentum_buffer"][~mask | ~now].eq(0).all()


def test_set_grows_at_random_and_the_same_in_every_process():
    def masks(seed: int) -> Masks:
        net = Toy()
        training = _training(Evolving, _config(), net, _half(net))
        training.random_at = lambda step: derive_rng(seed, str(step))
        for _ in range(3):
            _step(training)
        return training.masks

    one = masks(1)
    assert same_bits(one, masks(1)) and not same_bits(one, masks(2))


def test_pruned_weights_stay_0_and_gather_no_momentum():
    net = Toy()
    training = _training(Rigged, _config("--update_every", "100"), net, _half(net))
    for _ in range(5):
        _step(training)
    for name, part in prunable_parameters(net).items():
        pruned = ~training.masks[name]
        assert part[pruned].eq(0).all() and training.optimizer.state[part]["momentum_buffer"][pruned].eq(0).all()


@pytest.mark.parametrize(("kind", "words"), [(GradualPruning, "--algo gmp"), (Alternating, "--acdc_phase 0.25")])
def test_a_layers_density_is_the_mean_over_the_forward_passes_of_the_epoch(kind, words):
    net = Toy()
    training, means = _training(kind, _config(*words.split()), net, all_kept(prunable_parameters(net))), []
    for epoch in range(4):
        training.before_epoch(epoch)
        shares = []
        for _ in range(STEPS):
            shares.append({name: kept / size for name, (kept, size) in per_layer(training.masks).items()})
            _step(training)
        means.append({name: sum(one[name] for one in shares) / STEPS for name in shares[0]})
        assert training.layer_densities() == pytest.approx(means[-1])
    assert means[0]["conv"] == 1 > means[-1]["conv"]


@pytest.mark.parametrize(
    ("algo", "told"), [("set", "set changes them once, at step 18, where it replaces next to no weight; lower"),
                       ("gmp", "update_every 100: the first 18 steps (update_until) have room for 1 pruning, too")],
)  # fmt: skip
def test_a_training_that_is_too_short_for_its_changes_of_the_masks_is_warned_of(algo, told, done, places):
    assert told in done(*SMALL, *places, "--algo", algo, "--skip_sanity_checks", "--fine_tune_epochs", 1).err


def test_a_training_without_momentum_is_restored_after_its_masks_have_changed():
    config, nets = _config("--momentum", "0"), (Toy(), Toy())
    stopped, resumed = (_training(Rigged, config, net, _half(net)) for net in nets)
    for _ in range(3):
        _step(stopped)
    resumed.load_state(stopped.state())
    assert same_bits(resumed.masks, stopped.masks)


@pytest.mark.parametrize("kind", [Evolving, GradualPruning])
def test_a_start_after_the_last_change_of_the_masks_is_refused(kind):
    with pytest.raises(UserError, match="start_epoch 3 lies after the last change of the masks, at step 8"):
        _training(kind, _config("--start_epoch", "3"), net := Toy(), _half(net))


@pytest.mark.parametrize(("words", "steps"), [
    ("--update_every 2", [2, 4, 6, 8]),  # up to 0.75 · 4 epochs · 3 steps = 9
    ("--update_every 3 --update_until 1", [3, 6, 9]),  # the last of the 12 steps is 11
    ("--update_every 100 --update_until 1", [11]),
    ("--update_every 100", [9]),  # a training that is too short changes its masks once
    ("--update_every 4 --update_until 0.01", [1]),
])  # fmt: skip
def test_the_masks_change_at_multiples_up_to_a_fraction_of_the_training(words, steps):
    assert list(update_steps(_config(*words.split()), STEPS)) == steps


# ---- gradual magnitude pruning -------------------------------------------------------------------------------------


def test_a_training_of_one_step_leaves_no_masks_to_change():
    net = Toy()
    with pytest.raises(UserError, match="algo gmp changes masks between steps, and this training has only one"):
        GradualPruning(net, _half(net), _config("--algo", "gmp", "--epochs", "1"), 1, derive_rng)


@pytest.mark.parametrize("kind", ["ExactBottomK", "LocalBottomK"])
def test_gradual_pruning_keeps_the_largest_weights_at_exact_counts(kind):
    config, net = _config("--algo", "gmp", "--prune_type", kind), Toy()
    training = _training(GradualPruning, config, net, all_kept(prunable_parameters(net)))
    counts, masks = [], [training.masks]
    for _ in range(12):
        _step(training)
        counts.append(remaining(training.masks))
        masks.append(training.masks)
    due = {step: int(228 * (0.25 + 0.75 * (1 - step / 8) ** 3)) for step in (2, 4, 6, 8)}
    assert counts == [228, 228, *[due[2]] * 2, *[due[4]] * 2, *[due[6]] * 2, *[57] * 4]
    assert all(not (later[name] & ~earlier[name]).any() for earlier, later in pairwise(masks) for name in later)
    if kind == "LocalBottomK":
        assert per_layer(training.masks) == {"conv": (9, 36), "out": (48, 192)}


def test_the_smallest_weights_of_each_layer_go():
    magnitudes = {"a.weight": torch.tensor([4.0, 1.0, 3.0, 2.0]), "b.weight": torch.tensor([9.0, 8.0, 7.0, 6.0])}
    masks = {"a.weight": bools("1111"), "b.weight": bools("0111")}
    pruned = smallest_of_layers_pruned(magnitudes, masks, 0.5, derive_rng(0))
    assert {name: mask.tolist() for name, mask in pruned.items()} == {
        "a.weight": bools("1010").tolist(), "b.weight": bools("0110").tolist()
    }  # fmt: skip


def test_layers_that_are_pruned_in_many_small_steps_end_at_the_exact_count():
    sizes = {"a.weight": 3, "b.weight": 70, "b.bias": 7, "c.weight": 515, "d.weight": 1001}
    magnitudes = {name: torch.rand(size, generator=derive_rng(size, "magnitudes")) for name, size in sizes.items()}
    masks = all_kept(magnitudes)
    for step in range(201):
        density = density_at(step / 200, 0.05)
        masks = smallest_of_layers_pruned(magnitudes, masks, density, derive_rng(step))
        assert remaining(masks) == int(density * 1589)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == pytest.approx(
        {name: 0.05 * size for name, size in sizes.items()}, abs=1.001
    )


# ---- AC/DC ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "share", "phases"), [
    (10, 0.1, "dd" + "sds" + "dd" + "sss"),
    (20, 0.1, "dddd" + "ssddss" + "dddd" + "ssssss"),
    (100, 0.05, "d" * 10 + ("s" * 5 + "d" * 5) * 6 + "s" * 5 + "d" * 10 + "s" * 15),
    (4, 0.05, "ddss"),
    (1, 0.05, "s"),
])  # fmt: skip
def test_phases_take_turns_after_a_dense_warm_up_and_end_sparse(epochs, share, phases):
    assert "".join("s" if is_sparse(epoch, epochs, share) else "d" for epoch in range(epochs)) == phases


def test_acdc_prunes_the_largest_weights_of_the_network_and_regrows_all_from_0():
    net = Toy()
    config = _config("--algo", "acdc", "--epochs", "10", "--acdc_phase", "0.1")
    training = _training(Alternating, config, net, all_kept(prunable_parameters(net)))
    for epoch, density in zip(range(10), (228, 228, 57, 228, 57, 228, 228, 57, 57, 57)):
        weights = torch.cat([part.detach().abs().flatten() for part in prunable_parameters(net).values()])
        before = training.masks
        training.before_epoch(epoch)
        masks = torch.cat([mask.flatten() for mask in training.masks.values()])
        assert remaining(training.masks) == density
        if density == 57 and remaining(before) == 228:
            assert weights[masks].min() >= weights[~masks].max()
        assert bool(training.optimizer.state) == (epoch > 0 and (density, remaining(before)) != (228, 57))
        assert all(part[~training.masks[name]].eq(0).all() for name, part in prunable_parameters(net).items())
        for _ in range(STEPS):
            _step(training)


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_ends_at_the_target_with_its_search_as_its_training(algo, ran):
    folder = ran(*SPARSE, "--algo", algo)
    summary, rows = summary_of(folder), read_rows(folder / "acc_and_sparsity.csv")
    assert [row["phase"] for row in rows] == ["search"] * 6
    assert summary["weights_remaining"] == 3380 == int(0.2 * summary["weights_total"])
    assert summary["test_acc_after_finetune"] == float(rows[-1]["test_acc"])
    assert float(rows[-1]["model_sparsity"]) == pytest.approx(20.0)
    assert summary["cost"]["search"]["epochs"] == 6 and summary["cost"]["finetune"]["epochs"] == 0
    cost = summary["cost"]["search"]  # a third is the forward pass's; rigl changes its masks at every second step
    passes = (cost["training_flops_dense"] - cost["training_flops_masked"]) / 3 / cost["images"]
    cuts = batch_cuts(1294, 256)
    sizes = [cuts[step % len(cuts)] for step in range(2, int(0.75 * cost["steps"]) + 1, 2)] if algo == "rigl" else []
    assert cost["scoring_flops"] == pytest.approx(sum(cut.stop - cut.start for cut in sizes) * passes)
    ticket = load_file(folder / "ticket.safetensors")
    assert not any(name.startswith("state/") for name in ticket)  # the weights are those that were drawn


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_to_the_same_bits(algo, same_after_a_stop):
    assert same_after_a_stop(21, *SMALL, *SPARSE, "--algo", algo)  # of 6 looks an epoch: in the fourth
