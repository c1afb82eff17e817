"""Control networks: what each check changes and keeps, and that it repeats the run's own draw."""

import pytest
import torch
from torch import nn

from args_helper import parse_args
from models.initialise import WeightDraw, draw_weights
from trainers.checks.controls import CHECKS, mask_shuffle, weight_reinit, weight_shuffle
from trainers.tickets.ticket import Ticket

CONFIG = parse_args(["--init", "signed_constant"])


def ticket(bias: bool = False) -> Ticket:
    """Masks of three densities over a network with batch norm; all surviving weights differ; a gem of nothing."""
    net = nn.ModuleDict(
        {
            "conv": nn.Conv2d(2, 8, 3, bias=bias),
            "norm": nn.BatchNorm2d(8),
            "hidden": nn.Conv2d(8, 16, 1, bias=bias),
            "out": nn.Linear(16, 10, bias=bias),
        }
    )
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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart_from_masked(given: Ticket, control: Ticket) -> tuple[dict, dict]:
    return tuple({name: one.state[name] for name in one.state if name not in given.masks} for one in (given, control))


# ---- all of them ---------------------------------------------------------------------------------------------------


def test_the_checks_are_these_three():
    assert list(CHECKS) == ["weight_reinit", "mask_shuffle", "weight_shuffle"]
    assert list(CHECKS.values()) == [weight_reinit, mask_shuffle, weight_shuffle]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("check", CHECKS)
def test_a_control_network_keeps_batch_norm_and_the_count_of_every_layer_and_differs_from_the_ticket(check, bias):
    given = ticket(bias)
    control = CHECKS[check](given, CONFIG, seeded())
    counts = [{name: int(mask.sum()) for name, mask in one.masks.items()} for one in (given, control)]
    assert counts[0] == counts[1]
    assert all(mask.dtype == torch.bool for mask in control.masks.values())
    assert same(*apart_from_masked(given, control))
    assert "norm.running_mean" in apart_from_masked(given, control)[0]
    for name in ("conv.weight", "hidden.weight", "out.weight"):
        assert not torch.equal(given.state[name] * given.masks[name], control.state[name] * control.masks[name])


@pytest.mark.parametrize("check", CHECKS)
def test_the_ticket_itself_stays_as_it_was(check):
    given, untouched = ticket(bias=True), ticket(bias=True)
    CHECKS[check](given, CONFIG, seeded())
    assert same(given.state, untouched.state)
    assert same(given.masks, untouched.masks)


@pytest.mark.parametrize("check", CHECKS)
def test_a_control_network_is_a_function_of_the_generator_and_of_no_other_randomness(check):
    controls = []
    for around, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(around)
        controls.append(CHECKS[check](ticket(bias=True), CONFIG, seeded(seed)))
    first, again, other = controls
    assert same(first.state, again.state)
    assert same(first.masks, again.masks)
    assert not (same(first.state, other.state) and same(first.masks, other.masks))


@pytest.mark.parametrize("check", CHECKS)
def test_a_control_network_is_judged_untrained_under_its_own_masks_and_not_under_the_tickets_gem(check):
    control = CHECKS[check](ticket(), CONFIG, seeded())
    assert control.gem is None
    assert same(control.untrained, control.masks)


# ---- weight_reinit -------------------------------------------------------------------------------------------------


def test_weights_are_drawn_anew_by_the_runs_own_init():
    given = ticket()
    control = weight_reinit(given, CONFIG, seeded())
    for name, fan_in in (("conv.weight", 18), ("hidden.weight", 8), ("out.weight", 16)):
        expected = (2.0 / fan_in) ** 0.5  # the gain of ReLU is √2
        assert control.state[name].unique().tolist() == pytest.approx([-expected, expected])
        assert control.state[name].shape == given.state[name].shape
    assert same(control.masks, given.masks)


def test_another_init_draws_other_weights():
    uniform = weight_reinit(ticket(), parse_args(["--init", "kaiming_uniform"]), seeded()).state["out.weight"]
    bound = (6.0 / 16) ** 0.5
    assert uniform.unique().numel() > 100
    assert 0.9 * bound < uniform.abs().max() <= bound


def test_mode_nonlinearity_and_scale_fan_hold_for_the_new_draw_too():
    words = ("--init", "signed_constant", "--mode", "fan_out", "--nonlinearity", "linear")
    config = parse_args([*words, "--scale_fan", "true", "--prune_rate", "0.75"])
    control = weight_reinit(ticket(), config, seeded())
    assert control.state["out.weight"].abs().unique().tolist() == pytest.approx([(0.25 * 10) ** -0.5])


def test_biases_are_drawn_anew_within_the_bound_of_the_weight_beside():
    given = ticket(bias=True)
    control = weight_reinit(given, CONFIG, seeded())
    for name, fan_in in (("conv.bias", 18), ("hidden.bias", 8), ("out.bias", 16)):
        assert control.state[name].shape == given.state[name].shape
        assert control.state[name].abs().max() <= fan_in**-0.5
        assert not torch.equal(control.state[name], given.state[name])


# ---- mask_shuffle --------------------------------------------------------------------------------------------------


def test_masks_are_permuted_within_their_layer_over_weights_that_stay():
    given = ticket(bias=True)
    control = mask_shuffle(given, CONFIG, seeded())
    assert same(control.state, given.state)
    for name, mask in given.masks.items():
        assert control.masks[name].shape == mask.shape
        assert int(control.masks[name].sum()) == int(mask.sum())


def test_every_place_is_as_likely_to_be_kept_by_a_shuffled_mask():
    mask = torch.zeros(12, dtype=torch.bool)
    mask[:3] = True
    given, generator = Ticket({"out.weight": torch.ones(3, 4)}, {"out.weight": mask.view(3, 4)}), seeded()
    kept = sum(mask_shuffle(given, CONFIG, generator).masks["out.weight"].float() for _ in range(1200))
    assert (kept / 1200 - 0.25).abs().max() < 0.06


# ---- weight_shuffle ------------------------------------------------------------------------------------------------


def test_surviving_weights_change_places_among_themselves_and_pruned_ones_stay():
    given = ticket(bias=True)
    control = weight_shuffle(given, CONFIG, seeded())
    assert same(control.masks, given.masks)
    for name, mask in given.masks.items():
        before, after = given.state[name], control.state[name]
        assert torch.equal(before[mask].sort().values, after[mask].sort().values)
        assert torch.equal(before[~mask], after[~mask])


def test_a_surviving_weight_is_as_likely_to_land_on_every_surviving_place():
    weight, generator = torch.arange(1.0, 7.0).view(2, 3), seeded()
    given = Ticket({"out.weight": weight}, {"out.weight": weight <= 4})
    landed = torch.stack([weight_shuffle(given, CONFIG, generator).state["out.weight"] == 1 for _ in range(1200)])
    assert landed.float().mean(0).flatten().tolist() == pytest.approx([0.25] * 4 + [0, 0], abs=0.05)


def test_a_layer_without_survivors_is_left_alone():
    given = Ticket({"out.weight": torch.arange(4.0)}, {"out.weight": torch.zeros(4, dtype=torch.bool)})
    for check in (mask_shuffle, weight_shuffle):
        control = check(given, CONFIG, seeded())
        assert same(control.state, given.state)
        assert same(control.masks, given.masks)
