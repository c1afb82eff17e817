"""Fine-tuning with a teacher: its loss by hand, what it changes and costs, and teachers that are refused."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from args_helper import config_of, parse_args
from data.load import declared_spec
from models.build import build_model
from tests.conftest import SMALL, same_bits, summary_of, timeless
from tests.run_folders import make_run
from tests.toys import SPEC, Toy, complaint
from trainers.tickets.recipe import Recipe
from trainers.tickets.ticket import Ticket
from trainers.tickets.trained import teacher_of
from trainers.training.weights import WeightTraining
from utils.masks import all_kept


def test_the_loss_is_that_of_distillation():
    student, teacher = Toy(), Toy(seed=2).eval()
    teacher.out.weight.data.zero_()  # it finds every class as likely as any other
    ticket = Ticket(student.state_dict(), all_kept({"conv.weight": student.conv.weight}))
    recipe = Recipe.of_tuning(parse_args("--teacher x --teacher_weight 0.25 --teacher_temperature 2".split()))
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
    own, more, spent = before["cost"]["finetune"], after["cost"]["finetune"], summary_of(wide)["cost"]["search"]
    of_an_image = spent["training_flops_dense"] / 3 / spent["images"]
    dearer = more["training_flops_dense"] - own["training_flops_dense"]
    assert dearer == pytest.approx(own["images"] * of_an_image, rel=1e-3)


def test_a_teacher_of_weight_0_changes_nothing(ran, finished):
    alone, taught = (ran(*more, name=str(len(more))) for more in ((), ("--teacher", finished, "--teacher_weight", 0)))
    assert same_bits(timeless(alone)["finetune.pt"], timeless(taught)["finetune.pt"])


def test_a_stopped_run_goes_on_with_its_teacher(same_after_a_stop, finished):
    assert same_after_a_stop(16, *SMALL, "--epochs", 2, "--teacher", finished, "--skip_sanity_checks")


@pytest.fixture
def copied(finished, tmp_path):
    """Copy the finished run; in one of its files, text may be replaced."""

    def copy(name: str, file: str = "config.yml", old: str = "", new: str = "") -> Path:
        shutil.copytree(finished, tmp_path / name)
        path = tmp_path / name / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
        return path.parent

    return copy


def test_a_teacher_that_cannot_be_used_is_refused_before_the_search(refusal, places, copied, tmp_path):
    begun = make_run(tmp_path / "begun" / "trial_1", None)
    pixels = copied("pixels", "environment.json", r"1\u00d78\u00d78", r"1\u00d716\u00d716")
    said_nothing = copied("said nothing", "summary.json", "test_acc_after_finetune", "something")
    bare = copied("bare")
    shutil.rmtree(bare / "checkpoints")
    for folder, says in (
        (begun.parent, "there is no config.yml in it, so it is not the folder of a run; its trials are trial_1"),
        (begun, "the run is not finished"),
        (
            pixels,
            "it was trained on images of 1×16×16 in 10 classes (9b4af26e), and these are images of 1×8×8 in",
        ),
        (said_nothing, f"{said_nothing}/summary.json is not the summary of a run"),
        (bare, "the trained weights are no longer there"),
    ):
        assert f"teacher {folder}: {says}" in refusal(*SMALL, *places, "--teacher", folder)
    assert not (tmp_path / "results").exists()


def test_classes_of_other_names_are_another_task(finished):
    spec = declared_spec("Digits")
    assert "it was trained on images of 1×8×8 in 10 classes" in complaint(
        teacher_of, str(finished), replace(spec, classes=tuple("abcdefghij")), Toy()
    )
    assert teacher_of(str(finished), replace(spec, mean=(0.5,)), Toy()).training is False


def test_a_teachers_folder_does_not_choose_what_code_runs(copied, finished, tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('it ran')")
    folder, spec = copied("shared", old="arch: resnet20", new=f"arch: {evil}:net"), declared_spec("Digits")
    own = build_model(parse_args(["--arch", "resnet20", "--width", "0.25"]), spec)
    found, upright = (teacher_of(str(place), spec, own).state_dict() for place in (folder, finished))
    assert same_bits(found, upright)
    assert "does not fit the network" in complaint(teacher_of, str(folder), spec, Toy())


def test_a_run_keeps_to_its_teacher(ran, refusal, copied):
    folder = copied("dense")
    run = ran("--algo", "magnitude", "--teacher", folder, "--skip_sanity_checks")
    before = summary_of(run)
    shutil.rmtree(folder)
    shutil.copytree(ran("--algo", "random", name="other"), folder)
    said = refusal("--only_sanity", "--sanity_folder", run)
    assert f"was begun with another file {folder} (teacher) than is there now" in said
    assert summary_of(run) == before


def test_validation_images_that_a_teacher_may_have_seen_are_told(done, places, finished):
    words = ("--algo", "magnitude", "--teacher", finished, "--skip_sanity_checks", *places)
    told = "it may have been trained on images that this run holds out for validation"
    assert told in done(*SMALL, *words, "--seed", 7).err and told not in done(*SMALL, *words, "--name", "same").err


def test_a_sweep_shares_a_teacher_that_it_trains_first(done, places, tmp_path):
    teacher = tmp_path / "results" / "s" / "dense" / "trial_1"
    (tmp_path / "s.yml").write_text(
        f"options: {{arch: FC, hidden_size: 8, epochs: 1, teacher: {teacher}, skip_sanity_checks: true, threads: 1}}\n"
        "runs: {dense: {algo: training}, magnitude: {algo: magnitude}}"
    )
    done("--sweep", tmp_path / "s.yml", *places)
    folders = (teacher.parents[1] / name / "trial_1" for name in ("dense", "magnitude"))
    assert [config_of({}, path=folder / "config.yml").teacher for folder in folders] == [None, str(teacher)]
