"""Fine-tuning with a teacher: its loss by hand, what it changes and costs, and teachers that are refused."""

import math
import shutil

import pytest
import torch

from args_helper import parse_args
from data.spec import DataSpec
from tests.conftest import SMALL, same_bits, summary_of, timeless
from tests.run_folders import make_run
from tests.toys import SPEC, Toy, complaint
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import teacher_of
from trainers.training.weights import WeightTraining
from utils.masks import all_kept

PARTS = ("finetune", "finetune", "search")
"""Of the costs: the stage of a ticket's training, twice, and that of the dense network's."""


def test_the_loss_is_that_of_distillation():
    student, teacher = Toy(), Toy(seed=2).eval()
    teacher.out.weight.data.zero_()  # it finds every class as likely as any other
    ticket = Ticket(student.state_dict(), all_kept({"conv.weight": student.conv.weight}))
    recipe = Recipe.of_tuning(parse_args(["--teacher_weight", "0.25", "--teacher_temperature", "2"]))
    logits = torch.tensor([[math.log(4), 0.0, 0.0], [math.log(4), 0.0, 0.0]])  # 4:1:1, and divided by 2, 2:1:1
    labels, images = torch.tensor([0, 1]), torch.ones(2, *SPEC.shape)
    task = (math.log(6 / 4) + math.log(6)) / 2
    distance = (math.log((1 / 3) / (1 / 2)) + 2 * math.log((1 / 3) / (1 / 4))) / 3
    for given, expected in ((None, task), (teacher, 0.75 * task + 0.25 * 2**2 * distance)):
        found = WeightTraining(student, ticket, recipe, given).loss(logits, labels, images)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_ticket_and_control_networks_learn_from_a_teacher_of_any_architecture_and_it_is_paid_for(ran, finished):
    words = ("--ticket", finished / "ticket.safetensors", "--arch", "resnet20", "--fine_tune_epochs", 2)
    wide = ran("--algo", "training", "--width", 0.5, "--epochs", 1, name="wide")
    alone, taught = (ran(*words, *more, name=str(len(more))) for more in ((), ("--teacher", wide)))
    before, after = summary_of(alone), summary_of(taught)
    states, others = ({name: state for name, state in timeless(folder).items() if name.endswith(".pt") and state}
                      for folder in (alone, taught))  # fmt: skip
    assert len(states) == 4
    assert not any(same_bits(state, others[name]) for name, state in states.items())
    own, more, spent = (one["cost"][part] for one, part in zip((before, after, summary_of(wide)), PARTS))
    of_an_image = spent["training_flops_dense"] / 3 / spent["images"]
    dearer = more["training_flops_dense"] - own["training_flops_dense"]
    assert dearer == pytest.approx(own["images"] * of_an_image, rel=1e-3)


def test_a_teacher_of_weight_0_changes_nothing(ran, finished):
    alone, taught = (ran(*more, name=str(len(more))) for more in ((), ("--teacher", finished, "--teacher_weight", 0)))
    assert same_bits(timeless(alone)["finetune.pt"], timeless(taught)["finetune.pt"])


def test_a_stopped_run_goes_on_with_its_teacher(same_after_a_stop, finished):
    assert same_after_a_stop(16, *SMALL, "--epochs", 2, "--teacher", finished, "--skip_sanity_checks")


def test_a_teacher_that_cannot_be_used_is_refused_before_the_search(refusal, places, finished, tmp_path):
    begun = make_run(tmp_path / "begun" / "trial_1", None)
    pixels = make_run(tmp_path / "pixels", dataset="CIFAR100")
    bare = tmp_path / "bare"
    shutil.copytree(finished, bare)
    shutil.rmtree(bare / "checkpoints")
    for folder, says in (
        (begun.parent, "there is no config.yml in it, so it is not the folder of a run; its trials are trial_1"),
        (begun, "the run is not finished"),
        (pixels, "its network tells the classes of CIFAR100 apart, which are others"),
        (bare, "the trained weights are no longer there"),
    ):
        assert f"teacher {folder}: {says}" in refusal(*SMALL, *places, "--teacher", folder)
    assert not (tmp_path / "results").exists()


def test_a_teacher_of_images_in_folders_has_to_have_as_many_classes(finished, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    config = (moved / "config.yml").read_text().replace("dataset: Digits", "dataset: ImageFolder")
    (moved / "config.yml").write_text(config)
    fewer = DataSpec(shape=(1, 8, 8), classes=("a", "b"), mean=(0.5,), std=(0.25,))
    assert "does not fit the network" in complaint(teacher_of, str(moved), fewer)
