"""Runs from a notebook: the example's cells, and what a wrong option is told."""

import runpy
from pathlib import Path

import pytest

from args_helper import parse_args
from data.load import load_data
from tests.conftest import PROJECT, epoch_row, read_rows
from tests.small_sets import put_tree
from trainers import mine
from trainers.notebook import Mined
from trainers.training.loop import evaluate
from utils.errors import UserError
from utils.files import write_csv


def test_the_example_runs_cell_by_cell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(PROJECT / "tests" / "example_notebook.py"))
    run = found["run"]
    assert run.folder == found["again"].folder == Path("results/quickstart/trial_1")
    searched, table = (
        [float(row["test_acc"]) for row in rows if row["phase"] == "search"]
        for rows in (run.metrics, read_rows(run.folder / "acc_and_sparsity.csv"))
    )
    assert searched == table and len(table) == 6
    assert run.summary["weights_remaining"] == sum(int(mask.sum()) for mask in run.ticket.masks.values())
    assert not any(run.model.get_parameter(name)[~mask].any() for name, mask in found["masks"].items())
    assert len(found["figure"].axes) == 2


def test_the_model_of_a_run_has_the_accuracy_that_the_run_tells(finished):
    run = Mined(finished, parse_args(["--resume", str(finished)]))
    assert evaluate(run.model, load_data(run.config).test) == pytest.approx(run.summary["test_acc_after_finetune"])
    assert not any(one.requires_grad for one in run.model.parameters())


def test_the_model_of_a_run_on_folders_has_the_classes_of_the_folders(ran, tmp_path):
    put_tree(tmp_path / "in", each=10, height=8, width=8)
    folder = ran("--dataset", "ImageFolder", "--data", tmp_path / "in", "--algo", "random", "--skip_sanity_checks")
    run = Mined(folder, parse_args(["--resume", str(folder)]))
    assert evaluate(run.model, load_data(run.config).test) == pytest.approx(run.summary["test_acc_after_finetune"])


def test_a_wrong_option_is_answered_by_the_argument_that_was_meant(finished):
    with pytest.raises(UserError, match='to run this one beside it, give name="run_2"'):
        mine(results_dir=str(finished.parent), lr=0.3)
    with pytest.raises(UserError, match=r"lrr=: no such option; did you mean lr=0\.1\?"):
        mine(lrr=0.1)
    with pytest.raises(UserError, match=r"arch=: 'resnet_20' is not one of .*; did you mean arch='resnet20'\?"):
        mine(PROJECT / "configs/quickstart.yml", arch="resnet_20")


@pytest.mark.parametrize(
    "option", [{"report": "x"}, {"dry_run": True}, {"sweep": "x.yml"}, {"resume": "x"}, {"max_time": "9m"}]
)
def test_what_only_a_command_does_is_not_ignored(monkeypatch, option):
    monkeypatch.setattr("trainers.notebook.run_trials", lambda *_, **__: pytest.fail("a run was begun"))
    with pytest.raises(UserError, match=f"{next(iter(option))}: for the command line only"):
        mine(**option)


def test_a_time_limit_in_a_file_is_kept(monkeypatch, tmp_path):
    (tmp_path / "mine.yml").write_text("max_time: 9m\n")
    monkeypatch.setattr("trainers.notebook.run_trials", lambda config, **_: pytest.fail(config.max_time))
    with pytest.raises(pytest.fail.Exception, match="9m"):
        mine(tmp_path / "mine.yml")


def test_metrics_are_those_of_the_table_by_whatever_name(tmp_path):
    names = ("tables/[own].txt", "tables/[own]_mask_shuffle.txt", "tables/other.txt", "[own].txt")
    for number, name in enumerate(names):
        write_csv(tmp_path / name, [epoch_row(number)])
    config = parse_args(["--results_filename", names[0]])
    assert [row["epoch"] for row in Mined(tmp_path, config).metrics] == [0, 1]
    (tmp_path / names[1]).write_text("phase,epoch\nsearch,x\n")
    with pytest.raises(UserError, match="a metric is missing or no number"):
        list(Mined(tmp_path, config).metrics)
