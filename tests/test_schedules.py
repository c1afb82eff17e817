"""Learning rates and prunings by epoch, against published figures and against their definitions."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from utils.schedules import lr_factor, pruning_epochs, pruning_rate

GOLDEN = json.loads((Path(__file__).parent / "golden/resnet20_seed0.json").read_text())

# At 6 epochs the published code has one milestone, 3, and a cosine over 150 epochs.
OTHERWISE_ON_PURPOSE = {(6, "multistep_lr"), (6, "cosine_lr")}
SCHEDULES = [one for one in GOLDEN["schedules"] if (one["epochs"], one["policy"]) not in OTHERWISE_ON_PURPOSE]
COSINE_OF_4 = [1, 0.8535533905932737, 0.5, 0.14644660940672627]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['policy']}-{case['epochs']}")
def test_learning_rates_are_the_published_ones(case: dict[str, Any]) -> None:
    factor = lr_factor(case["policy"], case["epochs"])
    rates = [0.1 * factor(epoch) for epoch in range(case["epochs"])]
    assert {epoch: rates[int(epoch)] for epoch in case["lr_at"]} == pytest.approx(case["lr_at"], rel=1e-9)
    assert sum(rates) == pytest.approx(case["sum"], rel=1e-9)


@pytest.mark.parametrize(
    ("policy", "options", "factors"),
    # Without published milestones, a half and two thirds of the epochs.
    [("multistep_lr", {}, [1]), ("multistep_lr", {}, [1, 1, 1, 0.1, 0.01, 0.01, 0.01]),
     ("multistep_lr", {}, [1, 1, 1, 1, 0.1, 0.01, 0.01, 0.01]),
     ("multistep_lr", {"gamma": 0.5, "milestones": [1, 3]}, [1, 0.5, 0.5, 0.25, 0.25]),
     ("multistep_lr", {"gamma": 0.5, "milestones": [3, 1]}, [1, 0.5, 0.5, 0.25]),
     ("multistep_lr", {"milestones": []}, [1, 1, 1, 1]),
     ("constant_lr", {"gamma": 0.5, "milestones": [1]}, [1, 1, 1, 1]),
     ("cosine_lr", {"gamma": 0.5, "milestones": [1]}, COSINE_OF_4),
     # A warm-up never starts at zero; the cosine runs over the rest, and milestones stay where they are.
     ("constant_lr", {"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
     ("cosine_lr", {"warmup": 4}, [0.25, 0.5, 0.75, 1, *COSINE_OF_4]),
     ("multistep_lr", {"warmup": 2}, [0.5, 1, 1, 0.1, 0.01, 0.01]), ("cosine_lr", {"warmup": 2}, [0.5, 1.0])],
)  # fmt: skip
def test_learning_rates_by_hand(policy: str, options: dict[str, Any], factors: list[float]) -> None:
    factor = lr_factor(policy, len(factors), **options)
    assert [factor(epoch) for epoch in range(len(factors))] == pytest.approx(factors, rel=1e-12)


def test_prunings_follow_every_epoch_after_the_start_that_the_period_divides() -> None:
    for epochs, period, start in itertools.product([1, 5, 6, 11, 31], [1, 2, 5, 7], [0, 1, 4, 5, 6, 10, 30]):
        by_definition = [epoch for epoch in range(epochs) if epoch > start and epoch % period == 0]
        assert list(pruning_epochs(epochs, period, start)) == by_definition


def test_all_prunings_together_end_at_the_density() -> None:
    assert [pruning_rate(0.25, prunings) for prunings in (1, 2)] == [0.75, 0.5]


@pytest.mark.parametrize("case", [case for case in GOLDEN["prune_rate"] if case["algo"] == "hc_iter"], ids=str)
def test_pruning_rates_are_the_published_ones(case: dict[str, Any]) -> None:
    prunings = len(pruning_epochs(case["epochs"], case["iter_period"]))
    assert pruning_rate(case["target_sparsity"] / 100, prunings) == pytest.approx(case["prune_rate"], rel=1e-12)
