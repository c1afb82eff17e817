"""The stages that options promise are those that a run goes through."""

import warnings
from collections import Counter
from pathlib import Path

import pytest

from args_helper import parse_args
from tests.conftest import SMALL, read_rows
from trainers.algorithms import ALGORITHMS
from trainers.training.stages import stages_of, warn_of_idle_milestones
from utils.run.checkpoints import checkpoint_path

SHORT = [*SMALL, "--arch", "FC", "--hidden_size", "20", "--epochs", "3", "--fine_tune_epochs", "2"]
WORDS = {"random": "--prune_rate 0", "random_subnet": "--prune_rate 0.5", "imp": "--prune_rate 0.6 --iter_period 2"}


def promised(words: list[str]) -> dict[str, int]:
    """Stage -> its epochs, by the options of a run."""
    return {stage.name: stage.epochs for stage in stages_of(parse_args(words))}


def trained(folder: Path) -> dict[str, int]:
    """The same, by its tables."""
    return Counter(row["phase"] for path in folder.glob("acc_and_sparsity*.csv") for row in read_rows(path))


@pytest.mark.parametrize("words", [
    *(f"--algo {algo} {WORDS.get(algo, '')}" for algo in sorted({*ALGORITHMS} - {"given"})),
    "--algo hc_iter --start_epoch 1 --skip_sanity_checks", "--algo hc --unflag_before_finetune",
    "--algo ep --skip_fine_tune", "--algo training --start_epoch 1 --skip_fine_tune",
    "--algo cts --rewind_epoch 1", "--algo imp --imp_rounds 2 --skip_fine_tune",
    "--algo imp --imp_rounds 1", "--algo gmp --start_epoch 1",
])  # fmt: skip
def test_the_stages_promised_are_those_trained_and_stored(words, done, places, trial):
    options = [*SHORT, *places, *words.split()]
    done(*options)
    folder, stages = trial(), stages_of(parse_args(options))
    assert {stage.name: stage.epochs for stage in stages} == trained(folder)
    assert all(checkpoint_path(folder, stage.name).is_file() for stage in stages)
    # Only scores are rounded, so that only they have an accuracy before it.
    rounded = {row["phase"] for row in read_rows(folder / "acc_and_sparsity.csv") if row["test_acc_before_rounding"]}
    assert {stage.name for stage in stages if stage.trains == "scores"} == rounded


def test_a_ticket_from_a_file_and_a_round_of_another_run_are_taken_over(done, places, trial):
    imp = [*SHORT, *places, "--algo", "imp", "--imp_rounds", "3", "--iter_period", "2"]
    done(*imp, "--name", "whole", "--skip_sanity_checks")
    whole = trial("whole")
    for name, taken_over, *words in (
        ("round", {"search/round_1": 2}, "--imp_resume_folder", str(whole), "--imp_resume_round", "1"),
        ("ticket", {}, "--algo", "given", "--ticket", str(whole / "ticket.safetensors")),
    ):
        done(*imp, *words, "--name", name)
        assert promised([*imp, *words]) | taken_over == trained(trial(name))


@pytest.mark.parametrize(("epoch", "step", "left"), [(-1, -1, 0), (7, -1, 23), (7, 3, 23), (-1, 3, 30)])
def test_a_round_that_was_begun_elsewhere_has_its_other_epochs_left(epoch, step, left):
    words = "--algo imp --iter_period 30 --imp_resume_folder x --imp_resume_round 2 --imp_rounds 4 --skip_sanity_checks"
    stages = promised([*words.split(), f"--imp_resume_epoch={epoch}", f"--imp_resume_iter={step}"])
    assert list(stages.items()) == [("search/round_2", left), ("search/round_3", 30)]


SHARED = ", which search and fine-tuning share, none lies in its"


@pytest.mark.parametrize(("words", "said"), [
    ("--milestones 80 120 --fine_tune_epochs 160", [f"search: of the milestones 80, 120{SHARED} 10 epochs"]),
    ("--milestones 5 --fine_tune_epochs 5", [f"finetune: of the milestones 5{SHARED} 5 epochs"]),
    ("--milestones 5 --fine_tune_epochs 5 --skip_fine_tune", []), ("--milestones 5 --fine_tune_epochs 6", []),
    ("--milestones 5 --fine_tune_epochs 5 --fine_tune_lr_policy cosine_lr", []), ("--fine_tune_epochs 1", []),
    ("--algo snip --milestones 80 --fine_tune_epochs 160", []),
    ("--algo imp --milestones 5 --iter_period 5", [f"search: of the milestones 5{SHARED} 5 epochs"]),
    ("--algo training --milestones 5 --fine_tune_epochs 5", []),
])  # fmt: skip
def test_a_part_without_a_step_of_the_learning_rate_is_warned_of(words, said):
    steps = "--epochs 10 --lr_policy multistep_lr --fine_tune_lr_policy multistep_lr"
    config = parse_args([*steps.split(), *words.split()])
    with warnings.catch_warnings(record=True, action="always") as caught:
        warn_of_idle_milestones(config)
    assert [str(one.message).removeprefix("multistep_lr never lowers the learning rate of ") for one in caught] == said


def test_a_run_and_its_plan_say_that_a_learning_rate_never_steps_down(done, places):
    words = [*SHORT, *places, "--algo", "random", "--skip_sanity_checks", "--milestones", "9"]
    for more in ([], ["--dry_run"]):
        said = done(*words, "--fine_tune_lr_policy", "multistep_lr", *more).err
        assert said.count("multistep_lr never lowers the learning rate of finetune") == 1
