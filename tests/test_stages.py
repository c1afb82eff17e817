"""The stages that options promise are those that a run goes through."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from args_helper import parse_args
from tests.conftest import SMALL, Outcome, read_rows
from trainers.algorithms import ALGORITHMS
from trainers.training.stages import stages_of, warn_of_idle_milestones
from utils.run.checkpoints import checkpoint_path

Call = Callable[..., Outcome]
SHORT = [*SMALL, "--arch", "FC", "--hidden_size", "20", "--epochs", "3", "--fine_tune_epochs", "2"]
WORDS = {"random": "--prune_rate 0", "random_subnet": "--prune_rate 0.5", "imp": "--prune_rate 0.6 --iter_period 2"}
SPECIAL = [
    "--algo hc_iter --start_epoch 1 --skip_sanity_checks",
    "--algo hc --unflag_before_finetune",
    "--algo ep --skip_fine_tune",
    "--algo training --start_epoch 1 --skip_fine_tune",
    "--algo cts --rewind_epoch 1 --start_epoch 1",
    "--algo imp --imp_rounds 2 --skip_fine_tune",
    "--algo imp --imp_rounds 1",
]


def trained(folder: Path) -> dict[str, int]:
    """Stage -> its epochs, by the tables of a run."""
    rows = [row for path in folder.glob("acc_and_sparsity*.csv") for row in read_rows(path)]
    return Counter(row["phase"] for row in rows)


ALL = [f"--algo {algo} {WORDS.get(algo, '')}" for algo in sorted({*ALGORITHMS} - {"given"})]


@pytest.mark.parametrize("words", [*ALL, *SPECIAL])
def test_the_stages_promised_are_those_trained_and_stored(
    words: str, call: Call, places: list[str], tmp_path: Path
) -> None:
    options = [*SHORT, *places, *words.split()]
    outcome = call(*options)
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "results" / "trial_1"
    promised = stages_of(parse_args(options))
    assert {stage.name: stage.epochs for stage in promised} == trained(folder)
    assert all(checkpoint_path(folder, stage.name).is_file() for stage in promised)
    # Only scores are rounded, so that only they have an accuracy before it.
    rounded = {row["phase"] for row in read_rows(folder / "acc_and_sparsity.csv") if row["test_acc_before_rounding"]}
    assert {stage.name for stage in promised if stage.trains == "scores"} == rounded


def test_a_ticket_from_a_file_and_a_round_of_another_run_are_taken_over(
    call: Call, places: list[str], tmp_path: Path
) -> None:
    imp = [*SHORT, *places, "--algo", "imp", "--imp_rounds", "3", "--iter_period", "2"]
    assert call(*imp, "--name", "whole", "--skip_sanity_checks").code == 0
    whole = tmp_path / "results" / "whole" / "trial_1"
    for words in (
        ["--imp_resume_folder", str(whole), "--imp_resume_round", "1"],
        ["--algo", "given", "--ticket", str(whole / "ticket.safetensors")],
    ):
        name = words[0].strip("-")
        assert call(*imp, *words, "--name", name).code == 0
        taken_over = {"search/round_1": 2} if name.startswith("imp") else {}
        promised = {stage.name: stage.epochs for stage in stages_of(parse_args([*imp, *words]))}
        assert Counter(promised) + Counter(taken_over) == trained(tmp_path / "results" / name / "trial_1")


@pytest.mark.parametrize(("epoch", "step", "left"), [(-1, -1, 0), (7, -1, 23), (7, 3, 23), (-1, 3, 30)])
def test_a_round_that_was_begun_elsewhere_has_its_other_epochs_left(epoch: int, step: int, left: int) -> None:
    words = ["--algo", "imp", "--iter_period", "30", "--imp_resume_folder", "x", "--imp_resume_round", "2"]
    words += ["--imp_rounds", "4", "--skip_sanity_checks"]
    begun = [f"--imp_resume_epoch={epoch}", f"--imp_resume_iter={step}"]
    stages = stages_of(parse_args([*words, *begun]))
    assert [(stage.name, stage.epochs) for stage in stages] == [("search/round_2", left), ("search/round_3", 30)]


def test_the_long_run_of_magnitude_pruning_is_counted_whole() -> None:
    words = "--algo imp --iter_period 160 --target_sparsity 1.44"
    epochs = {stage.name: stage.epochs for stage in stages_of(parse_args(words.split()))}
    assert sum(length for name, length in epochs.items() if name.startswith("search")) == 3_360
    assert sum(length for name, length in epochs.items() if name.startswith("check")) == 480


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--milestones 80 120 --fine_tune_epochs 160", ["search: of the milestones 80, 120"]),
        ("--milestones 5 --fine_tune_epochs 5", ["finetune: of the milestones 5, which search and fine-tuning share"]),
        ("--milestones 5 --fine_tune_epochs 5 --skip_fine_tune", []),
        ("--milestones 5 --fine_tune_epochs 6", []),
        ("--milestones 5 --fine_tune_epochs 5 --fine_tune_lr_policy cosine_lr", []),
        ("--fine_tune_epochs 1", []),
        ("--algo snip --milestones 80 --fine_tune_epochs 160", []),
        ("--algo imp --milestones 5 --iter_period 5", ["search: of the milestones 5"]),
        ("--algo training --milestones 5 --fine_tune_epochs 5", []),
    ],
)
def test_a_part_without_a_step_of_the_learning_rate_is_warned_of(words: str, said: list[str]) -> None:
    policies = ["--epochs", "10", "--lr_policy", "multistep_lr", "--fine_tune_lr_policy", "multistep_lr"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_idle_milestones(parse_args([*policies, *words.split()]))
    found = [str(one.message) for one in caught]
    assert len(found) == len(said)
    assert all(part in one for part, one in zip(said, found))


def test_a_run_and_its_plan_say_that_a_learning_rate_never_steps_down(call: Call, places: list[str]) -> None:
    words = [*SHORT, *places, "--algo", "random", "--skip_sanity_checks", "--milestones", "9"]
    for more in ([], ["--dry_run"]):
        outcome = call(*words, "--fine_tune_lr_policy", "multistep_lr", *more)
        assert outcome.code == 0
        assert outcome.err.count("multistep_lr never lowers the learning rate of finetune") == 1
