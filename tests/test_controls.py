"""Control networks: what each check changes and keeps, and that it repeats the run's own draw."""

import pytest
import torch
from torch import nn

from args_helper import parse_args
from models.initialise import WeightDraw, draw_weights
from tests.conftest import same_bits
from tests.toys import seeded
from trainers import pipeline
from trainers.checks.controls import CHECKS, mask_shuffle, weight_reinit, weight_shuffle
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from utils.run.run import Run

CONFIG = parse_args(["--init", "signed_constant"])


def ticket() -> Ticket:
    """Masks of three densities over a network with batch norm; all surviving weights differ; a gem of nothing."""
    layers = {"conv": nn.Conv2d(2, 8, 3), "norm": nn.BatchNorm2d(8), "hidden": nn.Conv2d(8, 16, 1)}
    net = nn.ModuleDict({**layers, "out": nn.Linear(16, 10)})
    generator = torch.Generator().manual_seed(1)
    draw_weights(net, generator, WeightDraw("kaiming_normal"))
    net["norm"].running_mean.normal_(generator=generator)
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    densities = {"conv": 0.3, "hidden": 0.6, "out": 0.1}
    masks = {
        name: torch.rand(value.shape, generator=generator) < densities[name.partition(".")[0]]
        for name, value in state.items()
        if not name.startswith("norm")
    }
    gem = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    return Ticket(state, masks, gem, {"rescued": False})


@pytest.mark.parametrize("check", CHECKS)
def test_a_control_network_differs_within_layers_alone_and_by_its_own_generator_alone(check):
    given, controls = ticket(), []
    for around, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(around)
        controls.append(CHECKS[check](given, CONFIG, seeded(seed)))
    first, again, other = ([one.state, one.masks] for one in controls)
    assert same_bits(first, again)
    assert not same_bits(first, other)
    untouched = ticket()
    assert same_bits([given.state, given.masks], [untouched.state, untouched.masks])
    state, masks = first
    for name, mask in given.masks.items():
        assert (masks[name].shape, masks[name].dtype, masks[name].sum()) == (mask.shape, torch.bool, mask.sum())
        assert "bias" in name or not torch.equal(given.state[name] * mask, state[name] * masks[name])
    norm = [name for name in given.state if name not in given.masks]
    assert "norm.running_mean" in norm
    assert all(torch.equal(state[name], given.state[name]) for name in norm)
    assert controls[0].gem is None  # it is judged untrained under its own masks
    assert same_bits(controls[0].untrained, masks)


def test_controls_are_trained_like_the_ticket_and_judged_on_test(tmp_path, monkeypatch):
    seen, run, given = [], Run(tmp_path, tmp_path / "logs", 1), ticket()
    row = {"test_acc": 1.0, "val_acc": 2.0}
    monkeypatch.setattr(pipeline, "train_ticket", lambda *how: seen.append(how) or row)
    found = pipeline.train_controls(run, net := nn.Identity(), given, None, CONFIG)
    assert found == {name: {"test_acc_after_finetune": 1.0} for name in CHECKS}
    for how, (name, check) in zip(seen, CHECKS.items(), strict=True):
        control = check(given, CONFIG, run.rng(f"check/{name}", "twin"))
        assert how[:3] + how[4:] == (run, f"check/{name}", net, None, Recipe.of_tuning(CONFIG))
        assert same_bits([how[3].state, how[3].masks], [control.state, control.masks])


# ---- weight_reinit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "values"),
    [("--init signed_constant", {"conv.weight": [-1 / 3, 1 / 3], "hidden.weight": [-0.5, 0.5]}),  # ±√(2 / fan)
     ("--init unsigned_constant --mode fan_out --nonlinearity linear --scale_fan --prune_rate 0.75",
      {"out.weight": [(0.25 * 10) ** -0.5]})],
)  # fmt: skip
def test_weights_and_biases_are_drawn_anew_by_the_runs_own_init(words, values):
    given = ticket()
    control = weight_reinit(given, parse_args(words.split()), seeded())
    assert same_bits(control.masks, given.masks)
    for name, expected in values.items():
        assert control.state[name].unique().tolist() == pytest.approx(expected)
    for name, fan_in in (("conv.bias", 18), ("hidden.bias", 8), ("out.bias", 16)):
        assert control.state[name].shape == given.state[name].shape
        assert control.state[name].abs().max() <= fan_in**-0.5
        assert not torch.equal(control.state[name], given.state[name])


# ---- shuffles ------------------------------------------------------------------------------------------------------


def test_masks_are_permuted_over_weights_that_stay_and_every_place_is_as_likely_to_be_kept():
    mask = torch.arange(12).view(3, 4) < 3
    given, generator = Ticket({"out.weight": torch.ones(3, 4)}, {"out.weight": mask}), seeded()
    controls = [mask_shuffle(given, CONFIG, generator) for _ in range(1200)]
    assert same_bits(controls[0].state, given.state)
    kept = sum(control.masks["out.weight"].float() for control in controls)
    assert (kept / 1200 - 0.25).abs().max() < 0.06


def test_surviving_weights_change_places_among_themselves_and_pruned_ones_stay():
    given = ticket()
    control = weight_shuffle(given, CONFIG, seeded())
    assert same_bits(control.masks, given.masks)
    for name, mask in given.masks.items():
        before, after = given.state[name], control.state[name]
        assert torch.equal(before[mask].sort().values, after[mask].sort().values)
        assert torch.equal(before[~mask], after[~mask])


def test_a_surviving_weight_is_as_likely_to_land_on_every_surviving_place():
    weight, generator = torch.arange(1.0, 7.0).view(2, 3), seeded()
    given = Ticket({"out.weight": weight}, {"out.weight": weight <= 4})
    landed = torch.stack([weight_shuffle(given, CONFIG, generator).state["out.weight"] == 1 for _ in range(1200)])
    assert landed.float().mean(0).flatten().tolist() == pytest.approx([0.25] * 4 + [0, 0], abs=0.05)


@pytest.mark.parametrize("shuffle", [mask_shuffle, weight_shuffle])
def test_a_layer_without_survivors_is_left_alone(shuffle):
    given = Ticket({"out.weight": torch.arange(4.0)}, {"out.weight": torch.zeros(4, dtype=torch.bool)})
    control = shuffle(given, CONFIG, seeded())
    assert same_bits([control.state, control.masks], [given.state, given.masks])
