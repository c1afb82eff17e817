"""Learning rates and prunings by epoch, against published figures and against their definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from utils.schedules import default_milestones, lr_factor, pruning_epochs, pruning_rate

GOLDEN = json.loads((Path(__file__).parent / "golden/resnet20_seed0.json").read_text())

# At 6 epochs the published code has one milestone, 3, and a cosine over 150 epochs.
OTHERWISE_ON_PURPOSE = {(6, "multistep_lr"), (6, "cosine_lr")}
SCHEDULES = [one for one in GOLDEN["schedules"] if (one["epochs"], one["policy"]) not in OTHERWISE_ON_PURPOSE]


def factors(policy: str, epochs: int, **options: Any) -> list[float]:
    """The factor of every epoch."""
    factor = lr_factor(policy, epochs, **options)
    return [factor(epoch) for epoch in range(epochs)]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['policy']}-{case['epochs']}")
def test_learning_rates_are_the_published_ones(case: dict[str, Any]) -> None:
    rates = [0.1 * factor for factor in factors(case["policy"], case["epochs"])]
    assert {epoch: rates[int(epoch)] for epoch in case["lr_at"]} == pytest.approx(case["lr_at"], rel=1e-9)
    assert sum(rates) == pytest.approx(case["sum"], rel=1e-9)


def test_figures_of_three_policies_and_all_named_lengths_are_compared() -> None:
    assert {one["policy"] for one in SCHEDULES} == {"constant_lr", "cosine_lr", "multistep_lr"}
    assert {one["epochs"] for one in SCHEDULES} >= {100, 150, 160, 200, 300}


def test_a_short_training_steps_down_at_a_half_and_at_two_thirds() -> None:
    assert factors("multistep_lr", 6) == pytest.approx([1, 1, 1, 0.1, 0.01, 0.01])


def test_a_short_cosine_runs_over_its_own_length() -> None:
    half_root_three = 0.8660254037844386
    by_hand = [1, (1 + half_root_three) / 2, 0.75, 0.5, 0.25, (1 - half_root_three) / 2]
    assert factors("cosine_lr", 6) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(100, (50, 80)), (150, (80, 120)), (160, (80, 120)), (200, (100, 150)), (300, (150, 250)), (7, (3, 4)),
     (1, (0, 0)), (40, (20, 26)), (151, (75, 100))],
)  # fmt: skip
def test_milestones_go_by_the_length(epochs: int, milestones: tuple[int, int]) -> None:
    assert default_milestones(epochs) == milestones


def test_given_milestones_and_factor_are_used() -> None:
    assert factors("multistep_lr", 5, gamma=0.5, milestones=[1, 3]) == [1, 0.5, 0.5, 0.25, 0.25]
    assert factors("multistep_lr", 4, gamma=0.5, milestones=[3, 1]) == [1, 0.5, 0.5, 0.25]
    assert factors("multistep_lr", 4, milestones=[]) == [1, 1, 1, 1]


def test_milestones_and_factor_are_for_steps_alone() -> None:
    assert factors("constant_lr", 4, gamma=0.5, milestones=[1]) == [1, 1, 1, 1]
    assert factors("cosine_lr", 4, gamma=0.5, milestones=[1]) == factors("cosine_lr", 4)


@pytest.mark.parametrize("policy", ["constant_lr", "cosine_lr", "multistep_lr"])
def test_a_warm_up_rises_linearly_to_one_and_never_starts_at_zero(policy: str) -> None:
    assert factors(policy, 12, warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_after_a_warm_up_the_cosine_runs_over_the_rest() -> None:
    warmed = factors("cosine_lr", 8, warmup=4)
    assert warmed[4:] == pytest.approx(factors("cosine_lr", 4))
    assert warmed[6] == pytest.approx(0.5)


def test_a_warm_up_as_long_as_the_training_only_rises() -> None:
    assert factors("cosine_lr", 2, warmup=2) == [0.5, 1.0]
    assert lr_factor("cosine_lr", 2, warmup=2)(2) == 1.0  # a scheduler asks once more after the last epoch


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 10, 30])
@pytest.mark.parametrize("period", [1, 2, 5, 7])
@pytest.mark.parametrize("epochs", [1, 5, 6, 11, 31])
def test_prunings_follow_every_epoch_after_the_start_that_the_period_divides(
    epochs: int, period: int, start: int
) -> None:
    by_definition = [epoch for epoch in range(epochs) if epoch > start and epoch % period == 0]
    assert list(pruning_epochs(epochs, period, start)) == by_definition


def test_the_published_recipe_prunes_twenty_nine_times() -> None:
    epochs = pruning_epochs(150, 5)
    assert (len(epochs), epochs[0], epochs[-1]) == (29, 5, 145)


@pytest.mark.parametrize("case", [case for case in GOLDEN["prune_rate"] if case["algo"] == "hc_iter"], ids=str)
def test_pruning_rates_are_the_published_ones(case: dict[str, Any]) -> None:
    prunings = len(pruning_epochs(case["epochs"], case["iter_period"]))
    assert pruning_rate(case["target_sparsity"] / 100, prunings) == pytest.approx(case["prune_rate"], rel=1e-12)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.0144, 1e-4])
@pytest.mark.parametrize("prunings", [1, 2, 29])
def test_all_prunings_together_end_at_the_density(density: float, prunings: int) -> None:
    assert (1 - pruning_rate(density, prunings)) ** prunings == pytest.approx(density)


def test_one_pruning_removes_all_that_has_to_go() -> None:
    assert pruning_rate(0.25, 1) == 0.75
    assert pruning_rate(0.25, 2) == 0.5
